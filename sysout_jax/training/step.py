"""One optimiser step of one seed, many steps in one call, and many seeds at once."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, final_states, init, param_axes
from sysout_jax.model.loss import token_losses
from sysout_jax.model.taps import Edits
from sysout_jax.training.objective import NEXT_TOKENS, Objective, batch_loss
from sysout_jax.training.optimizer import is_matrix


class TrainState(NamedTuple):
    """The state of one seed; with a leading seed axis on every leaf, of several."""

    params: Params
    opt: Any


class StepRecord(NamedTuple):
    """What a step reports: the loss of its batch in nats per token, the gradient's global norm."""

    loss: Float[Array, "*steps"]
    grad_norm: Float[Array, "*steps"]


Step = Callable[[TrainState, Array], tuple[TrainState, StepRecord]]
CACHED = 2**22  # numbers of the largest activation that a CPU's caches are expected to hold


def token_loss(
    config: ModelConfig, params: Params, batch: Int[Array, "B S"], devices: int = 1
) -> Float[Array, "B S-1"]:
    """The cross-entropy of each next token, in nats: inputs batch[:, :-1], targets batch[:, 1:].

    Args:
      config, params: of the model.
      batch: [B, S] token ids.
      devices: that divide the sequences among them.
    """
    states, _ = final_states(config, params, batch[:, :-1])
    return token_losses(config, params, states, batch[:, 1:], devices)


def start(
    config: ModelConfig, optimizer: optax.GradientTransformation, key: Array, dtype: str = "float32"
) -> TrainState:
    """The state before the first step, from a jax.random.key.

    Args:
      config, optimizer, key: of the run.
      dtype: of matrices and embeddings (`stored`); the optimiser's state starts as float32.
    """
    params = init(config, key)
    opt = optimizer.init(params)
    return TrainState(jax.tree.map(partial(stored, dtype), params, param_axes(config)), opt)


def stored(dtype: str, x: Array, axes: str) -> Array:
    """A parameter as a run keeps it: matrices and embeddings in `dtype`, vectors in float32.

    A scale near one moves by less than the spacing of bfloat16 there, so it would stand still.
    """
    return x.astype(dtype) if is_matrix(axes) else x


