"""The header of a GGUF file: metadata and tensor table, checked before anything is believed.

Source: github.com/ggml-org/ggml, docs/gguf.md, versions 2 and 3.
"""

import functools
import mmap
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from sysout_jax.errors import InputError, printable
from sysout_jax.files import refuse_pointer

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = 32  # of tensors, where the file does not say
MOST_AXES = 4
_LONGEST_NAME = 1000
FLOATS = ("F32", "F16", "BF16", "F64")  # numbers as they are, one entry a block
_PREFIX = struct.Struct("<4sIQQ")  # magic, version, how many tensors, how many keys
_SCALARS = {  # type of a value -> how it is packed
    0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<B", 10: "<Q", 11: "<q",
    12: "<d",
}  # fmt: skip
_BOOL, _STRING, _ARRAY = 7, 8, 9
_LEAST_KEY = 8 + 4 + 1  # bytes that a key takes at least: length, type, value
_LEAST_TENSOR = 8 + 4 + 8 + 4 + 8


@dataclass(frozen=True)
class Tensor:
    """Where a tensor of a GGUF file lies, and how it is packed."""

    file: Path
    name: str
    kind: str  # as the gguf package calls its type, e.g. "Q4_1"
    shape: tuple[int, ...]  # the slowest axis first; the file has the fastest first
    start: int  # its first byte in the file
    row_bytes: int  # of one row along the last axis

    @property
    def rows(self) -> int:
        """How many rows it has."""
        return prod(self.shape[:-1])


@dataclass(frozen=True)
class Header:
    """What stands in front of the tensors."""

    file: Path
    metadata: Mapping[str, Any]
    tensors: tuple[Tensor, ...]


