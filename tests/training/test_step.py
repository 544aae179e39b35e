"""The training step: gradients, accumulation, many seeds and many steps in one call."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import forward, init, param_axes
from sysout_jax.model.execution import Execution
from sysout_jax.training import step
from sysout_jax.training.objective import Objective
from sysout_jax.training.optimizer import OptimizerConfig, make_optimizer
from sysout_jax.training.step import TrainState, make_step, make_steps, start, token_loss
from tests.model.noise import noisy

CONFIG = ModelConfig(
    vocab=17, context=7, layers=1, width=12, heads=2, mlp_width=19, variant="context_scale"
)
# One step of this moves the parameters by exactly minus the gradient.
UNIT = OptimizerConfig(
    optimizer="sgd", lr=1.0, schedule="constant", warmup=0, momentum=0.0, decay=0.0, clip=0.0
)
ADAMW = OptimizerConfig(lr=0.01, warmup=3)
ROWS = (
    np.random.default_rng(1).integers(0, 17, (4, 3, 6, 8)).astype(np.int32)
)  # steps, seeds, B, T+1


def optimizer(config):
    return make_optimizer(config, 4, param_axes(CONFIG))


def fresh(config, seed):
    params = noisy(CONFIG, seed)
    return TrainState(params, optimizer(config).init(params))


@cache
def steps_fn(config=ADAMW, accumulate=1):
    return make_steps(make_step(CONFIG, optimizer(config), accumulate))


def stack(states):
    return jax.tree.map(lambda *x: jnp.stack(x), *states)


def close(found, expected, tolerance=1e-6):
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance), found, expected
    )


def test_token_loss_is_the_cross_entropy_of_the_next_token():
    params, rows = noisy(CONFIG), jnp.asarray(ROWS[0, 0])
    logits = np.asarray(jax.jit(partial(forward, CONFIG))(params, rows[:, :-1])[0], np.float64)
    found = jax.jit(partial(token_loss, CONFIG))(params, rows)
    assert found.shape == (6, 7)
    for b in range(6):
        for t in range(7):
            p = np.exp(logits[b, t]) / np.exp(logits[b, t]).sum()
            assert found[b, t] == pytest.approx(-np.log(p[ROWS[0, 0, b, t + 1]]), rel=1e-4)


def test_positions_before_loss_from_are_not_trained():
    """The loss is that of the others, and what only they would move stays."""
    params, rows = noisy(CONFIG), jnp.asarray(ROWS[0, 0])
    step = make_step(CONFIG, optimizer(UNIT), objective=Objective(loss_from=6))
    after, record = jax.jit(step)(TrainState(params, optimizer(UNIT).init(params)), rows)
    losses = jax.jit(partial(token_loss, CONFIG))(params, rows)
    assert record.loss == pytest.approx(float(losses[:, 6:].mean()), rel=1e-6)
    moved = np.abs(np.asarray(after.params["embed"] - params["embed"])).max(axis=1)
    assert set(np.flatnonzero(moved)) >= set(ROWS[0, 0, :, 6])
    queries = [record.loss == pytest.approx(float(losses[:, t].mean())) for t in range(6)]
    assert not any(queries)


def test_gradient_equals_a_finite_difference():
    params, rows = noisy(CONFIG, size=0.3), jnp.asarray(ROWS[0, 0])
    step = make_step(CONFIG, optimizer(UNIT))
    after, record = jax.jit(step)(TrainState(params, optimizer(UNIT).init(params)), rows)
    gradient = jax.tree.map(jnp.subtract, params, after.params)
    loss = jax.jit(lambda p: jnp.mean(token_loss(CONFIG, p, rows)))
    assert record.loss == pytest.approx(float(loss(params)), rel=1e-6)
    squares = [float(jnp.sum(g.astype(jnp.float32) ** 2)) for g in jax.tree.leaves(gradient)]
    norm = np.sqrt(sum(squares))
    assert record.grad_norm == pytest.approx(norm, rel=1e-4)
    rng = np.random.default_rng(2)
    noise = jax.tree.map(lambda g: jnp.asarray(rng.standard_normal(g.shape), jnp.float32), params)
    for direction in (gradient, noise):
        length = np.sqrt(sum(float(jnp.sum(d**2)) for d in jax.tree.leaves(direction)))
        ahead, behind = (
            jax.tree.map(lambda p, d, by=by: p + by * d, params, direction)
            for by in (1e-2 / length, -1e-2 / length)
        )
        slope = (float(loss(ahead)) - float(loss(behind))) / 2e-2
        pairs = zip(*map(jax.tree.leaves, (gradient, direction)), strict=True)
        exact = sum(float(jnp.sum(g * d)) for g, d in pairs) / length
        assert slope == pytest.approx(exact, rel=0.02, abs=2e-4)


@pytest.mark.parametrize("accumulate", [2, 6])
def test_accumulated_parts_equal_the_whole_batch(accumulate):
    """Up to the order of summation."""
    states = [stack([fresh(UNIT, seed) for seed in range(3)]) for _ in range(2)]
    rows = jnp.asarray(ROWS[:1])
    whole, record = steps_fn(UNIT)(states[0], rows)
    parts, record_parts = steps_fn(UNIT, accumulate)(states[1], rows)
    close(parts, whole)
    close(record_parts, record)


@pytest.mark.parametrize(("accumulate", "loss_from"), [(1, 2), (2, 0)])
def test_a_loss_in_blocks_trains_alike(accumulate, loss_from):
    """Of several seeds, of a part of the positions, of accumulated parts; evaluated too."""
    config = CONFIG.with_execution(loss_block=3)
    rows, made = jnp.asarray(ROWS[:1]), optimizer(UNIT)
    found, expected = (
        make_steps(make_step(c, made, accumulate, objective=Objective(loss_from)))(
            stack([fresh(UNIT, seed) for seed in range(3)]), rows
        )
        for c in (config, CONFIG)
    )
    close(found, expected)
    losses = jax.jit(partial(token_loss, config))(noisy(CONFIG), rows[0, 0])
    close(losses, jax.jit(partial(token_loss, CONFIG))(noisy(CONFIG), rows[0, 0]))


BLOCKS = Execution(query_block=2**6)


@pytest.mark.parametrize(
    ("widest", "sequences", "length", "parts"),
    [
        ({"vocab": 2**10, "heads": 1}, 4, 2**10, 1),  # 2**22 numbers of logits
        ({"vocab": 2**10 + 1, "heads": 1}, 4, 2**10, 2),
        ({"mlp_width": 2**12}, 12, 2**8, 3),
        ({"heads": 16, "kv_heads": 16, "width": 32}, 16, 2**9, 16),  # N T T = 2**22
        ({"heads": 16, "kv_heads": 16, "width": 32, "execution": BLOCKS}, 16, 2**9, 2),
        ({"vocab": 2**10}, 7, 2**11, 7),  # a prime: one sequence at a time, the least there is
        ({"vocab": 2**20}, 6, 2**7, 6),  # where even one does not fit
        ({}, 1, 2**3, 1),
    ],
)  # fmt: skip
def test_parts_that_fit_into_caches(widest, sequences, length, parts, monkeypatch):
    config = dataclasses.replace(CONFIG, **widest)
    assert step.parts_of(config, sequences, length) == parts
    monkeypatch.setattr(step.jax, "default_backend", lambda: "gpu")
    assert step.parts_of(config, sequences, length) == 1


def test_parts_that_nobody_chose(monkeypatch):
    """The bits are those of as many parts by name."""
    monkeypatch.setattr(step, "CACHED", 3 * 7 * CONFIG.sizes["F"])  # three sequences of six
    unset = make_steps(make_step(CONFIG, optimizer(ADAMW)))
    rows = jnp.asarray(ROWS[:1])

    def fresh_states():
        return stack([fresh(ADAMW, seed) for seed in range(3)])

    jax.tree.map(
        np.testing.assert_array_equal,
        unset(fresh_states(), rows), steps_fn(ADAMW, 2)(fresh_states(), rows),
    )  # fmt: skip


def test_the_gradient_norm_is_that_before_clipping():
    rows = jnp.asarray(ROWS[:1])
    clipped = dataclasses.replace(UNIT, clip=1e-3)
    params = stack([noisy(CONFIG, seed) for seed in range(3)])
    _, record = steps_fn(UNIT)(stack([fresh(UNIT, seed) for seed in range(3)]), rows)
    state = stack([fresh(clipped, seed) for seed in range(3)])
    after, record_clipped = steps_fn(clipped)(state, rows)
    np.testing.assert_array_equal(record_clipped.grad_norm, record.grad_norm)
    moved = jax.tree.map(
        lambda a, b: jnp.sum((a - b) ** 2, axis=range(1, a.ndim)), after.params, params
    )
    np.testing.assert_allclose(np.sqrt(sum(jax.tree.leaves(moved))), np.full(3, 1e-3), rtol=1e-3)


def test_seeds_together_equal_each_alone():
    """To 1e-6, not to the bit: a batched matrix product may sum in another order."""
    together, record = steps_fn()(stack([fresh(ADAMW, s) for s in range(3)]), jnp.asarray(ROWS))
    for seed in range(3):
        alone, record_alone = steps_fn()(stack([fresh(ADAMW, seed)]), jnp.asarray(ROWS[:, [seed]]))
        close(jax.tree.map(lambda x: x[0], alone), jax.tree.map(lambda x, s=seed: x[s], together))
        close(
            jax.tree.map(lambda x: x[:, 0], record_alone),
            jax.tree.map(lambda x, s=seed: x[:, s], record),
            1e-5,
        )


def test_steps_in_one_call_equal_calls_of_one_step():
    once, record = steps_fn()(stack([fresh(ADAMW, s) for s in range(3)]), jnp.asarray(ROWS))
    state, records = stack([fresh(ADAMW, s) for s in range(3)]), []
    for rows in ROWS:
        state, one = steps_fn()(state, jnp.asarray(rows[None]))
        records.append(one)
    close(state, once)
    close(jax.tree.map(lambda *x: jnp.concatenate(x), *records), record)
    assert record.loss.shape == record.grad_norm.shape == (4, 3)
    assert len({float(x) for x in record.loss.ravel()}) == 12


def test_the_state_at_the_start():
    small = ModelConfig(vocab=8, context=8, layers=1, width=8, heads=1, mlp_width=8)
    adamw = make_optimizer(ADAMW, 4, param_axes(small))
    state = start(small, adamw, jax.random.key(5))
    expected = init(small, jax.random.key(5))
    assert jax.tree.structure(state.params) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, state.params, expected)
    zeros = [x for x in jax.tree.leaves(state.opt) if x.ndim]
    assert len(zeros) == 2 * len(jax.tree.leaves(state.params))  # Adam's two moments
    assert not any(np.any(x) for x in zeros)
