"""F1. A task that softmax can do only with a sink, ReLU without one, and a gate either way.

Task. Tokens x_1 .. x_L in R^n: coordinate 0 marks the BOS x_1, coordinate 1 the trigger, the last
all other tokens; the rest is uniform in (-1, 1). The target is zero, and at the trigger the mean of
x_1 .. x_j.

Statement. For one layer of attention, out_i = W sum_j p_ij x_j,

    (i)   softmax: with u.W x_k >= m > 0 on the tokens k > 1, nu = |u.W x_1| and |u.out_i| <= eps,
          p_i1 >= (m - eps)/(m + nu): a small loss needs a sink at every idle position; equality
          where u.W x_k = m for all k > 1, u.W x_1 = -nu and u.out_i = eps;
    (ii)  ReLU weights relu(s_ij)/i do it exactly, with all idle rows zero: s_ij = trigger_i;
    (iii) softmax with a gate 2 sigma(z_i) does it within 2 sigma(-M) |mean|, z_i = M (trigger_i -
          1), with logits that are all zero: its weights on BOS are 1/i. (i) does not cover it.

That the gated model can do without a sink does not say that it learns to. Trained as stated with
Adam it has one where the gate learns at the rate of the logits, less of one at 10 times the rate,
and as much attention to BOS as if it were uniform at 100 times: which of the two closes the head is
a race (C4).

Assumptions. (i) bounds a trained model by its own W: u is the last coordinate, for which a small
error at the trigger makes m near 1.

Proof. (i) is B2 with O = {BOS}, one coordinate of it. (ii) The trigger's row is 1/j on all keys.
(iii) Equal logits average; 2 sigma(0) = 1.

Source: Ran-Milo 2026 (arXiv:2603.11487) for the task, (i) in its own form, (ii), and the setting of
the trained part; (iii) is this package's.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float

from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.layers import causal_mask, linear
from sysout_jax.core.primitives import Heads
from theory.check import Part, Quantities, absolute, at_least, compare, statement
from theory.descent import descend

SHAPES = ((3, 4), (7, 5), (16, 16))  # (L, n)
CLOSED = 8.0  # M
# The stated setting: d = L = 16, Adam(0.9, 0.95) at 1e-3, batch 128, until no error exceeds 5e-3,
# or to the last look, if that comes first.
SIZE, BATCH, RATE, STEPS, LOOKS = 16, 128, 1e-3, 6000, 24
STATED = 5e-3
SEEDS, HELD_OUT = 3, 1000
GATE_RATES = (1.0, 10.0, 100.0)  # times that of the logits
SINK, EVEN = 0.05, 0.02  # of attention: 0.95 on BOS is a sink; the mean of 1/i within 0.02 is none
Params = dict[str, Array]


class Sequence(NamedTuple):
    """A sequence of the task, what to answer, and where the trigger is."""

    x: Float[Array, "L D"]
    target: Float[Array, "L D"]
    trigger: Bool[Array, "L"]


def draw(key: Array, shape: tuple[int, int], scale: Array) -> Sequence:
    """Trigger at 3 .. L; content of size `scale`, in its dtype."""
    length, n = shape
    of_content, of_trigger = jax.random.split(key)
    at = jnp.arange(length)
    trigger = at == jax.random.randint(of_trigger, (), 2, length)
    content = jax.random.uniform(of_content, (length, n), scale.dtype, -1.0, 1.0) * scale
    flags = jnp.stack([at == 0, trigger, at > 0], axis=1).astype(scale.dtype)
    x = jnp.where(at[:, None] == 0, 0.0, content)
    x = x.at[:, 0].set(flags[:, 0]).at[:, 1].set(flags[:, 1]).at[:, -1].set(flags[:, 2])
    mean = jnp.cumsum(x, axis=0) / (at + 1).astype(x.dtype)[:, None]
    return Sequence(x, jnp.where(trigger[:, None], mean, 0.0), trigger)


def attend(variant: str, params: Params, x: Float[Array, "L D"]) -> tuple[Array, Array]:
    """One head of width n whose logits are not divided by sqrt(n): outputs [L, n], weights."""
    at = jnp.arange(len(x), dtype=jnp.int32)
    q, k = (linear(x, params[name])[:, None] for name in ("query", "key"))
    own = {name: params[name] for name in VARIANTS[variant].params}
    heads = Heads(q * math.sqrt(q.shape[-1]), k, x[:, None], x, x, causal_mask(at, at))
    mixed = VARIANTS[variant](heads, own)
    return linear(mixed.out[:, 0], params["value"]), mixed.weights[0]


def relu_params(n: int) -> Params:
    """Every key scores 1 with the trigger's query and 0 with any other."""
    query, key = jnp.zeros((n, n)), jnp.zeros((n, n))
    key = key.at[0, 0].set(1.0).at[-1, 0].set(1.0)
    return {"query": query.at[1, 0].set(1.0), "key": key, "value": jnp.eye(n)}


