"""StarCoder2: LLaMA's layout with LayerNorm, biases, and an MLP without a gate."""

from sysout_jax.families.family import Family, Field, biased, tensor
from sysout_jax.families.rotary import rotary
from sysout_jax.families.rows import PLAIN, ROTARY_BUFFER, SIZES, TIED, llama_attention

STARCODER2 = Family(
    name="starcoder2",
    model_types=("starcoder2",),
    architecture="Starcoder2ForCausalLM",
    covers="StarCoder2 3B, 7B, 15B",
    cite="Lozhkov et al. 2024 (arXiv:2402.19173)",
    fixed={"norm": "layer", "norm_bias": True, "position": "rope"},
    config=(
        *SIZES,
        Field("norm_epsilon", "norm_eps"),
        TIED,
        Field("hidden_act", "mlp", PLAIN),
        Field("use_bias", "bias"),
        Field("sliding_window", "window"),
        rotary(),
    ),
    tensors=(
        *llama_attention(),
        tensor("norm.bias", "D", "final_norm/bias"),
        tensor("layers.{l}.input_layernorm.bias", "D", "block/attn_norm/bias"),
        tensor("layers.{l}.post_attention_layernorm.bias", "D", "block/mlp_norm/bias"),
        *biased("layers.{l}.mlp.c_fc", "F D", "F", "block/mlp/up"),
        *biased("layers.{l}.mlp.c_proj", "D F", "D", "block/mlp/down"),
    ),
    buffers=(ROTARY_BUFFER,),
)
