"""Positions against complex numbers, and every rule for longer contexts against a loop."""

import math

import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.core import positions as p
from sysout_jax.core.positions import Rotation, rope, rotate
from tests.core.test_layers import draw, narrow, wide


def turned(x, positions, theta):
    """Channel pairs (h, h + H/2) as complex numbers, times exp(i t theta^(-2h/H))."""
    out = np.zeros_like(x)
    half = x.shape[-1] // 2
    for row, t in enumerate(positions):
        for h in range(half):
            z = (x[:, row, :, h] + 1j * x[:, row, :, h + half]) * np.exp(
                1j * t * theta ** (-2 * h / x.shape[-1])
            )
            out[:, row, :, h], out[:, row, :, h + half] = z.real, z.imag
    return out


POSITIONS = (0, 1, 5, 2, 130)


@pytest.mark.parametrize("theta", [10_000.0, 17.0])
def test_rope_turns_complex_numbers(theta):
    x = draw(2, 5, 3, 14)
    out = wide(rope(narrow(x), jnp.asarray(POSITIONS), theta))
    np.testing.assert_allclose(out, turned(x, POSITIONS, theta), rtol=1e-5, atol=5e-5)
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), np.linalg.norm(x, axis=-1), rtol=1e-6)
    np.testing.assert_array_equal(out[:, 0], x[:, 0])


def test_rope_uses_ten_thousand_unless_told():
    x, positions = narrow(draw(2, 5, 3, 14)), jnp.asarray(POSITIONS)
    np.testing.assert_array_equal(rope(x, positions), rope(x, positions, 10_000.0))


def test_rope_products_depend_on_the_distance_alone():
    q, k = narrow(draw(1, 1, 1, 14)), narrow(draw(1, 1, 1, 14, seed=1))

    def product(i, j):
        turned_q, turned_k = rope(q, jnp.asarray([i])), rope(k, jnp.asarray([j]))
        return float(jnp.sum(turned_q * turned_k))

    for i, j in ((3, 1), (7, 7), (2, 9)):
        np.testing.assert_allclose(product(i, j), product(i + 40, j + 40), rtol=1e-4)
    assert abs(product(3, 1) - product(1, 3)) > 0.1
    assert abs(product(3, 1) - product(5, 1)) > 0.1


def test_rope_in_bfloat16_rounds_once():
    x = wide(narrow(draw(2, 5, 3, 14), jnp.bfloat16))
    out = rope(narrow(x, jnp.bfloat16), jnp.asarray(POSITIONS))
    assert out.dtype == jnp.bfloat16
    expected = turned(x, POSITIONS, 10_000.0)
    np.testing.assert_allclose(wide(out), expected, rtol=2.0**-8, atol=5e-5)


def test_rope_needs_pairs_of_channels():
    with pytest.raises(ValueError, match="heads have 7"):
        rope(narrow(draw(1, 2, 1, 7)), jnp.arange(2))


def test_rotate_leaves_the_rest_of_a_head():
    x, at = draw(2, 5, 3, 14), jnp.asarray(POSITIONS)
    part = rotate(narrow(x), at, Rotation(p.inverse_frequencies(17.0, 6), 1.5))
    np.testing.assert_array_equal(part[..., 6:], x[..., 6:])
    np.testing.assert_allclose(
        part[..., :6], 1.5 * turned(x[..., :6], POSITIONS, 17.0), rtol=1e-5, atol=5e-5
    )
    with pytest.raises(ValueError, match="8 pairs do not fit into heads of 14"):
        rotate(narrow(x), at, Rotation(np.ones(8)))


def test_interleaved_pairs_are_the_same_pairs_elsewhere():
    x, at = narrow(draw(2, 5, 3, 14)), jnp.asarray(POSITIONS)
    apart = np.concatenate([np.arange(0, 14, 2), np.arange(1, 14, 2)])
    rotation = Rotation(p.inverse_frequencies(17.0, 14))
    np.testing.assert_array_equal(
        rotate(x, at, rotation, interleaved=True)[..., apart], rotate(x[..., apart], at, rotation)
    )


# ------------------------------------------------------------------- rules for longer contexts

