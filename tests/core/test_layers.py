"""Layers against float64 NumPy and closed forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.core.layers import (
    MLPS,
    at_least_float32,
    causal_mask,
    cross_entropy,
    linear,
    lookup,
    one_widened,
)
from tests.core.test_measures import draw


def narrow(x, dtype=jnp.float32):
    return jnp.asarray(x, dtype)


def wide(x):
    return np.asarray(x, np.float64)


def test_at_least_float32():
    found = [at_least_float32(jnp.dtype(d)) for d in ("float64", "float32", "bfloat16", "float16")]
    assert found == [jnp.float64, jnp.float32, jnp.float32, jnp.float32]


# ------------------------------------------------------------------------------- lookup


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("shape", [(), (7,), (3, 5)])
def test_lookup_reads_rows_and_adds_up_what_their_uses_ask_for(dtype, shape):
    table, above = draw(4, 6), draw(*shape, 6, seed=1)
    ids = np.random.default_rng(2).integers(0, 4, shape)
    found, pull = jax.vjp(lambda x: lookup(x, jnp.asarray(ids)), narrow(table, dtype))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, np.asarray(narrow(table, dtype))[ids])
    (gradient,) = pull(narrow(above, dtype))
    expected = np.zeros((4, 6))
    np.add.at(expected, ids, wide(narrow(above, dtype)))
    assert gradient.dtype == dtype
    np.testing.assert_allclose(
        wide(gradient), expected, rtol=float(jnp.finfo(dtype).eps), atol=1e-6
    )


def test_a_token_that_stands_everywhere_loses_nothing_in_bfloat16():
    """The sum of 4,096 ones in bfloat16 itself is 256."""
    ids = jnp.zeros((4, 1024), jnp.int32)

    def total(table):
        return jnp.sum(lookup(table, ids).astype(jnp.float32))

    gradient = jax.jit(jax.grad(total))(jnp.ones((3, 2), jnp.bfloat16))
    np.testing.assert_array_equal(wide(gradient), [[4096.0] * 2, [0.0] * 2, [0.0] * 2])


def test_a_batch_is_not_one_sequence():
    with pytest.raises(ValueError, match=r"of shape \(1, 4, 6\); accepted: \[T, D\], of one"):
        one_widened(narrow(draw(1, 4, 6)), "T D")
    assert one_widened(narrow(draw(4, 6), jnp.bfloat16), "T D").dtype == jnp.float32


def test_an_id_that_is_not_there_is_no_number():
    found = np.asarray(lookup(narrow(draw(4, 6)), jnp.asarray([-1, 3, 4])))
    assert np.isnan(found).all(axis=1).tolist() == [True, False, True]


def test_lookup_goes_forward_too():
    """As products of a Hessian and a vector do: forward over reverse."""
    table, moved = narrow(draw(4, 6)), narrow(draw(4, 6, seed=1))
    ids = jnp.asarray([[1, 3, 1]])

    def cube(table):
        return jnp.sum(lookup(table, ids) ** 3)

    assert float(jax.jvp(cube, (table,), (moved,))[1]) == pytest.approx(
        float(jnp.sum(jax.grad(cube)(table) * moved)), rel=1e-5
    )
    found = jax.jvp(jax.grad(cube), (table,), (moved,))[1]
    uses = np.array([0.0, 2.0, 0.0, 1.0])[:, None]
    np.testing.assert_allclose(found, uses * 6 * np.asarray(table * moved), rtol=1e-5)


# ------------------------------------------------------------------------------- linear


@pytest.mark.parametrize(
    ("x", "weight", "inputs", "subscripts"),
    [
        ((2, 3, 5), (5, 7), 1, "btd,df->btf"),
        ((2, 3, 5), (5, 7, 11), 1, "btd,dnh->btnh"),
        ((2, 3, 5, 7), (5, 7, 11), 2, "btnh,nhd->btd"),
        ((5, 7), (5, 7, 11, 13), 2, "nh,nhde->de"),
        ((5,), (5, 7), 1, "d,df->f"),
        # Equal sizes: only the order of the axes tells them apart.
        ((3, 3, 3), (3, 3, 3), 1, "btd,dnh->btnh"),
        ((3, 3, 3), (3, 3, 3), 2, "bnh,nhd->bd"),
        ((3, 3, 3), (3, 3, 3), 3, "abc,abc->"),
    ],
)
def test_linear_is_the_einsum(x, weight, inputs, subscripts):
    x, weight = draw(*x), draw(*weight, seed=1)
    bias = draw(*weight.shape[inputs:], seed=2)
    expected = np.einsum(subscripts, x, weight)
    plain = linear(narrow(x), narrow(weight), inputs=inputs)
    np.testing.assert_allclose(plain, expected, rtol=1e-5, atol=1e-5)
    biased = linear(narrow(x), narrow(weight), narrow(bias), inputs)
    np.testing.assert_allclose(biased, expected + bias, rtol=1e-5, atol=1e-5)


def test_linear_returns_the_dtype_of_its_input():
    x, weight, bias = draw(2, 5), draw(5, 7, seed=1), draw(7, seed=2)
    out = linear(narrow(x, jnp.bfloat16), narrow(weight), narrow(bias))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(wide(out), x @ weight + bias, atol=0.1)


def test_the_gradient_of_a_bias_is_summed_in_float32():
    """Over 2,048 rows a sum in bfloat16 is 4% off; one of rounded terms keeps their precision."""
    x, weight, away = draw(2048, 3), draw(3, 5, seed=1), draw(2048, 5, seed=2) + 1.0

    def total(bias):
        out = linear(narrow(x, jnp.bfloat16), narrow(weight), bias)
        return jnp.sum(out.astype(jnp.float32) * narrow(away))

    found = jax.jit(jax.grad(total))(jnp.zeros(5))
    np.testing.assert_allclose(found, away.sum(axis=0), rtol=2e-3)


@pytest.mark.parametrize(
    ("x", "weight", "inputs"),
    [((2, 5), (7, 5), 1), ((2, 5, 7), (7, 5, 3), 2), ((2, 35), (5, 7, 3), 2)],
)
def test_linear_refuses_axes_that_do_not_match(x, weight, inputs):
    with pytest.raises(ValueError, match="does not end in"):
        linear(narrow(draw(*x)), narrow(draw(*weight)), inputs=inputs)


# --------------------------------------------------------------------------------- mask


@pytest.mark.parametrize(
    ("queries", "keys", "window", "expected"),
    [
        (range(4), range(4), None, ["1000", "1100", "1110", "1111"]),
        (range(4), range(4), 1, ["1000", "0100", "0010", "0001"]),
        (range(4), range(4), 2, ["1000", "1100", "0110", "0011"]),
        (range(4), range(4), 9, ["1000", "1100", "1110", "1111"]),
        ((3, 4), range(5), None, ["11110", "11111"]),
        ((3, 4), range(5), 3, ["01110", "00111"]),
        ((0, 5), (2, 7), None, ["00", "10"]),
    ],
)
def test_causal_mask(queries, keys, window, expected):
    mask = causal_mask(jnp.asarray(queries), jnp.asarray(keys), window)
    assert mask.dtype == bool
    literal = [[digit == "1" for digit in row] for row in expected]
    np.testing.assert_array_equal(mask, literal)


# -------------------------------------------------------------------------- activations

ACTIVATIONS = {
    "relu": (lambda x: max(x, 0.0), False),
    "gelu": (
        lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        False,
    ),
    "swiglu": (lambda x: x / (1 + math.exp(-x)), True),
}
ACTIVATIONS["gelu_exact"] = (lambda x: x / 2 * (1 + math.erf(x / math.sqrt(2))), False)
ACTIVATIONS["reglu"] = (ACTIVATIONS["relu"][0], True)
ACTIVATIONS["geglu"] = (ACTIVATIONS["gelu"][0], True)
ACTIVATIONS["geglu_exact"] = (ACTIVATIONS["gelu_exact"][0], True)
ACTIVATIONS["shifted_glu"] = (lambda x: x / (1 + math.exp(-1.702 * x)), True)


def test_activations_are_listed():
    assert set(MLPS) == set(ACTIVATIONS)


@pytest.mark.parametrize("kind", ACTIVATIONS)
def test_activations_are_their_closed_forms(kind):
    closed_form, gated = ACTIVATIONS[kind]
    x = np.linspace(-8, 8, 41)
    act, is_gated, shift = MLPS[kind]
    assert is_gated is gated
    assert shift == (kind == "shifted_glu")
    np.testing.assert_allclose(
        act(narrow(x)), [closed_form(value) for value in x], rtol=2e-5, atol=1e-6
    )
    assert np.all(np.isfinite(act(narrow([-1e4, 1e4]))))


def test_gelu_is_close_to_its_definition():
    """x Phi(x); the tanh approximation is off by up to 5e-4, and by no less than 1e-4."""
    x = np.linspace(-5, 5, 101)
    exact = np.array([value / 2 * (1 + math.erf(value / math.sqrt(2))) for value in x])
    error = np.max(np.abs(wide(MLPS["gelu"][0](narrow(x))) - exact))
    assert 1e-4 < error < 5e-4


# --------------------------------------------------------------------------------- loss


def negative_log_likelihood(logits, targets):
    out = np.zeros(targets.shape)
    for at in np.ndindex(targets.shape):
        row = logits[at]
        out[at] = row.max() + math.log(np.sum(np.exp(row - row.max()))) - row[targets[at]]
    return out


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("lead", [(), (3,), (2, 3)])
def test_cross_entropy(scale, lead):
    logits = draw(*lead, 11, scale=scale)
    targets = np.random.default_rng(1).integers(0, 11, lead)
    out = cross_entropy(narrow(logits), jnp.asarray(targets))
    np.testing.assert_allclose(out, negative_log_likelihood(logits, targets), rtol=1e-5, atol=1e-5)


def test_cross_entropy_of_ids_of_eight_bits():
    """A vocabulary of 300 does not fit into 8 bits; 44 and 300 - 256 are not one token."""
    logits = jnp.asarray(np.random.default_rng(0).standard_normal((4, 300)), jnp.float32)
    ids = np.array([5, 10, 43, 200])
    expected = cross_entropy(logits, jnp.asarray(ids, jnp.int32))
    np.testing.assert_array_equal(cross_entropy(logits, jnp.asarray(ids, jnp.uint8)), expected)


def test_cross_entropy_of_even_logits_is_log_v():
    targets = jnp.arange(11)
    np.testing.assert_allclose(cross_entropy(jnp.ones((11, 11)), targets), math.log(11), rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 1e4])
def test_gradient_of_cross_entropy_is_probability_minus_target(scale):
    logits = draw(3, 11, scale=scale)
    targets = np.array([0, 10, 4])
    gradient = jax.grad(lambda x: jnp.sum(cross_entropy(x, jnp.asarray(targets))))(narrow(logits))
    p = np.exp(logits - logits.max(-1, keepdims=True))
    expected = p / p.sum(-1, keepdims=True) - np.eye(11)[targets]
    np.testing.assert_allclose(gradient, expected, atol=1e-6)


def test_cross_entropy_beside_an_excluded_class():
    """A logit of -inf excludes its class and nothing else: loss and gradient stay finite."""
    logits = jnp.array([0.0, -jnp.inf, 1.0])
    loss, gradient = jax.value_and_grad(lambda x: cross_entropy(x, jnp.asarray(2)))(logits)
    np.testing.assert_allclose(loss, math.log1p(math.exp(-1.0)), rtol=1e-6)
    q = 1 / (1 + math.e)
    np.testing.assert_allclose(gradient, [q, 0.0, -q], atol=1e-6)


def test_cross_entropy_of_bfloat16_logits_is_float32():
    logits = wide(narrow(draw(3, 11), jnp.bfloat16))
    targets = np.array([0, 10, 4])
    out = cross_entropy(narrow(logits, jnp.bfloat16), jnp.asarray(targets))
    assert out.dtype == jnp.float32
    np.testing.assert_allclose(out, negative_log_likelihood(logits, targets), rtol=1e-5)
