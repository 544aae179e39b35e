"""Tensors of a GGUF file as a family publishes them: unpacked row by row, rows in another order."""

from dataclasses import dataclass
from math import prod

import ml_dtypes
import numpy as np

from sysout_jax.errors import InputError
from sysout_jax.families.gguf_files.header import Tensor
from sysout_jax.families.tensors import Source

# Every other type holds numbers that float32 has exactly, or nearly so, and float16 has not.
_AS_STORED = {"F16": "F16", "BF16": "BF16", "MXFP4": "BF16"}
_MEMORY = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_CHUNK = 1 << 18  # entries that are unpacked at a time


@dataclass(frozen=True)
class Undone(Source):
    """A tensor under its published name and in its published layout, whatever it was turned into.

    Attributes:
      parts: where it lies: one tensor, or two of one shape whose rows alternate.
      order: which rows of a part it consists of, in their order; None: all of them.
      transposed: whether the published last two axes are the stored ones, turned.
      offset: what was added to every entry.
    """

    parts: tuple[Tensor, ...]
    order: np.ndarray | None = None
    transposed: bool = False
    offset: float = 0.0

    @property
    def stored(self) -> str:
        """What the file's numbers are called."""
        return self.parts[0].kind

    def read(self) -> np.ndarray:
        """The tensor, unpacked.

        Raises:
          InputError: the file cannot be read, or an entry is NaN or infinite.
        """
        width = self.parts[0].shape[-1]
        rows = self.parts[0].rows if self.order is None else len(self.order)
        out = np.empty((rows, len(self.parts), width), _MEMORY[self.dtype])
        for i, part in enumerate(self.parts):
            unpack(part, self.order, out[:, i])
        if self.offset:
            out -= out.dtype.type(self.offset)
        if not self.transposed:
            return out.reshape(self.shape)
        *outer, first, last = self.shape
        return out.reshape(*outer, last, first).swapaxes(-1, -2)


def dtype_of(*parts: Tensor) -> str:
    """The dtype, as safetensors calls it, in which tensors are read."""
    kinds = {_AS_STORED.get(part.kind, "F32") for part in parts}
    return kinds.pop() if len(kinds) == 1 else "F32"


def unpack(tensor: Tensor, order: np.ndarray | None, out: np.ndarray) -> None:
    """Write rows of a tensor into `out`, a few at a time.

    Args:
      tensor: [rows, width].
      order: the rows to write, in their order; None: all.
      out: [their number, width].

    Raises:
      InputError: the file cannot be read, or an entry is NaN or infinite.
    """
    from gguf.constants import GGMLQuantizationType  # takes a tenth of a second to import
    from gguf.quants import dequantize

    try:
        packed = np.memmap(
            tensor.file, np.uint8, "r", tensor.start, (tensor.rows, tensor.row_bytes)
        )
    except (OSError, ValueError) as error:
        raise InputError(
            str(tensor.file), why=f"tensor {tensor.name}: not read ({error})"
        ) from error
    step = max(1, _CHUNK // tensor.shape[-1])
    for start in range(0, len(out), step):
        where = slice(start, start + step)
        rows = np.asarray(packed[where if order is None else order[where]])
        with np.errstate(all="ignore"):  # what overflows is found below
            if tensor.kind in _MEMORY:
                found = rows.view(_MEMORY[tensor.kind])
            elif tensor.kind == "F64":
                found = rows.view(np.float64).astype(np.float32)
            else:
                found = dequantize(rows, GGMLQuantizationType[tensor.kind])
            if not np.isfinite(found).all():
                raise InputError(
                    str(tensor.file),
                    why=f"tensor {tensor.name} ({tensor.kind}) holds NaN or infinity",
                )
        out[where] = found


def published(
    name: str,
    parts: tuple[Tensor, ...],
    order: np.ndarray | None = None,
    shape: tuple[int, ...] | None = None,
    transposed: bool = False,
    offset: float = 0.0,
) -> Undone:
    """A tensor under its published name.

    Args:
      name: that.
      parts, order, transposed, offset: as of `Undone`.
      shape: as published; None: as stored, but for `order` and `transposed`.
    """
    first = parts[0]
    if shape is None:
        rows = first.rows if order is None else len(order)
        lead = first.shape[:-1] if order is None else (rows,)
        shape = (*lead, first.shape[-1])
        shape = (*shape[:-2], shape[-1], shape[-2]) if transposed else shape
    assert prod(shape) == len(parts) * first.shape[-1] * (
        first.rows if order is None else len(order)
    )
    return Undone(first.file, name, dtype_of(*parts), shape, parts, order, transposed, offset)
