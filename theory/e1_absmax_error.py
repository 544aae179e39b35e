"""E1. What an outlier costs under AbsMax quantisation, from the max/RMS ratio alone.

Statement. Symmetric b-bit rounding with the largest entry A has the step A/(2^(b-1) - 1). If the
bulk is normal with standard deviation sigma, its mean squared error is

    e(step) = step^2/12 + (step/pi)^2 sum_{k>=1} (-1)^k/k^2 exp(-2 (pi k sigma/step)^2)
            = sigma^2 + 2 sum_{j>=1} (j^2 step^2 P_j - 2 j step M_j),

P_j and M_j the probability and the mean of x within half a step of j step. It is step^2/12 for
steps up to 2 sigma and tends to sigma^2 for large ones: the bulk is erased, and the two regimes
meet near step = sqrt(12) sigma. For n entries of which one is an outlier, with rho = A/RMS, sigma^2
= RMS^2 (n - rho^2)/(n - 1), and the signal to quantisation noise ratio is

    SQNR = RMS^2 n / ((n - 1) e(step)),   in decibels 10 log10 of it.

Assumptions. One outlier (rounded exactly, since it is the largest), a normal bulk.

Proof. The squared rounding error is periodic in x, with the Fourier series step^2/12 + (step/pi)^2
sum (-1)^k cos(2 pi k x/step)/k^2, and E cos(2 pi k x/step) = exp(-2 (pi k sigma/step)^2). The other
form sums E (x - j step)^2 over the cells.

Source: rounding of a normal variable, Widrow & Kollar 2008, Quantization Noise, in this form.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sysout_jax.core.quantise import predicted_sqnr
from theory.check import Part, Quantities, absolute, compare, statement
from theory.once import jit_once

SHAPES = (8, 6, 4)  # bits
ENTRIES = 16_384
# A mean of 16,384 squared errors has a relative standard deviation of at most sqrt(2/16384) = 1.1%,
# or 0.05 dB; the largest of some thousand is within 5 of them.
DECIBELS = 0.25
# Of tensors whose error is an integral: quadrature to 1e-12, the closed form's series to 1e-10.
EXACT, CASES, FEW = 1e-9, 20, 64


class Instance(NamedTuple):
    """A tensor, its first entry the outlier, with the highest level of its grid."""

    x: Float[Array, "M"]
    levels: Float[Array, ""]


def draw(key: Array, bits: int, scale: Array) -> Instance:
    """A normal bulk of size `scale` and an outlier of 6 to 3000 times that."""
    of_bulk, of_outlier = jax.random.split(key)
    bulk = scale * jax.random.normal(of_bulk, (ENTRIES,), jnp.float64)
    ratio = 6.0 * 500.0 ** jax.random.uniform(of_outlier, (), jnp.float64)
    return Instance(bulk.at[0].set(ratio * scale), jnp.asarray(2.0 ** (bits - 1) - 1.0))


def predict(case: Instance) -> Quantities:
    """From max|x|/RMS, the number of entries and the number of levels."""
    ratio = jnp.max(jnp.abs(case.x)) / jnp.sqrt(jnp.mean(jnp.square(case.x)))
    return {"sqnr": predicted_sqnr(ratio, case.levels, len(case.x))}


def measure(case: Instance) -> Quantities:
    """Round every entry to the grid."""
    return {"sqnr": rounded(case.x, jnp.max(jnp.abs(case.x)) / case.levels)}


def control(case: Instance) -> Quantities:
    """The outlier kept apart: the step is that of the bulk."""
    return {"sqnr": rounded(case.x, jnp.max(jnp.abs(case.x[1:])) / case.levels)}


def rounded(x: Array, step: Array) -> Array:
    """10 log10 of mean x^2 over the mean squared rounding error."""
    error = jnp.round(x / step) * step - x
    return 10.0 * jnp.log10(jnp.mean(jnp.square(x)) / jnp.mean(jnp.square(error)))


def expected(step: float, sigma: float) -> float:
    """E (x - step round(x/step))^2 of a normal x, by Gauss-Legendre between the edges of cells."""
    reach = 9.0 * sigma
    cells = step * (np.arange(np.ceil(reach / step) + 1.0) + 0.5)
    edges = np.concatenate([[0.0], cells, np.linspace(0.0, reach, 73)])
    edges = np.unique(np.minimum(edges, reach))
    nodes, weights = np.polynomial.legendre.leggauss(12)
    middle, half = (edges[1:] + edges[:-1]) / 2.0, (edges[1:] - edges[:-1]) / 2.0
    x = middle[:, None] + half[:, None] * nodes[None]
    square = np.square(x - step * np.round(x / step))
    density = np.exp(-np.square(x / sigma) / 2.0) / (sigma * np.sqrt(2.0 * np.pi))
    return float(2.0 * np.sum(half[:, None] * weights[None] * square * density))


def _exactly(key: Array) -> Part:
    """The closed form on tensors of few entries, whose bulk is a normal variable of its energy; as
    the control, the energy of the outlier is left in the bulk."""
    error, broken = 0.0, 0.0
    for bits, of_bits in zip(SHAPES, jax.random.split(key, len(SHAPES)), strict=True):

        def one(key: Array, bits: int = bits) -> tuple[Array, Array, Array]:
            drawn = draw(key, bits, jnp.ones(()))
            small = Instance(drawn.x[:FEW], drawn.levels)
            return small.x, small.levels, predict(small)["sqnr"]

        cases = jit_once(jax.vmap(one))(jax.random.split(of_bits, CASES))
        for x, levels, stated in zip(*(np.asarray(each) for each in cases), strict=True):
            step = float(np.max(np.abs(x)) / levels)
            found, without = (
                10.0 * np.log10(np.sum(x**2) / ((FEW - 1) * expected(step, sigma)))
                for sigma in (np.sqrt(np.mean(x[1:] ** 2)), np.sqrt(np.mean(x**2)))
            )
            error = np.maximum(error, abs(found - stated))
            broken = np.maximum(broken, abs(without - stated))
    return Part("closed form", len(SHAPES) * CASES, float(error), EXACT, float(broken))


def curves(key: Array) -> dict[str, object]:
    """Predicted and measured SQNR against max/RMS for each bit width, for the figure."""
    bulk = jax.random.normal(key, (ENTRIES,), jnp.float64)
    sizes = jnp.asarray(np.geomspace(6.0, 3000.0, 40))

    def both(size: Array, levels: Array) -> Array:
        case = Instance(bulk.at[0].set(size), levels)
        ratio = size / jnp.sqrt(jnp.mean(jnp.square(case.x)))
        return jnp.stack([ratio, predict(case)["sqnr"], measure(case)["sqnr"]])

    run = jit_once(jax.vmap(both, (0, None)))
    return {
        f"{bits} bits": run(sizes, jnp.asarray(2.0 ** (bits - 1) - 1.0)).T.tolist()
        for bits in SHAPES
    }


@statement("E1", "AbsMax rounding: the SQNR of a normal bulk with one outlier, from max/RMS")
def verify(key: Array, quick: bool) -> list[Part]:
    of_instances, of_curves, of_integrals = jax.random.split(key, 3)
    (part,) = compare(
        draw, predict, measure, control, of_instances,
        shapes=SHAPES, instances=200 if quick else 1000, tolerance=DECIBELS, error=absolute,
        quick=quick,
    )  # fmt: skip
    return [dataclasses.replace(part, data=curves(of_curves)), _exactly(of_integrals)]
