"""More bits where a model is sensitive: which matrices of which layers climb a ladder of formats.

A matrix stands out by a step of what is measured along depth: of the error that rounding a part of
a layer makes in the part's output, or of the kurtosis of its weights (Zhang et al. 2025,
arXiv:2503.06518). Controls give as many matrices of random layers the same bits.
Axes: L layers, B sequences, T tokens, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Int
from scipy import stats

from sysout_jax.analysis.compress.compression import Compressor
from sysout_jax.analysis.compress.schemes import Rounding, Scheme, bits
from sysout_jax.analysis.intervene.passes import passes
from sysout_jax.analysis.locate.scan import for_length
from sysout_jax.errors import InputError

# (bits, entries that share a scale), from few bits a weight to many
LADDER = tuple((width, group) for width in (2, 3, 4, 8) for group in (128, 64, 32))
KINDS = ("sensitivity", "kurtosis", "first_last", "random")
OF_WEIGHTS = ("kurtosis", "first_last")  # those that are told without calibration text
STANDS_OUT = 3.0  # z of a step along depth, theirs
TRIMMED = 0.05  # of the steps, at either end, that mean and deviation leave out
# part -> (tap of its output, its matrices)
PARTS: Mapping[str, tuple[str, tuple[str, ...]]] = MappingProxyType(
    {
        "attention": ("attn_out", ("query", "key", "value", "out")),
        "out": ("attn_out", ("out",)),
        "mlp": ("down_out", ("gate", "up", "down")),
        "down": ("down_out", ("down",)),
    }
)


@dataclass(frozen=True)
class Boost:
    """Which matrices get more bits, and why.

    z: part or matrix -> [L], how far its step from the layer before stands out; empty of a control.
    layers: matrix -> the layers in which it climbs.
    bits: a weight, of all weights that are rounded.
    """

    kind: str
    z: Mapping[str, np.ndarray]
    layers: Mapping[str, tuple[int, ...]]
    bits: float


def on_ladder(method: str, how: Scheme) -> int:
    """The rung of a method.

    Raises:
      InputError: it is none.
    """
    if isinstance(how, Rounding) and how.per == "group" and how.split is None:
        for rung, (width, group) in enumerate(LADDER):
            if (how.weights, how.group) == (f"int{width}", group):
                return rung
    accepted = (
        "methods with weights of 2, 3, 4 or 8 bits in groups of 128, 64 or 32, as hqq-w3-g64, "
        "without split"
    )
    raise InputError("boost", None, accepted, f"{method} has no rung")


def check_climbs(method: str, how: Scheme, budget: float | None) -> None:
    """Refuse a method that no boost can change.

    Raises:
      InputError: it is not on the ladder, or on its last rung, or has the bits of the budget.
    """
    if on_ladder(method, how) == len(LADDER) - 1:
        raise InputError("boost", None, "a lower one", f"{method} is the ladder's last rung")
    assert isinstance(how, Rounding)  # as it is on the ladder
    usual = bits(how)
    if budget is not None and usual is not None and budget <= usual:
        least = f"more than the {usual:.3f} bits a weight of {method}"
        raise InputError("budget", budget, least)


def climbed(how: Rounding, rungs: int) -> Rounding:
    """A method so many rungs higher, or on the last one."""
    width, group = LADDER[min(on_ladder("", how) + rungs, len(LADDER) - 1)]
    return replace(how, weights=f"int{width}", group=group)


# --------------------------------------------------------------------------- what stands out


def sensitivity(
    compressor: Compressor, how: Rounding, rows: Int[np.ndarray, "B S"]
) -> dict[str, Float[np.ndarray, "L"]]:
    """The mean squared error of each part's output when its own weights alone are rounded.

    What enters a layer, and of an MLP its attention, are those of the model as it is.

    Args:
      compressor: the model.
      how: the method, without what it does to activations.
      rows: [B, S] of calibration text.
    """
    config = for_length(compressor.config, rows.shape[1] - 1)
    layers = range(config.layers)
    of = passes(config, compressor.params, rows, layers, compressor.batch, {}, {})
    weights = replace(how, activations=None, cache=None, inputs_per=None, ranges=None)
    outputs = {
        tap: [of.within(layer, {tap: _whole}, {})[tap] for layer in layers]
        for tap in {tap for tap, _ in PARTS.values()}
    }
    found = {}
    for part, (tap, names) in PARTS.items():
        changed = replace(of, params=compressor.compress(weights, only=names).params)
        errors = [changed.within(n, {tap: _whole}, {})[tap] - outputs[tap][n] for n in layers]
        found[part] = np.array([np.mean(np.square(each, dtype=np.float64)) for each in errors])
    return found


def _whole(value: Float[Array, "T ..."]) -> Array:
    """A tap's reducer: all of it."""
    return value


def kurtoses(compressor: Compressor) -> dict[str, Float[np.ndarray, "L"]]:
    """Pearson's kurtosis of all entries of each matrix, by layer: 3 for a normal distribution."""
    return {
        name: np.array([stats.kurtosis(np.ravel(w), fisher=False) for w in of])
        for name, of in compressor.matrices().items()
    }


