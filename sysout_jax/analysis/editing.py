"""Edits as data: one compiled program runs a model under any of the interventions."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from sysout_jax.analysis import mixture
from sysout_jax.analysis.scan import SITES, Scan, over_batches
from sysout_jax.analysis.weights import layer_count, layer_params, projection
from sysout_jax.core.layers import cross_entropy
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, forward


@struct.dataclass
class ActivationEdit:
    """Replace the entries of a site whose magnitude is above each sequence's threshold."""

    layer: Int[Array, ""]
    threshold: Float[Array, "B"]
    replacement: Float[Array, "2 C"]  # at the first position, at the others
    control: Bool[Array, ""]  # replace as many entries at random places instead

    def flags(self, value: Float[Array, "B T c"]) -> Bool[Array, "B T c"]:
        """Which entries are replaced."""
        size = jnp.abs(value.astype(jnp.float32))
        above = size > jnp.broadcast_to(self.threshold[:, None, None], size.shape)
        of_tokens, of_features = jax.random.split(jax.random.key(0))
        rows = jax.random.permutation(of_tokens, value.shape[1])
        columns = jax.random.permutation(of_features, value.shape[2])
        return jnp.where(self.control, above[:, rows][:, :, columns], above)

    def __call__(self, *given: Array) -> Float[Array, "B T c"]:
        """The edit of a tap, given (experts, value, layer) of a mixture, else (value, layer)."""
        *experts, value, layer = given
        first, others = (
            mixture.side_by_side(row, experts[0], value.shape[-1] // experts[0].shape[-1])
            if experts
            else jnp.broadcast_to(row, value.shape)
            for row in self.replacement
        )
        is_first = jnp.arange(value.shape[1])[:, None] == 0
        new = jnp.where(jnp.broadcast_to(is_first, value.shape), first, others)
        flags = self.flags(value) & (layer == self.layer)
        return jnp.where(flags, new.astype(value.dtype), value)


@struct.dataclass
class AttentionEdit:
    """Remove the attention to chosen keys.

    Each row keeps its sum, as if attention were over the other keys only: o^R_i. With `rescaled` it
    is then multiplied by the share S_i that the others had: S_i o^R_i of theory A1.
    """

    removed: Bool[Array, "L B S"]
    rescaled: Bool[Array, ""]
    active: Bool[Array, ""]

    def __call__(self, weights: Float[Array, "B N t S"], layer: Array) -> Array:
        """The edit of a tap."""
        gone = jnp.broadcast_to(self.removed[layer][:, None, None, :], weights.shape)
        kept = jnp.where(gone, 0.0, weights)
        total, rest = (jnp.sum(x, axis=-1, keepdims=True) for x in (weights, kept))
        safe = jnp.where(rest == 0.0, 1.0, rest)
        renormalised = kept * jnp.broadcast_to(total / safe, kept.shape)
        share = rest / jnp.where(total == 0.0, 1.0, total)
        rescaled = renormalised * jnp.broadcast_to(share, kept.shape)
        return jnp.where(self.active, jnp.where(self.rescaled, rescaled, renormalised), weights)


@struct.dataclass
class Edits:
    """All edits of a run; those that are not wanted change nothing."""

    block_out: ActivationEdit
    down_in: ActivationEdit
    attention: AttentionEdit

    def at(self, site: str, edit: ActivationEdit) -> "Edits":
        """These edits with another one at a site."""
        given: Any = {site: edit}
        return replace(self, **given)

    def of(self, index: Int[Array, "b"]) -> "Edits":
        """The edits of some of the sequences."""
        block_out, down_in = (
            replace(edit, threshold=edit.threshold[index])
            for edit in (self.block_out, self.down_in)
        )
        attention = replace(self.attention, removed=self.attention.removed[:, index])
        return Edits(block_out, down_in, attention)


def nothing(config: ModelConfig, found: Scan) -> Edits:
    """The edits that change nothing, for the sequences of a scan."""
    layers, sequences, _, keys = found.received.shape

    def silent(features: int) -> ActivationEdit:
        return ActivationEdit(
            jnp.asarray(0), jnp.full(sequences, jnp.inf), jnp.zeros((2, features)),
            jnp.asarray(False),
        )  # fmt: skip

    return Edits(
        silent(config.sizes["D"]),
        silent(mixture.neurons(config)),
        AttentionEdit(
            jnp.zeros((layers, sequences, keys), bool), jnp.asarray(False), jnp.asarray(False)
        ),
    )


@partial(jax.jit, static_argnums=0)
def sequence_losses(
    config: ModelConfig, params: Params, rows: Int[Array, "B S"], edits: Edits
) -> Float[Array, "B"]:
    """The mean cross-entropy of each sequence's next tokens under edits, in nats."""
    taps: Any = {
        "block_out": edits.block_out, mixture.key(config, "down_in"): edits.down_in,
        "attn_weights": edits.attention,
    }  # fmt: skip
    logits, _ = forward(config, params, rows[:, :-1], edits=taps)
    return jnp.mean(cross_entropy(logits, rows[:, 1:]), axis=1)


def count(
    config: ModelConfig, params: Params, rows: np.ndarray, site: str, edit: ActivationEdit,
    batch: int,
) -> float:  # fmt: skip
    """How many entries of a sequence an edit replaces, mean over sequences."""

    def run(params: Params, rows: Array, index: Array) -> Array:
        some = replace(edit, threshold=edit.threshold[index])
        return _count(config, site, params, rows[:, :-1], some)[None]

    counts = over_batches(run, params, rows, batch, None, np.arange(len(rows)))
    return float(counts.mean())


@partial(jax.jit, static_argnums=(0, 1))
def _count(
    config: ModelConfig, site: str, params: Params, tokens: Array, edit: ActivationEdit
) -> Array:
    def look(*given: Array) -> Array:
        value, layer = given[-2:]
        flags = edit.flags(value) & (layer == edit.layer)
        return jnp.where(flags, jnp.nan, value)

    def replaced(value: Array) -> Array:
        return jnp.sum(jnp.isnan(value), dtype=jnp.int32)

    looked = {mixture.key(config, site): look}
    recorded = forward(config, params, tokens, {site: replaced}, looked)[1]
    return recorded[site][edit.layer]


@dataclass(frozen=True)
class Means:
    """Means of the sites over sequences, and the largest values around the down projections."""

    sites: dict[str, np.ndarray]  # [L, 2, C]: at the first position, over the others
    spikes: dict[str, np.ndarray]  # [L]: max |down_in|, max |down_out|
    places: dict[str, np.ndarray]  # [L]: the neuron and the channel of those

    def at(self, site: str, layer: int) -> np.ndarray:
        """[2, C] of one layer."""
        return self.sites[site][layer]

    def super_weight(self, threshold: float) -> tuple[int, int, int] | None:
        """(layer, neuron, channel) of Yu et al. 2024: the first layer where both sides spike."""
        both = np.minimum(self.spikes["down_in"], self.spikes["down_out"]) > threshold
        if not both.any():
            return None
        layer = int(np.argmax(both))
        return layer, int(self.places["down_in"][layer]), int(self.places["down_out"][layer])


def means(config: ModelConfig, params: Params, tokens: np.ndarray, batch: int) -> Means:
    """Measure what interventions put in the place of outliers."""
    taps = over_batches(partial(_means, config), params, tokens, batch)
    largest = {name: np.argmax(taps[name]["spike"], axis=1)[:, None] for name in SPIKING}

    def of(name: str, key: str) -> np.ndarray:
        return np.take_along_axis(taps[name][key], largest[name], axis=1)[:, 0]

    def mean(total: np.ndarray, count: np.ndarray) -> np.ndarray:
        return np.asarray(total.sum(axis=1) / np.maximum(count.sum(axis=1), 1))  # over sequences

    return Means(
        {name: mean(taps[name]["total"], taps[name]["count"]) for name in SITES},
        {name: of(name, "spike") for name in SPIKING},
        {name: of(name, "place") for name in SPIKING},
    )


SPIKING = ("down_in", "down_out")


@partial(jax.jit, static_argnums=0)
def _means(config: ModelConfig, params: Params, tokens: Array) -> dict[str, Any]:
    def spike(peaks: Array) -> dict[str, Array]:
        return {"spike": jnp.max(peaks), "place": jnp.argmax(peaks)}

    def largest(h: Array) -> dict[str, Array]:
        return spike(jnp.max(jnp.abs(h.astype(jnp.float32)), axis=0))

    def channels(h: Array) -> dict[str, Array]:
        return mixture.totals(h.astype(jnp.float32))

    def of_experts(*given: Array) -> dict[str, Array]:
        *experts, h = given
        if not experts:
            return channels(h) | largest(h)
        h, count = h.astype(jnp.float32), config.experts
        found = mixture.totals(h, experts[0], count)
        return found | spike(mixture.peaks(experts[0], jnp.abs(h), count))

    taps: Any = {
        "block_out": channels, mixture.key(config, "down_in"): of_experts, "down_out": largest,
    }  # fmt: skip
    return mixture.by_tap(config, forward(config, params, tokens, taps)[1])


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
    for layer, index in places:
        name = f"block_{layer}"
        changed[name] = _with_down(changed[name], index, change)
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
