"""Optimisers from one table, against float64 loops and stated properties."""

import dataclasses
import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from sysout_jax.core.attention import VARIANTS
from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import param_axes, stack_blocks
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.optimizer import (
    MUON_RMS,
    OPTIMIZERS,
    SCHEDULES,
    USES,
    OptimizerConfig,
    effective,
    learning_rate,
    make_optimizer,
    muon_dimensions,
)
from tests.model.noise import noisy

PLAIN = OptimizerConfig(schedule="constant", warmup=0, clip=0.0, lr=0.03)
DECODER = ModelConfig(
    vocab=17, context=7, layers=2, width=13, heads=4, kv_heads=2, head_dim=6, mlp_width=19,
    mlp="swiglu", norm="layer", bias=True, variant="context_scale",
)  # fmt: skip
HIDDEN = {"query", "key", "value", "out", "up", "gate", "down", "variant_gate_kernel"}
DECAYED = HIDDEN | {"embed", "positions", "head"}


def steps_of(config, axes, params, grads, steps=100):
    """The parameters after each gradient of a list, all in one compiled function."""
    optimizer = make_optimizer(config, steps, axes)

    @jax.jit
    def step(params, state, grad):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    state, after = optimizer.init(params), []
    for grad in grads:
        params, state = step(params, state, grad)
        after.append(params)
    return after


def named(tree):
    return [(path[-1].key, leaf) for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]


# ------------------------------------------------------------------------- weight decay


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_matrices_and_embeddings_shrink_by_lr_times_decay(optimizer):
    config = dataclasses.replace(PLAIN, optimizer=optimizer, decay=0.25, clip=1.0)
    params = noisy(DECODER)
    zeros = jax.tree.map(jnp.zeros_like, params)
    (after,) = steps_of(config, param_axes(DECODER), params, [zeros])
    shrunk = set()
    for (name, old), (_, new) in zip(named(params), named(after), strict=True):
        if name in DECAYED:
            np.testing.assert_allclose(new, old * (1 - 0.03 * 0.25), rtol=1e-6)
            shrunk.add(name)
        else:
            np.testing.assert_array_equal(new, old)
    assert shrunk == DECAYED


# ------------------------------------------------------------------------- float64 loops

AXES = {"w": "D -> F", "b": "F", "e": "V -> D"}


def adamw(c, k, p, m, v, g, t, decay):
    m = c.beta1 * m + (1 - c.beta1) * g
    v = c.beta2 * v + (1 - c.beta2) * g**2
    step = m / (1 - c.beta1**t) / (np.sqrt(v / (1 - c.beta2**t)) + c.eps)
    return step + decay * p, m, v


def sgd(c, k, p, m, v, g, t, decay):
    m = c.momentum * m + g
    return m + decay * p, m, v


def lion(c, k, p, m, v, g, t, decay):
    step = np.sign(c.beta1 * m + (1 - c.beta1) * g)
    return step + decay * p, c.beta2 * m + (1 - c.beta2) * g, v


def orthogonalised(g, eps=1e-8):
    """Five steps of Newton-Schulz with Jordan et al.'s coefficients, in float64."""
    x = g / (np.linalg.norm(g) + eps)
    x = x.T if x.shape[0] > x.shape[1] else x
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def muon(c, k, p, m, v, g, t, decay):
    """Nesterov's momentum in both parts; hidden matrices are orthogonalised, the rest is Adam."""
    beta = c.momentum if k == "w" else c.beta1
    m = beta * m + (1 - beta) * g
    v = c.beta2 * v + (1 - c.beta2) * g**2
    ahead = beta * m / (1 - beta ** (t + 1)) + (1 - beta) * g / (1 - beta**t)
    if k == "w":
        step = MUON_RMS * math.sqrt(max(g.shape)) * orthogonalised(ahead, c.eps)
    else:
        step = ahead / (np.sqrt(v / (1 - c.beta2**t)) + c.eps)
    return step + decay * p, m, v


LOOPS = {"adamw": adamw, "sgd": sgd, "lion": lion, "muon": muon}


def test_every_optimizer_has_a_loop():
    assert set(LOOPS) == set(OPTIMIZERS)


