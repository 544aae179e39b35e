"""One of several processes that train a tiny model together; run by test_hosts.py.

python -m tests.training.on_hosts '{"coordinator": ..., "processes": 2, "process": 0, ...}'
"""

import json
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    ASKED = json.loads(sys.argv[1])
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={ASKED['devices']}"

import jax
import numpy as np

from experiments.cli import launch
from sysout_jax.data.backcopy import Backcopy
from sysout_jax.model.config import ModelConfig
from sysout_jax.training import held_out, hosts, loop
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.optimizer import OptimizerConfig
from sysout_jax.training.resume import States
from sysout_jax.training.states import Saving


class Watched(Backcopy):
    """The task, remembering how many rows of training batches were read."""

    def batch(self, split, seed, index, batch_size, seq_len, rows=None):
        found = super().batch(split, seed, index, batch_size, seq_len, rows)
        if split == "train" and index:  # the first are compared, whole
            READ.append(len(found))
        return found


class Poisoned(Watched):
    """The task with a token that does not exist, whose embedding is NaN, in the batch of a step."""

    def batch(self, split, seed, index, batch_size, seq_len, rows=None):
        found = super().batch(split, seed, index, batch_size, seq_len, rows)
        if [split, jax.process_index(), index] == ["train", *ASKED["poison"]]:
            found[0, 0] = 1_000_000
        return found


READ: list[int] = []


def main():
    """Print, as process 0, the losses and a sum of the parameters; each prints what it read."""
    hosts.connect(ASKED.get("coordinator"), ASKED.get("processes"), ASKED.get("process"))
    config = TrainConfig(
        corpus="backcopy", seq_len=8, batch_size=8, steps=ASKED["steps"], steps_per_call=2,
        measure_every=ASKED["steps"], val_batches=1, seeds=(3, 1), variant="context_scale",
        mesh=ASKED["mesh"], parallel=ASKED["parallel"], optimizer=OptimizerConfig(lr=1e-2),
        model=ModelConfig(layers=1, width=8, heads=2, mlp_width=8, mlp="relu", position="none"),
    )  # fmt: skip

    if not ASKED["measures"]:  # whose compiling takes most of the time
        held_out.outlier_sums = lambda *_: {}

    task = Poisoned() if ASKED["poison"] else Watched()
    seen: list[int] = []

    def log(row):
        seen.append(row["step"])
        if hosts.is_main():
            print(json.dumps({"step": row["step"]}), flush=True)

    states = None
    if ASKED["states"]:  # kept there, until a process is asked to stop after a step
        states = States(
            Path(ASKED["states"]), Saving(save_every=0), print,
            stopping=lambda: ASKED["stop"] == [jax.process_index(), *seen[-1:]],
        )  # fmt: skip
    run = loop.train(config, task, log, states=states)
    rows = [np.asarray(row["loss"]).tolist() for row in run.rows[1:]]
    total = float(sum(np.abs(np.asarray(x)).sum() for x in jax.tree.leaves(run.params)))
    measured = {name: np.asarray(x).tolist() for name, x in run.rows[-1]["measures"].items()}
    print(json.dumps({"loss": rows, "params": total, "read": sorted(set(READ)),
                      "val_loss": np.asarray(run.rows[-1]["val_loss"]).tolist(),
                      "measures": measured}), flush=True)  # fmt: skip


if __name__ == "__main__":
    sys.exit(launch.guarded(main, sys.argv[:1]))
