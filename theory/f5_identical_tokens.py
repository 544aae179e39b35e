"""F5. What attention can prefer among identical tokens: nothing, the near ones, or a position.

Statement. Let all T tokens be the same. Then the weights of query t (of keys 1 .. t) are

    without positions         exactly 1/t;
    ALiBi, s_tj - b (t - j)   exp(-b (t - j)) (1 - e^-b)/(1 - e^-bt), largest at j = t for b > 0;
    RoPE                      at most e^(2 xi) / (e^(2 xi) + t - 1), xi = |q| |k|/sqrt(H), attained
                              for t <= 3 by k = -q in pairs that turn by pi a token;
    learned positions         any: a first key k + e, q.e = z sqrt(H), gets e^z/(e^z + t - 1).

Without positions and with ALiBi (b > 0) there is no sink at the first position. With RoPE there can
be one only where xi is large: with k = -q in a pair of angle theta the logit -xi cos(theta d) grows
with the distance d up to pi/theta, and the first key wins. Learned positions allow any.

Assumptions. All queries equal q and all keys equal k before positions are applied.

Proof. Equal logits; logits that increase in j, a geometric series; rotations keep norms, so every
logit is within xi of zero, and the ratio of one weight to t - 1 others is at most e^(2 xi).

Source: Gu et al. 2025 (arXiv:2410.10781), propositions on repeated tokens.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.layers import causal_mask
from sysout_jax.core.positions import Rotation, inverse_frequencies, rotate
from sysout_jax.core.primitives import Heads
from theory import heads
from theory.check import Part, Quantities, absolute, at_most, compare, statement

SHAPES = ((1, 2), (2, 4), (7, 2), (31, 8))  # (T, H)


class Instance(NamedTuple):
    """The query and key of every token, and RoPE's angles a token; per token ALiBi's slope and the
    first key's lift, of which the first count: their number is the length."""

    q: Float[Array, "H"]
    k: Float[Array, "H"]
    angles: Float[Array, "R"]
    slope: Float[Array, "T"]
    lift: Float[Array, "T"]


def draw(key: Array, shape: tuple[int, int], scale: Array) -> Instance:
    """Logits of size `scale`; slopes and lifts of the first key's logit between 0.01 and 10."""
    keys = jax.random.split(key, 4)
    q, k = (jnp.sqrt(scale) * jax.random.normal(x, shape[1:], jnp.float64) for x in keys[:2])
    slope, lift = (
        10.0 ** jax.random.uniform(x, shape[:1], jnp.float64, -2.0, 1.0) for x in keys[2:]
    )
    return Instance(q, k, jnp.asarray(inverse_frequencies(1e4, shape[1])), slope, lift)


def opposed(case: Instance) -> Instance:
    """Equality under RoPE: of up to three keys, the one before the query is aligned with it and the
    others are opposed to it."""
    return case._replace(
        k=-case.q,
        angles=jnp.full_like(case.angles, jnp.pi),
        slope=case.slope[:3],
        lift=case.lift[:3],
    )


def predict(case: Instance) -> Quantities:
    """Weights without positions, under ALiBi and beside a lifted first key; RoPE's bound on the
    largest of each query."""
    length = len(case.slope)
    t = jnp.arange(1.0, length + 1.0)
    visible = jnp.tril(jnp.ones((length, length), bool))
    b, distance = case.slope[0], t[:, None] - t[None, :]
    alibi = jnp.exp(-b * distance) * jnp.expm1(-b) / jnp.expm1(-b * t)[:, None]
    grown = jnp.exp(case.lift[0])
    first = jnp.broadcast_to((t == 1.0)[None, :], visible.shape)
    learned = jnp.where(first, grown, 1.0) / (grown + t - 1.0)[:, None]
    xi = jnp.linalg.norm(case.q) * jnp.linalg.norm(case.k) / jnp.sqrt(len(case.q) * jnp.ones(()))
    bound = 1.0 / (1.0 + (t - 1.0) * jnp.exp(-2.0 * xi))
    return {
        "no positions": jnp.where(visible, 1.0 / t[:, None], 0.0),
        "alibi": jnp.where(visible, alibi, 0.0),
        "rope": bound,
        "learned": jnp.where(visible, learned, 0.0),
    }


def measure(case: Instance) -> Quantities:
    """Softmax attention over the tokens."""
    length = len(case.slope)
    q, k = (jnp.broadcast_to(x[None, None], (length, 1, len(x))) for x in (case.q, case.k))
    return _weights(case, q, k)


def control(case: Instance) -> Quantities:
    """A first token whose key is three times as long, or turned around."""
    length = len(case.slope)
    q, k = (jnp.broadcast_to(x[None, None], (length, 1, len(x))) for x in (case.q, case.k))
    sign = jnp.where(jnp.sum(case.q * case.k) > 0.0, 3.0, -3.0)
    return _weights(case, q, k.at[0].multiply(sign))


def _weights(case: Instance, q: Array, k: Array) -> Quantities:
    at = jnp.arange(len(q), dtype=jnp.int32)
    nothing = jnp.zeros((len(q), 1))
    mask = causal_mask(at, at)
    plain = Heads(q, k, jnp.zeros_like(q), nothing, nothing, mask)
    s = jnp.einsum("inh,jnh->nij", q, k) / jnp.sqrt(q.shape[-1] * jnp.ones(()))
    distance = (at[:, None] - at[None, :]).astype(s.dtype)[None]

    def weights(each: Heads) -> Array:
        return VARIANTS["softmax"](each, {}).weights[0]

    def turned(x: Array) -> Array:
        return rotate(x, at, Rotation(case.angles))

    # q.e/sqrt(H) = lift: the learned position as a vector added to the first key
    e = case.q * case.lift[0] * jnp.sqrt(len(case.q) * jnp.ones(())) / jnp.sum(jnp.square(case.q))
    return {
        "no positions": weights(plain),
        "alibi": weights(heads.with_logits(plain, s - case.slope[0] * distance)),
        "rope": jnp.max(weights(plain._replace(q=turned(q), k=turned(k))), axis=-1),
        "learned": weights(plain._replace(k=k.at[0].add(e[None]))),
    }


@statement("F5", "Identical tokens: uniform, nearest, at most e^2xi/(e^2xi + t - 1), or a sink")
def verify(key: Array, quick: bool) -> list[Part]:
    errors = dict.fromkeys(("no positions", "alibi", "learned"), absolute) | {"rope": at_most}
    return compare(
        draw, predict, measure, control, key,
        shapes=SHAPES, error=errors, tight={"rope": opposed}, quick=quick,
    )  # fmt: skip
