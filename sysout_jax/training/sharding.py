"""Where arrays live on a mesh of devices: one table from axis letters to mesh axes.

The mesh has three axes. Along `data` every device holds all parameters and computes other
sequences; along `fsdp` it computes other sequences too, but keeps a part of every parameter and of
the optimiser's state, gathered where it is used; along `tensor` it computes a part of the heads and
of the MLP for the same sequences.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import gcd, prod
from typing import Any

import jax
import numpy as np
from jax.experimental.mesh_utils import create_device_mesh
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig

MESH_AXES = ("data", "fsdp", "tensor")


@dataclass(frozen=True)
class Row:
    """An axis letter and the mesh axes that divide it."""

    over: tuple[str, ...]
    flag: str  # the size as users know it
    or_whole: bool = False  # a size that is not divided stays whole on every device, not refused


# A letter that is not here (L, T, H, E, W, and the axis of seeds) stays whole.
TABLE: Mapping[str, Row] = {
    "B": Row(("data", "fsdp"), "batch_size"),  # sequences have nothing to do with each other
    "D": Row(("fsdp",), "width"),  # nearly every parameter has this axis, once
    "N": Row(("tensor",), "heads"),  # heads meet only in the output projection
    "K": Row(("tensor",), "kv_heads", True),  # beside their query heads; too few are copied
    "F": Row(("tensor",), "mlp_width"),  # neurons meet only in the down projection
    "V": Row(("tensor",), "vocab", True),  # the largest matrix, but vocabularies are odd
}


@dataclass(frozen=True)
class MeshShape:
    """How many devices along each axis of the mesh."""

    data: int = 1
    fsdp: int = 1
    tensor: int = 1

    def __str__(self) -> str:
        return ",".join(f"{name}={size}" for name, size in self.sizes.items())

    @property
    def sizes(self) -> dict[str, int]:
        """Axis name -> size, in the mesh's order."""
        return {name: getattr(self, name) for name in MESH_AXES}

    @property
    def devices(self) -> int:
        """How many devices the mesh has."""
        return prod(self.sizes.values())

    @property
    def batch_parts(self) -> int:
        """Into how many parts a batch is divided."""
        return batch_parts(self.sizes)


def parse_mesh(text: str) -> MeshShape:
    """The mesh that --mesh=data=2,fsdp=2,tensor=2 means; an axis that is not named has size 1.

    Raises:
      InputError: an unknown axis, one twice, or a size that is no integer of at least 1.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        name, _, size = part.strip().partition("=")
        if name not in MESH_AXES or name in sizes or not (size.isdecimal() and int(size) > 0):
            raise InputError(
                "mesh",
                text,
                (
                    f"{', '.join(MESH_AXES)}, each at most once and with a size, e.g. "
                    "data=2,fsdp=2,tensor=2"
                ),
                repr(part.strip()),
            )
        sizes[name] = int(size)
    return MeshShape(**sizes)


def make_mesh(shape: MeshShape, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over all devices; of this process, over the first alone where it has size 1.

    Args:
      shape: of the mesh.
      devices: other than those of this process group, e.g. of a described topology: all of them.

    Raises:
      InputError: there are more or fewer devices.
    """
    found = list(jax.devices() if devices is None else devices)
    if devices is None and shape.devices == 1 and jax.process_count() == 1:
        found = found[:1]
    if shape.devices != len(found):
        raise InputError(
            "mesh",
            shape,
            f"sizes whose product is {len(found)}, e.g. data={len(found)}",
            f"{shape.devices} devices, but there are {len(found)}",
        )
    sizes, types = tuple(shape.sizes.values()), (AxisType.Auto,) * len(MESH_AXES)
    # An axis of a mesh may need a part of an axis of the torus, which `jax.make_mesh` refuses.
    placed = create_device_mesh(sizes, found, allow_split_physical_axes=True)
    return Mesh(placed, MESH_AXES, axis_types=types)


def check_fits(shape: MeshShape, config: ModelConfig, batch_size: int, accumulate: int = 1) -> None:
    """Refuse a mesh that does not divide a model's sizes, or a batch that it would not divide.

    Raises:
      InputError: says what would fit.
    """
    parts, together = shape.batch_parts, batch_size // accumulate
    if together % parts:
        cut = "" if accumulate == 1 else f" / --accumulate={accumulate}"
        over = "*".join(TABLE["B"].over)
        raise InputError(
            "batch_size",
            f"{batch_size}{cut}",
            f"a multiple of {parts * accumulate}, or {over} of {_listed(together)}",
            f"not divided by {over}={parts} of --mesh={shape}",
        )
    used = {letter: size for letter, size in config.sizes.items() if size}
    for letter in used:
        _check_divided(letter, used, shape.sizes)


