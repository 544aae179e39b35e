"""The layers of a decoder as array functions: linear maps, masks, MLPs, loss."""

from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Integer


def at_least_float32(dtype: jnp.dtype) -> jnp.dtype:
    """The dtype for sums and exponentials: float64 stays, anything narrower becomes float32."""
    return jnp.dtype(jnp.float64 if dtype == jnp.float64 else jnp.float32)


def widened(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """`x` in the dtype for sums: no narrower than float32."""
    return x.astype(at_least_float32(x.dtype))


def one_widened(x: Float[Array, "..."], axes: str) -> Float[Array, "..."]:
    """`widened`, of one sequence or matrix: a batch would be taken for something else."""
    x = jnp.asarray(x)
    if x.ndim != len(axes.split()):
        accepted = f"[{', '.join(axes.split())}], of one sequence or matrix"
        raise ValueError(f"an array of shape {x.shape}; accepted: {accepted}")
    return widened(x)


def lengths(x: Float[Array, "*B D"]) -> Float[Array, "*B"]:
    """|x| along the last axis; its gradient at zero is zero, where that of the root is infinite."""
    squares = jnp.sum(jnp.square(x), axis=-1)
    return jnp.where(squares == 0.0, 0.0, jnp.sqrt(jnp.where(squares == 0.0, 1.0, squares)))


def scaled(x: Float[Array, "..."], factor: float) -> Float[Array, "..."]:
    """`x` times a factor of the config, in the dtype of `x`; x itself where that is 1."""
    return x if factor == 1.0 else x * jnp.asarray(factor, x.dtype)


def linear(
    x: Float[Array, "..."],
    weight: Float[Array, "..."],
    bias: Float[Array, "..."] | None = None,
    inputs: int = 1,
) -> Float[Array, "..."]:
    """Contract the last `inputs` axes of `x` with the first `inputs` axes of `weight`, add `bias`.

    y[..., o] = sum_i x[..., i] W[i, o] + b[o], where i and o may each stand for several axes.

    Args:
      x: [..., *i].
      weight: [*i, *o], cast to the dtype of `x`.
      bias: [*o], or None.
      inputs: the number of axes in i; 2 for a projection out of heads, [..., N, H] with [N, H, D].

    Returns:
      [..., *o], in the dtype of `x`.
    """
    lead, contracted, outputs = x.shape[:-inputs], weight.shape[:inputs], weight.shape[inputs:]
    if x.shape[-inputs:] != contracted:
        raise ValueError(f"linear: {x.shape} does not end in {contracted} of the weight")
    # One matrix product over flattened rows: the weight gradient then contracts a single axis,
    # which XLA's CPU backend runs about three times faster than contracting batch and position.
    rows = x.reshape(prod(lead), prod(contracted))
    out = rows @ weight.astype(x.dtype).reshape(prod(contracted), prod(outputs))
    out = out.reshape(*lead, *outputs)
    if bias is None:
        return out
    # Added in float32: the bias' gradient is a sum over rows, which bfloat16 would lose.
    wide = at_least_float32(x.dtype)
    return (out.astype(wide) + jnp.broadcast_to(bias.astype(wide), out.shape)).astype(x.dtype)


def lookup(table: Float[Array, "V W"], indices: Int[Array, "..."]) -> Float[Array, "... W"]:
    """Read rows of a table; its gradient is the sum over their uses, in float32 or wider.

    y[..., w] = table[indices[...], w].

    Args:
      table: [V, W].
      indices: [...] in [0, V); beyond it, rows are NaN.

    Returns:
      [..., W], in the dtype of `table`.
    """
    # To a negative index `take` gives a row from the end.
    return _looked_up(table, jnp.where(indices < 0, table.shape[0], indices))


# A sum of ones in bfloat16 ends at 256, and a token may stand in a batch far more often. A table
# cast before it is read would have the same gradient, and a copy of it in every forward pass.
@jax.custom_jvp
def _looked_up(table: Array, indices: Array) -> Array:
    return jnp.take(table, indices, axis=0)


@_looked_up.defjvp
def _looked_up_moves(
    primals: tuple[Array, Array], tangents: tuple[Array, Any]
) -> tuple[Array, Array]:
    table, indices = primals
    moved = jnp.take(widened(tangents[0]), indices, axis=0)
    return _looked_up(table, indices), moved.astype(table.dtype)


def causal_mask(
    queries: Int[Array, "T"], keys: Int[Array, "S"], window: int | None = None
) -> Bool[Array, "T S"]:
    """Mark the keys that each query may see: its past and itself, at most `window` of them.

    mask[t, s] = 0 <= queries[t] - keys[s] < window.

    Args:
      queries: [T] positions of the queries, in tokens.
      keys: [S] positions of the keys, in tokens.
      window: the number of keys visible to a query, itself included; None for all of the past.

    Returns:
      [T, S], True where visible.
    """
    distance = queries[:, None] - keys[None, :]
    visible = distance >= 0
    return visible if window is None else visible & (distance < window)


def gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """GPT-2's tanh approximation of x * Phi(x) (Hendrycks & Gimpel 2016)."""
    return jax.nn.gelu(x, approximate=True)


def exact_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x * Phi(x) itself, by the error function (Hendrycks & Gimpel 2016)."""
    return jax.nn.gelu(x, approximate=False)


def sigmoid_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """The sigmoid approximation of x * Phi(x), x sigmoid(1.702 x) (Hendrycks & Gimpel 2016)."""
    return x * jax.nn.sigmoid(1.702 * x)


class MlpKind(NamedTuple):
    """act(x W_up), or gated: act(x W_gate) * (x W_up + shift) (Shazeer 2020)."""

    act: Callable[[Array], Array]
    gated: bool
    shift: float = 0.0


MLPS: Mapping[str, MlpKind] = MappingProxyType(
    {
        "relu": MlpKind(jax.nn.relu, False),
        "gelu": MlpKind(gelu, False),
        "gelu_exact": MlpKind(exact_gelu, False),
        "reglu": MlpKind(jax.nn.relu, True),
        "geglu": MlpKind(gelu, True),
        "geglu_exact": MlpKind(exact_gelu, True),
        "swiglu": MlpKind(jax.nn.silu, True),
        # gpt-oss's (OpenAI 2025, arXiv:2508.10925): at a closed "up" the gate still passes
        "shifted_glu": MlpKind(sigmoid_gelu, True, 1.0),
    }
)


def cross_entropy(
    logits: Float[Array, "*B V"], targets: Integer[Array, "*B"]
) -> Float[Array, "*B"]:
    """The negative log-likelihood of each target: logsumexp(logits) - logits[target], in nats.

    Args:
      logits: [..., V].
      targets: [...] token ids in [0, V).

    Returns:
      [...], in float32 or wider.
    """
    wide = widened(logits)
    # A masked sum instead of a gather: its gradient is dense, and faster than a scatter.
    # Ids of 8 bits would be compared with a vocabulary that is counted in 8 bits.
    hit = jax.nn.one_hot(targets.astype(jnp.int32), logits.shape[-1], dtype=jnp.bool_)
    return jax.nn.logsumexp(wide, axis=-1) - jnp.sum(jnp.where(hit, wide, 0.0), axis=-1)
