"""Order statistics against the same by sorting."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.core import ordering as o


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (3, 5), (4, 7), (11, 13)])
@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_median_magnitude_is_exact(shape, scale):
    x = np.random.default_rng(shape[1]).standard_normal(shape).astype(np.float32) * np.float32(
        scale
    )
    expected = np.median(np.abs(x).astype(np.float64))
    np.testing.assert_allclose(o.median_magnitude(jnp.asarray(x)), expected, rtol=1e-7)


def drawn(kind, size=5003):
    """Magnitudes of a kind, more than are sorted to begin with."""
    rng = np.random.default_rng(len(kind))
    x = np.abs(rng.standard_normal(size))
    return np.float32({
        "normal": x,
        "wide": np.exp(30 * rng.standard_normal(size).clip(-2.5, 2.5)),
        "mostly zero": x * (rng.random(size) < 0.3),
        "few values": np.ceil(x * 3),
        "all one value": np.full(size, 2.0),
        "tiny": x * 1e-41,
        "one far off": np.where(np.arange(size) == 7, 1e30, x),
        "infinite": np.where(rng.random(size) < 0.6, np.inf, x),
        "rising": np.sort(x),
        "the sample is far off": np.where(np.arange(size) % (size // o.SAMPLE | 1), x, 1e6 * x),
        "the sample is near zero": np.where(np.arange(size) % (size // o.SAMPLE | 1), x, 1e-6 * x),
    }[kind])  # fmt: skip


KINDS = (
    "normal", "wide", "mostly zero", "few values", "all one value", "tiny", "one far off",
    "infinite", "rising", "the sample is far off", "the sample is near zero",
)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_rank_is_that_of_the_sorted_numbers(kind):
    x = drawn(kind)
    ranked = jax.jit(o._ranked, static_argnums=1)
    ordered = np.sort(x.view(np.int32))
    for rank in (0, 1, 700, len(x) // 2, len(x) - 2, len(x) - 1):
        assert ranked(jnp.asarray(x.view(np.int32)), rank) == ordered[rank]


@pytest.mark.parametrize("kind", KINDS)
def test_guesses_are_few(kind, monkeypatch):
    """At most two a bit, of what has no ties about a third of one."""
    counted, real = [], o._count

    def count(flags):
        jax.debug.callback(lambda: counted.append(1))
        return real(flags)

    monkeypatch.setattr(o, "_count", count)
    jax.block_until_ready(o._ranked(jnp.asarray(drawn(kind).view(np.int32)), 2501))
    jax.effects_barrier()
    assert 1 <= len(counted) <= (20 if kind in ("normal", "rising", "one far off") else 64)


def test_a_median_may_be_no_number():
    x = jnp.asarray([np.nan, 1.0, np.nan, np.nan, -2.0])
    assert np.isnan(o.median_magnitude(x))
    assert o.median_magnitude(x.at[2].set(0.5)) == 2.0  # what is no number is above all


def test_more_numbers_than_float32_counts(monkeypatch):
    monkeypatch.setattr(o, "EXACT", 100)
    x = drawn("normal")
    assert o.median_magnitude(jnp.asarray(x)) == np.median(x)


@pytest.mark.parametrize("shape", [(1,), (7,), (5, 1), (3, 4, 9)])
def test_the_first_of_the_largest(shape):
    x = np.random.default_rng(1).integers(-3, 3, shape).astype(np.float32)
    np.testing.assert_array_equal(o.first_largest(jnp.asarray(x)), x.argmax(axis=-1))
    x[..., 0] = np.nan
    np.testing.assert_array_equal(o.first_largest(jnp.asarray(x)), shape[-1] - 1)


def test_median_magnitude_by_vmap():
    x = np.random.default_rng(0).standard_normal((5, 7, 11)).astype(np.float32)
    found = jax.vmap(o.median_magnitude)(jnp.asarray(x))
    np.testing.assert_array_equal(found, np.median(np.abs(x).reshape(5, -1), axis=1))


@pytest.mark.parametrize("values", [[0, 0, 0, 1], [1, 1, 1, 1], [0, 2, 2, 3], [0, 0, 4, 4], [7]])
def test_median_magnitude_with_ties(values):
    x = jnp.asarray([values], jnp.float32)
    assert o.median_magnitude(x) == np.median(values)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_median_magnitude_of_narrow_numbers(dtype):
    """Of an even number of entries the mean of two, which is not rounded to their dtype."""
    eps = float(jnp.finfo(dtype).eps)
    assert o.median_magnitude(jnp.asarray([[-3.0, 1.0], [-1.0 - eps, 0.5]], dtype)) == 1 + eps / 2
    x = jnp.asarray(np.random.default_rng(3).standard_normal((3, 7)), dtype)
    np.testing.assert_array_equal(o.median_magnitude(x), np.median(np.abs(np.float64(x))))


def test_median_magnitude_in_float64():
    x = np.random.default_rng(0).standard_normal((5, 6, 7))
    with jax.enable_x64(True):
        assert float(o.median_magnitude(jnp.asarray(x))) == np.median(np.abs(x))


@pytest.mark.parametrize("quantile", [0.0, 0.3, 0.5, 0.99])
@pytest.mark.parametrize("shape", [(1,), (2, 1), (3, 5), (40, 30)])
def test_quantile_magnitude_is_that_of_numpy(shape, quantile):
    x = np.random.default_rng(shape[0]).standard_normal(shape).astype(np.float32)
    found = o.quantile_magnitude(jnp.asarray(x), quantile)
    expected = np.quantile(np.abs(x).astype(np.float64), quantile)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("values", [[0, 0, 0, 1], [1, 1, 1, 1], [0, 2, 2, 3], [-7]])
def test_quantile_magnitude_with_ties(values):
    x = jnp.asarray([values], jnp.float32)
    for quantile in (0.0, 1 / 3, 0.5, 0.75):
        expected = np.quantile(np.abs(values), quantile)
        np.testing.assert_allclose(o.quantile_magnitude(x, quantile), expected, rtol=1e-6)


def by_sorting(p, q):
    """Benjamini and Hochberg's procedure as a loop over the sorted p-values."""
    limit = -1.0
    for k, value in enumerate(np.sort(p), 1):
        if value <= q * k / len(p):
            limit = value
    return p <= limit


