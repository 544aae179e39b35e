"""T6. Which extra keys are what some token does: the converse of T1.

Statement. Let a layer read states through RMSNorm, n = sqrt(D) x/|x|, and let W_K and W_V, gains
included, map n to its keys and values, C = K H channels each. `key_bias` in this layer, an extra
key k' with the value 0, is what some token does iff

    W_K n = k', W_V n = 0 has a solution with |n| = sqrt(D).

(i)   With P the projection on ker W_V, the least solution has |n| = |(W_K P)^+ k'|, if there is
      one. It can be lengthened to sqrt(D) where both kernels meet.
(ii)  So for matrices in general position, every k' that is small enough is a token's where D > 2 C.
      Where C < D <= 2 C only some k' are: those in W_K ker W_V of the right size.
(iii) |W_V n| >= sqrt(D) sigma_D(W_V) for every token, with equality for the last right singular
      vector. So where D <= C, as in multi-head attention with N H = D, no token of a layer in
      general position has the value 0: a parameter can be drained exactly, a token cannot.

Assumptions. RMSNorm without eps, no biases, no QK norm; the state is free. Queries span R^H and the
output projection loses nothing, else other tokens may do the same. Under RoPE the key is the one
that T1 has, R_{c-j} k'.

Proof. RMSNorm takes states onto the sphere |n| = sqrt(D), all of it, and the text meets the token
through its key and value. (i) Solutions are in ker W_V, where n = P n; add a vector that both
kernels have. (ii) W_K is onto from ker W_V where D - C >= C, and both kernels share D - 2 C
dimensions. (iii) is the definition of the last singular value.

Source: this package.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.layers import linear
from sysout_jax.core.norms import rms_norm
from sysout_jax.core.primitives import Heads, Mixed
from theory.check import Part, Quantities, at_least, compare, relative, statement
from theory.decompositions import eigh, pinv, singular_values

SHAPES = ((1, 1, 1, 1), (2, 2, 1, 2), (5, 4, 2, 3))  # (keys of the rest, N, K, H)
LONGEST = 0.9  # of sqrt(D), the least norm of the tokens that are drawn
# Of logits of size 1. The matrices' condition, up to 1e4 in 1000 draws, multiplies 1e-16, and the
# square of the least singular value comes from an eigenvalue that is exact to 1e-16 of the largest.
TOLERANCE = 1e-9


class Instance(NamedTuple):
    """A layer of D = 2 K H + 1, an extra key, and the value matrix of one with D = K H."""

    query: Float[Array, "D N H"]
    key: Float[Array, "D K H"]
    value: Float[Array, "D K H"]
    x: Float[Array, "T D"]  # what the layer reads; every one sees every one
    extra: Float[Array, "K H"]
    square: Float[Array, "C C"]
    state: Float[Array, "C"]  # of any token of that layer


def draw(key: Array, shape: tuple[int, int, int, int], scale: Array) -> Instance:
    """Normal matrices that keep sizes; a k' whose token has least norm of at most 0.9 sqrt(D)."""
    length, count, kv_heads, dim = shape
    keys = jax.random.split(key, 8)
    channels = kv_heads * dim
    width = 2 * channels + 1

    def normal(key: Array, *shape: int) -> Array:
        return jax.random.normal(key, shape, jnp.float64)

    root = jnp.sqrt(jnp.asarray(width, jnp.float64))
    w_k, w_v = (normal(k, width, kv_heads, dim) / root for k in keys[1:3])
    extra = normal(keys[4], kv_heads, dim)
    size = least_norm(w_k.reshape(width, -1), w_v.reshape(width, -1), extra.reshape(-1))
    length_of_token = LONGEST * root * jax.random.uniform(keys[5], (), jnp.float64)
    return Instance(
        normal(keys[0], width, count, dim) / root, w_k, w_v,
        scale * normal(keys[3], length, width),
        extra * length_of_token / size,
        normal(keys[6], channels, channels), scale * normal(keys[7], channels),
    )  # fmt: skip


