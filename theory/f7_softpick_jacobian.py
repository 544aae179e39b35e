"""F7. Jacobians of two normalisers that can be zero: softpick and clipped softmax.

Statement. Softpick s_i = relu(e^x_i - 1)/Sigma, Sigma = sum_k |e^x_k - 1|, has

    ds_i/dx_j = (e^x_j/Sigma) (delta_ij step(x_i) - sign(x_j) s_i)

(numerator and Sigma both multiplied by e^-m in the implementation). A token with a negative logit
gets no weight, yet a gradient through Sigma. Clipped softmax c_i = clip((1 + a) p_i - a, 0, 1) has

    dc_i/dx_j = (1 + a) p_i (delta_ij - p_j) where 0 < (1 + a) p_i - a < 1, and zero elsewhere,

a = 12/T here: a query whose weights are all clipped has no gradient at all. Softmax has no such
region (C1).

Assumptions. No logit is exactly zero (softpick) or at a corner (clipped); no eps in softpick's
denominator.

Proof. Quotient rule, d|e^x - 1|/dx = sign(x) e^x; chain rule through clip.

Source: Zuhri et al. 2025 (arXiv:2504.20966), section 3; Bondarenko et al. 2023 (arXiv:2306.12929).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.primitives import Heads, softmax_weights, softpick_weights
from theory import heads
from theory.check import Part, Quantities, absolute, compare, statement

SHAPES = (1, 2, 7, 31)  # T


class Instance(NamedTuple):
    """The logits of one query, and the same brought to a size at which clipping is partial."""

    x: Float[Array, "T"]
    moderate: Float[Array, "T"]


def draw(key: Array, shape: int, scale: Array) -> Instance:
    """Normal logits of size `scale`, and of size 2."""
    x = jax.random.normal(key, (shape,), jnp.float64)
    return Instance(scale * x, 2.0 * x)


def predict(case: Instance) -> Quantities:
    """Both closed forms."""
    x = case.x
    m = jnp.maximum(jnp.max(x), 0.0)
    picked = jnp.exp(x - m) - jnp.exp(-m)
    total = jnp.sum(jnp.abs(picked))
    s = jax.nn.relu(picked) / total
    own = jnp.diag((x > 0.0).astype(x.dtype))
    softpick = (jnp.exp(x - m) / total)[None, :] * (own - jnp.sign(x)[None, :] * s[:, None])

    p = jnp.exp(case.moderate - jax.nn.logsumexp(case.moderate))
    a = 12.0 / len(p)
    stretched = (1.0 + a) * p - a
    inside = (stretched > 0.0) & (stretched < 1.0)
    clipped = (1.0 + a) * p[:, None] * (jnp.eye(len(p)) - p[None, :])
    return {"softpick": softpick, "clipped": jnp.where(inside[:, None], clipped, 0.0)}


def measure(case: Instance) -> Quantities:
    """Forward differentiation of the normaliser, and of the variant through its logits."""
    return _jacobians(case, "clipped_softmax")


def control(case: Instance) -> Quantities:
    """Softmax in place of both."""
    seen = jnp.ones((1, len(case.x)), bool)
    softmax = jax.jacfwd(lambda x: softmax_weights(x[None, None], seen)[0][0, 0])(case.x)
    return {**_jacobians(case, "softmax"), "softpick": softmax}


def _jacobians(case: Instance, variant: str) -> Quantities:
    length = len(case.x)
    seen = jnp.ones((1, length), bool)
    keys, query = jnp.zeros((length, 1, 1)), jnp.zeros((1, 1, 1))
    plain = Heads(query, keys, keys, query[0], keys[:, 0], seen)

    def through(x: Array) -> Array:
        edited = heads.with_logits(plain, x[None, None])
        return VARIANTS[variant](edited, {}).weights[0, 0]

    return {
        "softpick": jax.jacfwd(lambda x: softpick_weights(x[None, None], seen, 0.0)[0, 0])(case.x),
        "clipped": jax.jacfwd(through)(case.moderate),
    }


@statement("F7", "Softpick's Jacobian; clipped softmax has no gradient where it is clipped")
def verify(key: Array, quick: bool) -> list[Part]:
    # Entries are at most about 1 (13 for clipped, T = 1): absolute errors, of rounding size.
    return compare(draw, predict, measure, control, key, shapes=SHAPES, error=absolute, quick=quick)
