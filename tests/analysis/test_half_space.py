"""Vectors on one side of zero, and the attention that B2 requires, against other solvers."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import optimize

from sysout_jax.analysis.measure.half_space import required_mass, side


def by_quadratic_programme(v):
    """dist(0, conv v): weights on the simplex that make |sum p v| least, by SLSQP."""

    size = np.abs(v).max()  # or the solver's tolerance is not met

    def cost(p):
        point = p @ v / size
        return point @ point, 2 * v / size @ point

    begin = np.full(len(v), 1 / len(v))
    found = optimize.minimize(
        cost, begin, jac=True, method="SLSQP", bounds=[(0, 1)] * len(v),
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1, "jac": lambda p: np.ones(len(p))},
        options={"ftol": 1e-14, "maxiter": 500},
    )  # fmt: skip
    return np.linalg.norm(found.x @ v)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("count", [1, 2, 9, 40])
def test_the_margin_is_the_hulls_distance(count, scale):
    rng = np.random.default_rng(count)
    v = scale * (rng.normal(size=(count, 12)) + rng.normal(size=12))
    found = side(v)
    assert found.margin == pytest.approx(by_quadratic_programme(v), rel=1e-5)
    np.testing.assert_allclose(np.min(v @ found.direction), found.margin, rtol=1e-9)
    assert np.linalg.norm(found.direction) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("vectors", "margin"),
    [
        ([[3.0, 4.0]], 5.0),
        ([[1.0, 0.0], [0.0, 1.0]], 0.5**0.5),
        ([[2.0, -1.0], [2.0, 5.0], [7.0, 0.0]], 2.0),
        ([[1.0, 0.0], [-1.0, 0.0]], 0.0),  # zero between them
        ([[1.0, 1.0], [-1.0, 1.0], [0.0, -1.0]], 0.0),  # zero inside
        ([[0.0, 0.0]], 0.0),
        ([[0.0, 0.0], [1.0, 1.0]], 0.0),  # zero is one of them
        (np.eye(5), 5**-0.5),
    ],
)
def test_hulls_by_hand(vectors, margin):
    found = side(np.array(vectors))
    assert found.margin == pytest.approx(margin, abs=1e-9)
    assert (found.direction == 0.0).all() == (margin == 0.0)


def test_more_vectors_are_no_farther_away():
    v = np.random.default_rng(0).normal(size=(30, 8)) + 0.5
    margins = [side(v[:count]).margin for count in range(1, 31)]
    assert all(b <= a + 1e-12 for a, b in pairwise(margins))


def test_a_thousand_vectors_far_from_zero():
    v = np.random.default_rng(1).normal(size=(1000, 64)) + 4.0
    found = side(v)
    assert np.min(v @ found.direction) == pytest.approx(found.margin)
    # No direction has a larger margin: the nearest point is a mixture of the vectors.
    others = found.direction + 0.05 * np.random.default_rng(2).normal(size=(200, 64))
    others /= np.linalg.norm(others, axis=1, keepdims=True)
    assert (v @ others.T).min(axis=0).max() < found.margin


def test_the_bound_is_met_by_the_head_that_attains_it():
    """Values m u, a sink at -nu u: |o| = eps at exactly that attention (theory B2)."""
    m, nu = 2.0, 0.5
    mass = np.linspace(0.0, m / (m + nu), 7)
    eps = (1 - mass) * m - mass * nu
    found = required_mass(np.full(7, m), np.full(7, nu), eps)
    assert np.isnan(found[0])
    np.testing.assert_allclose(found[1:], mass[1:])


def test_nothing_is_required_of_a_longer_output():
    found = required_mass(np.array([1.0, 1.0, 0.0]), np.ones(3), np.array([1.0, 3.0, 0.0]))
    assert np.isnan(found).all()
