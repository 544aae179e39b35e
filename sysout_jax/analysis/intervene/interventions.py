"""What a model loses without its outliers: activations, attention and weights, one at a time."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Int

from sysout_jax.analysis.intervene import editing
from sysout_jax.analysis.intervene.editing import Edits, activation_edit, attention_edit
from sysout_jax.analysis.intervene.passes import Passes, passes
from sysout_jax.analysis.intervene.relocation import Relocation, Tokens, relocation, taps
from sysout_jax.analysis.intervene.sink_forms import SinkForms, sink_forms
from sysout_jax.analysis.locate import expert_neurons
from sysout_jax.analysis.locate.scan import (
    DETECTORS,
    Progress,
    Scan,
    Thresholds,
    for_length,
    over_batches,
    scan,
)
from sysout_jax.analysis.locate.sinks import Sink, first_token_sink
from sysout_jax.analysis.locate.weights import WeightOutlier, WeightScan, down_outliers, weight_scan
from sysout_jax.analysis.statistics import Interval, bootstrap_interval
from sysout_jax.core.variants import kept
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params
from sysout_jax.model.stream import recorded
from sysout_jax.model.taps import Edit

SPIKE = 50.0  # Yu et al. 2024 (arXiv:2411.07191): of both sides of W_down at a super weight
LARGEST = "largest"  # no threshold: the largest value, flagged by a detector or not


@dataclass(frozen=True)
class Effect:
    """One intervention: what it changes, and what that costs."""

    kind: str  # activations, attention, weights
    detector: str  # whose outliers; "largest" takes the largest value whatever its size
    treatment: str
    control: bool  # the same treatment of as many others, drawn at random
    layer: int | None  # None: those from the sink on (attention), or several (weights)
    edited: float  # entries, keys, weights or neurons: mean over sequences, summed over layers
    loss: float  # nats per token
    perplexity: float
    change: Interval  # of the loss, paired by sequence
    by_sequence: np.ndarray  # [B], the change of each
    relocation: Relocation | None = None  # of attention: what the other tokens are afterwards


@dataclass(frozen=True)
class Interventions:
    """All interventions on one model and text."""

    loss: Interval  # before, nats per token, over sequences
    perplexity: float
    effects: tuple[Effect, ...]
    nothing_found: tuple[str, ...]  # detectors that flag nothing there
    sink: Sink  # the first token: from which layer on attention is taken away
    forms: SinkForms  # what can take its place
    super_weight: tuple[int, int, int] | None  # of Yu et al. 2024: layer, neuron, channel


def interventions(
    config: ModelConfig,
    params: Params,
    rows: Int[Array | np.ndarray, "B S"],
    thresholds: Thresholds | None = None,
    found: Scan | None = None,
    weights: WeightScan | None = None,
    batch: int = 8,
    progress: Progress | None = None,
    calibration: Int[np.ndarray, "C R"] | None = None,
) -> Interventions:
    """Take outliers away, kind by kind and detector by detector, and measure the loss.

    Activations are replaced in the first layer in which their detector flags most sequences, by
    zero or by their channel's mean over positions (the first apart) and `calibration`, or several
    rows: in one it is what is there. Attention to outlier keys is removed in the layers that read
    what makes the first token a sink: taken away before, it comes back at the next (theory T5).
    Weights, or their neurons, are set to zero. Each has a control of as many entries, keys, weights
    or neurons drawn at random. What can take the sink's place is put there, form by form.

    Args:
      config: the architecture.
      params: its parameters.
      rows: [B, S], S = T + 1: inputs and next tokens as a corpus gives them.
      thresholds: of the detectors; None for those of their papers.
      found: the scan of rows[:, :-1], if there is one.
      weights: the scan of the parameters, if there is one.
      batch: sequences that are run together.
      progress: called with the steps done and the steps in all.
      calibration: [C, R] rows of other text, for means and for the forms that have constants.
    """
    rows = np.asarray(rows)
    found = found or scan(config, params, rows[:, :-1], thresholds, batch)
    config = for_length(config, rows.shape[1] - 1)
    none = editing.nothing(config, found)
    weights = weights or weight_scan(params, found.thresholds.weight_ratio)
    steps = progress or (lambda done, total: None)
    chosen, sink = _chosen(found), first_token_sink(config, found)
    begins = {each.layer for each in chosen} | {_heaviest(weights).layer, sink.first}
    of_model = passes(config, params, rows, sorted(begins), batch, _recorded(config), none)
    steps(1, 5)
    means = editing.as_means(config, of_model.taps)
    trained = {**of_model.taps, "block_out": of_model.taps["block_out"]["peaks"]}
    activations = _activations(of_model, found, none, _means(of_model, means, calibration), chosen)
    steps(2, 5)
    attention, silent_attention = _attention(of_model, found, none, trained, sink.first)
    steps(3, 5)
    super_weight = means.super_weight(SPIKE)
    outliers = down_outliers(params, weights, found.thresholds.weight_ratio)
    entries = {"an_weight": outliers, "super_weight": [super_weight] if super_weight else []}
    of_weights, silent_weights = _weights(of_model, none, entries, _heaviest(weights))
    steps(4, 5)
    forms = sink_forms(of_model, trained, sink, calibration)
    steps(5, 5)
    return Interventions(
        bootstrap_interval(of_model.before), float(np.exp(of_model.before.mean())),
        (*activations, *attention, *of_weights),
        (*_silent(chosen), *silent_attention, *silent_weights),
        sink, forms, super_weight,
    )  # fmt: skip


@kept
def _recorded(config: ModelConfig) -> Mapping[str, Any]:
    """The taps of the pass without edits: `editing.averages`, and those of relocation."""
    of, moved = editing.averages(config), taps(config)
    states, peaks = of["block_out"], moved["block_out"]
    return {**moved, **of, "block_out": lambda h: {**states(h), "peaks": peaks(h)}}


def _effect(
    of_model: Passes, what: tuple[str, str, str], after: np.ndarray, edited: float,
    control: bool = False, layer: int | None = None, moved: Relocation | None = None,
) -> Effect:  # fmt: skip
    loss, change = float(after.mean()), after - of_model.before
    return Effect(
        *what, control, layer, edited, loss, float(np.exp(loss)), bootstrap_interval(change),
        change, moved,
    )  # fmt: skip


@dataclass(frozen=True)
class _Chosen:
    """The layer in which a detector's activations are treated."""

    name: str
    site: str
    layer: int
    threshold: np.ndarray  # [B], there


