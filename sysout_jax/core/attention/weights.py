"""Weights that are not the softmax of scaled products."""

from math import log, sqrt

import jax
import jax.numpy as jnp

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
