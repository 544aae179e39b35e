"""A1: shapes, a case by hand, and what a wrong closed form does to the check."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from theory import a1_implicit_scaling as a1
from theory import heads


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("shape", heads.SHAPES)
def test_shapes_and_dtypes(shape):
    length, n, _, dim = shape
    head = heads.draw(jax.random.key(1), shape, jnp.asarray(1.0))
    found = a1.predict(head)
    chex.assert_shape([found["output"], found["scaled rest"]], (length, n, dim))
    chex.assert_shape(found["factor"], (n, length))
    chex.assert_type(list(found.values()), jnp.float64)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, a1.measure(head), a1.control(head))


def test_factor_by_hand():
    """Logits 0 (the outlier) and log 3 give S = 3/4; a query that sees only outliers has S = 0."""
    one = jnp.ones((2, 1, 1))
    k = jnp.array([0.0, np.log(3.0)])[:, None, None]
    head = heads.Head(one, k, one, jnp.zeros((2, 1)), jnp.array([True, False]), jax.random.key(0))
    chex.assert_trees_all_close(a1.scaling_factor(head), jnp.array([[0.0, 0.75]]), atol=1e-15)


MUTATIONS = {
    "outliers' part dropped": lambda q: q | {"output": q["scaled rest"]},
    "factor for the outliers": lambda q: q | {"factor": 1.0 - q["factor"]},
    "factor dropped": lambda q: q | {"scaled rest": q["output"]},
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_formula_fails(name, monkeypatch):
    right = a1.predict
    monkeypatch.setattr(a1, "predict", lambda head: MUTATIONS[name](dict(right(head))))
    assert not a1.verify(jax.random.key(0), quick=True).passed
