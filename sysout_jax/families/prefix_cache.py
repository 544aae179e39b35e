"""The prefix of a converted model as `transformers` keeps keys and values of tokens it has read."""

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from safetensors.numpy import save_file

from sysout_jax.core.positions import rotate
from sysout_jax.errors import InputError
from sysout_jax.files import replacing
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import unstack_blocks
from sysout_jax.model.geometry import rotation
from sysout_jax.model.model import Model


def export_prefix(model: Model, path: str | os.PathLike[str]) -> None:
    """Write keys and values that stand before every text, for the model before its conversion.

    Args:
      model: converted with a prefix.
      path: of a safetensors file with `prefix_tensors`; appears whole or not at all.

    Raises:
      InputError: a model without a prefix.
      OSError: it cannot be written.
    """
    tensors = prefix_tensors(model)
    with replacing(Path(path).absolute()) as partial:
        save_file(tensors, partial, {"format": "pt"})


def prefix_tensors(model: Model) -> dict[str, Float[np.ndarray, "1 K C H"]]:
    """A prefix as `DynamicCache.update` of the `transformers` library takes its keys and values.

    `key.0`, `value.0`, `key.1`, ... of every layer, float32 [1, K, C, H] (one sequence, KV heads, C
    tokens, head dim), keys turned to the positions 0 to C - 1. Bounds on down_in are no part of it.

    Args:
      model: converted with a prefix.

    Raises:
      InputError: a model without a prefix.
    """
    config = model.config
    if config.sink is None or config.sink.replaces_first:
        why = "not converted" if config.sink is None else "constants stand in a token's place"
        raise InputError("export", "prefix", "a model converted with a prefix", why)
    params = unstack_blocks(model.params) if "blocks" in model.params else model.params
    tensors = {}
    for layer in range(config.layers):
        own = params[f"block_{layer}"]["attn"]
        pair = {"key": _turned(config, layer, own["sink_key"]), "value": own["sink_value"]}
        for name, each in pair.items():
            by_head = np.swapaxes(np.asarray(each, np.float32), 0, 1)
            tensors[f"{name}.{layer}"] = np.ascontiguousarray(by_head[None])
    return tensors


def _turned(config: ModelConfig, layer: int, key: Float[Array, "C K H"]) -> Array:
    if config.position != "rope":
        return key
    places = jnp.arange(len(key))
    return rotate(key, places, rotation(config, len(key), layer), config.rope.interleaved)
