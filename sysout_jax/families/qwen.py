"""Qwen2, 2.5 (biases of queries, keys, values), Qwen3 (their norms instead), and its mixtures."""

from collections.abc import Callable
from typing import Any

from sysout_jax.errors import InputError
from sysout_jax.families.family import Family, Field, Fixed, Group, Raw, Tensor, tensor
from sysout_jax.families.rotary import rotary
from sysout_jax.families.rows import (
    ACT,
    ATTENTION_BIASES,
    EPS,
    EXPERTS,
    FUSED_EXPERTS,
    LLAMA_LIKE,
    LLAMA_MLP,
    ROTARY_BUFFER,
    SIZES,
    TIED,
    expert_tensors,
    llama_attention,
    windows,
)
from sysout_jax.model.config import ModelConfig

_WINDOWS = windows(
    lambda layer, raw: layer >= raw["max_window_layers"], switch=True, others=("max_window_layers",)
)
QWEN2 = Family(
    name="qwen2",
    model_types=("qwen2",),
    architecture="Qwen2ForCausalLM",
    covers="Qwen1.5, Qwen2, Qwen2.5 and their instruct models (dense)",
    cite="Yang et al. 2024 (arXiv:2407.10671; arXiv:2412.15115)",
    fixed={**LLAMA_LIKE, "qkv_bias": True},
    config=(*SIZES, EPS, TIED, ACT, _WINDOWS, rotary()),
    tensors=(*llama_attention(), *LLAMA_MLP),
    buffers=(ROTARY_BUFFER,),
)
_NORMS = (
    tensor("layers.{l}.self_attn.q_norm.weight", "H", "block/attn/query_norm/scale"),
    tensor("layers.{l}.self_attn.k_norm.weight", "H", "block/attn/key_norm/scale"),
)
# What the code beside the weights of Qiu et al. 2025 (arXiv:2505.06708) reads, and transformers
# does not: their gates are rows of q_proj, those of a KV head behind its queries.
_GATES = {
    "headwise_attn_output_gate": "plain_head_gate",
    "elementwise_attn_output_gate": "plain_element_gate",
}


def _read_gates(raw: Raw) -> dict[str, Any]:
    for name in ("use_qk_norm", *_GATES):
        if not isinstance(raw.get(name), bool | None):
            raise InputError(name, repr(raw[name]), "true or false")
    variants = [variant for name, variant in _GATES.items() if raw.get(name)]
    if len(variants) > 1:
        raise InputError(", ".join(_GATES), None, "one of them", "both are true")
    bias = raw["attention_bias"] if raw.get("qkv_bias") is None else raw["qkv_bias"]
    if variants and bias:
        raise InputError("qkv_bias", bias, "false", "gates with a bias are not read")
    return {
        "variant": variants[0] if variants else "softmax",
        "query_key_norm": "none" if raw.get("use_qk_norm") is False else "head",
        "qkv_bias": bias,
        "out_bias": bias,
    }


def _write_gates(c: ModelConfig) -> dict[str, Any]:
    out: dict[str, Any] = {"attention_bias": c.has_bias("qkv")}
    gates = {name: True for name, variant in _GATES.items() if variant == c.variant}
    if gates or c.query_key_norm == "none":
        more = {"use_qk_norm": c.query_key_norm != "none", "qkv_bias": c.has_bias("qkv")}
        out |= dict.fromkeys(_GATES, False) | gates | more
    return out


def _queries_and_gates(gate: str, when: Callable[[ModelConfig], bool]) -> Tensor:
    parts = "block/attn/query=G H", f"block/attn/variant_gate_kernel={gate}"
    return tensor("layers.{l}.self_attn.q_proj.weight", "(K +) D", *parts, when=when)


QWEN3 = Family(
    name="qwen3",
    model_types=("qwen3",),
    architecture="Qwen3ForCausalLM",
    covers="Qwen3 0.6B to 32B (dense), and the 1B trio with and without gates of Qiu et al. 2025",
    cite="Yang et al. 2025 (arXiv:2505.09388)",
    fixed=LLAMA_LIKE,
    config=(
        *SIZES,
        EPS,
        TIED,
        ACT,
        Group(
            ("attention_bias", "qkv_bias", "use_qk_norm", *_GATES),
            ("variant", "query_key_norm", "qkv_bias", "out_bias"),
            _read_gates,
            _write_gates,
        ),
        _WINDOWS,
        rotary(),
    ),
    tensors=(
        *(row for row in llama_attention() if row.ours != ("block/attn/query",)),
        _queries_and_gates("G", lambda c: c.variant != "plain_element_gate"),
        _queries_and_gates("G H", lambda c: c.variant == "plain_element_gate"),
        *_NORMS,
        *LLAMA_MLP,
    ),
    buffers=(ROTARY_BUFFER,),
)


def _all_sparse(raw: Raw) -> dict[str, Any]:
    """No layer with one MLP, of intermediate_size, which says nothing then."""
    if raw.get("mlp_only_layers"):
        why = "some layers have one MLP for all tokens"
        raise InputError("mlp_only_layers", raw["mlp_only_layers"], "none", why)
    return {}


def _one_window(raw: Raw) -> dict[str, Any]:
    return {"window": raw.get("sliding_window") if raw["use_sliding_window"] else None}


QWEN3_MOE = Family(
    name="qwen3_moe",
    model_types=("qwen3_moe",),
    architecture="Qwen3MoeForCausalLM",
    covers="Qwen3 30B-A3B, 235B-A22B, Coder",
    cite="Yang et al. 2025 (arXiv:2505.09388)",
    fixed={**LLAMA_LIKE, "query_key_norm": "head"},
    config=(
        *(row for row in SIZES if getattr(row, "ours", None) != "mlp_width"),
        Field("moe_intermediate_size", "mlp_width"),
        EPS,
        TIED,
        ACT,
        *ATTENTION_BIASES,
        Field("num_local_experts", "experts"),
        *EXPERTS,
        Fixed("decoder_sparse_step", 1),
        Group(("mlp_only_layers", "intermediate_size"), (), _all_sparse, lambda c: {}),
        Group(
            ("sliding_window", "use_sliding_window"), ("window",), _one_window,
            lambda c: {"sliding_window": c.window, "use_sliding_window": c.window is not None},
        ),
        rotary(),
    ),
    tensors=(*llama_attention(), *_NORMS, *expert_tensors()),
    fused=FUSED_EXPERTS,
    buffers=(ROTARY_BUFFER,),
)  # fmt: skip
