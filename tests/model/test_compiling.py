"""What is compiled with less effort is the same function, wherever it is called."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.model import compiling
from sysout_jax.model.compiling import jit_quickly


@pytest.fixture(autouse=True)
def optimising():
    """As users run it: the tests compile with least effort."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    compiling._known.cache_clear()
    yield
    jax.config.update("jax_disable_most_optimizations", before)
    compiling._known.cache_clear()


@pytest.fixture
def scaled():
    """A function that is compiled, and how often it was traced."""
    traced = []

    @jit_quickly(0)
    def times(factor, x):
        traced.append(factor)
        return factor * x

    return times, traced


def test_it_is_traced_once_for_a_static_argument_and_a_shape(scaled):
    times, traced = scaled
    for factor, size in ((2, 3), (2, 3), (3, 3), (3, 4), (2, 3)):
        np.testing.assert_array_equal(times(factor, jnp.ones(size)), np.full(size, float(factor)))
    assert traced == [2, 3, 3]


def test_it_is_a_part_of_other_programs(scaled):
    """XLA takes options of whole programs alone."""
    times, _ = scaled
    known = jnp.arange(3.0)
    np.testing.assert_array_equal(jax.jit(lambda x: times(2, x) + 1)(known), [1, 3, 5])
    np.testing.assert_array_equal(jax.jit(lambda x: times(2, known) + x)(known), [0, 3, 6])
    np.testing.assert_array_equal(jax.vmap(lambda x: times(2, x))(known), [0, 2, 4])
    assert jax.grad(lambda x: times(2, x))(1.0) == 2.0


def test_options_that_this_xla_does_not_have_are_left_out(monkeypatch, scaled):
    assert "xla_backend_optimization_level" in compiling._known()
    monkeypatch.setattr(compiling, "_LESS_EFFORT", {"xla_nosuch_option": 1})
    compiling._known.cache_clear()
    assert compiling._known() == {}
    assert scaled[0](2, jnp.asarray(3.0)) == 6.0
