"""What was added to a model is trained until it predicts as it did; the rest stays as it is."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from sysout_jax.analysis.intervene.conversion import with_own, with_prefix
from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import forward, init
from sysout_jax.training.distil import Reads, added, distil, divergence
from sysout_jax.training.optimizer import OptimizerConfig

BASE = ModelConfig(
    vocab=13, context=12, layers=2, width=16, heads=2, head_dim=8, mlp="swiglu", mlp_width=20,
    position="rope",
)  # fmt: skip
ADAM = OptimizerConfig(lr=0.05, schedule="constant", warmup=0)


def model(seed=0):
    params = init(BASE, jax.random.key(seed))
    return jax.tree.map(lambda x: 5.0 * x if x.ndim > 1 else x, params)


def rows(seed=0, count=4):
    return np.random.default_rng(seed).integers(0, 13, (count, 9)).astype(np.int32)


def gated(bias):
    """The model with a gate on every head, open or nearly closed."""
    own = {
        "variant_gate_kernel": np.zeros((2, 16, 2)), "variant_gate_bias": np.full((2, 2), bias),
    }  # fmt: skip
    return Reads(replace(BASE, variant="head_gate"), with_own(model(), "attn", own))


def test_the_divergence_against_numpy():
    student, teacher, tokens = gated(-1.0), Reads(BASE, model()), rows()
    q, p = (
        np.asarray(forward(of.config, of.params, jnp.asarray(tokens[:, :-1]))[0], np.float64)
        for of in (student, teacher)
    )
    total, count = 0.0, 0
    for one, other in zip(q.reshape(-1, 13), p.reshape(-1, 13), strict=True):
        mine, theirs = special.log_softmax(one), special.log_softmax(other)
        total += np.sum(np.exp(theirs) * (theirs - mine))
        count += 1
    assert count == 4 * 8
    found = float(divergence(student, teacher, jnp.asarray(tokens)))
    assert found == pytest.approx(total / count, rel=1e-4)
    assert found > 0.01


def test_a_model_without_the_first_token_is_compared_where_both_predict():
    """A first token as an extra key says the same of all the others: nothing diverges."""
    teacher, tokens = Reads(BASE, model()), rows()
    tokens[:, 0] = 3
    student = Reads(*with_prefix(BASE, model(), [3]), begin=1)
    assert float(divergence(student, teacher, jnp.asarray(tokens))) < 1e-6
    other = Reads(*with_prefix(BASE, model(), [4]), begin=1)
    assert float(divergence(other, teacher, jnp.asarray(tokens))) > 1e-3


def test_closed_gates_open_again_and_nothing_else_moves():
    student, teacher = gated(-1.0), Reads(BASE, model())
    told = []
    params, found = distil(
        student, teacher, lambda n: rows(n), 60, ADAM, lambda *said: told.append(said)
    )
    assert found[-1] < 0.1 * found[0]
    assert found[0] == pytest.approx(float(divergence(student, teacher, jnp.asarray(rows(0)))))
    assert told == [(n + 1, loss) for n, loss in enumerate(found)]
    trained = added(params, teacher.params)
    assert {path[-1] for path in trained} == {"variant_gate_kernel", "variant_gate_bias"}
    assert all((np.asarray(x) > -1.0).any() for path, x in trained.items() if "bias" in path[-1])
    for path, value in added(teacher.params, {}).items():
        now = params
        for name in path:
            now = now[name]
        np.testing.assert_array_equal(now, value)


def test_the_first_step_is_adam_s():
    """Of size lr against the sign of the gradient, which finite differences give."""
    student, teacher, batch = gated(-1.0), Reads(BASE, model()), jnp.asarray(rows())
    params, _ = distil(student, teacher, lambda n: rows(), 1, ADAM)
    moved = np.asarray(params["block_0"]["attn"]["variant_gate_bias"]) + 1.0
    np.testing.assert_allclose(np.abs(moved), ADAM.lr, rtol=1e-3)
    for head in range(2):
        sides = []
        for sign in (-1, 1):
            bias = np.full((2, 2), -1.0)
            bias[0, head] += sign * 0.02
            own = {"variant_gate_kernel": np.zeros((2, 16, 2)), "variant_gate_bias": bias}
            changed = Reads(student.config, with_own(model(), "attn", own))
            sides.append(float(divergence(changed, teacher, batch)))
        assert np.sign(moved[head]) == -np.sign(sides[1] - sides[0])


def test_without_anything_to_train_or_too_large_a_rate():
    teacher = Reads(BASE, model())
    with pytest.raises(InputError, match="parameters that the teacher has not"):
        distil(teacher, teacher, lambda n: rows(), 1, ADAM)
    # Two steps of it are beyond float32 whatever the order of sums.
    with pytest.raises(InputError, match=r"diverged at step .* rate of 3e\+38; acc"):
        distil(gated(-1.0), teacher, lambda n: rows(), 5, replace(ADAM, lr=3e38, clip=0.0))
