"""Attention variants: one table, each row a few lines over the same primitives.

To add a variant, write one decorated function in this file. Its parameters, their sharding, the
flag's choices, its tests, its plot label and its row in the documentation follow from the entry.

Symbols of the formulas: s = q.k/sqrt(H) are the logits of the visible keys, S their number in the
sequence, p the weights, v the values, x the attention input of the query's token (x' of the
key's), primes mark extra keys and biases, which are parameters.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import log
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jaxtyping import Array

from sysout_jax.core.layers import at_least_float32, linear, rms_norm
from sysout_jax.core.primitives import (
    Heads,
    Mixed,
    extra_output,
    extra_scores,
    mix,
    open_sigmoid,
    per_query,
    scale,
    scores,
    shift,
    softmax_mix,
    softmax_weights,
    softpick_weights,
    visible,
)

Params = Mapping[str, Array]


@dataclass(frozen=True)
class Param:
    """A parameter of a variant: axis letters ("D -> N" maps D to N, "N" is a vector over heads),
    and its initial value, a constant or "normal" (the model's initial standard deviation)."""

    axes: str
    init: float | str


@dataclass(frozen=True)
class Variant:
    """A row of the table of attention variants."""

    name: str
    fn: Callable[[Heads, Params], Mixed]
    formula: str
    cite: str
    letter: str = ""  # in An et al. 2025: a to f
    params: Mapping[str, Param] = field(default_factory=dict)
    normalised: bool = True  # rows of weights and extra mass sum to at most one
    identity: Mapping[str, float] | None = None  # parameter values at which it is softmax
    extra_key: bool = False  # softmax over the real keys and one of no token

    @property
    def label(self) -> str:
        """The name as figures and tables print it."""
        return f"({self.letter}) {self.name}" if self.letter else self.name

    def __call__(self, heads: Heads, params: Params) -> Mixed:
        """Attend: `params` holds one array for each entry of `self.params`."""
        return self.fn(heads, params)


_table: dict[str, Variant] = {}


def variant(
    *,
    formula: str,
    cite: str,
    letter: str = "",
    normalised: bool = True,
    identity: Mapping[str, float] | None = None,
    extra_key: bool = False,
    **params: Param,
) -> Callable[[Callable[[Heads, Params], Mixed]], Callable[[Heads, Params], Mixed]]:
    """Enter the decorated function in the table under its own name.

    Raises:
      ValueError: the table has that name, by which configs and compiled programs know a variant.
    """

    def enter(fn: Callable[[Heads, Params], Mixed]) -> Callable[[Heads, Params], Mixed]:
        name = fn.__name__.rstrip("_")
        if name in _table:
            raise ValueError(f"variant {name}: there is one; accepted: a name of its own")
        _table[name] = Variant(
            name, fn, formula, cite, letter, MappingProxyType(params), normalised, identity,
            extra_key,
        )  # fmt: skip
        return fn

    return enter


# ------------------------------------------------------------- the six variants of the paper

AN = "An et al. 2025 (arXiv:2502.06415)"


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
def value_bias(heads: Heads, p: Params) -> Mixed:
    mixed = softmax_mix(heads)
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
    cite=AN,
    identity={"gate_kernel": 0.0, "gate_bias": 0.0},
    gate_kernel=Param("D -> N", 0.0),
    gate_bias=Param("N", 0.0),
)
def context_scale(heads: Heads, p: Params) -> Mixed:
    gate = open_sigmoid(linear(heads.x_q, p["gate_kernel"], p["gate_bias"]))
    return scale(heads, softmax_mix(heads), gate[..., None])


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
    cite="Gu et al. 2025 (arXiv:2410.10781)",
    extra_key=True,
    bias_key=Param("K H", "normal"),
)
def key_bias(heads: Heads, p: Params) -> Mixed:
    return softmax_mix(heads, extra_scores(heads, p["bias_key"]))


# -------------------------------------------------------- gates: the scaling factor explicit