def least_norm(
    w_k: Float[Array, "D C"], w_v: Float[Array, "D C"], extra: Float[Array, "C"]
) -> Array:
    """|(W_K P)^+ k'|."""
    onto = jnp.eye(len(w_v)) - w_v @ pinv(w_v)
    return jnp.linalg.norm(extra @ pinv(onto @ w_k))


def predict(case: Instance) -> Quantities:
    """Key bias, the least norm of its token, and the least value of a token."""
    width = len(case.key)
    w_k, w_v = case.key.reshape(width, -1), case.value.reshape(width, -1)
    mixed = VARIANTS["key_bias"](_heads(case, case.x), {"bias_key": case.extra})
    root = jnp.sqrt(jnp.asarray(len(case.square), w_k.dtype))
    return {
        "output": mixed.out,
        "mass": mixed.extra,
        "least norm": least_norm(w_k, w_v, case.extra.reshape(-1)),
        "least value": root * singular_values(case.square)[-1],
    }


def measure(case: Instance) -> Quantities:
    """Attention over the text and one more state, which solves all equations at once."""
    least, common, root = _solution(case)
    token = least + common * jnp.sqrt(jnp.square(root) - jnp.sum(jnp.square(least)))
    read = linear(rms_norm(case.state, eps=0.0), case.square)
    return _quantities(_with_token(case, token), jnp.linalg.norm(least), jnp.linalg.norm(read))


def control(case: Instance) -> Quantities:
    """The solution not lengthened; any value allowed; the value in a layer with D > K H."""
    least, _, root = _solution(case)
    width = len(case.key)
    drained = root * least / jnp.linalg.norm(least) @ case.value.reshape(width, -1)
    any_value = case.extra.reshape(-1) @ pinv(case.key.reshape(width, -1))
    return _quantities(
        _with_token(case, least), jnp.linalg.norm(any_value), jnp.linalg.norm(drained)
    )


def most_drained(case: Instance) -> Instance:
    """The same with the last right singular vector for the state, the first of the inverse."""
    inverse = pinv(case.square)
    return case._replace(state=eigh(inverse.T @ inverse)[1][:, -1])


def _solution(case: Instance) -> tuple[Array, Array, Array]:
    """The least n with W_K n = k' and W_V n = 0, a unit vector of both kernels, and sqrt(D)."""
    width = len(case.key)
    both = jnp.concatenate([w.reshape(width, -1) for w in (case.key, case.value)], axis=1)
    inverse = pinv(both)
    least = jnp.concatenate([case.extra.reshape(-1), jnp.zeros(both.shape[1] // 2)]) @ inverse
    common = case.x[0] - case.x[0] @ both @ inverse
    root = jnp.sqrt(jnp.asarray(width, both.dtype))
    return least, common / jnp.linalg.norm(common), root


def _heads(case: Instance, x: Float[Array, "S D"]) -> Heads:
    """The layer's heads for queries of the text and keys of x."""
    q, k = rms_norm(case.x, eps=0.0), rms_norm(x, eps=0.0)
    visible = jnp.full((len(q), len(k)), True)
    return Heads(linear(q, case.query), linear(k, case.key), linear(k, case.value), q, k, visible)


def _with_token(case: Instance, state: Float[Array, "D"]) -> Mixed:
    return VARIANTS["softmax"](_heads(case, jnp.concatenate([state[None], case.x])), {})


def _quantities(mixed: Mixed, least: Array, read: Array) -> Quantities:
    return {
        "output": mixed.out,
        "mass": mixed.weights[..., 0],
        "least norm": least,
        "least value": read,
    }


@statement("T6", "A drained extra key is a token iff W_K n = k', W_V n = 0 has |n| = sqrt(D)")
def verify(key: Array, quick: bool) -> list[Part]:
    exact = dict.fromkeys(("output", "mass", "least norm"), relative)
    return compare(
        draw, predict, measure, control, key, shapes=SHAPES, tolerance=TOLERANCE,
        error={**exact, "least value": at_least}, tight={"least value": most_drained}, quick=quick,
    )  # fmt: skip
