"""Weights that are not the softmax of scaled products."""

from math import log, sqrt

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sysout_jax.core.attention.paper import GU
from sysout_jax.core.layers import at_least_float32, linear, widened
from sysout_jax.core.norms import rms_norm
from sysout_jax.core.primitives import (
    Heads,
    Mixed,
    mix,
    plain_scores,
    scores,
    shift,
    softmax_mix,
    softmax_weights,
    softpick_weights,
    tapped_scores,
    visible,
)
from sysout_jax.core.variants import Attend, Param, Params, variant

SCALABLE_FROM = 32  # visible keys at which scalable softmax begins as softmax


@variant(
    formula="clip((1 + 12/S) softmax(s) - 12/S, 0, 1) v",
    cite="Bondarenko et al. 2023 (arXiv:2306.12929), alpha = 12, zeta = 1",
)
def clipped_softmax(heads: Heads, p: Params) -> Mixed:
    stretch = 12.0 / heads.length
    weights, _ = softmax_weights(scores(heads), heads.mask)
    return mix(heads, jnp.clip((1.0 + stretch) * weights - stretch, 0.0, 1.0))


@variant(formula="relu(e^s - 1) / sum abs(e^s - 1) v", cite="Zuhri et al. 2025 (arXiv:2504.20966)")
def softpick(heads: Heads, p: Params) -> Mixed:
    return mix(heads, softpick_weights(scores(heads), heads.mask))


@variant(
    formula="relu(s)/n v, n visible keys",
    cite="Ran-Milo 2026; Wortsman et al. 2023 (arXiv:2309.08586)",
    normalised=False,
)
def relu(heads: Heads, p: Params) -> Mixed:
    weights = visible(jax.nn.relu(scores(heads)), heads.mask)
    count = jnp.maximum(jnp.sum(heads.mask, axis=-1, keepdims=True, dtype=weights.dtype), 1.0)
    return mix(heads, weights / jnp.broadcast_to(count, weights.shape))


@variant(formula="(elu(s) + 1) v", cite=GU, normalised=False)
def elu_plus_one(heads: Heads, p: Params) -> Mixed:
    return mix(heads, visible(jax.nn.elu(scores(heads)) + 1.0, heads.mask))


@variant(formula="sigmoid(s) v", cite=GU, normalised=False)
def plain_sigmoid(heads: Heads, p: Params) -> Mixed:
    return mix(heads, visible(jax.nn.sigmoid(scores(heads)), heads.mask))


@variant(formula="sigmoid(s) / sum sigmoid(s) v", cite=GU)
def normalised_sigmoid(heads: Heads, p: Params) -> Mixed:
    return mix(heads, softmax_weights(jax.nn.log_sigmoid(scores(heads)), heads.mask)[0])


@variant(formula="(elu(s) + 1) / sum (elu(s) + 1) v", cite=GU)
def normalised_elu_plus_one(heads: Heads, p: Params) -> Mixed:
    logits = scores(heads)
    logarithm = jnp.where(logits > 0.0, jnp.log1p(jax.nn.relu(logits)), logits)
    return mix(heads, softmax_weights(logarithm, heads.mask)[0])


@variant(
    formula="softmax((1 + g) sqrt(H) cos(q, k)) v, g per head",
    cite="Henry et al. 2020 (arXiv:2010.04245)",
    qk_gain=Param("N", 0.0),
)
def qk_norm(heads: Heads, p: Params, attend: Attend = softmax_mix) -> Mixed:
    q = rms_norm(heads.q)
    gain = jnp.broadcast_to((1.0 + widened(p["qk_gain"]))[:, None], q.shape).astype(q.dtype)
    return attend(heads._replace(q=q * gain, k=rms_norm(heads.k)))


@variant(
    formula="softmax((1 + g)/log(32) log(n) s) v, n visible keys, g per head: softmax at 32 first",
    cite="Nakanishi 2025 (arXiv:2501.19399), scalable softmax",
    log_gain=Param("N", 0.0),
)
def scalable_softmax(heads: Heads, p: Params, attend: Attend = softmax_mix) -> Mixed:
    count = jnp.sum(heads.mask, axis=-1, dtype=at_least_float32(heads.q.dtype))
    steep = jnp.log(jnp.maximum(count, 1.0)) / log(SCALABLE_FROM)
    gain = jnp.outer(steep, 1.0 + p["log_gain"].astype(steep.dtype))[..., None]
    q = heads.q.astype(gain.dtype) * jnp.broadcast_to(gain, heads.q.shape)
    return attend(heads._replace(q=q.astype(heads.q.dtype)))


@variant(
    formula="(softmax(s') - sigmoid(w.x + b) softmax(s'')) v, s' and s'' of half the channels each",
    cite="Ye et al. 2025 (arXiv:2410.05258), its lambda by token and head, without their norm",
    normalised=False,  # its weights can be negative
    lambda_kernel=Param("D -> N", 0.0),
    lambda_bias=Param("N", 0.0),
)
def differential(heads: Heads, p: Params) -> Mixed:
    # Channels in turn by twos: of heads of a multiple of 8 either half has whole rotary pairs.
    first = jnp.arange(heads.q.shape[-1]) // 2 % 2 == 0
    factor = sqrt(2 / heads.q.shape[-1]) if heads.scale is None else heads.scale
    one, other = (
        heads._replace(q=jnp.where(jnp.broadcast_to(half, heads.q.shape), heads.q, 0), scale=factor)
        for half in (first, ~first)
    )
    less = jax.nn.sigmoid(linear(heads.x_q, p["lambda_kernel"], p["lambda_bias"]))
    if heads.fused is not None:
        return shift(softmax_mix(one), -less[..., None] * softmax_mix(other).out)
    logits = plain_scores(one)
    tapped = tapped_scores(heads, logits)
    weights, _ = softmax_weights(tapped, heads.mask)
    # An edit moves both maps' logits by as much.
    others, _ = softmax_weights(plain_scores(other) + (tapped - logits), heads.mask)
    less = jnp.swapaxes(less, -1, -2)[..., None].astype(weights.dtype)
    return mix(heads, weights - jnp.broadcast_to(less, others.shape) * others)


