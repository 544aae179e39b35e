"""B2. The range that an eps-update requires of the logits.

Statement. Let <u, v_j> >= m > 0 on R for a unit vector u, |v_j| <= nu on O, |o| <= eps < m. Then

    alpha = sum_{j in O} p_j >= (m - eps)/(m + nu),   LSE_O - LSE_R >= log((m - eps)/(nu + eps)).

With one sink, O = {0} and |R| = T - 1,

    s_0 - mean_R(s) >= log(T - 1) + log((m - eps)/(nu + eps)),
    |q| |k_0 - mean_R k| >= sqrt(H) (log(T - 1) + log((m - eps)/(nu + eps))).

Equality holds where v_j = m u and s_j is the same on R, v_0 = -nu u, and k_0 - mean_R k is parallel
to q. An eps-update needs logits that grow like log T + log 1/eps, and with nu = 0 no finite ones
reach eps = 0.

Assumptions. Softmax weights; in each context values of R on one side, as for a head that must write
elsewhere. The direction u may be another in every context. A constant value of the sink removes
what the contexts' outputs have in common (C3), if nu allows it; what varies needs the range.

Proof. eps >= <u, o> >= (1 - alpha) m - alpha nu. The second is log(alpha/(1 - alpha)), by A1.
Jensen: LSE_R >= mean_R(s) + log(T - 1). Cauchy-Schwarz on q.(k_0 - mean_R k) = sqrt(H) (s_0 -
mean_R s).

Source: this package. The problem is that of Bondarenko et al. 2023 (arXiv:2306.12929), section 3.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sysout_jax.core.primitives import softmax_weights
from theory.check import Part, Quantities, at_least, compare, statement

SHAPES = ((2, 1), (3, 2), (7, 5), (31, 8))  # (T, H)
# The bisection ends at the rounding of |o|, 1e-16 m against eps >= 1e-3 m; of logits up to 5e3.
TOLERANCE = 1e-11
WIDEST = 60.0  # nats of LSE_O - LSE_R, more than eps = 1e-3 m requires


class Instance(NamedTuple):
    """One query and T keys; values of the rest with <u, v> >= m, of outliers with |v| <= nu < eps.

    The first key is an outlier, and it alone in the statements on one sink.
    """

    q: Float[Array, "H"]
    k: Float[Array, "T H"]
    rest: Float[Array, "T H"]
    outlying: Float[Array, "T H"]
    outliers: Bool[Array, "T"]
    u: Float[Array, "H"]
    m: Float[Array, ""]
    nu: Float[Array, ""]
    eps: Float[Array, ""]


def draw(key: Array, shape: tuple[int, int], scale: Array) -> Instance:
    """Logits and values of size `scale`; eps between 1e-3 m and 0.9 m, nu below eps."""
    length, dim = shape
    keys = jax.random.split(key, 10)

    def unit(key: Array, *shape: int) -> Array:
        x = jax.random.normal(key, shape, jnp.float64)
        return x / jnp.linalg.norm(x, axis=-1, keepdims=True)

    def uniform(key: Array, *shape: int) -> Array:
        return jax.random.uniform(key, shape, jnp.float64)

    u = unit(keys[0], dim)
    m = scale * (0.1 + uniform(keys[1]))
    noise = scale * jax.random.normal(keys[2], (length, dim), jnp.float64)
    across = noise - (noise @ u)[:, None] * u[None]
    along = m * (1.0 + uniform(keys[3], length))
    eps = m * 0.9 * 10.0 ** (-3.0 * uniform(keys[4]))
    nu = eps * uniform(keys[5])
    return Instance(
        jnp.sqrt(scale) * jax.random.normal(keys[6], (dim,), jnp.float64),
        jnp.sqrt(scale) * jax.random.normal(keys[7], (length, dim), jnp.float64),
        along[:, None] * u[None] + across,
        nu * unit(keys[8], length, dim),
        (uniform(keys[9], length) < 0.4).at[0].set(True).at[-1].set(False),
        u, m, nu, eps,
    )  # fmt: skip


def required(m: Array, nu: Array, eps: Array) -> Array:
    """log((m - eps)/(nu + eps)), in nats."""
    return jnp.log((m - eps) / (nu + eps))


def predict(case: Instance) -> Quantities:
    """The four bounds."""
    gap = required(case.m, case.nu, case.eps)
    logits = jnp.log(jnp.asarray(len(case.k) - 1.0)) + gap
    root = jnp.sqrt(jnp.asarray(len(case.q), gap.dtype))
    return {
        "mass": (case.m - case.eps) / (case.m + case.nu),
        "gap": gap,
        "one sink": logits,
        "norms": root * logits,
    }


def measure(case: Instance) -> Quantities:
    """The smallest gap at which |o| <= eps, by bisection on the outliers' logits."""
    return _by_bisection(case, lambda s, outliers: case.rest)


