"""Edits as data: one compiled program runs a model under any of the interventions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sysout_jax.analysis.intervene.passes import Passes
from sysout_jax.analysis.locate import expert_neurons
from sysout_jax.analysis.locate.scan import SITES, Scan
from sysout_jax.analysis.locate.weights import layer_count, layer_params, projection
from sysout_jax.core.variants import kept
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params
from sysout_jax.model.taps import Edit, Reducer


def activation_edit(
    layer: int,
    threshold: Float[np.ndarray | Array, "B"],
    replacement: Float[np.ndarray | Array, "2 C"],
    control: bool = False,
) -> Edit:
    """Replace the entries of a site whose magnitude is above each sequence's threshold.

    Args:
      layer: of the site.
      threshold: of each sequence.
      replacement: at the first position, at the others.
      control: replace as many entries instead, at places drawn for each sequence.
    """
    arrays = threshold, np.arange(len(threshold)), replacement, jnp.asarray(control)
    return Edit(_replaced, *arrays, layers=layer, in_axes=(0, 0, None, None))


def flags(
    value: Float[Array, "T c"], threshold: Float[Array, ""], sequence: Int[Array, ""],
    control: Bool[Array, ""],
) -> Bool[Array, "T c"]:  # fmt: skip
    """Which entries an `activation_edit` replaces."""
    above = jnp.abs(value.astype(jnp.float32)) > threshold
    of_tokens, of_features = jax.random.split(jax.random.fold_in(jax.random.key(0), sequence))
    rows = jax.random.permutation(of_tokens, value.shape[0])
    columns = jax.random.permutation(of_features, value.shape[1])
    return jnp.where(control, above[rows][:, columns], above)


def _replaced(*given: Array) -> Float[Array, "T c"]:
    """Given the experts of a mixture in front, and the value, the layer and the arrays."""
    *experts, value, _, threshold, sequence, replacement, control = given
    first, others = (
        expert_neurons.side_by_side(row, experts[0], value.shape[-1] // experts[0].shape[-1])
        if experts
        else jnp.broadcast_to(row, value.shape)
        for row in replacement
    )
    is_first = jnp.arange(value.shape[0])[:, None] == 0
    new = jnp.where(jnp.broadcast_to(is_first, value.shape), first, others)
    return jnp.where(flags(value, threshold, sequence, control), new.astype(value.dtype), value)


def attention_edit(
    removed: Bool[np.ndarray | Array, "L B S"], rescaled: bool, active: bool = True
) -> Edit:
    """Remove the attention to chosen keys.

    Each row keeps its sum, as if attention were over the other keys only: o^R_i. With `rescaled` it
    is then multiplied by the share S_i that the others had: S_i o^R_i of theory A1. A query that
    sees no other key keeps what it sees.
    """
    arrays = removed, jnp.asarray(rescaled), jnp.asarray(active)
    return Edit(_without_keys, *arrays, in_axes=(1, None, None))


def _without_keys(
    weights: Float[Array, "N t S"], layer: Int[Array, ""], removed: Bool[Array, "L S"],
    rescaled: Bool[Array, ""], active: Bool[Array, ""],
) -> Float[Array, "N t S"]:  # fmt: skip
    gone = jnp.broadcast_to(removed[layer][None, None, :], weights.shape)
    kept = jnp.where(gone, 0.0, weights)
    total, rest = (jnp.sum(x, axis=-1, keepdims=True) for x in (weights, kept))
    alone = rest == 0.0
    renormalised = kept * jnp.broadcast_to(total / jnp.where(alone, 1.0, rest), kept.shape)
    changed = jnp.where(alone, weights, jnp.where(rescaled, kept, renormalised))
    return jnp.where(active, changed, weights)


Edits = dict[str, Edit]  # one of each kind; those that are not wanted change nothing


def nothing(config: ModelConfig, found: Scan) -> Edits:
    """The edits that change nothing, for the sequences of a scan."""
    layers, sequences, _, keys = found.received.shape

    def silent(features: int) -> Edit:
        return activation_edit(0, np.full(sequences, np.inf), np.zeros((2, features)))

    return {
        "block_out": silent(config.sizes["D"]),
        expert_neurons.key(config, "down_in"): silent(expert_neurons.neurons(config)),
        "attn_weights": attention_edit(jnp.zeros((layers, sequences, keys), bool), False, False),
    }


def counts(passes: Passes, site: str, edit: Edit) -> Int[np.ndarray, "B"]:
    """How many entries of each sequence an `activation_edit` replaces."""
    threshold, sequence, _, control = edit.arrays
    (layer,) = np.asarray(edit.layers).tolist()
    marking = Edit(_marked, threshold, sequence, control, layers=layer, in_axes=(0, 0, None))
    edits = {expert_neurons.key(passes.config, site): marking}
    found: np.ndarray = passes.within(layer, {site: _replacements}, edits)[site]
    return found


def _replacements(value: Array) -> Int[Array, ""]:
    return jnp.sum(jnp.isnan(value), dtype=jnp.int32)


def _marked(*given: Array) -> Array:
    """NaN where an `activation_edit` would replace the value."""
    *_, value, _, threshold, sequence, control = given
    return jnp.where(flags(value, threshold, sequence, control), jnp.nan, value)


@dataclass(frozen=True)
class Means:
    """Means of the sites over sequences, and the largest values around the down projections."""

    sites: dict[str, np.ndarray]  # [L, 2, C]: at the first position, over the others
    spikes: dict[str, np.ndarray]  # [L, B]: max |down_in|, max |mlp_out|
    places: dict[str, np.ndarray]  # [L, B]: the neuron and the channel of those

    def at(self, site: str, layer: int) -> np.ndarray:
        """[2, C] of one layer."""
        return self.sites[site][layer]

    def super_weight(self, threshold: float) -> tuple[int, int, int] | None:
        """(layer, neuron, channel) of Yu et al. 2024: the first layer where both sides of the down
        projection spike in one sequence, that in which the smaller of the two is largest."""
        both = np.min([self.spikes[name] for name in SPIKING], axis=0)
        if not (both > threshold).any():
            return None
        layer = int(np.argmax((both > threshold).any(axis=1)))
        neuron, channel = (self.places[name][layer, np.argmax(both[layer])] for name in SPIKING)
        return layer, int(neuron), int(channel)


def as_means(config: ModelConfig, records: Mapping[str, Any]) -> Means:
    """What interventions put in the place of outliers, of what the `averages` recorded."""
    taps = expert_neurons.by_tap(config, records)

    def mean(total: np.ndarray, count: np.ndarray) -> np.ndarray:
        return np.asarray(total.sum(axis=1) / np.maximum(count.sum(axis=1), 1))  # over sequences

    return Means(
        {name: mean(taps[name]["total"], taps[name]["count"]) for name in SITES},
        {name: taps[name]["spike"] for name in SPIKING},
        {name: taps[name]["place"] for name in SPIKING},
    )


SPIKING = ("down_in", "mlp_out")  # the latter before a norm of the output


@kept
def averages(config: ModelConfig) -> Mapping[str, Reducer]:
    """The taps of `as_means`."""

    def spike(peaks: Array) -> dict[str, Array]:
        return {"spike": jnp.max(peaks), "place": jnp.argmax(peaks)}

    def largest(h: Array) -> dict[str, Array]:
        return spike(jnp.max(jnp.abs(h.astype(jnp.float32)), axis=0))

    def channels(h: Array) -> dict[str, Array]:
        return expert_neurons.totals(h.astype(jnp.float32))

    def of_experts(*given: Array) -> dict[str, Array]:
        *experts, h = given
        if not experts:
            return channels(h) | largest(h)
        h, count = h.astype(jnp.float32), config.experts
        found = expert_neurons.totals(h, experts[0], count)
        return found | spike(expert_neurons.peaks(experts[0], jnp.abs(h), count))

    return {
        "block_out": channels,
        expert_neurons.key(config, "down_in"): of_experts,
        "mlp_out": largest,
    }


def without_weights(
    params: Params, places: list[tuple[int, int, int]], whole_neuron: bool
) -> Params:
    """The parameters with entries (layer, neuron, channel) of down, or their neurons, at zero."""
    at = [(layer, neuron if whole_neuron else (neuron, c)) for layer, neuron, c in places]
    return _with_downs(params, at, lambda weights: weights.set(0.0))


def changed_neuron(params: Params, layer: int, neuron: int, factor: float) -> Params:
    """The parameters with a row of a layer's W_down multiplied by a factor."""
    return _with_downs(params, [(layer, neuron)], lambda weights: weights.multiply(factor))


