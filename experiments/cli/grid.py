"""Cells of an experiment: which there are, as files in one directory, and whose turn each is."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

import jax
from absl import flags
from rich.console import Console

from sysout_jax.errors import InputError
from sysout_jax.results import (
    LATEST,
    RunDirectory,
    as_flag,
    code_version,
    leaves,
    plain,
    read_mapping,
    read_record,
    unwritable,
    write_json,
)
from sysout_jax.training.config import TrainConfig

from . import ending, launch
from .progress import cell_bars
from .showing import Report, define_tables, publish
from .tables import show

Item = TypeVar("Item")
Log = Callable[[dict[str, Any]], None]
ABOUT = "about.json"  # beside the cells: what they have in common


@dataclass(frozen=True)
class Place:
    """Where the cells of a run are, and which of them are this process's.

    Raises:
      InputError: a name that is none, a shard that is none or has no name to share.
    """

    workdir: str = "runs"  # where run directories go
    name: str | None = None  # of the run directory: again, and it goes on there; default: a time
    shard: str | None = None  # i/n: every n-th cell from the i-th; without it, those of all shards

    def __post_init__(self) -> None:
        fits = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", self.name or "run")
        if not fits or self.name == LATEST:  # which stands for the run begun last
            accepted = f"letters, digits, '_', '-' and '.', but not {LATEST}"
            raise InputError("name", self.name, accepted)
        index, count = self._shard
        if self.shard is not None and not index < count:
            raise InputError("shard", self.shard, "i/n with i from 0 to n - 1, such as 0/4")
        if self.shard is not None and self.name is None:
            raise InputError("shard", self.shard, "with a --name that all share")

    @property
    def _shard(self) -> tuple[int, int]:
        found = re.fullmatch(r"(\d+)/(\d+)", self.shard or "0/1")
        return (int(found[1]), int(found[2])) if found else (0, 0)

    def of(self, items: Iterable[Item]) -> list[Item]:
        """The items of this process: of n shards, item k is that of shard k modulo n."""
        index, count = self._shard
        return list(items)[index::count]

    def opened(
        self,
        experiment: str,
        about: Mapping[str, Any],
        of: Sequence[str] = (),
        made_of: Mapping[str, str] | None = None,
    ) -> tuple[RunDirectory, "Cells"]:
        """The directory of this process's record, and the cells, which all of that name share.

        Raises:
          InputError: cells that are there were made with something else or cannot be read, before
            anything is written; or the directory is not writable.
        """
        if self.name is None:
            directory = RunDirectory(self.workdir, experiment, of=of)
            there = Cells(directory.path / "cells", about, made_of)
        else:
            there, name = Cells(self._cells(experiment), about, made_of), self.name
            if self.shard:
                index, count = self._shard
                name = f"{name}/shard-{index}-of-{count}"
            directory = RunDirectory(self.workdir, experiment, name)
        try:
            there.begin()  # by now nobody else goes on in this directory
        except OSError as error:
            raise unwritable(self.workdir, error) from error
        return directory, there

    def begun(self, experiment: str, about: Mapping[str, Any]) -> "Cells | None":
        """The cells of a run of this name that has begun before; None where none has.

        Raises:
          InputError: as `opened`.
        """
        path = self._cells(experiment)
        return Cells(path, about) if self.name and path.exists() else None

    def _cells(self, experiment: str) -> Path:
        return Path(self.workdir) / experiment / (self.name or "") / "cells"


def check_values(flag: str, values: Sequence[Any]) -> None:
    """Refuse an empty list, or one with a value twice.

    Raises:
      InputError: names the flag.
    """
    if not values or len(set(values)) < len(values):
        found = ",".join(map(str, values))
        raise InputError(flag, found, "at least one, none of them twice")


def check_same(mine: Any, theirs: Mapping[str, Any], said: str) -> None:
    """Refuse to go on with what was begun with other settings.

    Raises:
      InputError: names the first that differs, and after `said` what it was.
    """
    before, now = dict(leaves(theirs)), dict(leaves(plain(mine)))
    for name in {**before, **now}:
        if before.get(name) != now.get(name):
            why = f"{said} {as_flag(before.get(name))}"
            raise InputError(name, as_flag(now.get(name)), "that, or another --name", why)


class Cells:
    """A directory with a file for each finished cell, by its name as one of a file.

    Args:
      place: the directory, made by `begin`.
      about: what determines a cell beside its name: all that write here agree on it.
      made_of: cell -> a word for the text and the weights that it is found in.

    Raises:
      InputError: cells that are there were made with something else, or cannot be read.
    """

    def __init__(
        self, place: Path, about: Mapping[str, Any], made_of: Mapping[str, str] | None = None
    ) -> None:
        self.place, self.about, self.made_of = place, about, made_of or {}
        if self.names() and (place / ABOUT).exists():
            self._check_same()
        for name in self.names():
            self.read(name)  # refused before anything is made
        for name in filter(self.__contains__, self.made_of):
            word = self.made_of[name]
            if self.read(name).get("made_of", word) != word:  # earlier versions do not say
                why = f"{self._path(name)} is of another text or other weights under the same path"
                raise InputError("name", None, "another one", why)

    def begin(self) -> "Cells":
        """Say what cells here are made with, in place of a run that has made none."""
        self.place.mkdir(parents=True, exist_ok=True)
        if (self.place / ABOUT).exists():
            try:
                self._check_same()
                return self
            except InputError:
                if self.names():
                    raise
        write_json(self.place / ABOUT, self.about)
        return self

    def _check_same(self) -> None:
        """Refuse what others that write here have begun with other settings."""
        accepted = "cells/ without it, if these flags are those of its cells"
        theirs = read_mapping(self.place / ABOUT, accepted)
        check_same(self.about, theirs, f"the cells in {self.place} have")

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
        return read_mapping(self._path(name), "remove it, and it is made again")

    def all(self) -> list[dict[str, Any]]:
        """What was found in each finished cell, of whichever command and process."""
        return list(map(self.read, self.names()))

    def write(self, name: str, found: Mapping[str, Any]) -> None:
        """Finish a cell.

        Raises:
          InputError: meanwhile another process has begun here with other settings.
        """
        self._check_same()
        word = {"made_of": self.made_of[name]} if name in self.made_of else {}
        write_json(self._path(name), {**found, **word})

    def _path(self, name: str) -> Path:
        return self.place / f"{re.sub('[^A-Za-z0-9_.+-]+', '-', name)}.json"


def told(config: Any) -> dict[str, Any]:
    """What a record says of a config: all but where files went."""
    return {name: value for name, value in asdict(config).items() if name != "place"}


def common(config: Any, *but: str) -> dict[str, Any]:
    """What determines the cells of a config, whichever are asked for: all but the fields `but`."""
    return {name: value for name, value in leaves(told(config)) if name not in but}


def run(
    config: Any,
    experiment: str,
    named: Mapping[str, Item],
    find: Callable[[Item, Log], Mapping[str, Any]],
    made_of: Callable[[Item], str] | None,
    about: Mapping[str, Any],
    gathered: Callable[[Cells], Mapping[str, Any]],
    report: Report,
    console: Console,
    *,
    described: Mapping[str, Any],
    of: Sequence[str] = (),
    train: TrainConfig | None = None,
) -> RunDirectory:
    """Finish the cells of this process that are not there yet; record, print and draw what is.

    Args:
      config: what determines the run; its `place` says where it goes.
      experiment: the name of the command.
      named: name -> cell, of all processes.
      find: what is found in a cell, from it and from what logs the rows of its training.
      made_of: a word for the text and the weights of a cell; None: the config determines them.
      about: what cells that are there must have been made with.
      gathered: what the record says of the cells that are there, of this command or another.
      report: what is made of the record.
      console: for a bar each, and the tables.
      described: what the record says beside that; "experiment" where it has another name.
      of: what names the run if nothing else does.
      train: what the trainings of the cells have in common, if cells are trained.
    """
    words = {name: made_of(cell) for name, cell in named.items()} if made_of else {}
    directory, cells = config.place.opened(experiment, about, of, words)
    directory.write_config(config)
    console.print(f"run      {directory.path}", soft_wrap=True, markup=False)
    mine = config.place.of(named)
    made_by = {"code": code_version(), "device": jax.devices()[0].device_kind}
    with (
        directory.record(**{"experiment": experiment, **described}) as record,
        ending.telling_how_to_go_on(*ending.with_name(directory.path)),
        cell_bars(console, train, mine) as progress,
    ):
        try:
            for name in mine:
                if name in cells:
                    continue

                def log(row: dict[str, Any], name: str = name) -> None:
                    kept = {key: value for key, value in row.items() if key != "measures"}
                    directory.log({"cell": name, **kept})
                    progress(name, row)

                progress(name, {})
                cells.write(name, {**find(named[name], log), **made_by})
        finally:
            record |= gathered(cells)
    found = read_record(directory.path)
    show(console, report.sections(found))
    publish(console, directory.path, found, report)
    return directory


def part_name(model: str, part: str | None) -> str:
    """The cell of a part of a model; None: the model's own. No part has two dashes in it."""
    return model if part is None else f"{model}--{part}"


