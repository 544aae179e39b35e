"""Checkpoints of published models: opened and checked without reading, loaded tensor by tensor."""

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sysout_jax.data import Tokenizer
from sysout_jax.errors import InputError, one_of
from sysout_jax.families import tensor_map
from sysout_jax.families.config_map import ignored_fields, read_config, read_within
from sysout_jax.families.family import Family, Raw
from sysout_jax.families.gguf_files.header import is_gguf
from sysout_jax.families.gguf_files.model import open_gguf
from sysout_jax.families.match import Plan, match, with_own_head
from sysout_jax.families.table import by_model_type
from sysout_jax.families.tensors import DTYPES, Source, sources
from sysout_jax.families.tokens import published_tokenizer, read_or_none
from sysout_jax.files import permitted, read_json
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import param_axes
from sysout_jax.model.model import Model
from sysout_jax.model.origin import Origin
from sysout_jax.model.stream import Layers

# Axis letters, e.g. "D -> N H", and the shape of a parameter -> where it goes.
Shard = Callable[[str, tuple[int, ...]], jax.sharding.Sharding]
_FAR = 16  # numbers of 2 bits in one of 32
_SMALL = 1 << 24  # numbers that may be laid out whatever is stored
BLOCKS = "blocks"  # where the decoder has the parameters of all layers, those of each side by side


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint: everything checked that can be without reading a tensor."""

    path: Path  # its directory or file
    family: Family
    config: ModelConfig
    origin: Origin
    plan: Plan
    dtypes: Mapping[tuple[str, ...], str]  # of the parameters once loaded
    axes: Mapping[tuple[str, ...], str]
    shapes: Mapping[tuple[str, ...], tuple[int, ...]]
    read_tokenizer: Callable[[], Tokenizer | None]  # None where there is none, or refuses it

    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer; None where there is none, or where it cannot be read, which is said."""
        return read_or_none(self.read_tokenizer)

    def parameter(self, path: tuple[str, ...], shard: Shard | None = None) -> jax.Array:
        """Read one parameter, below "blocks" that of all layers, each straight into its place.

        The host holds it and one stored tensor, nothing else.

        Raises:
          InputError: the file cannot be read, or holds NaN or infinity.
        """
        stacked = path[0] == BLOCKS
        paths = _of_layers(path, self.config.layers) if stacked else [path]
        dtype = jnp.result_type(*(self.dtypes[each] for each in paths))
        whole = _aligned((len(paths), *self.shapes[paths[0]]), np.dtype(dtype))
        for row, each in zip(whole, paths, strict=True):
            for stored, part, source in self.plan[each]:
                target = row if part.expert is None else row[part.expert]
                np.copyto(target, stored.take(part, source.read()), casting="unsafe")
        axes = self.axes[paths[0]]
        axes, whole = (f"L {axes}", whole) if stacked else (axes, whole[0])
        where = shard(axes, whole.shape) if shard else None
        return jax.device_put(whole, where, may_alias=True)

    def layers(self) -> Layers:
        """The tree of all parameters, each part of it read when it is asked for."""
        return Layers(self.params, tuple(dict.fromkeys(path[0] for path in self.plan)))

    def params(self, top: str = "", shard: Shard | None = None) -> Any:
        """The tree of all parameters, layers stacked, or of those below `top`, e.g. "block_3"."""
        paths = [path for path in self.plan if path[0] == top] if top else self._stacked()
        tree: dict[str, Any] = {}
        for path in paths:
            at = tree
            for name in path[:-1]:
                at = at.setdefault(name, {})
            at[path[-1]] = self.parameter(path, shard)
        return tree.get(top, {}) if top else tree

    def _stacked(self) -> list[tuple[str, ...]]:
        """The paths of all parameters, those of the layers once, below "blocks"."""
        return list(
            dict.fromkeys(
                (BLOCKS, *path[1:]) if path[0].startswith("block_") else path for path in self.plan
            )
        )


def _of_layers(path: tuple[str, ...], layers: int) -> list[tuple[str, ...]]:
    return [(f"block_{layer}", *path[1:]) for layer in range(layers)]


