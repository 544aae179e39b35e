"""F9. A Weibull fit to the bulk of normal weights has shape 1.205, whatever their scale.

Statement. Sort |w|, give the i-th of n the rank F_i = (i - 1/2)/n, and fit log(-log(1 - F)) against
log|w| by least squares over 0.1 < F < 0.9. For normal weights the slope tends to

    k = cov(log Q, log(-log(1 - F))) / var(log Q),   Q(F) = Phi^-1((1 + F)/2),

F uniform on (0.1, 0.9), which is 1.205, for any standard deviation. The window excludes the tail: a
planted weight of any size moves the other ranks by one in n at most, so that the fit says nothing
on super weights.

Assumptions. Independent normal entries; ranks of the full sample. Other windows give other numbers.

Proof. The scale shifts log Q by a constant. Sample quantiles converge to Q uniformly there.

Source: Ding 2026, for the fit and the number.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from scipy.special import ndtri

from theory.check import Part, statement

LOW, HIGH = 0.1, 0.9
ENTRIES = 65_536
# The slope's sampling error is of order 1/sqrt(0.8 n), 0.4%, over sd(log Q) = 0.6: five of them.
SHAPE = 0.03


def predict(low: float = LOW, high: float = HIGH) -> float:
    """The limit of the slope, by the midpoint rule."""
    f = low + (high - low) * (np.arange(200_000) + 0.5) / 200_000
    return float(np.polyfit(np.log(ndtri((1 + f) / 2)), np.log(-np.log1p(-f)), 1)[0])


def fitted(w: Float[Array, "M"]) -> Float[Array, ""]:
    """The Weibull shape of |w| by the stated fit."""
    f = (jnp.arange(1.0, len(w) + 1.0) - 0.5) / len(w)
    inside = ((f > LOW) & (f < HIGH)).astype(f.dtype)
    share = inside / jnp.sum(inside)
    x, y = jnp.log(jnp.sort(jnp.abs(w))), jnp.log(-jnp.log1p(-f))
    x = x - jnp.sum(share * x)
    return jnp.sum(share * x * y) / jnp.sum(share * jnp.square(x))


def measure(key: Array, matrices: int) -> Array:
    """Fits of normal matrices of scale 1 and 1e3 in turn, one entry in some times 1e4."""
    return _fits(key, matrices, lambda key: jax.random.normal(key, (ENTRIES,), jnp.float64))


def control(key: Array, matrices: int) -> Array:
    """Uniform weights."""
    return _fits(key, matrices, lambda key: jax.random.uniform(key, (ENTRIES,), jnp.float64))


def _fits(key: Array, matrices: int, draw: Callable[[Array], Array]) -> Array:
    def one(at: tuple[Array, Array]) -> Array:
        key, index = at
        w = jnp.where(index % 2 == 0, 1.0, 1e3) * draw(key)
        return fitted(w.at[0].multiply(jnp.where(index % 3 == 0, 1e4, 1.0)))

    run = jax.jit(lambda keys: jax.lax.map(one, (keys, jnp.arange(matrices))))
    return run(jax.random.split(key, matrices))


@statement("F9", "The Weibull fit to the bulk of normal weights has shape 1.205")
def verify(key: Array, quick: bool) -> list[Part]:
    matrices = 20 if quick else 200
    limit = predict()
    found, broken = (f(key, matrices) for f in (measure, control))
    errors = [float(jnp.max(jnp.abs(each / limit - 1.0))) for each in (found, broken)]
    stated = Part("stated value", 1, abs(limit - 1.205), 5e-4, abs(predict(0.01, 0.99) - 1.205))
    return [stated, Part("shape", matrices, errors[0], SHAPE, errors[1], {"limit": limit})]