def _after(x: Float[Array, "*B N T S"]) -> Float[Array, "*B N T S"]:
    """The sum over later keys."""
    later = jax.lax.cumsum(x[..., 1:], axis=x.ndim - 1, reverse=True)
    return jnp.pad(later, [(0, 0)] * (x.ndim - 1) + [(0, 1)])


@variant(
    formula="b_j prod_{k>j} (1 - b_k) v_j, b = sigmoid(s): what later keys leave",
    cite="Tan et al. 2025 (arXiv:2410.17980), stick-breaking, with the query's own key",
)
def stick_breaking(heads: Heads, p: Params) -> Mixed:
    logits = scores(heads)
    left = _after(visible(jax.nn.log_sigmoid(-logits), heads.mask))
    return mix(heads, visible(jnp.exp(jax.nn.log_sigmoid(logits) + left), heads.mask))


@variant(
    formula="softmax(s + sum_{k>j} log f_k) v_j, f = sigmoid(w.x' + b) per head: half at first",
    cite="Lin et al. 2025 (arXiv:2503.02130), forgetting attention",
    identity={"forget_kernel": 0.0, "forget_bias": 40.0},
    forget_kernel=Param("D -> N", 0.0),
    forget_bias=Param("N", 0.0),
)
def forgetting(heads: Heads, p: Params) -> Mixed:
    logits = plain_scores(heads)
    gate = linear(heads.x_k, p["forget_kernel"], p["forget_bias"]).astype(logits.dtype)
    kept = jax.nn.log_sigmoid(jnp.swapaxes(gate, -1, -2))[..., None, :]
    # Keys of no token come before all that is forgotten.
    kept = jnp.pad(kept, [(0, 0)] * (kept.ndim - 1) + [(heads.ahead, 0)])
    faded = _after(visible(jnp.broadcast_to(kept, logits.shape), heads.mask))
    return mix(heads, softmax_weights(tapped_scores(heads, logits + faded), heads.mask)[0])


@variant(
    formula="relu(softmax(s) + t/n) v, n visible keys, t per head: -1 at first",
    cite="arXiv:2601.00919, elastic softmax of lazy attention",
    identity={"threshold": 0.0},
    normalised=False,  # t may become positive
    threshold=Param("N", -1.0),
)
def elastic_softmax(heads: Heads, p: Params) -> Mixed:
    logits = scores(heads)
    weights, _ = softmax_weights(logits, heads.mask)
    count = jnp.maximum(jnp.sum(heads.mask, axis=-1, dtype=weights.dtype), 1.0)
    offset = p["threshold"].astype(weights.dtype)[:, None] / jnp.broadcast_to(
        count, (heads.q.shape[-2], *count.shape)
    )
    moved = jax.nn.relu(weights + jnp.broadcast_to(offset[..., None], weights.shape))
    return mix(heads, visible(jnp.where(logits > -jnp.inf, moved, 0.0), heads.mask))


@variant(
    formula="relu(s/2 - t)^2 v, t such that they sum to 1",
    cite="Peters et al. 2019 (arXiv:1905.05702), 1.5-entmax",
)
def entmax(heads: Heads, p: Params) -> Mixed:
    logits = scores(heads)
    # An edit takes a key away by a logit of -inf.
    seen = jnp.broadcast_to(heads.mask, logits.shape) & (logits > -jnp.inf)
    largest = jnp.max(logits, axis=-1, where=seen, initial=-jnp.inf, keepdims=True)
    half = (logits - jax.lax.stop_gradient(jnp.where(largest > -jnp.inf, largest, 0.0))) / 2.0
    half = jnp.where(seen, half, -2.0)  # below any threshold
    threshold = _threshold(jax.lax.stop_gradient(half))
    # Of the keys above it alone the threshold is the root of a quadratic: exact, with a gradient.
    picked = seen & (half > threshold)
    count = jnp.maximum(jnp.sum(picked, axis=-1, keepdims=True, dtype=half.dtype), 1.0)
    mean = jnp.sum(half, axis=-1, where=picked, keepdims=True) / count
    spread = jnp.sum(jnp.square(half - mean), axis=-1, where=picked, keepdims=True)
    # 1 - spread = count (mean - t)^2, and mean - t is at least 1/count.
    distance = jnp.sqrt(jnp.maximum(1.0 - spread, 1.0 / count) / count)
    return mix(heads, jnp.where(picked, jnp.square(half - (mean - distance)), 0.0))


def _threshold(half: Float[Array, "*B N T S"]) -> Float[Array, "*B N T 1"]:
    """t in [-1, 0] with sum relu(x - t)^2 = 1, of x whose largest is 0, by halving."""

    def halve(_: int, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = (low + high) / 2.0
        above = jnp.sum(jnp.square(jax.nn.relu(half - middle)), axis=-1, keepdims=True) >= 1.0
        return jnp.where(above, middle, low), jnp.where(above, high, middle)

    begin = jnp.full_like(half[..., :1], -1.0), jnp.zeros_like(half[..., :1])
    low, high = jax.lax.fori_loop(0, jnp.finfo(half.dtype).nmant + 1, halve, begin)
    return (low + high) / 2.0
