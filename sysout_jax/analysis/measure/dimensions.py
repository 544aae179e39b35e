"""Outlier dimensions after the final norm: which, whether massive, and what they predict.

Source: Macocco et al. 2025 (arXiv:2503.21718). Axes: B texts, P positions of each, R = 1 +
resamples of texts, D width, V vocabulary.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy import linalg, stats

from sysout_jax.analysis.locate.scan import (
    DETECTORS,
    Progress,
    Scan,
    Thresholds,
    for_length,
    over_batches,
    scan,
)
from sysout_jax.analysis.locate.weights import layer_params, projection
from sysout_jax.analysis.measure.predictions import (
    Ablation,
    Split,
    ablation_sets,
    ablations,
    head_of,
    of_draws,
    read,
)
from sysout_jax.analysis.statistics import Interval, bootstrap_interval
from sysout_jax.core.detectors import outlier_dimensions
from sysout_jax.core.measures import neuron_rms_kurtosis
from sysout_jax.errors import InputError, is_integer
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params
from sysout_jax.model.stream import recorded

STABILITY_DRAWS = 100  # resamples of texts in which the detector is run again
VECTORS = 3  # singular vectors of the last down projection


@dataclass(frozen=True)
class Dimension:
    """An outlier dimension."""

    index: int
    score: float  # median |x| over the quantile of all entries
    median: float  # median |x| over positions
    constancy: float  # |mean x| / rms x: 1 for a constant
    gain: float | None  # |gain| of the final norm over the mean |gain|; None: it has no gains
    peak: float  # the largest |h| over its layer's median in the residual stream, over layers
    massive: bool  # whether it has massive activations
    share: float  # of resamples of texts in which it is flagged


@dataclass(frozen=True)
class Overlap:
    """Outlier dimensions beside another set of dimensions."""

    other: str
    dimensions: tuple[int, ...]  # the other set
    shared: int
    expected: float  # of as many dimensions at random
    p_value: float  # of at least as many shared (hypergeometric)


@dataclass(frozen=True)
class Vector:
    """A right singular vector of the last layer's down projection, in the residual stream."""

    share: float  # sigma^2 / |W|_F^2
    on_outliers: float  # squared norm of its entries in outlier dimensions


@dataclass(frozen=True)
class Stage:
    """Outlier dimensions at one checkpoint."""

    step: int
    dimensions: tuple[int, ...]
    largest: float  # score
    kurtosis: float  # `neuron_rms_kurtosis` of the final states
    shared: float | None  # Jaccard with those of the model itself; None where neither has any
    kl: Interval | None  # without them; None where there are none


@dataclass(frozen=True)
class Dimensions:
    """Outlier dimensions of a model and what they do."""

    quantile: float
    positions: tuple[int, ...]  # of each text
    texts: int
    most: int  # dimensions that can be flagged at all: half of the entries of each are above
    count: Interval  # over resamples of texts
    dimensions: tuple[Dimension, ...]  # by score
    scores: np.ndarray  # [D]
    peaks: np.ndarray  # [D]
    energy: float  # share of x^2
    kurtosis: float  # `neuron_rms_kurtosis` of the final states
    overlaps: tuple[Overlap, ...]
    ablations: tuple[Ablation, ...]  # the whole state comes first
    split: Split | None
    vectors: tuple[Vector, ...]
    gains: float | None  # mean |gain| of outlier dimensions over that of the rest
    stages: tuple[Stage, ...]


