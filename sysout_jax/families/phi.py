"""Phi-1, 1.5 and 2: attention and MLP side by side behind one norm, partly turned heads."""

from sysout_jax.families.family import Family, Field, biased, norm, tensor
from sysout_jax.families.rotary import rotary
from sysout_jax.families.rows import PLAIN, ROTARY_BUFFER, SIZES, TIED

_AT = "layers.{l}.self_attn."
PHI = Family(
    name="phi",
    model_types=("phi",),
    architecture="PhiForCausalLM",
    covers="Phi-1, Phi-1.5, Phi-2",
    cite="Li et al. 2023 (arXiv:2309.05463)",
    fixed={
        "norm": "layer", "position": "rope", "parallel_block": "shared",
        "bias": True, "head_bias": True,
    },
    config=(
        *SIZES,
        Field("layer_norm_eps", "norm_eps"),
        TIED,
        Field("hidden_act", "mlp", PLAIN),
        Field("qk_layernorm", "query_key_norm", {False: "none", True: "head"}),
        rotary(fraction=0.5, partly=True),
    ),
    tensors=(
        tensor("embed_tokens.weight", "V D", "embed"),
        *biased("/lm_head", "V D", "V", "head"),
        *norm("final_layernorm", "final_norm"),
        *norm("layers.{l}.input_layernorm", "block/attn_norm"),
        *biased(_AT + "q_proj", "(N H) D", "(N H)", "block/attn/query"),
        *biased(_AT + "k_proj", "(K H) D", "(K H)", "block/attn/key"),
        *biased(_AT + "v_proj", "(K H) D", "(K H)", "block/attn/value"),
        *biased(_AT + "dense", "D (N H)", "D", "block/attn/out"),
        *norm(_AT + "q_layernorm", "block/attn/query_norm", "H"),
        *norm(_AT + "k_layernorm", "block/attn/key_norm", "H"),
        *biased("layers.{l}.mlp.fc1", "F D", "F", "block/mlp/up"),
        *biased("layers.{l}.mlp.fc2", "D F", "D", "block/mlp/down"),
    ),
    buffers=(ROTARY_BUFFER,),
)  # fmt: skip
