"""What a step costs: timed in turn, counted against a closed form."""

import dataclasses

import numpy as np
import pytest

from sysout_jax.model.config import ModelConfig
from sysout_jax.planning import timing
from sysout_jax.training.config import TrainConfig

TINY = TrainConfig(
    corpus="backcopy",
    seq_len=7,
    batch_size=3,
    model=ModelConfig(layers=2, width=8, heads=2, mlp_width=11, mlp="relu", position="none"),
)
VOCAB = 13


@pytest.fixture(scope="module")
def timed():
    """(name called, seconds it took by a clock that the test turns) for each call in order."""
    called, now = [], [0.0]
    real_steps, real_clock = timing.make_steps, timing.time.perf_counter
    costs = {"softmax": 10.0, "sigmoid": 30.0}
    with pytest.MonkeyPatch.context() as patch:

        def make_steps(step):
            name = list(costs)[len(called_for)]
            called_for.append(name)
            run = real_steps(step)

            def call(state, batches):
                called.append(name)
                now[0] += costs[name] + len(called)  # the machine gets slower and slower
                return run(state, batches)

            return call

        called_for = []
        patch.setattr(timing, "make_steps", make_steps)
        patch.setattr(timing.time, "perf_counter", lambda: now[0])
        configs = {name: dataclasses.replace(TINY, variant=name) for name in costs}
        found = timing.step_seconds(configs, VOCAB, rounds=4, steps=2)
    assert timing.time.perf_counter is real_clock
    return called, found


def test_every_round_times_each_in_turn(timed):
    called, _ = timed
    there, back = ["softmax", "sigmoid"], ["sigmoid", "softmax"]
    assert called == [*there, *there, *back, *there, *back]  # compiled first


def test_a_steady_drift_leaves_no_difference(timed):
    """Call k takes k seconds longer; two rounds there and back, the drift is the same for both."""
    _, found = timed
    assert {name: values.shape for name, values in found.items()} == {
        "softmax": (4,), "sigmoid": (4,),
    }  # fmt: skip
    np.testing.assert_allclose(found["softmax"], np.array([10 + 3, 10 + 6, 10 + 7, 10 + 10]) / 2)
    assert (found["sigmoid"] - found["softmax"]).mean() == pytest.approx(20 / 2)


def test_operations_are_those_of_the_matrix_products():
    """Three times the forward pass: 2 B T per weight, and 4 B N H T^2 of attention, roughly.

    What is beside products (norms, softmax, Adam) is a tenth or two at wider shapes, and the same
    for other widths: so widths are compared.
    """

    def products(config):
        c, sizes = config.model, config.architecture(VOCAB).sizes
        tokens = config.batch_size * config.seq_len
        d, f, v, heads = (sizes[name] for name in "DFVN")
        weights = c.layers * (4 * d * d + 2 * d * f) + d * v
        scores = c.layers * 2 * config.seq_len * heads * sizes["H"]
        return 3 * 2 * tokens * (weights + scores)

    def wide(width):
        model = dataclasses.replace(TINY.model, width=width, heads=2, mlp_width=2 * width)
        return dataclasses.replace(TINY, model=model, seq_len=17, batch_size=19)

    narrow, wider = wide(64), wide(256)
    grown = timing.step_flops(wider, VOCAB) - timing.step_flops(narrow, VOCAB)
    # the embedding is a product too where it is one-hot, and its gradient: at most 2 B T V D each
    assert grown == pytest.approx(products(wider) - products(narrow), rel=0.1)


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulate": 3},
        {"scan_layers": True},
        {"query_block": 2},
        {"loss_block": 2},
        {"flash": True},
    ],
    ids=str,
)
def test_loops_do_not_hide_operations(changes):
    own = {k: v for k, v in changes.items() if k == "accumulate"}
    model = {k: v for k, v in changes.items() if k != "accumulate"}
    base = TINY
    if "flash" in changes:  # which no others have
        of_heads = dataclasses.replace(TINY.model, head_dim=8).with_execution(dtype="bfloat16")
        base = dataclasses.replace(TINY, model=of_heads)
    config = dataclasses.replace(base, model=base.model.with_execution(**model), **own)
    assert timing.step_flops(config, VOCAB) == timing.step_flops(base, VOCAB)


def test_a_gate_costs_what_its_products_cost():
    """context_scale adds D x N weights a layer: 6 B T of them, and little beside."""
    gated = dataclasses.replace(TINY, variant="context_scale", seq_len=31)
    plain = dataclasses.replace(TINY, seq_len=31)
    more = timing.step_flops(gated, VOCAB) - timing.step_flops(plain, VOCAB)
    weights = 2 * 8 * 2
    assert 6 * 3 * 31 * weights < more < 3 * 6 * 3 * 31 * weights
