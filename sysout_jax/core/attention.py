"""Attention variants: one table, each row a few lines over the same primitives.

To add a variant, write one decorated function in this file. Its parameters, their sharding, the
flag's choices, its tests, its plot label and its row in the documentation follow from the entry.
A name with plus signs composes variants ("value_bias+key_bias", core/variants.py).

Symbols of the formulas: s = q.k/sqrt(H) are the logits of the visible keys, S their number in the
sequence, p the weights, v the values, x the attention input of the query's token (x' of the
key's), primes mark extra keys and biases, which are parameters.
"""

from math import log, sqrt

import jax
import jax.numpy as jnp

from sysout_jax.core.layers import at_least_float32, linear, widened
from sysout_jax.core.norms import rms_norm
from sysout_jax.core.primitives import (
    Heads,
    Mixed,
    extra_output,
    extra_scores,
    mix,
    open_sigmoid,
    per_query,
    plain_scores,
    scale,
    scores,
    shift,
    softmax_mix,
    softmax_weights,
    softpick_weights,
    tapped_scores,
    visible,
)
from sysout_jax.core.variants import VARIANTS, Attend, Param, Params, Variant, variant

# ------------------------------------------------------------- the six variants of the paper

AN, GU = "An et al. 2025 (arXiv:2502.06415)", "Gu et al. 2025 (arXiv:2410.10781)"


@variant(letter="a", formula="softmax(s) v", cite="Vaswani et al. 2017, eq. 1", identity={})
def softmax(heads: Heads, p: Params) -> Mixed:
    return softmax_mix(heads)


@variant(
    letter="b",
    formula="softmax(s) v + v'",
    cite=AN,
    identity={"bias_value": 0.0},
    bias_value=Param("N H", "normal"),
)
def value_bias(heads: Heads, p: Params, attend: Attend = softmax_mix) -> Mixed:
    mixed = attend(heads)
    return shift(mixed, jnp.broadcast_to(p["bias_value"], mixed.out.shape))


@variant(
    letter="c",
    formula="softmax(s) v + p' v', p' = softmax([s, q.k'/sqrt(H)])'",
    cite=AN,
    identity={"bias_value": 0.0},
    bias_key=Param("K H", "normal"),
    bias_value=Param("K H", "normal"),
)
def context_bias(heads: Heads, p: Params) -> Mixed:
    logits = scores(heads)
    mixed = mix(heads, softmax_weights(logits, heads.mask)[0])
    extra = softmax_weights(logits, heads.mask, extra_scores(heads, p["bias_key"]))[1]
    return shift(mixed, extra_output(heads, extra, p["bias_value"]))


@variant(
    letter="d",
    formula="softmax([s, q.k'/sqrt(H)]) [v, v']",
    cite=f"Sun et al. 2024 (arXiv:2402.17762); {AN}",
    extra_key=True,
    bias_key=Param("K H", "normal"),
    bias_value=Param("K H", "normal"),
)
def attention_bias(heads: Heads, p: Params) -> Mixed:
    extra = extra_scores(heads, p["bias_key"])
    mixed = softmax_mix(heads, extra)
    return shift(mixed, extra_output(heads, mixed.extra, p["bias_value"]))


@variant(
    letter="e",
    formula="2 sigmoid(w.x + b) softmax(s) v, per head",
    cite=f"{AN}, where w begins at N(0, 0.02)",
    identity={"gate_kernel": 0.0, "gate_bias": 0.0},
    gate_kernel=Param("D -> N", 0.0),
    gate_bias=Param("N", 0.0),
)
def context_scale(heads: Heads, p: Params, attend: Attend = softmax_mix) -> Mixed:
    gate = open_sigmoid(linear(heads.x_q, p["gate_kernel"], p["gate_bias"]))
    return scale(heads, attend(heads), gate[..., None])


@variant(
    letter="f",
    formula="sigmoid(s - log S) v",
    cite=f"Ramapuram et al. 2025 (arXiv:2409.04431); {AN}",
    normalised=False,
)
def sigmoid(heads: Heads, p: Params) -> Mixed:
    weights = jax.nn.sigmoid(scores(heads) - log(heads.length))
    return mix(heads, visible(weights, heads.mask))


# ----------------------------------------------- extra keys: mass that goes to no real token


@variant(
    formula="softmax([s, 0]) [v, 0]", cite="Miller 2023, Attention is off by one", extra_key=True
)
def softmax_off_by_one(heads: Heads, p: Params) -> Mixed:
    return softmax_mix(heads, jnp.zeros(per_query(heads), at_least_float32(heads.q.dtype)))


