"""Are vectors on one side of zero? How far, and what a sink must then take (theory B1, B2).

Axes: S vectors, H head dim.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import optimize

TOUCHES = 1e-6  # of the mean length: a hull that is nearer to zero than that contains it


class Side(NamedTuple):
    """The half-space that vectors are in: <direction, v_j> >= margin for all of them."""

    margin: float  # dist(0, conv{v_j}) in units of v; 0 where zero is in the hull
    direction: Float[np.ndarray, "H"]  # of unit length; zero where zero is in the hull


def side(vectors: Float[np.ndarray, "S H"]) -> Side:
    """The side of zero that vectors are on, with the largest margin.

    max_{|u| = 1} min_j <u, v_j> = dist(0, conv{v_j}) = |c| at u = c/|c|, c the hull's point nearest
    to zero. With c = sum_j p_j v_j and p = w/sum(w), the w >= 0 with the least

        |sum_j w_j v_j|^2 + (sum_j w_j - 1)^2

    have the same p: for w = t p it is t^2 |c|^2 + (t - 1)^2, least in t for each p, and then
    increasing in |c|.

    Args:
      vectors: [S, H], at least one, finite.

    Returns:
      The margin is min_j <u, v_j> itself, which no rounding makes too large.
    """
    v = np.asarray(vectors, np.float64)
    scale = np.linalg.norm(v, axis=1).mean()
    nothing = Side(0.0, np.zeros(v.shape[1]))
    if scale == 0.0:
        return nothing
    v = v / scale
    wanted = np.append(np.zeros(v.shape[1]), 1.0)
    weights, _ = optimize.nnls(np.vstack([v.T, np.ones(len(v))]), wanted)
    nearest = weights @ v / weights.sum()
    size = np.linalg.norm(nearest)
    if size < TOUCHES:
        return nothing
    margin = float(np.min(v @ nearest) / size)
    return Side(margin * scale, nearest / size) if margin > 0.0 else nothing


def required_mass(
    margin: Float[np.ndarray, "..."], value: Float[np.ndarray, "..."],
    output: Float[np.ndarray, "..."],
) -> Float[np.ndarray, "..."]:  # fmt: skip
    """The least attention to a sink that an output of that length allows (theory B2).

    1 - S >= (m - eps)/(m + nu)

    Args:
      margin: m of the other values; all in units of values.
      value: nu = |v_0|.
      output: eps = |o|.

    Returns:
      The bound; NaN where m <= eps, and nothing is required.
    """
    applies = margin > output
    bound = np.divide(
        margin - output, margin + value, where=applies, out=np.full(applies.shape, np.nan)
    )
    return bound
