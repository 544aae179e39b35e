"""F8. The sensitivity of a late state to an early one is a sum over attention paths; sinks cut it.

Statement. Let h^l = h^(l-1) + A_l h^(l-1) W_l with attention weights A_l that do not move. Then

    |dh_i^L / dh_j^0| <= [prod_l (I + |W_l| A_l)]_ij    (operator norms),

a sum over all paths from j to i that stay or follow an attention edge in each layer. If every query
gives the share 1 - S to a sink with value zero, the edges among the rest carry the factor S (A1):

    |dh_i^L / dh_j^0| <= [prod_l (I + S |W_l| A^R_l)]_ij   for i, j not the sink,

so a path with n moves loses S^n, and as S -> 0 only a state's own past remains. Both are attained
where each W_l is a positive multiple of the identity.

Assumptions. Weights do not move with the states, and there is no MLP. Neither holds in any trained
model: this bounds one path of influence, and no statement here rests on it. It is kept because it
says what a sink could be good for beside doing nothing, as its source does.

Proof. dh^l_i/dh^(l-1)_j = delta_ij I + A_ij W^T; the norm of a sum over paths is at most the sum of
norms.

Source: Barbero et al. 2025 (arXiv:2504.02732), theorem 3.2, without its MLP.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sysout_jax.core.primitives import softmax_weights
from theory.check import Part, Quantities, at_most, compare, statement
from theory.decompositions import singular_values

D = 3
SHAPES = ((1, 1), (2, 2), (5, 3))  # (T, layers)


class Instance(NamedTuple):
    """States, the maps of each layer, logits among tokens, and what the sink leaves."""

    h: Float[Array, "T D"]
    w: Float[Array, "L D D"]
    qk: Float[Array, "L D D"]
    logits: Float[Array, "L T T"]
    left: Float[Array, ""]


def draw(key: Array, shape: tuple[int, int], scale: Array) -> Instance:
    """Logits of size up to 10 `scale`, so that attention is spread in some and sharp in others."""
    length, layers = shape
    keys = jax.random.split(key, 5)
    h = jax.random.normal(keys[0], (length, D), jnp.float64)
    w, qk = (jax.random.normal(k, (layers, D, D), jnp.float64) for k in keys[1:3])
    logits = jnp.einsum("ta,lab,sb->lts", h, qk, h)
    return Instance(h, w, qk, jnp.sqrt(scale) * logits, jax.random.uniform(keys[4]))


def attention(logits: Float[Array, "*L T T"]) -> Float[Array, "*L T T"]:
    """Causal softmax weights."""
    length = logits.shape[-1]
    return softmax_weights(logits, jnp.tril(jnp.ones((length, length), bool)))[0]


def beside_a_sink(logits: Float[Array, "*L T T"], left: Float[Array, ""]) -> Float[Array, "*L T T"]:
    """Causal weights among the tokens beside a sink whose logit leaves them `left` of each row."""
    seen = jnp.tril(jnp.ones(logits.shape[-2:], bool))
    total = jax.nn.logsumexp(jnp.where(seen, logits, -jnp.inf), axis=-1, keepdims=True)
    sink = total + jnp.log1p(-left) - jnp.log(left)
    visible = jnp.concatenate([jnp.ones((len(seen), 1), bool), seen], axis=1)
    return softmax_weights(jnp.concatenate([sink, logits], axis=-1), visible)[0][..., 1:]


def path_sum(a: Float[Array, "L T T"], norms: Float[Array, "L"]) -> Float[Array, "T T"]:
    """prod_l (I + |W_l| A_l), the last layer leftmost."""
    total = jnp.eye(a.shape[-1])
    for layer, norm in zip(a, norms, strict=True):
        total = total + norm * layer @ total
    return total


def predict(case: Instance) -> Quantities:
    """Both bounds."""
    norms = jax.vmap(singular_values)(case.w)[:, 0]
    a = attention(case.logits)
    return {"sensitivity": path_sum(a, norms), "with a sink": path_sum(case.left * a, norms)}


def measure(case: Instance) -> Quantities:
    """Operator norms of the blocks of the Jacobian, beside a sink that is a key of each row."""
    a, shared = attention(case.logits), beside_a_sink(case.logits, case.left)
    return {
        "sensitivity": _norms(case, lambda h, layer: a[layer]),
        "with a sink": _norms(case, lambda h, layer: shared[layer]),
    }


def control(case: Instance) -> Quantities:
    """Weights that move with the states; a sink that no query attends to."""

    def moving(h: Array, layer: int) -> Array:
        return attention((h @ case.qk[layer] @ h.T)[None])[0]

    a = attention(case.logits)
    return {
        "sensitivity": _norms(case, moving),
        "with a sink": _norms(case, lambda h, layer: a[layer]),
    }


def multiples(case: Instance) -> Instance:
    """Equality in both: every W_l is |W_l| I."""
    sizes = jax.vmap(singular_values)(case.w)[:, 0]
    return case._replace(w=sizes[:, None, None] * jnp.eye(D)[None])


def _norms(case: Instance, weights) -> Float[Array, "T T"]:  # type: ignore[no-untyped-def]
    def stack(h: Array) -> Array:
        for layer in range(len(case.w)):
            h = h + weights(h, layer) @ h @ case.w[layer]
        return h

    blocks = jax.jacrev(stack)(case.h)  # [T, D, T, D]
    return jax.vmap(jax.vmap(singular_values))(jnp.swapaxes(blocks, 1, 2))[..., 0]


@statement("F8", "Sensitivity to early tokens is at most a sum over attention paths; sinks cut it")
def verify(key: Array, quick: bool) -> list[Part]:
    return compare(
        draw, predict, measure, control, key, shapes=SHAPES, error=at_most,
        tight=dict.fromkeys(("sensitivity", "with a sink"), multiples), quick=quick,
    )  # fmt: skip