@variant(
    formula="softmax([s, b]) [v, 0], b per head",
    cite="OpenAI 2025, gpt-oss (arXiv:2508.10925)",
    extra_key=True,
    sink_logit=Param("N", 0.0),
)
def sink_logit(heads: Heads, p: Params) -> Mixed:
    logit = p["sink_logit"].astype(at_least_float32(heads.q.dtype))
    return softmax_mix(heads, jnp.broadcast_to(logit[:, None], per_query(heads)))


@variant(
    formula="softmax([s, q.k'/sqrt(H)]) [v, 0]",
    cite=GU,
    extra_key=True,
    bias_key=Param("K H", "normal"),
)
def key_bias(heads: Heads, p: Params) -> Mixed:
    return softmax_mix(heads, extra_scores(heads, p["bias_key"]))


# -------------------------------------------------------- gates: the scaling factor explicit


@variant(
    formula="sigmoid(w.x + b) softmax(s) v, per head, b = 5 at first",
    cite="after Bondarenko et al. 2023 (arXiv:2306.12929), of all channels; Qiu et al. 2025 "
    "(arXiv:2505.06708)",
    identity={"gate_kernel": 0.0, "gate_bias": 1e3},
    gate_kernel=Param("D -> N", 0.0),
    gate_bias=Param("N", 5.0),
)
def head_gate(heads: Heads, p: Params, attend: Attend = softmax_mix) -> Mixed:
    gate = jax.nn.sigmoid(linear(heads.x_q, p["gate_kernel"], p["gate_bias"]))
    return scale(heads, attend(heads), gate[..., None])


@variant(
    formula="2 sigmoid(W x) * softmax(s) v, per head and channel",
    cite="Qiu et al. 2025 (arXiv:2505.06708), position G1",
    identity={"gate_kernel": 0.0},
    gate_kernel=Param("D -> N H", 0.0),
)
def element_gate(heads: Heads, p: Params, attend: Attend = softmax_mix) -> Mixed:
    return scale(heads, attend(heads), open_sigmoid(linear(heads.x_q, p["gate_kernel"])))


@variant(
    formula="sigmoid(w.x) softmax(s) v, per head: half open at first",
    cite="Qiu et al. 2025 (arXiv:2505.06708), position G1 by head, as published",
    gate_kernel=Param("D -> N", 0.0),
)
def plain_head_gate(heads: Heads, p: Params, attend: Attend = softmax_mix) -> Mixed:
    gate = jax.nn.sigmoid(linear(heads.x_q, p["gate_kernel"]))
    return scale(heads, attend(heads), gate[..., None])


@variant(
    formula="sigmoid(W x) * softmax(s) v, per head and channel: half open at first",
    cite="Qiu et al. 2025 (arXiv:2505.06708), position G1, as published",
    gate_kernel=Param("D -> N H", 0.0),
)
def plain_element_gate(heads: Heads, p: Params, attend: Attend = softmax_mix) -> Mixed:
    return scale(heads, attend(heads), jax.nn.sigmoid(linear(heads.x_q, p["gate_kernel"])))


@variant(
    formula="softmax(s) (2 sigmoid(W x') * v)",
    cite="Qiu et al. 2025 (arXiv:2505.06708), position G2",
    identity={"gate_kernel": 0.0},
    gate_kernel=Param("D -> K H", 0.0),
)
def value_gate(heads: Heads, p: Params, attend: Attend = softmax_mix) -> Mixed:
    gate = heads.tap("attn_gate", open_sigmoid(linear(heads.x_k, p["gate_kernel"])))
    return attend(heads._replace(v=heads.v * gate))


@variant(
    formula="2 sigmoid(b) softmax(s) v, b per head: a gate that cannot see the context",
    cite="Qiu et al. 2025 (arXiv:2505.06708), input-independent ablation",
    identity={"gate_bias": 0.0},
    gate_bias=Param("N", 0.0),
)
def static_gate(heads: Heads, p: Params, attend: Attend = softmax_mix) -> Mixed:
    mixed = attend(heads)
    gate = open_sigmoid(p["gate_bias"])[:, None]
    return scale(heads, mixed, jnp.broadcast_to(gate, (*mixed.out.shape[:-1], 1)))


# ------------------------------------------------------------------------ other normalisers


@variant(
    formula="clip((1 + 12/S) softmax(s) - 12/S, 0, 1) v",
    cite="Bondarenko et al. 2023 (arXiv:2306.12929), alpha = 12, zeta = 1",
)
def clipped_softmax(heads: Heads, p: Params) -> Mixed:
    stretch = 12.0 / heads.length
    weights, _ = softmax_weights(scores(heads), heads.mask)
    return mix(heads, jnp.clip((1.0 + stretch) * weights - stretch, 0.0, 1.0))


