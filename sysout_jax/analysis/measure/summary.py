"""Every measure and detector of core, over a model and a batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sysout_jax.analysis.locate.scan import over_batches
from sysout_jax.core import measures as m
from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.detectors import DETECTORS, Detector, attention_outliers, weight_outliers
from sysout_jax.core.recorded import MEASURES
from sysout_jax.core.variants import kept
from sysout_jax.model.compiling import jit_quickly
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, forward

Sum = tuple[Float[Array, "..."], Float[Array, ""]]  # of what is counted, and its count
LEAST = 1e-6  # attention that is none: where a variant's weights are exactly zero, odds are not
# What `outlier_summary` adds to the measures of core: how it is labelled, and its unit or rule.
SUMMARY_LABELS: Mapping[str, str] = {
    **{measure.name: measure.label for measure in MEASURES},
    "first_token_attention": "attention to first token",
    "sink_effect": "first token in heads' outputs",
    "noop_sink": "no-op queries: attention to first token",
    "noop_mass": "no-op queries: attention to all tokens",
    "noop_sink_best": "no-op queries: attention to first token, best head",
    "sink_gap": "the same head: log odds of the first token",
    "loss_copy": "loss of what is copied",
    "loss_bigram": "loss of what is drawn",
    **{detector.name: detector.label for detector in DETECTORS},
    "weight_ratio@down": "max/mean |W_down|",
    "implicit_scale": "implicit scale S",
    "implicit_scale_sd": "implicit scale S, sd over queries",
    "gate": "explicit factor, mean",
    "gate_noop": "no-op queries: explicit factor",
    "gate_active": "other queries: explicit factor",
}

# Beside `reducers`: attention is computed twice for it.
EFFECT: dict[str, Any] = {"attn_first+attn_mix": m.sink_effect}

# How each is summarised over layers and heads; what is not here by the mean.
OVER: Mapping[str, str] = {
    **{measure.name: measure.over for measure in MEASURES},
    **dict.fromkeys((detector.name for detector in DETECTORS), "max"),
}


def outlier_summary(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    noop: Bool[Array, "B T"] | None = None,
) -> dict[str, Float[Array, ""]]:
    """Measure outliers of all three kinds in one forward pass.

    Each measure is averaged over sequences first and then summarised over layers and heads as its
    entry in `MEASURES` says. Where the variant is unnormalised (`Variant.normalised`), sinks are
    measured on rows brought to one; "first_token_attention" and "noop_..." are the sizes of the
    weights that the mix uses. S is taken with the detector's outlier keys as O.

    Args:
      config: the architecture.
      params: its parameters.
      tokens: [B, T].
      noop: [B, T], True for queries that have nothing to attend to, or None where the data does
        not say.

    Returns:
      name -> scalar; the names are keys of `SUMMARY_LABELS`, those of a gate only where there is
      one, those of no-op queries only with `noop`. `losses_by_query` has those of the loss.
    """
    return summarised(params, outlier_sums(config, params, tokens, noop))


def outlier_sums(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    noop: Bool[Array, "B T"] | None = None,
) -> dict[str, Sum]:
    """What `outlier_summary` takes means of: those of several batches add up to those of all.

    Args:
      config, params, tokens, noop: as there.
    """
    taps = _taps(config, params, tokens, reducers(config) | EFFECT)
    count = jnp.asarray(float(len(tokens)))
    sums = {name: (jnp.sum(x, axis=1), count) for name, x in _by_sequence(taps).items()}
    return sums if noop is None else sums | _of_noops(noop, taps)


def summarised(params: Params, sums: Mapping[str, Sum]) -> dict[str, Float[Array, ""]]:
    """The `outlier_summary` of sequences by their sums, with those of `losses_by_query` if given.

    Args:
      params: of the model.
      sums: of all sequences.
    """
    means = {name: total / jnp.maximum(count, 1.0) for name, (total, count) in sums.items()}
    summary = _over_layers(means) | {"weight_ratio@down": weight_ratio(params, "down")}
    if "noop_sink" in means:
        best = jnp.argmax(means["noop_sink"])
        summary["noop_sink_best"] = means["noop_sink"].ravel()[best]
        summary["sink_gap"] = means["sink_gap"].ravel()[best]
    return summary


def summary_in_batches(
    config: ModelConfig, params: Params, tokens: Int[Array | np.ndarray, "B T"], batch: int = 8
) -> dict[str, float]:
    """The `outlier_summary` of all sequences, a few of them at a time: averaged over all first.

    Args:
      config: the architecture.
      params: its parameters.
      tokens: [B, T].
      batch: sequences that are run together; the summary does not depend on it.
    """
    found = over_batches(partial(_measure, config), params, tokens, batch)
    means = {name: np.mean(values, axis=1) for name, values in found.items()}
    summary = _over_layers(means) | {"weight_ratio@down": _weight_ratio(params, "down")}
    return {name: float(value) for name, value in summary.items()}


@jit_quickly(0)
def _measure(config: ModelConfig, params: Params, tokens: Int[Array, "B T"]) -> dict[str, Array]:
    return _by_sequence(_taps(config, params, tokens, reducers(config) | EFFECT))


def _taps(
    config: ModelConfig, params: Params, tokens: Int[Array, "B T"], wanted: Mapping[str, Any]
) -> dict[str, Any]:
    """What reducers give; they read whole maps, whatever the model was trained with."""
    return forward(config.with_execution(query_block=None), params, tokens, wanted)[1]


def _by_sequence(taps: Mapping[str, Any]) -> dict[str, Float[Array, "L B *rest"]]:
    """What `outlier_summary` says of each sequence, layer and head."""
    found = {measure.name: taps[measure.tap][measure.name] for measure in MEASURES}
    for detector in DETECTORS:
        flagged = flags(detector, taps)
        axes = tuple(range(2, flagged.ndim))
        found[detector.name] = jnp.sum(flagged, axis=axes, dtype=jnp.float32)
    attention = taps["attn_weights"]
    found["first_token_attention"] = jnp.mean(attention["first_key"], axis=-1)
    found["sink_effect"] = taps["attn_first+attn_mix"]
    found["implicit_scale"] = jnp.mean(attention["scale"], axis=-1)
    found["implicit_scale_sd"] = jnp.std(attention["scale"], axis=-1)
    if "attn_gate" in taps:
        found["gate"] = jnp.mean(taps["attn_gate"], axis=-1)
    return found


def _over_layers(means: Mapping[str, Float[Array | np.ndarray, "..."]]) -> dict[str, Array]:
    """The scalars of means over sequences, of each layer and head."""
    reduce: dict[str, Any] = {"max": jnp.max, "min": jnp.min, "mean": jnp.mean}
    return {name: reduce[OVER.get(name, "mean")](x) for name, x in means.items()}


def _of_noops(noop: Bool[Array, "B T"], taps: Mapping[str, Any]) -> dict[str, Sum]:
    """What `outlier_summary` says of queries that have nothing to attend to, by layer and head.

    "sink_gap" is the mean of log(p_0 / sum_{j > 0} p_j), in the end of the head that gives the
    first token most: the logit whose growth theory C2 and F2 state. The first query sees one key
    and has none.
    """
    attention = taps["attn_weights"]
    found = {
        "noop_sink": _at(noop, attention["first_key"]),
        "noop_mass": _at(noop, attention["mass"]),
        "sink_gap": _at(noop & (jnp.arange(noop.shape[1]) > 0)[None], attention["gap"]),
    }
    if "attn_gate" in taps:
        found["gate_noop"] = _at(noop, taps["attn_gate"])
        found["gate_active"] = _at(~noop, taps["attn_gate"])
    return found


def losses_by_query(losses: Float[Array, "B T"], noop: Bool[Array, "B T"]) -> dict[str, Sum]:
    """The loss of predictions that copy, and of the others but the first of each row, as sums.

    Args:
      losses: [B, T], of each position's prediction.
      noop: [B, T], True for queries that have nothing to copy.
    """
    later = jnp.broadcast_to(jnp.arange(losses.shape[1]) > 0, losses.shape)
    return {"loss_copy": _sum_where(~noop, losses), "loss_bigram": _sum_where(noop & later, losses)}


def flags(detector: Detector, taps: Mapping[str, Any]) -> Bool[Array, "L B *rest"]:
    """What a detector flags, from what `reducers` recorded; L is 1 where it sees all layers."""
    found: Array = taps[detector.tap][detector.name]
    if detector.reduce is None:
        return found
    return jax.vmap(lambda layers: detector.fn(layers).flagged, 1)(found)[None]


@kept
def reducers(config: ModelConfig) -> dict[str, Any]:
    """Taps that record all measures, and what the detectors flag, of a variant's tensors."""
    variant = VARIANTS[config.variant]

    def measured(tap: str, value: Array) -> dict[str, Array]:
        found = {measure.name: measure.fn(value) for measure in MEASURES if measure.tap == tap}
        for detector in DETECTORS:
            if detector.tap == tap:
                reduce = detector.reduce
                found[detector.name] = reduce(value) if reduce else detector.fn(value).flagged
        return found

    def attention(raw: Array) -> dict[str, Array]:
        weights = raw if variant.normalised else m.rows_to_one(raw)
        size = jnp.abs(raw)
        return measured("attn_weights", weights) | {
            "first_key": size[:, :, 0],
            "mass": jnp.sum(size, axis=-1),
            "gap": _log_odds(size[:, :, 0], jnp.sum(size[:, :, 1:], axis=-1)),
            "scale": m.implicit_scale(weights, attention_outliers(weights).flagged),
        }

    taps: dict[str, Any] = {"attn_weights": attention}
    read = {each.tap for each in MEASURES} | {each.tap for each in DETECTORS}
    for name in sorted(read - {"attn_weights"}):
        taps[name] = partial(_in_float32, partial(measured, name))
    if variant.gated:
        # [T, N, 1 or H] -> [N, T]
        taps["attn_gate"] = lambda g: jnp.mean(g.astype(jnp.float32), axis=-1).T
    return taps