def gate_params(n: int) -> Params:
    """No logits; a gate that is open at the trigger alone."""
    gate = {
        "gate_kernel": jnp.zeros((n, 1)).at[1, 0].set(CLOSED),
        "gate_bias": -CLOSED * jnp.ones(1),
    }
    return {"query": jnp.zeros((n, n)), "key": jnp.zeros((n, n)), "value": jnp.eye(n)} | gate


def predict(case: Sequence) -> Quantities:
    """Outputs and weights of both constructions."""
    t = jnp.arange(1.0, len(case.x) + 1.0)
    even = jnp.tril(jnp.ones((len(t), len(t)))) / t[:, None]
    mean = even @ case.x
    return {
        "relu: output": case.target,
        "relu: weights": jnp.where(case.trigger[:, None], even, 0.0),
        "gate: output": jnp.where(
            case.trigger[:, None], mean, 2.0 * jax.nn.sigmoid(-CLOSED) * mean
        ),
        "gate: weights": even,
    }


def measure(case: Sequence) -> Quantities:
    """The variants with the constructed parameters."""
    return _constructions(case, "relu", gate_params(case.x.shape[1]))


def control(case: Sequence) -> Quantities:
    """Softmax in place of ReLU; a gate that is open, on logits that see the trigger."""
    opened = gate_params(case.x.shape[1]) | {"gate_bias": jnp.zeros(1)}
    seeing = {name: relu_params(case.x.shape[1])["query"] for name in ("query", "key")}
    return _constructions(case, "softmax", opened | seeing)


def _constructions(case: Sequence, normaliser: str, gated: Params) -> Quantities:
    out, weights = attend(normaliser, relu_params(case.x.shape[1]), case.x)
    gated_out, gated_weights = attend("context_scale", gated, case.x)
    return {
        "relu: output": out,
        "relu: weights": weights,
        "gate: output": gated_out,
        "gate: weights": gated_weights,
    }


# ------------------------------------------------------------------------- the bound (i)


class Head(NamedTuple):
    """A sequence, and a head whose W reads at least 1 along u from every token but BOS."""

    case: Sequence
    params: Params


def draw_head(key: Array, shape: tuple[int, int], scale: Array) -> Head:
    """Normal logits; u.W x_k = 2 or 3, up to 1 more or less by the content; any sign for BOS."""
    of_case, *keys = jax.random.split(key, 4)
    _, n = shape
    query, matrix = jax.random.normal(keys[0], (2, n, n), jnp.float64)
    bos = jax.random.normal(keys[1], (), jnp.float64)
    along = jax.random.uniform(keys[2], (n,), jnp.float64, -1.0, 1.0) / n
    along = along.at[0].set(bos).at[1].set(1.0).at[-1].set(2.0)
    value = matrix.at[:, -1].set(along)
    return Head(draw(of_case, shape, scale), {"query": query, "key": matrix.T, "value": value})


def least_mass(flag: Float[Array, "L"], out: Float[Array, "L"]) -> Float[Array, "L"]:
    """(m - eps)/(m + nu), from u.W x_k and from |u.out_i| = eps."""
    m = jnp.min(flag[1:])
    return (m - jnp.abs(out)) / (m + jnp.abs(flag[0]))


def stated(head: Head) -> Quantities:
    """The bound from the softmax head's own values and outputs, of positions from the second on."""
    out, _ = attend("softmax", head.params, head.case.x)
    flag = linear(head.case.x, head.params["value"])[:, -1]
    return {"softmax: mass on BOS": least_mass(flag, out[:, -1])[1:]}


def found(head: Head) -> Quantities:
    """Its weights on BOS."""
    return {"softmax: mass on BOS": attend("softmax", head.params, head.case.x)[1][1:, 0]}


def without_sum(head: Head) -> Quantities:
    """ReLU weights, which need not sum to one."""
    return {"softmax: mass on BOS": attend("relu", head.params, head.case.x)[1][1:, 0]}


def even_values(head: Head) -> Head:
    """Equality: even attention, which gives BOS at most a half; u.W x_k is -1/4 of it and 2 of all
    others, so that no output is below zero."""
    along = jnp.zeros(len(head.params["value"])).at[0].set(-0.25).at[-1].set(2.0)
    value = head.params["value"].at[:, -1].set(along)
    return Head(head.case, head.params | {"value": value, "key": 0.0 * head.params["key"]})


# ------------------------------------------------------------------------- trained


class Look(NamedTuple):
    """A trained model on held-out sequences."""

    error: Float[Array, ""]  # the largest
    sink: Float[Array, ""]  # mean weight on BOS at idle positions from the second on
    even: Float[Array, ""]  # what uniform attention would give it
    short: Float[Array, ""]  # by how much the weight on BOS falls short of the bound (i), at most


def look(variant: str, params: Params, key: Array) -> Look:
    """Errors, the sink, and the bound from the model's own W."""
    cases = _batch(key, HELD_OUT)
    out, weights = jax.vmap(partial(attend, variant, params))(cases.x)
    idle = (~cases.trigger).at[:, 0].set(False)
    flag = linear(cases.x, params["value"])[..., -1]  # u.W x_k
    bound = jax.vmap(least_mass)(flag, out[..., -1])
    sink = weights[..., 0]
    t = jnp.broadcast_to(jnp.arange(1.0, SIZE + 1.0).astype(sink.dtype), sink.shape)

    def mean(x: Array) -> Array:
        return jnp.sum(jnp.where(idle, x, 0.0)) / jnp.sum(idle).astype(x.dtype)

    short = jnp.max(jnp.where(idle, bound - sink, -jnp.inf))
    return Look(jnp.max(jnp.abs(out - cases.target)), mean(sink), mean(1.0 / t), short)


