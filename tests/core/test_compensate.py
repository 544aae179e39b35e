"""GPTQ, AWQ, SmoothQuant and rotations against NumPy loops, and where they must equal rounding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.core import compensate as c
from sysout_jax.core import quantise as q

I, O, T = 13, 5, 67  # noqa: E741


def inputs(seed=0):
    """Calibration inputs with correlated channels of very different size, float64."""
    random = np.random.default_rng(seed)
    return random.normal(size=(T, I)) @ random.normal(size=(I, I)) * np.geomspace(0.1, 10, I)


def weights(seed=1):
    return np.random.default_rng(seed).normal(size=(I, O))


@pytest.fixture(autouse=True)
def _float64():
    with jax.enable_x64(True):
        yield


def to_grid(step):
    """Rounding to multiples of one step, as `begin` of GPTQ."""
    return lambda rows, start: lambda row, i: jnp.round(row / step) * step


def gptq_by_loop(w, gram, step, order=range(I)):
    """Optimal brain surgeon with the inverse of what is left, recomputed for each input."""
    w = w.copy()
    h = gram + c.DAMPING * np.mean(np.diagonal(gram)) * np.eye(len(gram))
    for i, left in ((i, list(order[at:])) for at, i in enumerate(order)):
        inverse = np.linalg.inv(h[np.ix_(left, left)])
        rounded = np.round(w[i] / step) * step
        error = (w[i] - rounded) / inverse[0, 0]
        w[left] -= inverse[:, :1] * error[None]
        w[i] = rounded
    return w


def test_the_factor_is_of_the_inverse():
    gram = inputs().T @ inputs()
    factor, dead = c.hessian_factor(jnp.asarray(gram))
    full = gram + c.DAMPING * np.mean(np.diagonal(gram)) * np.eye(I)
    np.testing.assert_allclose(factor.T @ factor @ full, np.eye(I), atol=1e-9)
    assert not np.any(np.tril(factor, -1))
    assert not np.any(dead)


@pytest.mark.parametrize("block", [1, 4, 13, 128])
def test_gptq_equals_the_loop_whatever_the_block(block):
    gram = inputs().T @ inputs()
    found = c.gptq(jnp.asarray(weights()), jnp.asarray(gram), to_grid(0.3), block)
    np.testing.assert_allclose(found, gptq_by_loop(weights(), gram, 0.3), atol=1e-8)


@pytest.mark.parametrize("block", [4, 128])
def test_gptq_by_size_equals_the_loop_in_that_order(block):
    mixed = np.random.default_rng(4).permutation(I)
    gram, w = (inputs().T @ inputs())[np.ix_(mixed, mixed)], weights()
    order = np.argsort(-np.diagonal(gram))
    found = c.gptq(jnp.asarray(w), jnp.asarray(gram), to_grid(0.3), block, largest_first=True)
    np.testing.assert_allclose(found, gptq_by_loop(w, gram, 0.3, order), atol=1e-8)


def test_groups_of_gptq_by_size_are_of_inputs_of_one_size():
    """Without correlation a group is rounded by the range of the inputs that are in it."""
    w, group = jnp.asarray(weights()), 4
    seen = []

    def begin(rows, start):
        seen.append(np.asarray(rows))
        return lambda row, i: row

    sizes = np.random.default_rng(2).permutation(I) + 1.0
    c.gptq(w, jnp.diag(jnp.asarray(sizes)), begin, group, largest_first=True)
    np.testing.assert_allclose(np.concatenate(seen), w[np.argsort(-sizes)])


def test_gptq_with_the_identity_is_rounding_to_nearest():
    found = c.gptq(jnp.asarray(weights()), jnp.eye(I), to_grid(0.3), 4)
    np.testing.assert_allclose(found, np.round(weights() / 0.3) * 0.3, atol=1e-12)


def test_gptq_has_a_smaller_output_error_than_rounding_on_average():
    """Greedy compensation promises nothing for one matrix; here over 20 with correlated inputs."""
    total = np.zeros(2)
    for seed in range(20):
        random = np.random.default_rng(seed)
        x = random.normal(size=(T, I)) + 2.0 * random.normal(size=(T, 1))
        gram, w = jnp.asarray(x.T @ x), jnp.asarray(weights(seed))
        changed = c.gptq(w, gram, to_grid(0.5)), jnp.round(w / 0.5) * 0.5
        total += [float(c.output_error(w, each, gram)) for each in changed]
    assert total[0] < 0.6 * total[1]


def test_an_input_that_is_always_zero_gets_no_weight():
    x = inputs()
    x[:, 3] = 0.0
    found = c.gptq(jnp.asarray(weights()), jnp.asarray(x.T @ x), to_grid(0.3))
    assert np.all(np.isfinite(found))
    assert not np.any(found[3])


def test_output_error_is_that_of_outputs():
    x, w = inputs(), weights()
    changed = np.round(w)
    found = c.output_error(*(jnp.asarray(each) for each in (w, changed, x.T @ x)))
    np.testing.assert_allclose(found, np.sum(np.square(x @ w - x @ changed)), rtol=1e-10)


def by_columns(w):
    return q.quantise(w.T, q.FORMATS["int4"], "vector").T


def test_awq_is_the_best_of_its_family():
    x, w = inputs(), weights()
    gram, magnitude = jnp.asarray(x.T @ x), jnp.asarray(np.abs(x).mean(axis=0))
    found = c.awq(jnp.asarray(w), gram, magnitude, by_columns)
    errors = []
    for share in c.SHARES:
        s = np.asarray(magnitude) ** share
        s = (s / np.sqrt(s.max() * s.min()))[:, None]
        changed = np.asarray(by_columns(jnp.asarray(w * s))) / s
        errors.append(np.sum(np.square(x @ w - x @ changed)))
    np.testing.assert_allclose(np.sum(np.square(x @ w - x @ np.asarray(found))), min(errors))
    assert min(errors) < errors[0]  # exponent 0 is rounding to nearest


def test_awq_of_even_inputs_is_rounding_to_nearest():
    found = c.awq(jnp.asarray(weights()), jnp.eye(I), jnp.full(I, 2.0), by_columns)
    np.testing.assert_allclose(found, by_columns(jnp.asarray(weights())), atol=1e-12)


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_smoothing(alpha):
    x, w = inputs(), weights()
    top = [np.abs(x).max(axis=0), np.abs(w).max(axis=1)]
    s = np.asarray(c.smooth_scales(*(jnp.asarray(each) for each in top), alpha))
    np.testing.assert_allclose((x / s) @ (w * s[:, None]), x @ w, rtol=1e-9, atol=1e-9)
    smoothed = np.abs(x / s).max(axis=0), np.abs(w * s[:, None]).max(axis=1)
    if alpha == 0.5:
        np.testing.assert_allclose(*smoothed)
    else:
        np.testing.assert_allclose(smoothed[int(1 - alpha)], 1.0)


def test_smoothing_leaves_empty_channels_alone():
    found = c.smooth_scales(jnp.asarray([0.0, 4.0, 4.0]), jnp.asarray([1.0, 0.0, 1.0]))
    assert found.tolist() == [1.0, 1.0, 2.0]


@pytest.mark.parametrize("size", [1, 2, 3, 8, 12, 64, 96])
def test_rotations_are_orthogonal_and_even(size):
    found = np.asarray(c.hadamard(size, jax.random.key(size)))
    np.testing.assert_allclose(found @ found.T, np.eye(size), atol=1e-12)
    if size & (size - 1) == 0:
        np.testing.assert_allclose(np.abs(found), 1 / np.sqrt(size), atol=1e-12)


@pytest.mark.parametrize("size", [8, 24])
def test_a_key_is_one_rotation_whatever_the_default_dtype(size):
    with jax.enable_x64(False):
        narrow = np.asarray(c.hadamard(size, jax.random.key(3)))
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(c.hadamard(size, jax.random.key(3)), narrow, atol=1e-6)


def test_a_rotation_spreads_an_outlier():
    x = np.random.default_rng(0).normal(size=(T, 64))
    x[:, 7] *= 300.0
    h = np.asarray(c.hadamard(64, jax.random.key(0)))
    ratio = [np.abs(each).max() / np.sqrt(np.mean(each**2)) for each in (x, x @ h)]
    assert ratio[1] < ratio[0] / 4
