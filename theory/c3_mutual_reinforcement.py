"""C3. Attention drains the sink's value, and the drained value attracts attention.

Statement. Contexts are a sink with value v_0 and a token with a random value v_R, E v_R = mu and
E|v_R|^2 = m^2. With the loss E|o|^2/2, o = p v_0 + (1 - p) v_R, p = sigma(Delta), gradient flow is

    dv_0/dt   = -p (p v_0 + (1 - p) mu),
    dDelta/dt = p (1 - p) [(1 - p) m^2 - p |v_0|^2 - (1 - 2p) <v_0, mu>].

Where mu = 0 this is drain: dv_0/dt = -p^2 v_0. The more the sink is attended to, the faster its
value decays; and once |v_0|^2 < m^2 (1 - p)/p attention moves to it. Every trajectory ends at v_0 =
0, p = 1, slower and slower (C2).

Where mu is not zero the value of the sink follows a bias, the best one at each p:

    v_0 = -((1 - p)/p) mu, and there dDelta/dt = p (1 - p)^2 (m^2 - |mu|^2):

only what varies between contexts drives the sink. As p tends to 1 this bias vanishes too, but not
against the odds of the sink: (p/(1 - p)) |v_0| is |mu|, and T4's w |mu|/|o^R|. Where all values of
R are the same, m^2 = |mu|^2 and no range is needed: a constant does it. One direction that they
share is not enough: of v_R = (1, 1) and (1, -1), |mu|^2 = 1 and m^2 = 2.

Assumptions. v_R is independent of Delta and does not move: it is needed elsewhere.

Proof. E|o|^2 = p^2 |v_0|^2 + 2p (1 - p) <v_0, mu> + (1 - p)^2 m^2; differentiate. The first is zero
at the stated v_0, which makes the second bracket (1 - p) (m^2 - |mu|^2).

Source: the mechanism of Guo et al. 2024 (arXiv:2410.13835), section 4, with its equations, mu = 0.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from scipy.integrate import solve_ivp

from sysout_jax.core.primitives import softmax_weights
from theory.check import Part, Quantities, absolute, compare, statement
from theory.descent import descend
from theory.once import jit_once

SHAPES = ((2, 1), (2, 3), (16, 5))  # (contexts, H)
RATE, STEPS, LOOKS = 0.01, 20_000, 40  # of the trained head
TRAINED = 0.01  # Euler's method is of first order: its error is of the size of its step


class Instance(NamedTuple):
    """A gap, a sink's value, the other token's value in every context, and a mean to give it."""

    delta: Float[Array, ""]
    sink: Float[Array, "H"]
    rest: Float[Array, "C H"]
    mean: Float[Array, "H"]


def draw(key: Array, shape: tuple[int, int], scale: Array) -> Instance:
    """Values of size `scale` whose mean over contexts is zero; gaps between about -5 and 5."""
    keys = jax.random.split(key, 4)
    rest = jax.random.normal(keys[0], shape, jnp.float64)
    return Instance(
        2.0 * jax.random.normal(keys[1], (), jnp.float64),
        scale * jax.random.normal(keys[2], shape[1:], jnp.float64),
        scale * (rest - jnp.mean(rest, axis=0, keepdims=True)),
        scale * jax.random.normal(keys[3], shape[1:], jnp.float64),
    )


def field(delta: Any, sink_square: Any, m_square: Any) -> tuple[Any, Any]:
    """Where mu = 0: dDelta/dt, and the rate -d(log v_0)/dt at which the sink's value decays."""
    p, rest = 1.0 / (1.0 + np.e**-delta), 1.0 / (1.0 + np.e**delta)
    return p * rest * (rest * m_square - p * sink_square), p * p


def predict(case: Instance) -> Quantities:
    """The right-hand sides without and with a mean; what the best v_0 adds to the output, p v_0,
    and the gap's speed there."""
    spread = jnp.mean(jnp.sum(jnp.square(case.rest), axis=-1))
    sink_square, mean_square = jnp.sum(jnp.square(case.sink)), jnp.sum(jnp.square(case.mean))
    gap, decay = field(case.delta, sink_square, spread)
    p, rest = jax.nn.sigmoid(case.delta), jax.nn.sigmoid(-case.delta)
    m_square = spread + mean_square
    mixed = (1.0 - 2.0 * p) * case.sink @ case.mean
    size = jnp.sqrt(m_square + sink_square)
    return {
        "gap": gap / jnp.square(size),
        "value": -decay * case.sink / size,
        "gap, with a mean": p * rest * (rest * m_square - p * sink_square - mixed) / size**2,
        "value, with a mean": -p * (p * case.sink + rest * case.mean) / size,
        "bias": -rest * case.mean / size,
        "gap at the bias": p * rest**2 * spread / jnp.square(size),
    }


