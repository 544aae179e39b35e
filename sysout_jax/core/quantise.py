"""Quantisation, simulated exactly: values are rounded to the grid of a format and come back as
floats, so that any matrix product can be made with them.

A scale is shared by the entries of a tensor, of a vector along the contracted axis (a token of an
activation, an output channel of a weight) or of a group of consecutive entries of such a vector.
Here the contracted axis is the LAST one: an activation [T, I] as it is, a weight [I, O] transposed.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import ndtri

from sysout_jax.core.layers import widened

PER = ("tensor", "vector", "group")
PERCENTILE = 99.999  # of magnitudes, the default of a calibrated range
LARGEST_E4M3 = 448.0
RUN = 32  # tokens of a channel of keys that share a scale (Liu et al. 2024, arXiv:2402.02750)
TERMS = 10  # of each series of a rounding error; where it is used, the next is below 1e-16
SQRT2, INV_SQRT_2PI = math.sqrt(2.0), 1.0 / math.sqrt(2.0 * math.pi)
SPARING = 0.7  # p of the norm by which a half-quadratic fit counts errors
SHRINK = np.linspace(1.0, 0.2, 81)  # of the largest magnitude, searched for the least squared error


@dataclass(frozen=True)
class Format:
    """A grid of numbers.

    nearest: [...] to the nearest numbers of the grid, for values within +-largest.
    largest: the largest magnitude of the grid.
    block: the group whose entries share a scale by definition of the format, or None.
    power_of_two: whether scales are powers of two, and the largest magnitude saturates.
    two_levels: whether scales are FP8 (E4M3) numbers times one scale of the tensor.
    """

    name: str
    nearest: Callable[[Array], Array]
    largest: float
    cite: str
    block: int | None = None
    power_of_two: bool = False
    two_levels: bool = False

    @property
    def bits(self) -> int:
        """Of one number."""
        return int(re.findall(r"\d+", self.name)[0])


def _integers(bits: int) -> Format:
    return Format(f"int{bits}", jnp.round, 2.0 ** (bits - 1) - 1.0, "symmetric integers")


def _minifloat(name: str, x: Array) -> Array:
    return x.astype(jnp.dtype(name)).astype(x.dtype)


def normal_floats() -> Float[np.ndarray, "16"]:
    """The 16 numbers of NF4: quantiles of a normal between which the mass is equal, and zero.

    Eight from Phi^-1 at evenly spaced probabilities of (1/2, 0.9677], seven mirrored ones from as
    many of [0.0323, 1/2), brought to [-1, 1].

    Source: Dettmers et al. 2023 (arXiv:2305.14314), section 3 and appendix E.
    """
    end = (1.0 - 1.0 / 32.0 + 1.0 - 1.0 / 30.0) / 2.0  # the mean of two half bins
    above, below = (ndtri(np.linspace(end, 0.5, n)[:-1]) for n in (9, 8))
    grid = np.sort(np.concatenate([-below, [0.0], above]))
    return grid / grid.max()


def _to_normal_floats(x: Array) -> Array:
    grid = jnp.asarray(normal_floats(), x.dtype)
    between = (grid[1:] + grid[:-1]) / 2.0
    return jnp.where(jnp.isnan(x), x, grid[jnp.searchsorted(between, x)])


NVIDIA = "NVIDIA et al. 2025 (arXiv:2509.25149)"
OCP = "OCP Microscaling Formats 1.0 (2023)"
FORMATS: Mapping[str, Format] = MappingProxyType(
    {
        each.name: each
        for each in (
            *(_integers(bits) for bits in (2, 3, 4, 5, 6, 7, 8, 16)),
            Format(
                "fp8_e4m3",
                partial(_minifloat, "float8_e4m3fn"),
                LARGEST_E4M3,
                "Micikevicius et al. 2022 (arXiv:2209.05433)",
            ),
            Format(
                "fp8_e5m2",
                partial(_minifloat, "float8_e5m2"),
                57344.0,
                "Micikevicius et al. 2022 (arXiv:2209.05433)",
            ),
            Format(
                "mxfp4", partial(_minifloat, "float4_e2m1fn"), 6.0, OCP, block=32,
                power_of_two=True,
            ),
            Format(
                "nvfp4", partial(_minifloat, "float4_e2m1fn"), 6.0, NVIDIA, block=16,
                two_levels=True,
            ),
            Format(
                "nf4", _to_normal_floats, 1.0, "Dettmers et al. 2023 (arXiv:2305.14314)", block=64
            ),
        )
    }
)  # fmt: skip


# ------------------------------------------------------------------------------ sharing


def grouped(x: Float[Array, "..."], per: str, group: int = 128) -> Float[Array, "... shared"]:
    """Bring the entries that share a scale to the last axis.

    Args:
      x: [..., I].
      per: "tensor", "vector" or "group".
      group: consecutive entries of a group; the last group of a vector may be shorter, and is
        filled up with zeros, which change neither its largest magnitude nor the grid of formats
        that are symmetric or have 0 on it (not `half_quadratic`'s).

    Returns:
      [1, all], [..., I] or [..., groups, group].
    """
    if per == "tensor":
        return x.reshape(1, -1)
    if per == "vector":
        return x
    if per != "group":
        raise ValueError(f"per={per!r}: accepted: {', '.join(PER)}")
    missing = -x.shape[-1] % group
    padded = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, missing)])
    return padded.reshape(*x.shape[:-1], -1, group)


def ungrouped(
    shared: Float[Array, "... shared"], shape: tuple[int, ...], per: str
) -> Float[Array, "..."]:
    """The inverse of `grouped`, for an `x` of that shape."""
    if per != "group":
        return shared.reshape(shape)
    return shared.reshape(*shape[:-1], -1)[..., : shape[-1]]


# ------------------------------------------------------------------------------- ranges


def largest_magnitude(shared: Float[Array, "... I"]) -> Float[Array, "... 1"]:
    """max |x| over the entries that share a scale: nothing is clipped."""
    return jnp.max(jnp.abs(shared), axis=-1, keepdims=True)


def percentile_magnitude(
    shared: Float[Array, "... I"], percentile: float = PERCENTILE
) -> Float[Array, "... 1"]:
    """The percentile of |x| over the entries that share a scale: a few of them are clipped."""
    return jnp.percentile(jnp.abs(shared), percentile, axis=-1, keepdims=True)


def least_error_magnitude(shared: Float[Array, "... I"], fmt: Format) -> Float[Array, "... 1"]:
    """The range with the least squared error, of max |x| times each of `SHRINK`."""
    top = largest_magnitude(shared)

    def error(share: Array) -> Array:
        rounded = symmetric(shared, fmt, share * top)
        return jnp.sum(jnp.square(rounded - shared), axis=-1, keepdims=True)

    shares = jnp.asarray(SHRINK, shared.dtype)
    errors = jax.lax.map(error, shares)
    return shares[jnp.argmin(errors, axis=0)] * top


# ----------------------------------------------------------------------------- rounding


def symmetric(
    shared: Float[Array, "... I"], fmt: Format, magnitude: Float[Array, "... 1"]
) -> Float[Array, "... I"]:
    """AbsMax: round to the format's grid, scaled so that `magnitude` is its largest number.

    step = magnitude/largest;  nearest(clip(x/step, -largest, largest)) step, and x where the step
    is zero. Where scales are powers of two, step is the smallest with magnitude/step < 2 times the
    power of two in `largest`, so that the top of the range saturates. Of two levels, with u = max
    magnitude/(448 largest) over the tensor, step = E4M3(magnitude/(largest u)) u, which may be 0:
    then so are the rounded values.

    Args:
      shared: entries that share a scale on the last axis; of two levels, those of a whole tensor.
      fmt: the grid.
      magnitude: one for each scale; of the same tensor (dynamic) or of calibration data (static).

    Returns:
      The rounded values. Of float32, an error of at most half a step inside an integer grid;
      zero is exact; a NaN makes NaN of all that share its scale.
    """
    step = _step(fmt, magnitude)
    wide = jnp.broadcast_to(step, shared.shape)
    safe = jnp.where(wide == 0.0, 1.0, wide)
    rounded = fmt.nearest(jnp.clip(shared / safe, -fmt.largest, fmt.largest)) * safe
    return jnp.where(wide == 0.0, 0.0 if fmt.two_levels else shared, rounded)


def _step(fmt: Format, magnitude: Array) -> Array:
    if fmt.two_levels:
        top = jnp.max(magnitude, where=~jnp.isnan(magnitude), initial=0.0)
        unit = top / (fmt.largest * LARGEST_E4M3)
        of_unit = magnitude / (fmt.largest * jnp.where(unit == 0.0, 1.0, unit))
        return _minifloat("float8_e4m3fn", of_unit) * unit
    if not fmt.power_of_two:
        return magnitude / fmt.largest
    top = np.floor(np.log2(fmt.largest))
    _, exponent = jnp.frexp(magnitude)  # magnitude = mantissa 2^exponent, mantissa in [1/2, 1)
    step = jnp.ldexp(jnp.ones_like(magnitude), exponent - 1 - int(top))
    return jnp.where(magnitude == 0.0, 0.0, jnp.where(jnp.isnan(magnitude), magnitude, step))


def zero_point(
    shared: Float[Array, "... I"],
    bits: int,
    low: Float[Array, "... 1"],
    high: Float[Array, "... 1"],
) -> Float[Array, "... I"]:
    """Asymmetric integers: 2^bits levels from `low` to `high`, one of which is exactly zero.

    step = (high - low)/(2^bits - 1), z = round(-low/step), (clip(round(x/step) + z, 0, 2^bits - 1)
    - z) step, with the range extended to include zero; x where the step is zero.

    Args:
      shared: entries that share a scale on the last axis.
      bits: from 1.
      low, high: one for each scale, of the same tensor or of calibration data.

    Source: Jacob et al. 2018 (arXiv:1712.05877), eq. 1.
    """
    top = 2.0**bits - 1.0
    low, high = jnp.minimum(low, 0.0), jnp.maximum(high, 0.0)
    wide = jnp.broadcast_to((high - low) / top, shared.shape)
    safe = jnp.where(wide == 0.0, 1.0, wide)
    zero = jnp.round(-jnp.broadcast_to(low, shared.shape) / safe)
    rounded = (jnp.clip(jnp.round(shared / safe) + zero, 0.0, top) - zero) * safe
    return jnp.where(wide == 0.0, shared, rounded)


def half_quadratic(
    shared: Float[Array, "... I"], bits: int, rounds: int = 20
) -> Float[Array, "... I"]:
    """Asymmetric integers whose zero point is fitted, so that a few large entries count for less.

    With s = (2^b - 1)/(max - min) and z = -s min at first, w_q = clip(round(s w + z), 0, 2^b - 1)
    and w' = (w_q - z)/s; e = sign(w - w') relu(|w - w'| - |w - w'|^(p - 1)/beta) solves for the
    errors that are let be, p = 0.7, and z = mean(w_q - s (w - e)) for the rest; beta is 10 at first
    and 1.01 times as large each time. The z of least mean |w - w'| of each scale is kept.

    Args:
      shared: entries that share a scale on the last axis.
      bits: from 1.
      rounds: of the two steps.

    Source: Badri and Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models".
      Their code stops where the error of the whole tensor first rises, and keeps the last z.
    """
    top = 2.0**bits - 1.0
    low, high = (f(shared, axis=-1, keepdims=True) for f in (jnp.min, jnp.max))
    scale = top / jnp.where(high == low, 1.0, high - low)

    def rounded(zero: Array) -> tuple[Array, Array]:
        whole = jnp.clip(jnp.round(shared * scale + zero), 0.0, top)
        return whole, (whole - zero) / scale

    def step(
        carry: tuple[Array, Array, Array], beta: Array
    ) -> tuple[tuple[Array, Array, Array], None]:
        zero, best, least = carry
        whole, back = rounded(zero)
        error = jnp.mean(jnp.abs(shared - back), axis=-1, keepdims=True)
        better = error < least
        best, least = jnp.where(better, zero, best), jnp.where(better, error, least)
        size = jnp.abs(shared - back)
        spared = size ** (SPARING - 1.0) / beta
        kept = jnp.sign(shared - back) * jnp.maximum(size - jnp.where(size > 0, spared, 0.0), 0.0)
        zero = jnp.mean(whole - (shared - kept) * scale, axis=-1, keepdims=True)
        return (zero, best, least), None

    start = -low * scale
    betas = 10.0 * 1.01 ** jnp.arange(rounds, dtype=shared.dtype)
    (_, best, _), _ = jax.lax.scan(step, (start, start, jnp.full_like(start, jnp.inf)), betas)
    return jnp.where(high == low, shared, rounded(best)[1])


def quantise(
    x: Float[Array, "... I"], fmt: Format, per: str = "tensor", group: int = 128
) -> Float[Array, "... I"]:
    """AbsMax rounding of a tensor with its own largest magnitudes, at least in float32.

    Args:
      x: [..., I], the contracted axis last.
      fmt: the grid; a format with a block of its own is always rounded by groups of that size.
      per: what shares a scale: "tensor", "vector" or "group".
      group: consecutive entries of a group.
    """
    per, group = ("group", fmt.block) if fmt.block else (per, group)
    shared = grouped(widened(x), per, group)
    rounded = symmetric(shared, fmt, largest_magnitude(shared))
    return ungrouped(rounded, x.shape, per).astype(x.dtype)


def quantise_zero_point(
    x: Float[Array, "... I"], bits: int, per: str = "tensor", group: int = 128
) -> Float[Array, "... I"]:
    """Asymmetric rounding of a tensor with its own ranges; arguments are those of `quantise`."""
    shared = grouped(widened(x), per, group)
    low, high = (f(shared, axis=-1, keepdims=True) for f in (jnp.min, jnp.max))
    return ungrouped(zero_point(shared, bits, low, high), x.shape, per).astype(x.dtype)


def flushed(x: Float[Array, "..."], rounded: Float[Array, "..."]) -> Float[Array, ""]:
    """The share of nonzero entries that come back as zero: #{x != 0, rounded = 0}/#{x != 0}.

    A float of 4 bits with the step s of its block gives 0 for |x| <= s/4, of NVFP4 about a 24th of
    the block's largest magnitude: one large entry silences its neighbours.

    Args:
      x: any shape; of zeros the share is 0.
      rounded: the same, as a format gives it.

    Source: "Dissecting Outlier Dynamics in LLM NVFP4 Pretraining" 2026 (arXiv:2602.02047).
    """
    nonzero = x != 0.0
    lost = jnp.sum(nonzero & (rounded == 0.0), dtype=jnp.float32)
    return lost / jnp.maximum(jnp.sum(nonzero, dtype=jnp.float32), 1.0)


def sqnr(x: Float[Array, "..."], rounded: Float[Array, "..."]) -> Float[Array, ""]:
    """The signal to quantisation noise ratio, 10 log10(sum x^2 / sum (x - rounded)^2), in dB."""
    x = widened(x)
    noise = jnp.sum(jnp.square(x - widened(rounded)))
    return 10.0 * jnp.log10(jnp.sum(jnp.square(x)) / noise)


# ------------------------------------------------------------- what an outlier costs (E1)


def normal_rounding_error(step: Float[Array, ""], sigma: Float[Array, ""]) -> Float[Array, ""]:
    """The mean squared error of rounding a normal variable to multiples of a step.

    step^2/12 + (step/pi)^2 sum_{k>=1} (-1)^k/k^2 exp(-2 (pi k sigma/step)^2) for steps up to sigma,
    sigma^2 + 2 sum_{j>=1} (j^2 step^2 P_j - 2 j step M_j) for larger ones, P_j and M_j the
    probability and the mean of x within half a step of j step.

    Args:
      step: of the grid, in units of x.
      sigma: the standard deviation of x.

    Source: Widrow & Kollar 2008, Quantization Noise; derived in theory/e1_absmax_error.py.
    """
    k = jnp.arange(1.0, TERMS + 1.0, dtype=sigma.dtype)
    sign = jnp.where(k % 2.0 == 0.0, 1.0, -1.0).astype(sigma.dtype)
    fine = jnp.sum(sign / jnp.square(k) * jnp.exp(-2.0 * jnp.square(jnp.pi * k * sigma / step)))

    width = step / sigma
    low, high = (k - 0.5) * width, (k + 0.5) * width
    probability = (jax.scipy.special.erfc(low / SQRT2) - jax.scipy.special.erfc(high / SQRT2)) / 2.0
    density = (jnp.exp(-jnp.square(low) / 2.0) - jnp.exp(-jnp.square(high) / 2.0)) * INV_SQRT_2PI
    coarse = jnp.sum(jnp.square(k * width) * probability - 2.0 * k * width * density)
    return jnp.where(
        width < 1.0,
        jnp.square(step) * (1.0 / 12.0 + fine / jnp.pi**2),
        jnp.square(sigma) * (1.0 + 2.0 * coarse),
    )


def predicted_sqnr(ratio: Float[Array, ""], levels: Float[Array, ""], entries: int) -> Array:
    """The `sqnr` of AbsMax rounding that theory E1 gives a normal bulk with one outlier, in dB.

    With RMS = 1: sigma^2 = (n - rho^2)/(n - 1), step = rho/levels, and the noise is
    (n - 1) e(step)/n.

    Args:
      ratio: rho = max|x|/RMS(x).
      levels: the largest integer of the grid, 2^(bits-1) - 1.
      entries: n, the entries that share the scale.
    """
    sigma = jnp.sqrt((entries - jnp.square(ratio)) / (entries - 1))
    error = normal_rounding_error(ratio / levels, sigma) * (entries - 1) / entries
    return -10.0 * jnp.log10(error)
