"""Every measure and detector of the field on one model, beside the same model before training."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sysout_jax.analysis.locate import expert_neurons
from sysout_jax.analysis.locate.nulls import (
    SHUFFLED,
    UNTRAINED,
    Calibrated,
    calibrated,
    outlying_states,
    read_by,
    untrained,
)
from sysout_jax.analysis.locate.scan import Progress, Scan, Thresholds, as_scan, over_batches
from sysout_jax.analysis.locate.scan import reducers as reducers_of_scan
from sysout_jax.analysis.locate.weights import WeightScan, weight_scan
from sysout_jax.analysis.measure.summary import flags, reducers
from sysout_jax.analysis.statistics import Interval, bootstrap_interval, mean_interval
from sysout_jax.core import detectors as d
from sysout_jax.core import measures as m
from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.layers import cross_entropy
from sysout_jax.core.recorded import MEASURES
from sysout_jax.core.variants import kept
from sysout_jax.model.compiling import jit_quickly
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, forward
from sysout_jax.model.taps import Edit

LISTED = 5  # places of a detector

# What is measured beside `core.recorded.MEASURES`: name, how layers are summarised, label.
MORE: tuple[tuple[str, str, str], ...] = (
    ("matrix_entropy@block_out", "min", "matrix entropy of states"),
    ("gradient_sink@attn_norm", "max", "gradient sink $|g_0|/\\overline{|g|}$"),
)


@dataclass(frozen=True)
class Score:
    """One measure of the model, in the layer (and head) that `over` picks from the means."""

    name: str
    label: str
    over: str  # max, min or mean of layers and heads
    value: Interval  # over sequences
    untrained: Interval  # over initialisations
    layers: np.ndarray  # [L], the mean over sequences, heads summarised as layers are


@dataclass(frozen=True)
class Detected:
    """What one detector flags in a sequence, in the layer where it flags most."""

    name: str
    label: str
    of: str  # what `places` are
    count: Interval  # over sequences
    untrained: Interval  # over initialisations
    places: tuple[tuple[int, int], ...]  # (index, sequences in which it is flagged anywhere)


@dataclass(frozen=True)
class Sweep:
    """Sink_k(eps) of Gu et al. 2025 for the first keys at every threshold."""

    eps: tuple[float, ...]
    value: np.ndarray  # [K, E], mean over sequences, layers and heads
    untrained: np.ndarray  # [K, E], and over initialisations


@dataclass(frozen=True)
class Measured:
    """All measures, all detectors and their calibration."""

    length: int  # T of the sequences
    initialisations: int
    scores: tuple[Score, ...]
    detectors: tuple[Detected, ...]
    sweep: Sweep
    calibrated: tuple[Calibrated, ...]


def measured(
    config: ModelConfig,
    params: Params,
    rows: Int[Array | np.ndarray, "B S"],
    thresholds: Thresholds | None = None,
    found: Scan | None = None,
    weights: WeightScan | None = None,
    batch: int = 8,
    progress: Progress | None = None,
) -> Measured:
    """Measure a model and a few untrained ones of its architecture on the same text.

    Args:
      config: the architecture.
      params: its parameters.
      rows: [B, S], S = T + 1: inputs and next tokens as a corpus gives them.
      thresholds: of the scan, beside which is calibrated; None for those of the papers, which the
        detectors that are counted have in any case.
      found: the scan of rows[:, :-1], if there is one.
      weights: the scan of the parameters, if there is one.
      batch: sequences that are run together.
      progress: called with the models done and their number.
    """
    rows = np.asarray(rows)
    steps = progress or (lambda done, total: None)
    total = UNTRAINED + 2
    own = _values(config, params, rows, batch)
    steps(1, total)
    found = found or as_scan(config, own["scan"], thresholds)
    tokens = rows[:SHUFFLED, :-1]
    states, others = outlying_states(config, params, tokens, found, batch), []
    for which in range(UNTRAINED):
        other = untrained(config, which)
        others.append(_values(config, other, read_by(rows, config.layers, which), batch))
        if which == 0:
            control = outlying_states(config, other, tokens, found, batch)
        steps(2 + which, total)
    weights = weights or weight_scan(params, found.thresholds.weight_ratio)
    scans = [as_scan(config, each["scan"], found.thresholds) for each in others]
    kept = calibrated(found, scans, states, control, weights)
    steps(total, total)
    listed = [(measure.name, measure.over, measure.label) for measure in MEASURES]
    return Measured(
        rows.shape[1] - 1,
        UNTRAINED,
        tuple(_score(*each, own, others) for each in (*listed, *MORE)),
        tuple(_detected(detector, own, others) for detector in d.DETECTORS),
        Sweep(m.SINK_SWEEP, _sweep(own), np.mean([_sweep(each) for each in others], axis=0)),
        kept,
    )


def _score(name: str, over: str, label: str, own: Any, others: list[Any]) -> Score:
    values = own["measures"][name]  # [L, B] or [L, B, heads]
    before = [float(_of_sequences(each["measures"][name], over).mean()) for each in others]
    mean = values.mean(axis=1)
    layers = mean if mean.ndim == 1 else getattr(mean, over)(axis=1)
    return Score(
        name, label, over, bootstrap_interval(_of_sequences(values, over)), mean_interval(before),
        layers,
    )  # fmt: skip


def _of_sequences(values: Float[np.ndarray, "L B *rest"], over: str) -> Float[np.ndarray, "B"]:
    """Each sequence's value: of all layers and heads, or of those with the extreme mean."""
    flat = np.moveaxis(values, 1, 0).reshape(values.shape[1], -1)
    if over == "mean":
        return flat.mean(axis=1)
    return flat[:, getattr(np, f"arg{over}")(flat.mean(axis=0))]


