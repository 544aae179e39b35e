"""Safetensors files: opened by mapping, checked before anything is believed, read one by one."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from sysout_jax.errors import InputError, reason
from sysout_jax.families import mxfp4
from sysout_jax.files import read_json, refuse_pointer

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
HEADER_BYTES = 100_000_000  # the format's own limit
DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_KINDS = {"F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16, "U8": np.uint8}
_FILE_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")
_CHUNK = 1 << 22  # entries that are checked for NaN at a time
CONVERT = (
    "pickle files can run code when they are opened, so they are refused; convert them where you "
    "trust them, all parts at once: import torch; from safetensors.torch import save_file; "
    "save_file({k: v.contiguous().clone() for file in FILES for k, v in torch.load(file, "
    "weights_only=True).items()}, 'model.safetensors')"
)


@dataclass(frozen=True)
class Source:
    """Where a stored tensor lies, its dtype as safetensors calls it, and its shape."""

    file: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int = field(default=0, kw_only=True)  # byte of the file

    @property
    def stored(self) -> str:
        """What the file's numbers are called."""
        return self.dtype

    def read(self) -> np.ndarray:
        """The tensor, as the mapped file holds it: nothing is copied.

        Raises:
          InputError: the file cannot be read, or an entry is NaN or infinite.
        """
        kind = np.dtype(_KINDS[self.dtype])
        if 0 in self.shape:
            return np.zeros(self.shape, kind)
        try:
            array: np.ndarray = np.memmap(self.file, kind, "r", self.start, self.shape)
        except (OSError, ValueError) as error:
            raise _unreadable(self.file, error) from error
        if self.dtype in DTYPES and not _finite(array):
            raise InputError(str(self.file), why=f"tensor {self.name} holds NaN or infinity")
        return array


@dataclass(frozen=True)
class Packed(Source):
    """A tensor that is stored in MXFP4, as two."""

    blocks: Source
    scales: Source

    @property
    def stored(self) -> str:
        """What the file's numbers are called."""
        return "MXFP4"

    def read(self) -> np.ndarray:
        """The tensor, unpacked.

        Raises:
          InputError: as `Source.read`.
        """
        return mxfp4.unpack(self.blocks.read(), self.scales.read())


def sources(directory: Path) -> tuple[list[Source], dict[str, str]]:
    """Every tensor of a checkpoint directory, without reading any, and what is wrong with them.

    Returns:
      The tensors, and the names stored more than once or in another file than the index says, with
      what is wrong in words.

    Raises:
      InputError: no safetensors, a file that is not whole, a path that leaves the directory.
    """
    found: list[Source] = []
    faults: dict[str, str] = {}
    index = _index(directory)
    for file in sorted(set(index.values())) if index else [SINGLE]:
        found += list(_tensors(directory / file))
    stored = Counter(source.name for source in found)
    faults |= {n: f"{n} is stored twice" for n, count in sorted(stored.items()) if count > 1}
    if index:
        here = {source.name: source.file.name for source in found}
        faults |= {
            name: f"{name} is not in {file}, where the index has it"
            for name, file in index.items()
            if here.get(name) != Path(file).name
        }
    return _joined(found), faults


# How formats of quantised weights call what they store, and in which dtype: any one of them tells.
_PACKED = (
    ("GPTQ", r".*\.g_idx", r".*"),
    ("AWQ or GPTQ", r".*\.(qweight|qzeros)", r"I32|U32"),
    ("compressed-tensors", r".*\.weight_(packed|shape)", r".*"),
    ("bitsandbytes", r".*\.(SCB|absmax|quant_map|weight\.quant_state\..*)", r".*"),
    ("FP8", r".*", r"F8_.*"),
    ("MLX", r".*\.weight", r"U32"),
)


def packed_as(found: list[Source]) -> str | None:
    """The format in which weights are quantised, told by names and dtypes; None: in none."""
    for title, name, dtype in _PACKED:
        if any(re.fullmatch(name, s.name) and re.fullmatch(dtype, s.dtype) for s in found):
            return title
    return None


