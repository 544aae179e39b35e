"""BLOOM: ALiBi, a norm of the embeddings, biases everywhere."""

from typing import Any

from sysout_jax.families.family import Family, Field, Fixed, Group, Raw, norm, tensor
from sysout_jax.families.gpt_neox import megatron_block


def _read_mlp(raw: Raw) -> dict[str, Any]:
    return {"mlp_width": 4 * raw["hidden_size"]}


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
        Fixed("apply_residual_connection_post_layernorm", False),
        Fixed("slow_but_exact", False),
    ),
    tensors=(
        tensor("word_embeddings.weight", "V D", "embed"),
        tensor("/lm_head.weight", "V D", "head"),
        *norm("word_embeddings_layernorm", "embed_norm"),
        *norm("ln_f", "final_norm"),
        *megatron_block("h.{l}.", "self_attention"),
    ),
    prefix="transformer.",
    aliases={"n_embed": "hidden_size"},
)  # fmt: skip