def control(case: Instance) -> Quantities:
    """Values of R around zero, as their weights have it, and not on one side; the sink's key is the
    nearest to the mean of the others that has its logit or more."""

    def around_zero(s: Array, outliers: Array) -> Array:
        p = jax.nn.softmax(jnp.where(outliers, -jnp.inf, s))
        return case.rest - (p @ case.rest)[None]

    found = _by_bisection(case, around_zero)
    root = jnp.sqrt(jnp.asarray(len(case.q), case.q.dtype))
    return {**found, "norms": root * jnp.maximum(found["one sink"], 0.0)}


def flat(case: Instance) -> Instance:
    """Equality in all four: v_j = m u and s_j = 0 on R, outliers -nu u, and k_0 = mean_R k but for
    what q has to see; a quarter of eps and nu, so that the range is positive, as norms are."""
    along = case.k @ case.q / jnp.sum(jnp.square(case.q))
    k = case.k - along[:, None] * case.q[None]
    nu = case.nu / 4.0
    return case._replace(
        k=k.at[0].set(jnp.mean(k[1:], axis=0)),
        rest=jnp.broadcast_to(case.m * case.u[None], case.rest.shape),
        outlying=jnp.broadcast_to(-nu * case.u[None], case.outlying.shape),
        nu=nu,
        eps=case.eps / 4.0,
    )


def _by_bisection(case: Instance, rest: Callable[[Array, Array], Array]) -> Quantities:
    """The quantities where R's values are those of `rest`, given logits and outliers."""
    s = case.k @ case.q / jnp.sqrt(jnp.asarray(len(case.q), case.q.dtype))
    first = jnp.arange(len(s)) == 0

    def smallest(s: Array, outliers: Array) -> tuple[Array, Array]:
        """Logits at the smallest gap, and the weights there."""
        v = jnp.where(outliers[:, None], case.outlying, rest(s, outliers))
        level = jnp.max(jnp.where(outliers, -jnp.inf, s)) - jnp.max(
            jnp.where(outliers, s, -jnp.inf)
        )

        def weights(shift: Array) -> Array:
            raised = jnp.where(outliers, s + level + shift, s)
            return softmax_weights(raised[None, None], jnp.ones((1, len(s)), bool))[0][0, 0]

        def halve(bounds: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
            low, high = bounds
            middle = (low + high) / 2.0
            enough = jnp.linalg.norm(weights(middle) @ v) <= case.eps
            return (jnp.where(enough, low, middle), jnp.where(enough, middle, high)), None

        ends = (jnp.full((), -WIDEST), jnp.full((), WIDEST))
        (_, shift), _ = jax.lax.scan(halve, ends, None, length=70)
        return jnp.where(outliers, s + level + shift, s), weights(shift)

    def mean_gap(s: Array) -> Array:
        return s[0] - jnp.sum(jnp.where(first, 0.0, s)) / (len(s) - 1)

    raised, p = smallest(s, case.outliers)
    of_outliers = jnp.where(case.outliers, raised, -jnp.inf)
    of_rest = jnp.where(case.outliers, -jnp.inf, raised)
    one, _ = smallest(s, first)
    # The key that gives the sink this logit: any, since Cauchy-Schwarz bounds them all.
    k_0 = case.k[0] + (one[0] - s[0]) * jnp.sqrt(jnp.asarray(len(case.q), s.dtype)) * case.q / (
        jnp.sum(jnp.square(case.q))
    )
    mean_k = jnp.mean(case.k[1:], axis=0)
    return {
        "mass": jnp.sum(jnp.where(case.outliers, p, 0.0)),
        "gap": jax.nn.logsumexp(of_outliers) - jax.nn.logsumexp(of_rest),
        "one sink": mean_gap(one),
        "norms": jnp.linalg.norm(case.q) * jnp.linalg.norm(k_0 - mean_k),
    }


@statement("B2", "An eps-update needs a logit gap of log(T - 1) + log((m - eps)/(nu + eps))")
def verify(key: Array, quick: bool) -> list[Part]:
    return compare(
        draw,
        predict,
        measure,
        control,
        key,
        shapes=SHAPES,
        tolerance=TOLERANCE,
        error=at_least,
        tight=dict.fromkeys(("mass", "gap", "one sink", "norms"), flat),
        quick=quick,
    )