def _batch(key: Array, count: int) -> Sequence:
    one = jnp.ones((), jnp.float32)
    return jax.vmap(lambda k: draw(k, (SIZE, SIZE), one))(jax.random.split(key, count))


def train(variant: str, key: Array, gate_rate: float = 1.0) -> Look:
    """Looks of `SEEDS` models on the way, [seeds, LOOKS]."""

    def scaled(params: Params) -> Params:
        gates = [name for name in params if name.startswith("gate")]
        return params | {name: gate_rate * params[name] for name in gates}

    def one(key: Array) -> Look:
        of_init, of_data, of_looks = jax.random.split(key, 3)
        names = ("query", "key", "value", "out")
        params = {
            name: 0.02 * jax.random.normal(k, (SIZE, SIZE), jnp.float32)
            for name, k in zip(names, jax.random.split(of_init, 4), strict=True)
        }
        shapes = {"gate_kernel": (SIZE, 1), "gate_bias": (1,)}
        own = VARIANTS[variant].params
        params |= {name: jnp.zeros(shapes[name], jnp.float32) for name in own}

        def whole(params: Params) -> Params:
            """The value and output matrices as their product."""
            return scaled(params) | {"value": params["value"] @ params["out"]}

        def loss(params: Params, step: Array) -> Array:
            cases = _batch(jax.random.fold_in(of_data, step), BATCH)
            out, _ = jax.vmap(partial(attend, variant, whole(params)))(cases.x)
            return jnp.mean(jnp.sum(jnp.square(out - cases.target), axis=-1))

        def watch(params: Params) -> Look:
            return look(variant, whole(params), of_looks)

        optimizer = optax.adam(RATE, b1=0.9, b2=0.95)
        return descend(loss, params, optimizer, STEPS, watch=watch, every=STEPS // LOOKS)[1]

    return jax.jit(jax.vmap(one))(jax.random.split(key, SEEDS))


def _at_stated_error(looks: Look) -> Look:
    """Each seed at the first look with no error above the stated one, or at its last; [seeds]."""
    reached = looks.error <= STATED
    at = jnp.where(jnp.any(reached, axis=1), jnp.argmax(reached, axis=1), LOOKS - 1)
    return jax.tree.map(lambda x: x[jnp.arange(SEEDS), at], looks)


def _trained_parts(key: Array) -> list[Part]:
    softmax, relu = (_at_stated_error(train(name, key)) for name in ("softmax", "relu"))
    gates = [_at_stated_error(train("context_scale", key, rate)) for rate in GATE_RATES]
    data = {
        "gate rate": GATE_RATES,
        "sink": {"softmax": softmax.sink.tolist(), "relu": relu.sink.tolist()}
        | {f"gate x {r:g}": g.sink.tolist() for r, g in zip(GATE_RATES, gates, strict=True)},
        "error": {"softmax": softmax.error.tolist(), "relu": relu.error.tolist()}
        | {f"gate x {r:g}": g.error.tolist() for r, g in zip(GATE_RATES, gates, strict=True)},
    }
    uneven = [float(jnp.max(jnp.abs(g.sink - g.even))) for g in gates]
    slow, fast = gates[0], gates[-1]
    return [
        # float32 weights: the rounding of sums of sixteen of them
        Part("trained: bound", SEEDS, float(jnp.max(softmax.short)), 1e-5, float(fast.short.max())),
        Part(
            "trained: sink",
            SEEDS,
            1.0 - float(softmax.sink.min()),
            SINK,
            float(1 - fast.sink.max()),
            data,
        ),
        Part("trained ReLU: sink", SEEDS, float(relu.sink.max()), SINK, float(softmax.sink.min())),
        Part("trained fast gate: unevenness", SEEDS, uneven[-1], EVEN, uneven[0]),
        # the gate is no bar to the sink where it learns no faster than the logits
        Part(
            "trained slow gate: sink",
            SEEDS,
            1.0 - float(slow.sink.min()),
            SINK,
            float(1 - fast.sink.max()),
        ),
    ]


@statement("F1", "Trigger-conditional averaging: softmax needs a sink, ReLU and a fast gate do not")
def verify(key: Array, quick: bool) -> list[Part]:
    of_constructions, of_training, of_bound = jax.random.split(key, 3)
    parts = compare(
        draw, predict, measure, control, of_constructions,
        shapes=SHAPES, scales=(1.0,), error=absolute, quick=quick,
    )  # fmt: skip
    parts += compare(
        draw_head, stated, found, without_sum, of_bound, shapes=SHAPES, scales=(1.0,),
        error=at_least, tight={"softmax: mass on BOS": even_values}, quick=quick,
    )  # fmt: skip
    return parts if quick else parts + _trained_parts(of_training)