def steps(values: Float[np.ndarray, "L"], ratio: bool) -> Float[np.ndarray, "L"]:
    """How far each layer's step from the layer before stands out.

    z_l = (d_l - mean) / sd, d_l = v_l / v_{l-1} or v_l - v_{l-1}, mean and deviation (n - 1) of the
    finite steps without 5% at either end. A ratio to 0 is infinite, and stands out. Of the first
    layer, which has no step, z is -inf, and of all where the steps do not differ or there is only
    one. Up to 19 steps nothing is left out, and z of n is at most (n - 1)/sqrt(n): with fewer than
    12 layers no finite step is above 3.

    Args:
      values: [L].
      ratio: whether steps are ratios.

    Source: Zhang et al. 2025, section 3.
    """
    z = np.full(len(values), -np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        taken = values[1:] / values[:-1] if ratio else np.diff(values)
    z[1:][taken == np.inf] = np.inf
    finite = np.isfinite(taken)
    if finite.sum() > 1:
        trimmed = stats.trimboth(taken[finite], TRIMMED)
        if trimmed.std():
            z[1:][finite] = (taken[finite] - trimmed.mean()) / trimmed.std(ddof=1)
    return z


# ------------------------------------------------------------------------------ what climbs


def boosts(
    compressor: Compressor, how: Rounding, kinds: Sequence[str], rows: Int[np.ndarray, "B S"],
    rungs: int = 2, top: int | None = None, budget: float | None = None,
) -> dict[str, Boost]:  # fmt: skip
    """What climbs by each kind of boost.

    Args:
      compressor: the model.
      how: the method, on the ladder.
      kinds: of `KINDS`; "random:SEED" gives as many matrices of random layers the bits
        of "sensitivity".
      rows: [B, S] of calibration text.
      rungs: that a matrix climbs.
      top: the parts that climb, those that stand out most; None: those whose z is above 3.
      budget: bits a weight that are not exceeded, instead: as many as it allows, the first first.
        The ends of the depth climb whatever it is.
    """
    sizes = {name: [w.size for w in of] for name, of in compressor.matrices().items()}

    def boost(kind: str, z: Mapping[str, np.ndarray], layers: Mapping[str, set[int]]) -> Boost:
        made = {name: tuple(sorted(layers.get(name, ()))) for name in sizes}
        return Boost(kind, z, made, _bits(how, rungs, sizes, made))

    @cache
    def measured(kind: str) -> Boost:
        ratio = kind == "sensitivity"
        values = sensitivity(compressor, how, rows) if ratio else kurtoses(compressor)
        z = {name: steps(each, ratio) for name, each in values.items()}
        layers: dict[str, set[int]] = {}
        for name, layer in _ordered(z, top, budget):
            more = {key: set(of) for key, of in layers.items()}
            for matrix in PARTS[name][1] if ratio else (name,):
                if matrix in sizes:
                    more.setdefault(matrix, set()).add(layer)
            if budget is not None and boost(kind, z, more).bits > budget:
                break
            layers = more
        return boost(kind, z, layers)

    made: dict[str, Boost] = {}
    for kind in kinds:
        if kind in ("sensitivity", "kurtosis"):
            made[kind] = measured(kind)
        elif kind == "first_last":
            ends = {0, compressor.config.layers - 1}
            made[kind] = boost(kind, {}, dict.fromkeys(sizes, ends))
        else:
            like = measured("sensitivity")
            rng = np.random.default_rng(int(kind.partition(":")[2]))
            depth = compressor.config.layers
            drawn = {
                name: set(rng.permutation(depth)[: len(of)].tolist())
                for name, of in like.layers.items()
            }
            made[kind] = boost(kind, {}, drawn)
    return made


def check_kind(kind: str) -> None:
    """Refuse what is no kind of boost.

    Raises:
      InputError: names it.
    """
    name, _, seed = kind.partition(":")
    if name not in KINDS or (name == "random") != seed.isdigit():
        raise InputError("boost", kind, ", ".join((*KINDS[:-1], "random:SEED")))


def _ordered(
    z: Mapping[str, np.ndarray], top: int | None, budget: float | None
) -> list[tuple[str, int]]:
    """(part or matrix, layer) that may climb, what stands out most first."""
    all_of = [(float(each[n]), name, n) for name, each in z.items() for n in range(1, len(each))]
    all_of.sort(key=lambda each: -each[0])
    if top is None and budget is None:
        all_of = [each for each in all_of if each[0] > STANDS_OUT]
    return [(name, layer) for _, name, layer in all_of[:top]]


def _bits(
    how: Rounding, rungs: int, sizes: Mapping[str, Sequence[int]],
    layers: Mapping[str, tuple[int, ...]],
) -> float:  # fmt: skip
    usual, more = (bits(each) or 0.0 for each in (how, climbed(how, rungs)))
    total = sum(size for of in sizes.values() for size in of)
    raised = sum(sizes[name][layer] for name, of in layers.items() for layer in of)
    return usual + (more - usual) * raised / total


def schemes_of(how: Rounding, boost: Boost, rungs: int) -> dict[tuple[str, int], Any]:
    """(matrix, layer) -> its method, of those that climb."""
    higher = climbed(how, rungs)
    return {(name, layer): higher for name, of in boost.layers.items() for layer in of}
