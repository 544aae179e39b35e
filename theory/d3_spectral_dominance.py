"""D3. One massive row takes the first singular value of the token states.

Statement. Let X have the rows x_0 .. x_{T-1}, M = |x_0|^2, R = sum_{i>0} |x_i|^2, and alpha the
mean squared cosine of the other rows to the first, weighted by their squared norms. Then

    sigma_1(X)^2 >= M + alpha R,

with equality where x_0/|x_0| is the first right singular vector. Since sum_j sigma_j^2 = M + R,
with c = M/R that is to say

    sigma_1^2 / sum_j sigma_j^2     >= (c + alpha)/(c + 1),
    sigma_1^2 / sum_{j>1} sigma_j^2 >= (c + alpha)/(1 - alpha).

Assumptions. x_0 is a row of X, not zero; for the shares another row that is neither zero nor
parallel to it. Nothing else: the bound holds for any row, and is tight for a massive one.

Proof. sigma_1^2 >= |X u|^2 for the unit vector u = x_0/|x_0|, and |X u|^2 = M + sum_{i>0} |x_i|^2
cos_i^2.

Source: Queipo-de-Llano et al. 2025 (arXiv:2510.06477).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from theory.check import TOLERANCE, Part, Quantities, at_least, compare, statement
from theory.decompositions import singular_values
from theory.once import jit_once

SHAPES = ((2, 2), (2, 3), (7, 5), (13, 32))  # (T, D)
# sum_{j>1} sigma_j^2 is R (1 - alpha) where c is up to 1e8, and singular values are exact to
# 1e-16 sigma_1, so that the ratio is exact to 1e-16 sqrt(1e8).
RATIO = 1e-11


class Instance(NamedTuple):
    """Token states whose first row is scaled by a factor of 1e-2 to 1e4."""

    x: Float[Array, "T D"]


class Shares(NamedTuple):
    """M, R and alpha of a matrix of token states."""

    massive: Float[Array, ""]
    rest: Float[Array, ""]
    alpha: Float[Array, ""]


def draw(key: Array, shape: tuple[int, int], scale: Array) -> Instance:
    """Normal rows of size `scale` with a common component."""
    keys = jax.random.split(key, 4)
    common = jax.random.normal(keys[0], shape[1:], jnp.float64) * jax.random.uniform(keys[1])
    x = scale * (jax.random.normal(keys[2], shape, jnp.float64) + common[None])
    return Instance(
        x.at[0].multiply(10.0 ** jax.random.uniform(keys[3], (), jnp.float64, -2.0, 4.0))
    )


def shares(x: Float[Array, "T D"]) -> Shares:
    """M, R and alpha."""
    massive, rest = jnp.sum(jnp.square(x[0])), jnp.sum(jnp.square(x[1:]))
    return Shares(massive, rest, jnp.sum(jnp.square(x[1:] @ x[0])) / massive / rest)


def predict(case: Instance) -> Quantities:
    """The bound on the first singular value, and on its share of all and over the others."""
    massive, rest, alpha = shares(case.x)
    c = massive / rest
    return {
        "energy": massive + alpha * rest,
        "share": (c + alpha) / (c + 1.0),
        "ratio": (c + alpha) / (1.0 - alpha),
    }


def measure(case: Instance) -> Quantities:
    """The singular values, squared."""
    return _energies(case.x)


def control(case: Instance) -> Quantities:
    """The massive row is not among the rows."""
    return _energies(case.x.at[0].set(0.0))


def _energies(x: Array) -> Quantities:
    energy = jnp.square(singular_values(x))
    return {
        "energy": energy[0],
        "share": energy[0] / jnp.sum(energy),
        "ratio": energy[0] / jnp.sum(energy[1:]),
    }


def balanced(case: Instance) -> Instance:
    """Equality: each other row again, mirrored at x_0, and less energy across x_0 than along it, so
    that x_0 is the first right singular vector; c and 1 - alpha are not small."""
    unit, rest = case.x[:1] / jnp.linalg.norm(case.x[0]), case.x[1:]
    along = (rest @ unit[0])[:, None] * unit
    first = jnp.linalg.norm(rest) * unit
    of_direction = jnp.square(jnp.linalg.norm(first)) + 2.0 * jnp.square(jnp.linalg.norm(along))
    across = (rest - along) / jnp.linalg.norm(rest - along) * jnp.sqrt(of_direction) / 2.0
    return Instance(jnp.concatenate([first, along + across, along - across]))


def tightness(key: Array) -> dict[str, list[float]]:
    """M/R, and the bound's share of sigma_1^2: mean of 64 matrices of 64 tokens, 32 channels."""
    x = jax.random.normal(key, (64, 64, 32), jnp.float64)
    ratios = np.logspace(-3, 4, 29)

    def share(ratio: Array, x: Array) -> Array:
        rest = jnp.sum(jnp.square(x[1:]))
        x = x.at[0].multiply(jnp.sqrt(ratio * rest) / jnp.linalg.norm(x[0]))
        massive, rest, alpha = shares(x)
        return (massive + alpha * rest) / jnp.square(singular_values(x)[0])

    found = jit_once(jax.vmap(jax.vmap(share, (None, 0)), (0, None)))(jnp.asarray(ratios), x)
    return {"massive over rest": ratios.tolist(), "bound over energy": found.mean(axis=1).tolist()}


@statement("D3", "sigma_1^2 of token states is at least M + alpha R, and its share follows")
def verify(key: Array, quick: bool) -> list[Part]:
    of_bound, of_tightness = jax.random.split(key)
    bounds = ("energy", "ratio", "share")
    energy, *others = compare(
        draw, predict, measure, control, of_bound, shapes=SHAPES, error=at_least,
        tolerance={"energy": TOLERANCE, "share": TOLERANCE, "ratio": RATIO},
        tight=dict.fromkeys(bounds, balanced), quick=quick,
    )  # fmt: skip
    return [dataclasses.replace(energy, data=tightness(of_tightness)), *others]
