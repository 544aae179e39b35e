"""F3: shapes, a case by hand, and what a wrong closed form does to the check."""

import chex
import jax
import jax.numpy as jnp
import pytest

from theory import f3_gradient_sink as f3
from theory import heads


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


@pytest.mark.parametrize("shape", heads.SHAPES)
def test_shapes_and_dtypes(shape):
    length, _, kv_heads, dim = shape
    case = f3.draw(jax.random.key(1), shape, jnp.asarray(1.0))
    found = f3.predict(case)
    chex.assert_shape([found["value"], found["column mass"]], (length, kv_heads, dim))
    chex.assert_shape([found["state"], found["larger state"]], (length, heads.D))
    chex.assert_type(list(found.values()), jnp.float64)
    chex.assert_trees_all_equal_shapes_and_dtypes(found, f3.measure(case), f3.control(case))


def test_column_by_hand():
    """Rows (1, 0) and (3/4, 1/4): the first key gets g_0 + 3/4 g_1, the second g_1/4."""
    weights = jnp.array([[[1.0, 0.0], [0.75, 0.25]]])
    g = jnp.array([[[2.0]], [[4.0]]])
    found = f3.value_gradient(weights, g, 1)
    chex.assert_trees_all_close(found, jnp.array([[[5.0]], [[1.0]]]), atol=0)


def test_state_by_hand():
    """h = 2 e_0 in five dimensions: nothing along e_0, sqrt(5)/2 times the rest."""
    states = jnp.zeros((1, heads.D)).at[0, 0].set(2.0)
    w = jnp.arange(1.0, heads.D + 1)[:, None, None]
    found = f3.state_gradient(states, w, jnp.ones((1, 1, 1)))
    expected = jnp.sqrt(5.0) / 2.0 * jnp.array([[0.0, 2.0, 3.0, 4.0, 5.0]])
    chex.assert_trees_all_close(found, expected, atol=1e-15)


def test_a_larger_state_gets_a_smaller_gradient():
    case = f3.draw(jax.random.key(2), (7, 3, 1, 5), jnp.asarray(1.0))
    found = f3.measure(case)
    ratio = jnp.linalg.norm(found["larger state"]) / jnp.linalg.norm(found["state"])
    chex.assert_trees_all_close(ratio, 1.0 / case.factor, rtol=1e-12)


MUTATIONS = {
    "rows for columns": lambda q: q | {"column mass": jnp.flip(q["column mass"])},
    "sign of the gradient": lambda q: q | {"value": -q["value"]},
    "square root of D dropped": lambda q: q | {"state": q["state"] / jnp.sqrt(5.0)},
    "gain that does not fall": lambda q: q | {"larger state": q["state"]},
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_wrong_formula_fails(name, monkeypatch):
    right = f3.predict
    monkeypatch.setattr(f3, "predict", lambda case: MUTATIONS[name](dict(right(case))))
    assert not f3.verify(jax.random.key(0), quick=True).passed
