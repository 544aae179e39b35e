"""Training what was added to a model, its weights frozen, until it predicts as it did before.

Axes: B sequences, S = T + 1 tokens of each, D width, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float, Int

from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, final_states, logits_of
from sysout_jax.training.optimizer import OptimizerConfig, make_optimizer

Progress = Callable[[int, float], None]  # steps done, the divergence of the last


@dataclass(frozen=True)
class Reads:
    """A model, and the first of a row's tokens that it reads."""

    config: ModelConfig
    params: Params
    begin: int = 0


def divergence(student: Reads, teacher: Reads, rows: Int[Array, "B S"]) -> Float[Array, ""]:
    """The mean over sequences and positions of KL(p | q) = sum_v p_v (log p_v - log q_v), in nats.

    p is the teacher's distribution of the next token, q the student's, where both have one.

    Args:
      student, teacher: models of one vocabulary.
      rows: token ids.
    """
    tokens, begin = rows[:, :-1], max(student.begin, teacher.begin)
    x, y = (
        final_states(of.config, of.params, tokens[:, of.begin :])[0][:, begin - of.begin :]
        for of in (student, teacher)
    )

    def of_one(states: tuple[Array, Array]) -> Array:
        q, p = (
            jax.nn.log_softmax(logits_of(of.config, of.params, one[None])[0].astype(jnp.float32))
            for of, one in zip((student, teacher), states, strict=True)
        )
        return jnp.mean(jnp.sum(jnp.exp(p) * (p - q), axis=-1))

    # The logits of one sequence at a time, in the gradient too: they are the largest arrays.
    return jnp.mean(jax.lax.map(jax.checkpoint(of_one), (x, y)))


def added(params: Params, known: Params) -> dict[tuple[str, ...], Array]:
    """The parameters by their paths that the first tree has and the second has not."""
    names = flatten_dict(known)
    return {name: x for name, x in flatten_dict(params).items() if name not in names}


def distil(
    student: Reads,
    teacher: Reads,
    rows: Callable[[int], Int[np.ndarray, "B S"]],
    steps: int,
    optimizer: OptimizerConfig,
    progress: Progress | None = None,
) -> tuple[Params, Float[np.ndarray, "steps"]]:
    """Train the parameters that the student has and the teacher has not, by `divergence`.

    Args:
      student, teacher: models of one vocabulary; what both have by one name stays as it is.
      rows: of a step, from 0.
      steps: how many.
      optimizer: its decay is 0 whatever it says.
      progress: called after every step.

    Returns:
      The student's parameters, and the divergence before each step.

    Raises:
      InputError: there is nothing to train, or the divergence is not finite.
    """
    own = added(student.params, teacher.params)
    rest = {name: value for name, value in flatten_dict(student.params).items() if name not in own}
    if not own:
        raise InputError("student", None, "parameters that the teacher has not", "it has none")
    transform = make_optimizer(replace(optimizer, decay=0.0), steps, dict.fromkeys(own, ""))

    @partial(jax.jit, donate_argnums=(0, 1))
    def step(own: Any, opt: Any, rest: Any, taught: Params, batch: Array) -> Any:
        def loss(own: Any) -> Array:
            params = unflatten_dict({**rest, **own})
            return divergence(
                Reads(student.config, params, student.begin),
                Reads(teacher.config, taught, teacher.begin), batch,
            )  # fmt: skip

        found, grads = jax.value_and_grad(loss)(own)
        # optax raises floats to integer step counts, which strict promotion forbids.
        with jax.numpy_dtype_promotion("standard"):
            updates, opt = transform.update(grads, opt, own)
            own = optax.apply_updates(own, updates)
        return own, opt, found

    opt, found = transform.init(own), np.zeros(steps)
    own = jax.tree.map(lambda x: jnp.array(x, copy=True), own)
    for done in range(steps):
        own, opt, loss = step(own, opt, rest, teacher.params, jnp.asarray(rows(done)))
        found[done] = float(loss)
        if not np.isfinite(found[done]):
            said = f"diverged at step {done} with a learning rate of {optimizer.lr:g}"
            raise InputError("loss", found[done], "a smaller rate", said)
        if progress is not None:
            progress(done + 1, found[done])
    return unflatten_dict({**rest, **own}), found
