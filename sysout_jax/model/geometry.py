"""What a config says of positions inside attention: how heads are turned, what logits gain."""

from math import sqrt

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sysout_jax.core import positions as p
from sysout_jax.core.positions import Rotation
from sysout_jax.model.config import ModelConfig


def windowed(config: ModelConfig, layer: Int[Array, ""] | int) -> Bool[Array, ""]:
    """Whether a layer is one of `window_layers`."""
    return jnp.isin(layer, jnp.asarray(config.layers_with_window, jnp.int32))


def rotation(config: ModelConfig, length: int, layer: Int[Array, ""] | int) -> Rotation:
    """The rotation of a layer's queries and keys; by no angle in a layer without positions.

    Args:
      config: the architecture.
      length: of the sequence, in tokens; some rules depend on it.
      layer: its index.
    """
    rope, channels = config.rope, config.rope.channels(config.sizes["H"])
    found = rope.rotation(channels, length)
    if rope.local_theta is not None:
        local = Rotation(p.inverse_frequencies(rope.local_theta, channels))
        found = _either(windowed(config, layer), local, found)
    if config.rope_layers is not None:
        turned = jnp.isin(layer, jnp.asarray(config.rope_layers, jnp.int32))
        found = _either(turned, found, Rotation(0.0 * found.frequencies))
    return found


def _either(where: Bool[Array, ""], one: Rotation, other: Rotation) -> Rotation:
    """One rotation where that is so, else the other."""
    a, b = (jnp.asarray(each.frequencies, jnp.float32) for each in (one, other))
    return Rotation(jnp.where(where, a, b), jnp.where(where, one.scale, other.scale))


def logit_bias(
    config: ModelConfig, queries: Int[Array, "T"], keys: Int[Array, "S"]
) -> Float[Array, "N #T S"] | None:
    """What ALiBi adds to the logits of queries and keys at these positions, or None."""
    if config.position != "alibi":
        return None
    slopes = p.alibi_slopes(config.heads)
    if config.alibi_falcon:
        return p.alibi_bfloat16(keys, slopes) / sqrt(config.sizes["H"])
    return p.alibi(queries, keys, slopes)
