"""Files and directories that appear whole or not at all."""

import contextlib
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


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


def write_text(path: Path, text: str) -> Path:
    """Write a text, in UTF-8, that a reader never sees half of."""
    with replacing(path) as partial:
        partial.write_bytes(text.encode())
    return path


@contextlib.contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have errors of the system say which file it is: those of a write name none."""
    try:
        yield
    except OSError as error:
        error.filename = str(path)
        raise


def remove(path: Path) -> None:
    """Remove a file, a link or a whole directory, as far as the system allows."""
    with contextlib.suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
