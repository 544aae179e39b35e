"""Positions: rotations of queries and keys with their context extensions, and ALiBi."""

from collections.abc import Sequence
from math import ceil, floor, log, log2, pi, sqrt
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sysout_jax.core.layers import at_least_float32


class Rotation(NamedTuple):
    """How positions turn channel pairs: the angle of pair r at position t is t * frequencies[r]."""

    frequencies: np.ndarray | Array  # [R], in radians per token
    scale: float | Array = 1.0  # multiplies the turned channels


def inverse_frequencies(theta: float, channels: int) -> np.ndarray:
    """The frequencies of R = channels/2 pairs: theta^(-2r/channels), in radians per token.

    Source: Su et al. 2021 (arXiv:2104.09864), section 3.2.2.
    """
    return theta ** (-np.arange(0, channels, 2, dtype=np.float64) / channels)


def rotate(
    x: Float[Array, "*B T N H"],
    positions: Int[Array, "T"],
    rotation: Rotation,
    interleaved: bool = False,
) -> Float[Array, "*B T N H"]:
    """Turn the first 2R channels of each head by angles linear in the position.

    (a, b) -> scale (a cos - b sin, a sin + b cos), with a and b the channels (r, r + R), or
    (2r, 2r + 1) where interleaved; channels beyond 2R stay as they are.

    Args:
      x: [..., T, N, H] queries or keys, H >= 2R.
      positions: [T], in tokens.
      rotation: the frequencies of R pairs, and the scale.
      interleaved: whether a pair is two adjacent channels.

    Returns:
      [..., T, N, H], in the dtype of `x`.

    Source: Su et al. 2021 (arXiv:2104.09864), eq. 34; the half-split pairing is GPT-NeoX's.
    """
    wide = at_least_float32(x.dtype)
    frequencies = jnp.asarray(rotation.frequencies, wide)
    pairs = frequencies.shape[0]
    if x.shape[-1] < 2 * pairs:
        raise ValueError(f"rotate: {pairs} pairs do not fit into heads of {x.shape[-1]}")
    angle = positions.astype(wide)[:, None] * frequencies[None, :]
    scale = jnp.asarray(rotation.scale, wide)
    shape = (*x.shape[:-1], pairs)
    cos = jnp.broadcast_to((scale * jnp.cos(angle))[:, None, :], shape)
    sin = jnp.broadcast_to((scale * jnp.sin(angle))[:, None, :], shape)
    turned, rest = x[..., : 2 * pairs].astype(wide), x[..., 2 * pairs :]
    if interleaved:
        a, b = turned[..., ::2], turned[..., 1::2]
        out = jnp.stack([a * cos - b * sin, a * sin + b * cos], axis=-1).reshape(turned.shape)
    else:
        a, b = jnp.split(turned, 2, axis=-1)
        out = jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
    return jnp.concatenate([out.astype(x.dtype), rest], axis=-1)


def rope(
    x: Float[Array, "*B T N H"], positions: Int[Array, "T"], theta: float = 10_000.0
) -> Float[Array, "*B T N H"]:
    """`rotate` all of an even number of channels with the plain frequencies of base `theta`."""
    if x.shape[-1] % 2:
        raise ValueError(f"rope: rotates channels in pairs, but heads have {x.shape[-1]}")
    return rotate(x, positions, Rotation(inverse_frequencies(theta, x.shape[-1])))


# ------------------------------------------------------ rotations for longer contexts


def linear(theta: float, channels: int, factor: float) -> Rotation:
    """Position interpolation: every frequency divided by `factor` (Chen et al. 2023,
    arXiv:2306.15595, eq. 4)."""
    return Rotation(inverse_frequencies(theta, channels) / factor)


def dynamic(theta: float, channels: int, factor: float, context: int, length: int) -> Rotation:
    """A base that grows with the sequence once it is longer than the training context.

    theta' = theta (factor T/C - factor + 1)^(channels/(channels - 2)) with T = max(length, C).

    Args:
      theta: the base in training.
      channels: 2R.
      factor: how many times the training context.
      context: C, in tokens.
      length: of the sequence, in tokens.

    Source: Peng et al. 2023 (arXiv:2309.00071), section 3.3, "dynamic NTK".
    """
    grown = factor * max(length, context) / context - (factor - 1)
    return Rotation(inverse_frequencies(theta * grown ** (channels / (channels - 2)), channels))


