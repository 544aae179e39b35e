"""LLaMA 2, 3, 3.1 and their chat models: the layout that most later families start from."""

from sysout_jax.families.family import Family, Field
from sysout_jax.families.rotary import rotary
from sysout_jax.families.rows import (
    LLAMA_LIKE,
    LLAMA_MLP,
    LLAMA_ROWS,
    ROTARY_BUFFER,
    llama_attention,
)

LLAMA = Family(
    name="llama",
    model_types=("llama",),
    architecture="LlamaForCausalLM",
    covers="LLaMA 2, 3, 3.1, 3.2, their chat models, and models of the same layout",
    cite="Touvron et al. 2023 (arXiv:2307.09288); Grattafiori et al. 2024 (arXiv:2407.21783)",
    fixed=LLAMA_LIKE,
    config=(*LLAMA_ROWS, Field("mlp_bias", "mlp_bias"), rotary()),
    tensors=(*llama_attention(), *LLAMA_MLP),
    buffers=(ROTARY_BUFFER,),
)
