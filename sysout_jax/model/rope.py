"""Rotary positions: one class for each rule of longer contexts, which owns the rule's numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from math import inf
from types import MappingProxyType

from sysout_jax.core import positions
from sysout_jax.core.positions import Rotation
from sysout_jax.errors import InputError, at_least, finite, of_kinds, one_of


@dataclass(frozen=True)
class Rope:
    """How heads are turned: pair r of the channels by t theta^(-2r/channels) at position t.

    The classes below do the same by another rule.

    Raises:
      InputError: a value is out of range; it is named as its flag.
    """

    rule: str = field(default="plain", init=False)  # linear, dynamic, llama3, yarn, longrope
    theta: float = 10_000.0  # base of the rotary wavelengths
    fraction: float = 1.0  # of a head's channels that are turned, from the first
    interleaved: bool = False  # a pair is two adjacent channels, not two halves
    local_theta: float | None = None  # base in layers with a window, no rule; None: the same

    def __post_init__(self) -> None:
        of_kinds(self, flag)
        for each in fields(self):
            name, value = flag(each.name), getattr(self, each.name)
            if isinstance(value, tuple):
                if not all(0 < x < inf for x in value):
                    said = ",".join(map(str, value))
                    raise InputError(name, said, "finite numbers above 0")
            elif each.type is int:
                at_least(1, name, value)
            elif "float" in str(each.type):
                finite(name, value)
        if self.fraction > 1:
            raise InputError(flag("fraction"), self.fraction, "a number above 0, at most 1")

    def channels(self, width: int) -> int:
        """Channels that are turned in heads of so many."""
        return int(width * self.fraction)

    def check(self, width: int) -> None:
        """Refuse heads of so many channels, if they cannot be turned.

        Raises:
          InputError: no even number of channels.
        """
        turned = self.channels(width)
        if turned % 2 or not turned:
            accepted = (
                "an even number of channels (--width / --heads, or --head_dim, times "
                "--rope_fraction)"
            )
            why = f"rotates channels in pairs, but heads have {turned}"
            raise InputError("position", "rope", accepted, why)

    def rotation(self, channels: int, length: int) -> Rotation:
        """The rotation of a sequence.

        Args:
          channels: that are turned.
          length: in tokens; some rules depend on it.
        """
        return Rotation(positions.inverse_frequencies(self.theta, channels))


@dataclass(frozen=True)
class Linear(Rope):
    """Positions interpolated."""

    rule: str = field(default="linear", init=False)
    factor: float = 1.0  # of that rule: how many times the context below

    def rotation(self, channels: int, length: int) -> Rotation:
        """Every frequency over the factor: `core.positions.linear`."""
        return positions.linear(self.theta, channels, self.factor)


@dataclass(frozen=True)
class Dynamic(Rope):
    """A base that grows with the sequence."""

    rule: str = field(default="dynamic", init=False)
    factor: float = 1.0
    context: int = 2048  # tokens of the original training, which the rule starts from

    def rotation(self, channels: int, length: int) -> Rotation:
        """Those of the base that the length calls for: `core.positions.dynamic`."""
        return positions.dynamic(self.theta, channels, self.factor, self.context, length)


@dataclass(frozen=True)
class Llama3(Rope):
    """Long wavelengths stretched, short ones kept."""

    rule: str = field(default="llama3", init=False)
    factor: float = 1.0
    context: int = 2048
    low: float = 1.0  # llama3: turns in that context below which all is stretched
    high: float = 4.0  # llama3: turns above which nothing is

    def rotation(self, channels: int, length: int) -> Rotation:
        """Those below `low` turns stretched: `core.positions.llama3`."""
        base = self.theta, channels
        return positions.llama3(*base, self.factor, self.context, self.low, self.high)


@dataclass(frozen=True)
class Yarn(Rope):
    """Pairs interpolated by how often they turn."""

    rule: str = field(default="yarn", init=False)
    factor: float = 1.0
    context: int = 2048
    fast: float = 32.0  # yarn: turns at the fast end of its ramp
    slow: float = 1.0  # yarn: turns at the slow end
    truncate: bool = True  # yarn: ends of the ramp at whole pairs
    scale: float | None = None  # yarn, longrope: of turned channels; None: from the factor

    def rotation(self, channels: int, length: int) -> Rotation:
        """Those outside of the ramp kept or interpolated: `core.positions.yarn`."""
        base, ramp = (self.theta, channels), (self.fast, self.slow)
        return positions.yarn(
            *base, self.factor, self.context, *ramp, truncate=self.truncate, scale=self.scale
        )


@dataclass(frozen=True)
class LongRope(Rope):
    """Every frequency divided by a number of its own."""

    rule: str = field(default="longrope", init=False)
    factor: float = 1.0
    context: int = 2048
    short: tuple[float, ...] = ()  # longrope: divisor of each frequency up to that context
    long: tuple[float, ...] = ()  # longrope: and beyond it
    scale: float | None = None

    def check(self, width: int) -> None:
        """Refuse as `Rope` does, and divisors that are not one per pair."""
        super().check(width)
        pairs = self.channels(width) // 2
        for name in ("short", "long"):
            found = len(getattr(self, name))
            if found != pairs:
                accepted = f"{pairs}, one per pair of channels"
                raise InputError(flag(name), None, accepted, f"{found} numbers")

    def rotation(self, channels: int, length: int) -> Rotation:
        """Every frequency over its divisor: `core.positions.longrope`."""
        base, divisors = (self.theta, channels), (self.short, self.long)
        return positions.longrope(*base, self.factor, self.context, length, *divisors, self.scale)


RULES: Mapping[str, type[Rope]] = MappingProxyType(
    {kind.rule: kind for kind in (Rope, Linear, Dynamic, Llama3, Yarn, LongRope)}
)


def flag(name: str) -> str:
    """The flag of a field of a rule."""
    return f"local_rope_{name.removeprefix('local_')}" if "local" in name else f"rope_{name}"


def by_rule(rope: Rope, rule: str) -> Rope:
    """The same numbers by another rule, as far as it has them.

    Raises:
      InputError: there is no such rule.
    """
    one_of(flag("rule"), rule, RULES)
    kind = RULES[rule]
    shared = [each.name for each in fields(kind) if each.init and hasattr(rope, each.name)]
    return kind(**{name: getattr(rope, name) for name in shared})
