"""StableLM: LLaMA's layout with LayerNorm, and heads of which a quarter is turned."""

from sysout_jax.families.family import Family, Field, Fixed, tensor
from sysout_jax.families.rotary import rotary
from sysout_jax.families.rows import ACT, LLAMA_MLP, ROTARY_BUFFER, SIZES, TIED, llama_attention

STABLELM = Family(
    name="stablelm",
    model_types=("stablelm", "stablelm_epoch"),  # the second of older files
    architecture="StableLmForCausalLM",
    covers="StableLM 3B 4E1T, Zephyr 3B, StableLM 2 1.6B and their chat models, Stable Code 3B",
    cite="Bellagente et al. 2024 (arXiv:2402.17834)",
    fixed={"norm": "layer", "norm_bias": True, "position": "rope", "bias": False},
    config=(
        *SIZES,
        Field("layer_norm_eps", "norm_eps"),
        TIED,
        ACT,
        Field("use_qkv_bias", "qkv_bias"),
        Field("use_parallel_residual", "parallel_block", {True: "shared", False: "none"}),
        Fixed("rotary_scaling_factor", 1.0),
        rotary(fraction=0.25, partly=True),
    ),
    tensors=(
        *llama_attention(),
        tensor("norm.bias", "D", "final_norm/bias"),
        tensor("layers.{l}.input_layernorm.bias", "D", "block/attn_norm/bias"),
        tensor("layers.{l}.post_attention_layernorm.bias", "D", "block/mlp_norm/bias"),
        *LLAMA_MLP,
    ),
    aliases={"norm_eps": "layer_norm_eps", "rope_pct": "partial_rotary_factor"},
    buffers=(ROTARY_BUFFER,),
)
