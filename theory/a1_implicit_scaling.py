"""A1. Attention with outliers is attention without them, times a factor that sees the context.

Statement. Let O be any set of keys, R the rest, o^R_i = sum_{j in R} softmax_R(s_i)_j v_j. Then

    o_i = S_i o^R_i + sum_{j in O} p_ij v_j,   S_i = 1 - sum_{j in O} p_ij = sigma(LSE_R - LSE_O),

so that with v_j = 0 on O, attention over all keys is S_i o^R_i.

Assumptions. Weights that sum to one over O and R (softmax); for the corollary v_j = 0 on O.

Proof. p_ij = exp(s_ij - LSE) = softmax_R(s_i)_j exp(LSE_R - LSE) for j in R, and exp(LSE_R - LSE) =
exp(LSE_R)/(exp(LSE_R) + exp(LSE_O)) = sigma(LSE_R - LSE_O). Sum over R and O apart.

Source: the claim of An et al. 2025 (arXiv:2502.06415), section 5, in closed form.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sysout_jax.core.attention import VARIANTS
from theory import heads
from theory.check import Part, Quantities, compare, statement
from theory.heads import SHAPES, Head, draw


def scaling_factor(head: Head) -> Array:
    """S_i = sigma(LSE_R(s_i) - LSE_O(s_i)), [N, T]."""
    s = heads.logits(head)
    rest, outliers = heads.lse(s, ~head.outliers), heads.lse(s, head.outliers)
    return jax.nn.sigmoid(rest - outliers)


def predict(head: Head) -> Quantities:
    """The output in two summands, its first alone, and the factor."""
    s, n = heads.logits(head), head.q.shape[1]
    factor = scaling_factor(head)
    v = heads.per_query_head(head.v, n)
    scaled = factor.T[..., None] * heads.attend(s, v, ~head.outliers)
    of_outliers = (1.0 - factor).T[..., None] * heads.attend(s, v, head.outliers)
    return {"output": scaled + of_outliers, "scaled rest": scaled, "factor": factor}


def measure(head: Head) -> Quantities:
    """Softmax attention as it is, with the outliers' values set to zero, and a unit value on R."""
    softmax = VARIANTS["softmax"]
    drained = jnp.where(head.outliers[:, None, None], 0.0, head.v)
    ones = jnp.where(head.outliers[:, None, None], 0.0, jnp.ones_like(head.v))
    return {
        "output": softmax(head.heads, {}).out,
        "scaled rest": softmax(head._replace(v=drained).heads, {}).out,
        "factor": softmax(head._replace(v=ones).heads, {}).out[..., 0].T,
    }


def control(head: Head) -> Quantities:
    """Sigmoid weights, which do not sum to one; outliers whose values are not zero."""
    sigmoid = VARIANTS["sigmoid"]
    ones = jnp.where(head.outliers[:, None, None], 0.0, jnp.ones_like(head.v))
    return {
        "output": sigmoid(head.heads, {}).out,
        "scaled rest": VARIANTS["softmax"](head.heads, {}).out,
        "factor": sigmoid(head._replace(v=ones).heads, {}).out[..., 0].T,
    }


@statement(
    "A1", "Softmax attention with outliers is attention without them, times sigma(LSE_R - LSE_O)"
)
def verify(key: Array, quick: bool) -> list[Part]:
    return compare(draw, predict, measure, control, key, shapes=SHAPES, quick=quick)