def _in_float32(fn: Callable[[Array], Any], x: Array) -> Any:
    return fn(x.astype(jnp.float32))


def _at(queries: Bool[Array, "B T"], x: Float[Array, "L B N T"]) -> Sum:
    """The sum over the chosen queries, of each layer and head."""
    sums, counts = jax.vmap(jax.vmap(partial(_sum_where, queries)))(jnp.swapaxes(x, 1, 2))
    return sums, counts[0, 0]


def _sum_where(chosen: Bool[Array, "*n"], x: Float[Array, "*n"]) -> Sum:
    """The sum of what is chosen, and how many there are."""
    return jnp.sum(jnp.where(chosen, x, 0.0)), jnp.sum(chosen, dtype=x.dtype)


def _log_odds(first: Array, rest: Array) -> Array:
    """log(first / rest), either taken as `LEAST` where it is less."""
    return jnp.log(jnp.maximum(first, LEAST)) - jnp.log(jnp.maximum(rest, LEAST))


def weight_ratio(params: Params, name: str) -> Float[Array, ""]:
    """The largest max|W| / mean|W| over the layers' matrices called `name` (An et al. 2025)."""
    found = [
        jnp.max(weight_outliers(matrix.reshape(len(matrix), -1)).score)
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        if path[-1].key == name
        for matrix in (leaf if path[0].key == "blocks" else [leaf])  # scanned layers are stacked
    ]
    return jnp.max(jnp.stack(found))


