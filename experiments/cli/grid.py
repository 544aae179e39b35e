"""Cells of an experiment: which there are, as files in one directory, and whose turn each is."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from absl import flags
from rich.console import Console

from sysout_jax.errors import InputError
from sysout_jax.results import (
    LATEST,
    RunDirectory,
    as_flag,
    leaves,
    plain,
    read_mapping,
    unwritable,
    write_json,
)
from sysout_jax.training.config import TrainConfig

from . import ending, launch
from .progress import Progress

Item = TypeVar("Item")
Log = Callable[[dict[str, Any]], None]
ABOUT = "about.json"  # beside the cells: what they have in common
TRAINED_AGAIN = "remove it, and it is trained again"  # of a cell that cannot be read


@dataclass(frozen=True)
class Shard:
    """Cell k of a list belongs to process k modulo `count`, if that is `index`."""

    index: int
    count: int

    def of(self, items: Sequence[Item]) -> list[Item]:
        """The items of this process."""
        return list(items[self.index :: self.count])

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


def parse_shard(text: str) -> Shard:
    """The shard that "i/n" names.

    Raises:
      InputError: it names none.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not int(found[1]) < int(found[2]):
        raise InputError("shard", text, "i/n with i from 0 to n - 1, such as 0/4")
    return Shard(int(found[1]), int(found[2]))


def check_place(name: str | None, shard: str | None) -> None:
    """Refuse a --name that is none, and a --shard that is none or has no name to share.

    Raises:
      InputError: says what is accepted.
    """
    fits = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name or "run")
    if not fits or name == LATEST:  # which stands for the run begun last
        raise InputError("name", name, f"letters, digits, '_', '-' and '.', but not {LATEST}")
    if shard is not None:
        parse_shard(shard)
        if name is None:
            raise InputError("shard", shard, "with a --name that all share")


def check_values(flag: str, values: Sequence[Any]) -> None:
    """Refuse an empty list, or one with a value twice.

    Raises:
      InputError: names the flag.
    """
    if not values or len(set(values)) < len(values):
        found = ",".join(map(str, values))
        raise InputError(flag, found, "at least one, none of them twice")


def crossed(
    variants: Sequence[str], axes: Sequence[Sequence[Any]], bases: Sequence[str], full: bool
) -> list[tuple[Any, ...]]:
    """(variant, value of each axis) of the cells, those with the most in common first.

    Args:
      variants: attention variants.
      axes: values of each other factor, the usual one first.
      bases: variants that are crossed with one factor at another value, too.
      full: every combination.
    """
    made = [(variant, *rest) for rest in itertools.product(*axes) for variant in variants]
    if full:
        return made
    usual = [axis[0] for axis in axes]

    def moved(cell: tuple[Any, ...]) -> int:
        return sum(x != y for x, y in zip(cell[1:], usual, strict=True))

    return [c for c in made if moved(c) == 0 or (moved(c) == 1 and c[0] in bases)]


def opened(
    workdir: str,
    experiment: str,
    name: str | None,
    shard: str | None,
    about: Mapping[str, Any],
    of: Sequence[str] = (),
) -> tuple[RunDirectory, "Cells"]:
    """The directory of this process's record, and the cells, which all of that name share.

    Raises:
      InputError: cells that are there were made with something else or cannot be read, before
        anything is written; or the directory is not writable.
    """
    if name is None:
        directory = RunDirectory(workdir, experiment, of=of)
        return directory, Cells(directory.path / "cells", about)
    try:
        there = Cells(Path(workdir) / experiment / name / "cells", about)
    except OSError as error:
        raise unwritable(workdir, error) from error
    if shard:
        part = parse_shard(shard)
        name = f"{name}/shard-{part.index}-of-{part.count}"
    return RunDirectory(workdir, experiment, name), there


class Cells:
    """A directory with a file for each finished cell.

    Args:
      place: the directory, made if missing.
      about: what determines a cell beside its name: all that write here agree on it.

    Raises:
      InputError: cells that are there were made with something else, or cannot be read.
    """

    def __init__(self, place: Path, about: Mapping[str, Any]) -> None:
        self.place = place
        place.mkdir(parents=True, exist_ok=True)
        path, mine = place / ABOUT, dict(leaves(plain(about)))
        if path.exists():
            others = read_mapping(path, "cells/ without it, if these flags are those of its cells")
            theirs = dict(leaves(others))
            for name in {**theirs, **mine}:
                if theirs.get(name) != mine.get(name):
                    raise InputError(
                        name,
                        as_flag(mine.get(name)),
                        "that, or another --name",
                        f"the cells in {place} have {as_flag(theirs.get(name))}",
                    )
        else:
            write_json(path, about)
        for name in self.names():
            self.read(name)  # refused before anything is trained

    def __contains__(self, name: str) -> bool:
        return self._path(name).exists()

    def names(self) -> list[str]:
        """The finished cells."""
        return sorted(path.stem for path in self.place.glob("[!.]*.json") if path.name != ABOUT)

    def read(self, name: str) -> dict[str, Any]:
        """What was found in a finished cell.

        Raises:
          InputError: it cannot be read.
        """
        return read_mapping(self._path(name), TRAINED_AGAIN)

    def write(self, name: str, found: Mapping[str, Any]) -> None:
        """Finish a cell."""
        write_json(self._path(name), found)

    def _path(self, name: str) -> Path:
        return self.place / f"{name}.json"


def find_missing(
    named: Mapping[str, Item],
    find: Callable[[Item, Log], Mapping[str, Any]],
    cells: Cells,
    train: TrainConfig,
    directory: RunDirectory,
    console: Console,
) -> None:
    """Finish the cells that are not there yet, one after the other.

    Args:
      named: name -> cell.
      find: what is found in a cell, from it and from what logs the rows of its training.
      cells: where they go.
      train: what their trainings have in common.
      directory: whose log has their rows.
      console: for a bar each.
    """
    with (
        ending.telling_how_to_go_on(*ending.with_name(directory.path)),
        Progress(console, train, tuple(named)) as progress,
    ):
        for name, cell in named.items():
            if name in cells:
                continue

            def log(row: dict[str, Any], name: str = name) -> None:
                directory.log({"cell": name, **{k: v for k, v in row.items() if k != "measures"}})
                progress.update(row | {"variant": name})

            cells.write(name, find(cell, log))


def define_flags() -> None:
    """Define the flags of an experiment whose cells are files."""
    flags.DEFINE_string("workdir", "runs", "where run directories go")
    flags.DEFINE_string(
        "name", None, "of the run directory; the same command again, with more cells or not, goes "
        "on in it; default: a time",
    )  # fmt: skip
    flags.DEFINE_string(
        "shard", None, "i/n: run every n-th cell from the i-th, beside others of that --name; the "
        "command without it gathers them",
    )  # fmt: skip
    flags.DEFINE_bool("smoke", False, "a few steps of two variants, in seconds")
    launch.define_tables()