def dimensions(
    config: ModelConfig,
    params: Params,
    rows: Int[Array | np.ndarray, "B S"],
    positions: Sequence[int] | None = None,
    thresholds: Thresholds | None = None,
    frequencies: Int[np.ndarray, "V"] | None = None,
    found: Scan | None = None,
    checkpoints: Iterable[tuple[int, Params]] = (),
    batch: int = 8,
    progress: Progress | None = None,
    total: int = 0,
) -> Dimensions:
    """Find the outlier dimensions of a model, relate them to others, and predict without them.

    Args:
      config: the architecture.
      params: its parameters, held or read layer by layer.
      rows: [B, S], S = T + 1: inputs and next tokens.
      positions: of each text, from 0 to T - 1; None for the second half. The paper takes one.
      thresholds: `dimension_quantile`, and those of massive activations; None for the papers'.
      frequencies: [V], how often tokens occur in the corpus; None: in the rows.
      found: the scan of rows[:, :-1], if there is one.
      checkpoints: (step, parameters) of the run that trained the model.
      batch: texts that are run together.
      progress: called with the checkpoints done and their number.
      total: the number of checkpoints, for `progress`.

    Raises:
      InputError: positions that the rows do not have.
    """
    rows = np.asarray(rows)
    chosen = chosen_positions(positions, rows.shape[1] - 1)
    found = found or scan(config, params, rows[:, :-1], thresholds, batch)
    quantile = (thresholds or found.thresholds).dimension_quantile
    states = final_states(config, params, rows, chosen, batch)
    x = states.reshape(-1, states.shape[-1])
    detected = outlier_dimensions(jnp.asarray(x), quantile)
    flagged, scores = np.asarray(detected.flagged), np.asarray(detected.score)
    head = head_of(config, params)
    of_head = np.asarray(outlier_dimensions(head.weight.T, quantile).flagged)
    own = np.bincount(rows.ravel(), minlength=config.vocab)
    made, split = ablations(
        config.final_softcap, head, states, rows[:, np.array(chosen) + 1],
        own if frequencies is None else frequencies, ablation_sets(flagged, of_head),
    )  # fmt: skip
    stages = []
    for step, each in checkpoints:
        stages.append(_stage(config, step, each, rows, chosen, quantile, flagged, batch))
        if progress:
            progress(len(stages), max(total, len(stages)))
    gains, stable = final_gains(config, params), _stability(states, quantile)
    peaks, massive = residual_peaks(found), massive_channels(found)
    return Dimensions(
        quantile, chosen, len(rows), int(2 * (1 - quantile) * len(flagged) + 1e-9),
        of_draws(stable.sum(axis=1)), _listed(x, scores, flagged, gains, peaks, massive, stable),
        scores, peaks, float(np.sum(x[:, flagged] ** 2) / np.sum(x**2)),
        float(neuron_rms_kurtosis(jnp.asarray(x))), _overlaps(flagged, of_head, peaks, massive),
        made, split, _vectors(config, params, flagged), _of_outliers(gains, flagged), tuple(stages),
    )  # fmt: skip


def _listed(
    x: np.ndarray, scores: np.ndarray, flagged: np.ndarray, gains: np.ndarray | None,
    peaks: np.ndarray, massive: np.ndarray, stable: np.ndarray,
) -> tuple[Dimension, ...]:  # fmt: skip
    return tuple(
        Dimension(
            int(d), float(scores[d]), float(np.median(np.abs(x[:, d]))), _constancy(x[:, d]),
            None if gains is None else float(gains[d] / gains.mean()), float(peaks[d]),
            bool(massive[d]), float(stable[1:, d].mean()),
        )
        for d in sorted(np.flatnonzero(flagged), key=lambda d: -scores[d])
    )  # fmt: skip


def _overlaps(
    flagged: np.ndarray, of_head: np.ndarray, peaks: np.ndarray, massive: np.ndarray
) -> tuple[Overlap, ...]:
    largest = np.zeros_like(flagged)
    largest[np.argsort(-peaks, kind="stable")[: flagged.sum()]] = True
    return (
        _overlap("channels of massive activations", flagged, massive),
        _overlap("as many channels with the largest peaks", flagged, largest),
        _overlap("outlier dimensions of the head", flagged, of_head),
    )


