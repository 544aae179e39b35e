"""The loss of next tokens from final states, with the logits of some positions at a time.

Logits are the largest array of a model with a large vocabulary: of float32 [B, T, V] the plain
loss holds the logits, their exponentials and their gradient. Here positions are cut into blocks,
and the gradient of a block is computed beside its loss, while its logits are there: nothing is
computed twice, and only the gradients of the head and of the states stay.

Axes: B batch, T position, D width, V vocabulary; n blocks of t positions each.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sysout_jax.core.layers import cross_entropy
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, head_names, logits_of

LOGITS = 2**26  # at a time on one device, where nobody says: 256 MiB in float32
NO_TARGET = -1  # at positions that only fill the last block


def block_of(config: ModelConfig, sequences: int, length: int) -> int:
    """How many positions of every sequence have their logits at a time.

    `Execution.loss_block`; where that is None, the largest power of two t with B t V <= `LOGITS`,
    at least 1. Blocks are then made equal: ceil(T / ceil(T / t)).

    Args:
      config: the architecture.
      sequences: B, on one device.
      length: T.
    """
    most = config.execution.loss_block
    if most is None:
        most = 2 ** max(0, (LOGITS // (sequences * config.sizes["V"])).bit_length() - 1)
    blocks = -(-length // most)
    return -(-length // blocks)


def token_losses(
    config: ModelConfig,
    params: Params,
    states: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    devices: int = 1,
) -> Float[Array, "B T"]:
    """The cross-entropy of each target, -log p(target), in nats.

    A gradient computes the logits of each block again; of the mean, `mean_loss` does not.

    Args:
      config: the architecture.
      params: those of `head_names` are used.
      states: of `final_states`.
      targets: token ids.
      devices: that divide the sequences among them.

    Returns:
      [B, T], in float32 or wider.
    """
    length = targets.shape[1]
    block = block_of(config, -(-len(targets) // devices), length)
    if block == length:
        return cross_entropy(logits_of(config, params, states), targets)

    def of_block(cut: tuple[Array, Array]) -> Array:
        return cross_entropy(logits_of(config, params, cut[0]), cut[1])

    losses = jax.lax.map(jax.checkpoint(of_block), _cut(states, targets, block))
    return jnp.moveaxis(losses, 0, 1).reshape(len(targets), -1)[:, :length]


def mean_loss(
    config: ModelConfig,
    params: Params,
    states: Float[Array, "B T D"],
    targets: Int[Array, "B T"],
    devices: int = 1,
) -> Float[Array, ""]:
    """The mean of `token_losses`; of a gradient, every logit is computed once.

    Arguments as of `token_losses`. In blocks it has a gradient of reverse mode and first order.
    """
    sequences, length = targets.shape
    block = block_of(config, sequences // devices, length)
    if block == length:
        return jnp.mean(token_losses(config, params, states, targets, devices))
    head = {name: params[name] for name in head_names(config)}

    def of_device(states: Array, targets: Array) -> Array:
        return _summed(config, head, *_cut(states, targets, block))

    # Each device sums over its own sequences, and what they found is added once, after all blocks.
    apart = (x.reshape(devices, -1, *x.shape[1:]) for x in (states, targets))
    return jnp.sum(jax.vmap(of_device)(*apart)) / targets.size


def _cut(states: Array, targets: Array, block: int) -> tuple[Array, Array]:
    """[n, B, t, D] and [n, B, t]: blocks of positions, the last one filled up."""
    missing = -targets.shape[1] % block
    states = jnp.pad(states, ((0, 0), (0, missing), (0, 0)))
    targets = targets.astype(jnp.int32)  # unsigned ones have no NO_TARGET
    targets = jnp.pad(targets, ((0, 0), (0, missing)), constant_values=NO_TARGET)

    def blocks(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(len(x), -1, block, *x.shape[2:]), 1, 0)

    return blocks(states), blocks(targets)


def _of_block(config: ModelConfig, head: Params, states: Array, targets: Array) -> Array:
    losses = cross_entropy(logits_of(config, head, states), targets)
    return jnp.sum(jnp.where(targets == NO_TARGET, 0.0, losses))


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _summed(config: ModelConfig, head: Params, states: Array, targets: Array) -> Array:
    """The sum of the losses of all blocks."""

    def add(total: Array, block: tuple[Array, Array]) -> tuple[Array, None]:
        return total + _of_block(config, head, *block), None

    return jax.lax.scan(add, jnp.zeros(()), (states, targets))[0]


def _summed_forward(
    config: ModelConfig, head: Params, states: Array, targets: Array
) -> tuple[Array, Any]:
    """The sum, and its gradient by the head, which is added up in float32, and by the states."""
    gradient = jax.value_and_grad(partial(_of_block, config), argnums=(0, 1))

    def add(total: Any, block: tuple[Array, Array]) -> tuple[Any, Array]:
        loss, (of_head, of_states) = gradient(head, *block)
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, (loss, of_head)), of_states

    zero = (jnp.zeros(()), jax.tree.map(lambda x: jnp.zeros(x.shape), head))
    (loss, of_head), of_states = jax.lax.scan(add, zero, (states, targets))
    # The dtypes of the head, as arrays without entries: residuals are arrays.
    dtypes = jax.tree.map(lambda x: jnp.zeros((0,), x.dtype), head)
    return loss, (of_head, of_states, dtypes)


def _summed_backward(
    config: ModelConfig, found: tuple[Params, Array, Params], above: Array
) -> tuple[Params, Array, None]:
    of_head, of_states, dtypes = found

    def scaled(x: Array, like: Array) -> Array:
        return (x.astype(above.dtype) * above).astype(like.dtype)

    return jax.tree.map(scaled, of_head, dtypes), scaled(of_states, of_states), None


_summed.defvjp(_summed_forward, _summed_backward)
