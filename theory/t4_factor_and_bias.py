"""T4. A sink is a factor and a bias; when the factor alone stands for it.

Statement. Let the key 0 be the sink, with any value v_0. Then o_i = S_i o^R_i + (1 - S_i) v_0, and

    in the sink's place                    what is left of o_i
    nothing, rows renormalised             (1 - S_i) (v_0 - o^R_i)
    the factor, S_i o^R_i                  (1 - S_i) v_0
    the mean factor and bias               (S_i - E S) (o^R_i - v_0)
    the factor and the best constant bias  (E S - S_i) v_0, the bias being E (1 - S) v_0

So over queries the factor alone leaves a mean square of (E (1 - S))^2 |v_0|^2 + Var(S) |v_0|^2, and
a constant bias takes away all but the last. With w = (1 - S_i)/S_i |v_0|/|o^R_i|,

    |o_i| >= S_i |o^R_i| |1 - w|, hence |o_i - S_i o^R_i| / |o_i| <= w/|1 - w|,

with equality where v_0 is opposed to o^R_i. So a drained value is not enough: the drain
|v_0|/|o^R_i| has to be small against the odds S_i/(1 - S_i). A sink that takes 97% of the mass with
a value of 0.19 of the others' output has w = 6, and is mostly a bias.

In SmolLM2-135M, from layer 12 on, on 64 texts of books, the factor alone costs 0.53 nats and the
factor with a constant bias 0.05, of the 0.75 that nothing in the sink's place costs.

Assumptions. Softmax. v_0 is the same for all queries, as it is for the first token of a text (T1).

Proof. A1 with O = {0}, without its corollary. Subtract each line. E |(1 - S_i) v_0 - b|^2 is least
at its mean. The triangle inequality.

Source: this package; the factor alone is what An et al. 2025 (arXiv:2502.06415) read in a sink.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.primitives import Heads
from theory.check import Part, Quantities, absolute, at_least, compare, statement
from theory.decompositions import pinv

SHAPES = ((1, 1, 1), (3, 2, 2), (7, 5, 3), (13, 11, 4))  # (queries, keys of the rest, H)
TOLERANCE = 1e-11  # of logits up to 5e3, and of outputs in which both parts nearly cancel


class Instance(NamedTuple):
    """Queries that all see one sink and the same rest, with values of any size."""

    q: Float[Array, "T H"]
    k: Float[Array, "S H"]  # the sink's first
    v: Float[Array, "S H"]


def draw(key: Array, shape: tuple[int, int, int], scale: Array) -> Instance:
    """Logits of size `scale`; a sink's value of 1e-3 to 1 of the size of the others'."""
    queries, rest, dim = shape
    keys = jax.random.split(key, 4)
    q, k = (
        jnp.sqrt(scale) * jax.random.normal(key, (count, dim), jnp.float64)
        for key, count in zip(keys, (queries, rest + 1), strict=False)
    )
    v = scale * jax.random.normal(keys[2], (rest + 1, dim), jnp.float64)
    drain = 10.0 ** jax.random.uniform(keys[3], (), jnp.float64, -3.0, 0.0)
    return Instance(q, k, v.at[0].multiply(drain))


def predict(case: Instance) -> Quantities:
    """What is left of the output, in units of the largest value."""
    dim, unit = case.q.shape[-1], _longest(case)
    s = case.q @ case.k.T / jnp.sqrt(jnp.asarray(dim, case.q.dtype))
    gap = jax.nn.logsumexp(s[:, 1:], axis=1) - s[:, 0]
    factor, mass = jax.nn.sigmoid(gap), jax.nn.sigmoid(-gap)
    rest = jax.nn.softmax(s[:, 1:], axis=1) @ case.v[1:]
    sink = case.v[:1]
    of_rest = factor[0] * jnp.linalg.norm(rest[0])
    of_sink = mass[0] * jnp.linalg.norm(sink)
    return {
        "nothing": mass[:, None] * (sink - rest) / unit,
        "factor": mass[:, None] * sink / unit,
        "means": (factor - jnp.mean(factor))[:, None] * (rest - sink) / unit,
        "factor and bias": jnp.var(factor) * jnp.sum(jnp.square(sink / unit)),
        "output": jnp.abs(of_rest - of_sink) / unit,
    }


def _longest(case: Instance) -> Array:
    return jnp.max(jnp.linalg.norm(case.v, axis=-1))


def measure(case: Instance) -> Quantities:
    """Attention with the sink and without it; the best bias by least squares."""
    return _left(case, "softmax")


def control(case: Instance) -> Quantities:
    """Sigmoid weights: what the sink takes is not taken from the rest."""
    return _left(case, "sigmoid")


def opposed(case: Instance) -> Instance:
    """The same with the sink's value opposed to the first query's output over the rest."""
    away = -_attend(case, "softmax", _rest(case))[0][0]
    size = jnp.linalg.norm(case.v[0]) / jnp.linalg.norm(away)
    return case._replace(v=case.v.at[0].set(size * away))


def _rest(case: Instance) -> Bool[Array, "S"]:
    return jnp.arange(len(case.k)) > 0


def _attend(
    case: Instance, variant: str, visible: Bool[Array, "S"]
) -> tuple[Float[Array, "T H"], Float[Array, "T S"]]:
    """Outputs and weights of a variant over some of the keys."""
    queries = len(case.q)
    nothing = jnp.zeros((queries + len(case.k), 1))
    heads = Heads(
        case.q[:, None], case.k[:, None], case.v[:, None], nothing[:queries], nothing[queries:],
        jnp.broadcast_to(visible[None], (queries, len(visible))),
    )  # fmt: skip
    mixed = VARIANTS[variant](heads, {})
    return mixed.out[:, 0], mixed.weights[0]


def _left(case: Instance, variant: str) -> Quantities:
    out, weights = _attend(case, variant, jnp.full(len(case.k), True))
    rest, _ = _attend(case, variant, _rest(case))
    factor = jnp.sum(weights[:, 1:], axis=1)
    mean, unit = jnp.mean(factor), _longest(case)
    by_factor = out - factor[:, None] * rest
    ones = jnp.ones((len(out), 1))
    by_bias = by_factor - ones @ (pinv(ones) @ by_factor)
    return {
        "nothing": (out - rest) / unit,
        "factor": by_factor / unit,
        "means": (out - mean * rest - (1.0 - mean) * case.v[:1]) / unit,
        "factor and bias": jnp.mean(jnp.sum(jnp.square(by_bias / unit), axis=1)),
        "output": jnp.linalg.norm(out[0]) / unit,
    }


@statement("T4", "A sink is a factor and a bias; the factor alone leaves (1 - S) v_0")
def verify(key: Array, quick: bool) -> list[Part]:
    exact = dict.fromkeys(("nothing", "factor", "means", "factor and bias"), absolute)
    return compare(
        draw, predict, measure, control, key, shapes=SHAPES, tolerance=TOLERANCE,
        error={**exact, "output": at_least}, tight={"output": opposed}, quick=quick,
    )  # fmt: skip
