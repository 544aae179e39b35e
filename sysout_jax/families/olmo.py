"""OLMo 1 (norms without parameters), 2 (norms behind layers, of q and k), 3 (windows), OLMoE."""

from dataclasses import replace

from sysout_jax.families.family import Family, Field, tensor
from sysout_jax.families.rotary import rotary, rotary_by_kind
from sysout_jax.families.rows import (
    ACT,
    ATTENTION_BIASES,
    EXPERTS,
    FUSED_EXPERTS,
    LLAMA_LIKE,
    LLAMA_MLP,
    LLAMA_ROWS,
    ROTARY_BUFFER,
    SIZES,
    TIED,
    expert_tensors,
    llama_attention,
    windows,
)

OLMO = Family(
    name="olmo",
    model_types=("olmo",),
    architecture="OlmoForCausalLM",
    covers="OLMo 1B and 7B of 2024",
    cite="Groeneveld et al. 2024 (arXiv:2402.00838)",
    fixed={**LLAMA_LIKE, "norm": "layer", "norm_scale": False, "norm_eps": 1e-5},
    config=(*SIZES, TIED, ACT, *ATTENTION_BIASES, Field("clip_qkv", "clip_qkv"), rotary()),
    tensors=(*llama_attention(), *LLAMA_MLP),
    buffers=(ROTARY_BUFFER,),
)
_NORMS = (
    tensor("layers.{l}.self_attn.q_norm.weight", "(N H)", "block/attn/query_norm/scale"),
    tensor("layers.{l}.self_attn.k_norm.weight", "(K H)", "block/attn/key_norm/scale"),
)
OLMO2 = Family(
    name="olmo2",
    model_types=("olmo2",),
    architecture="Olmo2ForCausalLM",
    covers="OLMo 2 1B, 7B, 13B, 32B and their instruct models",
    cite="OLMo Team 2025 (arXiv:2501.00656)",
    fixed={**LLAMA_LIKE, "norm_placement": "out", "query_key_norm": "whole"},
    config=(*LLAMA_ROWS, rotary()),
    tensors=(
        *llama_attention(norms=False),
        tensor("layers.{l}.post_attention_layernorm.weight", "D", "block/attn_out_norm/scale"),
        tensor("layers.{l}.post_feedforward_layernorm.weight", "D", "block/mlp_out_norm/scale"),
        *_NORMS,
        *LLAMA_MLP,
    ),
    buffers=(ROTARY_BUFFER,),
)

OLMO3 = replace(
    OLMO2,
    name="olmo3",
    model_types=("olmo3",),
    architecture="Olmo3ForCausalLM",
    covers="OLMo 3 7B and 32B, and their instruct and reasoning models",
    cite="OLMo Team 2025 (arXiv:2512.13961)",
    config=(
        *LLAMA_ROWS,
        windows(lambda layer, raw: bool((layer + 1) % 4), least=4096),
        rotary_by_kind(5e5),
    ),
)
OLMOE = Family(
    name="olmoe",
    model_types=("olmoe",),
    architecture="OlmoeForCausalLM",
    covers="OLMoE 1B-7B and its instruct models",
    cite="Muennighoff et al. 2024 (arXiv:2409.02060)",
    fixed={**LLAMA_LIKE, "query_key_norm": "whole"},
    config=(
        *LLAMA_ROWS,
        Field("clip_qkv", "clip_qkv"),
        Field("num_experts", "experts"),
        *EXPERTS,
        rotary(),
    ),
    tensors=(*llama_attention(), *_NORMS, *expert_tensors()),
    fused=FUSED_EXPERTS,
    buffers=(ROTARY_BUFFER,),
)
