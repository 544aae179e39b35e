"""B3. What an eps-update costs each variant, and whether a token or a parameter pays.

Statement. A no-op head sees values with <u, v_j> >= m > 0 on one side. To write |out| <= eps it
needs

    (a) softmax          LSE gap >= log(T - 1) + log((m - eps)/eps)      of a TOKEN's key (B2)
    (b) value_bias       not by its bias, at given o: max|o + v'| >= |o_1 - o_2|/2 of two contexts
    (c) context_bias     not by its bias, unless o || v': |o + p' v'| >= |o - <o, v'> v'/|v'|^2|
    (d) attention_bias   LSE gap >= log(T) + log((m - eps)/(|v'| + eps)) of a PARAMETER k' (A2, B2)
    (e) context_scale    z = w.x + b <= -log(2 m/eps - 1)                of parameters, no T in it
    (f) sigmoid          min_j s_ij <= log(T) - log(T m/eps - 1)         about log(eps/m), nor here

with |v_0| = 0 (a) and v' = 0 (d). A token can make o small in (b) and (c), as in (a). As T or 1/eps
grow by a factor e, the logit needed grows by

    slope            a    d    e    f
    in log T         1    1    0    0    (a: in log(T - 1), the keys that compete)
    in log 1/eps     1    1    1    1.

Prediction: (a), (b), (c) keep outliers, since only a token's own key can carry the range; (d), (e),
(f) need none.

Assumptions. Free parameters of bounded norm; unit query or input directions. Values of R of size m.

Proof. (a), (d): B2 with O the sink or the extra key. (b): triangle inequality. (c): p' moves o
along v' only. (e): g m <= eps with g = 2 sigma(z). (f): sum_j sigma(s_j - log T) m
<= eps, so the least term is at most eps/(T m); enough where all logits are equal.

Source: this package, for the variants of An et al. 2025 (arXiv:2502.06415).
"""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.primitives import Heads
from theory.check import Part, at_least, compare, statement
from theory.once import jit_once

H = 4  # also the width: q, k, v and x have it
M = 1.0
LENGTHS = (9, 33, 129, 513)  # T: keys seen
EPS = tuple(np.geomspace(1e-5, 0.3, 7).tolist())
STEP, STEPS = 0.05, 600  # growth of the norm budget: up to 30
SLOPE = 0.02  # as in C2
LEAST = 1e-2  # eps up to which slopes are fitted: there log((m - eps)/eps) is log(m/eps) to 1%
# Of a line between two budgets: STEP^2/8 times the curvature of log|out|, eps (1 - eps), over its
# slope, 1 - eps; and as much again for the slip of 1e-3 with which the path begins.
BUDGET = 2.0 * max(EPS) * STEP**2 / 8.0
SLOPES = {"softmax": (1, 1), "attention_bias": (1, 1), "context_scale": (0, 1), "sigmoid": (0, 1)}


def competing(variant: str, length: int) -> int:
    """How many keys with values of size m there are: the sink of softmax is one of the T."""
    return length - 1 if variant == "softmax" else length


def predict(variant: str, length: int, eps: float) -> float:
    """The smallest budget for an eps-update: of a logit gap, or of w.x, or of -s."""
    if variant == "context_scale":
        return math.log(2 * M / eps - 1)
    if variant == "sigmoid":
        return math.log(length * M / eps - 1) - math.log(length)
    return math.log(competing(variant, length)) + math.log((M - eps) / eps)


def output(variant: str, length: int, theta: Float[Array, "H"]) -> Float[Array, "H"]:
    """The head's output where theta is what the variant has to move, and all else is even.

    theta is the sink's key (softmax), the extra key (attention_bias), the gate's kernel
    (context_scale), or what all keys have in common (sigmoid). Query and input are sqrt(H) e_0 and
    e_0, so that theta[0] is the logit.
    """
    e = jnp.zeros(H).at[0].set(1.0)
    k, v = jnp.zeros((length, 1, H)), jnp.zeros((length, 1, H)).at[:, 0, 1].set(M)
    params = {}
    if variant == "softmax":
        k, v = k.at[0, 0].set(theta), v.at[0].set(0.0)
    elif variant == "attention_bias":
        params = {"bias_key": theta[None], "bias_value": jnp.zeros((1, H))}
    elif variant == "context_scale":
        params = {"gate_kernel": theta[:, None], "gate_bias": jnp.zeros(1)}
    elif variant == "sigmoid":
        k = k + theta[None, None]
    x = jnp.broadcast_to(e[None], (length, H))
    q = (math.sqrt(H) * e)[None, None]
    heads = Heads(q, k, v, x[:1], x, jnp.ones((1, length), bool))
    return VARIANTS[variant](heads, params).out[0, 0]


