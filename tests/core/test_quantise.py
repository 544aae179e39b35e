"""Formats and roundings against loops in NumPy, against what defines them, and on bad tensors."""

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from scipy import stats
from scipy.integrate import quad

from sysout_jax.core import quantise as q

INTEGERS = [name for name in q.FORMATS if name.startswith("int")]
# QLoRA's appendix E, to the digits printed there (Dettmers et al. 2023, arXiv:2305.14314).
NF4 = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
]  # fmt: skip


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def grid(name):
    """Every number of a format."""
    if name.startswith("int"):
        top = 2 ** (int(name[3:]) - 1) - 1
        return np.arange(-top, top + 1, dtype=np.float64)
    if name == "nf4":
        return np.array(NF4)
    eight = {"fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}
    dtype = eight.get(name, "float4_e2m1fn")
    bits = np.arange(256 if name in eight else 16, dtype=np.uint8)
    every = bits.view(getattr(ml_dtypes, dtype)).astype(np.float64)
    return np.unique(every[np.isfinite(every)])


def by_loop(x, name, size):
    """Nearest numbers of the scaled grid for runs of `size` entries, in float64."""
    fmt, numbers = q.FORMATS[name], grid(name)
    out = np.array(x, np.float64)
    scales = grid("fp8_e4m3")
    unit = np.abs(out).max() / (6.0 * 448.0)
    for row in out.reshape(-1, out.shape[-1]):
        for start in range(0, len(row), size):
            run = row[start : start + size]
            top = np.abs(run).max()
            if top == 0:
                continue
            step = top / numbers.max()
            if fmt.power_of_two:
                step = 2.0 ** (np.floor(np.log2(top)) - np.floor(np.log2(numbers.max())))
            if fmt.two_levels:
                step = scales[np.argmin(np.abs(scales - step / unit))] * unit
            for i, value in enumerate(run):
                nearest = numbers[np.argmin(np.abs(numbers - value / step))] if step else 0.0
                run[i] = nearest * step
    return out


def test_every_format_has_a_grid():
    for name, fmt in q.FORMATS.items():
        assert fmt.largest == pytest.approx(grid(name).max()), name


def test_nf4_is_the_published_one():
    np.testing.assert_allclose(q.normal_floats(), NF4, atol=1e-6)


@pytest.mark.parametrize("name", q.FORMATS)
@pytest.mark.parametrize("per", ["tensor", "vector", "group"])
def test_rounding_is_to_the_nearest_number(name, per):
    x = draw(3, 13) * np.array([[1e-3], [1.0], [50.0]], np.float32)
    block = q.FORMATS[name].block
    flat = x.reshape(1, -1) if per == "tensor" and not block else x
    size = block or {"tensor": 39, "vector": 13, "group": 5}[per]
    found = q.quantise(jnp.asarray(x), q.FORMATS[name], per, group=5)
    expected = by_loop(flat, name, size).reshape(x.shape)
    # halfway values may go either way in float32: where they do, both are equally near
    step = np.abs(found - expected)
    same = step <= 1e-5 * np.abs(expected) + 1e-7
    error = np.abs(np.abs(found - x) - np.abs(expected - x))
    assert np.all(same | (error <= 1e-5 * np.abs(x).max(axis=1, keepdims=True)))
    assert same.mean() > 0.9


@pytest.mark.parametrize("name", INTEGERS)
def test_integers_are_within_half_a_step(name):
    x = jnp.asarray(draw(7, 11))
    step = float(jnp.max(jnp.abs(x))) / q.FORMATS[name].largest
    assert float(jnp.max(jnp.abs(q.quantise(x, q.FORMATS[name]) - x))) <= step / 2 * (1 + 1e-5)


@pytest.mark.parametrize("name", q.FORMATS)
def test_zero_and_the_largest_are_exact(name):
    x = jnp.asarray(draw(1, 31)).at[0, 4].set(0.0).at[0, 9].set(7.0)
    found = q.quantise(x, q.FORMATS[name])
    assert found[0, 4] == 0.0
    largest = 6.0 if name == "mxfp4" else 7.0  # its scale is a power of two: 7 saturates
    assert float(found[0, 9]) == pytest.approx(largest, rel=1e-6)


@pytest.mark.parametrize("magnitude", [3.0, 3.9, 4.0, 5.0, 7.0, 7.9, 8.0, 13.0, 0.03])
def test_a_scale_of_a_power_of_two_is_the_smallest_that_holds(magnitude):
    """Below 2 * 4 steps, as 6 = 1.5 * 4; half a step is a number, so a larger one would show, and
    the top of the range saturates, so a smaller one would too."""
    step = min(2.0**e for e in range(-20, 20) if magnitude / 2.0**e < 8.0)
    x = jnp.asarray([[magnitude, -step / 2]], jnp.float32)
    found = q.symmetric(x, q.FORMATS["mxfp4"], jnp.asarray([[magnitude]], jnp.float32))
    numbers = step * np.array([4.0, 6.0])
    nearest = numbers[np.argmin(np.abs(numbers - magnitude))]
    np.testing.assert_array_equal(found, [[nearest, -step / 2]])


def test_a_scale_of_two_levels_is_an_eight_bit_float_of_the_tensor():
    """A block whose largest entry is below 6 u 2^-10 of a tensor with largest entry 6 * 448 u has
    no scale at all: it comes back as zeros, the tensor's own largest entry as it is."""
    x = np.zeros((4, 16), np.float32)
    x[0, 3] = 6.0 * 448.0
    x[1, :2] = 6.0 * 2.0**-9, -3.0 * 2.0**-9  # the smallest scale
    x[2, :2] = 5.9 * 2.0**-10, 1e-6  # rounds to none
    x[3, :2] = 6.0 * 17.0, 0.9  # 17 is between the scales 16 and 18, and even goes to 16
    found = np.asarray(q.quantise(jnp.asarray(x), q.FORMATS["nvfp4"]))
    assert found[0, 3] == x[0, 3]
    np.testing.assert_array_equal(found[1], x[1])
    assert not found[2].any()
    np.testing.assert_array_equal(found[3, :2], [6.0 * 16.0, 0.0])


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "int4"])
def test_flushed_against_a_loop(name):
    x = draw(6, 64)
    x[0, 0], x[1, 5:9] = 90.0, 0.0
    rounded = by_loop(x, name, q.FORMATS[name].block or 64)
    nonzero = lost = 0
    for value, after in zip(x.ravel().tolist(), rounded.ravel().tolist(), strict=True):
        nonzero += value != 0
        lost += value != 0 and after == 0
    per = "vector"
    found = q.flushed(jnp.asarray(x), q.quantise(jnp.asarray(x), q.FORMATS[name], per))
    assert float(found) == pytest.approx(lost / nonzero, abs=1e-6)
    assert 0 < lost < nonzero


