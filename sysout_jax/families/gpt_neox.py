"""GPT-NeoX and Pythia: attention and MLP side by side behind two norms, partly turned heads."""

from sysout_jax.families.family import Family, Field, Tensor, biased, norm, tensor
from sysout_jax.families.rotary import rotary
from sysout_jax.families.rows import FUSED, NATURAL_HEAD_DIM, PLAIN, ROTARY_BUFFER, TIED


def megatron_block(at: str, attention: str) -> tuple[Tensor, ...]:
    """A block by Megatron's names, with what its attention is called."""
    qkv = f"{at}{attention}.query_key_value."
    return (
        *norm(at + "input_layernorm", "block/attn_norm"),
        *norm(at + "post_attention_layernorm", "block/mlp_norm"),
        tensor(qkv + "weight", "(K + H) D", *(n.format("") for n in FUSED)),
        tensor(qkv + "bias", "(K + H)", *(n.format("_bias") for n in FUSED)),
        *biased(f"{at}{attention}.dense", "D (N H)", "D", "block/attn/out"),
        *biased(at + "mlp.dense_h_to_4h", "F D", "F", "block/mlp/up"),
        *biased(at + "mlp.dense_4h_to_h", "D F", "D", "block/mlp/down"),
    )


GPT_NEOX = Family(
    name="gpt_neox",
    model_types=("gpt_neox",),
    architecture="GPTNeoXForCausalLM",
    covers="GPT-NeoX 20B, Pythia 14M to 12B",
    cite="Black et al. 2022 (arXiv:2204.06745); Biderman et al. 2023 (arXiv:2304.01373)",
    fixed={"norm": "layer", "position": "rope", "bias": True},
    config=(
        Field("vocab_size", "vocab"),
        Field("max_position_embeddings", "context"),
        Field("num_hidden_layers", "layers"),
        Field("hidden_size", "width"),
        Field("num_attention_heads", "heads"),
        Field("intermediate_size", "mlp_width"),
        Field("layer_norm_eps", "norm_eps"),
        Field("initializer_range", "init_std"),
        TIED,
        Field("hidden_act", "mlp", PLAIN),
        Field("attention_bias", "qkv_bias"),
        Field("attention_bias", "out_bias"),
        Field("use_parallel_residual", "parallel_block", {True: "separate", False: "none"}),
        NATURAL_HEAD_DIM,
        rotary(
            fraction=0.25, theta_name="rotary_emb_base", fraction_name="rotary_pct", partly=True
        ),
    ),
    tensors=(
        tensor("embed_in.weight", "V D", "embed"),
        tensor("/embed_out.weight", "V D", "head"),
        *norm("final_layer_norm", "final_norm"),
        *megatron_block("layers.{l}.", "attention"),
    ),
    prefix="gpt_neox.",
    buffers=(r".*\.attention\.bias", r".*\.attention\.masked_bias", ROTARY_BUFFER),
)  # fmt: skip
