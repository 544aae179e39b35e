"""What saves memory changes no value beyond a stated bound, and does save memory."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import plan
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import init, param_axes, stack_blocks
from sysout_jax.planning import machines
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.loop import train
from sysout_jax.training.optimizer import OPTIMIZERS, OptimizerConfig, is_matrix, make_optimizer
from sysout_jax.training.sharding import make_mesh
from sysout_jax.training.step import make_step, many, start, token_loss

CONFIG = ModelConfig(
    vocab=17, context=7, layers=2, width=12, heads=2, mlp_width=19, mlp="swiglu", bias=True
)
ROWS = jnp.asarray(np.random.default_rng(1).integers(0, 17, (20, 1, 4, 8)), jnp.int32)


def largest_difference(found, expected):
    return max(
        jax.tree.leaves(
            jax.tree.map(
                lambda a, b: float(jnp.abs(a - b.astype(a.dtype)).max()),
                jax.tree.map(lambda x: x.astype(jnp.float32), found),
                expected,
            )
        )
    )


def gradient(config, params):
    return jax.jit(jax.grad(lambda p: jnp.mean(token_loss(config, p, ROWS[0, 0]))))(params)


@pytest.mark.parametrize(("remat", "scan"), [("block", False), ("dots", True)])
def test_gradients_with_activations_computed_again(remat, scan):
    """Equal to 1e-6 of gradients near one: the same operations, fused in another way."""
    params = init(CONFIG, jax.random.key(1))
    expected = gradient(CONFIG, params)
    config = CONFIG.with_execution(remat=remat, scan_layers=scan)
    assert param_axes(config.with_execution(scan_layers=False)) == param_axes(CONFIG)
    found = gradient(config, stack_blocks(params) if scan else params)
    assert largest_difference(found, stack_blocks(expected) if scan else expected) < 1e-6


def dots(config):
    params = jax.eval_shape(partial(init, config), jax.random.key(0))
    loss = jax.grad(lambda p: jnp.mean(token_loss(config, p, ROWS[0, 0])))
    return str(jax.make_jaxpr(loss)(params)).count("dot_general")


def test_what_is_computed_again():
    """With "block" products of the forward pass come twice, with "dots" only attention's do."""
    plain, some, every = (dots(CONFIG.with_execution(remat=name)) for name in
                          ("none", "dots", "block"))  # fmt: skip
    assert plain < some < every
    assert some - plain == CONFIG.layers * 2  # q.k and weights.v


ONE = dataclasses.replace(CONFIG, layers=1)


def optimizer(name="adamw", moment="float32"):
    config = OptimizerConfig(optimizer=name, lr=3e-3, warmup=3, moment_dtype=moment)
    return make_optimizer(config, 20, param_axes(ONE))


@cache
def ended(moment="float32", dtype="float32"):
    made = optimizer(moment=moment)
    state = jax.vmap(partial(start, ONE, made, dtype=dtype))(jax.random.key(3)[None])
    return jax.jit(many(make_step(ONE, made)))(state, ROWS)


def test_a_first_moment_in_bfloat16():
    """Twenty steps of at most 3e-3 each: parameters within one step's length, losses within 2e-3.

    The second moment stays float32.
    """
    expected, record = ended()
    found, found_record = ended("bfloat16")
    adam = found.opt[1][0]
    assert {str(x.dtype) for x in jax.tree.leaves(adam.mu)} == {"bfloat16"}
    assert {str(x.dtype) for x in jax.tree.leaves((adam.nu, found.params))} == {"float32"}
    assert 0 < largest_difference(found.params, expected.params) < 3e-3
    assert largest_difference(found_record.loss, record.loss) < 2e-3


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_has_a_first_moment(name):
    shapes = jax.eval_shape(lambda key: start(ONE, optimizer(name, "bfloat16"), key).opt,
                            jax.random.key(0))  # fmt: skip
    half = [x for x in jax.tree.leaves(shapes) if x.dtype == jnp.bfloat16]
    assert len(half) == len(jax.tree.leaves(param_axes(ONE)))


def test_matrices_in_bfloat16():
    """Vectors and the optimiser's state stay float32; losses within 1e-2."""
    expected, record = ended()
    found, found_record = ended(dtype="bfloat16")
    axes = param_axes(ONE)
    for letters, x in zip(*map(jax.tree.leaves, (axes, found.params)), strict=True):
        assert x.dtype == (jnp.bfloat16 if is_matrix(letters) else jnp.float32)
    assert {str(x.dtype) for x in jax.tree.leaves(found.opt) if x.ndim > 1} == {"float32"}
    assert 0 < largest_difference(found_record.loss, record.loss) < 1e-2
    scale = found.params["final_norm"]["scale"], expected.params["final_norm"]["scale"]
    assert float(jnp.abs(scale[0] - 1).max()) > 1e-3  # what bfloat16 could not hold
    assert largest_difference(*scale) < 3e-3


def test_a_run_in_bfloat16_is_measured_as_any():
    config = TrainConfig(
        corpus="backcopy", seq_len=8, batch_size=4, steps=2, accumulate=2, val_batches=1,
        steps_per_call=2, param_dtype="bfloat16",
        model=ModelConfig(layers=1, width=8, heads=1, mlp_width=8, mlp="relu", position="none"),
    )  # fmt: skip
    last = train(config).rows[-1]
    assert np.isfinite(last["loss"]).all()
    assert np.isfinite(last["val_loss"]).all()


def test_the_planned_peak_falls():
    model = dataclasses.replace(CONFIG, layers=6, context=32)
    config = TrainConfig(seq_len=32, batch_size=8, model=model)
    runs = plan.levers(config)
    plain, again = (
        machines.compiled(machines.train_program(runs[name], 17, make_mesh(config.mesh_shape)))[0]
        for name in ("--scan_layers", "--scan_layers --remat=block")
    )
    assert again.peak < 0.7 * plain.peak
    assert again.arguments == plain.arguments


def test_every_lever_is_a_run():
    seen = list(plan.levers(TrainConfig()).values())
    assert len(set(seen)) == len(plan.LEVERS)
    every = seen[-1]
    assert (every.accumulate, every.model.execution.remat, every.optimizer.moment_dtype) == (
        4, "block", "bfloat16",
    )  # fmt: skip