def chosen_positions(given: Sequence[int] | None, length: int) -> tuple[int, ...]:
    """The positions of each text that are looked at: as given, or the second half.

    Args:
      given: distinct positions, or None.
      length: T.

    Raises:
      InputError: none, one twice, or one that is not there.
    """
    if given is None:
        return tuple(range(length // 2, length))
    fits = all(is_integer(at) and 0 <= at < length for at in given)
    if not fits or not given or len(set(given)) < len(given):
        accepted = f"some of 0 to {length - 1}, none twice"
        raise InputError("dimension_positions", ",".join(map(str, given)), accepted)
    return tuple(int(at) for at in given)


def final_states(
    config: ModelConfig,
    params: Params,
    rows: Int[np.ndarray, "B S"],
    positions: tuple[int, ...],
    batch: int = 8,
) -> Float[np.ndarray, "B P D"]:
    """What the output head reads at some positions of each text, as float32."""
    taps = {"final_norm": _at(positions)}
    here = for_length(config, rows.shape[1] - 1)

    def run(params: Params, tokens: Array) -> Array:
        return recorded(here, params, tokens, taps)["final_norm"][None]

    states: np.ndarray = over_batches(run, params, rows[:, :-1], batch)[0]
    return states


@cache  # the same object again, so that the compiled program is used again
def _at(positions: tuple[int, ...]) -> Callable[[Array], Array]:
    return lambda x: x[np.array(positions)].astype(jnp.float32)


def residual_peaks(found: Scan) -> Float[np.ndarray, "D"]:
    """Each channel's largest |h| over the layer's median, mean over texts, in its largest layer."""
    site = found.block_out
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = site.feature_peak / site.median[..., None]
    ratio[np.isnan(ratio)] = 0.0  # of a layer of zeros
    return np.asarray(ratio.mean(axis=1).max(axis=0))


def massive_channels(found: Scan) -> Bool[np.ndarray, "D"]:
    """Channels with a massive activation (Sun et al. 2024) in some layer of some text."""
    sun = next(each for each in DETECTORS if each.name == "sun")
    above = found.block_out.feature_peak > sun.threshold(found)[..., None]
    return np.asarray(above.any(axis=(0, 1)))


def final_gains(config: ModelConfig, params: Params) -> Float[np.ndarray, "D"] | None:
    """|gain| of the final norm; None where there is no such norm, or it has no gains."""
    if config.norm_placement == "post" or not config.channel_scales:
        return None
    scale = np.asarray(params["final_norm"]["scale"], np.float64)
    return np.abs(scale + 1.0 if config.norm_plus_one else scale)


def _of_outliers(gains: np.ndarray | None, flagged: np.ndarray) -> float | None:
    if gains is None or not flagged.any():
        return None
    return float(gains[flagged].mean() / gains[~flagged].mean())


def _constancy(x: Float[np.ndarray, "n"]) -> float:
    x = x.astype(np.float64)
    return float(abs(x.mean()) / np.sqrt(np.mean(x * x)))


def _overlap(name: str, flagged: np.ndarray, other: np.ndarray) -> Overlap:
    width, mine, its = len(flagged), int(flagged.sum()), int(other.sum())
    shared = int((flagged & other).sum())
    p_value = float(stats.hypergeom.sf(shared - 1, width, its, mine))
    which = tuple(map(int, np.flatnonzero(other)))
    return Overlap(name, which, shared, mine * its / width, p_value)


def _stability(states: Float[np.ndarray, "B P D"], quantile: float) -> Bool[np.ndarray, "R D"]:
    """What is flagged in all texts, and then in resamples of them."""
    size, texts = np.abs(states), len(states)
    picked = np.random.default_rng(0).integers(0, texts, (STABILITY_DRAWS, texts))

    def flags(which: Any) -> np.ndarray:
        x = size[which].reshape(-1, size.shape[-1])
        return np.asarray(np.median(x, axis=0) > np.quantile(x, quantile))

    return np.stack([flags(which) for which in (np.arange(texts), *picked)])


def _vectors(config: ModelConfig, params: Params, flagged: np.ndarray) -> tuple[Vector, ...]:
    down = projection(layer_params(params, config.layers - 1), "mlp", "down")
    w = np.asarray(down, np.float64)
    width = w.shape[1]
    kept = [max(width - VECTORS, 0), width - 1]
    squares, vectors = linalg.eigh(w.T @ w, subset_by_index=kept)
    return tuple(
        Vector(float(square / np.sum(w * w)), float(np.sum(vector[flagged] ** 2)))
        for square, vector in zip(squares[::-1], vectors.T[::-1], strict=True)
    )


def _stage(
    config: ModelConfig, step: int, params: Params, rows: np.ndarray, positions: tuple[int, ...],
    quantile: float, last: np.ndarray, batch: int,
) -> Stage:  # fmt: skip
    states = final_states(config, params, rows, positions, batch)
    x = jnp.asarray(states.reshape(-1, states.shape[-1]))
    detected = outlier_dimensions(x, quantile)
    flagged = np.asarray(detected.flagged)
    kl, either = None, (flagged | last).sum()
    if flagged.any():
        targets = jnp.asarray(rows[:, np.array(positions) + 1].ravel())
        given = [jnp.flatnonzero(flagged)]
        parts = read(config.final_softcap, head_of(config, params), x, targets, given)[1]
        kl = bootstrap_interval(np.asarray(parts.kl)[0, 0].reshape(states.shape[:2]).mean(axis=1))
    return Stage(
        step, tuple(map(int, np.flatnonzero(flagged))), float(jnp.max(detected.score)),
        float(neuron_rms_kurtosis(x)), float((flagged & last).sum() / either) if either else None,
        kl,
    )  # fmt: skip
