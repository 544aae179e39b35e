"""B1. Without a small value, softmax attention cannot do nothing, whatever its logits are.

Statement. o = sum_j p_j v_j lies in the convex hull of the values. Hence for finite or infinite
logits |o| >= dist(0, conv{v_j}), which is the infimum over logits, and where <u, v_j> >= m for a
unit vector u and all j, <u, o> >= m.

Both hold with equality where all values with a weight lie in one plane, |o| or <u, o> from zero.

Assumptions. Weights that are not negative and sum to one.

Proof. The definition of the convex hull; <u, .> is linear. Interior weights are softmax of their
logarithms, so every point of the hull is an output or a limit of outputs.

Source: elementary; used against softmax by Bondarenko et al. 2023 (arXiv:2306.12929), section 3.
"""

from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from sysout_jax.core.primitives import softmax_weights
from theory.check import TOLERANCE, Part, Quantities, absolute, at_least, compare, statement
from theory.decompositions import pinv
from theory.descent import descend

SHAPES = ((1, 2), (2, 3), (6, 2), (4, 3))  # (T, H)
STEPS, RATE, LAST = 600, 0.3, 1e-2  # of Adam; the last rate over the first
# Adam's last steps are of 3e-3 in each logit, and |o| changes with it by at most 2 max|v| / 4.
DESCENT = 3e-2


class Instance(NamedTuple):
    """Values, a direction, and logits of which some are minus infinity."""

    v: Float[Array, "T H"]
    u: Float[Array, "H"]
    s: Float[Array, "T"]


def draw(key: Array, shape: tuple[int, int], scale: Array) -> Instance:
    """Normal values around a common one, up to four times as long: zero is inside or outside."""
    keys = jax.random.split(key, 6)
    u = jax.random.normal(keys[0], shape[1:], jnp.float64)
    u /= jnp.linalg.norm(u)
    common = 4.0 * jax.random.uniform(keys[1], (), jnp.float64) * u
    v = jax.random.normal(keys[2], shape, jnp.float64) + common[None]
    s = scale * jax.random.normal(keys[3], shape[:1], jnp.float64)
    ruled_out = jax.random.bernoulli(keys[4], 0.3, shape[:1]).at[0].set(False)
    return Instance(v, u, jnp.where(ruled_out, -jnp.inf, s))


def hull_distance(v: Float[Array, "T H"]) -> Float[Array, ""]:
    """dist(0, conv{v_j}) by enumeration.

    The nearest point is the nearest one of the affine hull of some of the values, with weights that
    are not negative: the smallest such norm over all sets of at most H + 1 values.
    """
    best = jnp.asarray(jnp.inf, v.dtype)
    for size in range(1, min(v.shape[0], v.shape[1] + 1) + 1):
        for chosen in combinations(range(v.shape[0]), size):
            corner = v[jnp.asarray(chosen)]
            edges = corner[1:] - corner[:1]
            along = pinv(edges.T) @ -corner[0] if size > 1 else jnp.zeros(0)
            weights = jnp.concatenate([1.0 - jnp.sum(along, keepdims=True), along])
            norm = jnp.linalg.norm(weights @ corner)
            best = jnp.where(jnp.all(weights >= 0.0), jnp.minimum(best, norm), best)
    return best


def predict(case: Instance) -> Quantities:
    """The distance of zero to the hull, the bound for any logits, and the half-space."""
    distance = hull_distance(case.v)
    nearest = jnp.min(case.v @ case.u)
    return {"norm": distance, "half-space": nearest, "infimum": distance}


def measure(case: Instance) -> Quantities:
    """The output at the drawn logits, and its norm where gradient descent on logits leaves it."""
    return _of_weights(case, lambda s: softmax_weights(s[None, None], _all(s))[0][0, 0])


def control(case: Instance) -> Quantities:
    """Weights that sum to e^-5, as those of sigmoids at low logits do."""
    return _of_weights(case, lambda s: jnp.exp(s - jax.nn.logsumexp(s) - 5.0))


def nearest(case: Instance) -> Instance:
    """Equality in the distance: the output is the point of the values' hull next to zero."""
    o = jnp.exp(case.s - jax.nn.logsumexp(case.s)) @ case.v
    return _in_a_plane(case, o / jnp.linalg.norm(o), jnp.linalg.norm(o))


def lowest(case: Instance) -> Instance:
    """Equality in the half-space: no value with a weight is further along u than another."""
    return _in_a_plane(case, case.u, jnp.linalg.norm(case.v[0]))


def _in_a_plane(case: Instance, normal: Array, level: Array) -> Instance:
    """Values moved along a unit vector to one distance from zero, those of no weight beyond it."""
    beyond = jnp.where(jnp.isneginf(case.s), 1.0 + jnp.abs(case.v @ normal), 0.0)
    move = level + beyond - case.v @ normal
    return case._replace(v=case.v + move[:, None] * normal[None])


def _all(s: Array) -> Array:
    return jnp.ones((1, len(s)), bool)


def _of_weights(case: Instance, weights: Callable[[Array], Array]) -> Quantities:
    """Outputs of one way to turn logits into weights."""
    out = weights(case.s) @ case.v

    def loss(s: Array, step: Array) -> Array:
        return jnp.sum(jnp.square(weights(s) @ case.v)) / 2.0

    # With its usual b2 = 0.999, Adam could not follow gradients that fall as fast as these (C2).
    optimizer = optax.adam(lambda step: RATE * LAST ** (step / STEPS), b2=0.9, eps=1e-30)
    s, _ = descend(loss, jnp.zeros_like(case.s), optimizer, STEPS)
    return {
        "norm": jnp.linalg.norm(out),
        "half-space": out @ case.u,
        "infimum": jnp.linalg.norm(weights(s) @ case.v),
    }


@statement("B1", "Softmax attention stays in the hull of the values: |o| >= dist(0, conv v)")
def verify(key: Array, quick: bool) -> list[Part]:
    return compare(
        draw,
        predict,
        measure,
        control,
        key,
        shapes=SHAPES,
        tolerance={"norm": TOLERANCE, "half-space": TOLERANCE, "infimum": DESCENT},
        error={"norm": at_least, "half-space": at_least, "infimum": absolute},
        tight={"norm": nearest, "half-space": lowest},
        quick=quick,
    )
