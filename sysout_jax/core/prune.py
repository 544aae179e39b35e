"""Pruning: which weights to keep. Masks are True where a weight stays. Weights are [I, O]."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sysout_jax.core.compensate import BLOCK, DAMPING, Change, compensated, hessian_factor
from sysout_jax.core.layers import widened

OUTLIER, REACH = 5.0, 0.08  # times the mean score; from the share of all layers to a layer's


def shares_by_layer(
    outliers: Float[np.ndarray, "L"], sparsity: float, reach: float = REACH
) -> Float[np.ndarray, "L"]:
    """The share of each layer to remove: the fewer outliers, the more.

    r_l = s + k - k_l,  k_l = 2 reach (D_l - min D)/(max D - min D),  k the mean of k_l; s where
    layers do not differ.

    Args:
      outliers: D [L], the share of a layer's weights whose score is an outlier.
      sparsity: s, the mean share.
      reach: how far a layer's share goes from s.

    Returns:
      [L], within [0, 1].

    Source: Yin et al. 2024 (arXiv:2310.05175, OWL), section 3.2.
    """
    span = np.ptp(outliers)
    kept = 2.0 * reach * (outliers - outliers.min()) / (span if span > 0.0 else 1.0)
    return np.clip(sparsity + kept.mean() - kept, 0.0, 1.0)


def outlier_share(scores: list[Float[Array, "..."]]) -> Float[Array, ""]:
    """The share of a layer's scores, of all matrices, above `OUTLIER` times their mean."""
    flat = jnp.concatenate([score.reshape(-1) for score in scores])
    return jnp.mean(flat > OUTLIER * jnp.mean(flat))


def smallest(score: Float[Array, "..."], sparsity: float) -> Bool[Array, "..."]:
    """True for the floor(sparsity n) entries of the last axis with the smallest scores.

    Of equal scores the first ones are taken, so that the share is exact.
    """
    count = _count(sparsity, score.shape[-1])
    rank = jnp.argsort(jnp.argsort(score, axis=-1, stable=True), axis=-1, stable=True)
    return rank < count


def _count(sparsity: float, entries: int) -> int:
    return math.floor(round(sparsity * entries, 6))  # 0.29 x 100 is a little below 29


def magnitude_mask(w: Float[Array, "I O"], sparsity: float) -> Bool[Array, "I O"]:
    """Keep the largest |W| of the whole matrix."""
    return ~smallest(jnp.abs(w).reshape(-1), sparsity).reshape(w.shape)


def global_magnitude_masks(weights: list[Array], sparsity: float) -> list[Bool[Array, "..."]]:
    """Keep the largest |W| of several matrices together: layers with small weights lose more.

    On the host; NaN is kept.
    """
    # Positions among all weights of a large model need more than 32 bits.
    flat = np.concatenate([np.abs(np.asarray(widened(w))).reshape(-1) for w in weights])
    count = _count(sparsity, flat.size)
    limit = np.partition(flat, count - 1)[count - 1] if count else -np.inf
    kept = ~(flat <= limit)
    kept[np.flatnonzero(flat == limit)[count - np.count_nonzero(flat < limit) :]] = True
    parts = np.split(kept, np.cumsum([w.size for w in weights])[:-1])
    return [jnp.asarray(part.reshape(w.shape)) for part, w in zip(parts, weights, strict=True)]


def wanda_score(w: Float[Array, "I O"], norm: Float[Array, "I"]) -> Float[Array, "I O"]:
    """|W_io| |x_i|_2, of the inputs' norms over calibration tokens (Sun et al. 2023, eq. 1)."""
    return jnp.abs(w) * norm[:, None]


def per_output_mask(score: Float[Array, "I O"], sparsity: float) -> Bool[Array, "I O"]:
    """Keep the largest scores of each output, the comparison group of Wanda.

    Source: Sun et al. 2023 (arXiv:2306.11695), section 3.
    """
    return ~smallest(score.T, sparsity).T


def n_of_m_mask(score: Float[Array, "I O"], n: int, m: int) -> Bool[Array, "I O"]:
    """Keep the n largest scores of each m consecutive inputs of an output.

    Raises:
      ValueError: m does not divide the inputs, or n is not between 1 and m.
    """
    inputs, outputs = score.shape
    if inputs % m or not 1 <= n <= m:
        raise ValueError(f"{n}:{m} of {inputs} inputs: accepted: m divides them, and 1 <= n <= m")
    runs = score.T.reshape(outputs, inputs // m, m)
    rank = jnp.argsort(jnp.argsort(-runs, axis=-1, stable=True), axis=-1, stable=True)
    return (rank < n).reshape(outputs, inputs).T


def sparsegpt(
    w: Float[Array, "I O"],
    gram: Float[Array, "I I"],
    sparsity: float | tuple[int, int],
    block: int = BLOCK,
    damping: float = DAMPING,
) -> Float[Array, "I O"]:
    """Prune inputs one after the other, what is lost made up for by those still to come.

    The weights with the smallest w^2/U_ii^2 go, as they are when their turn comes: a share of each
    block of inputs for a sparsity, and all but n of each m consecutive inputs for n:m.

    Args:
      w: [I, O].
      gram: X^T X of calibration inputs.
      sparsity: the share to remove, or (n, m).
      block: inputs whose mask is chosen at once for a share. For n:m it changes no number.
      damping: see `hessian_factor`.

    Returns:
      The weights, of which those pruned are zero.

    Raises:
      ValueError: m does not divide the inputs, or n is not between 1 and m.

    Source: Frantar & Alistarh 2023 (arXiv:2301.00774), algorithm 1 and its form for n:m.
    """
    factor, dead = hessian_factor(gram, damping)
    own = jnp.square(jnp.diagonal(factor))[:, None]

    def begin(rows: Float[Array, "r O"], start: Any) -> Change:
        score = jnp.square(rows) / jax.lax.dynamic_slice_in_dim(own, start, rows.shape[0])
        if isinstance(sparsity, tuple):
            mask = n_of_m_mask(score, *sparsity)
        else:
            mask = ~smallest(score.reshape(-1), sparsity).reshape(score.shape)
        return lambda row, i: jnp.where(mask[i], row, 0.0)

    w = jnp.where(dead[:, None], 0.0, w)
    if not isinstance(sparsity, tuple):
        return compensated(w, factor, begin, block)
    m = sparsity[1]
    if len(w) % m:
        raise ValueError(f"{sparsity[0]}:{m} of {len(w)} inputs: accepted: m divides them")
    return compensated(w, factor, begin, max(block // m, 1) * m, m)
