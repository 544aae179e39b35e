"""What `--methods` names: how weights and activations are rounded, or weights pruned.

A method is words joined by "-". To round:

    w4, w8a8, w4a4kv4, kv4, wnf4, we4m3ae4m3     formats of weights, activations, and the KV cache;
                                                 16 or nothing leaves them as they are
    gptq, awq                                    weights are rounded with the help of calibration
    order                                        gptq takes the largest inputs first
    sequential                                   gptq and awq learn from the inputs that a layer has
                                                 once the layers before it are rounded
    hqq                                          zero points are fitted to weights without any
    smooth, smoothall                            inputs behind norms, or all, are rescaled before
    rotate                                       rounding; or rotated, as keys and values are
    zero                                         ranges with a zero point instead of symmetric ones
    tensor, vector, g32                          what shares a scale: a tensor; an output channel
                                                 and a token (if nothing is said); 32 inputs.
                                                 The cache has one of each token and head
    atensor                                      activations share a scale, whatever weights do
    kchannel                                     keys share one of each channel and 32 tokens
    minmax, percentile, mse                      static ranges of activations, from calibration text
    keep1                                        activations and cache of the first token stay
    window64                                     the cache has the last 64 tokens, and those kept
    split6                                       inputs beyond 6 in calibration text stay, and the
                                                 weights that they meet

and to prune: a criterion and what goes, as in magnitude-0.5, global-0.5, wanda-2:4, sparsegpt-0.5;
behind it "sequential" as above, and "owl", by which layers with more outliers lose less.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from sysout_jax.core.quantise import FORMATS
from sysout_jax.errors import InputError

RANGES = ("minmax", "percentile", "mse")
SMOOTH = ("smooth", "smoothall")
LEARNING = ("wanda", "sparsegpt")  # from calibration text
CRITERIA = ("magnitude", "global", *LEARNING)
FLAGS = {
    "zero": "zero_point", "order": "largest_first", "sequential": "sequential",
    "kchannel": "by_channel",
}  # fmt: skip
_KEEP = re.compile(r"keep([1-9]\d*)")
_WINDOW = re.compile(r"window([1-9]\d*)")
_SPLIT = re.compile(r"split(\d+(?:\.\d+)?)")
# as a method names them -> as `core.quantise` does; "16" is what is not rounded
NAMES: Mapping[str, str | None] = MappingProxyType(
    {str(bits): f"int{bits}" for bits in range(2, 9)}
    | {
        "e4m3": "fp8_e4m3",
        "e5m2": "fp8_e5m2",
        "mxfp4": "mxfp4",
        "nvfp4": "nvfp4",
        "nf4": "nf4",
        "16": None,
    }
)
_NAME = "|".join(sorted(NAMES, key=len, reverse=True))
_FORMATS = re.compile(rf"(?:w({_NAME}))?(?:a({_NAME}))?(?:kv({_NAME}))?")
_SPARSITY = re.compile(r"(0?\.\d+)|([1-9]\d*):([1-9]\d*)")


@dataclass(frozen=True)
class Rounding:
    """How the inputs and weights of the matrix products are rounded."""

    weights: str | None = None  # a key of core.quantise.FORMATS, or None for as they are
    activations: str | None = None
    cache: str | None = None  # keys and values
    per: str = "vector"  # what shares a scale: tensor, vector, group
    inputs_per: str | None = None  # the same of activations, if they differ: tensor
    group: int = 128  # inputs that share a scale of a weight, if per is group
    by: str = "nearest"  # nearest, gptq, awq, hqq
    largest_first: bool = False  # of inputs, by gptq
    sequential: bool = False  # layers learn from inputs behind those that are rounded already
    basis: str = "given"  # given, smooth, smoothall, rotate
    zero_point: bool = False
    ranges: str | None = None  # of activations: one of RANGES, or None for their own (dynamic)
    keep: int = 0  # tokens at the start whose activations and cache stay as they are
    split: float | None = None  # |x| beyond which an input stays, with the weights it meets
    window: int | None = None  # tokens that the cache has, the query's own among them
    by_channel: bool = False  # keys, over `quantise.RUN` tokens

    @property
    def calibrated(self) -> bool:
        """Whether it needs calibration text."""
        return self.compensated or self.ranged

    @property
    def ranged(self) -> bool:
        """Whether it needs the lowest and highest inputs of calibration text."""
        return self.basis in SMOOTH or (self.ranges, self.split) != (None, None)

    @property
    def compensated(self) -> bool:
        """Whether it needs the products of all pairs of inputs."""
        return self.by in ("gptq", "awq")


@dataclass(frozen=True)
class Pruning:
    """Which weights go: a share of them, or all but n of each m consecutive inputs."""

    criterion: str
    sparsity: float | tuple[int, int]
    sequential: bool = False  # layers learn from inputs behind those that are pruned already
    by_layer: bool = False  # less where there are more outliers

    @property
    def calibrated(self) -> bool:
        """Whether it needs calibration text."""
        return self.by_layer or self.criterion in LEARNING

    @property
    def compensated(self) -> bool:
        """Whether it needs the products of all pairs of inputs."""
        return self.criterion == "sparsegpt"


Scheme = Rounding | Pruning


def bits(how: Rounding) -> float | None:
    """Bits a weight with its scales, None where weights are not rounded.

    Of b bits in groups of g: b + 16/g + 32/(128 g). Scale and zero point of a group take 8 bits
    each, and of 128 groups 16 bits each; a shorter last group counts by its length, and a zero
    point where there is none. In a format's own blocks of g, b + 8/g. A scale of a channel or
    tensor counts as nothing.

    Source: Zhang et al. 2025 (arXiv:2503.06518), section 3, of groups.
    """
    if how.weights is None:
        return None
    fmt = FORMATS[how.weights]
    if fmt.block:
        return fmt.bits + 8.0 / fmt.block
    return fmt.bits + (16.0 + 32.0 / 128.0) / how.group * (how.per == "group")


def scheme(method: str) -> Scheme:
    """The scheme that a method names.

    Raises:
      InputError: a word that is not known, that is said twice, or that does not go with the others.
    """
    words = method.split("-")
    return _pruning(method, words) if words[0] in CRITERIA else _rounding(method, words)


def _pruning(method: str, words: list[str]) -> Pruning:
    criterion, *rest = words
    amount = _SPARSITY.fullmatch(rest[0]) if rest else None
    if amount is None:
        raise _refused(method, f"{criterion}-SHARE below 1, as 0.5, or {criterion}-N:M")
    behind = {"sequential": criterion in LEARNING, "owl": bool(amount[1]) and criterion != "global"}
    after = [word for word, goes in behind.items() if goes]
    if len(set(rest[1:])) < len(rest[1:]) or set(rest[1:]) - set(after):
        raise _refused(
            method, " or ".join([f"{criterion}-{rest[0]}", *(f"it with {word}" for word in after)])
        )
    more = {"sequential": "sequential" in rest, "by_layer": "owl" in rest}
    if amount[1]:
        share = float(amount[1])
        if share == 0.0:
            raise _refused(method, "a share above 0")
        return Pruning(criterion, share, **more)
    n, m = int(amount[2]), int(amount[3])
    if n >= m or criterion == "global":
        raise _refused(method, "N below M, and a share for global")
    return Pruning(criterion, (n, m), **more)


def _rounding(method: str, words: list[str]) -> Rounding:
    found: dict[str, object] = {}

    def say(field: str, value: object) -> None:
        if field in found:
            raise _refused(method, "nothing said twice")
        found[field] = value

    for word in words:
        formats = _FORMATS.fullmatch(word) if word else None
        if formats:
            for field, name in zip(
                ("weights", "activations", "cache"), formats.groups(), strict=True
            ):
                if name is not None:
                    say(field, NAMES[name])
        elif word in ("gptq", "awq", "hqq"):
            say("by", word)
        elif word in (*SMOOTH, "rotate"):
            say("basis", word)
        elif word in FLAGS:
            say(FLAGS[word], True)
        elif word == "atensor":
            say("inputs_per", "tensor")
        elif word in ("tensor", "vector"):
            say("per", word)
        elif re.fullmatch(r"g[1-9]\d*", word):
            say("per", "group")
            say("group", int(word[1:]))
        elif word in RANGES:
            say("ranges", word)
        elif kept := _KEEP.fullmatch(word):
            say("keep", int(kept[1]))
        elif window := _WINDOW.fullmatch(word):
            say("window", int(window[1]))
        elif split := _SPLIT.fullmatch(word):
            say("split", float(split[1]))
        else:
            raise _refused(
                method,
                f"formats as w8, a8, kv4, w8a8 (of {', '.join(NAMES)}), gptq, awq, hqq, smooth, "
                f"smoothall, rotate, {', '.join(FLAGS)}, tensor, vector, g32, atensor, "
                f"{', '.join(RANGES)}, keep1, window64, split6; or one of "
                f"{', '.join(CRITERIA)} first, as in wanda-0.5",
                f"{word!r} is none of the words",
            )
    made = Rounding(**found)  # type: ignore[arg-type]
    _check(method, made, "per" in found)
    return made


def _check(method: str, made: Rounding, shared: bool) -> None:
    """Refuse words that do not go together; `shared`: whether one says what shares a scale."""
    used = [name for name in (made.weights, made.activations, made.cache) if name is not None]
    if not used and made != Rounding(keep=made.keep if made.window else 0, window=made.window):
        raise _refused(method, "a format, as w8 or w8a8, beside other words")
    if made.by != "nearest" and made.weights is None:
        raise _refused(method, f"{made.by} with a format of weights")
    if made.by == "gptq" and made.weights == "nvfp4":
        raise _refused(method, "gptq with a format whose scales are not of the whole matrix")
    if made.largest_first and (made.by != "gptq" or FORMATS[str(made.weights)].block):
        raise _refused(method, "order with gptq, and a format that has no blocks of its own")
    if made.sequential and not made.compensated:
        raise _refused(method, "sequential with gptq or awq")
    if made.by == "awq" and made.basis != "given":
        raise _refused(method, "awq without smooth or rotate: it rescales by itself")
    if made.by == "hqq" and (not str(made.weights).startswith("int") or made.zero_point):
        raise _refused(method, "hqq with integers, whose zero points it makes itself")
    if made.ranges is not None and made.activations is None:
        raise _refused(method, f"{made.ranges} with a format of activations")
    if made.inputs_per is not None and (
        made.activations is None or made.ranges or FORMATS[made.activations].block
    ):
        raise _refused(
            method, "atensor with a format of activations that has no blocks, without static ranges"
        )
    if made.basis in SMOOTH and made.activations is None:
        raise _refused(method, f"{made.basis} with a format of activations")
    if made.basis in SMOOTH and made.ranges not in (None, "minmax"):
        raise _refused(method, f"{made.basis} with minmax")
    if made.keep and made.activations is made.cache is made.window is None:
        raise _refused(method, f"keep{made.keep} with a format of activations or cache, or window")
    if made.by_channel and (made.cache is None or FORMATS[made.cache].block):
        raise _refused(method, "kchannel with a format of the cache that has no blocks of its own")
    if made.split is not None:
        if made.weights is made.activations is None:
            raise _refused(method, "split with a format of weights or activations")
        alone = made.by == "nearest" and made.basis == "given" and not made.zero_point
        if not alone or made.ranges not in (None, "minmax"):
            raise _refused(method, "split with rounding to nearest alone, or with minmax")
    if shared:
        word = f"g{made.group}" if made.per == "group" else made.per
        share = [made.weights] if made.per == "group" else [made.weights, made.activations]
        if not any(name and not FORMATS[name].block for name in share):
            which = "weights" if made.per == "group" else "weights or activations"
            raise _refused(method, f"{word} with a format of {which} that has no blocks of its own")
    if made.zero_point and not all(name.startswith("int") for name in used):
        raise _refused(method, "zero with integers")
    if made.zero_point and made.ranges == "mse":
        raise _refused(method, "zero with minmax or percentile")
    if made.ranges is not None and FORMATS[str(made.activations)].block:
        raise _refused(method, f"{made.ranges} with a format that has no blocks of its own")


def _refused(method: str, accepted: str, found: str = "") -> InputError:
    return InputError("methods", method, accepted, found)
