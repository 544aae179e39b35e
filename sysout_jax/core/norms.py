"""Norms before, behind and between the branches of a decoder: one table, a row a norm.

To add a norm, write its function and its row. Its parameters, their sharding and the flag's choices
follow from the row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sysout_jax.core.layers import linear, widened
from sysout_jax.core.variants import Param


def rms_norm(
    x: Float[Array, "*B D"],
    scale: Float[Array, "D"] | None = None,
    bias: None = None,
    eps: float = 1e-6,
) -> Float[Array, "*B D"]:
    """Divide by the root mean square over the last axis (Zhang & Sennrich 2019, eq. 4).

    y = scale * x / sqrt(mean(x^2) + eps), computed in float32 or wider.

    Args:
      x: [..., D].
      scale: [D], or None for 1.
      bias: RMSNorm has none; the argument keeps the signature of `layer_norm`.
      eps: added to the mean square, in units of x^2.

    Returns:
      [..., D], in the dtype of `x`.
    """
    del bias
    wide = widened(x)
    out = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return _affine(out, scale, None).astype(x.dtype)


def layer_norm(
    x: Float[Array, "*B D"],
    scale: Float[Array, "D"] | None = None,
    bias: Float[Array, "D"] | None = None,
    eps: float = 1e-5,
) -> Float[Array, "*B D"]:
    """Subtract the mean and divide by the standard deviation (Ba et al. 2016, section 3).

    y = scale * (x - mean(x)) / sqrt(var(x) + eps) + bias, computed in float32 or wider.

    Args:
      x: [..., D].
      scale: [D], or None for 1.
      bias: [D], or None for 0.
      eps: added to the variance, in units of x^2.

    Returns:
      [..., D], in the dtype of `x`.
    """
    wide = widened(x)
    centred = wide - jnp.mean(wide, axis=-1, keepdims=True)
    out = centred * jax.lax.rsqrt(jnp.mean(centred * centred, axis=-1, keepdims=True) + eps)
    return _affine(out, scale, bias).astype(x.dtype)


def _affine(x: Array, scale: Array | None, bias: Array | None) -> Array:
    if scale is not None:
        x = x * jnp.broadcast_to(scale.astype(x.dtype), x.shape)
    if bias is not None:
        x = x + jnp.broadcast_to(bias.astype(x.dtype), x.shape)
    return x


def gated_norm(
    x: Float[Array, "*B D"],
    scale: Float[Array, "D"] | None = None,
    bias: None = None,
    eps: float = 1e-6,
    *,
    gate_down: Float[Array, "D R"],
    gate_up: Float[Array, "R D"],
) -> Float[Array, "*B D"]:
    """RMSNorm under a gate of low rank: the rescaling that large channels are otherwise there for.

    n * sigmoid(silu(n W_down) W_up), n = rms_norm(x) * scale (Qiu et al. 2026, arXiv:2601.22966).

    Args:
      x: [..., D].
      scale: [D], or None for 1.
      bias: it has none.
      eps: of `rms_norm`.
      gate_down, gate_up: [D, R] and [R, D]; all zero, the gate is 1/2.

    Returns:
      [..., D], in the dtype of `x`.
    """
    normed = rms_norm(x, scale, bias, eps)
    gate = jax.nn.sigmoid(linear(jax.nn.silu(linear(normed, gate_down)), gate_up))
    return normed * gate


def pre_affine_norm(
    x: Float[Array, "*B D"],
    scale: Float[Array, "D"] | None = None,
    bias: None = None,
    eps: float = 1e-6,
    *,
    before: Float[Array, "D"],
) -> Float[Array, "*B D"]:
    """RMSNorm of scaled channels: the outlier channel as a parameter.

    rms_norm(before * x) * scale (Qiu et al. 2026, arXiv:2601.22966, PreAffine).

    Args:
      x: [..., D].
      scale: [D], or None for 1.
      bias: it has none.
      eps: of `rms_norm`.
      before: [D]; all one, it is RMSNorm.

    Returns:
      [..., D], in the dtype of `x`.
    """
    wide = widened(x)
    scaled = wide * jnp.broadcast_to(before.astype(wide.dtype), x.shape)
    return rms_norm(scaled, scale, bias, eps).astype(x.dtype)


def single_scale_norm(
    x: Float[Array, "*B D"],
    scale: None = None,
    bias: None = None,
    eps: float = 1e-6,
    *,
    gain: Float[Array, ""],
) -> Float[Array, "*B D"]:
    """RMSNorm with one scale for all channels: none of them can be made large by its own.

    gain * x / sqrt(mean(x^2) + eps) (Park et al. 2025, arXiv:2506.19697, SSNorm, whose scale is
    sqrt(D) of ours).

    Args:
      x: [..., D].
      scale, bias: it has none.
      eps: of `rms_norm`.
      gain: a number, 1 at first.

    Returns:
      [..., D], in the dtype of `x`.
    """
    normed = rms_norm(widened(x), scale, bias, eps)
    return (gain.astype(normed.dtype) * normed).astype(x.dtype)


def dynamic_tanh(
    x: Float[Array, "*B D"],
    scale: Float[Array, "D"] | None = None,
    bias: Float[Array, "D"] | None = None,
    eps: float = 0.0,
    *,
    slope: Float[Array, ""],
) -> Float[Array, "*B D"]:
    """Squash each channel by itself instead of dividing by what all of them are.

    tanh(slope * x) * scale + bias (Zhu et al. 2025, arXiv:2503.10622, DyT). Their LLaMA begins with
    slopes by place and width, and learns a scale of the embedding.

    Args:
      x: [..., D].
      scale: [D], or None for 1.
      bias: [D], or None for 0.
      eps: it divides by nothing.
      slope: a number, 1/2 at first.

    Returns:
      [..., D], in the dtype of `x`.
    """
    del eps
    wide = widened(x)
    return _affine(jnp.tanh(slope.astype(wide.dtype) * wide), scale, bias).astype(x.dtype)


@dataclass(frozen=True)
class Norm:
    """A row of the table: the function, and what it has beside a scale."""

    fn: Callable[..., Array]
    params: Mapping[str, Param] = field(default_factory=dict)
    scaled: bool = True  # has a scale for each channel where the model's norms have one
    biased: bool = False  # has a bias where the model's norms have one
    heads: str = "rms"  # the norm of queries and keys in a model with this one

    def __call__(
        self,
        x: Float[Array, "*B D"],
        scale: Float[Array, "D"] | None = None,
        bias: Float[Array, "D"] | None = None,
        eps: float = 1e-6,
        **own: Array,
    ) -> Float[Array, "*B D"]:
        """The normed states; `own` has an array for each entry of `params`."""
        return self.fn(x, scale, bias, eps, **own)


PLAIN = ("rms", "layer")  # those that divide by a size, and do no more
NORMS: Mapping[str, Norm] = MappingProxyType(
    {
        "rms": Norm(rms_norm),
        "layer": Norm(layer_norm, biased=True, heads="layer"),
        "gated": Norm(
            gated_norm,
            {"gate_down": Param("D -> R", "normal"), "gate_up": Param("R -> D", "normal")},
        ),
        "pre_affine": Norm(pre_affine_norm, {"before": Param("D", 1.0)}),
        "single_scale": Norm(single_scale_norm, {"gain": Param("", 1.0)}, scaled=False),
        "tanh": Norm(dynamic_tanh, {"slope": Param("", 0.5)}, biased=True),
    }
)