@permitted()
def open_checkpoint(place: str | os.PathLike[str], dtype: str | None = None) -> Checkpoint:
    """Open a directory with config.json and safetensors, or a GGUF file, without reading a tensor.

    Args:
      place: as published, or as `export` wrote it.
      dtype: of the parameters in memory: float32, bfloat16, float16; None: as they are stored, and
        quantised ones in float32, which holds them all but exactly, or, of MXFP4, in bfloat16,
        which holds them exactly. Activations are bfloat16 where all parameters are and some are
        published so or `dtype` says it, else float32.

    Raises:
      InputError: an unknown family, a config that this family does not cover, or tensors that are
        missing, left over, of the wrong shape or stored twice: all of them, by name.
    """
    path = Path(place)
    if dtype is not None:
        one_of("dtype", dtype, tuple(DTYPES.values()))
    if is_gguf(path):
        file = open_gguf(path)
        origin = Origin(str(path), file.weights, file.ignored)
        return understand(path, file.raw, file.sources, {}, origin, file.tokenizer, dtype)
    raw = read_json(path / "config.json")
    by_model_type(raw.get("model_type"), path / "config.json")  # said before what its files lack
    found, faults = sources(path)
    counts = Counter(source.stored for source in found).most_common()
    stored = ", ".join(f"{count} {kind}" for kind, count in counts)
    origin = Origin(str(path), f"safetensors ({stored})")
    tokenizer = partial(published_tokenizer, path)
    return understand(path, raw, found, faults, origin, tokenizer, dtype)


def understand(
    path: Path,
    raw: Raw,
    found: list[Source],
    faults: Mapping[str, str],
    origin: Origin,
    tokenizer: Callable[[], Tokenizer | None],
    dtype: str | None = None,
) -> Checkpoint:
    """What a reader of a format has found, as a model of a family: nothing is read yet.

    Args:
      path: the directory or file, for messages.
      raw: config.json as the family publishes it.
      found: the tensors, under their published names.
      faults: names whose storing is wrong, and how.
      origin: what the format says of where the weights come from.
      tokenizer: reads it, as `Checkpoint.read_tokenizer`.
      dtype: as for `open_checkpoint`.

    Raises:
      InputError: as `open_checkpoint`.
    """
    file = path / "config.json" if path.is_dir() else path
    family = by_model_type(raw.get("model_type"), file)
    own = read_within(family, raw)
    within = family.within if own is not raw else None
    config = _config(path, family, own)
    _check_extent(file, config, found)
    config = with_own_head(path, family, config, found, within)
    shapes = tensor_map.shapes(config)
    plan = match(path, family, config, found, shapes, faults, within)
    stored = {p: DTYPES[parts[0][2].dtype] for p, parts in plan.items()}
    dtypes = {p: dtype or stored[p] for p in plan}
    chosen = dtype is not None or any(parts[0][2].stored == "BF16" for parts in plan.values())
    half = chosen and set(dtypes.values()) == {"bfloat16"}
    axes = dict(tensor_map.leaves(param_axes(config)))
    config = config.with_execution(dtype="bfloat16" if half else "float32", scan_layers=True)
    origin = replace(origin, ignored=(*origin.ignored, *ignored_fields(family, own)))
    return Checkpoint(path, family, config, origin, plan, dtypes, axes, shapes, tokenizer)


def _config(place: Path, family: Family, raw: Raw) -> ModelConfig:
    """`read_config`; where no config.json lies, what says the file it was made from."""
    try:
        return read_config(family, raw)
    except InputError as error:
        if place.is_dir():
            raise
        raise InputError(str(place), why=f"its metadata as {error}") from error


def _check_extent(file: Path, config: ModelConfig, found: list[Source]) -> None:
    """Refuse sizes that no checkpoint has, or not this one, before anything is laid out for them.

    A part of the model may be larger than all that is stored, where tensors are missing or packed,
    but not by far.
    """
    largest = max(config.sizes.values())
    if config.layers > len(found) or largest >= 1 << 31:
        raise InputError(
            str(file),
            None,
            f"no more layers than the {len(found)} stored tensors, sizes below {1 << 31}",
            f"{config.layers} layers, the largest size {largest}",
        )
    s, stored = config.sizes, sum(prod(source.shape) for source in found)
    parts = {
        "an embedding of vocabulary x width": (s["V"], s["W"]),
        "queries of width x heads x their size": (s["D"], s["N"], s["H"]),
        "MLPs of layers x experts x width x their width": (s["L"], s["E"] or 1, s["D"], s["F"]),
    }
    for what, sizes in parts.items():
        if prod(sizes) > max(_FAR * stored, _SMALL):
            raise InputError(
                str(file),
                None,
                f"sizes that fit the {stored} numbers that are stored",
                f"{what} = {' x '.join(map(str, sizes))}",
            )


def load_checkpoint(
    place: str | os.PathLike[str], dtype: str | None = None, shard: Shard | None = None
) -> Model:
    """Read a published model.

    Args:
      place, dtype: as for `open_checkpoint`.
      shard: where each parameter goes, by its axis letters and shape; None: the default device.

    Raises:
      InputError: as `open_checkpoint`, or a tensor that cannot be read.
    """
    opened = open_checkpoint(place, dtype)
    tokenizer = opened.tokenizer()
    return Model(opened.config, opened.params(shard=shard), tokenizer, opened.origin)


def _aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An array on a 64-byte boundary, which the CPU backend takes over without a copy."""
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    raw = np.empty(size + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size].view(dtype).reshape(shape)
