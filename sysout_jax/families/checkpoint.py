"""Checkpoint directories of published models: loaded tensor by tensor, exported the same way."""

import itertools
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from sysout_jax.errors import InputError
from sysout_jax.families import tensor_map
from sysout_jax.families.config_map import read_config, read_json, read_within, write_config
from sysout_jax.families.family import Family, Within
from sysout_jax.families.table import FAMILIES, by_model_type
from sysout_jax.families.tensor_map import Part, Stored
from sysout_jax.families.tensors import DTYPES, INDEX, SINGLE, Source, sources
from sysout_jax.families.tokens import published_tokenizer
from sysout_jax.model.config import ModelConfig, at_least, one_of
from sysout_jax.model.decoder import param_axes, unstack_blocks
from sysout_jax.model.model import Model
from sysout_jax.model.stream import Layers

# Axis letters, e.g. "D -> N H", and the shape of a parameter -> where it goes.
Shard = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
NAMED = 20  # tensors that one message names, of each kind of fault
SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: everything checked that can be without reading a tensor."""

    directory: Path
    family: Family
    config: ModelConfig
    plan: Mapping[tuple[str, ...], tuple[tuple[Stored, Part, Source], ...]]  # by parameter
    dtypes: Mapping[tuple[str, ...], str]  # of the parameters once loaded
    axes: Mapping[tuple[str, ...], str]
    shapes: Mapping[tuple[str, ...], tuple[int, ...]]

    def parameter(self, path: tuple[str, ...], shard: Shard | None = None) -> jax.Array:
        """Read one parameter; the host holds it and one stored tensor, nothing else.

        Raises:
          InputError: the file cannot be read, or holds NaN or infinity.
        """
        whole = _aligned(self.shapes[path], np.dtype(jnp.dtype(self.dtypes[path])))
        for stored, part, source in self.plan[path]:
            target = whole if part.expert is None else whole[part.expert]
            np.copyto(target, stored.take(part, source.read()), casting="unsafe")
        where = shard(self.axes[path], whole.shape) if shard else None
        return jax.device_put(whole, where, may_alias=True)

    def layers(self) -> Layers:
        """The tree of all parameters, each part of it read when it is asked for."""
        return Layers(self.params, tuple(dict.fromkeys(path[0] for path in self.plan)))

    def params(self, top: str = "", shard: Shard | None = None) -> Any:
        """The tree of all parameters, or of those below `top`, e.g. "block_3"."""
        tree: dict[str, Any] = {}
        for path in self.plan:
            if not top or path[0] == top:
                at = tree
                for name in path[:-1]:
                    at = at.setdefault(name, {})
                at[path[-1]] = self.parameter(path, shard)
        return tree.get(top, {}) if top else tree


def open_checkpoint(directory: str | os.PathLike[str], dtype: str | None = None) -> Checkpoint:
    """Open a directory with config.json and safetensors, without reading a tensor.

    Args:
      directory: as published, or as `export` wrote it.
      dtype: of the parameters in memory: float32, bfloat16, float16; None: as they are stored.
        Activations are bfloat16 where all parameters are, else float32.

    Raises:
      InputError: an unknown family, a config that this family does not cover, or tensors that are
        missing, left over, of the wrong shape or stored twice: all of them, by name.
    """
    path = Path(directory)
    if dtype is not None:
        one_of("param_dtype", dtype, tuple(DTYPES.values()))
    raw = read_json(path / "config.json")
    family = by_model_type(raw.get("model_type"), path / "config.json")
    own = read_within(family, raw)
    within = family.within if own is not raw else None
    config = read_config(family, own)
    found, faults = sources(path)
    _check_extent(path, config, len(found))
    shapes = tensor_map.shapes(config)
    plan = _plan(family, config, found, shapes, faults, within)
    stored = {p: DTYPES[parts[0][2].dtype] for p, parts in plan.items()}
    dtypes = {p: dtype or stored[p] for p in plan}
    half = set(dtypes.values()) == {"bfloat16"}
    config = replace(config, dtype="bfloat16" if half else "float32")
    axes = dict(tensor_map.leaves(param_axes(config)))
    return Checkpoint(path, family, config, plan, dtypes, axes, shapes)


def _check_extent(path: Path, config: ModelConfig, stored: int) -> None:
    """Refuse sizes that no checkpoint has before anything is laid out for them."""
    largest = max(config.sizes.values())
    if config.layers > stored or largest >= 1 << 31:
        raise InputError(
            str(path / "config.json"),
            None,
            f"no more layers than the {stored} stored tensors, sizes below {1 << 31}",
            f"{config.layers} layers, the largest size {largest}",
        )


def load_checkpoint(
    directory: str | os.PathLike[str], dtype: str | None = None, shard: Shard | None = None
) -> Model:
    """Read a published model.

    Args:
      directory, dtype: as for `open_checkpoint`.
      shard: where each parameter goes, by its axis letters and shape; None: the default device.

    Raises:
      InputError: as `open_checkpoint`, or a tensor that cannot be read.
    """
    opened = open_checkpoint(directory, dtype)
    return Model(opened.config, opened.params(shard=shard), published_tokenizer(opened.directory))


def _plan(
    family: Family,
    config: ModelConfig,
    found: list[Source],
    shapes: Mapping[tuple[str, ...], tuple[int, ...]],
    faults: list[str],
    within: Within | None,
) -> dict[tuple[str, ...], tuple[tuple[Stored, Part, Source], ...]]:
    """Which stored tensors make each parameter; every fault at once."""
    if within is None:
        bare = not any(source.name.startswith(family.prefix) for source in found)
        by_name = {_full(family, source.name, bare): source for source in found}
    else:
        by_name = {_outer(within, source.name): source for source in found}
        read = [n for n in by_name if not any(re.fullmatch(p, n) for p in within.others)]
        by_name = {name: by_name[name] for name in read}
    plan: dict[tuple[str, ...], list[tuple[Stored, Part, Source]]] = {path: [] for path in shapes}
    missing, shaped = [], []
    for stored in tensor_map.layout(family, config):
        source = by_name.pop(stored.name, None)
        if source is None:
            missing.append(stored.name)
        elif source.shape != stored.shape:
            shaped.append(f"{source.name} {list(source.shape)} for {list(stored.shape)}")
        else:
            for part in stored.parts:
                plan[part.path].append((stored, part, source))
    for name, source in list(by_name.items()):
        if any(re.fullmatch(pattern, name) for pattern in family.buffers):
            by_name.pop(name)
        elif (
            config.tied
            and _is_head(family, name)
            and plan[("embed",)]
            and np.array_equal(source.read(), plan[("embed",)][0][2].read())
        ):
            by_name.pop(name)  # written beside the embedding that it is tied to
    if not missing and not shaped:
        missing += ["/".join(path) for path, parts in plan.items() if not parts]
    problems = [
        f"{title}: {_named(names)}"
        for title, names in (
            ("missing", missing),
            ("left over", sorted(source.name for source in by_name.values())),
            ("of another shape", shaped),
            ("wrongly stored", faults),
        )
        if names
    ]
    if problems:
        where = found[0].file.parent if found else family.name
        raise InputError(str(where), why=f"tensors of {family.name}: {'; '.join(problems)}")
    return {path: tuple(parts) for path, parts in plan.items()}


def _full(family: Family, name: str, bare: bool) -> str:
    """A stored name with the family's prefix, which some checkpoints leave out."""
    outside = {row.stored[1:] for row in family.tensors if row.stored.startswith("/")}
    return f"{family.prefix}{name}" if bare and name not in outside else name