def _joined(found: list[Source]) -> list[Source]:
    """The tensors with every pair NAME_blocks, NAME_scales of MXFP4 as one, NAME."""
    by_name = {source.name: source for source in found}
    pairs = {}
    for blocks in found:
        name = blocks.name.removesuffix("_blocks")
        scales = by_name.get(f"{name}_scales")
        if name != blocks.name and scales is not None and _fit(blocks, scales):
            shape = mxfp4.unpacked_shape(blocks.shape)
            pairs[blocks.name] = Packed(blocks.file, name, "BF16", shape, blocks, scales)
    scales_of = {packed.scales.name for packed in pairs.values()}
    return [pairs.get(source.name, source) for source in found if source.name not in scales_of]


def _fit(blocks: Source, scales: Source) -> bool:
    whole = len(blocks.shape) == 4 and blocks.shape[-1] == mxfp4.BLOCK // 2
    return whole and blocks.shape[:-1] == scales.shape and {blocks.dtype, scales.dtype} == {"U8"}


def _index(directory: Path) -> dict[str, str]:
    """Name -> file of a sharded checkpoint; empty where there is a single file."""
    if (directory / SINGLE).exists():
        return {}
    path = directory / INDEX
    if not path.exists():
        pickles = sorted(p.name for p in directory.iterdir() if p.suffix in PICKLES)
        pickles.sort(key=lambda name: not name.startswith("pytorch_model"))  # not optimizer.pt
        if pickles:
            raise InputError(str(directory / pickles[0]), why=CONVERT)
        raise InputError(
            str(directory),
            None,
            "a directory with one, or --file= with the name of a GGUF file in it",
            f"no {SINGLE} and no {INDEX}",
        )
    weights = read_json(path).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise InputError(str(path), None, "a JSON object of tensor names to files", "no weight_map")
    for name, file in weights.items():
        if not isinstance(file, str) or not _FILE_NAME.fullmatch(file):
            raise InputError(
                str(path), None, "the name of a file in the directory", f"{name} lies in {file!r}"
            )
        if Path(file).suffix in PICKLES:
            raise InputError(str(path), why=f"{name} lies in {file}; {CONVERT}")
    return weights


def _tensors(file: Path) -> Iterator[Source]:
    """The tensors that a file's header declares, once the header has been checked."""
    header, data = _header(file)
    try:
        with safe_open(file, framework="numpy") as opened:  # which checks what the header says
            for name in opened.offset_keys():
                part, start = opened.get_slice(name), data + header[name]["data_offsets"][0]
                shape = tuple(part.get_shape())
                yield Source(file, name, part.get_dtype(), shape, start=start)
    except (SafetensorError, OSError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise _unreadable(file, error) from error


def _header(file: Path) -> tuple[Any, int]:
    """The header, and where the data begin; what the library would read past is refused: a missing
    file, a huge header, repeated names."""
    try:
        refuse_pointer(file)
        size = file.stat().st_size
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 or length > min(HEADER_BYTES, size - 8):
                raise InputError(
                    str(file),
                    None,
                    "a whole safetensors file",
                    f"{size} bytes with a header of {length}",
                )
            header = opened.read(length)
    except OSError as error:
        raise InputError(str(file), None, "a safetensors file", f"{error.strerror}") from error

    def once(pairs: list[tuple[str, object]]) -> dict[str, object]:
        twice = sorted(name for name, count in Counter(n for n, _ in pairs).items() if count > 1)
        if twice:
            raise InputError(str(file), why=f"{', '.join(twice)} declared twice in the header")
        return dict(pairs)

    try:
        return json.loads(header, object_pairs_hook=once), 8 + length
    except InputError:
        raise
    except (ValueError, RecursionError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> InputError:
    said = reason(error)[:200]
    return InputError(str(file), why=f"not a whole safetensors file ({said})")


def _finite(array: np.ndarray) -> bool:
    """Whether no entry is NaN or infinite: those have every bit of the exponent set."""
    exponent = {"float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}[array.dtype.name]
    bits = array.reshape(-1).view(f"u{array.dtype.itemsize}")
    mask = bits.dtype.type(exponent)
    return all(
        bool(((bits[i : i + _CHUNK] & mask) != mask).all()) for i in range(0, bits.size, _CHUNK)
    )