THETA, CHANNELS = 300.0, 26
PLAIN = np.array([THETA ** (-2 * r / CHANNELS) for r in range(CHANNELS // 2)])


def test_linear_is_every_position_divided():
    np.testing.assert_allclose(p.linear(THETA, CHANNELS, 3.0).frequencies, PLAIN / 3, rtol=1e-12)


@pytest.mark.parametrize("length", [1, 64, 65, 200])
def test_dynamic_changes_the_base_beyond_its_context(length):
    found = p.dynamic(THETA, CHANNELS, 4.0, 64, length).frequencies
    base = THETA * (4.0 * max(length, 64) / 64 - 3) ** (CHANNELS / (CHANNELS - 2))
    np.testing.assert_allclose(found, [base ** (-2 * r / CHANNELS) for r in range(13)], rtol=1e-12)
    assert np.allclose(found, PLAIN) == (length <= 64)


def test_llama3_in_three_bands():
    """Wavelengths of less than C/high tokens are kept, those above C/low divided."""
    expected, bands = [], set()
    for f in PLAIN:
        wavelength = 2 * math.pi / f
        if wavelength < 256 / 4:
            expected.append(f)
            bands.add("kept")
        elif wavelength > 256 / 1:
            expected.append(f / 8)
            bands.add("divided")
        else:
            share = (256 / wavelength - 1) / (4 - 1)
            expected.append((1 - share) * f / 8 + share * f)
            bands.add("between")
    found = p.llama3(THETA, CHANNELS, 8.0, 256, 1.0, 4.0)
    np.testing.assert_allclose(found.frequencies, expected, rtol=1e-12)
    assert bands == {"kept", "divided", "between"}
    assert found.scale == 1.0


@pytest.mark.parametrize("truncate", [True, False])
def test_yarn_ramps_from_kept_to_interpolated(truncate):
    def pair_with(turns):  # the pair that turns so often within 512 tokens, eq. 17 solved for it
        return CHANNELS / 2 * math.log(512 / (2 * math.pi * turns)) / math.log(THETA)

    low, high = pair_with(32), pair_with(1)
    low, high = (math.floor(low), math.ceil(high)) if truncate else (low, high)
    expected = []
    for r, f in enumerate(PLAIN):
        share = min(max((r - max(low, 0)) / (min(high, CHANNELS - 1) - max(low, 0)), 0), 1)
        expected.append(share * f / 4 + (1 - share) * f)
    found = p.yarn(THETA, CHANNELS, 4.0, 512, truncate=truncate)
    np.testing.assert_allclose(found.frequencies, expected, rtol=1e-12)
    assert found.frequencies[0] == PLAIN[0]
    assert found.frequencies[-1] == pytest.approx(PLAIN[-1] / 4)
    assert found.scale == pytest.approx(1 + 0.1 * math.log(4))
    assert p.yarn(THETA, CHANNELS, 4.0, 512, scale=0.7).scale == 0.7
    assert p.yarn(THETA, CHANNELS, 1.0, 512).scale == 1.0


def test_longrope_switches_beyond_its_context():
    short, long = np.linspace(1, 2, 13).tolist(), np.linspace(3, 9, 13).tolist()
    for length, divisors in ((512, short), (513, long)):
        found = p.longrope(THETA, CHANNELS, 8.0, 512, length, short, long)
        np.testing.assert_allclose(found.frequencies, PLAIN / divisors, rtol=1e-12)
        assert found.scale == pytest.approx(math.sqrt(1 + math.log(8) / math.log(512)))
    assert p.longrope(THETA, CHANNELS, 8.0, 512, 1, short, long, scale=1.25).scale == 1.25
    assert p.longrope(THETA, CHANNELS, 1.0, 512, 1, short, long).scale == 1.0


# ------------------------------------------------------------------------------- ALiBi


@pytest.mark.parametrize(
    ("heads", "exponents"),
    [
        (1, [8]),
        (2, [4, 8]),
        (8, [1, 2, 3, 4, 5, 6, 7, 8]),
        (3, [4, 8, 2]),
        (6, [2, 4, 6, 8, 1, 3]),
        (5, [2, 4, 6, 8, 1]),
    ],
)
def test_slopes_as_published(heads, exponents):
    np.testing.assert_array_equal(p.alibi_slopes(heads), 2.0 ** -np.array(exponents, float))


def test_alibi_is_linear_in_the_distance():
    slopes = p.alibi_slopes(3)
    found = p.alibi(jnp.arange(5), jnp.arange(7), slopes)
    for head, t, s in np.ndindex(3, 5, 7):
        assert found[head, t, s] == -slopes[head] * (t - s)


def test_falcons_bias_is_alibi_up_to_a_constant_and_rounding():
    slopes, at = p.alibi_slopes(6), jnp.arange(300)
    rounded = wide(p.alibi_bfloat16(at, slopes))
    exact = wide(p.alibi(at, at, slopes))
    centred = (rounded - rounded[..., :1]) - (exact - exact[..., :1])
    error = np.abs(centred).max((1, 2)) / (300 * slopes)
    assert (error < 2.0**-8).all()
    assert error.max() > 2.0**-10
    assert rounded.shape == (6, 1, 300)
