"""What a model loses without its outliers: activations, attention and weights, one at a time."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, Int

from sysout_jax.analysis.intervene import editing
from sysout_jax.analysis.intervene.editing import Edits, activation_edit, attention_edit
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
from sysout_jax.analysis.locate.weights import WeightOutlier, WeightScan, weight_scan
from sysout_jax.analysis.statistics import Interval, bootstrap_interval
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params
from sysout_jax.model.taps import Edit

SPIKE = 50.0  # Yu et al. 2024 (arXiv:2411.07191): of down_in and down_out at a super weight
LARGEST = "largest"  # no threshold: the largest value, flagged by a detector or not


@dataclass(frozen=True)
class Effect:
    """One intervention: what it changes, and what that costs."""

    kind: str  # activations, attention, weights
    detector: str  # whose outliers; "largest" takes the largest value whatever its size
    treatment: str
    control: bool  # the same treatment of as many others, drawn at random
    layer: int | None  # None: every layer (attention), or several (weights)
    edited: float  # entries, keys, weights or neurons: mean over sequences, summed over layers
    loss: float  # nats per token
    perplexity: float
    change: Interval  # of the loss, paired by sequence


@dataclass(frozen=True)
class Interventions:
    """All interventions on one model and text."""

    loss: Interval  # before, nats per token, over sequences
    perplexity: float
    effects: tuple[Effect, ...]
    nothing_found: tuple[str, ...]  # detectors that flag nothing in these sequences


@dataclass(frozen=True)
class _Runner:
    """Losses of sequences under edits; one compiled program for all of them."""

    config: ModelConfig
    params: Params
    rows: np.ndarray  # [B, T + 1]
    batch: int
    before: np.ndarray  # [B]

    def losses(self, edits: Edits, params: Params | None = None) -> np.ndarray:
        return losses(self.config, params or self.params, self.rows, edits, self.batch)

    def counts(self, site: str, top: np.ndarray, edit: Edit) -> np.ndarray:
        """[B]: how many entries an edit replaces; `top` [B, n] are the largest of its layer."""
        above = (top > np.asarray(edit.arrays[0])[:, None]).sum(axis=1)
        if above.max() < top.shape[1]:
            return above
        return editing.counts(self.config, self.params, self.rows, site, edit, self.batch)

    def effect(
        self, what: tuple[str, str, str], after: np.ndarray, edited: float, control: bool = False,
        layer: int | None = None,
    ) -> Effect:  # fmt: skip
        loss = float(after.mean())
        change = bootstrap_interval(after - self.before)
        return Effect(*what, control, layer, edited, loss, float(np.exp(loss)), change)


def interventions(
    config: ModelConfig,
    params: Params,
    rows: Int[Array | np.ndarray, "B S"],
    thresholds: Thresholds | None = None,
    found: Scan | None = None,
    weights: WeightScan | None = None,
    batch: int = 8,
    progress: Progress | None = None,
) -> Interventions:
    """Take outliers away, kind by kind and detector by detector, and measure the loss.

    Activations are replaced in the first layer in which their detector flags most sequences, by
    zero or by the mean of their channel over sequences and positions (the first position apart);
    attention to outlier keys is removed in every layer; weights are set to zero. Each has a control
    that treats as many entries, keys or weights drawn at random.

    Args:
      config: the architecture.
      params: its parameters.
      rows: [B, S], S = T + 1: inputs and next tokens as a corpus gives them.
      thresholds: of the detectors; None for those of their papers.
      found: the scan of rows[:, :-1], if there is one.
      weights: the scan of the parameters, if there is one.
      batch: sequences that are run together.
      progress: called with the steps done and the steps in all.
    """
    rows = np.asarray(rows)
    found = found or scan(config, params, rows[:, :-1], thresholds, batch)
    config = for_length(config, rows.shape[1] - 1)
    none = editing.nothing(config, found)
    steps = progress or (lambda done, total: None)
    before = losses(config, params, rows, none, batch)
    steps(1, 4)
    runner = _Runner(config, params, rows, batch, before)
    means = editing.means(config, params, rows[:, :-1], batch)
    activations, silent = _activations(runner, found, none, means)
    steps(2, 4)
    attention, silent_attention = _attention(runner, found, none)
    steps(3, 4)
    weights = weights or weight_scan(params, found.thresholds.weight_ratio)
    of_weights, silent_weights = _weights(runner, weights, none, means.super_weight(SPIKE))
    steps(4, 4)
    return Interventions(
        bootstrap_interval(before),
        float(np.exp(before.mean())),
        (*activations, *attention, *of_weights),
        (*silent, *silent_attention, *silent_weights),
    )


def losses(
    config: ModelConfig, params: Params, rows: np.ndarray, edits: Edits, batch: int
) -> np.ndarray:
    """[B]: the mean loss of each sequence under edits, in nats per token."""

    def run(params: Params, rows: Array, index: Array) -> Array:
        some = {name: edit.of(index) for name, edit in edits.items()}
        return editing.sequence_losses(config, params, rows, some)[None]

    return over_batches(run, params, rows, batch, None, np.arange(len(rows)))[0]


def _activations(
    runner: _Runner, found: Scan, none: Edits, means: editing.Means
) -> tuple[list[Effect], list[str]]:
    effects, silent = [], []
    after: dict[tuple[Any, ...], np.ndarray] = {}
    chosen = [(d.name, d.site, d.threshold(found)) for d in DETECTORS]
    second = found.block_out.top[..., 1]  # above it is the largest entry alone
    chosen.append((LARGEST, "block_out", second))
    for name, site, threshold in chosen:
        top = found.site(site).top[..., 0]
        flags = (top > threshold).sum(axis=1)  # [L], sequences
        if not flags.any():
            silent.append(name)
            continue
        ratio = top.mean(axis=1) / found.site(site).mean.mean(axis=1)
        layer = int(np.argmax(ratio if name == LARGEST else flags))
        for treatment in ("zero", "mean"):
            replacement = means.at(site, layer) * (treatment == "mean")
            for control in (False, True):
                edit = activation_edit(layer, threshold[layer], replacement, control)
                counts = runner.counts(site, found.site(site).top[layer], edit)
                # As many of the largest entries are the same entries, whatever flags them.
                same = (site, layer, treatment, control, counts.tobytes())
                if same not in after:
                    edits = none | {expert_neurons.key(runner.config, site): edit}
                    after[same] = runner.losses(edits)
                what, count = ("activations", name, f"set to {treatment}"), float(counts.mean())
                effects.append(runner.effect(what, after[same], count, control, layer))
    return effects, silent


def _attention(runner: _Runner, found: Scan, none: Edits) -> tuple[list[Effect], list[str]]:
    effects: list[Effect] = []
    flagged = found.attention_flagged()
    score = found.attention_score()
    strongest = score == score.max(axis=-1, keepdims=True)
    silent = [] if flagged.any() else ["an_attention"]
    rng = np.random.default_rng(0)
    for name, removed in (("an_attention", flagged), (LARGEST, strongest)):
        if not removed.any():
            continue
        shuffled = rng.permuted(removed, axis=-1)
        for treatment, rescaled, control in (
            ("removed, rows renormalised", False, False),
            ("removed, rescaled by S", True, False),
            ("removed, rows renormalised", False, True),
        ):
            keys = shuffled if control else removed
            edits = none | {"attn_weights": attention_edit(keys, rescaled)}
            count = float(keys.sum(axis=(0, 2)).mean())
            what = ("attention", name, treatment)
            effects.append(runner.effect(what, runner.losses(edits), count, control))
    return effects, silent


def _weights(
    runner: _Runner, weights: WeightScan, none: Edits, super_weight: tuple[int, int, int] | None
) -> tuple[list[Effect], list[str]]:
    outliers = [(w.layer, w.input, w.output) for w in weights.outliers if w.matrix == "down"]
    heaviest: WeightOutlier = max(weights.largest, key=lambda w: w.ratio)
    chosen = {
        "an_weight": outliers,
        "super_weight": [super_weight] if super_weight else [],
        LARGEST: [(heaviest.layer, heaviest.input, heaviest.output)],
    }
    rng = np.random.default_rng(0)
    neurons, channels = expert_neurons.neurons(runner.config), runner.config.sizes["D"]
    effects = []
    for name, entries in chosen.items():
        if not entries:
            continue
        others = [
            (layer, int(rng.integers(neurons)), int(rng.integers(channels)))
            for layer, _, _ in entries
        ]
        layers = {layer for layer, _, _ in entries}
        layer = layers.pop() if len(layers) == 1 else None
        for treatment, whole in (("weight set to zero", False), ("neuron set to zero", True)):
            for control, places in ((False, entries), (True, others)):
                params = editing.without_weights(runner.params, places, whole)
                what, changed = ("weights", name, treatment), float(len(entries))
                after = runner.losses(none, params)
                effects.append(runner.effect(what, after, changed, control, layer))
    return effects, [name for name, entries in chosen.items() if not entries]