@pytest.mark.parametrize("name", LOOPS)
def test_steps_equal_a_loop(name):
    c = OptimizerConfig(
        optimizer=name, lr=0.07, schedule="cosine", warmup=2, lr_floor=0.2, beta1=0.8, beta2=0.9,
        momentum=0.7, eps=1e-3, decay=0.3, clip=3.0,
    )  # fmt: skip
    rng = np.random.default_rng(4)
    shapes = {"w": (5, 3), "b": (3,), "e": (7, 5)}
    draw = lambda: {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}  # noqa: E731
    params, grads = draw(), [draw() for _ in range(6)]
    grads[3] = {k: 0.01 * g for k, g in grads[3].items()}  # this one is not clipped
    found = steps_of(c, AXES, jax.tree.map(jnp.asarray, params), grads, steps=6)
    p = {k: x.astype(np.float64) for k, x in params.items()}
    m, v = ({k: np.zeros(s) for k, s in shapes.items()} for _ in range(2))
    for t, grad in enumerate(grads, start=1):
        norm = math.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in grad.values()))
        lr = rate(c, t - 1, 6)
        for k in shapes:
            g = grad[k] * min(1, 3.0 / norm)
            decay = 0.0 if k == "b" else 0.3
            step, m[k], v[k] = LOOPS[name](c, k, p[k], m[k], v[k], g, t, decay)
            p[k] = p[k] - lr * step
            np.testing.assert_allclose(found[t - 1][k], p[k], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(("clip", "factor"), [(0.5, 0.1), (5.0, 1.0), (7.0, 1.0), (0.0, 1.0)])
def test_clipping_is_of_the_global_norm(clip, factor):
    config = dataclasses.replace(PLAIN, optimizer="sgd", momentum=0.0, decay=0.0, clip=clip, lr=1.0)
    params = {"w": jnp.zeros((1, 1)), "b": jnp.zeros(1)}
    grads = {"w": jnp.full((1, 1), 3.0), "b": jnp.full(1, -4.0)}
    (after,) = steps_of(config, {"w": "D -> F", "b": "F"}, params, [grads])
    np.testing.assert_allclose(after["w"], [[-3.0 * factor]], rtol=1e-6)
    np.testing.assert_allclose(after["b"], [4.0 * factor], rtol=1e-6)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_quadratic_is_minimised(optimizer):
    lr = 0.3 if optimizer == "muon" else 0.05  # Muon's steps are a fifth of Adam's
    config = OptimizerConfig(optimizer=optimizer, lr=lr, warmup=5, lr_floor=0.01, decay=0.0)
    made = make_optimizer(config, 150, {"w": "D -> F", "b": "F"})
    rng = np.random.default_rng(5)
    goal = {
        "w": jnp.asarray(rng.standard_normal((5, 3)), jnp.float32),
        "b": jnp.asarray(rng.standard_normal(3), jnp.float32),
    }

    def loss(params):
        return sum(jnp.sum((params[k] - goal[k]) ** 2) for k in goal)

    def step(carry, _):
        params, state = carry
        with jax.numpy_dtype_promotion("standard"):
            updates, state = made.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    start = jax.tree.map(jnp.zeros_like, goal)
    (end, _), _ = jax.jit(lambda s: jax.lax.scan(step, s, None, 150))((start, made.init(start)))
    assert loss(end) < 0.01 * loss(start)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("field", ["beta1", "beta2", "momentum"])
def test_every_accepted_average_gives_finite_steps(optimizer, field):
    """What a config accepts trains: the ends of the range too."""
    for value in (0.0, 1.0):
        try:
            config = dataclasses.replace(PLAIN, optimizer=optimizer, **{field: value})
        except ValueError:
            continue
        params = {"w": jnp.ones((5, 3)), "b": jnp.ones(3)}
        (after,) = steps_of(config, {"w": "D -> F", "b": "F"}, params, [params])
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(after)), value


# ------------------------------------------------------------------------- Muon


