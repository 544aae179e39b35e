"""What a row of the table of attention variants is, and how rows compose.

`core/attention` holds the rows. A name with plus signs composes several: in "a+b" variant a is
around variant b. Gates, biases and norms can be around others; what chooses the weights (softmax
with an extra key, sigmoid, ...) comes last. "value_bias+context_scale" is g(x) softmax(s) v + v'.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial, reduce
from inspect import signature
from math import isfinite, nan
from types import MappingProxyType
from typing import ParamSpec, SupportsFloat, TypeVar, cast

import jax
from jaxtyping import Array

from sysout_jax.core.primitives import Heads, Mixed, Tap

Params = Mapping[str, Array]
Attend = Callable[[Heads], Mixed]
JOIN = "+"
AXES = ("D", "N", "K", "H", "F", "V", "R")  # of parameters
P = ParamSpec("P")
T = TypeVar("T")
_LETTING_GO: list[Callable[[], None]] = [jax.clear_caches]  # of what depends on rows of the table


def kept(function: Callable[P, T]) -> Callable[P, T]:
    """Keep what a function of a config returns: the same objects again, so that compiled programs
    are used again, until a variant is defined anew."""
    found = lru_cache(maxsize=64)(function)
    _LETTING_GO.append(found.cache_clear)
    return cast(Callable[P, T], found)


@dataclass(frozen=True)
class Param:
    """A parameter of a variant: axis letters ("D -> N" maps D to N, "N" is a vector over heads),
    and its initial value, a constant or "normal" (the model's initial standard deviation).

    Letters: D width, N query heads, K KV heads, H head channels, F the MLP's width, V vocabulary,
    R the rank of the norms' gates.

    Raises:
      ValueError: another letter, or another initial value.
    """

    axes: str
    init: SupportsFloat | str

    def __post_init__(self) -> None:
        letters = self.axes.replace("->", " ").split()
        if not set(letters) <= set(AXES):
            raise ValueError(f"axes={self.axes!r}: unknown; accepted: letters of {' '.join(AXES)}")
        if self.init == "normal":
            return
        try:
            value = nan if isinstance(self.init, str) else float(self.init)
        except (TypeError, ValueError):
            value = nan
        if not isfinite(value):
            raise ValueError(f"init={self.init!r}; accepted: a number, or 'normal'")
        object.__setattr__(self, "init", value)


@dataclass(frozen=True)
class Variant:
    """A row of the table of attention variants, or several of them composed."""

    name: str
    fn: Callable[..., Mixed]  # (heads, params), and what it is around where it can be around others
    formula: str
    cite: str
    letter: str = ""  # in An et al. 2025: a to f
    params: Mapping[str, Param] = field(default_factory=dict)
    normalised: bool = True  # rows of weights and extra mass sum to at most one
    identity: Mapping[str, float] | None = None  # parameter values at which it is softmax
    extra_key: bool = False  # softmax over the real keys and one of no token

    @property
    def label(self) -> str:
        """The name as figures and tables print it."""
        return f"({self.letter}) {self.name}" if self.letter else self.name

    @property
    def gated(self) -> bool:
        """Whether it or one part of it has a gate, parameters named "gate_...": a tap is of one."""
        parts = self.name.split(JOIN)
        begins = ["gate_"] if len(parts) == 1 else [f"{part}_gate_" for part in parts]
        return sum(any(key.startswith(begin) for key in self.params) for begin in begins) == 1

    @property
    def gates_values(self) -> bool:
        """Whether it has a gate per KV head, before the mixing."""
        return any(
            key.startswith("gate_") and "K" in of.axes.split() for key, of in self.params.items()
        )

    @property
    def wraps(self) -> bool:
        """Whether it can be around another variant."""
        return "attend" in signature(self.fn).parameters

    def __call__(self, heads: Heads, params: Params) -> Mixed:
        """Attend: `params` holds one array for each entry of `self.params`.

        Raises:
          ValueError: the function returns something else.
        """
        mixed = self.fn(heads, params)
        if not isinstance(mixed, Mixed):
            accepted = "a Mixed, as softmax_mix(heads) is"
            found = type(mixed).__name__
            raise ValueError(f"variant {self.name}: returns a {found}; accepted: {accepted}")
        return mixed


class Table(Mapping[str, Variant]):
    """The rows by name, and their compositions by names with plus signs; iteration is over rows."""

    def __init__(self) -> None:
        self._rows: dict[str, Variant] = {}

    def enter(self, row: Variant) -> None:
        """Add a row. A function that is defined anew, as in a notebook, takes its own place: all
        that is compiled or `kept` is let go. Models that have other parameters of it cannot be run
        any more.

        Raises:
          ValueError: another function has that name, by which configs and compiled programs know
            a variant.
        """
        before = self._rows.get(row.name)
        if before is not None and _home(before.fn) != _home(row.fn):
            raise ValueError(f"variant {row.name}: there is one; accepted: a name of its own")
        self._rows[row.name] = row
        for let_go in _LETTING_GO if before is not None else ():
            let_go()

    def __getitem__(self, name: str) -> Variant:
        if JOIN not in name:
            return self._rows[name]
        names = name.split(JOIN)
        parts = [self._rows[part] for part in names]
        if len(set(names)) < len(names) or not all(part.wraps for part in parts[:-1]):
            raise KeyError(name)
        return composed(name, parts)

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def order(self, name: str) -> int:
        """The place of a variant among others: rows as in the table, compositions after them."""
        rows = [list(self._rows).index(part) for part in name.split(JOIN)]
        return rows[0] if len(rows) == 1 else len(self._rows) * len(rows) + rows[0]


def _home(fn: Callable[..., Mixed]) -> tuple[str, str]:
    return fn.__module__, fn.__qualname__


VARIANTS = Table()  # filled by core/attention


def variant(
    *,
    formula: str,
    cite: str,
    letter: str = "",
    normalised: bool = True,
    identity: Mapping[str, float] | None = None,
    extra_key: bool = False,
    **params: Param,
) -> Callable[[Callable[..., Mixed]], Callable[..., Mixed]]:
    """Enter the decorated function in the table under its own name.

    A function of (heads, p, attend) can be around other variants: it calls `attend` where it would
    call `softmax_mix`.

    Raises:
      ValueError: the table has that name, of another function.
    """

    def enter(fn: Callable[..., Mixed]) -> Callable[..., Mixed]:
        name = fn.__name__.rstrip("_")
        VARIANTS.enter(
            Variant(
                name, fn, formula, cite, letter, MappingProxyType(params), normalised, identity,
                extra_key,
            )
        )  # fmt: skip
        return fn

    return enter


def composed(name: str, parts: list[Variant]) -> Variant:
    """Each variant around the next; a parameter of one is called by both names.

    Gates on values are around all others, which see gated values; of several gates none is tapped.
    """
    outermost_first = sorted(parts, key=lambda part: not part.gates_values)
    several = sum(part.gated for part in parts) > 1

    def attend(heads: Heads, params: Params) -> Mixed:
        if several:
            heads = heads._replace(tap=partial(_but_gates, heads.tap))

        def around(inner: Attend | None, part: Variant) -> Attend:
            own = {key: params[f"{part.name}_{key}"] for key in part.params}
            return partial(part.fn, p=own, **({} if inner is None else {"attend": inner}))

        whole: Attend = reduce(around, reversed(outermost_first), None)  # type: ignore[assignment]
        return whole(heads)

    def named(values: Mapping[str, Mapping[str, object]]) -> Mapping[str, object]:
        return {
            f"{part}_{key}": value for part, its in values.items() for key, value in its.items()
        }

    identities = {part.name: part.identity for part in parts}
    return Variant(
        name,
        attend,
        " around ".join(part.formula for part in parts),
        "; ".join(dict.fromkeys(part.cite for part in parts)),
        params=MappingProxyType(named({part.name: part.params for part in parts})),  # type: ignore[arg-type]
        normalised=all(part.normalised for part in parts),
        identity=None if None in identities.values() else named(identities),  # type: ignore[arg-type]
        extra_key=any(part.extra_key for part in parts),
    )


def _but_gates(tap: Tap, name: str, value: Array) -> Array:
    return value if name == "attn_gate" else tap(name, value)
