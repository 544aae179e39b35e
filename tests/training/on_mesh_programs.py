"""Compile a step for eight simulated devices; print what its devices tell each other.

Run by test_parallel.py in a process of its own: python -m tests.training.on_mesh_programs \
    '[["data=8", 4], ...]'
"""

import io
import json
import re
import sys
from math import prod

import jax

from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import param_shapes
from sysout_jax.planning import hlo, machines
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.sharding import make_mesh

VOCAB = 40
# Of the vocabulary, 3 blocks of positions: a sum over devices in each would show.
MODEL = ModelConfig(
    context=9, layers=1, width=16, heads=8, head_dim=2, mlp_width=24, mlp="relu"
).with_execution(loss_block=3)


def program(mesh, accumulate):
    """How many gradients are added up over devices, and what its longest loop carries."""
    config = TrainConfig(seq_len=9, batch_size=32, accumulate=accumulate, mesh=mesh, model=MODEL)
    text = machines.train_program(config, VOCAB, make_mesh(config.mesh_shape)).compile().as_text()
    moved = hlo.traffic(hlo.parse(io.StringIO(text)))
    whole = config.architecture(VOCAB)
    gradient = 4 * sum(prod(x.shape) for x in jax.tree.leaves(param_shapes(whole)))
    sums = moved.collectives["all-reduce"]
    carried = max(re.findall(r" = \((s32\[\].*?)\) while\(", text), key=len)
    return {
        "case": [mesh, accumulate],
        "loops": moved.loops,
        "sums": sums.count,
        "gradients": sums.bytes / gradient,
        "carried": re.findall(r"f32\[([\d,]*)\]", carried),
    }


def main():
    """One line of JSON for each case."""
    for case in json.loads(sys.argv[1]):
        print(json.dumps(program(*case)), flush=True)


if __name__ == "__main__":
    main()
