"""Order statistics of many numbers by counting, without sorting them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

# bytes of a number -> the integer of its bits, how many bits matter, and those of infinity
BITS = {4: (jnp.int32, 31, 0x7F800000), 8: (jnp.int64, 63, 0x7FF0000000000000)}


def median_magnitude(h: Float[Array, "..."]) -> Float[Array, ""]:
    """median |h|, by bisection on the bits of the numbers instead of sorting them.

    Non-negative floats are ordered as their bits are, so the smallest bit pattern that half of the
    entries do not exceed is found in 31 counts: exact, and some ten times faster on 10^7 entries.

    Args:
      h: any shape, float32 or float64.
    """
    size = jnp.abs(h)
    kind, steps, infinity = BITS[size.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(size, kind)
    rank = (size.size - 1) // 2  # of the lower middle one, counted from 0

    def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        enough = jnp.sum(bits <= middle, dtype=jnp.int32) > rank
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    ends = (jnp.asarray(0, kind), jnp.asarray(infinity, kind))
    low = jax.lax.fori_loop(0, steps, halve, ends)[0]
    lower = jax.lax.bitcast_convert_type(low, size.dtype)
    if size.size % 2:
        return lower
    tied = jnp.sum(bits <= low, dtype=jnp.int32) > rank + 1
    upper = jnp.where(tied, lower, jnp.min(size, where=bits > low, initial=jnp.inf))
    return (lower + upper) / 2.0


def discoveries(log_p: Float[Array, "..."], q: float) -> Bool[Array, "..."]:
    """Which of n p-values to reject with a false discovery rate of q.

    p <= q k/n, k the largest number with p_(k) <= q k/n of the sorted p-values. That many are at
    most q k/n, and of no larger k: k is the largest fixed point of k -> #{p <= q k/n}, to which
    the counts from k = n on fall.

    Args:
      log_p: their natural logarithms.
      q: the expected share of true null hypotheses among the rejected ones.

    Source: Benjamini & Hochberg 1995.
    """

    def rejected(k: Array) -> Array:
        return log_p <= jnp.log(q * k.astype(log_p.dtype) / log_p.size)

    def falls(state: tuple[Array, Array]) -> Array:
        return state[1] < state[0]

    def step(state: tuple[Array, Array]) -> tuple[Array, Array]:
        return state[1], jnp.sum(rejected(state[1]), dtype=jnp.int32)

    every = jnp.asarray(log_p.size, jnp.int32)
    first = (every, jnp.sum(rejected(every), dtype=jnp.int32))
    return rejected(jax.lax.while_loop(falls, step, first)[1])
