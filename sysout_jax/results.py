"""One directory and one JSON record per run; figures and tables are drawn from the record alone."""

import contextlib
import datetime
import errno
import importlib.metadata
import json
import logging
import math
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from sysout_jax.errors import InputError, Preempted, Terminated
from sysout_jax.files import naming, read_json, replacing, write_text

_LOG = logging.getLogger("sysout_jax")
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy")
DIGITS = 6  # significant digits of a float in a record: float32 has seven
UNLOCKED = (errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK)  # of a file system without locks
LATEST = "latest"  # beside the runs of an experiment: the one begun last


class RunDirectory:
    """The directory of one run: config.json, metrics.jsonl, result.json, figures/, models/.

    Every file but metrics.jsonl, which grows by whole lines, is written under a temporary name and
    renamed, so a reader never sees half of one.

    One run writes into it at a time: the kernel holds the lock for the process, so that none is
    left over when that dies.

    Args:
      workdir: the parent of all runs.
      experiment: the name of the experiment.
      name: of the run, which may be there to go on; None names it by the time of its start.
      of: the models of the run, whose names follow that time.

    Raises:
      InputError: the directory cannot be written, or another run is writing to it.
    """

    def __init__(
        self,
        workdir: str | os.PathLike[str],
        experiment: str,
        name: str | None = None,
        of: Sequence[str] = (),
    ) -> None:
        stamp = _named(f"{datetime.datetime.now():%Y%m%d-%H%M%S}", of)
        workdir = os.path.expanduser(workdir)
        names = [stamp, *(f"{stamp}-{n}" for n in range(2, 100))] if name is None else [name]
        try:
            for each in names:
                self.path = Path(workdir) / experiment / each
                with contextlib.suppress(FileExistsError):
                    self.path.mkdir(parents=True, exist_ok=name is not None)
                    break
            self._open_log("x" if name is None else "a")
        except OSError as error:
            raise unwritable(workdir, error) from error
        _point(Path(workdir) / experiment / LATEST, each)

    def _open_log(self, mode: str) -> None:
        """Open metrics.jsonl for this run alone, without the half line that a kill may leave."""
        import fcntl  # of Unix: only those who run experiments need it

        path = self.path / "metrics.jsonl"
        self._metrics = path.open(mode)
        try:
            fcntl.flock(self._metrics, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._metrics.close()
            raise InputError(
                str(self.path), None, "a directory of its own", "another run is writing to it"
            ) from None
        except OSError as error:
            if error.errno not in UNLOCKED:
                raise
            _LOG.warning("%s: no lock on this file system: let one run alone write to it", path)
        self._metrics.truncate(path.read_bytes().rfind(b"\n") + 1)

    def forget_log(self) -> None:
        """Empty metrics.jsonl, for a run that logs again what it had."""
        self._metrics.truncate(0)

    def write_config(self, config: Any) -> None:
        """Write config.json, from which a run goes on: every digit of every number."""
        lines = _lines(json.loads(json.dumps(asdict(config))), "")
        write_text(self.path / "config.json", lines + "\n")

    def write(self, name: str, value: Any) -> Path:
        """Write `name` (a file name ending in .json) from dataclasses, mappings and arrays."""
        return write_json(self.path / name, value)

    def log(self, row: Mapping[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with naming(self.path / "metrics.jsonl"):
            self._metrics.write(json.dumps(plain(row), allow_nan=False) + "\n")
            self._metrics.flush()

    @contextlib.contextmanager
    def record(self, experiment: str, **content: Any) -> Iterator[dict[str, Any]]:
        """A record to fill, written as result.json however the block ends.

        Its "status" says how: complete, interrupted (Ctrl-C), terminated (SIGTERM), preempted
        (SIGTERM, of a run that goes on where it stopped), or failed with the "reason".
        """
        begun = time.perf_counter()
        record = {"experiment": experiment, "provenance": provenance(), **content}
        try:
            yield record
            record["status"] = "complete"
        except BaseException as error:
            record["status"] = STOPPED.get(type(error), "failed")
            record["reason"] = str(error)
            raise
        finally:
            record["seconds"] = time.perf_counter() - begun
            with naming(self.path / "metrics.jsonl"):
                self._metrics.close()
            self.write("result.json", record)


STOPPED = {
    KeyboardInterrupt: "interrupted", Terminated: "terminated", Preempted: "preempted"
}  # fmt: skip


def _named(stamp: str, of: Sequence[str]) -> str:
    """A time and the names of models as the name of a file, not too long for one."""
    said = "-".join(dict.fromkeys(of))[:60]
    return f"{stamp}-{re.sub(r'[^A-Za-z0-9_.-]+', '-', said)}".strip("-.")


def _point(link: Path, run: str) -> None:
    """Make a name stand for a run beside it: a link, or a file that says it where links cannot be.

    A run does not end because that fails, as where a directory has the name.
    """
    with contextlib.suppress(OSError), replacing(link) as partial:
        try:
            partial.symlink_to(run)
        except OSError:
            partial.write_text(f"{run}\n")


def named_run(path: str) -> str:
    """A path in which the run is named that `latest` stands for now: it will be another's."""
    given = Path(os.path.expanduser(path))
    for place in (given, *given.parents):
        if place.name == LATEST and os.path.islink(place):
            run = os.readlink(place)
        elif place.name == LATEST and os.path.isfile(place):
            run = place.read_text().strip()
        else:
            continue
        return str(place.parent / run / given.relative_to(place))
    return path


def unwritable(workdir: str | os.PathLike[str], error: OSError) -> InputError:
    """What to raise for a work directory that cannot be written."""
    return InputError(
        "workdir", workdir, "a directory that is writable", error.strerror or str(error)
    )


def write_json(path: Path, value: Any) -> Path:
    """Write JSON that a reader never sees half of."""
    return write_text(path, layout(value) + "\n")


def layout(value: Any) -> str:
    """JSON with one line per entry, but rows of numbers and words in one line."""
    return _lines(plain(value), "")


def _lines(value: Any, margin: str) -> str:
    inner = f"{margin} "
    if isinstance(value, dict) and value:
        items = [f"{json.dumps(key)}: {_lines(item, inner)}" for key, item in value.items()]
        return "{\n" + ",\n".join(inner + item for item in items) + f"\n{margin}}}"
    if isinstance(value, list) and any(isinstance(item, list | dict) for item in value):
        return "[\n" + ",\n".join(inner + _lines(item, inner) for item in value) + f"\n{margin}]"
    return json.dumps(value, allow_nan=False)


def read_record(directory: str | os.PathLike[str]) -> dict[str, Any]:
    """The record of a run directory.

    Raises:
      InputError: there is no readable result.json in it.
    """
    return read_mapping(Path(directory) / "result.json", "a run directory with its result.json")


def read_mapping(path: Path, accepted: str) -> dict[str, Any]:
    """What a file of JSON says, which is a mapping and not empty.

    Raises:
      InputError: there is no such file, or something else in it; `accepted` says what to do.
    """
    found = read_json(path, accepted)
    if not found:
        raise InputError(str(path), None, accepted, "nothing is in it")
    return found


def plain(value: Any) -> Any:
    """Dataclasses, mappings, tuples and arrays as what JSON knows; NaN and infinities as null."""
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return plain(np.asarray(value).tolist())
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def leaves(tree: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The names and values of a config as a record has it, those of its parts in their place."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from leaves(value)
        else:
            yield name, value


def as_flag(value: Any) -> str:
    """A value as its flag is given: several with commas between."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def joined(arguments: Iterable[str]) -> list[str]:
    """Arguments of a command without positional ones, each flag in one word with its value."""
    words: list[str] = []
    for each in arguments:
        if words and words[-1].startswith("-") and "=" not in words[-1] and not _is_flag(each):
            words[-1] += f"={each}"
        else:
            words.append(each)
    return words


def _is_flag(word: str) -> bool:
    return re.match(r"--?[a-z]", word) is not None  # and no negative number


def provenance() -> dict[str, Any]:
    """Where a record comes from: command, code and library versions, device."""
    device = jax.devices()[0]
    spec = sys.modules["__main__"].__spec__
    # Where files went says nothing of the result, and names a place on somebody's machine.
    places = ("--workdir=", "--out=")
    arguments = [each for each in joined(sys.argv[1:]) if not each.startswith(places)]
    program = ["python", "-m", spec.name] if spec else ["python"]
    return {
        "command": shlex.join([*program, *arguments]),
        "started": f"{datetime.datetime.now(datetime.UTC):%Y-%m-%dT%H:%M:%SZ}",
        "code": code_version(),
        "python": ".".join(map(str, sys.version_info[:3])),
        "libraries": {name: importlib.metadata.version(name) for name in LIBRARIES},
        "device": {
            "platform": device.platform,
            "kind": device.device_kind,
            "count": jax.device_count(),
            "cpu_cores": os.cpu_count(),
        },
    }


def code_version() -> dict[str, Any]:
    """The commit of the clone that this file is in, and whether it was changed since."""
    root = Path(__file__).parent.parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False
            )
        except OSError:
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not (root / ".git").exists():
        return {"commit": None, "dirty": None}
    status = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}
