"""Phi-1, 1.5 and 2: attention and MLP side by side behind one norm, partly turned heads."""

from sysout_jax.families.family import Family, Field, tensor
from sysout_jax.families.rows import PLAIN, ROTARY_BUFFER, SIZES, TIED, rotary

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
        tensor("/lm_head.weight", "V D", "head"),
        tensor("/lm_head.bias", "V", "head_bias"),
        tensor("final_layernorm.weight", "D", "final_norm/scale"),
        tensor("final_layernorm.bias", "D", "final_norm/bias"),
        tensor("layers.{l}.input_layernorm.weight", "D", "block/attn_norm/scale"),
        tensor("layers.{l}.input_layernorm.bias", "D", "block/attn_norm/bias"),
        tensor(_AT + "q_proj.weight", "(N H) D", "block/attn/query"),
        tensor(_AT + "k_proj.weight", "(K H) D", "block/attn/key"),
        tensor(_AT + "v_proj.weight", "(K H) D", "block/attn/value"),
        tensor(_AT + "dense.weight", "D (N H)", "block/attn/out"),
        tensor(_AT + "q_proj.bias", "(N H)", "block/attn/query_bias"),
        tensor(_AT + "k_proj.bias", "(K H)", "block/attn/key_bias"),
        tensor(_AT + "v_proj.bias", "(K H)", "block/attn/value_bias"),
        tensor(_AT + "dense.bias", "D", "block/attn/out_bias"),
        tensor(_AT + "q_layernorm.weight", "H", "block/attn/query_norm/scale"),
        tensor(_AT + "q_layernorm.bias", "H", "block/attn/query_norm/bias"),
        tensor(_AT + "k_layernorm.weight", "H", "block/attn/key_norm/scale"),
        tensor(_AT + "k_layernorm.bias", "H", "block/attn/key_norm/bias"),
        tensor("layers.{l}.mlp.fc1.weight", "F D", "block/mlp/up"),
        tensor("layers.{l}.mlp.fc1.bias", "F", "block/mlp/up_bias"),
        tensor("layers.{l}.mlp.fc2.weight", "D F", "block/mlp/down"),
        tensor("layers.{l}.mlp.fc2.bias", "D", "block/mlp/down_bias"),
    ),
    buffers=(ROTARY_BUFFER,),
)  # fmt: skip
