"""Mixtral: Mistral's attention, and eight MLPs of which a token sees two."""

from sysout_jax.families.family import Family, Field, tensor
from sysout_jax.families.rotary import rotary
from sysout_jax.families.rows import (
    ACT,
    EPS,
    FUSED_EXPERTS,
    LLAMA_LIKE,
    ROTARY_BUFFER,
    SIZES,
    TIED,
    llama_attention,
)

_EXPERT = "layers.{l}.block_sparse_moe.experts.{e}."
MIXTRAL = Family(
    name="mixtral",
    model_types=("mixtral",),
    architecture="MixtralForCausalLM",
    covers="Mixtral 8x7B, 8x22B, and their instruct models",
    cite="Jiang et al. 2024 (arXiv:2401.04088)",
    fixed=LLAMA_LIKE,
    config=(
        *SIZES,
        EPS,
        TIED,
        ACT,
        Field("sliding_window", "window"),
        Field("num_local_experts", "experts"),
        Field("num_experts_per_tok", "experts_per_token"),
        rotary(theta=1e6),
    ),
    tensors=(
        *llama_attention(),
        tensor("layers.{l}.block_sparse_moe.gate.weight", "E D", "block/mlp/router"),
        tensor(_EXPERT + "w1.weight", "F D", "block/mlp/gate"),
        tensor(_EXPERT + "w3.weight", "F D", "block/mlp/up"),
        tensor(_EXPERT + "w2.weight", "D F", "block/mlp/down"),
    ),
    fused=FUSED_EXPERTS,
    buffers=(ROTARY_BUFFER,),
)
