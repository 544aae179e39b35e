"""Train tiny models on eight simulated devices and on one; print how far apart they end.

Run by test_parallel.py in a process of its own, because a process has as many devices as it had
when it started: python -m tests.training.on_devices '[["softmax", "adamw", "jit", "data=8"], ...]'
"""

import itertools
import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from sysout_jax.core.attention import VARIANTS
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import param_axes
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.optimizer import OptimizerConfig, make_optimizer
from sysout_jax.training.parallel import make_devices

NUDGES = 3  # runs on one device that differ by a unit of rounding
STEPS, SEEDS, BATCH, LENGTH = 20, 2, 8, 5
# KV heads that tensor=8 does not divide, and a vocabulary that nothing does: both are copied.
MODEL = ModelConfig(
    vocab=13, context=LENGTH, layers=1, width=16, heads=8, kv_heads=4, head_dim=2, mlp_width=24,
    mlp="swiglu",
)  # fmt: skip
MESHES = [
    f"data={d},fsdp={f},tensor={t}"
    for d, f, t in itertools.product((1, 2, 4, 8), repeat=3)
    if d * f * t == jax.device_count()
]
OPTIMIZERS = {
    "adamw": OptimizerConfig(lr=3e-3, warmup=3),
    "muon": OptimizerConfig(optimizer="muon", lr=3e-3, warmup=3),
}
EVERY = [
    [variant, optimizer, *how]
    for optimizer in OPTIMIZERS
    for variant in VARIANTS
    for how in (*(("jit", m) for m in MESHES), ("pmap", MESHES[-1]), ("shard_map", MESHES[-1]))
]


def made(variant, optimizer, parallel, mesh, accumulate=1):
    """The devices of a run; of several, the loss in blocks of positions, the last one filled up."""
    model = MODEL if mesh == "data=1" else MODEL.with_execution(loss_block=2)
    config = TrainConfig(
        variant=variant, seq_len=LENGTH, batch_size=BATCH, accumulate=accumulate, model=model,
        optimizer=OPTIMIZERS[optimizer], mesh=mesh, parallel=parallel,
    )  # fmt: skip
    model = config.architecture(MODEL.vocab)
    optimizer = make_optimizer(config.optimizer, STEPS, param_axes(model))
    return make_devices(parallel, config.mesh_shape, model, optimizer, BATCH, accumulate)


def trained(devices, nudge=None):
    """What two seeds end with after 20 steps, and which devices hold it.

    Of `nudge`, a random generator, every initial parameter is a unit of rounding larger or smaller.
    """
    state = devices.start(jnp.stack([jax.random.key(seed) for seed in range(SEEDS)]))
    if nudge is not None:

        def moved(x):
            near = np.asarray(x) * (1 + 2.0**-23 * nudge.choice([-1, 1], x.shape))
            return jax.device_put(near.astype(x.dtype), x.sharding)

        state = state._replace(params=jax.tree.map(moved, state.params))
    shape = (STEPS, SEEDS, BATCH, LENGTH + 1)
    rows = np.random.default_rng(7).integers(0, MODEL.vocab, shape).astype(np.int32)
    state, record = devices.steps(state, devices.put(rows))
    parts = {len(x.sharding.device_set) for x in jax.tree.leaves(state)}
    embed = state.params["embed"]
    held = embed.addressable_shards[0].data.size / embed.size
    ended = {
        "params": jax.tree.map(np.asarray, devices.params(state)),
        "loss": np.asarray(record.loss),
        "grad_norm": np.asarray(record.grad_norm),
    }
    return ended, {"devices": sorted(parts), "held": held}


def largest_difference(found, expected):
    """The largest difference of parameters, losses and gradient norms."""

    def largest(a, b):
        return max(jax.tree.leaves(jax.tree.map(lambda a, b: float(np.abs(a - b).max()), a, b)))

    return {name: largest(found[name], expected[name]) for name in expected}


def on_one(variant, optimizer):
    """What one device ends with, and how far apart it ends of itself when nudged."""
    devices = made(variant, optimizer, "jit", "data=1")
    ended, _ = trained(devices)
    nudged = [
        largest_difference(trained(devices, np.random.default_rng(n))[0], ended)
        for n in range(NUDGES)
    ]
    return ended, {name: max(each[name] for each in nudged) for name in ended}


def main():
    """One line of JSON for each case."""
    cases = json.loads(sys.argv[1]) if len(sys.argv) > 1 else EVERY
    alone = {}
    for variant, optimizer, *how in cases:
        key = (variant, optimizer)
        if key not in alone:
            alone[key] = on_one(*key)
        expected, rounding = alone[key]
        found, where = trained(made(variant, optimizer, *how))
        loss = expected["loss"]
        print(
            json.dumps(
                {
                    "case": [variant, optimizer, *how],
                    "apart": largest_difference(found, expected),
                    "rounding": rounding,
                    "moved": float(loss[0].mean() - loss[-1].mean()),
                    **where,
                }
            ),
            flush=True,
        )


if __name__ == "__main__":
    main()
