"""What is compiled with less effort is the same function, wherever it is called."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.analysis.compress.rounding import Basis, round_weights
from sysout_jax.analysis.compress.schemes import Rounding
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


@pytest.mark.parametrize(("backend", "precision"), [("gpu", "highest"), ("cpu", None)])
def test_products_are_precise_where_a_backend_rounds_them(monkeypatch, backend, precision):
    """Alone; as a part of a program that trains, as that has it."""
    found = []

    @jit_quickly()
    def times(x):
        found.append(jax.config.jax_default_matmul_precision)
        return x @ x

    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    np.testing.assert_array_equal(times(jnp.eye(2)), np.eye(2))
    jax.jit(lambda x: times(x) + 1)(jnp.eye(3))
    assert found == [precision, None]


def test_products_around_rounded_weights_are_precise():
    """By what is compiled: a CPU makes the same product either way."""
    basis = Basis(rotation=jnp.eye(4))
    rounded = partial(round_weights, Rounding("int8", by="gptq"), basis=basis, gram=jnp.eye(4))
    program = str(jax.make_jaxpr(partial(rounded, magnitude=jnp.ones(4)))(jnp.ones((4, 2))))
    asked = re.findall(r" precision=(\S+)", program)
    assert len(asked) == program.count("dot_general[") > 0
    assert all("HIGHEST" in each for each in asked)


def test_options_that_this_xla_does_not_have_are_left_out(monkeypatch, scaled):
    assert "xla_backend_optimization_level" in compiling._known()
    monkeypatch.setattr(compiling, "_LESS_EFFORT", {"xla_nosuch_option": 1})
    compiling._known.cache_clear()
    assert compiling._known() == {}
    assert scaled[0](2, jnp.asarray(3.0)) == 6.0
