"""T2. A sink's factor is a threshold on the evidence, which no gate of the token sees.

Statement. Let the key 0 be the sink, R the rest, l_i = LSE_R(s_i). Then

    S_i = sigma(l_i - s_i0),

(i)   Two contexts of the same token x_i whose rest is n copies of one key, and m copies, have S =
      n/(n + e^d) and S' = m/(m + e^d), d = s_i0 - s_iR. The largest error of any gate g(x_i) on
      the two is at least |S - S'|/2, with equality for the mean of the two.
(ii)  Over contexts of tokens x, the least E (g(x) - S)^2 of any gate is E Var(S | x), that of the
      gate g(x) = E(S | x).
(iii) A constant b in place of the sink's logit changes S by at most tanh(|s_i0 - b|/4). Equality
      holds where l_i is halfway between s_i0 and b.

So a gate of the token (context_scale, head_gate) stands for a sink as far as l_i varies little
among contexts of the token; one constant per head (sink_logit) as far as s_i0 varies little among
queries. One constant per head costs 0.01 nats in SmolLM2-135M, and half of what removal costs in
Gemma 3 270M, which has QK norm (64 texts of books each).

Assumptions. Softmax. (i), (ii): a gate that depends on x_i alone, in any way.

Proof. A1 with O = {0}. (i) LSE_R = log n + s_iR; the triangle inequality. (ii) The mean of the
square splits into E (g - E(S|x))^2 and E Var(S|x). (iii) sigma(z + t) - sigma(z) is largest at z =
-t/2, where it is 2 sigma(t/2) - 1 = tanh(t/4).

Source: this package. On the sink as a factor of the context: An et al. 2025 (arXiv:2502.06415);
Fu (arXiv:2602.01203).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.primitives import Heads
from theory.check import Part, Quantities, absolute, at_most, compare, statement
from theory.decompositions import pinv

SHAPES = ((1, 1, 1, 2), (2, 3, 2, 3), (5, 7, 11, 4))  # (tokens X, contexts C, keys of the rest, H)
MOST = 9  # copies of one key
TERNARY = 80  # steps, each to 2/3 of the interval: to 1e-14
# Factors are within 0 and 1: absolute errors, of logits up to 5e3. |g - S| is flat to rounding
# within 1e-12 of its least value.
TOLERANCE = 1e-11


class Instance(NamedTuple):
    """Queries of X tokens, each in C contexts; a sink; a constant in place of its logit."""

    q: Float[Array, "X H"]
    sink: Float[Array, "H"]
    rest: Float[Array, "X C R H"]
    b: Float[Array, ""]
    other: Float[Array, ""]  # another constant
    copies: Float[Array, "2"]  # n and m, of the two contexts by hand


def draw(key: Array, shape: tuple[int, int, int, int], scale: Array) -> Instance:
    """Logits of size `scale`; b within 2 of the first query's sink logit."""
    tokens, contexts, rest, dim = shape
    keys = jax.random.split(key, 6)
    q, sink, keys_of_rest = (
        jnp.sqrt(scale) * jax.random.normal(k, size, jnp.float64)
        for k, size in zip(
            keys, ((tokens, dim), (dim,), (tokens, contexts, rest, dim)), strict=False
        )
    )
    b = logit(q[0], sink) + jax.random.uniform(keys[3], (), jnp.float64, -2.0, 2.0)
    other = b + 4.0 * jax.random.rademacher(keys[4], (), jnp.float64)
    copies = jax.random.choice(keys[5], jnp.arange(1, MOST + 1), (2,), replace=False)
    return Instance(q, sink, keys_of_rest, b, other, copies.astype(jnp.float64))


def logit(q: Float[Array, "*#B H"], k: Float[Array, "*#B H"]) -> Float[Array, "*#B"]:
    """q.k/sqrt(H)."""
    return jnp.sum(q * k, axis=-1) / jnp.sqrt(jnp.asarray(q.shape[-1], q.dtype))


def evidence(case: Instance) -> Float[Array, "X C"]:
    """l_i = LSE_R(s_i)."""
    return jax.nn.logsumexp(logit(case.q[:, None, None], case.rest), axis=-1)


def factor(case: Instance) -> Float[Array, "X C"]:
    """S in closed form."""
    return jax.nn.sigmoid(evidence(case) - logit(case.q, case.sink[None])[:, None])


def predict(case: Instance) -> Quantities:
    """The factor and the least errors of what could stand for it."""
    s, (n, m) = factor(case), case.copies
    grown = jnp.exp(logit(case.q[0], case.sink) - logit(case.q[0], case.rest[0, 0, 0]))
    return {
        "factor": s,
        "two contexts": jnp.abs(n / (n + grown) - m / (m + grown)) / 2.0,
        "best gate": jnp.mean(jnp.var(s, axis=1)),
        "one constant": jnp.tanh(jnp.abs(logit(case.q[0], case.sink) - case.b) / 4.0),
    }


