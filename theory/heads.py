"""Random attention heads in float64, and softmax attention written out for the closed forms.

Axes: T positions, D input width, N query heads, K KV heads, H head dim.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sysout_jax.core.attention import Variant
from sysout_jax.core.layers import causal_mask
from sysout_jax.core.primitives import Heads

D = 5
SHAPES = ((1, 1, 1, 2), (2, 1, 1, 3), (7, 3, 1, 5), (13, 4, 2, 3))  # (T, N, K, H)


class Head(NamedTuple):
    """A causal attention layer's inputs, and a set of positions called outliers."""

    q: Float[Array, "T N H"]
    k: Float[Array, "T K H"]
    v: Float[Array, "T K H"]
    x: Float[Array, "T D"]
    outliers: Bool[Array, "T"]
    key: Array  # for whatever else an instance needs

    @property
    def heads(self) -> Heads:
        """The same as what an attention variant takes."""
        at = jnp.arange(len(self.q))
        return Heads(self.q, self.k, self.v, self.x, self.x, causal_mask(at, at))


def draw(key: Array, shape: tuple[int, int, int, int], scale: Array) -> Head:
    """Normal queries and keys whose logits are of size `scale`, values too; each position is an
    outlier with probability 0.3."""
    length, heads, kv_heads, dim = shape
    keys = jax.random.split(key, 6)

    def normal(key: Array, *shape: int) -> Array:
        return jax.random.normal(key, shape, jnp.float64)

    return Head(
        jnp.sqrt(scale) * normal(keys[0], length, heads, dim),
        jnp.sqrt(scale) * normal(keys[1], length, kv_heads, dim),
        scale * normal(keys[2], length, kv_heads, dim),
        normal(keys[3], length, D),
        jax.random.bernoulli(keys[4], 0.3, (length,)),
        keys[5],
    )


def per_query_head(x: Float[Array, "... K H"], heads: int) -> Float[Array, "... N H"]:
    """The KV head of each query head: heads n = 0 .. N/K - 1 read the first, and so on."""
    return x[..., jnp.arange(heads) // (heads // x.shape[-2]), :]


def logits(head: Head) -> Float[Array, "N T T"]:
    """s_ij = <q_i, k_j>/sqrt(H), and -inf where j is in the future of i."""
    length, heads, dim = head.q.shape
    s = jnp.einsum("inh,jnh->nij", head.q, per_query_head(head.k, heads)) / jnp.sqrt(
        jnp.asarray(dim, head.q.dtype)
    )
    return jnp.where(jnp.tril(jnp.ones((length, length), bool)), s, -jnp.inf)


def lse(s: Float[Array, "N T T"], among: Bool[Array, "T"] | None = None) -> Float[Array, "N T"]:
    """log sum_{j in A} exp s_j, -inf of nothing; A is every key by default."""
    s = s if among is None else jnp.where(among, s, -jnp.inf)
    return jax.nn.logsumexp(s, axis=-1)


def attend(
    s: Float[Array, "N T T"], v: Float[Array, "T N H"], among: Bool[Array, "T"] | None = None
) -> Float[Array, "T N H"]:
    """sum_j softmax_A(s)_j v_j, with zero for a query that sees no key of A."""
    total = lse(s, among)[..., None]
    s = s if among is None else jnp.where(among, s, -jnp.inf)
    weights = jnp.where(
        jnp.isneginf(total), 0.0, jnp.exp(s - jnp.where(jnp.isneginf(total), 0.0, total))
    )
    return jnp.einsum("nij,jnh->inh", weights, v)


def parameters(key: Array, variant: Variant, head: Head, scale: Array) -> dict[str, Array]:
    """Normal parameters of a variant for a head, of standard deviation sqrt(`scale`)."""
    sizes = {
        "D": head.x.shape[-1],
        "N": head.q.shape[1],
        "K": head.k.shape[1],
        "H": head.q.shape[2],
    }
    keys = jax.random.split(key, len(variant.params) + 1)
    return {
        name: jnp.sqrt(scale)
        * jax.random.normal(k, [sizes[axis] for axis in param.axes if axis in sizes], jnp.float64)
        for k, (name, param) in zip(keys, variant.params.items(), strict=False)
    }


def with_logits(heads: Heads, s: Float[Array, "N T S"]) -> Heads:
    """The same heads with their logits replaced, as an edit of a model would."""
    return heads._replace(tap=lambda name, value: s if name == "attn_logits" else value)
