"""Qwen2, 2.5 (biases of queries, keys and values) and Qwen3 (their norms instead)."""

from sysout_jax.families.family import Family, Field, tensor
from sysout_jax.families.rows import (
    ACT,
    EPS,
    LLAMA_LIKE,
    LLAMA_MLP,
    ROTARY_BUFFER,
    SIZES,
    TIED,
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
        Field("attention_bias", "qkv_bias"),
        Field("attention_bias", "out_bias"),
        _WINDOWS,
        rotary(),
    ),
    tensors=(
        *llama_attention(),
        tensor("layers.{l}.self_attn.q_norm.weight", "H", "block/attn/query_norm/scale"),
        tensor("layers.{l}.self_attn.k_norm.weight", "H", "block/attn/key_norm/scale"),
        *LLAMA_MLP,
    ),
    buffers=(ROTARY_BUFFER,),
)