def measure(case: Instance) -> Quantities:
    """Attention with the sink among the keys, and the gates that err least on what it does."""
    tokens, contexts = case.rest.shape[:2]
    s = attended(case, "softmax")
    of_token = jnp.repeat(jnp.eye(tokens), contexts, axis=0)
    return {
        "factor": s,
        "two contexts": _by_ternary_search(case, case.copies),
        "best gate": _least_squares(of_token, s),
        "one constant": jnp.abs(s[0, 0] - _with_constant(case, case.b)),
    }


def control(case: Instance) -> Quantities:
    """Sigmoid weights; two contexts alike; gates that see the context; the constant moved by 4."""
    s = attended(case, "softmax")
    return {
        "factor": attended(case, "sigmoid"),
        "two contexts": _by_ternary_search(case, jnp.broadcast_to(case.copies[:1], (2,))),
        "best gate": _least_squares(jnp.eye(s.size), s),
        "one constant": jnp.abs(s[0, 0] - _with_constant(case, case.other)),
    }


def halfway(case: Instance) -> Instance:
    """The same with a constant that is as far beyond the evidence as the sink's logit is before."""
    return case._replace(b=2.0 * evidence(case)[0, 0] - logit(case.q[0], case.sink))


def _head(q: Array, keys: Array, values: Array, visible: Array) -> Heads:
    """One query, S keys, and as many values of one channel."""
    nothing = jnp.zeros((len(keys), 1))
    return Heads(
        q[None, None], keys[:, None], values[:, None, None], nothing[:1], nothing, visible[None]
    )


def attended(case: Instance, variant: str) -> Float[Array, "X C"]:
    """What attention makes of values that are 1 on the rest and 0 on the sink."""

    def one(q: Array, rest: Array) -> Array:
        keys = jnp.concatenate([case.sink[None], rest])
        at = jnp.arange(len(keys))
        head = _head(q, keys, (at > 0).astype(q.dtype), at >= 0)
        return VARIANTS[variant](head, {}).out[0, 0, 0]

    return jax.vmap(jax.vmap(one, (None, 0)))(case.q, case.rest)


def _with_constant(case: Instance, b: Array) -> Array:
    """The first token's factor in its first context, with the sink's logit replaced by b."""
    rest = case.rest[0, 0]
    head = _head(case.q[0], rest, jnp.ones(len(rest)), jnp.full(len(rest), True))
    return VARIANTS["sink_logit"](head, {"sink_logit": b[None]}).out[0, 0, 0]


def _least_squares(features: Float[Array, "M P"], s: Float[Array, "X C"]) -> Array:
    """The mean squared error of the best linear function of features of each token and context."""
    target = s.reshape(-1)
    return jnp.mean(jnp.square(target - features @ (pinv(features) @ target)))


def _by_ternary_search(case: Instance, copies: Float[Array, "2"]) -> Array:
    """The least, over gates of one token, of the larger error on two contexts."""
    rest = jnp.broadcast_to(case.rest[0, 0, :1], (MOST, case.q.shape[1]))
    keys, at = jnp.concatenate([case.sink[None], rest]), jnp.arange(MOST + 1.0)

    def of(copies: Array) -> Array:
        head = _head(case.q[0], keys, (at > 0.0).astype(keys.dtype), at <= copies)
        return VARIANTS["softmax"](head, {}).out[0, 0, 0]

    s = jax.vmap(of)(copies)

    def error(gate: Array) -> Array:
        return jnp.max(jnp.abs(gate - s))

    def narrow(ends: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        low, high = ends
        third = (high - low) / 3.0
        left = error(low + third) < error(high - third)
        return (jnp.where(left, low, low + third), jnp.where(left, high - third, high)), None

    (low, high), _ = jax.lax.scan(narrow, (jnp.zeros(()), jnp.ones(())), None, length=TERNARY)
    return error((low + high) / 2.0)


@statement("T2", "S = sigma(LSE_R - s_0): a gate of the token errs by E Var(S|x) or more")
def verify(key: Array, quick: bool) -> list[Part]:
    errors = dict.fromkeys(("factor", "two contexts", "best gate"), absolute)
    return compare(
        draw, predict, measure, control, key, shapes=SHAPES, tolerance=TOLERANCE,
        error={**errors, "one constant": at_most}, tight={"one constant": halfway}, quick=quick,
    )  # fmt: skip
