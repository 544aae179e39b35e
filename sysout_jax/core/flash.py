"""Causal softmax attention by a fused kernel that never holds the map of weights.

On a GPU the kernel is cuDNN's, on a TPU Pallas' Splash attention, elsewhere XLA's plain form of the
same function.
Axes: B batch, T position, N query heads, K KV heads, H head dim.
"""

from collections.abc import Callable
from functools import partial
from math import sqrt
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Bool, Float

from sysout_jax.core.layers import at_least_float32, causal_mask

DTYPES = ("bfloat16", "float16")  # what the kernel takes
PADDING = 8  # channels: cuDNN wants head dims that are multiples of it
LARGEST = 128  # channels of a head that cuDNN's kernels take on every GPU that has them
# Mesh axes of training/sharding.py that divide sequences and heads; along its axis `data` steps are
# mapped. XLA cannot divide a kernel of Pallas by itself.
SEQUENCES, HEADS = "fsdp", "tensor"


class Past(NamedTuple):
    """Which keys of its past a query sees, as `causal_mask` has it."""

    window: int | None = None  # so many, itself included; None: all
    windowed: Bool[Array, ""] | None = None  # whether this layer has the window; None: it has
    first: bool = False  # whether every query sees the first key, however far it is


ALL = Past()
Kernel = Callable[[Array, Array, Array, float, Past], Array]


def takes(width: int, extra_key: bool = False, window: int | None = None) -> bool:
    """Whether the kernel mixes heads of so many channels; an extra key adds some of its own, and
    every query sees it, which cuDNN's kernel with a window cannot have."""
    if extra_key and window is not None and jax.default_backend() == "gpu":
        return False
    return width % PADDING == 0 and width + extra_key * PADDING <= LARGEST


def available() -> bool:
    """Whether this process's devices have the kernel."""
    return jax.default_backend() in ("gpu", "tpu")


def flash_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    extra: Float[Array, "B N T"] | None = None,
    scale: float | None = None,
    past: Past = ALL,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """Mix values by the causal softmax of logits and, where given, one extra logit of no value.

    o_t = sum_j e^{s_tj} v_j / Z_t, Z_t = e^{s'_t} + sum_j e^{s_tj}, over j <= t or, in a window of
    w keys, t - w < j <= t. The extra key takes p'_t = e^{s'_t} / Z_t.

    That could be had from the kernel without an extra key, as o and p' are functions of its output,
    its log Z and s'; but jax.nn.dot_product_attention gives log Z without a gradient. So s' enters
    as what it is, the logit of one more key that every query sees: a row before the first, reached
    through channels of its own, whose value marks p'.

    Args:
      q, k, v: queries, keys, values; on a GPU or TPU of a dtype in `DTYPES`.
      extra: s', or None for no extra key.
      scale: of q.k; None: 1/sqrt(H).
      past: the keys that queries see.

    Returns:
      o in the dtype of `v`, and p', which is zero without an extra logit.
    """
    scale = 1.0 / sqrt(q.shape[-1]) if scale is None else scale
    if past.windowed is None:
        return _anywhere(past, scale, q, k, v, extra)
    everything, limited = (
        partial(_anywhere, Past(window), scale) for window in (None, past.window)
    )
    mixed: tuple[Array, Array] = jax.lax.cond(past.windowed, limited, everything, q, k, v, extra)
    return mixed


