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
    c = config
    everywhere = _by_rule(config, length)
    if c.local_rope_theta is None:
        return everywhere
    local = p.inverse_frequencies(c.local_rope_theta, c.rope_channels)
    return Rotation(
        jnp.where(
            windowed,
            jnp.asarray(local, jnp.float32),
            jnp.asarray(everywhere.frequencies, jnp.float32),
        ),
        jnp.where(windowed, 1.0, everywhere.scale),
    )


def _by_rule(c: ModelConfig, length: int) -> Rotation:
    base, factor, context = (c.rope_theta, c.rope_channels), c.rope_factor, c.rope_context
    if c.rope_rule == "linear":
        return p.linear(*base, factor)
    if c.rope_rule == "dynamic":
        return p.dynamic(*base, factor, context, length)
    if c.rope_rule == "llama3":
        return p.llama3(*base, factor, context, c.rope_low, c.rope_high)
    if c.rope_rule == "yarn":
        ramp = (c.rope_fast, c.rope_slow)
        return p.yarn(*base, factor, context, *ramp, c.rope_truncate, c.rope_scale)
    if c.rope_rule == "longrope":
        divisors = (c.rope_short, c.rope_long)
        return p.longrope(*base, factor, context, length, *divisors, c.rope_scale)
    return Rotation(p.inverse_frequencies(*base))


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
