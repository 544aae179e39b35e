"""B4. A state that every context reads alike, and that damps gradients, is a massive one.

Statement. Let u be a unit vector, a = <u, x> and y = x - a u, r = |y|. Let n be RMSNorm, n(x) =
sqrt(D) x/|x|, without gain and eps. Then

    (i)   the angle delta between n(x) and u (or -u) has tan(delta) = r/|a|: a direction fixed
          within delta in every context needs |a| >= r cot(delta);
    (ii)  |n(x) - sqrt(D) sign(a) u| = 2 sqrt(D) sin(delta/2) -> 0 as |a| grows, whatever y is;
    (iii) the Jacobian of n at x has operator norm sqrt(D)/|x|; with gains gamma, at most max|gamma|
          times that, with equality for instance where channels j, k with |gamma_j| = |gamma_k| =
          max|gamma| have x_j = x_k.

Let n be LayerNorm, without gain, bias and eps, and D >= 3. It is RMSNorm of the centred x: the same
holds with x - mean(x) in place of x and the centred u, at unit length, in place of u. For a
coordinate axis e_k, with mu the mean of the other entries and r their norm about it,

    tan(delta) = r / (|x_k - mu| sqrt(1 - 1/D)).

In a published model (SmolLM2-135M) u is no axis, but a learned direction: README.md, section 8.

Proof. (i) decomposes x, or the centred x, along u. (ii) is the chord of two vectors of length
sqrt(D) at angle delta. (iii) The Jacobian is sqrt(D)/|x| times a projection of rank D - 1
(RMSNorm), or sqrt(D)/|x - mean| times one of rank D - 2 (LayerNorm), orthogonal to x and to 1; it
leaves e_j - e_k as it is where x_j = x_k.

Source: the mechanism of Sun et al. 2024 (arXiv:2402.17762), section 4, with its constants.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sysout_jax.core.norms import NORMS, PLAIN
from theory.check import Part, Quantities, absolute, at_most, compare, relative, statement
from theory.decompositions import singular_values

SHAPES = (3, 5, 13, 32)  # D
# Angles in radians and distances in units of sqrt(D) are compared absolutely: both come from a
# normalised vector of that length, and are exact to its rounding, 1e-16 times a/r < 1e3.
TOLERANCE = 1e-12


class Instance(NamedTuple):
    """A state, the unit vector along which it is large, a channel, and gains."""

    x: Float[Array, "D"]
    u: Float[Array, "D"]
    channel: Array
    gain: Float[Array, "D"]


def draw(key: Array, shape: int, scale: Array) -> Instance:
    """Normal entries of size `scale`, and 0.1 to 1000 times their norm along u: in one half of the
    instances a random direction, in the other a channel."""
    keys = jax.random.split(key, 7)
    channel = jax.random.randint(keys[0], (), 0, shape)
    u = jax.random.normal(keys[5], (shape,), jnp.float64)
    axis = (jnp.arange(shape) == channel).astype(u.dtype)
    u = jnp.where(jax.random.bernoulli(keys[6]), axis, u)
    u /= jnp.linalg.norm(u)
    y = scale * jax.random.normal(keys[1], (shape,), jnp.float64)
    y -= (u @ y) * u
    sign = jax.random.rademacher(keys[2], (), jnp.float64)
    size = 10.0 ** jax.random.uniform(keys[3], (), jnp.float64, -1.0, 3.0)
    gain = jax.random.normal(keys[4], (shape,), jnp.float64)
    return Instance(y + sign * size * jnp.linalg.norm(y) * u, u, channel, gain)


def seen(norm: str, x: Float[Array, "D"]) -> Float[Array, "D"]:
    """What a norm sees of a vector: all of it, or its deviation from the mean."""
    return x if norm == "rms" else x - jnp.mean(x)


def limit(norm: str, u: Float[Array, "D"]) -> Float[Array, "D"]:
    """The unit vector that a state growing along u tends to."""
    return seen(norm, u) / jnp.linalg.norm(seen(norm, u))


def tangent(norm: str, x: Float[Array, "D"], u: Float[Array, "D"]) -> Float[Array, ""]:
    """tan(delta) = r/|a| of what the norm sees."""
    x, u = seen(norm, x), limit(norm, u)
    a = u @ x
    return jnp.linalg.norm(x - a * u) / jnp.abs(a)


def layer_norm_tangent(x: Float[Array, "D"], channel: Array) -> Float[Array, ""]:
    """tan(delta) of LayerNorm at a coordinate axis."""
    rest = jnp.arange(len(x)) != channel
    mu = jnp.mean(x, where=rest)
    r = jnp.linalg.norm(jnp.where(rest, x - mu, 0.0))
    return r / (jnp.abs(x[channel] - mu) * jnp.sqrt(1.0 - 1.0 / jnp.asarray(len(x), x.dtype)))


def predict(case: Instance) -> Quantities:
    """The angle, the distance to the limit, the gain of the gradient and its bound with gains."""
    root = jnp.sqrt(jnp.asarray(len(case.x), case.x.dtype))
    found = {"layer: angle to a channel": jnp.arctan(layer_norm_tangent(case.x, case.channel))}
    for norm in PLAIN:
        tan = tangent(norm, case.x, case.u)
        size = jnp.linalg.norm(seen(norm, case.x))
        found |= {
            f"{norm}: angle": jnp.arctan(tan),
            f"{norm}: to limit": 2.0 * jnp.sin(jnp.arctan(tan) / 2.0),
            f"{norm}: gradient": root / size,
            f"{norm}: gradient with gains": root / size * jnp.max(jnp.abs(case.gain)),
        }
    return found


def measure(case: Instance) -> Quantities:
    """The layers themselves and the singular values of their Jacobians."""
    return _of_layers(case, {norm: norm for norm in PLAIN}, case.x)


def control(case: Instance) -> Quantities:
    """Each norm's formula held against the other norm; its gradient at half the state."""
    return _of_layers(case, {"rms": "layer", "layer": "rms"}, case.x / 2.0)


