"""A mixture of experts: which experts a token goes to, and matrix products by expert.

Axes: T tokens, E experts, J experts per token, A = T J assignments, sorted by expert.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sysout_jax.core.layers import widened


class Routing(NamedTuple):
    """Where every token goes."""

    weights: Float[Array, "T J"]  # of the chosen experts
    order: Int[Array, "A"]  # assignments t J + j, sorted by expert
    expert: Int[Array, "A"]  # the expert of each, in that order
    counts: Int[Array, "E"]  # assignments of each expert


def choose(
    logits: Float[Array, "T E"], chosen: int, sum_to_one: bool = True
) -> tuple[Int[Array, "T J"], Float[Array, "T J"]]:
    """The `chosen` best experts of every token, weighted by softmax over those alone, or over all.

    Softmax over all experts, cut to the best and brought to a sum of one, is that over those alone.

    Args:
      logits: [T, E], of the router.
      chosen: J.
      sum_to_one: whether the weights do; else they are what softmax over all gives these.

    Returns:
      The experts, best first, and their weights.

    Source: Jiang et al. 2024 (arXiv:2401.04088), section 2.1; over all: Muennighoff et al. 2024
    (arXiv:2409.02060).
    """
    wide = logits.astype(jnp.float32)
    best, experts = jax.lax.top_k(wide, chosen)
    if sum_to_one:
        return experts, jax.nn.softmax(best, axis=-1)
    return experts, jnp.exp(best - jax.nn.logsumexp(wide, axis=-1, keepdims=True))


def route(experts: Int[Array, "T J"], weights: Float[Array, "T J"], count: int) -> Routing:
    """Send every token to its experts.

    Args:
      experts, weights: as `choose` returns them.
      count: E, of all experts.
    """
    flat = experts.reshape(-1)
    order = jnp.argsort(flat, stable=True)
    return Routing(weights, order, flat[order], jnp.bincount(flat, length=count))


def expert_linear(
    x: Float[Array, "A I"],
    weight: Float[Array, "E I O"],
    bias: Float[Array, "E O"] | None,
    routing: Routing,
) -> Float[Array, "A O"]:
    """The linear map of its expert applied to each assignment: y_a = x_a W_e(a) + b_e(a).

    Args:
      x: [A, I], sorted by expert.
      weight: [E, I, O], cast to the dtype of `x`.
      bias: [E, O], or None.
      routing: of `route`.
    """
    out = jax.lax.ragged_dot(x, weight.astype(x.dtype), routing.counts)
    if bias is None:
        return out
    # The gradient of a bias is a sum over rows, which bfloat16 would lose.
    return (widened(out) + widened(bias)[routing.expert]).astype(x.dtype)


def gather(x: Float[Array, "T I"], routing: Routing) -> Float[Array, "A I"]:
    """The token of each assignment."""
    return x[routing.order // routing.weights.shape[-1]]


def scatter(x: Float[Array, "A O"], routing: Routing) -> Float[Array, "T J O"]:
    """The assignments of each token, best expert first: the order before `route` sorted them."""
    back = jnp.zeros_like(x).at[routing.order].set(x)
    return back.reshape(*routing.weights.shape, x.shape[-1])
