"""T3. How large a state must be for its token's value to be small, or the same in every text.

Statement. Let a token have the states x = a u + y, |u| = 1, over all texts and blocks that read it:
y is any vector orthogonal to u with |y| <= r. Let n be RMSNorm with its gains, W the value matrix
times these gains, and beta the norm of W on the complement of u. Then

(i)   Some y gives |W_V n(x)| >= sqrt(D (a^2 |W u|^2 + r^2 beta^2)/(a^2 + r^2)), with equality where
      W u is orthogonal to every W y. So a value of at most nu in every text needs

          a^2 >= r^2 (D beta^2/nu^2 - 1), with equality iff W u = 0.

(ii)  A value that stays within nu of its limit v_0 = sqrt(D) W u needs the same magnitude, drained
      or not; to first order in nu that is also enough: a = sqrt(D) beta r/nu.

The worst y is r times the top right singular vector of W there, with the sign that adds to W u. It
is a lower bound on a: how constant a value has to be, nu, it does not say, and r is what texts and
later blocks add to the state. It is the value that asks for it: a logit of the sink that is off by
t changes S by at most tanh(t/4) (T2), and the range that B2 requires of logits grows with log 1/eps
alone, while a grows with 1/nu.

In SmolLM2-135M a value constant to 10% asks for 22,000 to 54,000, by layer, of the y that a text
has on average, if it may take any direction. The state has 23,500, and the value is constant to
1.5% to 6.4% in layers 12 to 28 (results/assumptions/smollm2-135m).

Assumptions. y takes every direction orthogonal to u. A norm without eps.

Proof. n(x) = sqrt(D) gamma x/|x|. (i) For y = +- r z, z the singular vector, |W (a u + y)|^2 = a^2
|W u|^2 + r^2 beta^2 +- 2 a r <W u, W z>; take the sign that adds. (ii) With tan(delta) = r/a, W
n(x)/sqrt(D) = cos(delta) W u + sin(delta) W z, off its limit by the square root of (1 - cos)^2
|W u|^2 + sin^2 beta^2 or more; and by (1 - cos) |W u| + sin beta at most.

Source: this package. That massive activations keep a token's value from the text: Sun et al. 2024
(arXiv:2402.17762).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from sysout_jax.core.layers import linear
from sysout_jax.core.norms import rms_norm
from theory.check import Part, Quantities, at_least, compare, relative, statement
from theory.decompositions import pinv, qr, singular_values

SHAPES = ((2, 1), (3, 2), (5, 3), (13, 5))  # (D, H)
INSTANCES = 200  # of each shape
SHRINK = 0.6  # from one singular value of W on the complement to the next
# Power steps: 0.6^(2 * 60) = 2e-27 of another direction are left of the first.
ASCENT, BETWEEN = 60, 10
DECADES, HALVINGS = (-2.0, 7.0), 60  # of a/r, where the least magnitude is looked for
SMALL = 1e-4  # nu/(sqrt(D) beta) where the first-order law is compared
# n(x) is exact to 1e-16, and so is the part a = 1e4 r keeps of y, to 1e-12.
TOLERANCE = 1e-11
# The next order is at most tan(delta/2) |W u|/beta = 0.5e-4 * 3: six times that.
FIRST_ORDER = 1e-3

Bracket = tuple[Array, Array, Array]  # log10 of a/r from below and above, and the worst y of both


class Instance(NamedTuple):
    """A value matrix, gains, the direction of the sink's state, its size, and what is asked."""

    w: Float[Array, "D H"]
    gain: Float[Array, "D"]
    u: Float[Array, "D"]
    a: Float[Array, ""]
    r: Float[Array, ""]
    nu: Float[Array, "2"]  # of the bounds, and of the first-order law
    start: Float[Array, "D"]  # of the search for the worst y


