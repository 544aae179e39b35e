"""What a config says of positions inside attention: how heads are turned, what logits gain."""

from math import sqrt

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sysout_jax.core import positions as p
from sysout_jax.core.positions import Rotation
from sysout_jax.model.config import ModelConfig


def rotation(config: ModelConfig, length: int, windowed: Bool[Array, ""]) -> Rotation:
    """The rotation of a layer's queries and keys.

    Args:
      config: the architecture.
      length: of the sequence, in tokens; some rules depend on it.
      windowed: whether the layer is one of `window_layers`.
    """
    rope, channels = config.rope, config.rope.channels(config.sizes["H"])
    everywhere = rope.rotation(channels, length)
    if rope.local_theta is None:
        return everywhere
    local = p.inverse_frequencies(rope.local_theta, channels)
    return Rotation(
        jnp.where(
            windowed,
            jnp.asarray(local, jnp.float32),
            jnp.asarray(everywhere.frequencies, jnp.float32),
        ),
        jnp.where(windowed, 1.0, everywhere.scale),
    )


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