@variant(
    formula="sigmoid(w.x + b) softmax(s) v, per head, b = 5 at first",
    cite="Bondarenko et al. 2023 (arXiv:2306.12929); Qiu et al. 2025 (arXiv:2505.06708)",
    identity={"gate_kernel": 0.0, "gate_bias": 1e3},
    gate_kernel=Param("D -> N", 0.0),
    gate_bias=Param("N", 5.0),
)
def head_gate(heads: Heads, p: Params) -> Mixed:
    gate = jax.nn.sigmoid(linear(heads.x_q, p["gate_kernel"], p["gate_bias"]))
    return scale(heads, softmax_mix(heads), gate[..., None])


@variant(
    formula="2 sigmoid(W x) * softmax(s) v, per head and channel",
    cite="Qiu et al. 2025 (arXiv:2505.06708), position G1",
    identity={"gate_kernel": 0.0},
    gate_kernel=Param("D -> N H", 0.0),
)
def element_gate(heads: Heads, p: Params) -> Mixed:
    return scale(heads, softmax_mix(heads), open_sigmoid(linear(heads.x_q, p["gate_kernel"])))


@variant(
    formula="softmax(s) (2 sigmoid(W x') * v)",
    cite="Qiu et al. 2025 (arXiv:2505.06708), position G2",
    identity={"gate_kernel": 0.0},
    gate_kernel=Param("D -> K H", 0.0),
)
def value_gate(heads: Heads, p: Params) -> Mixed:
    gate = heads.tap("attn_gate", open_sigmoid(linear(heads.x_k, p["gate_kernel"])))
    return softmax_mix(heads._replace(v=heads.v * gate))


@variant(
    formula="2 sigmoid(b) softmax(s) v, b per head: a gate that cannot see the context",
    cite="Qiu et al. 2025 (arXiv:2505.06708), input-independent ablation",
    identity={"gate_bias": 0.0},
    gate_bias=Param("N", 0.0),
)
def static_gate(heads: Heads, p: Params) -> Mixed:
    mixed = softmax_mix(heads)
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


@variant(
    formula="(elu(s) + 1) v",
    cite="Gu et al. 2025 (arXiv:2410.10781)",
    normalised=False,
)
def elu_plus_one(heads: Heads, p: Params) -> Mixed:
    return mix(heads, visible(jax.nn.elu(scores(heads)) + 1.0, heads.mask))


# ------------------------------------------------------------------- norms around softmax


@variant(
    formula="softmax((1 + g) sqrt(H) cos(q, k)) v, g per head",
    cite="Henry et al. 2020 (arXiv:2010.04245)",
    qk_gain=Param("N", 0.0),
)
def qk_norm(heads: Heads, p: Params) -> Mixed:
    gain = (1.0 + p["qk_gain"].astype(heads.q.dtype))[:, None]
    q = rms_norm(heads.q)
    return softmax_mix(heads._replace(q=q * jnp.broadcast_to(gain, q.shape), k=rms_norm(heads.k)))


@variant(
    formula="rms_norm(softmax(s) v) * (1 + g), per head",
    cite="Sun et al. 2023 (arXiv:2307.08621), section 2.2; Qiu et al. 2025 (arXiv:2505.06708)",
    norm_gain=Param("N H", 0.0),
)
def head_norm(heads: Heads, p: Params) -> Mixed:
    mixed = softmax_mix(heads)
    gain = 1.0 + p["norm_gain"].astype(mixed.out.dtype)
    normed = rms_norm(mixed.out)
    return mixed._replace(out=normed * jnp.broadcast_to(gain, normed.shape))


VARIANTS: Mapping[str, Variant] = MappingProxyType(_table)
PAPER: tuple[str, ...] = tuple(v.name for v in VARIANTS.values() if v.letter)


def variants() -> tuple[Variant, ...]:
    """The table of attention variants: name, formula, citation, parameters."""
    return tuple(VARIANTS.values())