def _with_downs(
    params: Params, places: list[tuple[int, Any]], change: Callable[[Any], Array]
) -> Params:
    """The parameters with W_down changed at each (layer, index): `change` has its `.at[index]`."""
    if "blocks" in params:
        at = np.array([(layer, *np.atleast_1d(index)) for layer, index in places])
        return {**params, "blocks": _with_down(params["blocks"], tuple(at.T), change, layers=1)}
    changed = dict(params)
    for layer in {layer for layer, _ in places}:
        at = np.array([np.atleast_1d(index) for of, index in places if of == layer])
        name = f"block_{layer}"
        changed[name] = _with_down(changed[name], tuple(at.T), change)
    return changed


def _with_down(
    block: Params, index: Any, change: Callable[[Any], Array], layers: int = 0
) -> Params:
    down = block["mlp"]["down"]  # experts are stacked by neuron
    matrix = down.reshape(*down.shape[:layers], -1, down.shape[-1])
    changed = change(matrix.at[index]).reshape(down.shape)
    return {**block, "mlp": {**block["mlp"], "down": changed}}


def down_projections(params: Params) -> list[np.ndarray]:
    """W_down of every layer as a matrix [neurons, channels]."""
    blocks = (layer_params(params, layer) for layer in range(layer_count(params)))
    return [np.asarray(projection(block, "mlp", "down")) for block in blocks]
