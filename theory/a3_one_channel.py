"""A3. Softmax-off-by-one with one more channel is key bias.

Statement. Give each head of softmax-off-by-one the queries and keys of H + 1 channels

    q~_i = sqrt((H+1)/H) (q_i, -q_i.k'),   k~_j = (k_j, 1).

Then its output and the mass that it leaves to no token are those of `key_bias` with the extra key
k' and the H channels q, k. More generally, with -sqrt(H) f_i in place of -q_i.k',

    S_i = sigma(LSE(s_i) - f_i),

for any linear function f_i = <w, x_i> of the token, since W_Q maps x_i to q~_i linearly.

So an extra logit that is always 0 does not keep S from seeing the query. What it takes is a
channel in which all keys agree: a bias of the keys, or a direction that all tokens share.

Assumptions. The extra channel is not rotated by RoPE. The logits are divided by the square root of
the number of channels.

Proof. <q~_i, k~_j>/sqrt(H+1) = s_ij - q_i.k'/sqrt(H) for all j, and an extra logit of 0. Softmax is
blind to a constant that is added to all logits of a query: add q_i.k'/sqrt(H).

Source: this package.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.primitives import Heads, Mixed
from theory import heads
from theory.check import Part, Quantities, compare, statement
from theory.heads import SHAPES, D, Head

# Logits of two heads are compared, the extra channel's among them: of up to 1.5e3 with these.
SCALES = (1.0, 300.0)


class Instance(NamedTuple):
    """A head, the key of key bias, and the weights of a linear function of the token."""

    head: Head
    key: Float[Array, "K H"]
    w: Float[Array, "D N"]


def draw(key: Array, shape: tuple[int, int, int, int], scale: Array) -> Instance:
    """A random head; extra logits of the size of the others."""
    of_head, of_key, of_w = jax.random.split(key, 3)
    head = heads.draw(of_head, shape, scale)
    extra = jnp.sqrt(scale) * jax.random.normal(of_key, head.k.shape[1:], jnp.float64)
    return Instance(head, extra, scale * jax.random.normal(of_w, (D, shape[1]), jnp.float64))


def closed(head: Head, extra: Float[Array, "N T"]) -> tuple[Array, Array]:
    """S_i o_i and 1 - S_i for the extra logits f_i."""
    s, n = heads.logits(head), head.q.shape[1]
    gap = heads.lse(s) - extra
    o = heads.attend(s, heads.per_query_head(head.v, n))
    return jax.nn.sigmoid(gap).T[..., None] * o, jax.nn.sigmoid(-gap)


def predict(case: Instance) -> Quantities:
    """Key bias as models use it, and the closed form for a linear function of the token."""
    mixed = VARIANTS["key_bias"](case.head.heads, {"bias_key": case.key})
    out, mass = closed(case.head, jnp.einsum("id,dn->ni", case.head.x, case.w))
    return {
        "key bias": mixed.out, "key bias: mass": mixed.extra,
        "linear function": out, "linear function: mass": mass,
    }  # fmt: skip


def measure(case: Instance) -> Quantities:
    """Softmax-off-by-one on heads with one more channel."""
    return _quantities(case, lambda channel: widened(case.head.heads, channel))


def control(case: Instance) -> Quantities:
    """The channel left out: H channels, of which off-by-one sees the logits alone."""
    return _quantities(case, lambda channel: case.head.heads)


def widened(plain: Heads, channel: Float[Array, "T N"]) -> Heads:
    """Heads of H + 1 channels: `channel` in the queries, 1 in the keys, 0 in the values."""
    dim = plain.q.shape[-1]

    def append(x: Array, last: Array) -> Array:
        return jnp.concatenate([x, jnp.broadcast_to(last, (*x.shape[:-1], 1))], axis=-1)

    wider = jnp.sqrt(jnp.asarray((dim + 1) / dim, plain.q.dtype))
    return plain._replace(
        q=wider * append(plain.q, channel[..., None]),
        k=append(plain.k, jnp.ones((1, 1, 1))),
        v=append(plain.v, jnp.zeros((1, 1, 1))),
    )


def _quantities(case: Instance, of: Callable[[Array], Heads]) -> Quantities:
    head, n = case.head, case.head.q.shape[1]
    root = jnp.sqrt(jnp.asarray(head.q.shape[-1], head.q.dtype))

    def off_by_one(channel: Float[Array, "T N"]) -> Mixed:
        return VARIANTS["softmax_off_by_one"](of(channel), {})

    biased = off_by_one(-jnp.einsum("inh,nh->in", head.q, heads.per_query_head(case.key, n)))
    linear = off_by_one(-root * jnp.einsum("id,dn->in", head.x, case.w))
    dim = head.v.shape[-1]
    return {
        "key bias": biased.out[..., :dim], "key bias: mass": biased.extra,
        "linear function": linear.out[..., :dim], "linear function: mass": linear.extra,
    }  # fmt: skip


@statement("A3", "Softmax-off-by-one with H + 1 channels is key bias with H")
def verify(key: Array, quick: bool) -> list[Part]:
    return compare(draw, predict, measure, control, key, shapes=SHAPES, scales=SCALES, quick=quick)
