"""Training on one device or many: the same step under jit on a mesh, under pmap, under shard_map.

`jit` is the main path: arrays are placed by training/sharding.py and the compiler inserts what
devices have to tell each other. `pmap` and `shard_map` are data-parallel: every device holds
everything, computes its part of the batch, and averages loss and gradient.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array
from optax import GradientTransformation

from sysout_jax.errors import InputError, one_of
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, draws, param_axes
from sysout_jax.model.taps import Edits
from sysout_jax.training.hosts import host_rows, put_rows
from sysout_jax.training.objective import NEXT_TOKENS, Objective
from sysout_jax.training.sharding import (
    TABLE,
    MeshShape,
    batch_parts,
    batch_sharding,
    make_mesh,
    place,
    shardings,
    spec,
)
from sysout_jax.training.step import (
    Step,
    StepRecord,
    TrainState,
    make_step,
    make_steps,
    many,
    mapped,
    start,
    stored,
)

PARALLEL = ("jit", "pmap", "shard_map")
SEEDS = 1  # axes before a parameter's own
STEPS_AND_SEEDS = 2  # axes before the rows of a batch


@dataclass(frozen=True)
class Devices:
    """How a run uses its devices."""

    start: Callable[[Array], TrainState]  # keys [seeds] -> the state before the first step
    put: Callable[[np.ndarray], Array]  # batches [steps, seeds, B, T+1] to the devices
    rows: np.ndarray | None  # of B that this process reads and puts; None: all
    steps: Step
    whole: Callable[[Any], Any]  # a state, or a part of it: [seeds, ...], to measure and to keep
    placed: Callable[[TrainState], TrainState]  # the other way: what `whole` gave, to go on
    spread: Callable[[Array], Array]  # inside jit, where params are used: rows [B, T] over devices
    parts: int = 1  # into which `spread` divides them

    def params(self, state: TrainState) -> Params:
        """[seeds, ...], to measure and to keep."""
        params: Params = self.whole(state.params)
        return params


def check_parallel(parallel: str, shape: MeshShape) -> None:
    """Refuse an unknown way to use devices, or one that does not know the mesh's axes.

    Raises:
      InputError: says what is accepted.
    """
    one_of("parallel", parallel, PARALLEL)
    if parallel != "jit" and shape.data != shape.devices:
        raise InputError(
            "parallel",
            parallel,
            f"a mesh of data alone, such as data={shape.devices}, or --parallel=jit",
            f"--mesh={shape}",
        )


def make_devices(
    parallel: str,
    shape: MeshShape,
    config: ModelConfig,
    optimizer: GradientTransformation,
    batch_size: int,
    accumulate: int | None = None,
    dtype: str = "float32",
    objective: Objective = NEXT_TOKENS,
) -> Devices:
    """What a training run needs to know of its devices.

    Args:
      parallel: jit, pmap or shard_map; on a single device all are one.
      shape: of the mesh.
      config, optimizer, accumulate, objective: as for `make_step`; without `accumulate`, several
        devices take their batch in one part.
      batch_size: B, of all devices together.
      dtype: as for `start`.

    Raises:
      InputError: there are more or fewer devices than the mesh has.
    """
    mesh = make_mesh(shape)
    if shape.devices == 1:
        begin = jax.vmap(partial(start, config, optimizer, dtype=dtype))
        steps = make_steps(make_step(config, optimizer, accumulate, objective=objective))
        return Devices(begin, jnp.asarray, None, steps, _same, _same, lambda rows: rows)
    make = {"jit": _jit, "pmap": _pmap, "shard_map": _shard_map}[parallel]
    return make(mesh, config, optimizer, batch_size, accumulate or 1, dtype, objective)


def _same(state: Any) -> Any:
    return state


# ------------------------------------------------------------------------- jit


def mesh_edits(mesh: Mesh, over: Sequence[str]) -> Edits:
    """Edits that keep the residual stream divided by sequences alone.

    Without them the compiler may take the division of a parameter's width over to activations.

    Args:
      mesh: of `make_mesh`.
      over: the axes that divide the sequences.
    """
    where = NamedSharding(mesh, PartitionSpec(tuple(over)))

    def keep(x: Array, layer: Array) -> Array:
        return jax.lax.with_sharding_constraint(x, where)

    return {"block_in": keep, "final_norm": keep}


def whole_tables(mesh: Mesh, config: ModelConfig, params: Params) -> Params:
    """The parameters, those that rows are taken from gathered along fsdp.

    A row of a table whose width is divided is divided as well, and the compiler knows no good way
    from there to activations that are divided by sequences.
    """

    def of(letters: str, x: Array) -> Array:
        if letters.split()[0] not in ("V", "T"):
            return x
        rows, *_ = spec(mesh, letters, x.shape)
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, PartitionSpec(rows)))

    return cast(Params, jax.tree.map(of, param_axes(config), params))


def state_shapes(
    config: ModelConfig, optimizer: GradientTransformation, dtype: str = "float32"
) -> TrainState:
    """The stacked state of one seed, as shapes."""
    keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
    begin = jax.vmap(partial(start, config, optimizer, dtype=dtype))
    shapes: TrainState = jax.eval_shape(begin, keys)
    return shapes


def mesh_steps(
    mesh: Mesh,
    config: ModelConfig,
    optimizer: GradientTransformation,
    accumulate: int = 1,
    objective: Objective = NEXT_TOKENS,
) -> Any:
    """The compiled call of `many` steps on a mesh, the state donated.

    Args:
      mesh: of `make_mesh`.
      config, optimizer, accumulate, objective: as for `make_step`.

    Returns:
      A jitted function: it can be called, or lowered with the shapes of state and batches.
    """
    where = state_shardings(mesh, config, optimizer)
    gather = partial(whole_tables, mesh, config)
    sizes = {name: mesh.shape[name] for name in TABLE["B"].over}
    devices = (sizes["data"], sizes["fsdp"])
    edits = mesh_edits(mesh, list(sizes)[mapped(config, sizes["data"], accumulate) :])
    step = make_step(config, optimizer, accumulate, None, gather, edits, objective, devices)

    def steps(state: TrainState, batches: Array) -> tuple[TrainState, StepRecord]:
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):  # which a fused kernel asks for
            return many(step)(state, batches)

    return jax.jit(
        steps,
        in_shardings=(where, batch_sharding(mesh, STEPS_AND_SEEDS)),
        out_shardings=(where, NamedSharding(mesh, PartitionSpec())),
        donate_argnums=0,
    )


def state_shardings(
    mesh: Mesh | AbstractMesh, config: ModelConfig, optimizer: GradientTransformation
) -> TrainState:
    """Where the stacked state of some seeds lives."""
    one = state_shapes(config, optimizer)  # the number of seeds changes no sharding
    where: TrainState = shardings(mesh, param_axes(config), one, SEEDS)
    return where


def _placed_start(
    config: ModelConfig, optimizer: GradientTransformation, where: TrainState, dtype: str
) -> Callable[[Array], TrainState]:
    """The state before the first step, parameter by parameter: no device holds all of them."""

    def begin(keys: Array) -> TrainState:
        def drawn(draw: Any, sharding: NamedSharding) -> Array:
            placed: Array = place(jax.vmap(draw)(keys), sharding)
            return placed

        params = jax.tree.map(drawn, draws(config), where.params)
        opt = jax.jit(jax.vmap(optimizer.init), out_shardings=where.opt)(params)
        return TrainState(jax.tree.map(partial(stored, dtype), params, param_axes(config)), opt)

    return begin


def _jit(
    mesh: Mesh, config: ModelConfig, optimizer: GradientTransformation, batch_size: int,
    accumulate: int, dtype: str,
    objective: Objective,
) -> Devices:  # fmt: skip
    rows = host_rows(mesh, batch_size)
    where = state_shardings(mesh, config, optimizer)
    return Devices(
        start=_placed_start(config, optimizer, where, dtype),
        put=partial(put_rows, mesh, batch_size, rows),
        rows=rows,
        steps=mesh_steps(mesh, config, optimizer, accumulate, objective),
        whole=_same,
        placed=_same,
        spread=lambda x: jax.lax.with_sharding_constraint(x, batch_sharding(mesh)),
        parts=batch_parts(mesh.shape),
    )


# ------------------------------------------------------------------------- data parallel

AXIS = "data"


def _averaging(
    config: ModelConfig, optimizer: GradientTransformation, accumulate: int, objective: Objective
) -> Step:
    average = partial(jax.lax.pmean, axis_name=AXIS)
    return many(make_step(config, optimizer, accumulate, average, objective=objective))


def _shard_map(
    mesh: Mesh, config: ModelConfig, optimizer: GradientTransformation, batch_size: int,
    accumulate: int, dtype: str,
    objective: Objective,
) -> Devices:  # fmt: skip
    whole, rows = PartitionSpec(), batch_sharding(mesh, STEPS_AND_SEEDS)
    read = host_rows(mesh, batch_size)
    steps = jax.shard_map(
        _averaging(config, optimizer, accumulate, objective),
        mesh=mesh,
        in_specs=(whole, rows.spec),
        out_specs=(whole, whole),
        check_vma=False,  # else jax itself would sum the gradient of what all devices hold
    )
    everywhere = jax.tree.map(lambda _: NamedSharding(mesh, whole), state_shapes(config, optimizer))
    return Devices(
        start=_placed_start(config, optimizer, everywhere, dtype),
        put=partial(put_rows, mesh, batch_size, read),
        rows=read,
        steps=jax.jit(steps, donate_argnums=0),
        whole=_same,
        placed=_same,
        spread=lambda x: jax.lax.with_sharding_constraint(x, batch_sharding(mesh)),
        parts=batch_parts(mesh.shape),
    )


def _pmap(
    mesh: Mesh, config: ModelConfig, optimizer: GradientTransformation, batch_size: int,
    accumulate: int, dtype: str,
    objective: Objective,
) -> Devices:  # fmt: skip
    devices, here = list(mesh.devices.flat), len(mesh.local_devices)
    begin = jax.vmap(partial(start, config, optimizer, dtype=dtype))
    steps = jax.pmap(
        _averaging(config, optimizer, accumulate, objective),
        AXIS,
        in_axes=(0, 0),
        out_axes=(0, None),
        devices=devices,
        donate_argnums=0,
    )
    each = jax.pmap(lambda x: x, AXIS, devices=devices)  # puts one slice on each device

    def copies(x: Array) -> np.ndarray:
        return np.broadcast_to(np.asarray(x), (here, *x.shape))

    def one(x: Array) -> Array:
        return x.addressable_shards[0].data[0]

    return Devices(
        start=lambda keys: each(jax.tree.map(copies, begin(keys))),
        put=lambda batches: each(np.stack(np.split(batches, here, axis=STEPS_AND_SEEDS))),
        rows=host_rows(mesh, batch_size),
        steps=steps,
        whole=lambda state: jax.tree.map(one, state),
        placed=lambda state: each(jax.tree.map(copies, state)),
        spread=lambda rows: rows,
    )
