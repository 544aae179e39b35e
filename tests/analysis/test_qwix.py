"""Rounding to the nearest agrees with qwix, a maintained library that holds real integers.

qwix stretches the range of symmetric integers by half a step (int8 reaches 127.5 steps); told to
stretch it by 127.5/127, it has the grid of AbsMax rounding.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.analysis.compress.rounding import Basis, RoundInputs, round_weights
from sysout_jax.analysis.compress.schemes import Rounding, scheme

qwix = pytest.importorskip("qwix", reason="qwix: installed by requirements-dev.txt")
INPUTS, OUTPUTS, TOKENS = 64, 11, 7  # of which two groups of 32, and one block of nf4
QTYPES = {
    "int4": jnp.int4, "int8": jnp.int8, "nf4": "nf4", "fp8_e4m3": jnp.float8_e4m3fn,
    "fp8_e5m2": jnp.float8_e5m2, **{f"int{bits}": f"int{bits}" for bits in (2, 3, 5, 6, 7)},
}  # fmt: skip
WEIGHTS = (
    "w8", "w8-tensor", "w8-g32", "w7", "w6", "w5-tensor", "w4", "w4-tensor", "w4-g32", "w3",
    "w2-g32", "zero-w8", "zero-w8-tensor", "zero-w4-g32", "we4m3", "we5m2-tensor", "wnf4",
)  # fmt: skip
PRODUCTS = ("w8a8", "w8a8-tensor", "w4a8", "w6a6", "w8a8-tensor-minmax")  # no int4 product on CPU


def draw(*shape, seed):
    """Normal values with one column of outliers."""
    x = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    x[:, 3] = np.abs(x[:, 3]) * 20.0
    return jnp.asarray(x)


def stretched(how, fmt):
    """The range of qwix that is AbsMax rounding's, or the one with a zero point."""
    if how.zero_point:
        return "minmax"
    top = 2.0 ** (int(fmt[3:]) - 1) - 1.0 if fmt.startswith("int") else None
    return "absmax" if top is None else f"absmax,{(top + 0.5) / top}"


def held(x, how, fmt, axis, method=None):
    """What qwix holds of a matrix whose other axis than `axis` is contracted."""
    group = 64 if fmt == "nf4" else how.group if how.per == "group" else None
    return qwix.quantize(
        x,
        QTYPES[fmt],
        channelwise_axes=() if how.per == "tensor" else (axis,),
        tiled_axes={1 - axis: group} if group else {},
        calibration_method=method or stretched(how, fmt),
    )


@pytest.mark.parametrize("method", WEIGHTS)
def test_weights_are_those_of_qwix(method):
    how, w = scheme(method), draw(INPUTS, OUTPUTS, seed=1)
    assert isinstance(how, Rounding)
    ours = round_weights(how, w, Basis())
    theirs = qwix.dequantize(held(w, how, how.weights, 1))
    # A quotient on the border of two levels can fall on either side: the last bit decides.
    apart = np.abs(np.asarray(ours - theirs)) > 1e-5 * float(jnp.max(jnp.abs(w)))
    assert apart.mean() <= 0.005
    assert not np.allclose(ours, w, rtol=1e-4)


@pytest.mark.parametrize("method", PRODUCTS)
def test_products_are_those_of_qwix(method):
    """x W of rounded floats is the product that qwix makes of integers: dynamic and static."""
    how = scheme(method)
    x, w = draw(TOKENS, INPUTS, seed=2), draw(INPUTS, OUTPUTS, seed=3)
    limits, fixed = None, None
    if how.ranges == "minmax":
        top = 0.5 * float(jnp.max(jnp.abs(x)))  # of other text: some of this one is clipped
        limits, reach = jnp.array([[-top, top / 2]]), top * 127.5 / 127.0
        fixed = f"fixed,{-reach},{reach}"
    rounded = RoundInputs(how.activations, how.per, how.zero_point)
    ours = rounded(x, jnp.array(0), Basis(), limits) @ round_weights(how, w, Basis())
    with jax.numpy_dtype_promotion("standard"):  # it multiplies integers by floats
        theirs = qwix.dot_general(
            held(x, how, how.activations, 0, fixed),
            held(w, how, how.weights, 1),
            (((1,), (0,)), ((), ())),
        )
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4 * float(jnp.max(jnp.abs(ours))))
    assert float(jnp.max(jnp.abs(ours - x @ w))) > 1e-3