def _outer(within: Within, name: str) -> str:
    """A stored name of a larger checkpoint as this family's own, where it is one."""
    for there, here in within.names:
        if name.startswith(there):
            return here + name.removeprefix(there)
    return name


def _is_head(family: Family, name: str) -> bool:
    heads = {row.stored[1:] for row in family.tensors if row.ours == ("head",)}
    return name in heads | {"lm_head.weight"}


def _named(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array on a 64-byte boundary, which the CPU backend takes over without a copy."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)


# ------------------------------------------------------------------------- export


def export(
    model: Model,
    directory: str | os.PathLike[str],
    family: str,
    shard_bytes: int = SHARD_BYTES,
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
    one_of("family", family, tuple(FAMILIES))
    at_least(1, "shard_bytes", shard_bytes)
    row, target = FAMILIES[family], Path(directory).absolute()
    if target.exists():
        raise InputError(str(target), None, "a directory that does not", "exists")
    config = replace(model.config, scan_layers=False)
    raw = write_config(row, config)
    params = unstack_blocks(model.params) if model.config.scan_layers else model.params
    by_path = {path: np.asarray(leaf) for path, leaf in tensor_map.leaves(params)}
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        _write_tensors(partial, tensor_map.layout(row, config), by_path, shard_bytes)
        (partial / "config.json").write_text(json.dumps(raw, indent=2) + "\n")
        if model.tokenizer is not None:
            model.tokenizer.save(partial / "tokenizer.json")
        partial.rename(target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


def _write_tensors(
    directory: Path,
    layout: list[Stored],
    by_path: Mapping[tuple[str, ...], np.ndarray],
    shard_bytes: int,
) -> None:
    sizes = [sum(by_path[p.path].nbytes for p in stored.parts) for stored in layout]
    ends = itertools.accumulate(sizes)
    shard_of = [max(0, end - 1) // shard_bytes for end in ends]
    groups = [
        [stored for stored, its in zip(layout, shard_of, strict=True) if its == shard]
        for shard in sorted(set(shard_of))
    ]
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
