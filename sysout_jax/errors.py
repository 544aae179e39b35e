"""The exceptions that mean something to a user, one line each, and checks that raise them."""

import re
from collections.abc import Callable, Collection, Iterable
from functools import cache
from math import inf
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np

# Of another argument that a text speaks of: not within a path, a longer word or `a command`.
_NAMED = re.compile(r"`[^`]*`|(?<![\w/.-])--([a-z]\w*)(?![\w-])")
_WORD, _LINE = 500, 4000  # characters that a line shows of a word, and all that it has
_kinds: Callable[[type], dict[str, Any]] = cache(get_type_hints)
_LONG = re.compile(rf"(\S{{{_WORD}}})\S+?(?=[:;,]?(?:\s|$))")


class InputError(ValueError):
    """Bad input: the argument or file at fault, what was found there, and what is accepted.

    As text it is one line, "field=found: why; accepted: accepted", in which Python users read names
    of arguments; in that of a command they are flags. Texts that speak of other arguments write
    them as flags, "--width". What files say in it is escaped and cut.

    field: the name of the argument, or the file.
    found: its value; None where that is too long to repeat, or where `why` says all.
    accepted: what would have done.
    why: what is wrong, where it does not follow from the two.
    """

    def __init__(self, field: str, found: object = None, accepted: str = "", why: str = "") -> None:
        super().__init__(field, found, accepted, why)
        self.field, self.found, self.accepted, self.why = field, found, accepted, why

    def __str__(self) -> str:
        return _NAMED.sub(lambda found: found[1] or found[0], self._line(self.field))

    def of_command(self, flags: Iterable[str]) -> str:
        """The line for users of a command that has these flags."""
        return self._line(f"--{self.field}" if self.field in flags else self.field)

    def _line(self, field: str) -> str:
        what = field if self.found is None else f"{field}={self.found}"
        parts = [self.why, f"accepted: {self.accepted}" if self.accepted else ""]
        said = "; ".join(filter(None, parts))
        line = _LONG.sub(r"\1...", printable(f"{what}: {said}" if said else what))
        return line if len(line) <= _LINE else f"{line[:_LINE]}..."


def printable(text: str) -> str:
    """A text of a file in one line, without what would drive a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def at_least(least: int, name: str, value: int | None) -> None:
    """Refuse a value of flag `name` that is no integer or below the least one; None is no value."""
    if value is not None and not (is_integer(value) and value >= least):
        raise InputError(name, repr(value), f"an integer of at least {least}")


def finite(name: str, value: float | None, or_zero: bool = False) -> None:
    """Refuse a value of flag `name` that is not finite or not above 0, which some may be; None is
    no value."""
    if value is not None and not (0 < value < inf or (or_zero and value == 0)):
        least = "of at least" if or_zero else "above"
        raise InputError(name, value, f"a finite number {least} 0")


def is_integer(value: object) -> bool:
    """Whether a value is an integer, of Python or numpy, which a bool is not meant to be."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def of_kinds(config: Any, named: Callable[[str], str] = str) -> None:
    """Refuse a field of a dataclass that is of another kind than it is declared as: text, a number,
    true or false, none. Lists and arrays become the tuples and numbers that are meant.

    Raises:
      InputError: names the field, as `named` calls it.
    """
    for name, kind in _kinds(type(config)).items():
        value = getattr(config, name)
        plain = value.tolist() if hasattr(value, "tolist") else value  # of arrays and their scalars
        if plain is not value or isinstance(plain, list | range):
            value = tuple(plain) if isinstance(plain, list | range) else plain
            object.__setattr__(config, name, value)
        if not _is(value, kind):
            raise InputError(named(name), repr(value), _said(kind))


def _is(value: object, kind: Any) -> bool:
    parts = get_args(kind)
    if get_origin(kind) in (Union, UnionType):
        return any(_is(value, part) for part in parts)
    if get_origin(kind) is tuple:
        return isinstance(value, tuple) and all(_is(each, parts[0]) for each in value)
    if kind is int:
        return is_integer(value)
    if kind is float:
        return isinstance(value, Real) and not isinstance(value, bool)
    return isinstance(value, (bool, np.bool_) if kind is bool else kind)


def _said(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(map(_said, get_args(kind)))
    if get_origin(kind) is tuple:
        return f"several, each {_said(get_args(kind)[0])}"
    known = {bool: "true or false", int: "an integer", float: "a number", str: "text"}
    return known.get(kind, "none" if kind is NoneType else f"of class {kind.__name__}")


def one_of(name: str, value: str, accepted: Collection[str]) -> None:
    """Refuse a value of flag `name` that is not one of the accepted ones."""
    if value not in accepted:
        raise InputError(name, repr(value), ", ".join(accepted), "unknown")


class Diverged(ArithmeticError):
    """A loss or a gradient that is not finite, which ends a run."""

    def __init__(
        self, variant: str, step: int, seed: int, found: float, what: str = "loss"
    ) -> None:
        super().__init__(
            f"{what} is {found} at step {step} of seed {seed}, variant {variant}; "
            "try a smaller lr, a longer warmup or a smaller clip"
        )
        self.step, self.seed = step, seed


class Preempted(Exception):
    """A run that was asked to stop, and did: what there is to go on from is on disk."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, of a command that cannot go on where it stopped."""


def reason(error: object) -> str:
    """The first line of what an exception says, or its name where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
