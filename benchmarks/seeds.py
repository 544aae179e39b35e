"""Seeds trained together by vmap against one run after another, compilation included.

python -m benchmarks.seeds            # 1, 2, 4 and 8 seeds of 60k parameters
python -m benchmarks.seeds --quick
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import jax
import numpy as np
from absl import flags
from rich.console import Console

from benchmarks.goals import Row, print_rows, quartiles
from experiments import launch
from sysout_jax.data import Backcopy
from sysout_jax.model.config import SHAPES, at_least
from sysout_jax.results import RunDirectory, plain
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.loop import train

FLAGS = flags.FLAGS
RUN = TrainConfig(
    corpus="backcopy", seq_len=32, batch_size=16, model=SHAPES["backcopy"], val_batches=2
)
GOAL = 0.7  # of the time of as many runs, for the most seeds


@dataclass(frozen=True)
class Config:
    """What is timed."""

    counts: tuple[int, ...] = (1, 2, 4, 8)
    steps: int = 1000
    rounds: int = 3
    workdir: str = "runs"

    def __post_init__(self) -> None:
        at_least(1, "steps", self.steps)
        at_least(1, "rounds", self.rounds)


def run(config: Config, console: Console) -> dict[str, Any]:
    """Time a whole run with each number of seeds, in turn, and keep a record."""
    directory = RunDirectory(config.workdir, "benchmarks-seeds")
    console.print(f"run      {directory.path}", soft_wrap=True)
    seconds: dict[int, list[float]] = {count: [] for count in config.counts}
    with directory.record("benchmarks.seeds", config=asdict(config), rows=[]) as record:
        for turn in range(config.rounds):
            for count in config.counts[:: -1 if turn % 2 else 1]:
                with console.status(f"{count} seeds, round {turn + 1} of {config.rounds}"):
                    seconds[count].append(whole_run(config.steps, count))
        record["seconds"] = seconds
        record["rows"] = rows(seconds)
    return dict(plain(record))


def whole_run(steps: int, count: int) -> float:
    """Seconds of a run of some seeds from nothing: everything is compiled anew."""
    jax.clear_caches()
    begun = time.perf_counter()
    config = replace(RUN, steps=steps, measure_every=steps, seeds=tuple(range(count)))
    jax.block_until_ready(train(config, Backcopy()).params)
    return time.perf_counter() - begun


def rows(seconds: Mapping[int, list[float]]) -> list[Row]:
    """The time of n seeds together over n times that of one, in the same round."""
    alone = np.array(seconds[min(seconds)]) / min(seconds)
    found = [Row("one run of one seed", quartiles(alone), " s")]
    for count, times in seconds.items():
        if count > 1:
            goal = GOAL if count == max(seconds) else None
            ratio = quartiles(np.array(times) / (count * alone))
            found.append(Row(f"{count} seeds together, of {count} runs", ratio, "", goal))
    return found


def main() -> None:
    console = Console()
    jax.config.update("jax_enable_compilation_cache", False)
    config = Config(workdir=FLAGS.workdir)
    if FLAGS.quick:
        config = replace(config, counts=(1, 8), rounds=1)
    print_rows(console, "whole runs, compilation included", run(config, console)["rows"])


def define_flags() -> None:
    """Define the flags of this binary."""
    flags.DEFINE_string("workdir", "runs", "where run directories go")
    flags.DEFINE_bool("quick", False, "1 and 8 seeds, once")


if __name__ == "__main__":
    define_flags()
    launch.launch(main)
