"""Extra keys: mass that goes to no real token."""

import jax.numpy as jnp

from sysout_jax.core.attention.paper import GU
from sysout_jax.core.layers import at_least_float32
from sysout_jax.core.primitives import (
    Heads,
    Mixed,
    extra_output,
    extra_scores,
    per_query,
    shift,
    softmax_mix,
)
from sysout_jax.core.variants import Param, Params, variant


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