@pytest.mark.parametrize("q", [0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("kind", ["uniform", "planted", "ties", "small", "large", "zeros"])
def test_discoveries_are_those_of_the_sorted_values(kind, q):
    rng = np.random.default_rng(3)
    p = rng.random(211)
    if kind == "planted":
        p[::7] *= 10.0 ** -rng.integers(1, 9, len(p[::7]))
    elif kind == "ties":
        p = np.ceil(p * 9) / 90
    elif kind in ("small", "large"):
        p = p * 1e-3 if kind == "small" else 1 - p * 1e-3
    elif kind == "zeros":
        p[:5] = 0.0
    with np.errstate(divide="ignore"):
        log_p = jnp.asarray(np.log(p), jnp.float32)
    found = np.asarray(o.discoveries(log_p, q))
    # Where a p-value is on the line itself, float32 may put it on either side.
    on_it = np.isclose(p[:, None], q * np.arange(1, len(p) + 1) / len(p), rtol=1e-5).any()
    assert on_it or (found == by_sorting(p, q)).all()
    assert kind != "planted" or found.any()


def test_discoveries_by_vmap():
    """Each of a batch falls to its own number."""
    p = np.random.default_rng(1).random((4, 30)) ** np.array([[1], [3], [9], [27]])
    found = jax.vmap(lambda x: o.discoveries(x, 0.1))(jnp.asarray(np.log(p), jnp.float32))
    expected = np.stack([by_sorting(row, 0.1) for row in p])
    np.testing.assert_array_equal(found, expected)
    assert len({row.sum() for row in expected}) > 2


@pytest.mark.parametrize("width", [1, 2, 7, 12])
def test_medians_of_rows(width):
    x = np.random.default_rng(width).standard_normal((3, 5, width)).astype(np.float32)
    expected = np.median(np.abs(x).astype(np.float64), axis=-1)
    np.testing.assert_allclose(o.row_medians(jnp.asarray(x)), expected, rtol=1e-6)


def test_rows_are_shuffled_each_by_itself_and_evenly():
    orders = np.asarray(o.shuffled_rows(jax.random.key(0), (6000, 3)))
    assert (np.sort(orders, axis=1) == np.arange(3)).all()
    counts = np.unique(orders @ [9, 3, 1], return_counts=True)[1]
    assert len(counts) == 6
    assert np.abs(counts - 1000).max() < 4 * np.sqrt(6000 / 6 * 5 / 6)


@pytest.mark.parametrize("of", [o.median_magnitude, lambda h: o.row_medians(h[None])[0]])
def test_a_gradient_is_shared_by_ties(of):
    """And has the sign of what it is of."""
    h = jnp.asarray([1.0, -2.0, 2.0, 2.0, 9.0])
    np.testing.assert_allclose(jax.grad(of)(h), np.array([0, -1, 1, 1, 0]) / 3, rtol=1e-6)