def loss(delta: Array, sink: Array, rest: Array) -> Array:
    """Mean over contexts of |o|^2/2 of softmax attention to the sink and the context's token."""
    logits = jnp.stack([delta, jnp.zeros_like(delta)])[None, None]
    weights = softmax_weights(logits, jnp.ones((1, 2), bool))[0][0, 0]
    o = weights[0] * sink[None] + weights[1] * rest
    return jnp.mean(jnp.sum(jnp.square(o), axis=-1)) / 2.0


def measure(case: Instance) -> Quantities:
    """Minus the gradients, by autodiff; the minimum over v_0, by a Newton step from zero."""
    return _flow(case, case.rest, case.rest + case.mean[None], 1.0)


def control(case: Instance) -> Quantities:
    """Values whose mean over contexts is not the one that is stated, and a sink without a bias."""
    return _flow(case, case.rest + case.rest[:1], case.rest - case.mean[None], 0.0)


def _flow(case: Instance, rest: Array, with_mean: Array, share: float) -> Quantities:
    down = jax.grad(loss, argnums=(0, 1))
    zero = jnp.zeros_like(case.sink)
    curvature = jax.hessian(loss, argnums=1)(case.delta, zero, with_mean)
    # p^2 I, as the loss is p^2 |v_0|^2/2 and what is linear in v_0
    bias = -share * down(case.delta, zero, with_mean)[1] / jnp.diagonal(curvature)
    drained, biased, at_bias = (
        down(case.delta, sink, values)
        for sink, values in ((case.sink, rest), (case.sink, with_mean), (bias, with_mean))
    )
    square = jnp.mean(jnp.sum(jnp.square(case.rest), axis=-1)) + sum(
        jnp.sum(jnp.square(x)) for x in (case.mean, case.sink)
    )
    return {
        "gap": -drained[0] / square,
        "value": -drained[1] / jnp.sqrt(square),
        "gap, with a mean": -biased[0] / square,
        "value, with a mean": -biased[1] / jnp.sqrt(square),
        "bias": jax.nn.sigmoid(case.delta) * bias / jnp.sqrt(square),
        "gap at the bias": -at_bias[0] / square,
    }


def integrate(delta: float, sink: float, m: float, times: np.ndarray) -> np.ndarray:
    """Solve the two equations for Delta and |v_0|: [2, times]."""

    def speed(t: float, x: np.ndarray) -> tuple[float, float]:
        gap, decay = field(x[0], x[1] ** 2, m**2)
        return gap, -decay * x[1]

    span = (0.0, float(times[-1]))
    return solve_ivp(speed, span, [delta, sink], "DOP853", times, rtol=1e-10, atol=1e-12).y


def trained(sink: Array, rest: Array, start: float) -> np.ndarray:
    """Delta and |v_0| of a head trained on the contexts by gradient descent: [2, looks]."""

    def of(params: tuple[Array, Array], step: Array) -> Array:
        return loss(*params, rest)

    def look(params: tuple[Array, Array]) -> Array:
        return jnp.stack([params[0], jnp.linalg.norm(params[1])])

    run = jit_once(
        lambda params: descend(
            of, params, optax.sgd(RATE), STEPS, watch=look, every=STEPS // LOOKS
        )[1]
    )
    return np.asarray(run((jnp.asarray(start), sink))).T


def _trained_part(key: Array) -> Part:
    """The integrated equations against training; the control has contexts with a common mean."""
    case = draw(key, (16, 5), jnp.asarray(1.0))
    rest = case.rest / jnp.sqrt(jnp.mean(jnp.sum(jnp.square(case.rest), axis=-1)))
    sink = 2.0 * case.sink / jnp.linalg.norm(case.sink)
    times = RATE * (STEPS // LOOKS) * np.arange(1.0, LOOKS + 1)
    solved = integrate(0.0, 2.0, 1.0, times)
    found = trained(sink, rest, 0.0)
    broken = trained(sink, rest + rest[:1], 0.0)
    errors = [float(np.max(np.abs(each - solved))) for each in (found, broken)]
    data = {"time": times.tolist(), "trained": found.tolist(), "integrated": solved.tolist()}
    return Part("trained head", LOOKS, errors[0], TRAINED, errors[1], data | _portrait())


def _portrait() -> dict[str, Any]:
    """Trajectories of (Delta, |v_0|) from starts around, for the phase portrait, m = 1."""
    times = np.concatenate([[0.0], np.logspace(-2, 3, 120)])
    starts = [(delta, sink) for delta in (-3.0, -1.5, 0.0, 1.5, 3.0) for sink in (0.6, 1.3, 2.0)]
    return {"portrait": [integrate(*start, 1.0, times).tolist() for start in starts]}


@statement("C3", "Attention drains the sink's value and the drained value attracts attention")
def verify(key: Array, quick: bool) -> list[Part]:
    of_field, of_training = jax.random.split(key)
    # Absolute, in units of the squared values and of their size: the gap's is a difference.
    parts = compare(
        draw, predict, measure, control, of_field, shapes=SHAPES, error=absolute, quick=quick
    )
    return [*parts, _trained_part(of_training)]
