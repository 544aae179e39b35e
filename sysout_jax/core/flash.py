"""Causal softmax attention by a fused kernel that never holds the map of weights.

On a GPU the kernel is cuDNN's, on a TPU Pallas' Splash attention, elsewhere XLA's plain form of the
same function.
Axes: B batch, T position, N query heads, K KV heads, H head dim.
"""

from collections.abc import Callable
from functools import partial
from math import sqrt

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, PartitionSpec
from jaxtyping import Array, Float

from sysout_jax.core.layers import at_least_float32

DTYPES = ("bfloat16", "float16")  # what the kernel takes
PADDING = 8  # channels: cuDNN wants head dims that are multiples of it
LARGEST = 128  # channels of a head that cuDNN's kernels take on every GPU that has them
LANES = 128  # positions: Splash attention takes multiples of them,
BLOCKS = (512, 256, 128)  # and the largest of these that divides them: fewer reads of keys
# Mesh axes of training/sharding.py that divide sequences and heads; along its axis `data` steps are
# mapped. XLA cannot divide a kernel of Pallas by itself.
SEQUENCES, HEADS = "fsdp", "tensor"
Kernel = Callable[[Array, Array, Array, float], Array]


def takes(width: int, extra_key: bool = False) -> bool:
    """Whether the kernel mixes heads of so many channels; an extra key adds some of its own."""
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
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    """Mix values by the causal softmax of logits and, where given, one extra logit of no value.

    o_t = sum_{j<=t} e^{s_tj} v_j / Z_t, Z_t = e^{s'_t} + sum_{j<=t} e^{s_tj}; the extra key takes
    p'_t = e^{s'_t} / Z_t. That could be had from the kernel without an extra key, as o and p' are
    functions of its output, its log Z and s'; but jax.nn.dot_product_attention gives log Z without
    a gradient. So s' enters as what it is, the logit of one more key that every query sees: a row
    before the first, reached through channels of its own, whose value marks p'.

    Args:
      q, k, v: queries, keys, values; on a GPU or TPU of a dtype in `DTYPES`.
      extra: s', or None for no extra key.
      scale: of q.k; None: 1/sqrt(H).

    Returns:
      o in the dtype of `v`, and p', which is zero without an extra logit.
    """
    scale = 1.0 / sqrt(q.shape[-1]) if scale is None else scale
    if jax.default_backend() == "gpu":  # elsewhere its kernel cannot even be traced
        return _mixed(_cudnn, scale, q, k, v, extra)

    # The kernel of a TPU has no scale. Of logits that enter as channels, none is rounded by it.
    scaled = (q.astype(jnp.float32) * scale).astype(q.dtype)
    mixed: tuple[Array, Array] = jax.lax.platform_dependent(
        (q, scaled), k, v, extra,
        tpu=lambda of, *rest: _mixed(_splash, 1.0, of[1], *rest),
        default=lambda of, *rest: _mixed(_plain, scale, of[0], *rest),
    )  # fmt: skip
    return mixed


def _mixed(
    kernel: Kernel, scale: float, q: Array, k: Array, v: Array, extra: Array | None
) -> tuple[Float[Array, "B T N H"], Float[Array, "B N T"]]:
    if extra is None:
        return kernel(q, k, v, scale), jnp.zeros((q.shape[0], q.shape[2], q.shape[1]), v.dtype)
    # In two parts, so that the logit is not rounded to the dtype of queries.
    width, logit = q.shape[-1], jnp.swapaxes(extra, 1, 2)[..., None] / scale
    high = logit.astype(q.dtype)
    parts = jnp.concatenate((high, (logit - high.astype(logit.dtype)).astype(q.dtype)), axis=-1)
    mixed = kernel(_widened(q, parts), _widened(k, first=2), _widened(v, first=1), scale)[:, 1:]
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


def _cudnn(q: Array, k: Array, v: Array, scale: float) -> Array:
    even = partial(_longer, by=q.shape[1] % 2)  # it trains on even lengths only
    mixed = jax.nn.dot_product_attention(
        even(q), even(k), even(v), scale=scale, is_causal=True, implementation="cudnn"
    )
    return mixed[:, : q.shape[1]]


def _plain(q: Array, k: Array, v: Array, scale: float) -> Array:
    wide = at_least_float32(q.dtype)
    out = jax.nn.dot_product_attention(
        *(x.astype(wide) for x in (q, k, v)), scale=scale, is_causal=True, implementation="xla"
    )
    return out.astype(v.dtype)


def _splash(q: Array, k: Array, v: Array, scale: float, interpret: bool = False) -> Array:
    """Logits are q.k, scaled before; blocks of keys that no query of a block sees are skipped."""
    assert scale == 1.0
    mesh = jax.sharding.get_abstract_mesh()
    if AxisType.Auto not in mesh.axis_types:
        return _splash_here(interpret, q, k, v)
    if k.shape[2] % mesh.shape[HEADS]:  # too few are copied to every device
        k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
    where = PartitionSpec(SEQUENCES, None, HEADS)
    divided = jax.shard_map(
        partial(_splash_here, interpret), in_specs=(where,) * 3, out_specs=where, check_vma=False
    )
    mixed: Array = divided(q, k, v)
    return mixed


def _splash_here(interpret: bool, q: Array, k: Array, v: Array) -> Array:
    """The kernel on the sequences and heads of one device."""
    # Imported where it is used: half a second that no other device needs.
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    batch, length, heads, _ = q.shape
    groups = heads // k.shape[2]
    q, k, v = (jnp.swapaxes(_longer(x, -length % LANES), 1, 2) for x in (q, k, v))
    causal = masks.CausalMask((q.shape[2],) * 2)
    block = next(size for size in BLOCKS if q.shape[2] % size == 0)
    sizes = splash.BlockSizes(
        block, block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
    )
    kernel = splash.make_splash_mqa_single_device(
        masks.MultiHeadMask([causal] * groups), block_sizes=sizes, interpret=interpret
    )
    grouped = q.reshape(batch, -1, groups, *q.shape[2:])
    mixed = jax.vmap(jax.vmap(kernel))(grouped, k, v)
    return jnp.swapaxes(mixed.reshape(batch, heads, *mixed.shape[3:]), 1, 2)[:, :length]


def _longer(x: Float[Array, "B T N H"], by: int) -> Float[Array, "B t N H"]:
    """With positions after the last, which nobody sees."""
    return jnp.pad(x, ((0, 0), (0, by), (0, 0), (0, 0)))
