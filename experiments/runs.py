"""Which runs are there, and what became of each?

python -m experiments.runs
python -m experiments.runs --workdir=PATH
python -m experiments.runs --tensorboard=DIR      # what training logged, for `tensorboard --logdir`
"""

import contextlib
import fcntl
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from sysout_jax.errors import InputError
from sysout_jax.results import UNLOCKED, read_record
from sysout_jax.showing import Table

from .cli import launch, showing
from .cli.tables import PRINTED, Section
from .cli.verdict import Verdict, numbered
from .reports import event_files

FLAGS = flags.FLAGS
OFTEN = ("workdir", "tensorboard")  # what --help explains
COLUMNS = ("kind", "name", "status", "began", "size, MB")
LOG = "metrics.jsonl"  # every run directory has it, locked while the run goes on


def rows(workdir: Path) -> list[tuple[str, ...]]:
    """Kind, name, status, start and size of each run, by kind and name.

    A run without a record goes on (running) or was killed.

    Raises:
      InputError: no such directory.
    """
    if not workdir.is_dir():
        raise InputError("workdir", workdir, "where runs are", "no such directory")
    found: list[tuple[str, ...]] = []
    for log in sorted(workdir.glob(f"*/**/{LOG}")):
        run, kind = log.parent, log.relative_to(workdir).parts[0]
        record = _record(run)
        status = "running" if _locked(log) else record.get("status", "killed")
        began = record.get("provenance", {}).get("started", "").replace("T", " ")[:16]
        name = str(run.relative_to(workdir / kind))
        found.append((kind, name, status, began, f"{_size(run) / 1e6:.1f}"))
    return found


def verdict(workdir: Path, found: Sequence[Sequence[str]]) -> Verdict:
    """How many runs there are of each kind of end, and how to look at the last that is complete."""
    ends = Counter(status for _, _, status, *_ in found)
    told = ", ".join(f"{count} {status}" for status, count in ends.items())
    whole = [
        (began, kind, name) for kind, name, status, began, _ in found
        if status == "complete" and not kind.startswith("benchmarks-")  # which draw nothing
    ]  # fmt: skip
    _, kind, name = max(whole, default=("", "", ""))
    return Verdict(
        f"{numbered(len(found), 'run')} below {workdir}" + (f": {told}" if told else ""), "",
        "a killed run goes on where its command is given its --name" if ends["killed"] else "",
        (kind, f"--redraw={workdir / kind / name}") if kind else ("tour",),
    )  # fmt: skip


def _record(run: Path) -> dict[str, Any]:
    try:
        return read_record(run)
    except InputError:
        return {}


def _locked(log: Path) -> bool:
    """Whether a run is writing; not known, and so not said, on a file system without locks."""
    with log.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in UNLOCKED:
                raise
    return False


def _size(run: Path) -> int:
    """The bytes of a run's files, but of those that it removes meanwhile, as old states are."""
    size = 0
    for folder, _, names in os.walk(run):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                size += os.stat(os.path.join(folder, name)).st_size
    return size


# ----------------------------------------------------------------------------- the binary


def main() -> None:
    """Print the table, or write what the runs logged."""
    workdir = Path(FLAGS.workdir)
    found = rows(workdir)
    for name in ("wide", *PRINTED):
        if FLAGS.tensorboard is not None and FLAGS[name].value:
            raise InputError(name, None, "without --tensorboard", "no effect")
    if FLAGS.tensorboard is None:
        about = [dict(zip(COLUMNS, row, strict=True)) for row in found]
        table = Section("runs", Table.of("", COLUMNS, found, "llllr"))
        showing.listed([table], about, verdict(workdir, found))
        return
    out = Path(FLAGS.tensorboard)
    written = {
        name: event_files.write(workdir / kind / name / LOG, out / name)
        for kind, name, *_ in found
        if kind == "variants"  # the command that logs steps
    }
    print(f"{sum(written.values())} numbers of {len(written)} runs in {out}")


def define_flags() -> None:
    """Define the flags of this binary."""
    flags.DEFINE_string("workdir", "runs", "where run directories are")
    flags.DEFINE_string("tensorboard", None, "write what training logged as event files to here")
    showing.define_formats()


if __name__ == "__main__":
    define_flags()
    launch.launch(main, OFTEN)
