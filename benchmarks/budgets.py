"""How long a user waits for what has a budget, as a user runs it, each in a process of its own.

python -m benchmarks.budgets                       # all of them, `make test` too
python -m benchmarks.budgets --only=demo,convert
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from absl import flags
from rich.console import Console

from benchmarks import goals
from benchmarks.goals import Row, print_rows, quartiles
from experiments.cli import launch
from sysout_jax.errors import InputError, one_of
from sysout_jax.results import RunDirectory, plain

FLAGS = flags.FLAGS
ROOT = Path(__file__).parents[1]
RUN = (sys.executable, "-m")
SMOLLM2 = "--model=smollm2-135m"


@dataclass(frozen=True)
class Budget:
    """A command and what it may take."""

    what: str
    command: tuple[str, ...]
    seconds: float
    one_core: bool = False  # it is held to one


BUDGETS: Mapping[str, Budget] = MappingProxyType(
    {
        "demo": Budget("make demo", ("make", "demo"), 300.0),
        "test": Budget("make test", ("make", "test"), 360.0),
        "verify": Budget(
            "theory.verify --quick", (*RUN, "theory.verify", "--quick"), 60.0
        ),
        "convert": Budget(
            "experiments.convert, SmolLM2-135M, as it comes",
            (*RUN, "experiments.convert", SMOLLM2, "--corpus=stdlib", "--out=converted"), 120.0,
        ),
        "analyze": Budget(
            "experiments.analyze, SmolLM2-135M, all parts, 16 x 64 tokens, one core",
            (*RUN, "experiments.analyze", SMOLLM2, "--corpus=stdlib", "--sequences=16",
             "--seq_len=64"),
            150.0, one_core=True,
        ),
    }
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """What is run."""

    only: tuple[str, ...] = tuple(BUDGETS)  # what is run
    workdir: str = "runs"

    def __post_init__(self) -> None:
        for name in self.only or ("",):
            one_of("only", name, tuple(BUDGETS))


def run(config: Config, console: Console) -> dict[str, Any]:
    """Run each command once and keep a record.

    Raises:
      InputError: a command failed, so its time says nothing; with the last line that it wrote.
    """
    directory = RunDirectory(config.workdir, "benchmarks-budgets")
    console.print(f"run      {directory.path}", soft_wrap=True)
    rows: list[Row] = []
    about = {"config": goals.timed(config), "load": os.getloadavg(), "rows": rows}
    with directory.record("benchmarks.budgets", **about) as record:
        for name in config.only:
            budget = BUDGETS[name]
            with console.status(budget.what):
                seconds = waited(budget.command, budget.one_core)
            rows.append(Row(budget.what, quartiles([seconds]), " s", most=budget.seconds))
    return dict(plain(record))


def waited(command: Sequence[str], one_core: bool = False) -> float:
    """Seconds until a command has ended well; what is no target of the Makefile, in a new place.

    Raises:
      InputError: it did not, or it cannot be held to one core.
    """
    if one_core and not hasattr(os, "sched_setaffinity"):
        raise InputError("only", accepted="what is not held to one core, which this system cannot")
    cores = os.sched_getaffinity(0) if one_core else set()
    with tempfile.TemporaryDirectory() as place:
        begun = time.perf_counter()
        try:
            if cores:  # which the command inherits
                os.sched_setaffinity(0, {min(cores)})
            done = subprocess.run(
                command, cwd=ROOT if command[0] == "make" else place, capture_output=True,
                text=True, check=False, env=os.environ | {"PYTHONPATH": str(ROOT)},
            )  # fmt: skip
        finally:
            if cores:
                os.sched_setaffinity(0, cores)
        seconds = time.perf_counter() - begun
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).rpartition("\n")[2]
        why = f"its time says nothing, it ended with exit status {done.returncode}: {said}"
        raise InputError(" ".join(command), why=why)
    return seconds


def main() -> None:
    console = Console()
    config = launch.override(Config(), {name: FLAGS[name].value for name in FLAGS})
    print_rows(console, "budgets", run(config, console)["rows"])


def define_flags() -> None:
    """Define the flags of this binary."""
    launch.define_overrides(Config)


if __name__ == "__main__":
    define_flags()
    launch.launch(main)
