"""StableLM: LLaMA's layout with LayerNorm, and heads of which a quarter is turned."""

from sysout_jax.families.family import Family, Field, Only, tensor
from sysout_jax.families.rows import (
    ACT,
    LLAMA_MLP,
    ROTARY_BUFFER,
    TIED,
    llama_attention,
    rotary,
    sizes,
)

STABLELM = Family(
    name="stablelm",
    model_types=("stablelm",),
    architecture="StableLmForCausalLM",
    covers="StableLM 3B 4E1T, Zephyr 3B, StableLM 2 1.6B and their chat models",
    cite="Bellagente et al. 2024 (arXiv:2402.17834)",
    fixed={"norm": "layer", "norm_bias": True, "position": "rope", "bias": False},
    config=(
        *sizes(kv_default=32),
        Field("layer_norm_eps", "norm_eps", 1e-5),
        TIED,
        ACT,
        Field("use_qkv_bias", "qkv_bias", False),
        Field("use_parallel_residual", "parallel_block", False, {True: "shared", False: "none"}),
        Only("qk_layernorm", False),  # StableLM 2 12B has a norm of its own for every head
        rotary(fraction=0.25),
    ),
    tensors=(
        *llama_attention(),
        tensor("norm.bias", "D", "final_norm/bias"),
        tensor("layers.{l}.input_layernorm.bias", "D", "block/attn_norm/bias"),
        tensor("layers.{l}.post_attention_layernorm.bias", "D", "block/mlp_norm/bias"),
        *LLAMA_MLP,
    ),
    ignored=("hidden_dropout",),
    buffers=(ROTARY_BUFFER,),
)
