"""Gates on values and outputs, which make the scaling factor explicit, and norms of outputs."""

import jax
import jax.numpy as jnp

from sysout_jax.core.layers import at_least_float32, linear, widened
from sysout_jax.core.norms import rms_norm
from sysout_jax.core.primitives import Heads, Mixed, open_sigmoid, scale, shift, softmax_mix
from sysout_jax.core.variants import Attend, Param, Params, variant


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
    formula="rms_norm(softmax(s) v) * (1 + g), per head",
    cite="Sun et al. 2023 (arXiv:2307.08621), section 2.2; Qiu et al. 2025 (arXiv:2505.06708)",
    norm_gain=Param("N H", 0.0),
)
def head_norm(heads: Heads, p: Params, attend: Attend = softmax_mix) -> Mixed:
    mixed = attend(heads)
    normed = rms_norm(mixed.out)
    gain = jnp.broadcast_to(1.0 + widened(p["norm_gain"]), normed.shape).astype(normed.dtype)
    return mixed._replace(out=normed * gain)


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