def parts_of(config: ModelConfig, sequences: int, length: int) -> int:
    """How many equal parts a batch is computed in where nobody says.

    On a CPU the fewest whose largest activation stays in the caches,
    T B/parts max(V, F, N T) <= `CACHED`; elsewhere one.

    Args:
      config: the architecture.
      sequences: B.
      length: T.
    """
    if jax.default_backend() != "cpu":
        return 1
    sizes = config.sizes
    queries = min(length, config.execution.query_block or length)
    widest = max(sizes["V"], sizes["F"], sizes["N"] * queries)
    most = max(1, CACHED // (widest * length))
    return next(
        parts
        for parts in range(1, sequences + 1)
        if sequences % parts == 0 and sequences // parts <= most
    )


def make_step(
    config: ModelConfig,
    optimizer: optax.GradientTransformation,
    accumulate: int | None = None,
    average: Callable[[Any], Any] | None = None,
    gather: Callable[[Params], Params] | None = None,
    edits: Edits | None = None,
    objective: Objective = NEXT_TOKENS,
    devices: tuple[int, int] = (1, 1),
) -> Step:
    """The step of one seed: (state, batch [B, T+1]) -> (state, record).

    With `accumulate` = A the batch is cut into A parts whose gradients are averaged; since parts
    are of equal size, the result is that of the whole batch. Each group of devices that holds all
    parameters adds up the gradients of its own sequences; groups are averaged after the last part.

    Args:
      config: the architecture.
      optimizer: of `make_optimizer`.
      accumulate: A; None: `parts_of` the batch.
      average: of loss and gradient over devices that each see a part of the batch, if they do.
      gather: what a mesh does with parameters before the decoder uses them.
      edits: of the decoder; on a mesh, they say where activations live, of one group's sequences
        where there are several parts.
      objective: of `batch_loss`.
      devices: groups and devices in each, which divide the sequences among them where one program
        says what all of them do: along data, and along fsdp.
    """
    groups, within = devices

    def loss_fn(among: int, params: Params, batch: Array) -> tuple[Array, Array]:
        params = params if gather is None else gather(params)
        return batch_loss(config, params, batch, edits, objective, among)

    def gradient(params: Params, batch: Array) -> tuple[Array, Params]:
        count = accumulate or parts_of(config, len(batch), batch.shape[1] - 1)
        if not mapped(config, groups, count):
            return _of_loss(partial(loss_fn, groups * within))(params, batch)
        of_part = _of_loss(partial(loss_fn, within))
        return _accumulated(of_part, count, devices, params, batch)

    def step(state: TrainState, batch: Array) -> tuple[TrainState, StepRecord]:
        loss, grads = gradient(state.params, batch)
        grads, params = _wide(grads), _wide(state.params)
        if average is not None:
            loss, grads = average((loss, grads))
        # optax raises floats to integer step counts, which strict promotion forbids.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt = optimizer.update(grads, state.opt, params)
        params = jax.tree.map(
            lambda x, old: x.astype(old.dtype), optax.apply_updates(params, updates), state.params
        )
        return TrainState(params, opt), StepRecord(loss, optax.tree.norm(grads))

    return step


def _of_loss(
    objective: Callable[[Params, Array], tuple[Array, Array]],
) -> Callable[[Params, Array], tuple[Array, Params]]:
    """The loss alone, and the gradient of all that is lowered."""
    gradient = jax.value_and_grad(objective, has_aux=True)

    def found(params: Params, batch: Array) -> tuple[Array, Params]:
        (_, loss), grads = gradient(params, batch)
        return loss, grads

    return found


def mapped(config: ModelConfig, groups: int, parts: int) -> bool:
    """Whether one program is that of one group of devices: of several parts, and where a fused
    kernel mixes, which XLA cannot divide among groups."""
    return parts > 1 or (config.fused and groups > 1)


def _accumulated(
    of_part: Callable[[Params, Array], tuple[Array, Params]],
    count: int,
    devices: tuple[int, int],
    params: Params,
    batch: Array,
) -> tuple[Array, Params]:
    """The mean loss and gradient of a batch in parts, summed within each group of devices first."""
    groups, within = devices

    def summed(params: Params, parts: Array) -> tuple[Array, Params]:
        def add(total: Any, part: Array) -> tuple[Any, None]:
            found = of_part(params, part)
            return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, found), None

        zero = (jnp.zeros(()), jax.tree.map(lambda x: jnp.zeros(x.shape), params))
        total: tuple[Array, Params] = jax.lax.scan(add, zero, parts)[0]
        return total

    # Of every part each device takes some of the sequences that it has anyway.
    parts = jnp.moveaxis(batch.reshape(groups * within, count, -1, batch.shape[1]), 1, 0)
    parts = parts.reshape(count, groups, -1, batch.shape[1])
    if groups == 1:
        total = summed(params, parts[:, 0])
    else:
        of_groups = jax.vmap(summed, (None, 1), spmd_axis_name="data")(params, parts)
        total = jax.tree.map(partial(jnp.sum, axis=0), of_groups)
    return jax.tree.map(lambda x: x / (count * groups), total)


def _wide(tree: Any) -> Any:
    """What the optimiser sees, whatever parameters are kept in."""
    return jax.tree.map(lambda x: x.astype(jnp.float32), tree)


def many(step: Step) -> Step:
    """Several steps of several seeds: (state [seeds, ...], batches [steps, seeds, B, T+1]) ->
    (state, record [steps, seeds])."""

    def steps(state: TrainState, batches: Array) -> tuple[TrainState, StepRecord]:
        return jax.lax.scan(jax.vmap(step), state, batches)

    return steps


def make_steps(step: Step) -> Step:
    """`many` in one compiled call on one device, the state donated."""
    return jax.jit(many(step), donate_argnums=0)
