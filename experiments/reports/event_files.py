"""metrics.jsonl of runs as event files, which TensorBoard shows."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sysout_jax.errors import InputError

from ..records.study import study_names

INSTALL = "pip install tensorboardX (the extra tensorboard)"


def write(log: Path, out: Path) -> int:
    """Write one directory of event files below `out` for each model and seed of a run.

    Args:
      log: a run's metrics.jsonl. Rows that no training step made are left out, and so is the half
        line of a run that goes on.
      out: must not exist yet; it appears with the first number.

    Returns:
      How many numbers were written.

    Raises:
      InputError: `out` exists, tensorboardX is not installed, or the log is damaged.
    """
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise InputError("tensorboard", why=f"needs the package tensorboardX: {INSTALL}") from None
    if out.exists():
        raise InputError("tensorboard", out, "a directory that is not there yet", "it exists")
    writers: dict[str, Any] = {}
    written = 0
    for series, step, tag, value in _numbers(log):
        if series not in writers:
            writers[series] = SummaryWriter(str(out / series))
        writers[series].add_scalar(tag, value, step)
        written += 1
    for writer in writers.values():
        writer.close()
    return written


def _numbers(log: Path) -> Iterator[tuple[str, int, str, float]]:
    """(model and seed, step, name, number) of each number in a log."""
    whole = [line for line in log.read_text().splitlines(keepends=True) if line.endswith("\n")]
    rows = [_row(log, number, line) for number, line in enumerate(whole, 1)]
    steps = [row for row in rows if "step" in row]
    corpora = list(dict.fromkeys(row["corpus"] for row in steps))
    study_of = dict(zip(corpora, study_names(corpora), strict=True))
    for row in steps:
        model = f"{study_of[row['corpus']]}-{row['variant']}"
        per_seed: dict[str, Any] = {
            name: row[name] for name in ("loss", "val_loss", "grad_norm") if name in row
        }
        per_seed |= {f"measures/{key}": value for key, value in row.get("measures", {}).items()}
        for tag, values in per_seed.items():
            for seed, value in zip(row["seeds"], values, strict=True):
                if value is not None:  # a number that is not finite
                    yield f"{model}/seed-{seed}", row["step"], tag, value


def _row(log: Path, number: int, line: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict):
        accepted = "lines of JSON, as a training logs them"
        raise InputError(str(log), None, accepted, f"line {number} is none")
    return row