def alike(case: Instance) -> Instance:
    """Equality in the bound with gains: two channels with the largest gain and the same entry."""
    largest = jnp.max(jnp.abs(case.gain))
    return case._replace(x=case.x.at[1].set(case.x[0]), gain=case.gain.at[:2].set(largest))


def _of_layers(case: Instance, layers: dict[str, str], at: Array) -> Quantities:
    root = jnp.sqrt(jnp.asarray(len(case.x), case.x.dtype))
    found: dict[str, Array] = {}
    axis = (jnp.arange(len(case.x)) == case.channel).astype(case.x.dtype)
    found["layer: angle to a channel"] = _angle(
        NORMS[layers["layer"]](case.x, eps=0.0), limit("layer", axis)
    )
    for norm, layer in layers.items():
        n = NORMS[layer](case.x, eps=0.0)
        unit = limit(norm, case.u)
        along = jnp.sum(n * unit)
        jacobian = jax.jacfwd(lambda x, layer=layer: NORMS[layer](x, eps=0.0))(at)
        with_gains = jacobian * case.gain[:, None]
        found |= {
            f"{norm}: angle": _angle(n, unit),
            f"{norm}: to limit": jnp.linalg.norm(n / root - jnp.sign(along) * unit),
            f"{norm}: gradient": singular_values(jacobian)[0],
            f"{norm}: gradient with gains": singular_values(with_gains)[0],
        }
    return found


def _angle(n: Float[Array, "D"], unit: Float[Array, "D"]) -> Float[Array, ""]:
    """Between the lines along n and along a unit vector."""
    along = jnp.sum(n * unit)
    return jnp.arctan2(jnp.linalg.norm(n - along * unit), jnp.abs(along))


@statement("B4", "RMSNorm and LayerNorm: tan(angle to u) = r/a, gradient gain sqrt(D)/|x|")
def verify(key: Array, quick: bool) -> list[Part]:
    kinds = {
        "angle": absolute,
        "to limit": absolute,
        "gradient": relative,
        "gradient with gains": at_most,
    }
    errors = {f"{norm}: {name}": error for norm in PLAIN for name, error in kinds.items()}
    errors["layer: angle to a channel"] = absolute
    return compare(
        draw,
        predict,
        measure,
        control,
        key,
        shapes=SHAPES,
        tolerance=TOLERANCE,
        error=errors,
        tight={f"{norm}: gradient with gains": alike for norm in PLAIN},
        quick=quick,
    )