def _anywhere(
    past: Past, scale: float, q: Array, k: Array, v: Array, extra: Array | None
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """By the kernel of the device that it runs on."""
    if jax.default_backend() == "gpu":  # elsewhere its kernel cannot even be traced
        return _mixed(_cudnn, past, scale, q, k, v, extra)

    # The kernel of a TPU has no scale. Of logits that enter as channels, none is rounded by it.
    scaled = (q.astype(jnp.float32) * scale).astype(q.dtype)
    mixed: tuple[Array, Array] = jax.lax.platform_dependent(
        (q, scaled), k, v, extra,
        tpu=lambda of, *rest: _mixed(_splash, past, 1.0, of[1], *rest),
        default=lambda of, *rest: _mixed(_plain, past, scale, of[0], *rest),
    )  # fmt: skip
    return mixed


def _mixed(
    kernel: Kernel, past: Past, scale: float, q: Array, k: Array, v: Array, extra: Array | None
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    if extra is None:
        mass = jnp.zeros((q.shape[0], q.shape[2], q.shape[1]), v.dtype)
        return kernel(q, k, v, scale, past), mass
    # In two parts, so that the logit is not rounded to the dtype of queries; finite, as what is
    # left of an infinite one is no number.
    most = float(jnp.finfo(q.dtype).max) / 4
    width, logit = q.shape[-1], jnp.swapaxes(extra, 1, 2)[..., None] / scale
    logit = jnp.clip(logit, -most, most)
    high = logit.astype(q.dtype)
    parts = jnp.concatenate((high, (logit - high.astype(logit.dtype)).astype(q.dtype)), axis=-1)
    rows = _widened(q, parts), _widened(k, first=2), _widened(v, first=1)
    mixed = kernel(*rows, scale, past._replace(first=True))[:, 1:]
    return mixed[..., :width], jnp.swapaxes(mixed[..., width], 1, 2)


def _widened(
    x: Float[Array, "B T N H"], channels: Float[Array, "B T N c"] | None = None, first: int = 0
) -> Float[Array, "B T+1 N H+8"]:
    """More channels, zero after those given, and a row before the first: ones in the `first` of
    these channels, zero elsewhere."""
    added = 0 if channels is None else channels.shape[-1]
    x = x if channels is None else jnp.concatenate((x, channels), axis=-1)
    x = jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, PADDING - added)))
    return x.at[:, 0, :, -PADDING : first - PADDING].set(1.0) if first else x


def _cudnn(q: Array, k: Array, v: Array, scale: float, past: Past) -> Array:
    assert past.window is None or not past.first, "as `takes` has it"
    even = partial(_longer, by=q.shape[1] % 2)  # it trains on even lengths only
    before = None if past.window is None else (past.window - 1, 0)
    mixed = jax.nn.dot_product_attention(
        even(q), even(k), even(v), scale=scale, is_causal=True, local_window_size=before,
        implementation="cudnn",
    )  # fmt: skip
    return mixed[:, : q.shape[1]]


def _plain(q: Array, k: Array, v: Array, scale: float, past: Past) -> Array:
    wide = at_least_float32(q.dtype)
    at = jnp.arange(q.shape[1])
    seen = causal_mask(at, at, past.window)
    seen = seen | (at == 0)[None] if past.first else seen
    q, k, wide_v = (x.astype(wide) for x in (q, k, v))
    out = jax.nn.dot_product_attention(
        q, k, wide_v, mask=seen[None, None], scale=scale, implementation="xla"
    )
    return out.astype(v.dtype)


def _splash(
    q: Array, k: Array, v: Array, scale: float, past: Past, interpret: bool = False
) -> Array:
    """Logits are q.k, scaled before."""
    # Imported where it is used: half a second that no other device needs.
    from sysout_jax.core.splash import causal_attention

    assert scale == 1.0
    here = partial(causal_attention, past.window, past.first, interpret)
    mesh = jax.sharding.get_abstract_mesh()
    if AxisType.Auto not in mesh.axis_types:
        return here(q, k, v)
    if k.shape[2] % mesh.shape[HEADS]:  # too few are copied to every device
        k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    where = PartitionSpec(SEQUENCES, None, HEADS)
    divided = jax.shard_map(here, in_specs=(where,) * 3, out_specs=where, check_vma=False)
    mixed: Array = divided(q, k, v)
    return mixed


def _longer(x: Float[Array, "B T N H"], by: int) -> Float[Array, "B t N H"]:
    """With positions after the last, which nobody sees."""
    return jnp.pad(x, ((0, 0), (0, by), (0, 0), (0, 0)))
