"""C2. A sink's logit grows like the logarithm of time; under Adam it grows linearly.

Statement. One query sees a sink with v_0 = 0 and another key with a value of size m;
p = sigma(Delta) is the sink's share, Delta = s_0 - s_R the parameter, o = m (1 - p). Gradient flow:

    L = o^2/2:   dDelta/dt = m^2 p (1 - p)^2,   m^2 t = [exp(2x)/2 + 3 exp(x) + 3 x - exp(-x)],
    L = c o:     dDelta/dt = c m p (1 - p),     c m t = [exp(x) + 2 x - exp(-x)],

the brackets taken from x = Delta(0) to x = Delta(t). So Delta ~ log(2 m^2 t)/2 in the first case
and log(c m t) in the second. If both logits move, t counts twice.

Under Adam with decay rates b1, b2 and no eps, Delta grows linearly where it is large and the
gradient is C exp(-a Delta), a = 2 or 1: by rho a step, the root in 0 < rho < -log(b2)/(2a) of

    rho = lr (1 - b1)/(1 - b1 exp(a rho)) sqrt((1 - b2 exp(2 a rho))/(1 - b2)).

For lr much smaller than (1 - b2)/(2a), rho is lr; a larger lr does not help: rho < -log(b2)/(2a),
because the second moment cannot decay faster than b2^n.

Assumptions. Delta is a parameter of its own, not a product of two; scalar output; for Adam,
gradients above its eps and rho < -log(b1)/a.

Proof. Chain rule, p' = p (1 - p); separate the variables. For Adam put Delta_n = rho n into the
moments, geometric series which are C exp(-a rho n) times the two factors; bias corrections tend to
one.

Source: the dynamics of Guo et al. 2024 (arXiv:2410.13835), section 4; the rest is this package's.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array
from scipy.integrate import solve_ivp
from scipy.optimize import brentq

from sysout_jax.core.primitives import softmax_weights
from theory.check import Part, statement
from theory.descent import descend
from theory.once import jit_once

EXPONENT = {"square": 2.0, "linear": 1.0}  # a: the gradient falls like exp(-a Delta)
SIZES = (0.5, 1.0, 2.0)  # m, and c = 1
SLOPE = 0.02  # stated with the claim
RATE = 1e-4  # of Adam: twenty memories of the second moment leave e^-20 of the start
# Of gradient descent: Delta moves by at most LR m^2 4/27 = 0.6 in a step, by 1e-3 after 1e3.
LR, STEPS, LOOKS = 1.0, 200_000, 100
ADAM = ((1e-5, 0.999), (1e-3, 0.999), (1e-1, 0.999), (1e-3, 0.95), (1e-2, 0.95))  # lr, b2


def loss(kind: str, m: Array, delta: Array) -> Array:
    """o^2/2 or o, of softmax attention to a sink at logit delta and a key at logit 0."""
    logits = jnp.stack([delta, jnp.zeros_like(delta)])[None, None]
    weights, _ = softmax_weights(logits, jnp.ones((1, 2), bool))
    o = weights[0, 0] @ jnp.stack([jnp.zeros_like(m), m])
    return jnp.square(o) / 2.0 if kind == "square" else o


def predict(kind: str, m: float, delta: float) -> float:
    """The time, times no rate, at which the gap is `delta`: the bracket over m^2 or m."""
    if kind == "square":
        bracket = math.exp(2 * delta) / 2 + 3 * math.exp(delta) + 3 * delta - math.exp(-delta)
        return bracket / m**2
    return (math.exp(delta) + 2 * delta - math.exp(-delta)) / m


def adam_rate(kind: str, lr: float, b1: float, b2: float) -> float:
    """The root rho: growth of Delta in each step of Adam."""
    a = EXPONENT[kind]
    highest = -math.log(b2) / (2 * a)

    def excess(rho: float) -> float:
        first = (1 - b1) / (1 - b1 * math.exp(a * rho))
        second = max(1 - b2 * math.exp(2 * a * rho), 0.0) / (1 - b2)
        return rho - lr * first * math.sqrt(second)

    return brentq(excess, 0.0, highest, xtol=1e-18)


def slopes_against_log(time: np.ndarray, gaps: np.ndarray) -> np.ndarray:
    """Least-squares slopes of Delta against log t over the last nine tenths of the times."""
    later = time > time[-1] / 10.0
    return np.polyfit(np.log(time[later]), gaps[:, later].T, 1)[0]


def measure(
    kind: str, gap: Callable[[Array], Array] = lambda theta: theta
) -> tuple[np.ndarray, np.ndarray]:
    """Gaps under gradient descent by time, [looks] and [sizes, looks], from autodiff of the head.

    Args:
      kind: of the loss.
      gap: Delta as a function of the parameter that descends from 1.
    """

    def one(m: Array) -> Array:
        def of(theta: Array, step: Array) -> Array:
            return loss(kind, m, gap(theta))

        every = STEPS // LOOKS
        return descend(of, jnp.ones(()), optax.sgd(LR), STEPS, watch=gap, every=every)[1]

    gaps = jit_once(jax.vmap(one))(jnp.asarray(SIZES))
    return LR * (STEPS // LOOKS) * np.arange(1.0, LOOKS + 1), np.asarray(gaps)


def control(kind: str) -> tuple[np.ndarray, np.ndarray]:
    """Delta is a product of two equal parameters, as of a query and a key: it grows faster."""
    return measure(kind, lambda theta: theta * theta / 2.0)


def measure_adam(kind: str, b2: float, lrs: tuple[float, ...], eps: float) -> Array:
    """Growth in each step over the second half of a run of Adam from a gap of 8.

    The run is 40 times the memory of the second moment, 1/(1 - b2): it forgets the start and stays
    far from the gradients of 1e-150 whose squares are zero.
    """
    steps = 2 * round(20 / (1 - b2))

    def one(lr: Array) -> Array:
        def of(delta: Array, step: Array) -> Array:
            return loss(kind, jnp.ones(()), delta)

        optimizer = optax.adam(lr, b2=b2, eps=eps)
        start = jnp.asarray(8.0)
        gaps = descend(of, start, optimizer, steps, watch=lambda d: d, every=steps // 2)[1]
        return (gaps[1] - gaps[0]) / (steps // 2)

    return jit_once(jax.vmap(one))(jnp.asarray(lrs))


def _integrated(kind: str) -> Part:
    """The implicit solution against an integrator; without the factor p as the control."""
    worst, broken = 0.0, 0.0
    for m in SIZES:
        for without_p in (False, True):

            def speed(
                t: float, x: np.ndarray, m: float = m, without_p: bool = without_p
            ) -> np.ndarray:
                p = 1.0 / (1.0 + np.exp(-x))
                field = m**2 * (1 - p) ** 2 if kind == "square" else m * (1 - p)
                return field if without_p else field * p

            times = np.logspace(-2, 5, 50)
            found = solve_ivp(speed, (0.0, 1e5), [0.0], "DOP853", times, rtol=1e-12, atol=1e-13)
            implied = [predict(kind, m, x) - predict(kind, m, 0.0) for x in found.y[0]]
            error = float(np.max(np.abs(np.array(implied) - times) / times))
            broken, worst = (
                (max(broken, error), worst) if without_p else (broken, max(worst, error))
            )
    # The integrator's 1e-12 in each of some 1e3 steps, on Delta; time is exp(2 Delta).
    return Part(f"implicit solution, {kind}", 50 * len(SIZES), worst, 1e-8, broken)


def _grown(kind: str) -> Part:
    """The slope against log t, 1/2 or 1, within the stated 2%."""
    times, gaps = measure(kind)
    predicted = 1.0 / EXPONENT[kind]
    slopes, broken = (slopes_against_log(times, x) for x in (gaps, control(kind)[1]))
    data = {"time": times.tolist(), "sizes": SIZES, "gap": gaps.tolist(), "slopes": slopes.tolist()}
    found, of_control = (float(np.max(np.abs(x / predicted - 1.0))) for x in (slopes, broken))
    return Part(f"slope, {kind}", len(SIZES), found, SLOPE, of_control, data)


def _under_adam(kind: str) -> Part:
    """Growth in each step, relative to rho; with a large eps as the control."""
    worst, broken, rows = 0.0, math.inf, []
    for b2 in sorted({b2 for _, b2 in ADAM}):
        lrs = tuple(lr for lr, each in ADAM if each == b2)
        found = measure_adam(kind, b2, lrs, eps=1e-200)
        stopped = measure_adam(kind, b2, lrs, eps=1e-2)
        for lr, rate, with_eps in zip(lrs, found.tolist(), stopped.tolist(), strict=True):
            rho = adam_rate(kind, lr, 0.9, b2)
            worst = float(np.maximum(worst, abs(rate / rho - 1)))
            broken = float(np.minimum(broken, abs(with_eps / rho - 1)))
            rows.append({"lr": lr, "b2": b2, "predicted": rho, "measured": rate})
    return Part(f"Adam, {kind}", len(ADAM), worst, RATE, broken, {"rates": rows})


@statement("C2", "The sink's logit gap grows like log(t)/2, or log t; linearly in Adam's steps")
def verify(key: Array, quick: bool) -> list[Part]:
    del key, quick  # nothing is drawn, and three seconds are quick
    return [
        part for kind in EXPONENT for part in (_integrated(kind), _grown(kind), _under_adam(kind))
    ]
