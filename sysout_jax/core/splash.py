"""Pallas' Splash attention, the fused kernel of a TPU, on the sequences and heads of one device.

Axes: B batch, T position, N query heads, K KV heads, H head dim.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jaxtyping import Array, Float

LANES = 128  # positions: the kernel takes multiples of them,
BLOCKS = (512, 256, 128)  # and the largest of these that divides them: fewer reads of keys


@dataclass(frozen=True)
class FirstKey(masks.Mask):
    """Every query sees the first key alone."""

    length: int

    @property
    def shape(self) -> tuple[int, int]:
        """[T, T]."""
        return self.length, self.length

    def __getitem__(self, idx: tuple[slice, slice]) -> np.ndarray:
        queries, keys = (np.arange(self.length)[each] for each in idx)
        return np.broadcast_to(keys == 0, (queries.size, keys.size))


def causal_attention(
    window: int | None,
    first: bool,
    interpret: bool,
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
) -> Float[Array, "B T N H"]:
    """Mix values by the softmax of q.k over the keys that queries see; blocks of keys that no query
    of a block sees are skipped.

    Args:
      window: the number of keys visible to a query, itself included; None for all of the past.
      first: whether the first key is visible besides.
      interpret: by Pallas' interpreter, on any device.
      q, k, v: queries, scaled already, keys, values.
    """
    batch, length, heads, _ = q.shape
    groups = heads // k.shape[2]
    more = ((0, 0), (0, -length % LANES), (0, 0), (0, 0))  # positions after the last, seen by none
    q, k, v = (jnp.swapaxes(jnp.pad(x, more), 1, 2) for x in (q, k, v))
    seen = _seen(q.shape[2], window, first)
    block = next(size for size in BLOCKS if q.shape[2] % size == 0)
    sizes = splash.BlockSizes(
        block, block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
    )
    kernel = splash.make_splash_mqa_single_device(
        masks.MultiHeadMask([seen] * groups), block_sizes=sizes, interpret=interpret
    )
    grouped = q.reshape(batch, -1, groups, *q.shape[2:])
    mixed = jax.vmap(jax.vmap(kernel))(grouped, k, v)
    return jnp.swapaxes(mixed.reshape(batch, heads, *mixed.shape[3:]), 1, 2)[:, :length]


def _seen(length: int, window: int | None, first: bool) -> masks.Mask:
    """What the kernel computes by itself, or of a window with the first key, its blocks."""
    shape = (length, length)
    if window is None:
        return masks.CausalMask(shape)
    local = masks.LocalMask(shape, (window - 1, 0), 0)
    return local | FirstKey(length) if first else local