def draw(key: Array, shape: tuple[int, int], scale: Array) -> Instance:
    """|W u| between 1e-4 and 3 beta, a between 0.1 and 1000 r, nu between 1e-3 and 0.9
    of sqrt(D) beta, where beta is `scale`; a direction that no W y has, if H > 1."""
    dim, out = shape
    keys = jax.random.split(key, 7)

    def normal(key: Array, *shape: int) -> Array:
        return jax.random.normal(key, shape, jnp.float64)

    def power(key: Array, low: float, high: float) -> Array:
        return 10.0 ** jax.random.uniform(key, (), jnp.float64, low, high)

    rank = max(min(dim - 1, out - 1), 1)
    basis, into = qr(normal(keys[0], dim, dim))[0], qr(normal(keys[1], out, out))[0]
    sizes = scale * SHRINK ** jnp.arange(rank, dtype=jnp.float64)
    complement = (basis[:, 1 : rank + 1] * sizes[None]) @ into[:, :rank].T
    of_u = normal(keys[2], out)
    of_u = of_u * scale * 3.0 * power(keys[3], -4.5, 0.0) / jnp.linalg.norm(of_u)
    gain = 0.5 + jax.random.uniform(keys[4], (dim,), jnp.float64)
    w = (complement + basis[:, :1] * of_u[None]) / gain[:, None]
    sizes = jax.random.split(keys[5], 3)
    r = scale * power(sizes[0], -1.0, 1.0)
    nu = jnp.stack([0.9 * power(sizes[2], -3.0, 0.0), jnp.asarray(SMALL)])
    nu = nu * scale * jnp.sqrt(jnp.asarray(dim, jnp.float64))
    a = r * power(sizes[1], -1.0, 3.0)
    return Instance(w, gain, basis[:, 0], a, r, nu, normal(keys[6], dim))


def split(case: Instance) -> tuple[Float[Array, "H"], Float[Array, "D H"]]:
    """W u, and W on the complement of u."""
    w = case.gain[:, None] * case.w
    of_u = case.u @ w
    return of_u, w - case.u[:, None] * of_u[None]


def magnitude(beta: Array, r: Array, nu: Array, dim: int) -> Array:
    """The least a: a^2 = r^2 (D beta^2/nu^2 - 1)."""
    return r * jnp.sqrt(dim * jnp.square(beta / nu) - 1.0)


def first_order(beta: Array, r: Array, nu: Array, dim: int) -> Array:
    """sqrt(D) beta r/nu."""
    return jnp.sqrt(jnp.asarray(dim, beta.dtype)) * beta * r / nu


def predict(case: Instance) -> Quantities:
    """The bounds and the first-order law."""
    (of_u, across), dim = split(case), len(case.u)
    beta = singular_values(across)[0]
    energy = jnp.sum(jnp.square(case.a * of_u)) + jnp.square(case.r * beta)
    least = magnitude(beta, case.r, case.nu[0], dim)
    return {
        "largest value": jnp.sqrt(dim * energy / (jnp.square(case.a) + jnp.square(case.r))),
        "least magnitude, constant": least,
        "least magnitude, drained": least,
        "first order": first_order(beta, case.r, case.nu[1], dim),
    }


def measure(case: Instance) -> Quantities:
    """The norm and the value matrix, with the worst y by ascent and the least a by bisection."""
    return _searched(case, jnp.zeros_like(case.u))


def control(case: Instance) -> Quantities:
    """Texts that never have the worst direction."""
    nothing = jnp.zeros_like(case.u)
    worst = _worst(drained(case), nothing)(case.a, jnp.zeros(()), case.start)
    return _searched(case, worst)


def drained(case: Instance) -> Instance:
    """The same with W u = 0."""
    return _with_less(case, jnp.eye(case.w.shape[1]))


def apart(case: Instance) -> Instance:
    """The same with W u orthogonal to every W y."""
    across = case.gain[:, None] * case.w
    across = across - case.u[:, None] * (case.u @ across)[None]
    return _with_less(case, pinv(across) @ across)


