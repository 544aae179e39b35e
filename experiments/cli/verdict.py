"""The end of a command: a verdict of at most three lines, and the command to type next."""

import shlex
import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from rich.console import Console

from sysout_jax.files import unused
from sysout_jax.results import joined

from .tables import PRINTED

FLAGS = flags.FLAGS
SCRIPT = "sysout"  # as pyproject.toml has it
LABEL = 9  # characters before what a line says
LINE = 80 - LABEL  # characters of a line
# The flags that say which model a record is of, and which text.
OF_MODEL = (
    "model", "variant", "seed", "revision", "file", "param_dtype", "bos", "corpus", "token_dtype",
)  # fmt: skip


class Verdict(NamedTuple):
    """What a command ends with; what is empty is left out."""

    found: str  # with its numbers
    means: str
    but: str  # what does not hold, or is not decided by this
    next: tuple[str, ...]  # a command of experiments/: its name, and its flags


def conclude(console: Console, verdict: Verdict) -> None:
    """Print a verdict, and the command in lines that a shell reads as one."""
    for name, text in zip(verdict._fields[:-1], verdict[:-1], strict=True):
        if text:
            labelled(console, name, text)
    name, *words = verdict.next
    if "workdir" in FLAGS and FLAGS["workdir"].present and not _says_where(verdict.next):
        words.append(f"--workdir={FLAGS.workdir}")
    lines = _lines([shlex.join(_program(name)), *map(shlex.quote, words)], _room(console))
    _print(console, "next", lines)


def labelled(console: Console, name: str, text: str) -> None:
    """Print a text beside its label, in lines that fit."""
    _print(
        console, name,
        textwrap.wrap(text, _room(console), break_long_words=False, break_on_hyphens=False),
    )  # fmt: skip


def _print(console: Console, name: str, lines: Sequence[str]) -> None:
    said = f"{name:<{LABEL}}" + f"\n{' ' * LABEL}".join(lines)
    console.print(said, soft_wrap=True, markup=False, highlight=False)


def _room(console: Console) -> int:
    return max(console.width, 3 * LABEL) - LABEL


def _says_where(command: Sequence[str]) -> bool:
    """Whether a command has a place in it already, or writes nothing."""
    return command[0] == "models" or any(
        word.startswith(("--workdir=", "--redraw=")) for word in command
    )


def _program(name: str) -> list[str]:
    """What runs another command of experiments/ the way that this one is run."""
    python, *rest = sys.orig_argv
    if _by_script():
        found = shutil.which(SCRIPT)
        return [SCRIPT if found and Path(found).samefile(rest[0]) else rest[0], name]
    return [python, "-m", f"{__package__.rpartition('.')[0]}.{name}"]


def as_started(text: str) -> str:
    """A text whose commands of experiments/ are run the way that this one is run."""
    if not _by_script():
        return text
    return text.replace("python -m experiments.", f"{SCRIPT} ")


def _by_script() -> bool:
    """Whether the installed script runs this command."""
    return any(Path(word).stem == SCRIPT for word in sys.orig_argv[1:2])


def _lines(parts: Sequence[str], room: int) -> list[str]:
    """The parts of a command in lines that fit."""
    lines: list[str] = []
    for part in parts:
        if lines and len(f"{lines[-1]} {part} \\") <= room:
            lines[-1] += f" {part}"
        else:
            lines.append(f"  {part}" if lines else part)
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


def given(record: Mapping[str, Any], *names: str) -> list[str]:
    """The flags of those names that the record's command was given."""
    return [flag for flag in _flags(record) if _name(flag) in names]


def of_model(record: Mapping[str, Any]) -> list[str]:
    """The flags that say which models a record is of, and which text."""
    return given(record, *OF_MODEL)


def of_one(record: Mapping[str, Any], name: str | None = None) -> list[str]:
    """The flags of a command that takes one model: the first of the record, or that of a name."""
    of, names = of_model(record), [model["name"] for model in record["models"]]
    if len(set(names)) == 1 or given(record, "variant"):
        return of
    return [*of, f"--variant={name or names[0]}"]


def conversion(of: Sequence[str], *how: str) -> tuple[str, ...]:
    """The command that converts a model, into a directory that is not there."""
    return ("convert", *of, *how, f"--out={unused(Path('converted'))}")


def again(record: Mapping[str, Any], *changed: str) -> list[str]:
    """All flags of the record's command, changed or added to, but its name, its share of the cells
    and how it prints."""
    others = {*map(_name, changed), "name", "shard", "redraw", "wide", *PRINTED}
    return [*(flag for flag in _flags(record) if _name(flag) not in others), *changed]


def _flags(record: Mapping[str, Any]) -> list[str]:
    words = shlex.split(record["provenance"]["command"])
    return [word for word in joined(words[3:]) if word.startswith("-")]  # after python -m NAME


def _name(flag: str) -> str:
    return flag.lstrip("-").partition("=")[0]


def few(names: Sequence[str], room: int = LINE) -> str:
    """As many of the names as have room, and how many more there are."""
    for count in range(len(names), 0, -1):
        left = len(names) - count
        said = ", ".join(names[:count]) + (f" and {left} more" if left else "")
        if len(said) <= room or count == 1:
            return said
    return "none"


def numbered(count: int, noun: str) -> str:
    """A number of things."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