def llama3(
    theta: float, channels: int, factor: float, context: int, low: float, high: float
) -> Rotation:
    """Llama 3.1's: long wavelengths are stretched by `factor`, short ones kept.

    With s = (C/wavelength - low)/(high - low) clipped to [0, 1]: f' = (1 - s) f/factor + s f.

    Args:
      theta: the base.
      channels: 2R.
      factor: of the stretch.
      context: C, in tokens, of the original training.
      low, high: turns within C below which all, and above which nothing, is stretched.

    Source: Grattafiori et al. 2024 (arXiv:2407.21783), section 3.2, and the released code.
    """
    plain = inverse_frequencies(theta, channels)
    kept = np.clip((context * plain / (2 * pi) - low) / (high - low), 0.0, 1.0)
    return Rotation((1 - kept) * plain / factor + kept * plain)


def yarn(
    theta: float,
    channels: int,
    factor: float,
    context: int,
    fast: float = 32.0,
    slow: float = 1.0,
    truncate: bool = True,
    scale: float | None = None,
) -> Rotation:
    """YaRN: pairs that turn often are kept, those that turn seldom interpolated, a ramp between.

    Args:
      theta: the base.
      channels: 2R.
      factor: of the interpolation.
      context: of the original training, in tokens.
      fast, slow: turns within the context at the two ends of the ramp.
      truncate: whether the ramp's ends are moved outwards to whole pairs.
      scale: of the turned channels; None for 0.1 log(factor) + 1.

    Source: Peng et al. 2023 (arXiv:2309.00071), eqs. 17-23.
    """

    def pair(turns: float) -> float:
        return channels * log(context / (turns * 2 * pi)) / (2 * log(theta))

    start, end = pair(fast), pair(slow)
    if truncate:
        start, end = floor(start), ceil(end)
    start, end = max(start, 0), min(end, channels - 1)
    end = end + 0.001 if start == end else end
    interpolated = np.clip((np.arange(channels // 2) - start) / (end - start), 0.0, 1.0)
    plain = inverse_frequencies(theta, channels)
    if scale is None:
        scale = 0.1 * log(factor) + 1.0 if factor > 1 else 1.0
    return Rotation(interpolated * plain / factor + (1 - interpolated) * plain, scale)


def longrope(
    theta: float,
    channels: int,
    factor: float,
    context: int,
    length: int,
    short: Sequence[float],
    long: Sequence[float],
    scale: float | None = None,
) -> Rotation:
    """LongRoPE: every frequency divided by a searched number of its own.

    Args:
      theta: the base.
      channels: 2R.
      factor: how many times the original context, for the scale.
      context: C, of the original training, in tokens.
      length: of the sequence, in tokens; `long` is used where it exceeds C.
      short, long: [R] divisors.
      scale: of the turned channels; None for sqrt(1 + log(factor)/log(C)).

    Source: Ding et al. 2024 (arXiv:2402.13753); the scale is Phi-3's (arXiv:2404.14219).
    """
    divisors = np.asarray(long if length > context else short, np.float64)
    if scale is None:
        scale = sqrt(1 + log(factor) / log(context)) if factor > 1 else 1.0
    return Rotation(inverse_frequencies(theta, channels) / divisors, scale)


# ------------------------------------------------------------------------- ALiBi


def alibi_slopes(heads: int) -> np.ndarray:
    """The slope of each head, 2^(-8 i/n) for i = 1..n where n heads are a power of two.

    Otherwise those of the power of two below, then every second one of the power above.

    Args:
      heads: N.

    Returns:
      [N], positive, in units of logits per token.

    Source: Press et al. 2022 (arXiv:2108.12409), section 3, and its released code.
    """
    above = 2 ** ceil(log2(heads))
    grid = 2.0 ** (-8.0 * np.arange(1, above + 1) / above)
    return grid if above == heads else np.concatenate([grid[1::2], grid[::2]])[:heads]


def alibi(
    queries: Int[Array, "T"], keys: Int[Array, "S"], slopes: Float[np.ndarray, "N"]
) -> Float[Array, "N T S"]:
    """The bias of each logit, linear in the distance: -slope_n (t - s), in float32."""
    distance = (queries[:, None] - keys[None, :]).astype(jnp.float32)
    return -jnp.asarray(slopes, jnp.float32)[:, None, None] * distance[None]


def alibi_bfloat16(keys: Int[Array, "S"], slopes: Float[np.ndarray, "N"]) -> Float[Array, "N 1 S"]:
    """Falcon's bias: slope_n s with the slopes, and then the products, rounded to bfloat16.

    Up to rounding it differs from `alibi` by a constant per query, to which softmax is blind; the
    rounding is what the published models were trained with.
    """
    rounded = jnp.asarray(slopes, jnp.float32).astype(jnp.bfloat16).astype(jnp.float32)
    products = rounded[:, None] * keys.astype(jnp.bfloat16).astype(jnp.float32)[None, :]
    return products.astype(jnp.bfloat16).astype(jnp.float32)[:, None, :]
