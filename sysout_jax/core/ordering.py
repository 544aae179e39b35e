"""Order statistics of many numbers by counting, without sorting them."""

from functools import partial
from math import sqrt

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sysout_jax.core.layers import widened

SAMPLE = 512  # numbers that are sorted to begin with
WIDE = 4.0  # standard deviations of a rank in the sample, to either side
BEYOND = 0.5  # standard deviations of a rank between two bounds, by which a guess passes it
EXACT = 2**24  # whole numbers up to here are exact in float32, in which a CPU adds sooner


def median_magnitude(h: Float[Array, "..."]) -> Float[Array, ""]:
    """median |h|, found by counting the entries up to some ten guesses instead of sorting them.

    Exact, and about a hundred times faster than sorting 10^6 entries on a CPU. Its gradient is
    shared by the entries of that size.

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


def _bits(size: Float[Array, "..."]) -> Int[Array, "..."]:
    """Magnitudes as integers of the same order; what is no number is above all."""
    signed = {4: jnp.int32, 8: jnp.int64}[size.dtype.itemsize]
    return jax.lax.bitcast_convert_type(size, signed)


def _neighbours(size: Array, rank: int) -> tuple[Array, Array]:
    """The magnitude with that many below it, and the next; infinity where there is none."""
    lower, bits = _of_rank(size, rank), _bits(size)
    low = _bits(lower)
    tied = _count(bits <= low) > rank + 1
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


def first_largest(x: Float[Array, "*B D"]) -> Int[Array, "*B"]:
    """Which entry of each row is the largest, the first of equal ones; the last if one is NaN.

    As argmax, which takes a CPU some five times as long.
    """
    peak, last = jnp.max(x, axis=-1, keepdims=True), x.shape[-1] - 1
    columns = jax.lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    return jnp.min(jnp.where(x == peak, columns, last), axis=-1)


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


def _ranked(bits: Int[Array, "..."], rank: int) -> Int[Array, ""]:
    """The number with that many below it, all of them not negative.

    Two bounds, low < high, come nearer to it: no more than `rank` numbers are up to low, more are
    up to high. The first guesses are of the sorted sample. A later one is where the numbers would
    reach that rank if they lay evenly between the bounds, and a little further on to the farther
    bound, so that both move; or the middle, after a guess that left more than half. So there are
    at most two guesses a bit, for most numbers ten.
    """
    numbers = jnp.atleast_1d(bits)
    every, most = numbers.size, int(jnp.iinfo(bits.dtype).max)
    if every > jnp.iinfo(jnp.int32).max:
        raise ValueError(f"{every} numbers; accepted: fewer than 2^31, as counts are of 32 bits")
    # Neighbours share a column or a row; an odd step goes through many of both. As places, not as
    # a slice: that would gather an array which devices share, and what it spans of a large one
    # does not fit into a TPU's vector memory.
    places = np.unravel_index(np.arange(0, every, (every // SAMPLE) | 1), numbers.shape)
    sample = jnp.sort(numbers[places])
    last = sample.size - 1
    at, beside = (rank + 0.5) / every * last, WIDE * sqrt(sample.size) / 2.0

    def narrowed(bounds: tuple[Array, ...], guess: Array) -> tuple[Array, ...]:
        low, below, high, within = bounds
        guess = jnp.maximum(low + 1, jnp.minimum(guess, high - 1))
        count = _count(numbers <= guess)
        reached = (low, below, guess, count), (guess, count, high, within)
        return jax.tree.map(partial(jnp.where, count > rank), *reached)

    def open_(state: tuple[tuple[Array, ...], Array]) -> Array:
        low, below, high, _ = state[0]
        return (below < rank) & (high - low > 1)

    def nearer(state: tuple[tuple[Array, ...], Array]) -> tuple[tuple[Array, ...], Array]:
        (low, below, high, within), slow = state
        width, held = high - low, (within - below).astype(jnp.float32)
        rest = rank + 0.5 - below.astype(jnp.float32)
        rest = rest + BEYOND * jnp.sqrt(held) * jnp.where(rest < held / 2, 1.0, -1.0)
        share = jnp.where(slow, 0.5, jnp.clip(rest / held, 0.0, 1.0))
        found = narrowed(state[0], low + (share * width.astype(jnp.float32)).astype(low.dtype))
        return found, found[2] - found[0] > width // 2

    bounds: tuple[Array, ...] = (
        jnp.asarray(-1, bits.dtype), jnp.int32(0), jnp.asarray(most, bits.dtype), jnp.int32(every),
    )  # fmt: skip
    for place in (max(int(at - beside), 0), min(int(at + beside) + 1, last)):
        bounds = narrowed(bounds, sample[place])
    (low, *_), _ = jax.lax.while_loop(open_, nearer, (bounds, jnp.asarray(False)))
    return jnp.min(jnp.where(numbers > low, numbers, most))


def _count(flags: Bool[Array, "..."]) -> Int[Array, ""]:
    """How many are true."""
    if flags.size <= EXACT:
        return jnp.sum(flags, dtype=jnp.float32).astype(jnp.int32)
    return jnp.sum(flags, dtype=jnp.int32)


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