def _check_divided(letter: str, used: Mapping[str, int], mesh: Mapping[str, int]) -> None:
    """Refuse a mesh axis that does not divide one of the letters it has to, of those in use."""
    row = TABLE.get(letter)
    if row is None or row.or_whole or used[letter] % prod(mesh[name] for name in row.over) == 0:
        return
    (name,) = row.over
    others = [x for x in used if x in TABLE and TABLE[x].over == row.over]
    common = gcd(*(used[x] for x in others if not TABLE[x].or_whole))
    raise InputError(
        "mesh",
        None,
        f"{name} of {_listed(common)}",
        f"{name}={mesh[name]} does not divide --{row.flag}={used[letter]}",
    )


def divisors(number: int) -> list[int]:
    """The numbers that divide a number, from 1 on."""
    return [n for n in range(1, number + 1) if number % n == 0]


def _listed(number: int) -> str:
    return ", ".join(map(str, divisors(number)))


def spec(
    mesh: Mesh | AbstractMesh, letters: str, shape: Sequence[int], leading: int = 0
) -> PartitionSpec:
    """Which mesh axes divide each axis of an array.

    KV heads and vocabularies that their mesh axis does not divide stay whole on every device of it:
    the same numbers, computed more than once.

    Args:
      mesh: of `make_mesh`.
      letters: of the array's axes, e.g. "D -> N H"; those of the table are divided.
      shape: of the array.
      leading: axes before the lettered ones, which stay whole: seeds, steps.

    Raises:
      InputError: a mesh axis does not divide a size that it has to.
    """
    named = letters.replace("->", " ").split()
    used = dict(zip(named, shape[leading:], strict=True))
    places: list[Any] = [None] * leading
    for letter in named:
        over = TABLE[letter].over if letter in TABLE else ()
        _check_divided(letter, used, mesh.shape)
        divided = over and used[letter] % prod(mesh.shape[name] for name in over) == 0
        places.append((over[0] if len(over) == 1 else over) if divided else None)
    return PartitionSpec(*places)


def shard(mesh: Mesh | AbstractMesh) -> Callable[[str, tuple[int, ...]], NamedSharding]:
    """Where a parameter goes, by its letters and shape: what `load(..., shard=)` asks for."""
    return lambda letters, shape: NamedSharding(mesh, spec(mesh, letters, shape))


def shardings(mesh: Mesh | AbstractMesh, axes: Any, tree: Any, leading: int = 0) -> Any:
    """The sharding of every leaf of a tree that holds parameters, or trees like them.

    A leaf whose path ends like a parameter's, and that has its axes, goes where the parameter goes:
    so do the moments of every optimiser. Everything else, such as step counts, is whole everywhere.

    Args:
      mesh: of `make_mesh`.
      axes: the tree of `param_axes`.
      tree: of arrays or their shapes: parameters, an optimiser's state, or a `TrainState`.
      leading: axes before those of a parameter, which stay whole: 1 where seeds are stacked.
    """
    flat, _ = jax.tree_util.tree_flatten_with_path(axes)
    letters = {_names(path): found for path, found in flat}

    def of(path: Any, leaf: Any) -> NamedSharding:
        names = _names(path)
        for start in range(len(names)):
            found = letters.get(names[start:])
            if found and leaf.ndim == leading + len(found.replace("->", " ").split()):
                return NamedSharding(mesh, spec(mesh, found, leaf.shape, leading))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(of, tree)


def batch_sharding(mesh: Mesh | AbstractMesh, leading: int = 0) -> NamedSharding:
    """Where rows of tokens go: [..., B, T], with `leading` axes before B that stay whole."""
    return NamedSharding(mesh, PartitionSpec(*[None] * leading, TABLE["B"].over))


def batch_parts(sizes: Mapping[str, int]) -> int:
    """Into how many parts a mesh of these sizes divides a batch."""
    return prod(sizes[name] for name in TABLE["B"].over)


def place(tree: Any, where: Any) -> Any:
    """Put arrays that every process holds whole onto the devices.

    Args:
      tree: of arrays.
      where: a tree like it of shardings.
    """

    def put(x: Array, sharding: NamedSharding) -> Array:
        if sharding.is_fully_addressable:
            return jax.device_put(x, sharding)
        held = np.asarray(x)  # each process gives the parts that its own devices hold
        return jax.make_array_from_callback(x.shape, sharding, lambda index: held[index])

    return jax.tree.map(put, tree, where)


def _names(path: Any) -> tuple[str, ...]:
    """The keys of dicts on the way to a leaf, which are a parameter's path."""
    return tuple(key.key for key in path if isinstance(key, jax.tree_util.DictKey))
