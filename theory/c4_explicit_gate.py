"""C4. An explicit gate takes over part of the work, but a sigmoid gate does not bound the logits.

Statement. Let out_i = g_i o_i with a free gate g_i. Then

    dL/ds_ij = g_i p_ij <dL/dout_i, v_j - o_i>:

the pressure on the logits carries the factor g and vanishes as the gate closes.

It does not vanish fast enough to bound them. For the no-op loss out^2/2 of C2 with the gate
g = 2 sigma(z) of context_scale, Delta and z moving at rates kappa_s and kappa_g,

    dDelta/dt = kappa_s g^2 m^2 p (1 - p)^2,   dz/dt = -kappa_g g^2 m^2 (1 - p)^2 (1 - g/2),
    Delta - exp(-Delta) + (kappa_s/kappa_g) (z + exp(z)) is constant, and

    Delta ~ kappa_s/(2 (kappa_s + kappa_g)) log t   instead of   log(t)/2.

A gate that reads z = w.x + b has kappa_g = |x|^2 + 1: in practice it does most of the work. Of any
gate g(z),

    Delta - exp(-Delta) + (kappa_s/kappa_g) int g/g' dz is constant:

the logits are bounded iff that integral converges as the gate closes. It does where the gate
reaches zero (a clipped one), and where it falls as fast as exp(1 - exp(-z)): then it is exp(z).

Assumptions. Gradient flow; the same token can be given its own gate (as x_i tells it apart).

Proof. Chain rule. dDelta/dz = -(kappa_s/kappa_g) p g/g', and dDelta/p is the change of Delta -
exp(-Delta). Of the sigmoid g/g' = 1/(1 - g/2) and 1 - g/2 = sigma(-z); separate the variables. For
large t, log g and log(1 - p) fall at rates in the ratio kappa_g : kappa_s, and their sum like
-log(t)/2.

Source: this package. The claim that the logits stay bounded with the gate is false as it stands.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float
from scipy.integrate import solve_ivp

from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.primitives import open_sigmoid, softmax_weights
from theory import heads
from theory.check import TOLERANCE, Part, Quantities, absolute, compare, statement
from theory.descent import descend
from theory.heads import SHAPES, Head
from theory.once import jit_once

RATES = ((1.0, 1.0), (1.0, 4.0), (4.0, 1.0))  # (kappa_s, kappa_g)
LR, STEPS, LOOKS = 0.02, 50_000, 50
TRAINED = 0.02  # Euler's method is of first order: its error is of the size of its step
SLOPE = 0.02  # as in C2


GATES: Mapping[str, Callable[[Array], Array]] = MappingProxyType(  # 1 at z = 0, all of them
    {
        "none": jnp.ones_like,
        "sigmoid": open_sigmoid,
        "clipped": lambda z: jnp.clip(1.0 + z, 0.0, 2.0),
        "falling": lambda z: jnp.exp(1.0 - jnp.exp(-z)),
    }
)


class Instance(NamedTuple):
    """A head, its gate's parameters, and what its outputs should be."""

    head: Head
    gate: dict[str, Array]
    target: Float[Array, "T N H"]
    size: Float[Array, ""]


def draw(key: Array, shape: tuple[int, int, int, int], scale: Array) -> Instance:
    """A random head with values and targets of size `scale`, gates of any opening."""
    keys = jax.random.split(key, 3)
    head = heads.draw(keys[0], shape, scale)
    gate = heads.parameters(keys[1], VARIANTS["context_scale"], head, jnp.ones(()))
    target = scale * jax.random.normal(keys[2], head.q.shape, jnp.float64)
    return Instance(head, gate, target, scale)


def predict(case: Instance) -> Quantities:
    """The gradient of |out - y|^2/2 with respect to the logits, over the squared size."""
    s = heads.logits(case.head)
    p = jnp.exp(s - heads.lse(s)[..., None])
    v = heads.per_query_head(case.head.v, case.head.q.shape[1])
    o = heads.attend(s, v)
    kernel, bias = case.gate["gate_kernel"], case.gate["gate_bias"]
    g = 2.0 * jax.nn.sigmoid(jnp.einsum("id,dn->in", case.head.x, kernel) + bias[None])
    error = g[..., None] * o - case.target
    away = v[None] - o[:, None]
    pressure = jnp.einsum("in,inh,ijnh->nij", g, error, away)
    return {"pressure": p * pressure / jnp.square(case.size)}


def measure(case: Instance) -> Quantities:
    """Autodiff through the variant."""
    return _pressure(case, case.gate)


def control(case: Instance) -> Quantities:
    """A gate that is open whatever it reads."""
    return _pressure(case, jax.tree.map(jnp.zeros_like, case.gate))


def _pressure(case: Instance, gate: dict[str, Array]) -> Quantities:
    def loss(s: Array) -> Array:
        out = VARIANTS["context_scale"](heads.with_logits(case.head.heads, s), gate).out
        return jnp.sum(jnp.square(out - case.target)) / 2.0

    s = heads.logits(case.head)
    s = jnp.where(jnp.isneginf(s), 0.0, s)
    return {"pressure": jax.grad(loss)(s) / jnp.square(case.size)}


# ------------------------------------------------------------------------- the no-op, m = 1


