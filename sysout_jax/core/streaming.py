"""Statistics of attention over blocks of queries, so that no T x S map is ever stored.

A block holds a few queries and all keys, so each row of weights is complete in it: sums over
queries add up over blocks, and what belongs to single queries is put one after the other. Axes: N
query heads, T query position, t queries of one block, S key position, K KV heads, H head dim.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sysout_jax.core.detectors import ratio_or_zero
from sysout_jax.core.measures import rows_to_one


class Partial(NamedTuple):
    """What one block of queries contributes, or all of them: two trees of arrays."""

    total: Any = ()  # summed over queries
    queries: Any = ()  # [..., t], one number for each query


@dataclass(frozen=True)
class Blockwise:
    """A reducer of attention maps that can be given all queries at once, or a block at a time.

    of_block: (*values, positions [t]) -> Partial. The last value is a map [N, t, S], t of its T
      queries; values before it are whole.
    finish: what the Partial of all queries becomes.
    """

    of_block: Callable[..., Partial]
    finish: Callable[[Partial], Any]

    def __call__(self, *values: Array) -> Any:
        """Reduce a map of all queries."""
        return self.finish(self.of_block(*values, jnp.arange(values[-1].shape[-2])))


def over_blocks(
    of_block: Callable[[Any], tuple[Any, dict[str, Partial]]], blocks: Any, queries: int
) -> tuple[Any, dict[str, Partial]]:
    """Blocks of queries one after the other; sums are carried from one to the next.

    A sum for each key of each block would be T/t of them: memory that grows with T^2.

    Args:
      of_block: one block -> what becomes of its queries, and by name what it contributes.
      blocks: arrays with a leading axis over blocks.
      queries: T; what the last block holds beyond it is padding.

    Returns:
      What became of the queries, with that leading axis; the Partials of all queries.
    """
    shapes = jax.eval_shape(of_block, jax.tree.map(lambda x: x[0], blocks))[1]
    nothing = {
        name: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), of.total)
        for name, of in shapes.items()
    }

    def add(whole: dict[str, Any], block: Any) -> tuple[dict[str, Any], Any]:
        out, partials = of_block(block)
        added = {
            name: jax.tree.map(jnp.add, whole[name], of.total) for name, of in partials.items()
        }
        return added, (out, {name: of.queries for name, of in partials.items()})

    def join(x: Array) -> Array:
        x = jnp.moveaxis(x, 0, -2)
        return x.reshape(*x.shape[:-2], -1)[..., :queries]

    whole, (out, single) = jax.lax.scan(add, nothing, blocks)
    return out, {name: Partial(whole[name], jax.tree.map(join, single[name])) for name in whole}


def join_partials(parts: Sequence[dict[str, Partial]]) -> dict[str, Partial]:
    """The Partials of queries that follow one another, by name, as one of them all."""

    def joined(*of: Partial) -> Partial:
        return Partial(
            jax.tree.map(lambda *x: sum(x[1:], x[0]), *(each.total for each in of)),
            jax.tree.map(lambda *x: jnp.concatenate(x, -1), *(each.queries for each in of)),
        )

    return {name: joined(*(part[name] for part in parts)) for name in parts[0]}


def split_queries(x: Float[Array, "*B T N C"], size: int) -> Float[Array, "blocks *B t N C"]:
    """Cut the query axis into blocks of `size`, the last one padded with zeros."""
    lead, (queries, *rest) = x.shape[:-3], x.shape[-3:]
    blocks = -(-queries // size)
    padding = [(0, 0)] * len(lead) + [(0, blocks * size - queries), (0, 0), (0, 0)]
    x = jnp.pad(x, padding).reshape(*lead, blocks, size, *rest)
    return jnp.moveaxis(x, len(lead), 0)


def join_queries(x: Float[Array, "blocks *B t N C"], queries: int) -> Float[Array, "*B T N C"]:
    """The inverse of `split_queries`."""
    x = jnp.moveaxis(x, 0, -4)
    x = x.reshape(*x.shape[:-4], -1, *x.shape[-2:])
    return x[..., :queries, :, :]


# ------------------------------------------------------------------------ statistics


@cache
def attention_received(normalised: bool) -> Blockwise:
    """How much attention each key receives.

    received[n, k] = (1/T) sum_q A[n, q, k], whose mean over heads is the score of An et al. 2025
    and whose first entry is the sink strength of Gu et al. 2025 (times T/(T - k) for key k);
    first_own[n] = A[n, 0, 0], which is below 1 where a row has mass on keys of no token.

    Args:
      normalised: whether the variant's rows sum to at most one; if not, they are brought to one.

    Returns:
      A reducer of [N, T, S] to {"received": [N, S], "first_own": [N]}.
    """

    def of_block(weights: Float[Array, "N t S"], positions: Int[Array, "t"]) -> Partial:
        shown = weights if normalised else rows_to_one(weights)
        return Partial(total=jnp.sum(shown, axis=1), queries=shown[:, :, 0])

    def finish(whole: Partial) -> dict[str, Array]:
        to_first = whole.queries  # [N, T]
        return {"received": whole.total / to_first.shape[-1], "first_own": to_first[:, 0]}

    return Blockwise(of_block, finish)


def scaling_factor(outliers: Bool[Array, "S"], normalised: bool) -> Blockwise:
    """The implicit scaling factor of each query, and what the values of outlier tokens add.

    S_i = sum_{j not in O} p_ij;  o_i = S_i o^R_i + sum_{j in O} p_ij v_j (theory A1), so that
    |o_i - S_i o^R_i| / |o_i| is the error of "attention is S times attention over the rest".

    Args:
      outliers: [S], True for tokens in O.
      normalised: whether rows sum to at most one; if not, they are brought to one.

    Returns:
      A reducer of values [S, K, H] and weights [N, T, S] to {"scale": [N, T], "error": [N, T],
      "received": [N, T], the attention on O}; the error is 0 where o is.
    """

    def of_block(
        v: Float[Array, "S K H"], weights: Float[Array, "N t S"], positions: Int[Array, "t"]
    ) -> Partial:
        p = weights if normalised else rows_to_one(weights)
        sinks = jnp.where(jnp.broadcast_to(outliers, p.shape), p, 0.0)
        added, whole = (jnp.linalg.norm(_mix(v, w), axis=-1) for w in (sinks, p))
        error = ratio_or_zero(added, whole)
        received = jnp.sum(sinks, axis=-1)
        rest = jnp.sum(p - sinks, axis=-1)
        return Partial(queries={"scale": rest, "error": error, "received": received})

    return Blockwise(of_block, lambda whole: whole.queries)


def _mix(v: Float[Array, "S K H"], weights: Float[Array, "N t S"]) -> Float[Array, "N t H"]:
    grouped = weights.reshape(v.shape[1], -1, *weights.shape[1:])
    mixed = jnp.einsum("KGtS,SKH->KGtH", grouped, v.astype(weights.dtype))
    return mixed.reshape(-1, *mixed.shape[2:])