def is_gguf(path: Path) -> bool:
    """Whether a path is a file that begins as GGUF does, whatever its suffix; a *.gguf is one."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return path.suffix == ".gguf" or file.read(4) == MAGIC


def read_header(file: Path) -> Header:
    """Read and check a header; of the tensors nothing is read.

    Raises:
      InputError: it is not what the format says, or the file is not as long as it must be.
    """
    try:
        refuse_pointer(file)
        with file.open("rb") as opened:
            size = opened.seek(0, 2)
            opened.seek(0)
            start = opened.read(_PREFIX.size)
            _check_prefix(file, start, size)
            with mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
                return _Reader(file, mapped).header()
    except OSError as error:
        raise InputError(str(file), None, "a GGUF file", f"{error.strerror}") from error


def _check_prefix(file: Path, start: bytes, size: int) -> None:
    if start[:4] != MAGIC:
        found = "nothing" if not start else repr(start[:4])
        raise InputError(str(file), None, f"{MAGIC!r}, a GGUF file", f"begins with {found}")
    if size < _PREFIX.size:
        raise InputError(str(file), None, "a whole GGUF file", f"{size} bytes")
    _, version, _, _ = _PREFIX.unpack(start)
    if version not in VERSIONS:
        swapped = int.from_bytes(start[4:8], "big")
        said = "is big-endian" if swapped in VERSIONS else f"is GGUF of version {version}"
        raise InputError(str(file), None, "little-endian, version 2 or 3", said)


@functools.cache
def packings() -> Mapping[int, tuple[str, int, int]]:
    """Number of a type -> its name, the entries of a block and its bytes: types of real numbers
    that the gguf package unpacks."""
    from gguf.constants import GGML_QUANT_SIZES  # takes a tenth of a second to import
    from gguf.quants import dequantize

    found = {}
    for kind, (block, block_bytes) in GGML_QUANT_SIZES.items():
        try:
            if kind.name not in FLOATS:
                dequantize(np.zeros((1, block_bytes), np.uint8), kind)
        except NotImplementedError:
            continue
        found[int(kind)] = (kind.name, block, block_bytes)
    return found


def type_name(number: int) -> str:
    """What the gguf package calls a type; its number where it has no name for it."""
    from gguf.constants import GGMLQuantizationType

    known = {int(kind): kind.name for kind in GGMLQuantizationType}
    return known.get(number, str(number))


class _Reader:
    """Reads a mapped file from front to back and never past its end."""

    def __init__(self, file: Path, data: mmap.mmap) -> None:
        self.file, self.data, self.at = file, data, 0

    def header(self) -> Header:
        _, _, tensors, keys = _PREFIX.unpack_from(self.data)
        self.at = _PREFIX.size
        self.fits(keys, _LEAST_KEY, "keys of metadata")
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            name = self.name("a key of metadata")
            if name in metadata:
                self.refuse(f"the key {name} stands twice in the metadata", "once")
            metadata[name] = self.value(self.number("<I", name), name)
        self.fits(tensors, _LEAST_TENSOR, "tensors")
        table = [self.entry() for _ in range(tensors)]
        alignment = metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            self.refuse(f"general.alignment is {alignment!r}", "a power of two")
        return Header(self.file, metadata, self.placed(table, alignment))

    def entry(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, number of the type, and offset of the next tensor in the table."""
        name = self.name("the name of a tensor")
        axes = self.number("<I", name)
        if not 1 <= axes <= MOST_AXES:
            self.refuse(f"tensor {name} has {axes} axes", f"1 to {MOST_AXES}")
        shape = tuple(self.number("<Q", name) for _ in range(axes))[::-1]
        return name, shape, self.number("<I", name), self.number("<Q", name)

    def placed(
        self, table: list[tuple[str, tuple[int, ...], int, int]], alignment: int
    ) -> tuple[Tensor, ...]:
        """The tensors, one directly behind the other: each as long as type and shape say."""
        counted = Counter(name for name, *_ in table)
        twice = sorted(name for name, count in counted.items() if count > 1)
        if twice:
            self.refuse(f"{', '.join(twice)} stand twice in the table of tensors", "once")
        first = -(-self.at // alignment) * alignment
        end, found = 0, []
        for name, shape, number, offset in table:
            kind, block, block_bytes = self.packing(name, number)
            if not all(shape) or shape[-1] % block:
                self.refuse(
                    f"tensor {name} is {kind} of shape {list(shape)}",
                    f"axes of at least 1, the last of which is a multiple of {block}",
                )
            row_bytes = shape[-1] // block * block_bytes
            if offset != end:
                self.refuse(
                    f"tensor {name} begins at byte {offset} of the data",
                    f"{end}, where types and shapes of those before it end",
                )
            stop = first + offset + prod(shape[:-1]) * row_bytes
            if stop > len(self.data):
                self.refuse(
                    f"{len(self.data)} bytes, cut short: tensor {name}, {kind} of shape "
                    f"{list(shape)}, ends at byte {stop}",
                    "a whole file",
                )
            found.append(Tensor(self.file, name, kind, shape, first + offset, row_bytes))
            end = -(-(stop - first) // alignment) * alignment
        return tuple(found)

    def packing(self, name: str, number: int) -> tuple[str, int, int]:
        """Name of a type, entries of a block and its bytes."""
        known = packings()
        if number not in known:
            accepted = ", ".join(kind for kind, _, _ in known.values())
            self.refuse(f"tensor {name} is of type {type_name(number)}", accepted)
        return known[number]

    def value(self, kind: int, name: str) -> Any:
        if kind == _STRING:
            return self.text(name)
        if kind != _ARRAY:
            return self.scalar(kind, name)
        inner, length = self.number("<I", name), self.number("<Q", name)
        if inner == _STRING:
            return self.texts(length, name)
        if inner not in _SCALARS:
            self.refuse(f"{name} is an array of type {inner}", "of numbers or strings")
        dtype = np.dtype(_SCALARS[inner])
        self.fits(length, dtype.itemsize, f"entries of {name}")
        found = np.frombuffer(self.take(length * dtype.itemsize, name), dtype)
        if inner == _BOOL and found.size and found.max() > 1:
            self.refuse(f"{name} holds {found.max()}", "0 or 1")
        return [bool(x) for x in found.tolist()] if inner == _BOOL else found.tolist()

    def scalar(self, kind: int, name: str) -> Any:
        if kind not in _SCALARS:
            self.refuse(f"{name} is of type {kind}", f"types 0 to {max(_SCALARS)}")
        (found,) = struct.unpack(_SCALARS[kind], self.take(struct.calcsize(_SCALARS[kind]), name))
        if kind == _BOOL and found > 1:
            self.refuse(f"{name} is {found}", "0 or 1")
        return bool(found) if kind == _BOOL else found

    def number(self, packed: str, name: str) -> int:
        found: int = struct.unpack(packed, self.take(struct.calcsize(packed), name))[0]
        return found

    def name(self, what: str) -> str:
        """A string that messages may quote."""
        found = self.text(what)
        if not found.isprintable() or len(found) > _LONGEST_NAME:
            self.refuse(f"{what} is {found!r}", f"at most {_LONGEST_NAME} printable characters")
        return found

    def text(self, name: str) -> str:
        length = self.number("<Q", name)
        self.fits(length, 1, f"bytes in a string ({name})")
        try:
            return self.take(length, name).decode()
        except UnicodeDecodeError as error:
            self.refuse(f"{name}: not UTF-8 ({error.reason})", "UTF-8")

    def texts(self, count: int, name: str) -> list[str]:
        """An array of strings, of which a vocabulary has hundreds of thousands."""
        self.fits(count, 8, f"strings of {name}")
        data, at, found = self.data, self.at, []
        for _ in range(count):
            length = int.from_bytes(data[at : at + 8], "little")
            raw = data[at + 8 : at + 8 + length]
            at += 8 + length
            if at > len(data):
                self.refuse(f"{len(data)} bytes, cut short within {name}", "a whole file")
            try:
                found.append(raw.decode())
            except UnicodeDecodeError as error:
                self.refuse(f"{name}, string {len(found)}: not UTF-8 ({error.reason})", "UTF-8")
        self.at = at
        return found

    def take(self, size: int, name: str) -> bytes:
        if size > len(self.data) - self.at:
            self.refuse(f"{len(self.data)} bytes, cut short within {name}", "a whole file")
        self.at += size
        return self.data[self.at - size : self.at]

    def fits(self, count: int, least: int, what: str) -> None:
        """Refuse a count of things that the rest of the file has no room for."""
        left = len(self.data) - self.at
        if count * least > left:
            self.refuse(f"{count} {what} in the {left} bytes that are left", "a whole file")

    def refuse(self, found: str, accepted: str) -> NoReturn:
        raise InputError(str(self.file), None, accepted, _line(found))


def _line(text: str) -> str:
    """A text of the file in a message: one line, and not too long."""
    shown = printable(text)
    return shown if len(shown) <= 300 else f"{shown[:297]}..."
