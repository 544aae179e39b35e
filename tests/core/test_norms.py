"""Norms against float64 NumPy, row by row."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.core.norms import (
    NORMS,
    dynamic_tanh,
    gated_norm,
    layer_norm,
    pre_affine_norm,
    rms_norm,
    single_scale_norm,
)
from tests.core.test_layers import draw, narrow, wide

GATE_DOWN, GATE_UP = draw(13, 3, seed=3), draw(3, 13, seed=4)
BEFORE, SLOPE, GAIN = 1.0 + 0.5 * draw(13, seed=5), 0.75, 1.25


def numpy_rms(x, scale, bias, eps):
    return np.stack([scale * row / math.sqrt(np.mean(row**2) + eps) for row in x])


def numpy_layer(x, scale, bias, eps):
    return np.stack([scale * (row - row.mean()) / math.sqrt(row.var() + eps) + bias for row in x])


def numpy_gated(x, scale, bias, eps):
    out = []
    for row in numpy_rms(x, scale, bias, eps):
        hidden = [sum(row[d] * GATE_DOWN[d, r] for d in range(13)) for r in range(3)]
        hidden = [h / (1 + math.exp(-h)) for h in hidden]
        logits = [sum(hidden[r] * GATE_UP[r, d] for r in range(3)) for d in range(13)]
        out.append([n / (1 + math.exp(-z)) for n, z in zip(row, logits, strict=True)])
    return np.array(out)


def numpy_pre_affine(x, scale, bias, eps):
    return numpy_rms(x * BEFORE, scale, bias, eps)


def numpy_single_scale(x, scale, bias, eps):
    """In the terms of its paper: a scale of the unit vector."""
    unit = [row / math.sqrt(np.sum(row**2) + len(row) * eps) for row in x]
    return GAIN * math.sqrt(x.shape[1]) * np.stack(unit)


def numpy_tanh(x, scale, bias, eps):
    return np.stack([scale * np.array([math.tanh(SLOPE * v) for v in row]) + bias for row in x])


NORM_ORACLES = {
    "rms": (rms_norm, numpy_rms, 1e-6),
    "layer": (layer_norm, numpy_layer, 1e-5),
    "gated": (
        partial(gated_norm, gate_down=narrow(GATE_DOWN), gate_up=narrow(GATE_UP)), numpy_gated,
        1e-6,
    ),
    "pre_affine": (partial(pre_affine_norm, before=narrow(BEFORE)), numpy_pre_affine, 1e-6),
    "single_scale": (partial(single_scale_norm, gain=narrow(GAIN)), numpy_single_scale, 1e-6),
    "tanh": (partial(dynamic_tanh, slope=narrow(SLOPE)), numpy_tanh, 0.0),
}  # fmt: skip
every_norm = pytest.mark.parametrize("kind", NORM_ORACLES)


def test_norms_are_listed():
    assert list(NORM_ORACLES) == list(NORMS)
    for kind, (fn, _, _) in NORM_ORACLES.items():
        assert NORMS[kind].fn is getattr(fn, "func", fn)
        assert set(NORMS[kind].params) == set(getattr(fn, "keywords", {}))
        assert NORMS[kind].heads in ("rms", "layer")


@every_norm
@pytest.mark.parametrize("size", [1e-3, 1.0, 1e4])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_norms(kind, size, dtype):
    """At 1e-3 eps counts; at 1e4 squares are far outside the precision of bfloat16."""
    fn, oracle, eps = NORM_ORACLES[kind]
    x = wide(narrow(size * (draw(7, 13) + 0.5), dtype))
    scale, bias = draw(13, seed=1), draw(13, seed=2)
    of_channels = (
        narrow(scale) if NORMS[kind].scaled else None,
        narrow(bias) if NORMS[kind].biased else None,
    )
    out = fn(narrow(x, dtype), *of_channels)
    assert out.dtype == dtype
    tolerance = 2e-6 if dtype == jnp.float32 else 2.0**-8
    np.testing.assert_allclose(
        wide(out), oracle(x, scale, bias, eps), rtol=tolerance, atol=tolerance
    )
    other = fn(narrow(x, dtype), *of_channels, eps=0.5)
    np.testing.assert_allclose(
        wide(other), oracle(x, scale, bias, 0.5), rtol=tolerance, atol=tolerance
    )


@every_norm
def test_norms_without_scale_are_those_of_scale_one(kind):
    fn, oracle, eps = NORM_ORACLES[kind]
    x = draw(7, 13)
    np.testing.assert_allclose(fn(narrow(x)), oracle(x, 1.0, 0.0, eps), rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms_of_zero_are_zero_with_a_finite_gradient(kind):
    fn, _, eps = NORM_ORACLES[kind]
    zeros = jnp.zeros((3, 5), jnp.float32)
    assert not np.any(fn(zeros))
    jacobian = jax.jacobian(lambda row: fn(row[None])[0])(zeros[0])
    centring = 0.0 if kind == "rms" else 1 / 5
    np.testing.assert_allclose(jacobian, (np.eye(5) - centring) / math.sqrt(eps), rtol=1e-4)


def test_layer_norm_ignores_the_mean_and_rms_norm_does_not():
    x = draw(7, 13)
    moved = narrow(x + 2)
    np.testing.assert_allclose(layer_norm(moved), layer_norm(narrow(x)), atol=1e-5)
    assert np.max(np.abs(rms_norm(moved) - rms_norm(narrow(x)))) > 0.5


def test_what_makes_the_norms_rms_norm_again():
    """No gate beside 1/2, no scale before, no squashing of small values."""
    x, ones, zeros = narrow(draw(7, 13)), jnp.ones(13), jnp.zeros((13, 3))
    np.testing.assert_allclose(pre_affine_norm(x, before=ones), rms_norm(x), rtol=1e-6)
    half = gated_norm(x, gate_down=zeros, gate_up=zeros.T)
    np.testing.assert_allclose(half, rms_norm(x) / 2, rtol=1e-6)
    small = dynamic_tanh(1e-4 * x, slope=jnp.asarray(0.5))
    np.testing.assert_allclose(small, 0.5e-4 * x, rtol=1e-5)


def test_which_norms_a_large_channel_makes_others_small_in():
    """The rescaling that outlier channels do to the differences of others: not where each channel
    is squashed by itself."""
    x = narrow(draw(7, 13))
    large = x.at[:, 5].set(1e4)
    for kind, (fn, _, _) in NORM_ORACLES.items():
        after, before = (np.ptp(wide(fn(of))[:, :5], axis=1) for of in (large, x))
        shrinks = after.max() < 0.01 * before.max()
        assert shrinks == (kind != "tanh")


def test_a_single_scale_rounds_once():
    x = narrow(draw(7, 13), jnp.bfloat16)
    exact = numpy_single_scale(wide(x), None, None, 1e-6)
    found = wide(single_scale_norm(x, gain=narrow(GAIN)))
    np.testing.assert_allclose(found, exact, rtol=1.01 * 2.0**-8)
