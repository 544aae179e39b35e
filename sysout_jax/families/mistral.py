"""Mistral: LLaMA's layout with a sliding window."""

from sysout_jax.families.family import Family
from sysout_jax.families.rotary import rotary
from sysout_jax.families.rows import (
    ACT,
    EPS,
    LLAMA_LIKE,
    LLAMA_MLP,
    ROTARY_BUFFER,
    SIZES,
    TIED,
    llama_attention,
    windows,
)

MISTRAL = Family(
    name="mistral",
    model_types=("mistral",),
    architecture="MistralForCausalLM",
    covers="Mistral 7B v0.1 to v0.3, Nemo, and their instruct models",
    cite="Jiang et al. 2023 (arXiv:2310.06825)",
    fixed=LLAMA_LIKE,
    config=(
        *SIZES,
        EPS,
        TIED,
        ACT,
        windows(lambda i, raw: True, named=False),  # by layer: AutoConfig makes it Ministral
        rotary(),
    ),
    tensors=(*llama_attention(), *LLAMA_MLP),
    buffers=(ROTARY_BUFFER,),
)