@variant(
    formula="relu(e^s - 1) / sum abs(e^s - 1) v",
    cite="Zuhri et al. 2025 (arXiv:2504.20966)",
)
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


# ------------------------------------------------------------------- norms around softmax


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
    formula="rms_norm(softmax(s) v) * (1 + g), per head",
    cite="Sun et al. 2023 (arXiv:2307.08621), section 2.2; Qiu et al. 2025 (arXiv:2505.06708)",
    norm_gain=Param("N H", 0.0),
)
def head_norm(heads: Heads, p: Params, attend: Attend = softmax_mix) -> Mixed:
    mixed = attend(heads)
    normed = rms_norm(mixed.out)
    gain = jnp.broadcast_to(1.0 + widened(p["norm_gain"]), normed.shape).astype(normed.dtype)
    return mixed._replace(out=normed * gain)


# ------------------------------------------------------- rows of 2025 and 2026

SCALABLE_FROM = 32  # visible keys at which scalable softmax begins as softmax


@variant(
    formula="softmax([s, b]) [v, v'], b per head: S = sigmoid(LSE(s) - b), and (1 - S) v'",
    cite="theory T2, T4; OpenAI 2025 (arXiv:2508.10925) without v'",
    extra_key=True,
    sink_logit=Param("N", 0.0),
    bias_value=Param("K H", "normal"),
)
def sink_value(heads: Heads, p: Params) -> Mixed:
    mixed = sink_logit(heads, p)
    return shift(mixed, extra_output(heads, mixed.extra, p["bias_value"]))


@variant(
    formula="y - (y.v_i / v_i.v_i) v_i, y = softmax(s) v: nothing along the query's own value",
    cite="Zhai 2026 (arXiv:2603.09078), exclusive self-attention",
)
def exclusive(heads: Heads, p: Params, attend: Attend = softmax_mix) -> Mixed:
    mixed = attend(heads)
    own = heads.own_value.astype(mixed.out.dtype)
    size = jnp.sum(own * own, axis=-1, keepdims=True)
    along = jnp.sum(mixed.out * own, axis=-1, keepdims=True) / jnp.where(size == 0.0, 1.0, size)
    return shift(mixed, -along * own)


@variant(
    formula="softmax(s) (2 sigmoid(w.v_j + b) v_j), per KV head: a gate that sees the value alone",
    cite="after arXiv:2510.09017, value-state gate",
    identity={"gate_kernel": 0.0, "gate_bias": 0.0},
    gate_kernel=Param("K H", 0.0),
    gate_bias=Param("K", 0.0),
)
def value_state_gate(heads: Heads, p: Params, attend: Attend = softmax_mix) -> Mixed:
    kernel, bias = (p[name].astype(heads.v.dtype) for name in ("gate_kernel", "gate_bias"))
    logits = jnp.einsum("...SKH,KH->...SK", heads.v, kernel)
    gate = open_sigmoid(logits + jnp.broadcast_to(bias, logits.shape))[..., None]
    return attend(heads._replace(v=heads.v * heads.tap("attn_gate", gate)))


@variant(
    formula="softmax(s) (r/(r + C) v), r = v.v, C = D H 0.02^2 e^t, t per KV head",
    cite="Chen et al. 2026 (arXiv:2603.17771), section 5.1, V-scale: small values and their "
    "gradients shrink",
    identity={"gate_log_scale": -80.0},
    gate_log_scale=Param("K", 0.0),
)
def v_scale(heads: Heads, p: Params, attend: Attend = softmax_mix) -> Mixed:
    v = heads.v.astype(at_least_float32(heads.v.dtype))
    size = jnp.sum(v * v, axis=-1, keepdims=True)
    # What v.v is at first where x has unit mean square: weights of LLaMA begin at 0.02.
    typical = heads.x_k.shape[-1] * v.shape[-1] * 0.02**2
    c = typical * jnp.exp(p["gate_log_scale"].astype(v.dtype))[:, None]
    gate = (size / (size + jnp.broadcast_to(c, size.shape))).astype(heads.v.dtype)
    return attend(heads._replace(v=heads.v * heads.tap("attn_gate", gate)))


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


PAPER: tuple[str, ...] = tuple(v.name for v in VARIANTS.values() if v.letter)


def variants() -> tuple[Variant, ...]:
    """The table of attention variants: name, formula, citation, parameters."""
    return tuple(VARIANTS.values())