def measure(variant: str, length: int, slip: Float[Array, "H"]) -> Float[Array, "B"]:
    """log|out| along projected steepest descent under a norm budget that grows by STEP.

    Args:
      slip: where theta begins, small and not in the direction that helps.

    Returns:
      The smallest log|out| reached within each budget STEP, 2 STEP, ...
    """

    def size(theta: Array) -> Array:
        return jnp.log(jnp.linalg.norm(output(variant, length, theta)))

    def grow(theta: Array, budget: Array) -> tuple[Array, Array]:
        for _ in range(2):  # step, and turn once more on the new sphere
            gradient = jax.grad(size)(theta)
            theta = theta - STEP * gradient / jnp.linalg.norm(gradient)
            theta = theta * budget / jnp.linalg.norm(theta)
        return theta, size(theta)

    return jax.lax.scan(grow, slip, STEP * jnp.arange(1.0, STEPS + 1.0))[1]


def budgets(variant: str, lengths: Sequence[int], slip: Array) -> np.ndarray:
    """The budget at which |out| passes each eps, by interpolation: [lengths, eps]."""
    run = jit_once(lambda slip: jnp.stack([measure(variant, n, slip) for n in lengths]))
    at = STEP * np.arange(1.0, STEPS + 1.0)
    return np.array([np.interp(-np.log(EPS), -sizes, at) for sizes in np.asarray(run(slip))])


def control(variant: str) -> str:
    """The variant whose formula must not fit: with a term in T for one without, and the reverse."""
    return "softmax" if SLOPES[variant][0] == 0 else "context_scale"


def slopes(table: np.ndarray, keys: Sequence[int]) -> tuple[float, float]:
    """Least-squares slopes of [keys, eps] in the log of the number of keys and in log 1/eps, of eps
    up to LEAST."""
    small = np.array(EPS) <= LEAST
    x, y = np.meshgrid(np.log(keys), -np.log(EPS)[small], indexing="ij")
    terms = np.stack([x.ravel(), y.ravel(), np.ones(x.size)], axis=1)
    found = np.linalg.lstsq(terms, table[:, small].ravel(), rcond=None)[0]
    return float(found[0]), float(found[1])


def _range_parts(key: Array, lengths: Sequence[int]) -> list[Part]:
    slip = 1e-3 * jax.random.normal(key, (H,), jnp.float64)
    found = {name: budgets(name, lengths, slip) for name in SLOPES}
    parts = []
    for name, stated in SLOPES.items():
        closed = np.array([[predict(name, n, eps) for eps in EPS] for n in lengths])
        keys = [competing(name, n) for n in lengths]
        fitted, other = (slopes(found[each], keys) for each in (name, control(name)))
        errors = [max(abs(a - b) for a, b in zip(x, stated, strict=True)) for x in (fitted, other)]
        data = {
            "lengths": list(lengths),
            "eps": EPS,
            "budget": found[name].tolist(),
            "predicted": closed.tolist(),
            "slopes": fitted,
        }
        away = [float(np.max(np.abs(x - closed))) for x in (found[name], found[control(name)])]
        parts += [
            Part(f"{name}: slopes", len(lengths) * len(EPS), errors[0], SLOPE, errors[1], data),
            Part(f"{name}: budget", len(lengths) * len(EPS), away[0], BUDGET, away[1]),
        ]
    return parts


# -------------------------------------------------- (b) and (c): what no parameter can reach


def draw(key: Array, shape: int, scale: Array) -> Float[Array, "3 H"]:
    """Outputs of softmax attention in two contexts, and a bias value longer than any."""
    x = scale * jax.random.normal(key, (3, shape), jnp.float64)
    longest = jnp.max(jnp.linalg.norm(x, axis=1))
    return x.at[2].multiply(4.0 * longest / jnp.linalg.norm(x[2]))