def _chosen(found: Scan) -> list[_Chosen]:
    """Of each detector the first layer in which it flags most sequences; of `LARGEST` the one with
    the largest value over its mean."""
    chosen = []
    for detector in DETECTORS:
        threshold = detector.threshold(found)
        flags = (found.site(detector.site).top[..., 0] > threshold).sum(axis=1)  # [L], sequences
        if flags.any():
            layer = int(np.argmax(flags))
            chosen.append(_Chosen(detector.name, detector.site, layer, threshold[layer]))
    site = found.block_out
    layer = int(np.argmax(site.top[..., 0].mean(axis=1) / site.mean.mean(axis=1)))
    second = site.top[layer, :, 1]  # above it is the largest entry alone
    if (site.top[..., 0] > site.top[..., 1]).any():
        chosen.append(_Chosen(LARGEST, "block_out", layer, second))
    return chosen


def _means(
    of_model: Passes, own: editing.Means, calibration: Int[np.ndarray, "C R"] | None
) -> editing.Means | None:
    """Of other text, or of several sequences: of one, those at its first position are itself."""
    if calibration is None or not len(calibration):
        return own if len(of_model.rows) > 1 else None
    config, tokens = of_model.config, calibration[:, :-1]
    config = for_length(config.with_execution(query_block=None), tokens.shape[1])
    run = partial(recorded, config, taps=editing.averages(config))
    found = over_batches(run, of_model.params, tokens, of_model.batch)
    return editing.as_means(config, found)


def _silent(chosen: list[_Chosen]) -> list[str]:
    seen = {each.name for each in chosen}
    return [name for name in (*(each.name for each in DETECTORS), LARGEST) if name not in seen]


def _counts(of_model: Passes, site: str, top: np.ndarray, edit: Edit) -> np.ndarray:
    """[B]: how many entries an edit replaces; `top` [B, n] are the largest of its layer."""
    above = (top > np.asarray(edit.arrays[0])[:, None]).sum(axis=1)
    return above if above.max() < top.shape[1] else editing.counts(of_model, site, edit)


def _activations(
    of_model: Passes, found: Scan, none: Edits, means: editing.Means | None, chosen: list[_Chosen]
) -> list[Effect]:
    effects = []
    after: dict[tuple[Any, ...], np.ndarray] = {}
    for each in chosen:
        site, layer = each.site, each.layer
        zero = np.zeros((2, found.site(site).feature_peak.shape[-1]), np.float32)
        replacements = {"zero": zero} | ({} if means is None else {"mean": means.at(site, layer)})
        for treatment, replacement in replacements.items():
            for control in (False, True):
                edit = activation_edit(layer, each.threshold, replacement, control)
                counts = _counts(of_model, site, found.site(site).top[layer], edit)
                # As many of the largest entries are the same entries, whatever flags them.
                same = (site, layer, treatment, control, counts.tobytes())
                if same not in after:
                    edits = none | {expert_neurons.key(of_model.config, site): edit}
                    after[same] = of_model.losses(edits, layer)
                what, count = ("activations", each.name, f"set to {treatment}"), counts.mean()
                effects.append(_effect(of_model, what, after[same], float(count), control, layer))
    return effects


