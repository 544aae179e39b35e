"""Command R: attention and MLP side by side behind one norm, adjacent channels turned."""

from sysout_jax.families.family import Family, Field, Fixed, tensor
from sysout_jax.families.rotary import rotary
from sysout_jax.families.rows import (
    ACT,
    ATTENTION_BIASES,
    LLAMA_MLP,
    ROTARY_BUFFER,
    SIZES,
    TIED,
    llama_attention,
)

COHERE = Family(
    name="cohere",
    model_types=("cohere",),
    architecture="CohereForCausalLM",
    covers="Command R 35B and 08-2024, Aya 23 and Aya Expanse",
    cite="Cohere 2024, Command R; Aryabumi et al. 2024 (arXiv:2405.15032)",
    fixed={"norm": "layer", "position": "rope", "parallel_block": "shared", "bias": False},
    config=(
        *SIZES,
        Field("layer_norm_eps", "norm_eps"),
        TIED,
        ACT,
        *ATTENTION_BIASES,
        Field("logit_scale", "logit_scale"),
        Fixed("use_qk_norm", False),  # Command R+'s, of each head by weights of its own
        rotary(theta=500_000.0, interleaved=True),
    ),
    tensors=(
        *llama_attention(norms=False),
        tensor("layers.{l}.input_layernorm.weight", "D", "block/attn_norm/scale"),
        *LLAMA_MLP,
    ),
    buffers=(ROTARY_BUFFER,),
)