def _detected(detector: d.Detector, own: Any, others: list[Any]) -> Detected:
    counts, places = own["counts"][detector.name], own["places"][detector.name]
    before = [float(_of_sequences(each["counts"][detector.name], "max").mean()) for each in others]
    sequences = places.any(axis=0).sum(axis=0)
    order = np.argsort(-sequences, kind="stable")[:LISTED]
    return Detected(
        detector.name, detector.label, detector.of,
        bootstrap_interval(_of_sequences(counts, "max")), mean_interval(before),
        tuple((int(i), int(sequences[i])) for i in order if sequences[i]),
    )  # fmt: skip


def _sweep(found: Any) -> Float[np.ndarray, "K E"]:
    return np.asarray(found["sweep"].mean(axis=(0, 1)))


# ------------------------------------------------------------------------------ one model


def _values(config: ModelConfig, params: Params, rows: np.ndarray, batch: int) -> dict[str, Any]:
    """Measures, counts and places of every layer and sequence: trees of [L, B, ...]."""
    return dict(over_batches(partial(_measure, config), params, rows, batch))


@jit_quickly(0)
def _measure(config: ModelConfig, params: Params, rows: Int[Array, "B S"]) -> dict[str, Any]:
    sinks, taps = _with_gradient(config, params, rows, _taps(config))
    scanned = {key: of.pop("scan") if "scan" in of else of for key, of in taps.items()}
    counts, places = {}, {}
    for detector in d.DETECTORS:
        flagged = flags(detector, taps)
        entries = flagged.reshape(*flagged.shape[:2], -1)
        counts[detector.name] = jnp.sum(entries, axis=-1, dtype=jnp.float32)
        places[detector.name] = flagged.any(axis=2) if flagged.ndim == 4 else flagged
    values = {each.name: taps[each.tap][each.name] for each in MEASURES}
    values["matrix_entropy@block_out"] = taps["block_out"]["matrix_entropy"]
    values["gradient_sink@attn_norm"] = sinks
    of_scan = {key: scanned[key] for key in reducers_of_scan(config)}
    return {
        "measures": values, "counts": counts, "places": places,
        "sweep": taps["attn_weights"]["sweep"],
        "scan": expert_neurons.by_tap(config, of_scan),
    }  # fmt: skip


@kept
def _taps(config: ModelConfig) -> dict[str, Any]:
    of = reducers(config)
    normalised = VARIANTS[config.variant].normalised

    def attention(weights: Array) -> dict[str, Array]:
        shown = weights if normalised else m.rows_to_one(weights)
        return of["attn_weights"](weights) | {"sweep": m.sink_sweep(shown)}

    def state(h: Array) -> dict[str, Array]:
        return of["block_out"](h) | {"matrix_entropy": m.matrix_entropy(h.astype(jnp.float32))}

    taps = of | {"attn_weights": attention, "block_out": state}
    for key, reducer in reducers_of_scan(config).items():
        taps[key] = _both(taps[key], reducer) if key in taps else reducer
    return taps


def _both(measure: Any, scanning: Any) -> Any:
    return lambda value: {**measure(value), "scan": scanning(value)}


def _with_gradient(
    config: ModelConfig, params: Params, rows: Int[Array, "B S"], taps: Mapping[str, Any]
) -> tuple[Float[Array, "L B"], dict[str, Any]]:
    """`gradient_sink` of every layer, of the loss' gradient at the attention input after its norm;
    and what taps record in the same forward pass."""
    taps = {key: _without_gradient(reducer) for key, reducer in taps.items()}

    def loss(sinks: Float[Array, "L B"]) -> tuple[Float[Array, ""], dict[str, Any]]:
        edits = {"attn_norm": Edit(_of_layer, sinks, in_axes=1)}
        logits, found = forward(config, params, rows[:, :-1], taps, edits)
        return jnp.sum(jnp.mean(cross_entropy(logits, rows[:, 1:]), axis=1)), found

    return jax.grad(loss, has_aux=True)(jnp.zeros((config.layers, len(rows))))


def _without_gradient(reducer: Any) -> Any:
    return lambda *values: reducer(*map(jax.lax.stop_gradient, values))


def _of_layer(value: Float[Array, "T D"], layer: Array, sinks: Float[Array, "L"]) -> Array:
    return _heard(value, sinks[layer])


@jax.custom_vjp
def _heard(value: Float[Array, "T D"], sink: Float[Array, ""]) -> Float[Array, "T D"]:
    """The value; what the backward pass calls the gradient by `sink` is the `gradient_sink` of the
    value's, so that no gradient of all layers is kept."""
    del sink
    return value


def _hear(value: Array, sink: Array) -> tuple[Array, None]:
    return _heard(value, sink), None


def _measure_gradient(kept: None, gradient: Array) -> tuple[Array, Array]:
    del kept
    return gradient, m.gradient_sink(gradient.astype(jnp.float32))


_heard.defvjp(_hear, _measure_gradient)
