"""The end of a command: a verdict of at most three lines, and the command to type next."""

import shlex
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from rich.console import Console

LABEL = 9  # characters before what a line says
LINE = 80 - LABEL  # characters of a line


class Verdict(NamedTuple):
    """What a command ends with; what is empty is left out."""

    found: str  # with its numbers
    means: str
    but: str  # what does not hold, or is not decided by this
    next: str  # a command


def conclude(console: Console, verdict: Verdict) -> None:
    """Print a verdict, and the command in lines that a shell reads as one."""
    for name, text in verdict._asdict().items():
        if text:
            labelled(console, name, text)


def labelled(console: Console, name: str, text: str) -> None:
    """Print a text beside its label, in lines that fit; that of "next" is a command."""
    lines = (_command if name == "next" else _wrapped)(text, max(console.width, 3 * LABEL))
    said = f"{name:<{LABEL}}" + f"\n{' ' * LABEL}".join(lines)
    console.print(said, soft_wrap=True, markup=False, highlight=False)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width - LABEL, break_long_words=False, break_on_hyphens=False)


def _command(text: str, width: int) -> list[str]:
    """A command in lines that fit, broken before its flags."""
    lines: list[str] = []
    for part in text.replace(" --", "\0--").split("\0"):
        if lines and LABEL + len(f"{lines[-1]} {part} \\") <= width:
            lines[-1] += f" {part}"
        else:
            lines.append(f"  {part}" if lines else part)
    return [f"{line} \\" for line in lines[:-1]] + lines[-1:]


def given(record: Mapping[str, Any], *names: str) -> str:
    """The flags of those names that the record's command was given, as a shell reads them."""
    words = shlex.split(record["provenance"]["command"])
    flags = [word for word in words if word.lstrip("-").partition("=")[0] in names]
    return "".join(f" {shlex.quote(flag)}" for flag in flags if flag.startswith("-"))


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
