"""Train with the kernel of a TPU, interpreted, on eight simulated devices; print the losses.

Run by test_parallel.py in a process of its own: python -m tests.training.on_tpu_kernel \
    '[["data=8", 1], ...]'
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from sysout_jax.core import flash
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import param_axes
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.optimizer import OptimizerConfig, make_optimizer
from sysout_jax.training.parallel import make_devices

STEPS, SEEDS, BATCH, LENGTH, VOCAB = 2, 2, 8, 5, 13
MODEL = ModelConfig(  # KV heads that tensor=8 does not divide
    context=LENGTH, layers=2, width=16, heads=8, kv_heads=4, head_dim=8, mlp_width=24, mlp="swiglu",
    window=3, window_layers=(1,),
).with_execution(dtype="bfloat16", flash=True)  # fmt: skip


def interpreted(q, k, v, scale, past):
    """In the place of the plain form, which this machine has instead."""
    return flash._splash((q * scale).astype(q.dtype), k, v, 1.0, past, interpret=True)


def losses(variant, mesh, accumulate, parallel="jit"):
    """[steps, seeds]."""
    config = TrainConfig(
        variant=variant, seq_len=LENGTH, batch_size=BATCH, accumulate=accumulate, mesh=mesh,
        model=MODEL, optimizer=OptimizerConfig(lr=0.03, warmup=1), parallel=parallel,
    )  # fmt: skip
    model = config.architecture(VOCAB)
    optimizer = make_optimizer(config.optimizer, STEPS, param_axes(model))
    devices = make_devices(parallel, config.mesh_shape, model, optimizer, BATCH, accumulate)
    state = devices.start(jnp.stack([jax.random.key(seed) for seed in range(SEEDS)]))
    shape = (SEEDS, BATCH, LENGTH + 1)
    rows = np.random.default_rng(7).integers(0, VOCAB, shape).astype(np.int32)
    rows = np.stack([rows] * STEPS)  # which is learned by heart, so that losses move
    return np.asarray(devices.steps(state, devices.put(rows))[1].loss).tolist()


def main():
    """One line of JSON for each case, and before it one of the plain form on one device."""
    cases = json.loads(sys.argv[1])
    for variant in sorted({case[0] for case in cases}):
        print(json.dumps([variant, losses(variant, "data=1", 1)]))
    flash._plain = interpreted
    for case in cases:
        print(json.dumps([case, losses(*case)]), flush=True)


if __name__ == "__main__":
    main()
