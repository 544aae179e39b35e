"""The six variants of the paper, (a) to (f)."""

from math import log

import jax
import jax.numpy as jnp

from sysout_jax.core.layers import linear
from sysout_jax.core.primitives import (
    Heads,
    Mixed,
    extra_output,
    extra_scores,
    mix,
    open_sigmoid,
    scale,
    scores,
    shift,
    softmax_mix,
    softmax_weights,
    visible,
)
from sysout_jax.core.variants import VARIANTS, Attend, Param, Params, variant

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


PAPER: tuple[str, ...] = tuple(v.name for v in VARIANTS.values() if v.letter)
