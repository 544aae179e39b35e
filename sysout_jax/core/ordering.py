"""Order statistics of many numbers by counting, without sorting them."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sysout_jax.core.layers import widened

DIGIT = 16  # bits that are found at a time
ROWS = 2**14  # at most, of a table whose columns are counted: a count fits into such a digit
COLUMNS = 128  # few: a CPU goes down one vector of them after another


def median_magnitude(h: Float[Array, "..."]) -> Float[Array, ""]:
    """median |h|, by bisection on the bits of the numbers instead of sorting them.

    Non-negative floats are ordered as their bits are, so the smallest bit pattern that half of the
    entries do not exceed is found in as many counts as it has bits: exact, and some thirty times
    faster than sorting 10^6 entries on a CPU. Its gradient is shared by the entries of that size.

    Args:
      h: any shape; narrower than float32 it is widened, which is exact.
    """
    size = jnp.abs(widened(h))
    rank = (size.size - 1) // 2  # of the lower middle one, counted from 0
    if size.size % 2:
        return _of_rank(size, rank)
    lower, upper = _neighbours(size, rank)
    return (lower + upper) / 2.0


def quantile_magnitude(h: Float[Array, "..."], quantile: float) -> Float[Array, ""]:
    """The quantile of |h|, found as `median_magnitude` is, without sorting.

    With s the n sorted magnitudes and a = quantile (n - 1): s[floor a], and of the way to the next
    one the part a - floor a, which is NumPy's default.

    Args:
      h: any shape; narrower than float32 it is widened, which is exact.
      quantile: from 0, below 1.
    """
    size = jnp.abs(widened(h))
    at = quantile * (size.size - 1)
    lower, upper = _neighbours(size, int(at))
    return lower + (at - int(at)) * jnp.where(jnp.isinf(upper), 0.0, upper - lower)


def _bits(size: Float[Array, "..."]) -> Array:
    """Magnitudes as unsigned integers of the same order."""
    unsigned = {4: jnp.uint32, 8: jnp.uint64}[size.dtype.itemsize]
    return jax.lax.bitcast_convert_type(size, unsigned)


def _neighbours(size: Array, rank: int) -> tuple[Array, Array]:
    """The magnitude with that many below it, and the next; infinity where there is none."""
    lower, bits = _of_rank(size, rank), _bits(size)
    low = _bits(lower)
    tied = jnp.sum(bits <= low, dtype=jnp.int32) > rank + 1
    return lower, jnp.where(tied, lower, jnp.min(size, where=bits > low, initial=jnp.inf))


@partial(jax.custom_jvp, nondiff_argnums=(1,))
def _of_rank(size: Float[Array, "..."], rank: int) -> Float[Array, ""]:
    """The magnitude with that many below it."""
    return jax.lax.bitcast_convert_type(_ranked(_bits(size), rank), size.dtype)


@_of_rank.defjvp
def _of_rank_moves(rank: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    found = _of_rank(*primals, rank)
    return found, _mean_where(primals[0] == found, tangents[0], None)


def _mean_where(chosen: Array, moved: Array, axis: int | None) -> Array:
    """As numbers of one size move, the mean of them does."""
    count = jnp.maximum(jnp.sum(chosen, axis=axis), 1)
    return jnp.sum(jnp.where(chosen, moved, 0.0), axis=axis) / count.astype(moved.dtype)


def row_medians(h: Float[Array, "*B D"]) -> Float[Array, "*B"]:
    """median |h| of each row, the bits of the numbers sorted: some five times as fast on a CPU as
    sorting the numbers. Its gradient is shared by the entries of that size.

    Args:
      h: [..., D]; narrower than float32 it is widened, which is exact.
    """
    lower, upper = _middles(jnp.abs(widened(h)))
    return (lower + upper) / 2.0


@jax.custom_jvp
def _middles(size: Float[Array, "*B D"]) -> tuple[Float[Array, "*B"], Float[Array, "*B"]]:
    """The two middle numbers of each row; of an odd number of them one, twice."""
    ordered = jnp.sort(_bits(size), axis=-1)
    last = size.shape[-1] - 1
    lower, upper = (
        jax.lax.bitcast_convert_type(ordered[..., at], size.dtype)
        for at in (last // 2, (last + 1) // 2)
    )
    return lower, upper


@_middles.defjvp
def _middles_move(
    primals: tuple[Array], tangents: tuple[Array]
) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    lower, upper = _middles(*primals)

    def moves(found: Array) -> Array:
        return _mean_where(primals[0] == found[..., None], tangents[0], -1)

    return (lower, upper), (moves(lower), moves(upper))


def shuffled_rows(key: Array, shape: tuple[int, ...]) -> Int[Array, "T D"]:
    """A random order of the columns for each row of a shape (rows, columns).

    Random bits are sorted with the column in the lowest of them, which takes a CPU an eighth of
    `jax.random.permutation`'s time; columns that draw the same stay in order, which for D up to
    some thousands hardly happens.
    """
    low = (shape[1] - 1).bit_length()
    drawn = jax.random.bits(key, shape, jnp.uint32) >> low << low
    ordered = jnp.sort(drawn | jax.lax.broadcasted_iota(jnp.uint32, shape, 1), axis=1)
    return (ordered & ((1 << low) - 1)).astype(jnp.int32)


def _ranked(bits: Array, rank: int) -> Array:
    """The unsigned number with that many below it, its digits one by one from the highest."""
    numbers = bits.ravel()
    columns = min(COLUMNS, numbers.size)
    tables = -(-numbers.size // (ROWS * columns))
    missing = -numbers.size % (tables * columns)
    if missing:  # filled up with what is above every number
        most = jnp.asarray(jnp.iinfo(bits.dtype).max, bits.dtype)
        numbers = jnp.pad(numbers, (0, missing), constant_values=most)
    table = numbers.reshape(tables, -1, columns)
    last, half = (1 << DIGIT) - 1, 1 << (DIGIT - 1)

    def find(state: tuple[Array, Array], shift: Array) -> tuple[tuple[Array, Array], None]:
        found, left = state
        begins = table >> shift
        # The digits of the numbers that begin like the one found; the others are above them.
        digits = jnp.where(begins >> DIGIT == found, begins & last, last)
        small = (digits.astype(jnp.int32) - half).astype(jnp.int16)

        def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = bounds
            middle = low + (high - low) // 2
            enough = _count(small <= middle.astype(jnp.int16)) > left
            return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

        ends = (jnp.asarray(-half, jnp.int32), jnp.asarray(half - 1, jnp.int32))
        digit = jax.lax.fori_loop(0, DIGIT, halve, ends)[0]
        left = left - _count(small < digit.astype(jnp.int16))
        return ((found << DIGIT) | (digit + half).astype(bits.dtype), left), None

    shifts = jnp.arange(8 * bits.dtype.itemsize - DIGIT, -1, -DIGIT, bits.dtype)
    first = (jnp.zeros((), bits.dtype), jnp.asarray(rank, jnp.int32))
    return jax.lax.scan(find, first, shifts)[0][0]


def _count(flags: Bool[Array, "K R C"]) -> Array:
    """How many are true: down the columns first, where a processor adds many at a time."""
    by_column = jnp.sum(flags, axis=1, dtype=jnp.int16)
    return jnp.sum(jax.lax.optimization_barrier(by_column), dtype=jnp.int32)


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
