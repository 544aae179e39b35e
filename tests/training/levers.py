"""What saves memory in training, each the same in value, and what each does to the planned peak."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import jax
import numpy as np

from sysout_jax.model.decoder import param_axes
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.optimizer import make_optimizer
from sysout_jax.training.parallel import mesh_steps, state_shapes
from sysout_jax.training.sharding import make_mesh

SCANNED = {"scan_layers": True}
# Flags in words -> fields of the model, the optimiser or the run, whichever has them.
LEVERS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        "none": {},
        "--remat=dots": {"remat": "dots"},
        "--remat=block": {"remat": "block"},
        "--scan_layers": SCANNED,
        "--scan_layers --remat=dots": {**SCANNED, "remat": "dots"},
        "--scan_layers --remat=block": {**SCANNED, "remat": "block"},
        "--scan_layers --accumulate=4": {**SCANNED, "accumulate": 4},
        "--scan_layers --dtype=bfloat16": {**SCANNED, "dtype": "bfloat16"},
        "--moment_dtype=bfloat16": {"moment_dtype": "bfloat16"},
        "--param_dtype=bfloat16": {"param_dtype": "bfloat16"},
        "all of them": {
            **SCANNED,
            "remat": "block",
            "accumulate": 4,
            "dtype": "bfloat16",
            "moment_dtype": "bfloat16",
            "param_dtype": "bfloat16",
        },
    }
)


def pulled(config: TrainConfig, changes: Mapping[str, Any]) -> TrainConfig:
    """A run with fields of its own, its model or its optimiser replaced."""

    def of(part: Any) -> dict[str, Any]:
        return {name: value for name, value in changes.items() if hasattr(part, name)}

    return replace(
        config,
        model=replace(config.model, **of(config.model)),
        optimizer=replace(config.optimizer, **of(config.optimizer)),
        **of(config),
    )


def peak_bytes(config: TrainConfig, vocab: int) -> int:
    """Bytes that each device needs for one step of one seed, as the compiler lays them out.

    Nothing is run: parameters, the optimiser's state and the batch are shapes. Only what the step
    holds at once counts, so a state that is donated counts once.

    Args:
      config: the run, its mesh included.
      vocab: of the corpus.
    """
    architecture = config.architecture(vocab)
    optimizer = make_optimizer(config.optimizer, config.steps, param_axes(architecture))
    steps = mesh_steps(make_mesh(config.mesh_shape), architecture, optimizer, config.accumulate)
    state = state_shapes(architecture, optimizer, dtype=config.param_dtype)
    batch = jax.ShapeDtypeStruct((1, 1, config.batch_size, config.seq_len + 1), np.int32)
    found = steps.lower(state, batch).compile().memory_analysis()
    held = found.argument_size_in_bytes + found.output_size_in_bytes - found.alias_size_in_bytes
    return int(held + found.temp_size_in_bytes)
