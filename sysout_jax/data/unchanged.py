"""What was computed from files, remembered for as long as the files stay as they are."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterable
from pathlib import Path

from sysout_jax.files import write_text

FOLDER = "unchanged"  # in the cache directory
# A file that is changed twice within a tick of the file system's clock has the times of the first
# change. The coarsest clock ticks every two seconds (FAT).
_TICK = 2 * 10**9  # ns


def remembered(
    files: Iterable[Path], cache: Path, compute: Callable[[], str], what: str = ""
) -> str:
    """What `compute` finds in the files, without reading them where they are as they were.

    They are where each has the same path, device, inode, size, and times of its last change to the
    nanosecond, and where those times are older than the note by more than a tick. Times are only
    compared with each other: where a clock was wrong, files are read again.

    Args:
      files: what `compute` reads.
      cache: the directory that notes are kept in; where it cannot be written, nothing is kept.
      compute: gives a word, such as a digest.
      what: which of the words that are found in the same files.

    Raises:
      OSError: a file is not there.
    """
    paths = [path.resolve() for path in files]
    name = hashlib.blake2b("\0".join([what, *map(str, paths)]).encode(), digest_size=16).hexdigest()
    note = cache / FOLDER / f"{name}.json"
    before, newest = _as_they_are(paths)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["files"] == before and newest + _TICK < note.stat().st_mtime_ns:
            return str(known["found"])
    found = compute()
    if _as_they_are(paths)[0] == before:
        with contextlib.suppress(OSError):
            note.parent.mkdir(parents=True, exist_ok=True)
            write_text(note, json.dumps({"files": before, "found": found}))
    return found


def _as_they_are(paths: list[Path]) -> tuple[list[list[int]], int]:
    """What tells that files have changed, and the time of the last change of any, in ns."""
    found = [path.stat() for path in paths]
    newest = max(max(one.st_mtime_ns, one.st_ctime_ns) for one in found)
    return [
        [one.st_dev, one.st_ino, one.st_size, one.st_mtime_ns, one.st_ctime_ns] for one in found
    ], newest
