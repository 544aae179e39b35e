"""Gradient descent as one compiled loop, for checks that optimise or train."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

Params = Any  # a pytree of arrays


def descend(
    loss: Callable[[Params, Array], Array],
    params: Params,
    optimizer: optax.GradientTransformation,
    steps: int,
    *,
    watch: Callable[[Params], Any] = lambda params: None,
    every: int | None = None,
) -> tuple[Params, Any]:
    """Minimise loss(params, step) for a number of steps.

    Args:
      loss: parameters and the step, an int32 scalar from 0, to a scalar.
      params: the start.
      optimizer: an optax optimiser.
      steps: the number of updates, a multiple of `every`.
      watch: what to keep of the parameters on the way.
      every: updates between two looks; `steps` by default.

    Returns:
      The last parameters, and what `watch` returned after each `every` updates, stacked.

    Raises:
      ValueError: steps that `every` does not divide.
    """
    every = every or steps
    if steps % every:
        raise ValueError(f"{steps} steps do not divide by {every}")

    def update(carry: tuple[Params, Any], step: Array) -> tuple[tuple[Params, Any], None]:
        params, state = carry
        gradient = jax.grad(loss)(params, step)
        # Adam's bias correction raises a float to an integer power.
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    def stretch(carry: tuple[Params, Any], begin: Array) -> tuple[tuple[Params, Any], Any]:
        carry, _ = jax.lax.scan(update, carry, begin + jnp.arange(every, dtype=jnp.int32))
        return carry, watch(carry[0])

    start = (params, optimizer.init(params))
    (params, _), seen = jax.lax.scan(stretch, start, jnp.arange(0, steps, every, dtype=jnp.int32))
    return params, seen
