"""Files and directories that appear whole or not at all."""

import contextlib
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sysout_jax.errors import InputError

_POINTER = b"version https://git-lfs"
_LONGEST_JSON = 100_000_000  # bytes; an index of a hundred thousand tensors has a tenth


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A name beside `path` to write a file or directory under; it becomes `path` at the end.

    Each call has a name of its own: of two that write one path the last to end stays, and neither
    sees what the other has begun. What a block has written that fails is removed.

    Raises:
      OSError: it cannot be written; names `path`.
    """
    partial = path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        with naming(path):
            yield partial
            partial.replace(path)
    except BaseException:
        remove(partial)
        raise


def existing(name: str | os.PathLike[str]) -> Path | None:
    """The path that a name has on this machine; None: nothing is there, or it can be none.

    Raises:
      InputError: it lies in a directory that may not be looked into.
    """
    if not os.fspath(name):  # would be the working directory
        return None
    path = Path(os.path.expanduser(name))
    try:
        with permitted():
            path.stat()
    except InputError:
        raise
    except (OSError, ValueError):  # too long, or with a zero byte
        return None
    return path


@contextlib.contextmanager
def permitted() -> Iterator[None]:
    """Have it be bad input where the system does not let a file or directory be read."""
    try:
        yield
    except PermissionError as error:
        raise InputError(
            str(error.filename), None, "what this user may read", f"{error.strerror}"
        ) from error


def write_text(path: Path, text: str) -> Path:
    """Write a text, in UTF-8, that a reader never sees half of, nor finds after a loss of power."""
    with replacing(path) as partial:
        partial.write_bytes(text.encode())
        with partial.open("rb+") as file:
            os.fsync(file.fileno())
    return path


def settle(directory: Path) -> None:
    """Have the names in a directory outlast a loss of power, where the file system can."""
    with contextlib.suppress(OSError):
        handle = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def read_json(path: Path, accepted: str = "a JSON object") -> dict[str, Any]:
    """The object that a file of JSON holds.

    Args:
      path: the file.
      accepted: what errors say would have done.

    Raises:
      InputError: no such file, too large a one, not JSON, or no object.
    """
    try:
        refuse_pointer(path)
        size = path.stat().st_size
        if size > _LONGEST_JSON:
            raise InputError(str(path), None, accepted, f"{size} bytes, above {_LONGEST_JSON}")
        found = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(str(path), None, accepted, f"{error.strerror}") from error
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(str(path), None, accepted, f"not JSON ({error})") from error
    if not isinstance(found, dict):
        raise InputError(str(path), None, accepted, f"a JSON {type(found).__name__}")
    return found


def refuse_pointer(path: Path) -> None:
    """Refuse a Git LFS pointer, which a clone without Git LFS leaves in the place of a file.

    Raises:
      InputError: it is one.
      OSError: it cannot be read.
    """
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise InputError(
                str(path),
                None,
                "the file, which `git lfs pull` in that clone brings",
                "a Git LFS pointer, not the file itself",
            )


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have errors of the system say which file it is: those of a write name none."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def unused(path: Path) -> Path:
    """A path at which nothing is: this one, or the first of path-2, path-3, ..."""
    numbered = (path.with_name(f"{path.name}-{count}") for count in itertools.count(2))
    return next(each for each in itertools.chain([path], numbered) if not os.path.lexists(each))


def remove(path: Path) -> None:
    """Remove a file, a link or a whole directory, as far as the system allows."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
