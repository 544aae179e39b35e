"""The goals that this machine meets and misses, by the last record of every benchmark.

python -m benchmarks.verdicts    # after those that are of interest; `make bench` ends with it
"""

import os
import platform
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console

from benchmarks import analysis, goals, train
from experiments.cli import launch
from sysout_jax.errors import InputError
from sysout_jax.results import read_record
from sysout_jax.showing import Table

FLAGS = flags.FLAGS
HEADINGS = ("benchmark", "what", "found", "goal", "met", "begun")


def verdicts(record: Mapping[str, Any]) -> Iterator[list[str]]:
    """A row for each goal of a record."""
    name = record["experiment"].removeprefix("benchmarks.")
    tables = {"train": train.table, "analysis": analysis.table}
    shown = tables[name](record) if name in tables else goals.table("", record["rows"])
    goal, met = shown.headings.index("goal"), shown.headings.index("met")
    labels = len(shown.sides) - len(shown.sides.lstrip("l"))
    group = ""  # what says a row's in the first column, where several rows share it
    for row in shown.texts[1:]:
        group = row[0] or group
        if row[goal]:
            what = ", ".join([group, *row[1:labels]])
            begun = record["provenance"]["started"]
            yield [name, what, row[goal - 1], row[goal], row[met], begun]


def table(workdir: Path) -> Table:
    """The goals of the last run of each benchmark below a directory, complete ones alone.

    Raises:
      InputError: there is none.
    """
    records = [
        read_record(path.parent) for path in sorted(workdir.glob("benchmarks-*/latest/result.json"))
    ]
    whole = [record for record in records if record["status"] == "complete"]
    if not whole:
        raise InputError("workdir", workdir, "a directory with complete runs of benchmarks")
    rows = [row for record in whole for row in verdicts(record)]
    return Table.of(f"goals on {processor()}", HEADINGS, rows, "llrrll")


def processor() -> str:
    """The name of this machine's processor, and how many cores it has."""
    name, listed = platform.processor() or platform.machine(), Path("/proc/cpuinfo")
    if listed.exists():
        lines = [line for line in listed.read_text().splitlines() if line.startswith("model name")]
        name = lines[0].partition(":")[2].strip() if lines else name
    return f"{name}, {os.cpu_count()} cores"


def main() -> None:
    console = Console()
    shown = table(Path(FLAGS.workdir))
    goals.print_table(console, shown)
    said = [row[HEADINGS.index("met")] for row in shown.rows]
    console.print(f"{said.count('yes')} of {len(said)} goals met")


def define_flags() -> None:
    """Define the flags of this binary."""
    flags.DEFINE_string("workdir", "runs", "where the run directories of the benchmarks are")


if __name__ == "__main__":
    define_flags()
    launch.launch(main)
