"""Experts told apart: whose neuron a value of a mixture is.

A mixture has E F neurons: neuron f of expert e is number e F + f, the row of its weights when the
experts' matrices are stacked. Taps show the neurons of the experts that a token goes to, side by
side, and the tap `experts` says which those are; a model without experts is one expert that all
tokens go to.
Axes: T position, E experts, J experts per token, F neurons of an expert, C = E F.
"""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sysout_jax.model.config import ModelConfig
from sysout_jax.model.taps import Reducer

NEURON_TAPS = ("gate_out", "up_out", "act_out", "down_in")
EXPERTS = "experts"


def neurons(config: ModelConfig) -> int:
    """C, the neurons of a layer: those of all experts."""
    return max(config.experts, 1) * config.sizes["F"]


def place(config: ModelConfig, neuron: int) -> tuple[int, int]:
    """(expert, neuron of that expert); the expert is 0 where there is one MLP for all tokens."""
    return divmod(neuron, config.sizes["F"])


def key(config: ModelConfig, name: str) -> str:
    """The name of a tap, joined to that of the experts where it is one of a mixture's neurons."""
    return f"{EXPERTS}+{name}" if config.experts and name in NEURON_TAPS else name


def by_tap(config: ModelConfig, records: Mapping[str, Any]) -> dict[str, Any]:
    """Records with the names of taps for those that `key` gave."""
    names = {key(config, name): name for name in NEURON_TAPS}
    return {names.get(name, name): value for name, value in records.items()}


def told_apart(config: ModelConfig, taps: Mapping[str, Reducer | None]) -> dict[str, Any]:
    """Taps whose reducers see the neurons of every expert: zero where a token does not go to it."""

    def over(reducer: Reducer) -> Reducer:
        return lambda experts, h: reducer(spread(experts, h, config.experts))

    return {
        key(config, name): over(reducer) if reducer and key(config, name) != name else reducer
        for name, reducer in taps.items()
    }


def spread(experts: Int[Array, "T J"], h: Float[Array, "T JF"], count: int) -> Float[Array, "T C"]:
    """The neurons of `count` experts, from those that each token goes to; zero elsewhere."""
    tokens, chosen = experts.shape
    rows = jnp.broadcast_to(jnp.arange(tokens)[:, None], experts.shape)
    every = jnp.zeros((tokens, count, h.shape[1] // chosen), h.dtype)
    return every.at[rows, experts].set(h.reshape(tokens, chosen, -1)).reshape(tokens, -1)


def peaks(experts: Int[Array, "T J"], size: Float[Array, "T JF"], count: int) -> Float[Array, "C"]:
    """The largest magnitude of each neuron over the tokens that go to its expert; 0 if none do."""
    own = size.reshape(*experts.shape, -1)
    return jnp.zeros((count, own.shape[-1]), size.dtype).at[experts].max(own).reshape(-1)


def totals(
    h: Float[Array, "T JF"], experts: Int[Array, "T J"] | None = None, count: int = 1
) -> dict[str, Array]:
    """Sums over tokens, the first apart, and over how many: "total" and "count", both [2, C].

    Args:
      h: [T, J F], or [T, C] of channels or of the one MLP of all tokens.
      experts: that each token goes to; None where there is no choice.
      count: E.
    """
    if experts is None:
        experts = jnp.zeros((len(h), 1), jnp.int32)
    own = h.reshape(*experts.shape, -1)
    group = jnp.broadcast_to((jnp.arange(len(h)) > 0).astype(jnp.int32)[:, None], experts.shape)
    empty = jnp.zeros((2, count, own.shape[-1]), h.dtype)
    summed = {"total": empty.at[group, experts].add(own), "count": empty.at[group, experts].add(1)}
    return {name: of.reshape(2, -1) for name, of in summed.items()}


def neuron_at(experts: Int[Array, "*T J"], slot: Int[Array, "*T"], width: int) -> Int[Array, "*T"]:
    """The number of the neuron that a token has at a place among those side by side.

    Args:
      experts: of each token.
      slot: a place in J F.
      width: F.
    """
    chosen = jnp.take_along_axis(experts, (slot // width)[..., None], axis=-1)[..., 0]
    return chosen * width + slot % width


def side_by_side(row: Float[Array, "C"], experts: Int[Array, "*B J"], width: int) -> Array:
    """[*B, J F]: numbers of the neurons as taps would show them, those of a token's experts."""
    return row.reshape(-1, width)[experts].reshape(*experts.shape[:-1], -1)
