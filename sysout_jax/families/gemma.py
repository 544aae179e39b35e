"""Gemma 2 and 3: norms on both sides of every layer, soft caps, windows in most layers."""

from math import sqrt
from typing import Any

from sysout_jax.errors import InputError
from sysout_jax.families.family import Family, Field, Group, Only, Raw, Row, Within, tensor
from sysout_jax.families.rows import (
    ATTENTION_BIASES,
    EPS,
    GATED,
    LLAMA_MLP,
    ROTARY_BUFFER,
    SIZES,
    llama_attention,
    read_rule,
    rotary,
    windows,
    write_rule,
)
from sysout_jax.model.config import ModelConfig


def _read_scales(raw: Raw) -> dict[str, Any]:
    scalar = raw.get("query_pre_attn_scalar", 256)
    return {"query_scale": scalar**-0.5, "embed_scale": sqrt(raw["hidden_size"])}


def _write_scales(c: ModelConfig) -> dict[str, Any]:
    scalar = 256.0 if c.query_scale is None else c.query_scale**-2
    whole = round(scalar)  # the published fields are integers
    return {"query_pre_attn_scalar": whole if whole**-0.5 == c.query_scale else scalar}


def _read_rotary(raw: Raw) -> dict[str, Any]:
    given, scaling = raw.get("rope_parameters") or {}, raw.get("rope_scaling") or {}
    if "type" in scaling and "rope_type" not in scaling:
        why = "versions of the published code disagree on whether it is read"
        raise InputError("rope_scaling", None, "rope_type in place of type", why)
    everywhere = {
        "rope_theta": raw.get("rope_theta", 1e6),
        "partial_rotary_factor": 1.0,
        **(given.get("full_attention") or {}),
        **scaling,
    }
    local = {
        "rope_theta": raw.get("rope_local_base_freq", 1e4),
        "partial_rotary_factor": 1.0,
        **(given.get("sliding_attention") or {}),
    }
    if read_rule(local, raw)["rule"] != "plain":
        raise InputError("rope_parameters of sliding_attention", accepted="rope_type default")
    return {"rope": read_rule(everywhere, raw) | {"local_theta": local["rope_theta"]}}


def _write_rotary(c: ModelConfig) -> dict[str, Any]:
    return {
        "rope_theta": c.rope.theta,
        "rope_local_base_freq": c.rope.local_theta,
        "rope_scaling": write_rule(c.rope),
    }


_ROWS: tuple[Row, ...] = (
    *SIZES,
    EPS,
    Field("tie_word_embeddings", "tied"),
    Field("hidden_activation", "mlp", GATED),
    *ATTENTION_BIASES,
    Field("final_logit_softcapping", "final_softcap"),
    Group(("query_pre_attn_scalar",), ("query_scale", "embed_scale"), _read_scales, _write_scales),
    Only("use_bidirectional_attention", False),
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
_SEEING = Within(
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
        Only("attn_logit_softcapping", None),  # the published code stores it, and caps nothing
        windows(_five_of_six, others=("sliding_window_pattern",), least=4096),
        Group(
            ("rope_parameters", "rope_theta", "rope_local_base_freq", "rope_scaling"),
            ("rope",),
            _read_rotary,
            _write_rotary,
        ),
    ),
    tensors=_TENSORS,
    buffers=(ROTARY_BUFFER,),
    within=_SEEING,
)
