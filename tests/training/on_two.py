"""One of two processes that gather, begin and disagree; run by test_hosts.py.

python -m tests.training.on_two PORT PROCESS MODEL_DIRECTORY
"""

import dataclasses
import json
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=1"

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from sysout_jax.data.backcopy import Backcopy
from sysout_jax.errors import InputError
from sysout_jax.model.decoder import init, param_axes
from sysout_jax.training import hosts
from sysout_jax.training.loop import train
from sysout_jax.training.resume import initial
from sysout_jax.training.sharding import MeshShape, make_mesh, place, shardings
from tests.training.test_states import TINY

COMPILED = "/jax/core/compile/backend_compile_duration"


def refused(act):
    """What is said of what all processes refuse."""
    try:
        act()
    except InputError as error:
        return str(error)
    return None


def gathering(mesh):
    """Leaves that are divided, on every device and of this process alone, gathered twice."""
    whole = np.arange(24.0, dtype=np.float32).reshape(4, 6)
    cut, everywhere = (NamedSharding(mesh, PartitionSpec(axis)) for axis in ("fsdp", None))
    where = {"cut": cut, "all": everywhere}
    tree = place({name: whole + at for at, name in enumerate(where)}, where)
    tree |= {"too": place(whole, cut), "own": jax.numpy.zeros(1)}
    heard = []
    jax.monitoring.register_event_duration_secs_listener(lambda name, *_, **__: heard.append(name))
    found = hosts.gather_to_hosts(tree)
    again = hosts.gather_to_hosts(tree, wanted=hosts.is_main())
    compiled = heard.count(COMPILED)
    return {
        "host": {name: isinstance(x, np.ndarray) for name, x in found.items()},
        "sums": {name: float(np.sum(x)) for name, x in found.items()},
        "left": [name for name, x in again.items() if x is not None],
        "compiled": compiled,
    }  # fmt: skip


def beginning(mesh, model):
    """The parameters of a model, in the places of a run's that both processes divide."""
    architecture = TINY.architecture(65)
    keys = jax.numpy.stack([jax.random.key(seed) for seed in TINY.seeds])
    fresh = jax.vmap(lambda key: init(architecture, key))(keys)
    fresh = place(fresh, shardings(mesh, param_axes(architecture), fresh, 1))
    begun = initial(model, architecture, Backcopy(), TINY.seeds, fresh)
    same = jax.tree.map(lambda x, y: x.sharding == y.sharding, begun, dict(fresh))
    sums = jax.tree.map(lambda x: float(np.abs(x).sum()), hosts.gather_to_hosts(begun))
    return {"placed": all(jax.tree.leaves(same)), "sum": sum(jax.tree.leaves(sums))}


def main():
    """Print what came of each."""
    port, process, model = sys.argv[1:]
    hosts.connect(f"127.0.0.1:{port}", 2, int(process))
    mesh = make_mesh(MeshShape(fsdp=2))
    run = dataclasses.replace(TINY, mesh="fsdp=2")
    other = dataclasses.replace(run, steps=TINY.steps + int(process))
    print(json.dumps({
        "gathered": gathering(mesh),
        "begun": beginning(mesh, Path(model)),
        "config": refused(lambda: train(other, Backcopy())),
        "text": refused(lambda: train(run, Backcopy(chain_seed=int(process)))),
    }))  # fmt: skip


if __name__ == "__main__":
    main()
