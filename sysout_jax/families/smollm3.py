"""SmolLM3: LLaMA's layout, with no positions in every fourth layer."""

from typing import Any

from sysout_jax.errors import InputError
from sysout_jax.families.family import Family, Field, Group, Raw
from sysout_jax.families.rows import (
    ACT,
    ATTENTION_BIASES,
    EPS,
    LLAMA_LIKE,
    LLAMA_MLP,
    ROTARY_BUFFER,
    SIZES,
    TIED,
    llama_attention,
    rotary,
    windows,
)
from sysout_jax.model.config import ModelConfig


def _turns(raw: Raw) -> list[int]:
    """Of each layer, from 0: 1 where heads are turned, and 0 where they are not."""
    given, layers = raw.get("no_rope_layers"), raw["num_hidden_layers"]
    if given is None:
        apart = raw["no_rope_layer_interval"]
        return [int((layer + 1) % apart != 0) for layer in range(layers)]
    if len(given) < layers or not {*given} <= {0, 1}:
        why = f"{len(given)} for {layers} layers"
        raise InputError("no_rope_layers", None, "0 or 1 for each layer", why)
    return list(given[:layers])


def _read_turned(raw: Raw) -> dict[str, Any]:
    turns = _turns(raw)
    chosen = tuple(layer for layer, turned in enumerate(turns) if turned)
    return {"rope_layers": None if all(turns) else chosen}


def _write_turned(c: ModelConfig) -> dict[str, Any]:
    chosen = range(c.layers) if c.rope_layers is None else c.rope_layers
    return {"no_rope_layers": [int(layer in chosen) for layer in range(c.layers)]}


SMOLLM3 = Family(
    name="smollm3",
    model_types=("smollm3",),
    architecture="SmolLM3ForCausalLM",
    covers="SmolLM3 3B and its base model",
    cite="Bakouch et al. 2025, SmolLM3: smol, multilingual, long-context reasoner",
    fixed=LLAMA_LIKE,
    config=(
        *SIZES,
        EPS,
        TIED,
        ACT,
        *ATTENTION_BIASES,
        Field("mlp_bias", "mlp_bias"),
        Group(
            ("no_rope_layers", "no_rope_layer_interval"), ("rope_layers",),
            _read_turned, _write_turned,
        ),
        windows(lambda layer, raw: not _turns(raw)[layer], switch=True),
        rotary(theta=2_000_000.0),
    ),
    tensors=(*llama_attention(), *LLAMA_MLP),
    buffers=(ROTARY_BUFFER,),
)  # fmt: skip
