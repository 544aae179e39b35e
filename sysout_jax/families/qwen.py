"""Qwen2, 2.5 (biases of queries, keys, values), Qwen3 (their norms instead), and its mixtures."""

from typing import Any

from sysout_jax.errors import InputError
from sysout_jax.families.family import Family, Field, Group, Only, Raw, tensor
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
    rotary,
    windows,
)

_WINDOWS = windows(lambda layer, raw: layer >= raw["max_window_layers"], switch=True)
QWEN2 = Family(
    name="qwen2",
    model_types=("qwen2",),
    architecture="Qwen2ForCausalLM",
    covers="Qwen1.5, Qwen2, Qwen2.5 and their instruct models (dense)",
    cite="Yang et al. 2024 (arXiv:2407.10671; arXiv:2412.15115)",
    fixed={**LLAMA_LIKE, "qkv_bias": True},
    config=(
        *SIZES,
        EPS,
        TIED,
        ACT,
        _WINDOWS,
        rotary(),
    ),
    tensors=(*llama_attention(), *LLAMA_MLP),
    buffers=(ROTARY_BUFFER,),
)
_NORMS = (
    tensor("layers.{l}.self_attn.q_norm.weight", "H", "block/attn/query_norm/scale"),
    tensor("layers.{l}.self_attn.k_norm.weight", "H", "block/attn/key_norm/scale"),
)
QWEN3 = Family(
    name="qwen3",
    model_types=("qwen3",),
    architecture="Qwen3ForCausalLM",
    covers="Qwen3 0.6B to 32B (dense)",
    cite="Yang et al. 2025 (arXiv:2505.09388)",
    fixed={**LLAMA_LIKE, "query_key_norm": "head"},
    config=(
        *SIZES,
        EPS,
        TIED,
        ACT,
        *ATTENTION_BIASES,
        _WINDOWS,
        rotary(),
    ),
    tensors=(*llama_attention(), *_NORMS, *LLAMA_MLP),
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
        Only("decoder_sparse_step", 1),
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
