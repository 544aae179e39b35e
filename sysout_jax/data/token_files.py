"""Token arrays that others have written: raw ids of a file each, of which nothing says the type."""

from __future__ import annotations

import os
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from sysout_jax.data.corpus import reject
from sysout_jax.data.encode import cache_of
from sysout_jax.data.unchanged import remembered
from sysout_jax.errors import InputError
from sysout_jax.files import read_json

DTYPES = MappingProxyType({"uint16": "<u2", "uint32": "<u4", "uint64": "<u8"})
PARTS = ("train", "val")
META = "meta.json"  # beside the files: {"dtype": "uint32"}
_HEADER = 256  # integers of 32 bits before the ids of llm.c: a magic number, a version, a count
_MAGIC = {(20240520, 1): "uint16", (20240801, 7): "uint32"}  # GPT-2's and Llama 3's
_SAMPLE = 1 << 20  # ids that are looked at
_HIGH = 16  # a million ids: larger vocabularies are not told from narrow ids
_SURE = 40  # the chance that narrow ids look like wide ones is 2^-40


class TokenFiles(NamedTuple):
    """Two arrays of ids, the largest of them, and the name of their type."""

    train: np.ndarray
    val: np.ndarray
    largest: int
    dtype: str


def open_token_files(
    spec: str, dtype: str | None = None, cache_dir: str | os.PathLike[str] | None = None
) -> TokenFiles:
    """`train.bin` and `val.bin` under `tokens:DIR`: raw little-endian ids, memory-mapped.

    The type of the ids is what `dtype` says, else llm.c's header, else `meta.json` beside the
    files, else the ids tell it (`told_by_ids`).

    Args:
      spec: `tokens:DIR`.
      dtype: a name in `DTYPES`, or None.
      cache_dir: where the largest id is remembered; `default_cache_dir()` if None.

    Raises:
      InputError: a missing, empty or cut file; a type that is unknown, that the two files do not
        share, that a header contradicts or that cannot be told; an id that no array of 32-bit
        integers holds.
    """
    if dtype is not None and dtype not in DTYPES:
        raise InputError("token_dtype", dtype, ", ".join(DTYPES), "unknown")
    directory = Path(os.path.expanduser(spec.removeprefix("tokens:")))
    paths = [directory / f"{part}.bin" for part in PARTS]
    raw = [_bytes(spec, path) for path in paths]
    headers = [_header(spec, path, one) for path, one in zip(paths, raw, strict=True)]
    header = headers[0] or headers[1]
    if (headers[1] or header) != header:
        reject(spec, f"the headers of its files say {headers[0]} and {headers[1]}")
    if dtype and header and dtype != header:
        raise InputError("token_dtype", dtype, header, f"so a header in {directory} says")
    if dtype is None and (dtype := header or _beside(spec, directory)) is None:
        told = [told_by_ids(one) for one in raw]
        dtype = told[0] or told[1]
        if dtype is None or (told[1] or dtype) != dtype:
            found = "cannot be told from their ids" if dtype is None else "differs"
            reject(spec, f"{directory}: the type of train.bin and val.bin {found}; {_accepted()}")
    arrays: list[np.ndarray] = []
    for path, one, header in zip(paths, raw, headers, strict=True):
        ids = one[4 * _HEADER :] if header else one
        if ids.size % np.dtype(DTYPES[dtype]).itemsize:
            reject(spec, f"{path}: {one.size} bytes are no whole number of {dtype}; {_accepted()}")
        arrays.append(ids.view(DTYPES[dtype]))
    largest = int(
        remembered(
            paths,
            cache_of(cache_dir),
            lambda: str(max(int(array.max()) for array in arrays)),
            f"the largest of {dtype}",
        )
    )
    if largest >= 1 << 31:
        reject(spec, f"{directory}: token {largest} if its ids are {dtype}; {_accepted()}")
    train, val = arrays
    return TokenFiles(train, val, largest, dtype)


def told_by_ids(raw: np.ndarray) -> str | None:
    """The type of raw ids, told by where large ones are.

    Of ids twice as wide each is a low and a high half, and all high ones are below 16, as of any
    vocabulary of less than a million. Narrow ids are alike at even and odd places: that k of the
    low halves are above every high one has then the chance 2^-k.

    Args:
      raw: bytes; at least two.

    Returns:
      A name in `DTYPES`; None where the ids are too few to tell.
    """
    names = list(DTYPES)
    for name in names[:-1]:
        size = np.dtype(DTYPES[name]).itemsize
        if raw.size % (2 * size):
            return name
        low, high = raw[: 2 * _SAMPLE * size].view(DTYPES[name]).reshape(-1, 2).T
        above = int((low > high.max()).sum())
        few = not high.any() or low.size < 10 * _SURE  # of many, rare ids may be at even places
        if high.max() >= _HIGH or above == 0 or (above < _SURE and not few):
            return name
        if above < _SURE:
            return None
    return names[-1]


def _bytes(spec: str, path: Path) -> np.ndarray:
    try:
        size = path.stat().st_size
    except OSError as error:
        reject(spec, f"cannot read {path}: {error.strerror}; wanted raw ids, such as uint16")
    if size == 0 or size % 2:
        found = f"{size} bytes, an odd number" if size else "empty"
        reject(spec, f"{path}: {found}; wanted raw little-endian ids, such as uint16")
    return np.memmap(path, np.uint8, mode="r")


def _header(spec: str, path: Path, raw: np.ndarray) -> str | None:
    """The type that llm.c's header says; None without one."""
    if raw.size < 4 * _HEADER:
        return None
    magic, version, count = raw[:12].view("<i4").tolist()
    dtype = _MAGIC.get((magic, version))
    if dtype is not None:
        size = (raw.size - 4 * _HEADER) / np.dtype(DTYPES[dtype]).itemsize
        if size != count:
            reject(spec, f"{path}: its header says {count} tokens, and {size:g} follow")
    return dtype


def _beside(spec: str, directory: Path) -> str | None:
    path = directory / META
    if not path.exists():
        return None
    try:
        dtype = read_json(path).get("dtype")
    except InputError as error:
        reject(spec, f"{path}: {error.why}; {_accepted()}")
    if dtype is not None and dtype not in DTYPES:
        reject(spec, f"{path}: dtype {dtype!r}; {_accepted()}")
    return dtype


def _accepted() -> str:
    return f"accepted: --token_dtype={'|'.join(DTYPES)}, as they were written"
