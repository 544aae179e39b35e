"""SmolLM3: LLaMA's layout, with no positions in every fourth layer."""

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
    windows,
)
from sysout_jax.model.config import ModelConfig


def _turned(layer: int, raw: Raw) -> bool:
    """Whether a layer, from 0, has positions; `no_rope_layers` has 1 where it has."""
    given = raw.get("no_rope_layers")
    if given is None:
        return bool((layer + 1) % raw["no_rope_layer_interval"])
    return 0 not in given[layer : layer + 1]


def _read_turned(raw: Raw) -> dict[str, Any]:
    given, layers = raw.get("no_rope_layers"), raw["num_hidden_layers"]
    if given is not None and (len(given) < layers or not {*given} <= {0, 1}):
        why = f"{len(given)} for {layers} layers"
        raise InputError("no_rope_layers", None, "0 or 1 for each layer", why)
    if not raw["use_sliding_window"] and "sliding_attention" in (raw.get("layer_types") or ()):
        # Its code hides keys by layer_types, whatever the switch says.
        raise InputError("layer_types", "sliding_attention", "with use_sliding_window")
    chosen = tuple(layer for layer in range(layers) if _turned(layer, raw))
    return {"rope_layers": None if len(chosen) == layers else chosen}


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
        *LLAMA_ROWS,
        Field("mlp_bias", "mlp_bias"),
        Group(
            ("no_rope_layers", "no_rope_layer_interval"), ("rope_layers",),
            _read_turned, _write_turned,
        ),
        windows(lambda layer, raw: not _turned(layer, raw), switch=True),
        rotary(theta=2_000_000.0),
    ),
    tensors=(*llama_attention(), *LLAMA_MLP),
    buffers=(ROTARY_BUFFER,),
)  # fmt: skip