def by_model(cells: Cells, parts: str, order: Sequence[str]) -> list[dict[str, Any]]:
    """The models that cells are of: what the cell of a model says, and what those of its parts do.

    Args:
      cells: of a model those with a "part", whose name that is, and one without.
      parts: what the record calls the parts.
      order: of the parts; others follow.
    """
    found: dict[tuple[str, int | None], dict[str, Any]] = {}
    rank = {part: number for number, part in enumerate(order)}
    for cell in sorted(cells.all(), key=lambda cell: rank.get(cell.get("part", ""), len(rank))):
        key = cell["name"], cell["seed"]
        model = found.setdefault(key, {parts: {}})
        if "part" in cell:
            model[parts][cell["part"]] = cell["found"]
        else:
            found[key] = cell | model
    whole = {key: model for key, model in found.items() if "name" in model}
    return [whole[key] for key in sorted(whole, key=lambda key: (key[0], key[1] or 0))]


def place_from_flags() -> Place:
    """Where the flags say that the cells go."""
    return launch.override(Place(), {name: flags.FLAGS[name].value for name in flags.FLAGS})


def define_flags(config_type: type, smoke: str, skip: tuple[str, ...] = ()) -> None:
    """Define the flags of a command whose config, or those of trainings, is overridden by flags.

    Args:
      config_type: the config; those of `Place` are flags, too.
      smoke: what --smoke does.
      skip: fields that are no flags.
    """
    flags.DEFINE_bool("smoke", False, smoke)
    define_tables()
    launch.define_overrides(Place)
    launch.define_overrides(config_type, (*skip, *(f.name for f in fields(Place))))
