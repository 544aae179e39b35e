"""C1. The gradient of softmax attention, and why a no-op has no finite minimiser.

Statement. With o_i = sum_j p_ij v_j and g_i = dL/do_i for a loss L of the outputs,

    do_i/ds_ij = p_ij (v_j - o_i),    dL/ds_ij = p_ij <g_i, v_j - o_i>.

For L = |o|^2/2 (do nothing) and a sink with v_0 = 0, dL/ds_i0 = -p_i0 |o_i|^2: negative wherever
o_i is not zero. Where the other values are on one side, <u, v_j> >= m > 0 as in B2, no finite
logits give zero: gradient descent raises the sink's logit at every finite value, and there is no
finite minimiser.

Assumptions. Logits that are free (the gradient with respect to the logits themselves); for the
second part a value of exactly zero.

Proof. dp_ik/ds_ij = p_ik (delta_jk - p_ij), summed against v_k. With v_0 = 0 and g = o the product
is p_i0 <o_i, -o_i>.

Source: the softmax Jacobian; Guo et al. 2024 (arXiv:2410.13835) for its use here.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sysout_jax.core.attention import VARIANTS
from theory import heads
from theory.check import TOLERANCE, Part, Quantities, absolute, compare, statement
from theory.heads import SHAPES, Head


class Instance(NamedTuple):
    """A head, a direction in which its logits move, and what its outputs should be."""

    head: Head
    direction: Float[Array, "N T T"]
    target: Float[Array, "T N H"]
    size: Float[Array, ""]  # of values and targets


def draw(key: Array, shape: tuple[int, int, int, int], scale: Array) -> Instance:
    """A random head; normal direction, and targets of size `scale`."""
    length, n, _, dim = shape
    keys = jax.random.split(key, 3)
    return Instance(
        heads.draw(keys[0], shape, scale),
        jax.random.normal(keys[1], (n, length, length), jnp.float64),
        scale * jax.random.normal(keys[2], (length, n, dim), jnp.float64),
        scale,
    )


def predict(case: Instance) -> Quantities:
    """The output's change along the direction; both gradients by logit."""
    s = heads.logits(case.head)
    p = jnp.exp(s - heads.lse(s)[..., None])
    v = heads.per_query_head(case.head.v, case.head.q.shape[1])
    o = heads.attend(s, v)
    away = v[None] - o[:, None]  # v_j - o_i, [T, T, N, H]
    drained = heads.attend(s, v.at[0].set(0.0))
    return {
        "output": jnp.einsum("nij,nij,ijnh->inh", p, case.direction, away) / case.size,
        "loss": p * jnp.einsum("inh,ijnh->nij", o - case.target, away) / jnp.square(case.size),
        "sink": -p[..., 0] * jnp.sum(jnp.square(drained), axis=-1).T / jnp.square(case.size),
    }


def measure(case: Instance) -> Quantities:
    """Forward and reverse differentiation of the attention variant with respect to its logits."""
    return _gradients(case, "softmax", case.head._replace(v=case.head.v.at[0].set(0.0)))


def control(case: Instance) -> Quantities:
    """Sigmoid weights, which do not compete; a sink whose value is not zero."""
    return _gradients(case, "sigmoid", case.head)


def _gradients(case: Instance, variant: str, drained: Head) -> Quantities:
    def output(head: Head, name: str, s: Array) -> Array:
        return VARIANTS[name](heads.with_logits(head.heads, s), {}).out

    def half_square(x: Array) -> Array:
        return jnp.sum(jnp.square(x)) / 2.0

    # Masked logits are finite here: the variant masks them itself.
    s = jnp.where(jnp.isneginf(heads.logits(case.head)), 0.0, heads.logits(case.head))
    _, moved = jax.jvp(lambda s: output(case.head, variant, s), (s,), (case.direction,))
    loss = jax.grad(lambda s: half_square(output(case.head, variant, s) - case.target))
    noop = jax.grad(lambda s: half_square(output(drained, "softmax", s)))
    area = jnp.square(case.size)
    return {"output": moved / case.size, "loss": loss(s) / area, "sink": noop(s)[..., 0] / area}


@statement("C1", "do/ds_j = p_j (v_j - o): a no-op raises the sink's logit at every finite value")
def verify(key: Array, quick: bool) -> list[Part]:
    # Absolute, in units of the values' size: v_j - o_i cancels where p_ij is nearly one, and the
    # error of p_ij is multiplied by two differences of normal vectors, each at most 8 long.
    return compare(
        draw, predict, measure, control, key,
        shapes=SHAPES, tolerance=64.0 * TOLERANCE, error=absolute, quick=quick,
    )  # fmt: skip
