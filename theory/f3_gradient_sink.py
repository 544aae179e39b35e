"""F3. A sink's value receives the gradients of all who attend to it; a large state damps them.

Statement. For o_i = sum_j A_ij v_j and any loss L of the outputs, with g_i = dL/do_i,

    dL/dv_s = sum_i A_is g_i,

so that where all g_i are one vector g, dL/dv_s = (sum_i A_is) g: the column mass of the sink is the
gain of its gradient. Where v_s = W n(h_s) and n(h) = sqrt(D) h/|h| (RMSNorm),

    dL/dh_s = (sqrt(D)/|h_s|) (I - h_s h_s^T/|h_s|^2) W sum_i A_is g_i,

and replacing every h_s by a h_s, a > 0, leaves L as it is and divides the gradient by a.

Assumptions. Gradients along the path of the values: queries and keys do not move with h. No eps in
the norm (with eps, |h_s|^2 reads |h_s|^2 + D eps in the first factor and in the second).

Proof. o is linear in v with coefficients A. The Jacobian of n is sqrt(D)/|h| times the projection
away from h, which is symmetric; n(ah) = n(h).

Source: Chen 2026 (the gradient sink); the norm's part is B4 (iii).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.layers import linear
from sysout_jax.core.norms import rms_norm
from theory import heads
from theory.check import Part, Quantities, compare, statement
from theory.heads import SHAPES, D, Head


class Instance(NamedTuple):
    """A head whose values are read from states, what its outputs should be, and a factor."""

    head: Head
    states: Float[Array, "T D"]
    w: Float[Array, "D K H"]
    target: Float[Array, "T N H"]
    factor: Float[Array, ""]


def draw(key: Array, shape: tuple[int, int, int, int], scale: Array) -> Instance:
    """States and targets of size `scale`; a factor between 1 and 1000."""
    keys = jax.random.split(key, 5)
    head = heads.draw(keys[0], shape, scale)
    states = scale * jax.random.normal(keys[1], head.x.shape, jnp.float64)
    w = jax.random.normal(keys[2], (D, *head.k.shape[1:]), jnp.float64)
    target = jax.random.normal(keys[3], head.q.shape, jnp.float64)
    factor = 1e3 ** jax.random.uniform(keys[4], (), jnp.float64)
    return Instance(head._replace(v=_values(states, w)), states, w, target, factor)


def _values(states: Float[Array, "T D"], w: Float[Array, "D K H"]) -> Float[Array, "T K H"]:
    return linear(rms_norm(states, eps=0.0), w)


def value_gradient(
    weights: Float[Array, "N T T"], g: Float[Array, "T N H"], kv_heads: int
) -> Float[Array, "T K H"]:
    """sum_i A_is g_i, summed over the query heads that read each KV head."""
    each = jnp.einsum("nis,inh->snh", weights, g)
    return each.reshape(each.shape[0], kv_heads, -1, each.shape[-1]).sum(axis=2)


def state_gradient(
    states: Float[Array, "T D"], w: Float[Array, "D K H"], dv: Float[Array, "T K H"]
) -> Float[Array, "T D"]:
    """(sqrt(D)/|h|) (I - h h^T/|h|^2) W dL/dv for each token."""
    norm = jnp.linalg.norm(states, axis=-1, keepdims=True)
    unit = states / norm
    back = jnp.einsum("dkh,skh->sd", w, dv)
    along = jnp.sum(back * unit, axis=-1, keepdims=True)
    return jnp.sqrt(jnp.asarray(D, norm.dtype)) / norm * (back - along * unit)


def predict(case: Instance) -> Quantities:
    """Both gradients, the second also for states `factor` times as large, and the column mass."""
    head, kv_heads = case.head, case.head.k.shape[1]
    s = heads.logits(head)
    weights = jnp.exp(s - heads.lse(s)[..., None])
    out = heads.attend(s, heads.per_query_head(head.v, head.q.shape[1]))
    dv = value_gradient(weights, out - case.target, kv_heads)
    dh = state_gradient(case.states, case.w, dv)
    mass = value_gradient(weights, jnp.ones_like(head.q), kv_heads)
    return {"value": dv, "column mass": mass, "state": dh, "larger state": dh / case.factor}


def measure(case: Instance) -> Quantities:
    """Autodiff of |o - y|^2/2, and of the sum of o, through the attention variant and the norm."""

    def loss(v: Array) -> Array:
        out = VARIANTS["softmax"](case.head._replace(v=v).heads, {}).out
        return jnp.sum(jnp.square(out - case.target)) / 2.0

    def total(v: Array) -> Array:
        return jnp.sum(VARIANTS["softmax"](case.head._replace(v=v).heads, {}).out)

    of_states = jax.grad(lambda states: loss(_values(states, case.w)))
    return {
        "value": jax.grad(loss)(case.head.v),
        "column mass": jax.grad(total)(case.head.v),
        "state": of_states(case.states),
        "larger state": of_states(case.factor * case.states),
    }


def control(case: Instance) -> Quantities:
    """Keys that move with the values; values read from states that are not normalised."""

    def outputs(v: Array) -> Array:
        moving = case.head.k + v - jax.lax.stop_gradient(v)
        return VARIANTS["softmax"](case.head._replace(k=moving, v=v).heads, {}).out

    def loss(out: Array) -> Array:
        return jnp.sum(jnp.square(out - case.target)) / 2.0

    def of_states(states: Array) -> Array:
        fixed = case.head._replace(v=linear(states, case.w))
        return loss(VARIANTS["softmax"](fixed.heads, {}).out)

    return {
        "value": jax.grad(lambda v: loss(outputs(v)))(case.head.v),
        "column mass": jax.grad(lambda v: jnp.sum(outputs(v)))(case.head.v),
        "state": jax.grad(of_states)(case.states),
        "larger state": jax.grad(of_states)(case.factor * case.states),
    }


@statement("F3", "A sink's value gets the gradients of its whole column; RMSNorm divides by |h_s|")
def verify(key: Array, quick: bool) -> list[Part]:
    return compare(draw, predict, measure, control, key, shapes=SHAPES, quick=quick)