def _attention(
    of_model: Passes, found: Scan, none: Edits, trained: Mapping[str, Any], first: int
) -> tuple[list[Effect], list[str]]:
    effects: list[Effect] = []
    flagged, score = found.attention_flagged(), found.attention_score()
    strongest = score == score.max(axis=-1, keepdims=True)
    read = np.arange(len(score))[:, None, None] >= first
    where = f" in layers from {first} on" if flagged.any() else ""
    flagged, strongest = flagged & read, strongest & read
    silent = [] if flagged.any() else [f"an_attention{where}"]
    rng = np.random.default_rng(0)
    count = len(score) - first
    before = Tokens.of(trained, count)
    for name, removed in (("an_attention", flagged), (LARGEST, strongest)):
        if not removed.any():
            continue
        others = _other_keys(rng, removed)
        for treatment, rescaled, control in (
            ("removed, rows renormalised", False, False),
            ("removed, rescaled by S", True, False),
            ("removed, rows renormalised", False, True),
        ):
            keys = others if control else removed
            edits = none | {"attn_weights": attention_edit(keys, rescaled)}
            losses, records = of_model.watched(edits, taps(of_model.config), first)
            moved = relocation(before, Tokens.of(records, count), np.any(keys, axis=0))
            changed, what = float(keys.sum(axis=(0, 2)).mean()), ("attention", name, treatment)
            effects.append(_effect(of_model, what, losses, changed, control, None, moved))
    return effects, silent


def _other_keys(
    rng: np.random.Generator, removed: Bool[np.ndarray, "L B S"]
) -> Bool[np.ndarray, "L B S"]:
    """As many other keys of each layer and sequence; those that are removed in another layer come
    last, as they may be the sink there."""
    order = rng.random(removed.shape) + removed.any(axis=0)
    others: np.ndarray = order.argsort(axis=-1).argsort(axis=-1) < removed.sum(-1, keepdims=True)
    return others


def _weights(
    of_model: Passes, none: Edits, found: Mapping[str, list[tuple[int, int, int]]],
    heaviest: WeightOutlier,
) -> tuple[list[Effect], list[str]]:  # fmt: skip
    """Of the entries of W_down that each detector found, and the heaviest of all."""
    chosen = {**found, LARGEST: [(heaviest.layer, heaviest.input, heaviest.output)]}
    rng = np.random.default_rng(0)
    neurons, channels = expert_neurons.neurons(of_model.config), of_model.config.sizes["D"]
    effects = []
    for name, entries in chosen.items():
        if not entries:
            continue
        others = _others(rng, entries, neurons, channels)
        layers = {layer for layer, _, _ in entries}
        layer = layers.pop() if len(layers) == 1 else None
        for treatment, whole in (("weight set to zero", False), ("neuron set to zero", True)):
            for control, places in ((False, entries), (True, others)):
                params = editing.without_weights(of_model.params, places, whole)
                what = ("weights", name, treatment)
                changed = float(len({at[:2] for at in places} if whole else places))
                after = of_model.losses(none, min(layer for layer, _, _ in places), params)
                effects.append(_effect(of_model, what, after, changed, control, layer))
    return effects, [name for name, entries in chosen.items() if not entries]


def _others(
    rng: np.random.Generator, entries: list[tuple[int, int, int]], neurons: int, channels: int
) -> list[tuple[int, int, int]]:
    """As many other entries, in as many other rows of the same layers, their columns permuted: rows
    that have none are drawn first."""
    found = []
    for layer in sorted({layer for layer, _, _ in entries}):
        own = [(neuron, channel) for of, neuron, channel in entries if of == layer]
        rows = np.unique([neuron for neuron, _ in own])
        rest = np.setdiff1d(np.arange(neurons), rows)
        drawn = [*rng.permutation(rest), *rng.permutation(rows)][: len(rows)]
        row, column = dict(zip(rows, drawn, strict=True)), rng.permutation(channels)
        found += [(layer, int(row[neuron]), int(column[channel])) for neuron, channel in own]
    return found


def _heaviest(weights: WeightScan) -> WeightOutlier:
    return max(weights.largest, key=lambda weight: weight.ratio)
