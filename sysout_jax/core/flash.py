"""Causal softmax attention by a fused kernel that never holds the map of weights.

On a GPU the kernel is cuDNN's, elsewhere XLA's plain form of the same function.
Axes: B batch, T position, N query heads, K KV heads, H head dim.
"""

from math import sqrt

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sysout_jax.core.layers import at_least_float32

DTYPES = ("bfloat16", "float16")  # what the kernel takes
PADDING = 8  # channels: cuDNN wants head dims that are multiples of it
LARGEST = 128  # channels of a head that cuDNN's kernels take on every GPU that has them


def takes(width: int, extra_key: bool = False) -> bool:
    """Whether the kernel mixes heads of so many channels; an extra key adds some of its own."""
    return width % PADDING == 0 and width + extra_key * PADDING <= LARGEST


def available() -> bool:
    """Whether this process's devices have the kernel."""
    return jax.default_backend() == "gpu"


def flash_attention(
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    extra: Float[Array, "B N T"] | None = None,
    scale: float | None = None,
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """Mix values by the causal softmax of logits and, where given, one extra logit of no value.

    o_t = sum_{j<=t} e^{s_tj} v_j / Z_t, Z_t = e^{s'_t} + sum_{j<=t} e^{s_tj}; the extra key takes
    p'_t = e^{s'_t} / Z_t. That could be had from the kernel without an extra key, as o and p' are
    functions of its output, its log Z and s'; but jax.nn.dot_product_attention gives log Z without
    a gradient. So s' enters as what it is, the logit of one more key that every query sees: a row
    before the first, reached through channels of its own, whose value marks p'.

    Args:
      q, k, v: queries, keys, values; on a GPU of a dtype in `DTYPES`.
      extra: s', or None for no extra key.
      scale: of q.k; None: 1/sqrt(H).

    Returns:
      o in the dtype of `v`, and p', which is zero without an extra logit.
    """
    width = q.shape[-1]
    scale = 1.0 / sqrt(width) if scale is None else scale
    if extra is None:
        return _kernel(q, k, v, scale), jnp.zeros((q.shape[0], q.shape[2], q.shape[1]), v.dtype)
    # In two parts, so that the logit is not rounded to the dtype of queries.
    logit = jnp.swapaxes(extra, 1, 2)[..., None] / scale
    high = logit.astype(q.dtype)
    parts = jnp.concatenate((high, (logit - high.astype(logit.dtype)).astype(q.dtype)), axis=-1)
    mixed = _kernel(_widened(q, parts), _widened(k, first=2), _widened(v, first=1), scale)[:, 1:]
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


def _kernel(q: Array, k: Array, v: Array, scale: float) -> Array:
    length = q.shape[1]
    if length % 2:  # cuDNN trains on even lengths only; nobody sees a row after the last
        after = ((0, 0), (0, 1), (0, 0), (0, 0))
        q, k, v = (jnp.pad(x, after) for x in (q, k, v))
        return _kernel(q, k, v, scale)[:, :length]
    if available():
        return jax.nn.dot_product_attention(
            q, k, v, scale=scale, is_causal=True, implementation="cudnn"
        )
    wide = at_least_float32(q.dtype)
    out = jax.nn.dot_product_attention(
        *(x.astype(wide) for x in (q, k, v)), scale=scale, is_causal=True, implementation="xla"
    )
    return out.astype(v.dtype)
