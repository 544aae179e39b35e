"""Gemma 1; Gemma 2 and 3 with norms on both sides of every layer, soft caps and windows."""

from math import sqrt
from typing import Any

from sysout_jax.families.family import Family, Field, Fixed, Group, Multimodal, Raw, Row, tensor
from sysout_jax.families.rotary import rotary, rotary_by_kind
from sysout_jax.families.rows import (
    ATTENTION_BIASES,
    EPS,
    GATED,
    LLAMA_LIKE,
    LLAMA_MLP,
    ROTARY_BUFFER,
    SIZES,
    TIED,
    llama_attention,
    windows,
)
from sysout_jax.model.config import ModelConfig


def _read_embed(raw: Raw) -> dict[str, Any]:
    return {"embed_scale": sqrt(raw["hidden_size"])}


GEMMA = Family(
    name="gemma",
    model_types=("gemma",),
    architecture="GemmaForCausalLM",
    covers="Gemma 2B and 7B of 2024, CodeGemma, and their instruct models",
    cite="Gemma Team 2024 (arXiv:2403.08295)",
    fixed={**LLAMA_LIKE, "norm_plus_one": True},
    config=(
        *SIZES,
        EPS,
        TIED,
        # The first files say gelu, for which the reference takes tanh's approximation all the same.
        Field("hidden_act", "mlp", {**GATED, "gelu": "geglu"}),
        *ATTENTION_BIASES,
        Group((), ("embed_scale",), _read_embed, lambda c: {}),
        Fixed("use_bidirectional_attention", False),
        rotary(),
    ),
    tensors=(*llama_attention(), *LLAMA_MLP),
    buffers=(ROTARY_BUFFER,),
)


def _read_scales(raw: Raw) -> dict[str, Any]:
    scalar = raw.get("query_pre_attn_scalar", 256)
    return {"query_scale": scalar**-0.5, "embed_scale": sqrt(raw["hidden_size"])}


def _write_scales(c: ModelConfig) -> dict[str, Any]:
    scalar = 256.0 if c.query_scale is None else c.query_scale**-2
    whole = round(scalar)  # the published fields are integers
    return {"query_pre_attn_scalar": whole if whole**-0.5 == c.query_scale else scalar}


_ROWS: tuple[Row, ...] = (
    *SIZES,
    EPS,
    Field("tie_word_embeddings", "tied"),
    Field("hidden_activation", "mlp", GATED),
    *ATTENTION_BIASES,
    Field("final_logit_softcapping", "final_softcap"),
    Group(("query_pre_attn_scalar",), ("query_scale", "embed_scale"), _read_scales, _write_scales),
    Fixed("use_bidirectional_attention", False),
)


_FIXED = {
    "norm": "rms", "norm_placement": "sandwich", "norm_plus_one": True, "position": "rope",
    "bias": False,
}  # fmt: skip
_TENSORS = (
    *llama_attention(norms=False),
    tensor("layers.{l}.input_layernorm.weight", "D", "block/attn_norm/scale"),
    tensor("layers.{l}.post_attention_layernorm.weight", "D", "block/attn_out_norm/scale"),
    tensor("layers.{l}.pre_feedforward_layernorm.weight", "D", "block/mlp_norm/scale"),
    tensor("layers.{l}.post_feedforward_layernorm.weight", "D", "block/mlp_out_norm/scale"),
    tensor("layers.{l}.self_attn.q_norm.weight", "H", "block/attn/query_norm/scale"),
    tensor("layers.{l}.self_attn.k_norm.weight", "H", "block/attn/key_norm/scale"),
    *LLAMA_MLP,
)
GEMMA2 = Family(
    name="gemma2",
    model_types=("gemma2",),
    architecture="Gemma2ForCausalLM",
    covers="Gemma 2 2B, 9B, 27B and their instruct models",
    cite="Gemma Team 2024 (arXiv:2408.00118)",
    fixed=_FIXED,
    config=(
        *_ROWS,
        Field("attn_logit_softcapping", "attn_softcap"),
        windows(lambda i, raw: i % 2 == 0, least=4096),
        rotary(),
    ),
    tensors=_TENSORS,
    buffers=(ROTARY_BUFFER,),
)


def _five_of_six(layer: int, raw: Raw) -> bool:
    return bool((layer + 1) % (raw.get("sliding_window_pattern") or 6))


# The larger models see images too.
_SEEING = Multimodal(
    model_type="gemma3",
    config="text_config",
    shared=("tie_word_embeddings",),
    names=(
        ("language_model.model.", "model."),
        ("language_model.lm_head.", "lm_head."),
        ("model.language_model.", "model."),
        ("language_model.", "model."),
    ),
    others=(r"(model\.)?vision_tower\..*", r"(model\.)?multi_modal_projector\..*"),
)  # fmt: skip
GEMMA3 = Family(
    name="gemma3",
    model_types=("gemma3_text",),
    architecture="Gemma3ForCausalLM",
    covers="Gemma 3 270M and 1B, the text decoders of 4B, 12B and 27B, and their instruct models",
    cite="Gemma Team 2025 (arXiv:2503.19786)",
    fixed={**_FIXED, "query_key_norm": "head"},
    config=(
        *_ROWS,
        Fixed("attn_logit_softcapping", None),  # the published code stores it, and caps nothing
        windows(_five_of_six, others=("sliding_window_pattern",), least=4096),
        rotary_by_kind(1e6, local=("rope_local_base_freq", 1e4)),
    ),
    tensors=_TENSORS,
    buffers=(ROTARY_BUFFER,),
    within=_SEEING,
)
