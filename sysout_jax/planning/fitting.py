"""Which mesh, remat, number of parts or batch would fit on devices that a run does not fit on."""

from collections.abc import Iterator
from dataclasses import replace
from math import prod

import jax
from jax.sharding import AbstractMesh

from sysout_jax.errors import InputError
from sysout_jax.model.decoder import param_axes
from sysout_jax.model.loss import block_of
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.optimizer import make_optimizer
from sysout_jax.training.parallel import state_shapes, state_shardings
from sysout_jax.training.sharding import MESH_AXES, MeshShape, check_fits, divisors


def state_bytes(config: TrainConfig, vocab: int) -> float:
    """Parameters and the optimiser's state on one device, from shapes and shardings alone."""
    architecture = config.architecture(vocab)
    optimizer = make_optimizer(config.optimizer, config.steps, param_axes(architecture))
    shapes = state_shapes(architecture, optimizer, dtype=config.param_dtype)
    mesh = AbstractMesh(tuple(config.mesh_shape.sizes.values()), MESH_AXES)
    where = state_shardings(mesh, architecture, optimizer)
    parts = jax.tree.map(
        lambda x, place: prod(place.shard_shape(x.shape)) * x.dtype.itemsize, shapes, where
    )
    return float(sum(jax.tree.leaves(parts)))


def activation_bytes(config: TrainConfig, vocab: int) -> float:
    """A rough count of what a step keeps on one device beside its state: it ranks, no more.

    Of tokens: what each layer keeps for the backward pass and what one layer computes; and the
    logits that the loss has at a time.
    """
    c = config.architecture(vocab)
    size, mesh = c.sizes, config.mesh_shape
    parts = mesh.batch_parts * config.parts
    tokens = config.batch_size * config.seq_len / parts
    how = c.execution
    itemsize = 2 if how.dtype == "bfloat16" else 4
    maps = 0 if c.fused else 3 * size["N"] * min(config.seq_len, how.query_block or config.seq_len)
    inside = (3 * size["F"] + 4 * size["N"] * size["H"] + maps) / mesh.tensor + 4 * size["D"]
    kept = {"none": inside, "dots": inside - maps / mesh.tensor, "block": size["D"]}[how.remat]
    divided = mesh.tensor if size["V"] % mesh.tensor == 0 else 1
    sequences = max(1, config.batch_size // parts)
    logits = sequences * block_of(c, sequences, config.seq_len) * size["V"] / divided
    return tokens * itemsize * (size["L"] * kept + inside) + 8 * logits


def alternatives(config: TrainConfig, devices: int) -> Iterator[TrainConfig]:
    """Every mesh of so many devices, with the remat that was asked for and with that of blocks, and
    every number of parts of the batch that fit it; smaller batches where none do; those nearest to
    what was asked for first."""
    asked = config.model.execution.remat
    for batch in divisors(config.batch_size)[::-1]:
        for remat in dict.fromkeys((asked, "block")):
            for parts in divisors(batch):
                if parts >= config.parts:
                    for mesh in _meshes(devices):
                        model = config.model.with_execution(remat=remat)
                        try:
                            check_fits(mesh, model, batch, parts)
                        except InputError:
                            continue
                        yield replace(
                            config, mesh=str(mesh), model=model, batch_size=batch, accumulate=parts
                        )


def _meshes(devices: int) -> list[MeshShape]:
    """All meshes of so many devices; tensor, which talks the most, as small as it can be."""
    found = [
        MeshShape(data, fsdp, devices // (data * fsdp))
        for data in divisors(devices)
        for fsdp in divisors(devices // data)
    ]
    return sorted(found, key=lambda mesh: (mesh.tensor, mesh.fsdp))


def suggestion(
    config: TrainConfig, vocab: int, devices: int, asked: int, room: float
) -> TrainConfig | None:
    """The alternative nearest to `config` that is expected to fit; to be compiled to be sure.

    Args:
      config: what did not fit.
      vocab: of its corpus.
      devices: how many, to choose the mesh of.
      asked: peak bytes of `config` as compiled, by which the rough count is scaled.
      room: bytes that each device has.
    """
    held: dict[str, float] = {}
    config = replace(config, mesh=str(config.mesh_shape))

    def state(one: TrainConfig) -> float:
        if one.mesh not in held:
            held[one.mesh] = state_bytes(one, vocab)
        return held[one.mesh]

    rest = asked - state(config)
    scale = max(rest / activation_bytes(config, vocab), 1.0)
    for one in alternatives(config, devices):
        # Gradients are as large as parameters: a third of the state of AdamW.
        needed = 4 / 3 * state(one) + scale * activation_bytes(one, vocab)
        if one != config and needed < 0.95 * room:
            return one
    return None
