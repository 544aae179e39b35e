"""One optimiser step of one seed, many steps in one call, and many seeds at once."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from sysout_jax.core.layers import cross_entropy
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, forward, init
from sysout_jax.model.taps import Edit


class TrainState(NamedTuple):
    """The state of one seed; with a leading seed axis on every leaf, of several."""

    params: Params
    opt: Any


class StepRecord(NamedTuple):
    """What a step reports: the loss of its batch in nats per token, the gradient's global norm."""

    loss: Float[Array, "*steps"]
    grad_norm: Float[Array, "*steps"]


Step = Callable[[TrainState, Array], tuple[TrainState, StepRecord]]


def token_loss(
    config: ModelConfig,
    params: Params,
    batch: Int[Array, "B S"],
    edits: Mapping[str, Edit] | None = None,
) -> Float[Array, "B S-1"]:
    """The cross-entropy of each next token, in nats: inputs batch[:, :-1], targets batch[:, 1:]."""
    logits, _ = forward(config, params, batch[:, :-1], edits=edits)
    return cross_entropy(logits, batch[:, 1:])


def start(config: ModelConfig, optimizer: optax.GradientTransformation, key: Array) -> TrainState:
    """The state before the first step, from a jax.random.key."""
    params = init(config, key)
    return TrainState(params, optimizer.init(params))


def make_step(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    accumulate: int = 1,
    average: Callable[[Any], Any] | None = None,
    gather: Callable[[Params], Params] | None = None,
    edits: Mapping[str, Edit] | None = None,
) -> Step:
    """The step of one seed: (state, batch [B, T+1]) -> (state, record).

    With `accumulate` = A the batch is cut into A parts whose gradients are averaged; since parts
    are of equal size, the result is that of the whole batch.

    Args:
      config: the architecture.
      optimizer: of `make_optimizer`.
      accumulate: A.
      average: of loss and gradient over devices that each see a part of the batch, if they do.
      gather: what a mesh does with parameters before the decoder uses them.
      edits: of the decoder; on a mesh, they say where activations live.
    """

    def loss_fn(params: Params, batch: Array) -> Array:
        params = params if gather is None else gather(params)
        return jnp.mean(token_loss(config, params, batch, edits))

    def gradient(params: Params, batch: Array) -> tuple[Array, Params]:
        if accumulate == 1:
            return jax.value_and_grad(loss_fn)(params, batch)
        parts = batch.reshape(accumulate, -1, batch.shape[1])

        def add(total: Any, part: Array) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, jax.value_and_grad(loss_fn)(params, part)), None

        zero = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        total, _ = jax.lax.scan(add, zero, parts)
        return jax.tree.map(lambda x: x / accumulate, total)

    def step(state: TrainState, batch: Array) -> tuple[TrainState, StepRecord]:
        loss, grads = gradient(state.params, batch)
        if average is not None:
            loss, grads = average((loss, grads))
        # optax raises floats to integer step counts, which strict promotion forbids.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt = optimizer.update(grads, state.opt, state.params)
        params = optax.apply_updates(state.params, updates)
        return TrainState(params, opt), StepRecord(loss, optax.tree.norm(grads))

    return step


def many(step: Step) -> Step:
    """Several steps of several seeds: (state [seeds, ...], batches [steps, seeds, B, T+1]) ->
    (state, record [steps, seeds])."""

    def steps(state: TrainState, batches: Array) -> tuple[TrainState, StepRecord]:
        return jax.lax.scan(jax.vmap(step), state, batches)

    return steps


def make_steps(step: Step) -> Step:
    """`many` in one compiled call on one device, the state donated."""
    return jax.jit(many(step), donate_argnums=0)
