"""B4. A state that every context reads alike, and whose token gets no gradient, is a massive one.

Statement. Let x have the entry a in channel k and the other D - 1 entries y. Let n be RMSNorm,
n(x) = sqrt(D) x/|x|, without gain and eps. With r = |y|:

    (i)   the angle delta between n(x) and e_k (or -e_k) has tan(delta) = r/|a|: a direction fixed
          within delta in every context needs |a| >= r cot(delta);
    (ii)  |n(x) - sqrt(D) sign(a) e_k| = 2 sqrt(D) sin(delta/2) -> 0 as |a| grows, whatever y is;
    (iii) the Jacobian of n at x has operator norm sqrt(D)/|x|; with gains gamma, at most max|gamma|
          times that.

Let n be LayerNorm, without gain, bias and eps. With mu the mean of y, r = |y - mu| and the centred
axis f = (e_k - 1/D) / sqrt(1 - 1/D) in place of e_k:

    (i)   tan(delta) = r / (|a - mu| sqrt(1 - 1/D));
    (ii)  |n(x) - sqrt(D) sign(a - mu) f| = 2 sqrt(D) sin(delta/2);
    (iii) operator norm sqrt(D)/|x - mean(x)| for D >= 3 (for D = 2 the Jacobian is zero).

Proof. (i) decomposes x, or the centred x, along the axis. (ii) is the chord of two vectors of
length sqrt(D) at angle delta. (iii) The Jacobian is sqrt(D)/|x| times a projection of rank D - 1
(RMSNorm), or sqrt(D)/|x - mean| times one of rank D - 2 (LayerNorm), orthogonal to x and to 1.

Source: the mechanism of Sun et al. 2024 (arXiv:2402.17762), section 4, with its constants.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sysout_jax.core.layers import NORMS
from theory.check import Part, Quantities, absolute, at_most, compare, relative, statement
from theory.decompositions import singular_values

SHAPES = (3, 5, 13, 32)  # D
# Angles in radians and distances in units of sqrt(D) are compared absolutely: both come from a
# normalised vector of that length, and are exact to its rounding, 1e-16 times a/r < 1e3.
TOLERANCE = 1e-12


class Instance(NamedTuple):
    """A state, the channel that is large in it, and gains."""

    x: Float[Array, "D"]
    channel: Array
    gain: Float[Array, "D"]


def draw(key: Array, shape: int, scale: Array) -> Instance:
    """Normal entries of size `scale`, one of them 0.1 to 1000 times the norm of the others."""
    keys = jax.random.split(key, 5)
    channel = jax.random.randint(keys[0], (), 0, shape)
    y = scale * jax.random.normal(keys[1], (shape,), jnp.float64)
    y = jnp.where(jnp.arange(shape) == channel, 0.0, y)
    sign = jax.random.rademacher(keys[2], (), jnp.float64)
    size = 10.0 ** jax.random.uniform(keys[3], (), jnp.float64, -1.0, 3.0)
    a = sign * size * jnp.linalg.norm(y)
    gain = jax.random.normal(keys[4], (shape,), jnp.float64)
    return Instance(jnp.where(jnp.arange(shape) == channel, a, y), channel, gain)


def axis(norm: str, dim: int, channel: Array) -> Float[Array, "D"]:
    """The unit vector that a state with one growing channel tends to: e_k, or e_k centred."""
    e = jnp.where(jnp.arange(dim) == channel, 1.0, jnp.zeros(dim))
    centred = (e - 1.0 / dim) / jnp.sqrt(1.0 - 1.0 / jnp.asarray(dim, e.dtype))
    return e if norm == "rms" else centred


def tangent(norm: str, x: Float[Array, "D"], channel: Array) -> tuple[Array, Array]:
    """The signed length along the axis, and tan(delta)."""
    rest = jnp.arange(len(x)) != channel
    a, y = x[channel], jnp.where(rest, x, 0.0)
    if norm == "rms":
        return a, jnp.linalg.norm(y) / jnp.abs(a)
    mean = jnp.sum(y) / (len(x) - 1)
    r = jnp.linalg.norm(jnp.where(rest, x - mean, 0.0))
    along = (a - mean) * jnp.sqrt(1.0 - 1.0 / jnp.asarray(len(x), x.dtype))
    return along, r / jnp.abs(along)


def predict(case: Instance) -> Quantities:
    """The angle, the distance to the limit, the gain of the gradient and its bound with gains."""
    root = jnp.sqrt(jnp.asarray(len(case.x), case.x.dtype))
    found: dict[str, Array] = {}
    for norm in NORMS:
        _, tan = tangent(norm, case.x, case.channel)
        size = jnp.linalg.norm(case.x - (jnp.mean(case.x) if norm == "layer" else 0.0))
        found |= {
            f"{norm}: angle": jnp.arctan(tan),
            f"{norm}: to limit": 2.0 * jnp.sin(jnp.arctan(tan) / 2.0),
            f"{norm}: gradient": root / size,
            f"{norm}: gradient with gains": root / size * jnp.max(jnp.abs(case.gain)),
        }
    return found


def measure(case: Instance) -> Quantities:
    """The layers themselves and the singular values of their Jacobians."""
    return _of_layers(case, {norm: norm for norm in NORMS}, case.x)


def control(case: Instance) -> Quantities:
    """Each norm's formula held against the other norm; its gradient at half the state."""
    return _of_layers(case, {"rms": "layer", "layer": "rms"}, case.x / 2.0)


def _of_layers(case: Instance, layers: dict[str, str], at: Array) -> Quantities:
    root = jnp.sqrt(jnp.asarray(len(case.x), case.x.dtype))
    found: dict[str, Array] = {}
    for norm, layer in layers.items():
        n = NORMS[layer](case.x, eps=0.0)
        unit = axis(norm, len(case.x), case.channel)
        along = jnp.sum(n * unit)
        jacobian = jax.jacfwd(lambda x, layer=layer: NORMS[layer](x, eps=0.0))(at)
        with_gains = jacobian * case.gain[:, None]
        found |= {
            f"{norm}: angle": jnp.arctan2(jnp.linalg.norm(n - along * unit), jnp.abs(along)),
            f"{norm}: to limit": jnp.linalg.norm(n / root - jnp.sign(along) * unit),
            f"{norm}: gradient": singular_values(jacobian)[0],
            f"{norm}: gradient with gains": singular_values(with_gains)[0],
        }
    return found


@statement("B4", "RMSNorm and LayerNorm: tan(angle to axis) = r/a, gradient gain sqrt(D)/|x|")
def verify(key: Array, quick: bool) -> list[Part]:
    kinds = {
        "angle": absolute,
        "to limit": absolute,
        "gradient": relative,
        "gradient with gains": at_most,
    }
    errors = {f"{norm}: {name}": error for norm in NORMS for name, error in kinds.items()}
    return compare(
        draw,
        predict,
        measure,
        control,
        key,
        shapes=SHAPES,
        tolerance=TOLERANCE,
        error=errors,
        quick=quick,
    )