def test_muon_orthogonalises_hidden_matrices_and_nothing_else():
    config = dataclasses.replace(PLAIN, optimizer="muon", decay=0.0)
    params, grads = noisy(DECODER), noisy(DECODER, 1)
    (after,) = steps_of(config, param_axes(DECODER), params, [grads])
    inputs = {"out": 2}  # axes that are contracted: [N, H] of the output projection
    adam = 0.03 * (1 + 0.9 / 1.9)  # the first step of Adam with Nesterov's momentum
    seen = set()
    for (name, old), (_, new), (_, g) in zip(*map(named, (params, after, grads)), strict=True):
        update = np.asarray(old, np.float64) - np.asarray(new, np.float64)
        if name in HIDDEN:
            n_in = math.prod(g.shape[: inputs.get(name, 1)])
            matrix = np.asarray(g, np.float64).reshape(n_in, -1)
            scale = 0.03 * MUON_RMS * math.sqrt(max(matrix.shape))
            found = update.reshape(matrix.shape) / scale
            np.testing.assert_allclose(found, orthogonalised(matrix), atol=1e-4)
            spectrum = np.linalg.svd(found, compute_uv=False)
            assert spectrum.max() < 1.25
            assert np.median(spectrum) > 0.65
            seen.add(name)
        else:
            np.testing.assert_allclose(update, adam * np.sign(g), rtol=1e-3)
    assert seen == HIDDEN


def test_muon_on_stacked_layers_is_muon_on_each():
    scanned = DECODER.with_execution(scan_layers=True)
    config = dataclasses.replace(PLAIN, optimizer="muon", decay=0.2)
    params, grads = noisy(DECODER), [noisy(DECODER, seed) for seed in (1, 2, 3)]
    each = steps_of(config, param_axes(DECODER), params, grads)[-1]
    stacked = steps_of(
        config, param_axes(scanned), stack_blocks(params), [stack_blocks(g) for g in grads]
    )[-1]
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), stacked, stack_blocks(each)
    )


DIMENSIONS = {  # contracted axes, output axes
    "D -> N H": ((0,), (1, 2)),
    "D -> K H": ((0,), (1, 2)),
    "N H -> D": ((0, 1), (2,)),
    "D -> F": ((0,), (1,)),
    "F -> D": ((0,), (1,)),
    "D -> N": ((0,), (1,)),
    "V -> D": None,
    "T -> D": None,
    "D -> V": None,
    "D": None,
    "F": None,
    "N": None,
    "K": None,
    "N H": None,
    "K H": None,
}


def test_muon_dimensions_of_every_parameter_there_is():
    found = set()
    for name in VARIANTS:
        for scan in (False, True):
            config = dataclasses.replace(DECODER, variant=name, layers=1).with_execution(
                scan_layers=scan
            )
            found |= set(jax.tree.leaves(param_axes(config)))
    assert {axes.removeprefix("L ") for axes in found} == set(DIMENSIONS)
    for axes in found:
        stacked = axes.startswith("L ")
        expected = DIMENSIONS[axes.removeprefix("L ")]
        if expected is None:
            assert muon_dimensions(axes) is None, axes
        else:
            shifted = tuple(tuple(i + stacked for i in side) for side in expected)
            assert tuple(muon_dimensions(axes)) == shifted, axes


NUMBERS = {"beta1": 0.5, "beta2": 0.5, "momentum": 0.5, "eps": 0.1}
SHAPES_OF_RATE = {"lr_floor": 0.5, "cooldown": 0.5}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("field", NUMBERS)
def test_an_optimizer_uses_the_fields_that_change_its_steps(name, field):
    rng = np.random.default_rng(5)
    params = {k: jnp.asarray(rng.standard_normal((3, 3)), jnp.float32) for k in ("w", "e")}
    grads = [jax.tree.map(lambda x, t=t: jnp.sin(3 * t * x), params) for t in (1, 2, 3)]
    axes = {k: AXES[k] for k in params}
    usual = dataclasses.replace(PLAIN, optimizer=name)
    other = dataclasses.replace(usual, **{field: NUMBERS[field]})
    before, after = (steps_of(c, axes, params, grads)[-1] for c in (usual, other))
    changed = any((before[k] != after[k]).any() for k in params)
    assert changed == (field in USES[name])
    assert effective(other) == (other if changed else usual)


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("field", SHAPES_OF_RATE)
def test_a_schedule_uses_the_fields_that_change_its_rates(name, field):
    usual = OptimizerConfig(schedule=name)
    other = dataclasses.replace(usual, **{field: SHAPES_OF_RATE[field]})
    before, after = ([learning_rate(c, 100)(t) for t in range(100)] for c in (usual, other))
    changed = before != after
    assert changed == (field in USES[name])
    assert effective(other) == (other if changed else usual)


