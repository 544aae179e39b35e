"""BLOOM: ALiBi, a norm of the embeddings, biases everywhere."""

from typing import Any

from sysout_jax.families.family import Family, Field, Group, Only, Raw, biased, norm, tensor
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
        *norm("word_embeddings_layernorm", "embed_norm"),
        *norm("ln_f", "final_norm"),
        *norm("h.{l}.input_layernorm", "block/attn_norm"),
        *norm("h.{l}.post_attention_layernorm", "block/mlp_norm"),
        tensor(_AT + "query_key_value.weight", "(K + H) D", *(n.format("") for n in FUSED)),
        tensor(_AT + "query_key_value.bias", "(K + H)", *(n.format("_bias") for n in FUSED)),
        *biased(_AT + "dense", "D (N H)", "D", "block/attn/out"),
        *biased("h.{l}.mlp.dense_h_to_4h", "F D", "F", "block/mlp/up"),
        *biased("h.{l}.mlp.dense_4h_to_h", "D F", "D", "block/mlp/down"),
    ),
    prefix="transformer.",
    aliases={"n_embed": "hidden_size"},
)  # fmt: skip
