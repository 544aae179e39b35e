"""Many devices give the numbers of one: in processes of their own with eight simulated devices."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sysout_jax.core.attention import VARIANTS
from sysout_jax.errors import InputError
from sysout_jax.training.config import TrainConfig
from tests import quick

ROOT = Path(__file__).parents[2]
BOUND = 1e-5
# Each way to use devices, each mesh axis, each optimiser, accumulation; the slow test has all of
# their combinations, for every variant.
CHOSEN = [
    ["softmax", "adamw", "jit", "data=2,fsdp=2,tensor=2", 2],
    ["softmax", "adamw", "pmap", "data=8"],
    ["softmax", "adamw", "shard_map", "data=8"],
    ["key_bias", "muon", "jit", "fsdp=4,tensor=2"],
]


def run(*cases, module="on_devices"):
    done = subprocess.run(
        [sys.executable, "-m", f"tests.training.{module}", *cases],
        cwd=ROOT, capture_output=True, text=True,
        env=os.environ | quick.EIGHT_DEVICES,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Involuntary full rematerialization" not in done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def wrong(row):
    """What is not as on one device, beyond what rounding alone makes of it there.

    Initial parameters that differ by a unit of rounding end 1e-7 to 1e-5 apart on one device, but
    those of softpick, whose first weight is nearly the sign of a score near zero, 1e-2, and of
    elastic_softmax, which begins at its kink where weights are even, 3e-2. Norms of heads near zero
    (qk_norm, head_norm) leave gradients' norms 1e-4 to 3e-2 apart.
    """
    return [
        (row["case"], name, row["apart"][name], rounding)
        for name, rounding in row["rounding"].items()
        if not row["apart"][name] < max(BOUND, rounding)  # nor NaN
    ]


def check(rows):
    assert [found for row in rows for found in wrong(row)] == []
    assert {tuple(row["devices"]) for row in rows} == {(8,)}
    assert min(abs(row["moved"]) for row in rows) > 1e-3  # twenty steps went somewhere


def test_eight_devices_end_where_one_does():
    rows = run(json.dumps(CHOSEN))
    assert [row["case"] for row in rows] == CHOSEN
    check(rows)
    assert max(max(row["apart"].values()) for row in rows) < BOUND
    # Of the embeddings a device holds a half along fsdp=2, a quarter along fsdp=4.
    assert [row["held"] for row in rows] == [0.5, 0.125, 1.0, 0.25]


DIVIDED = [  # along every axis, in parts, each device for itself, KV heads copied
    ["softmax", "data=2,fsdp=2,tensor=2", 1],
    ["softmax", "data=2,fsdp=2,tensor=2", 2],
    ["softmax", "tensor=8", 1],
    ["softmax", "data=8", 1, "shard_map"],
    ["sink_logit", "fsdp=4,tensor=2", 1],
]


def test_the_kernel_of_a_tpu_is_divided_over_a_mesh():
    (_, logit), (_, softmax), *rows = run(json.dumps(DIVIDED), module="on_tpu_kernel")
    assert [case for case, _ in rows] == DIVIDED
    plain = {"softmax": softmax, "sink_logit": logit}
    for case, losses in rows:
        assert np.allclose(losses, plain[case[0]], atol=0.01), case  # bfloat16, after a step
    assert abs(np.subtract(softmax[0], softmax[-1])).min() > 0.03


# Parts of the batch, and how many gradients are added up over devices; of the loss, 3 blocks each.
SUMS = [
    ["data=8", 1, 1.0],
    ["data=8", 4, 1.0],  # once, after the last part
    ["data=2,fsdp=4", 4, 4 + 1 / 4],  # along fsdp in each part, of which a quarter is kept
    ["fsdp=8", 4, 4.0],
]


def test_gradients_are_added_up_over_devices_once():
    rows = run(json.dumps([case[:2] for case in SUMS]), module="on_mesh_programs")
    assert [row["case"] for row in rows] == [case[:2] for case in SUMS]
    for row, (_, accumulate, gradients) in zip(rows, SUMS, strict=True):
        # besides them, the loss and the gradient's norm: a few numbers
        assert row["gradients"] == pytest.approx(gradients, rel=0.02)
        assert row["loops"] == ([4, 3] if accumulate == 4 else [3])
    assert rows[0]["sums"] == rows[1]["sums"] == 1
    # Of the embedding's gradient [40, 16], a device adds up what it keeps of it.
    shapes = [set(row["carried"]) for row in rows[1:]]
    kept = ("1,1,40,16", "1,1,40,4", "1,40,2")
    assert all(shape in carried for shape, carried in zip(kept, shapes, strict=True))


@pytest.mark.slow
def test_every_variant_on_every_mesh():
    rows = run()
    assert {row["case"][0] for row in rows} == set(VARIANTS)
    check(rows)


@pytest.mark.parametrize("parallel", ["pmap", "shard_map"])
@pytest.mark.parametrize("mesh", ["fsdp=2", "data=2,tensor=2"])
def test_data_parallel_knows_no_other_axis(parallel, mesh):
    with pytest.raises(InputError, match=rf"parallel={parallel}: mesh=.*a mesh of data alone"):
        TrainConfig(parallel=parallel, mesh=mesh, batch_size=8)
