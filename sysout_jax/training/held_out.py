"""What a run is measured on while it trains: held-out batches, a part of each at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from sysout_jax.analysis.measure.summary import losses_by_query, outlier_sums, summarised
from sysout_jax.data import Backcopies, Backcopy, Source
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.parallel import Devices
from sysout_jax.training.step import parts_of, token_loss

# Parts of validation batches, and which of their queries have nothing to copy.
HeldOut = tuple[np.ndarray, np.ndarray | None]
# Of parameters on them: the loss, and the measures.
Measure = Callable[[Params, np.ndarray, np.ndarray | None], dict[str, Any]]


def rows_at_once(config: TrainConfig, architecture: ModelConfig, devices: Devices) -> int:
    """How many held-out rows are measured together: on each device, as many as a part of a step
    has there."""
    shape, parts = config.mesh_shape, config.accumulate
    if parts is None and shape.devices == 1:
        parts = parts_of(architecture, config.batch_size, config.measured_len)
    return config.batch_size // ((parts or 1) * shape.batch_parts) * devices.parts


def held_out(config: TrainConfig, corpus: Source, rows: int, seeds: tuple[int, ...]) -> HeldOut:
    """Validation batches in parts of so many rows [parts, rows, T+1], and which of their queries
    have nothing to copy; of `Backcopies` with a leading axis over seeds."""
    shape, numbers = (config.batch_size, config.measured_len), range(config.val_batches)

    def of(task: Source) -> HeldOut:
        batches = np.array([task.batch("val", 0, n, *shape) for n in numbers])
        parts = batches.reshape(-1, rows, batches.shape[-1])
        noop = ~task.trigger_queries(parts[..., :-1]) if isinstance(task, Backcopy) else None
        return parts, noop

    if not isinstance(corpus, Backcopies):
        return of(corpus)
    return jax.tree.map(lambda *x: np.stack(x), *(of(corpus.of(seed)) for seed in seeds))


def measuring(architecture: ModelConfig, corpus: Source, devices: Devices) -> Measure:
    """The compiled measurement of each seed on what `held_out` gives, pooled over all parts."""
    # The measures hold whole maps; and what is compiled here is not told of the mesh.
    measured = architecture.with_execution(flash=False)

    def of_part(params: Params, rows: Array, noop: Array | None) -> tuple[Array, Any]:
        rows = devices.spread(rows)
        losses = token_loss(measured, params, rows, devices.parts)
        sums = outlier_sums(measured, params, rows[:, :-1], noop)
        return jnp.mean(losses), sums if noop is None else sums | losses_by_query(losses, noop)

    def of_seed(params: Params, parts: Array, noop: Array | None) -> dict[str, Any]:
        losses, sums = jax.lax.map(lambda part: of_part(params, *part), (parts, noop))
        pooled = jax.tree.map(lambda x: jnp.sum(x, axis=0), sums)
        return {"val_loss": jnp.mean(losses), "measures": summarised(params, pooled)}

    # Chains that differ have batches of their own; all seeds are measured on those of a text.
    each = 0 if isinstance(corpus, Backcopies) else None
    measure: Measure = jax.jit(jax.vmap(of_seed, in_axes=(0, each, each)))
    return measure
