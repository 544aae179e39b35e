"""Penalties on activations: what a step lowers beside the loss, and what it reports."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import forward, init, param_axes
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.objective import PENALTIES, Objective, batch_loss
from sysout_jax.training.optimizer import OptimizerConfig, make_optimizer
from sysout_jax.training.step import TrainState, make_step, token_loss

CONFIG = ModelConfig(vocab=17, context=8, layers=3, width=12, heads=2)
ROWS = jnp.asarray(np.random.default_rng(0).integers(0, 17, (6, 8)).astype(np.int32))
SGD = OptimizerConfig(
    "sgd", lr=1.0, schedule="constant", warmup=0, momentum=0.0, decay=0.0, clip=0.0
)


def params(scale=8.0):
    return jax.tree.map(lambda x: scale * x, init(CONFIG, jax.random.key(0)))


def test_tweo_against_numpy():
    """lambda/L sum_l mean (|h_l|/3)^4, one number after the other."""
    weight = 0.25
    total, loss = batch_loss(CONFIG, params(), ROWS, objective=Objective(0, (f"tweo={weight}",)))
    states = forward(CONFIG, params(), ROWS[:, :-1], {"block_out": None})[1]["block_out"]
    each = [(abs(float(h)) / 3.0) ** 4 for h in np.asarray(states).ravel()]
    expected = weight * sum(each) / len(each)
    assert loss == pytest.approx(float(token_loss(CONFIG, params(), ROWS).mean()), rel=1e-6)
    assert total - loss == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-4


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_lowers_both_and_reports_the_loss(accumulate):
    optimizer = make_optimizer(SGD, 1, param_axes(CONFIG))
    objective = Objective(1, ("tweo=5",))
    step = make_step(CONFIG, optimizer, accumulate, objective=objective)
    after, record = jax.jit(step)(TrainState(params(), optimizer.init(params())), ROWS)
    losses = token_loss(CONFIG, params(), ROWS)
    assert record.loss == pytest.approx(float(losses[:, 1:].mean()), rel=1e-5)

    def total(p):
        states = forward(CONFIG, p, ROWS[:, :-1], {"block_out": None})[1]["block_out"]
        return token_loss(CONFIG, p, ROWS)[:, 1:].mean() + 5.0 * jnp.mean((states / 3.0) ** 4)

    gradient = jax.grad(total)(params())
    moved = jax.tree.map(jnp.subtract, params(), after.params)
    for found, expected in zip(jax.tree.leaves(moved), jax.tree.leaves(gradient), strict=True):
        # A small entry is what is left of large ones: rounding is of their size.
        size = float(jnp.abs(expected).max())
        np.testing.assert_allclose(found, expected, rtol=2e-3, atol=2e-4 + 1e-5 * size)


def test_it_holds_activations_down():
    """Some steps from states of hundreds: smaller with the penalty than without."""
    adam = OptimizerConfig(lr=0.03, schedule="constant", warmup=0, decay=0.0)
    largest = []
    for penalties in ((), ("tweo=0.01",)):
        optimizer = make_optimizer(adam, 40, param_axes(CONFIG))
        step = jax.jit(make_step(CONFIG, optimizer, objective=Objective(0, penalties)))
        state = TrainState(params(60.0), optimizer.init(params(60.0)))
        for _ in range(40):
            state, _ = step(state, ROWS)
        states = forward(CONFIG, state.params, ROWS[:, :-1], {"block_out": None})[1]["block_out"]
        largest.append(float(jnp.abs(states).max()))
    assert largest[1] < 0.5 * largest[0]


@pytest.mark.parametrize(
    "given", ["tweo", "tweo=0", "tweo=-1", "tweo=nan", "tweo=inf", "tweo=much", "other=1", ""]
)
def test_wrong_penalties_are_one_line(given):
    with pytest.raises(InputError, match=f"penalties={given}: accepted: NAME=WEIGHT") as caught:
        TrainConfig(penalties=(given,))
    assert ", ".join(PENALTIES) in str(caught.value)


def test_a_penalty_twice_is_refused():
    with pytest.raises(InputError, match="each of them once"):
        replace(TrainConfig(), penalties=("tweo=1", "tweo=2"))