def floors(case: Float[Array, "3 H"]) -> dict[str, Array]:
    """The least worst |o + v'| over v', and the least |o + p' v'| over p'."""
    o_1, o_2, value = case
    across = o_1 - (o_1 @ value) * value / jnp.sum(jnp.square(value))
    return {"value_bias": jnp.linalg.norm(o_1 - o_2) / 2.0, "context_bias": jnp.linalg.norm(across)}


def reached(case: Float[Array, "3 H"]) -> dict[str, Array]:
    """The least by the mechanisms: of the bias value and of biases around the middle of -o_1 and
    -o_2, along every axis; and of 126 signed masses."""
    o_1, o_2, value = case
    away = jnp.linalg.norm(o_1 - o_2) * jnp.geomspace(1e-3, 1.0, 16)
    axes = jnp.concatenate([jnp.eye(len(o_1)), -jnp.eye(len(o_1))])
    around = (axes[:, None] * away[None, :, None]).reshape(-1, len(o_1)) - (o_1 + o_2)[None] / 2.0

    def worst(bias: Array) -> Array:
        return jnp.maximum(_size("value_bias", o_1, bias), _size("value_bias", o_2, bias))

    masses = jax.vmap(lambda mass: _size("context_bias", o_1, value, mass))
    toward = jax.vmap(lambda mass: _size("context_bias", o_1, -value, mass))
    inner = jnp.linspace(0.0, 1.0, 65)[1:-1] / 4.0
    both = jnp.minimum(jnp.min(masses(inner)), jnp.min(toward(inner)))
    biases = jnp.concatenate([value[None], around])
    return {"value_bias": jnp.min(jax.vmap(worst)(biases)), "context_bias": both}


def shared(case: Float[Array, "3 H"]) -> dict[str, Array]:
    """Contexts that are the same, and outputs that are parallel to the bias value."""
    o_1, _, value = case
    along = (o_1 @ value) * value / jnp.sum(jnp.square(value))
    found = reached(jnp.stack([o_1, o_1, value]))
    return found | {"context_bias": reached(jnp.stack([along, along, value]))["context_bias"]}


def middle(case: Float[Array, "3 H"]) -> Float[Array, "3 H"]:
    """Equality in (b): the bias value lies between the outputs turned around."""
    o_1, o_2, _ = case
    return jnp.stack([o_1, o_2, -(o_1 + o_2) / 2.0])


def among_masses(case: Float[Array, "3 H"]) -> Float[Array, "3 H"]:
    """Equality in (c): the mass that cancels all of o along v' is among those tried."""
    o_1, o_2, value = case
    across = o_1 - (o_1 @ value) * value / jnp.sum(jnp.square(value))
    return jnp.stack([across - value / 8.0, o_2, value])


def _size(variant: str, o: Array, value: Array, mass: Array | None = None) -> Array:
    """|out| of a head whose only key has the value o, the extra key's logit giving the mass."""
    q, k = jnp.ones((1, 1, len(o))), jnp.zeros((1, 1, len(o)))
    params = {"bias_value": value[None]}
    if mass is not None:
        logit = jnp.log(mass / (1.0 - mass)) / math.sqrt(len(o))
        params |= {"bias_key": jnp.broadcast_to(logit, (1, len(o)))}
    heads = Heads(q, k, o[None, None], q[0], q[0], jnp.ones((1, 1), bool))
    return jnp.linalg.norm(VARIANTS[variant](heads, params).out)


@statement(
    "B3", "Range for an eps-update: log T + log 1/eps by a token (a), by parameters (d, e, f)"
)
def verify(key: Array, quick: bool) -> list[Part]:
    of_range, of_floors = jax.random.split(key)
    bounds = compare(
        draw, floors, reached, shared, of_floors,
        shapes=(2, 3, 8), error=at_least,
        tight={"value_bias": middle, "context_bias": among_masses}, quick=quick,
    )  # fmt: skip
    return _range_parts(of_range, LENGTHS[::3] if quick else LENGTHS) + bounds
