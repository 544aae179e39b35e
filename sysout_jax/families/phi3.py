"""Phi-3: LLaMA's function with fused projections, and LongRoPE."""

from sysout_jax.families.family import Family, Field, tensor
from sysout_jax.families.rotary import rotary
from sysout_jax.families.rows import (
    ACT,
    EPS,
    LLAMA_LIKE,
    ROTARY_BUFFER,
    SIZES,
    TIED,
    llama_attention,
)

_UNFUSED = ("q_proj", "k_proj", "v_proj")
PHI3 = Family(
    name="phi3",
    model_types=("phi3",),
    architecture="Phi3ForCausalLM",
    covers="Phi-3 mini and medium, 4k and 128k, Phi-3.5 mini",
    cite="Abdin et al. 2024 (arXiv:2404.14219)",
    fixed=LLAMA_LIKE,
    config=(
        *SIZES,
        EPS,
        TIED,
        ACT,
        Field("sliding_window", "window"),
        rotary(
            renamed={"su": "longrope", "yarn": "longrope"}, partly=True,
            rules=("default", "longrope"),
        ),
    ),
    tensors=(
        *(row for row in llama_attention() if not any(name in row.stored for name in _UNFUSED)),
        tensor(
            "layers.{l}.self_attn.qkv_proj.weight", "(+ H) D",
            "block/attn/query=N", "block/attn/key=K", "block/attn/value=K",
        ),
        tensor(
            "layers.{l}.mlp.gate_up_proj.weight", "(+ F) D", "block/mlp/gate=1", "block/mlp/up=1"
        ),
        tensor("layers.{l}.mlp.down_proj.weight", "D F", "block/mlp/down"),
    ),
    buffers=(ROTARY_BUFFER,),
)  # fmt: skip
