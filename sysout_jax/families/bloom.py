"""BLOOM: ALiBi, a norm of the embeddings, biases everywhere."""

from typing import Any

from sysout_jax.families.family import Family, Field, Group, Only, Raw, tensor
from sysout_jax.families.rows import FUSED


def _read_mlp(raw: Raw) -> dict[str, Any]:
    return {"mlp_width": 4 * raw["hidden_size"]}


_AT = "h.{l}.self_attention."
BLOOM = Family(
    name="bloom",
    model_types=("bloom",),
    architecture="BloomForCausalLM",
    covers="BLOOM 560M to 176B, BLOOMZ",
    cite="BigScience 2022 (arXiv:2211.05100)",
    fixed={
        "norm": "layer", "position": "alibi", "mlp": "gelu", "bias": True, "embed_norm": True,
    },
    config=(
        Field("vocab_size", "vocab"),
        Field("n_layer", "layers"),
        Field("hidden_size", "width"),
        Field("n_head", "heads"),
        Field("layer_norm_epsilon", "norm_eps"),
        Field("initializer_range", "init_std"),
        Field("tie_word_embeddings", "tied"),
        Group((), ("mlp_width",), _read_mlp, lambda c: {}),
        Only("apply_residual_connection_post_layernorm", False),
        Only("slow_but_exact", False),
    ),
    tensors=(
        tensor("word_embeddings.weight", "V D", "embed"),
        tensor("/lm_head.weight", "V D", "head"),
        tensor("word_embeddings_layernorm.weight", "D", "embed_norm/scale"),
        tensor("word_embeddings_layernorm.bias", "D", "embed_norm/bias"),
        tensor("ln_f.weight", "D", "final_norm/scale"),
        tensor("ln_f.bias", "D", "final_norm/bias"),
        tensor("h.{l}.input_layernorm.weight", "D", "block/attn_norm/scale"),
        tensor("h.{l}.input_layernorm.bias", "D", "block/attn_norm/bias"),
        tensor("h.{l}.post_attention_layernorm.weight", "D", "block/mlp_norm/scale"),
        tensor("h.{l}.post_attention_layernorm.bias", "D", "block/mlp_norm/bias"),
        tensor(_AT + "query_key_value.weight", "(K + H) D", *(n.format("") for n in FUSED)),
        tensor(_AT + "query_key_value.bias", "(K + H)", *(n.format("_bias") for n in FUSED)),
        tensor(_AT + "dense.weight", "D (N H)", "block/attn/out"),
        tensor(_AT + "dense.bias", "D", "block/attn/out_bias"),
        tensor("h.{l}.mlp.dense_h_to_4h.weight", "F D", "block/mlp/up"),
        tensor("h.{l}.mlp.dense_h_to_4h.bias", "F", "block/mlp/up_bias"),
        tensor("h.{l}.mlp.dense_4h_to_h.weight", "D F", "block/mlp/down"),
        tensor("h.{l}.mlp.dense_4h_to_h.bias", "D", "block/mlp/down_bias"),
    ),
    prefix="transformer.",
    aliases={"n_embed": "hidden_size"},
)  # fmt: skip
