"""F4. What one massive row leaves to the other singular values.

Statement. With M, R and alpha of D3 and c = M/R,

    sigma_1^2 / sum_j sigma_j^2    >= (c + alpha)/(c + 1),
    sigma_1^2 / sum_{j>1} sigma_j^2 >= (c + alpha)/(1 - alpha).

Assumptions. Those of D3; at least two rows, R > 0, alpha < 1.

Proof. sum_j sigma_j^2 = |X|_F^2 = M + R. Divide D3 by it; then sum_{j>1} = M + R - sigma_1^2 <=
(1 - alpha) R.

Source: Queipo-de-Llano et al. 2025 (arXiv:2510.06477).
"""

import jax.numpy as jnp
from jaxtyping import Array

from theory.check import Part, Quantities, at_least, compare, statement
from theory.d3_spectral_dominance import Instance, draw, shares
from theory.decompositions import singular_values

SHAPES = ((2, 3), (7, 5), (13, 32))  # (T, D)
# sum_{j>1} sigma_j^2 is R (1 - alpha) where c is up to 1e8, and singular values are exact to
# 1e-16 sigma_1: the ratio to 1e-16 sqrt(1e8).
TOLERANCE = 1e-11


def predict(case: Instance) -> Quantities:
    """Both bounds."""
    massive, rest, alpha = shares(case.x)
    c = massive / rest
    return {"share": (c + alpha) / (c + 1.0), "ratio": (c + alpha) / (1.0 - alpha)}


def measure(case: Instance) -> Quantities:
    """All singular values."""
    return _shares_of_energy(case.x)


def control(case: Instance) -> Quantities:
    """The massive row is not among the rows."""
    return _shares_of_energy(case.x.at[0].set(0.0))


def _shares_of_energy(x: Array) -> Quantities:
    energy = jnp.square(singular_values(x))
    return {"share": energy[0] / jnp.sum(energy), "ratio": energy[0] / jnp.sum(energy[1:])}


@statement("F4", "One massive row: sigma_1^2 has a share of at least (c + alpha)/(c + 1)")
def verify(key: Array, quick: bool) -> list[Part]:
    return compare(
        draw, predict, measure, control, key,
        shapes=SHAPES, tolerance=TOLERANCE, error=at_least, quick=quick,
    )  # fmt: skip
