"""Models written as a published family stores them."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from sysout_jax.errors import InputError, at_least, one_of
from sysout_jax.families import tensor_map
from sysout_jax.families.config_map import write_config
from sysout_jax.families.table import FAMILIES
from sysout_jax.families.tensor_map import Stored
from sysout_jax.families.tensors import INDEX, SINGLE
from sysout_jax.families.tokens import write_tokenizer
from sysout_jax.files import replacing
from sysout_jax.model.decoder import unstack_blocks
from sysout_jax.model.model import Model, check_model

SHARD_BYTES = 5_000_000_000


def export(
    model: Model, directory: str | os.PathLike[str], family: str, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write a model as a published family stores it; the directory appears whole or not at all.

    Args:
      model: its parameters may be of any of the stored dtypes; each keeps its own.
      directory: must not exist yet.
      family: a name in `FAMILIES`.
      shard_bytes: the most that one file holds, unless a single tensor is larger.

    Raises:
      InputError: the family cannot say this architecture, the directory exists, or no byte fits
        into a file.
      OSError: it cannot be written.
    """
    check_model(model)
    one_of("family", family, tuple(FAMILIES))
    at_least(1, "shard_bytes", shard_bytes)
    row, target = FAMILIES[family], Path(os.path.expanduser(directory)).absolute()
    if target.exists():
        raise InputError(str(target), None, "a directory that does not", "exists")
    config = model.config.with_execution(scan_layers=False)
    raw = write_config(row, config)
    params = unstack_blocks(model.params) if model.config.execution.scan_layers else model.params
    by_path = {path: np.asarray(leaf) for path, leaf in tensor_map.leaves(params)}
    with replacing(target) as partial:
        partial.mkdir(parents=True)
        _write_tensors(partial, tensor_map.layout(row, config), by_path, shard_bytes)
        if model.tokenizer is not None:
            raw |= write_tokenizer(model.tokenizer, partial)
        (partial / "config.json").write_text(json.dumps(raw, indent=2) + "\n")


def _write_tensors(
    directory: Path,
    layout: list[Stored],
    by_path: Mapping[tuple[str, ...], np.ndarray],
    shard_bytes: int,
) -> None:
    sizes = [
        math.prod(stored.shape) * max(by_path[part.path].itemsize for part in stored.parts)
        for stored in layout
    ]
    groups: list[list[Stored]] = []
    held = 0  # by the last file
    for stored, size in zip(layout, sizes, strict=True):
        if not groups or held + size > shard_bytes:
            groups.append([])
            held = 0
        groups[-1].append(stored)
        held += size
    weight_map: dict[str, str] = {}
    for number, group in enumerate(groups, start=1):
        file = (
            SINGLE if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        )
        save_file(
            {stored.name: stored.put(by_path) for stored in group},
            directory / file,
            metadata={"format": "pt"},
        )
        weight_map |= {stored.name: file for stored in group}
    if len(groups) > 1:
        index = {"metadata": {"total_size": sum(sizes)}, "weight_map": weight_map}
        (directory / INDEX).write_text(json.dumps(index, indent=2) + "\n")