def test_one_large_entry_flushes_its_block_alone():
    """Ones beside a 25, of which a 24th is more: its block of 16 has 15 of them."""
    x = jnp.ones((2, 32)).at[0, 3].set(25.0)
    of = q.flushed(x, q.quantise(x, q.FORMATS["nvfp4"]))
    assert float(of) == pytest.approx(15 / 64)
    assert float(q.flushed(jnp.zeros((2, 3)), jnp.zeros((2, 3)))) == 0.0


@pytest.mark.parametrize("name", [name for name in q.FORMATS if name != "nf4"])
def test_symmetric_under_sign(name):
    x = jnp.asarray(draw(5, 17))
    np.testing.assert_array_equal(q.quantise(-x, q.FORMATS[name]), -q.quantise(x, q.FORMATS[name]))


@pytest.mark.parametrize("name", q.FORMATS)
def test_rounding_twice_changes_nothing(name):
    once = q.quantise(jnp.asarray(draw(3, 64)), q.FORMATS[name], "vector")
    twice = q.quantise(once, q.FORMATS[name], "vector")
    np.testing.assert_allclose(twice, once, rtol=2e-6)


def test_sixteen_bits_change_nothing_beyond_float32():
    x = jnp.asarray(draw(9, 33))
    assert q.sqnr(x, q.quantise(x, q.FORMATS["int16"], "vector")) > 90  # 6.02 * 16 - 7.27 - 2


def test_more_bits_are_better():
    x = jnp.asarray(draw(16, 128))
    found = [float(q.sqnr(x, q.quantise(x, q.FORMATS[f"int{bits}"]))) for bits in range(2, 9)]
    assert found == sorted(found)


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("moved", [0.0, 3.0, -3.0])
def test_zero_point_by_loop(bits, moved):
    x = draw(3, 11) + np.float32(moved)
    found = q.quantise_zero_point(jnp.asarray(x), bits, "vector")
    for row, out in zip(x.astype(np.float64), np.asarray(found), strict=True):
        low, high = min(row.min(), 0.0), max(row.max(), 0.0)
        step = (high - low) / (2**bits - 1)
        levels = (np.arange(2**bits) - np.round(-low / step)) * step
        assert np.min(np.abs(levels)) == 0.0  # zero is one of them
        nearest = np.abs(levels[None] - row[:, None]).min(axis=1)
        np.testing.assert_allclose(np.abs(out - row), nearest, atol=1e-5)
        assert np.abs(levels[None] - out[:, None]).min(axis=1).max() < 1e-5