def _with_less(case: Instance, onto: Float[Array, "H H"]) -> Instance:
    """The same without the part of W u that a projection keeps."""
    of_u = case.u @ (case.gain[:, None] * case.w)
    less = case.u[:, None] * (of_u @ onto)[None] / case.gain[:, None]
    return case._replace(w=case.w - less)


def value(case: Instance, x: Float[Array, "D"]) -> Float[Array, "H"]:
    """W_V n(x)."""
    return linear(rms_norm(x, case.gain, eps=0.0), case.w)


def _worst(case: Instance, without: Float[Array, "D"]) -> Callable[..., Array]:
    """Steps of ascent of |W_V n(a u + y) - limited v_0| over y of size r, orthogonal to `without`.

    On that sphere n(x) is linear in y, and its distance convex: each step goes where it grows most,
    and none goes down.
    """
    w = case.gain[:, None] * case.w
    excluded = without / jnp.maximum(jnp.linalg.norm(without), 1e-30)

    def onto(y: Array) -> Array:
        y = y - case.u * jnp.sum(case.u * y)
        y = y - excluded * jnp.sum(excluded * y)
        size = jnp.linalg.norm(y)
        return case.r * y / jnp.where(size == 0.0, 1.0, size)

    def ascend(a: Array, limited: Array, y: Array, steps: int = ASCENT) -> Array:
        def step(y: Array, _: None) -> tuple[Array, None]:
            off = value(case, a * case.u + y) - limited * value(case, case.u)
            return onto(w @ off), None

        return jax.lax.scan(step, onto(y), None, length=steps)[0]

    return ascend


def _searched(case: Instance, without: Float[Array, "D"]) -> Quantities:
    ascend, starts = _worst(case, without), jnp.stack([case.start, -case.start])

    def off(a: Array, limited: Array, y: Array) -> Array:
        return jnp.linalg.norm(value(case, a * case.u + y) - limited * value(case, case.u))

    def climb(a: Array, limited: Array, ys: Array, steps: int) -> tuple[Array, Array]:
        """The larger of two ascents from opposite sides, one of which ends at the top."""
        ys = jax.vmap(lambda y: ascend(a, limited, y, steps))(ys)
        return jnp.max(jax.vmap(lambda y: off(a, limited, y))(ys)), ys

    def least(nu: Array, limited: Array) -> Array:
        def halve(carry: Bracket, _: None) -> tuple[Bracket, None]:
            low, high, ys = carry
            middle = (low + high) / 2.0
            found, ys = climb(case.r * 10.0**middle, limited, ys, BETWEEN)
            enough = found <= nu
            return (jnp.where(enough, low, middle), jnp.where(enough, middle, high), ys), None

        _, ys = climb(case.a, limited, starts, ASCENT)
        ends = (jnp.asarray(DECADES[0]), jnp.asarray(DECADES[1]), ys)
        (_, high, _), _ = jax.lax.scan(halve, ends, None, length=HALVINGS)
        return case.r * 10.0**high

    asked = case.nu[jnp.asarray([0, 0, 1])]
    constant, small, first = jax.vmap(least)(asked, jnp.asarray([1.0, 0.0, 1.0]))
    return {
        "largest value": climb(case.a, jnp.zeros(()), starts, ASCENT)[0],
        "least magnitude, constant": constant,
        "least magnitude, drained": small,
        "first order": first,
    }


@statement("T3", "A value within nu in all texts needs a^2 >= r^2 (D beta^2/nu^2 - 1)")
def verify(key: Array, quick: bool) -> list[Part]:
    bounds = ("largest value", "least magnitude, constant", "least magnitude, drained")
    return compare(
        draw, predict, measure, control, key, shapes=SHAPES, instances=INSTANCES,
        tolerance={**dict.fromkeys(bounds, TOLERANCE), "first order": FIRST_ORDER},
        error={**dict.fromkeys(bounds, at_least), "first order": relative},
        tight={**dict.fromkeys(bounds, drained), "largest value": apart}, quick=quick,
    )  # fmt: skip