# ------------------------------------------------------------------------- schedules


def rate(c, step, steps):
    """The learning rate at a step that counts from 0, in closed form."""
    if step < c.warmup:
        return c.lr * (step + 1) / c.warmup
    length = max(steps - c.warmup, 1)
    since, floor = min(step - c.warmup, length), c.lr_floor * c.lr
    if c.schedule == "constant":
        return c.lr
    if c.schedule == "cosine":
        return floor + (c.lr - floor) * (1 + math.cos(math.pi * since / length)) / 2
    falling = max(round(c.cooldown * steps), 1)
    begun = since - max(length - falling, 0)
    return c.lr if begun < 0 else c.lr - (c.lr - floor) * begun / falling


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 2, 7, 30, 31, 50])
@pytest.mark.parametrize("cooldown", [0.0, 0.2, 0.5])
def test_schedules_in_closed_form(schedule, warmup, cooldown):
    c = OptimizerConfig(lr=0.5, schedule=schedule, warmup=warmup, cooldown=cooldown)
    made = learning_rate(c, 30)
    with jax.numpy_dtype_promotion("standard"):
        found = np.asarray(jax.vmap(made)(jnp.arange(31)))
    np.testing.assert_allclose(found, [rate(c, step, 30) for step in range(31)], rtol=1e-5)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("warmup", [0, 1, 13])
@pytest.mark.parametrize("cooldown", [0.2, 1.0])
def test_landmarks_of_schedules(schedule, warmup, cooldown):
    c = OptimizerConfig(lr=0.5, schedule=schedule, warmup=warmup, cooldown=cooldown, lr_floor=0.25)
    with jax.numpy_dtype_promotion("standard"):
        found = np.asarray(jax.vmap(learning_rate(c, 60))(jnp.arange(61)))
    if warmup:
        assert found[0] == pytest.approx(0.5 / warmup)
    assert found[max(warmup - 1, 0)] == pytest.approx(0.5)
    assert found[60] == pytest.approx(0.5 if schedule == "constant" else 0.125)
    assert (np.diff(found[warmup:]) <= 1e-7).all()
    assert found.max() <= 0.5 + 1e-7


@pytest.mark.parametrize("warmup", [0, 3, 9, 10, 11, 13])
@pytest.mark.parametrize("cooldown", [0.0, 0.05, 0.1, 0.2, 0.3, 1.0])
def test_a_cooldown_that_cools_nothing_is_refused(warmup, cooldown):
    """What wsd does to eleven steps decides: accepted where one of them is below the peak."""
    c = OptimizerConfig(lr=0.5, schedule="wsd", warmup=warmup, cooldown=cooldown)
    falls = any(rate(c, step, 11) < 0.5 for step in range(warmup, 11))
    if falls:
        TrainConfig(steps=11, optimizer=c)
        return
    with pytest.raises(InputError, match=rf"^schedule=wsd: with cooldown={cooldown}, ") as no:
        TrainConfig(steps=11, optimizer=c)
    assert "\n" not in str(no.value)
    for schedule in ("constant", "cosine"):
        TrainConfig(steps=11, optimizer=dataclasses.replace(c, schedule=schedule))


def test_a_single_step():
    for schedule in SCHEDULES:
        for warmup in (0, 1, 20):
            c = OptimizerConfig(lr=0.5, schedule=schedule, warmup=warmup)
            with jax.numpy_dtype_promotion("standard"):
                assert learning_rate(c, 1)(jnp.asarray(0)) == pytest.approx(0.5 / max(warmup, 1))
