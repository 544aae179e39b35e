"""Granite: LLaMA's layout, with factors of embeddings, branches, attention and logits."""

from typing import Any

from sysout_jax.errors import InputError
from sysout_jax.families.family import Family, Field, Group, Raw
from sysout_jax.families.rotary import rotary
from sysout_jax.families.rows import (
    LLAMA_LIKE,
    LLAMA_MLP,
    LLAMA_ROWS,
    ROTARY_BUFFER,
    llama_attention,
)
from sysout_jax.model.config import ModelConfig


def _read_logits(raw: Raw) -> dict[str, Any]:
    return {"logit_scale": 1.0 / raw["logits_scaling"]}


def _write_logits(c: ModelConfig) -> dict[str, Any]:
    divisor = 1.0 / c.logit_scale
    whole = round(divisor) or divisor  # as published
    return {"logits_scaling": whole if 1.0 / whole == c.logit_scale else divisor}


def _read_attention(raw: Raw) -> dict[str, Any]:
    if raw["attention_multiplier"] is None:  # which the reference refuses
        raise InputError("attention_multiplier", "null", "a number")
    return {"query_scale": raw["attention_multiplier"]}


def _write_attention(c: ModelConfig) -> dict[str, Any]:
    usual = c.sizes["H"] ** -0.5
    return {"attention_multiplier": usual if c.query_scale is None else c.query_scale}


GRANITE = Family(
    name="granite",
    model_types=("granite",),
    architecture="GraniteForCausalLM",
    covers="Granite 3.0 to 3.3, 2B and 8B, and their instruct models (dense)",
    cite="Granite Team 2024 (github.com/ibm-granite/granite-3.0-language-models)",
    fixed=LLAMA_LIKE,
    config=(
        *LLAMA_ROWS,
        Field("mlp_bias", "mlp_bias"),
        Field("embedding_multiplier", "embed_scale"),
        Group(("attention_multiplier",), ("query_scale",), _read_attention, _write_attention),
        Field("residual_multiplier", "residual_scale"),
        Group(("logits_scaling",), ("logit_scale",), _read_logits, _write_logits),
        rotary(),
    ),
    tensors=(*llama_attention(), *LLAMA_MLP),
    buffers=(ROTARY_BUFFER,),
)