_weight_ratio = jax.jit(weight_ratio, static_argnums=1)


@dataclass(frozen=True)
class Snapshot:
    """One sequence as figures show it."""

    tokens: np.ndarray  # [T] ids
    attention: np.ndarray  # [T, S], mean over heads of the layer with the strongest first key
    attention_layer: int
    magnitude: np.ndarray  # [T, D], |block_out| of the layer with the largest max/median
    magnitude_layer: int


def snapshot(config: ModelConfig, params: Params, tokens: Int[Array, "T"]) -> Snapshot:
    """The attention map and the block output of one sequence, at their most outlying layers.

    Args:
      config: the architecture.
      params: its parameters.
      tokens: [T].
    """
    variant = VARIANTS[config.variant]

    def reduce_weights(weights: Array) -> tuple[Array, Array]:
        shown = weights if variant.normalised else m.rows_to_one(weights)
        return jnp.mean(shown, axis=0), jnp.max(m.sink_strength(shown))

    def reduce_state(h: Array) -> tuple[Array, Array]:
        h = h.astype(jnp.float32)
        return jnp.abs(h), m.top1_over_median(h)

    def run(params: Params, tokens: Array) -> dict[str, Any]:
        taps = {"attn_weights": reduce_weights, "block_out": reduce_state}
        return _taps(config, params, tokens[None], taps)

    recorded = jax.device_get(jax.jit(run)(params, tokens))
    maps, sinks = recorded["attn_weights"]
    states, peaks = recorded["block_out"]
    at, peak = int(np.argmax(sinks[:, 0])), int(np.argmax(peaks[:, 0]))
    return Snapshot(np.asarray(tokens), maps[at, 0], at, states[peak, 0], peak)
