"""How long a user waits for `make demo` and `make test`, as they are run.

python -m benchmarks.budgets
python -m benchmarks.budgets --only=demo
"""

import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from absl import flags
from rich.console import Console

from benchmarks import goals
from benchmarks.goals import Row, print_rows
from experiments.cli import launch
from sysout_jax.errors import InputError, one_of
from sysout_jax.results import RunDirectory, plain

FLAGS = flags.FLAGS
ROOT = Path(__file__).parents[1]
BUDGETS: Mapping[str, float] = MappingProxyType({"demo": 300.0, "test": 360.0})  # seconds, at most


@dataclass(frozen=True)
class Config:
    """What is run."""

    only: tuple[str, ...] = tuple(BUDGETS)  # targets of the Makefile
    workdir: str = "runs"

    def __post_init__(self) -> None:
        for name in self.only or ("",):
            one_of("only", name, tuple(BUDGETS))


def run(config: Config, console: Console) -> dict[str, Any]:
    """Run each target once and keep a record.

    Raises:
      InputError: a target failed, so its time says nothing; with the last line that it wrote.
    """
    directory = RunDirectory(config.workdir, "benchmarks-budgets")
    console.print(f"run      {directory.path}", soft_wrap=True)
    rows: list[Row] = []
    with directory.record("benchmarks.budgets", config=goals.timed(config), rows=rows) as record:
        for name in config.only:
            with console.status(f"make {name}"):
                seconds = waited(["make", name])
            rows.append(Row(f"make {name}", [seconds] * 3, " s", most=BUDGETS[name]))
    return dict(plain(record))


def waited(command: list[str]) -> float:
    """Seconds until a command has ended well.

    Raises:
      InputError: it did not.
    """
    begun = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
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