def field(delta: Any, z: Any, kappa_s: float, kappa_g: float) -> tuple[Any, Any]:
    """dDelta/dt and dz/dt."""
    p, rest = 1.0 / (1.0 + np.exp(-delta)), 1.0 / (1.0 + np.exp(delta))
    g, shut = 2.0 / (1.0 + np.exp(-z)), 1.0 / (1.0 + np.exp(z))
    return kappa_s * (g * rest) ** 2 * p, -kappa_g * (g * rest) ** 2 * shut


def invariant(delta: Any, z: Any, kappa_s: float, kappa_g: float) -> Any:
    """What the gate and the logits leave constant."""
    return delta - np.exp(-delta) + kappa_s / kappa_g * (z + np.exp(z))


def integrate(kappa_s: float, kappa_g: float, times: np.ndarray) -> np.ndarray:
    """Delta and z from zero, [2, times], integrated over log t."""

    def speed(log_t: float, x: np.ndarray) -> np.ndarray:
        return np.exp(log_t) * np.array(field(x[0], x[1], kappa_s, kappa_g))

    begin = np.log(times[0]) - 30.0
    span, at = (begin, np.log(times[-1])), np.log(times)
    return solve_ivp(speed, span, [0.0, 0.0], "LSODA", at, rtol=1e-10, atol=1e-12).y


def trained(gate: str, kappa_s: float, kappa_g: float) -> np.ndarray:
    """Delta and z of a head trained to do nothing by gradient descent, [2, looks]."""

    def scaled(params: Array) -> Array:
        return params * jnp.sqrt(jnp.asarray([kappa_s, kappa_g]))

    def loss(params: Array, step: Array) -> Array:
        delta, z = scaled(params)
        logits = jnp.stack([delta, jnp.zeros_like(delta)])[None, None]
        weights = softmax_weights(logits, jnp.ones((1, 2), bool))[0][0, 0]
        return jnp.square(GATES[gate](z) * weights[1]) / 2.0

    every = STEPS // LOOKS
    run = jit_once(lambda x: descend(loss, x, optax.sgd(LR), STEPS, watch=scaled, every=every)[1])
    return np.asarray(run(jnp.zeros(2))).T


def _dynamics() -> list[Part]:
    """Training against the equations, the invariant, the slope, and the gate that closes."""
    times = LR * (STEPS // LOOKS) * np.arange(1.0, LOOKS + 1)
    late = np.logspace(14, 18, 30)
    worst = dict.fromkeys(("trained", "invariant", "slope"), 0.0)
    broken = dict.fromkeys(worst, np.inf)
    open_gate = {}
    ungated = trained("none", 1.0, 1.0)
    for kappa_s, kappa_g in RATES:
        early, long = (integrate(kappa_s, kappa_g, t) for t in (times, late))
        open_gate[kappa_s, kappa_g] = found = trained("sigmoid", kappa_s, kappa_g)
        slope = np.polyfit(np.log(late), long[0], 1)[0]
        predicted = kappa_s / (2.0 * (kappa_s + kappa_g))
        kept, mistaken = (
            np.max(np.abs(invariant(long[0], long[1], *rates) - invariant(0.0, 0.0, *rates)))
            for rates in ((kappa_s, kappa_g), (kappa_s, 2.0 * kappa_g))
        )
        errors = {
            "trained": (np.max(np.abs(found - early)), np.max(np.abs(ungated - early))),
            "invariant": (kept, mistaken),
            "slope": (abs(slope / predicted - 1.0), abs(0.5 / predicted - 1.0)),
        }
        for name, (error, of_control) in errors.items():
            worst[name] = float(np.maximum(worst[name], error))
            broken[name] = float(np.minimum(broken[name], of_control))
    tolerances = {"trained": TRAINED, "invariant": 1e-6, "slope": SLOPE}  # 1e-10 a step, 1e3 steps
    shut, falling = trained("clipped", 1.0, 1.0)[0], trained("falling", 1.0, 1.0)
    kept, mistaken = (
        float(np.max(np.abs(gap - np.exp(-gap) + np.exp(z))))
        for gap, z in (falling, open_gate[1.0, 1.0])
    )
    data = {
        "time": times.tolist(),
        "ungated": ungated[0].tolist(),
        "gated": open_gate[1.0, 1.0][0].tolist(),
        "clipped": shut.tolist(),
    }
    growth = [float(gaps[-1] - gaps[LOOKS // 2]) for gaps in (shut, open_gate[1.0, 1.0][0])]
    parts = [
        Part(name, len(RATES), worst[name], tolerances[name], broken[name]) for name in tolerances
    ]
    return [
        *parts,
        Part("falling gate: invariant", 1, kept, TRAINED, mistaken),
        Part("clipped gate: growth", 1, growth[0], TOLERANCE, growth[1], data),
    ]


@statement(
    "C4", "A gate scales the pressure on the logits by g; a sigmoid slows their growth, not ends it"
)
def verify(key: Array, quick: bool) -> list[Part]:
    # 64: as in C1, and a gate of at most 2 comes in twice
    parts = compare(
        draw, predict, measure, control, key,
        shapes=SHAPES, tolerance=4 * 64 * TOLERANCE, error=absolute, quick=quick,
    )  # fmt: skip
    return parts + _dynamics()