def test_narrow_numbers_are_rounded_in_float32_and_stay_narrow():
    """The nearest of 255 levels, by float64; only the result is brought to bfloat16's 8 bits."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((7, 64)), jnp.bfloat16)
    wide = np.float64(x)
    step = np.abs(wide).max(-1, keepdims=True) / 127
    found = q.quantise(x, q.FORMATS["int8"], "vector")
    assert found.dtype == jnp.bfloat16
    expected = (np.round(wide / step) * step).astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(found, expected)
    low, high = (f(wide, axis=-1, keepdims=True) for f in (np.min, np.max))
    step = (high - low) / 255
    found = q.quantise_zero_point(x, 8, "vector")
    zero = np.round(-low / step)
    expected = ((np.round(wide / step) + zero - zero) * step).astype(ml_dtypes.bfloat16)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_array_equal(found, expected)


def test_zero_point_beats_absmax_on_one_sided_tensors():
    x = jnp.abs(jnp.asarray(draw(8, 64)))
    both = (q.quantise(x, q.FORMATS["int4"]), q.quantise_zero_point(x, 4))
    assert q.sqnr(x, both[1]) > q.sqnr(x, both[0]) + 3


def test_groups_end_where_vectors_do():
    """The last group of a vector is short; nothing of the next vector enters it."""
    x = draw(2, 7)
    x[1] *= 1e4
    alone = q.quantise(jnp.asarray(x[:1]), q.FORMATS["int4"], "group", group=5)
    np.testing.assert_array_equal(
        q.quantise(jnp.asarray(x), q.FORMATS["int4"], "group", group=5)[:1], alone
    )


@pytest.mark.parametrize("name", [name for name in q.FORMATS if "fp4" not in name])
def test_beyond_a_calibrated_range(name):
    """What is larger is clipped, what is no number stays that, and no range rounds nothing."""
    fmt, x = q.FORMATS[name], jnp.asarray([[0.3, -9.0, 7.0, jnp.nan]], jnp.float32)
    found = q.symmetric(x, fmt, jnp.full((1, 1), 2.0, jnp.float32))
    np.testing.assert_allclose(found[0, 1:], [-2.0, 2.0, np.nan], rtol=1e-6)
    np.testing.assert_array_equal(q.symmetric(x, fmt, jnp.zeros((1, 1), jnp.float32)), x)


@pytest.mark.parametrize(("name", "block"), [("mxfp4", 32), ("nf4", 64)])
def test_an_outlier_costs_its_own_block(name, block):
    """OCP Microscaling 1.0 has blocks of 32, Dettmers et al. 2023 of 64."""
    x = jnp.linspace(0.5, 1.0, 256)
    found = np.asarray(q.quantise(x.at[0].set(1e4), q.FORMATS[name]))
    np.testing.assert_array_equal(found[1:block], 0.0)
    np.testing.assert_array_equal(found[block:], q.quantise(x, q.FORMATS[name])[block:])


def test_a_tenth_of_the_amplitude_is_20_decibels_below():
    x = jnp.asarray([3.0, -4.0])
    np.testing.assert_allclose(q.sqnr(x, 0.9 * x), 20.0, rtol=1e-4)


def test_ranges():
    x = jnp.asarray(np.concatenate([np.linspace(-1, 1, 1001), [100.0]])[None].astype(np.float32))
    assert q.largest_magnitude(x).tolist() == [[100.0]]
    clipped = q.percentile_magnitude(x, 99.0)
    np.testing.assert_allclose(clipped, np.percentile(np.abs(x), 99.0, axis=-1)[:, None], rtol=1e-6)
    assert float(q.symmetric(x, q.FORMATS["int8"], clipped)[0, -1]) == pytest.approx(
        float(clipped[0, 0]), rel=1e-6
    )


def test_least_error_is_no_worse_than_its_neighbours():
    heavy = jnp.asarray(np.random.default_rng(1).standard_t(3, size=(4, 256)).astype(np.float32))
    fmt = q.FORMATS["int4"]
    best = q.least_error_magnitude(heavy, fmt)

    def error(magnitude):
        return np.sum(np.square(q.symmetric(heavy, fmt, magnitude) - heavy), axis=-1)

    top = q.largest_magnitude(heavy)
    assert np.all(error(best) <= error(top))
    assert np.any(error(best) < 0.8 * error(top))
    for share in (0.3, 0.5, 0.9):
        assert np.all(error(best) <= error(share * top) + 1e-4)


@pytest.mark.parametrize("name", q.FORMATS)
@pytest.mark.parametrize("per", q.PER)
def test_degenerate_tensors(name, per):
    fmt = q.FORMATS[name]
    for x in (jnp.zeros((2, 3)), jnp.zeros((1, 1))):
        np.testing.assert_array_equal(q.quantise(x, fmt, per), x)
    one = jnp.full((1, 1), 4.0)
    np.testing.assert_allclose(q.quantise(one, fmt, per), one, rtol=1e-6)
    constant = jnp.full((2, 5), -4.0)
    np.testing.assert_allclose(q.quantise(constant, fmt, per), constant, rtol=1e-6)
    with_nan = jnp.asarray(draw(2, 5)).at[0, 1].set(jnp.nan)
    found = jnp.isnan(q.quantise(with_nan, fmt, per))
    assert found[0].all()
    assert found[1].all() == (per == "tensor" and not fmt.block)


@pytest.mark.parametrize("bits", [1, 8])
def test_degenerate_zero_points(bits):
    for x in (jnp.zeros((2, 3)), jnp.full((2, 3), -4.0), jnp.full((1, 1), 4.0)):
        np.testing.assert_allclose(q.quantise_zero_point(x, bits), x, rtol=1e-6)


def test_tiny_values_do_not_overflow_the_scale():
    x = jnp.asarray([[1e-30, -3e-30, 2e-30]], jnp.float32)
    for fmt in q.FORMATS.values():
        assert np.all(np.isfinite(q.quantise(x, fmt))), fmt.name


def test_an_unknown_sharing_is_refused():
    with pytest.raises(ValueError, match="accepted: tensor, vector, group"):
        q.quantise(jnp.ones((2, 3)), q.FORMATS["int8"], "row")


def rounding_error(step, sigma):
    """E (x - round(x/step) step)^2 of a normal variable, cell by cell."""
    last = int(np.ceil(12 * sigma / step))
    cells = (
        quad(
            lambda x, at=j * step: (x - at) ** 2 * stats.norm.pdf(x, scale=sigma),
            (j - 0.5) * step, (j + 0.5) * step, epsabs=0.0, epsrel=1e-12,
        )[0]
        for j in range(-last, last + 1)
    )  # fmt: skip
    return sum(cells)


@pytest.mark.parametrize("width", [0.3, 0.999, 1.001, 1.5, 4.0])
def test_the_rounding_error_of_a_normal_variable(width):
    """In float64: below a step of sigma the series is 3e-9 of the error and less."""
    sigma = 0.7
    with jax.enable_x64(True):
        found = q.normal_rounding_error(jnp.float64(width * sigma), jnp.float64(sigma))
    assert float(found) == pytest.approx(rounding_error(width * sigma, sigma), rel=1e-10)


@pytest.mark.parametrize("levels", [7.0, 1.0])  # steps below sigma and above
def test_what_is_predicted_of_a_bulk_with_an_outlier(levels):
    ratio, entries = 5.0, 64
    sigma = np.sqrt((entries - ratio**2) / (entries - 1))
    noise = rounding_error(ratio / levels, sigma) * (entries - 1) / entries
    found = q.predicted_sqnr(jnp.asarray(ratio), jnp.asarray(levels), entries)
    np.testing.assert_allclose(found, -10 * np.log10(noise), rtol=1e-5)


def test_noise_of_half_precision_is_summed_in_float32():
    x = jnp.asarray(300.0 * np.random.default_rng(0).normal(size=4096), jnp.float16)
    rounded = x * jnp.float16(1.01)
    wide = [np.asarray(each, np.float64) for each in (x, rounded)]
    expected = 10 * np.log10(np.sum(wide[0] ** 2) / np.sum((wide[0] - wide[1]) ** 2))
    assert float(q.sqnr(x, rounded)) == pytest.approx(expected, rel=1e-5)
