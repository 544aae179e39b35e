"""Seeds trained together by vmap against one run after another: whole runs, and their steps.

python -m benchmarks.seeds                                 # 1, 2, 4, 8 seeds of 60k parameters
python -m benchmarks.seeds --steps=1000 --rounds=7         # with the spread of rounds
python -m benchmarks.seeds --quick
python -m benchmarks.seeds --size=5m --counts=1,8 --steps=300    # on a GPU: bfloat16
"""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from absl import flags
from rich.console import Console

from benchmarks import goals
from benchmarks.goals import Row, print_rows, quartiles
from experiments.cli import launch
from sysout_jax.data import Backcopy, Source, TextCorpus
from sysout_jax.errors import InputError, at_least, one_of
from sysout_jax.model.config import SHAPES
from sysout_jax.model.execution import Execution
from sysout_jax.results import RunDirectory, plain
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.loop import train

FLAGS = flags.FLAGS
RUNS: Mapping[str, TrainConfig] = MappingProxyType(
    {
        "60k": TrainConfig(
            corpus="backcopy", seq_len=32, batch_size=16, model=SHAPES["backcopy"], val_batches=2
        ),
        "5m": TrainConfig(
            corpus="random", seq_len=256, batch_size=32, steps_per_call=50, val_batches=2,
            model=replace(
                SHAPES["gpt2-tiny"], layers=6, width=256, heads=4,
                execution=Execution(dtype="bfloat16"),
            ),
        ),
    }
)  # fmt: skip
QUICK = {"counts": (1, 8), "steps": 100}
VOCAB = 4096  # of random tokens
WHOLE = 0.7  # goal: of the time of as many runs, for the most seeds
THROUGHPUT = {"60k": None, "5m": 3.0}  # goal: tokens per second, for the most seeds


@dataclass(frozen=True)
class Config:
    """What is timed."""

    size: str = "60k"  # parameters: 60k of Bigram-Backcopy, 5m of random tokens
    counts: tuple[int, ...] = (1, 2, 4, 8)  # of seeds, 1 among them
    steps: int = 500
    rounds: int = 1  # three were within 3% of one another
    workdir: str = "runs"

    def __post_init__(self) -> None:
        one_of("size", self.size, tuple(RUNS))
        at_least(2 * RUNS[self.size].steps_per_call, "steps", self.steps)
        at_least(1, "rounds", self.rounds)
        several = len(set(self.counts)) < len(self.counts)
        if several or 1 not in self.counts or not all(0 < n == int(n) for n in self.counts):
            shown = ",".join(map(str, self.counts))
            raise InputError("counts", shown, "numbers above 0, 1 among them, none twice")


@dataclass(frozen=True)
class Timed:
    """A whole run from nothing, and its steps once they are compiled."""

    seconds: float
    tokens_per_second: float


def run(config: Config, console: Console) -> dict[str, Any]:
    """Time a whole run with each number of seeds, in turn, and keep a record."""
    directory = RunDirectory(config.workdir, "benchmarks-seeds")
    console.print(f"run      {directory.path}", soft_wrap=True)
    timed: dict[int, list[Timed]] = {count: [] for count in config.counts}
    with directory.record("benchmarks.seeds", config=goals.timed(config), rows=[]) as record:
        for turn in range(config.rounds):
            for count in config.counts[:: -1 if turn % 2 else 1]:
                with console.status(f"{count} seeds, round {turn + 1} of {config.rounds}"):
                    timed[count].append(whole_run(config.size, config.steps, count))
        record["timed"] = {count: [asdict(each) for each in timed[count]] for count in timed}
        record["rows"] = rows(timed, THROUGHPUT[config.size])
    return dict(plain(record))


def whole_run(size: str, steps: int, count: int) -> Timed:
    """A run of some seeds from nothing: everything is compiled anew."""
    jax.clear_caches()
    config = replace(
        RUNS[size], steps=steps, measure_every=steps, seeds=tuple(range(count)),
        seeds_at_once=count,
    )  # fmt: skip
    corpus = Backcopy() if config.corpus == "backcopy" else random_tokens(config)
    begun = time.perf_counter()
    done = train(config, corpus)
    jax.block_until_ready(done.params)
    seconds = time.perf_counter() - begun
    # The first call compiles.
    compiled = [row["tokens_per_second"] for row in done.rows if "loss" in row][1:]
    return Timed(seconds, float(np.median(compiled)))


def random_tokens(config: TrainConfig) -> Source:
    """Tokens for a hundred batches; what they are costs no time."""
    drawn = np.random.default_rng(0).integers(
        0, VOCAB, 100 * config.batch_size * config.seq_len, np.int32
    )
    return TextCorpus("random", VOCAB, None, drawn, drawn)


def rows(timed: Mapping[int, list[Timed]], throughput: float | None = None) -> list[Row]:
    """Whole runs: the time of n seeds together over n times that of one, in the same round. Steps:
    tokens per second of n seeds together over those of one.

    Args:
      timed: number of seeds -> a run in each round; one seed among them.
      throughput: what that of the most seeds should be, at least.
    """
    seconds, speed = (
        {n: np.array([getattr(run, what) for run in runs]) for n, runs in timed.items()}
        for what in ("seconds", "tokens_per_second")
    )
    several = [count for count in timed if count > 1]
    most = max(timed)
    return [
        Row("one run of one seed", quartiles(seconds[1]), " s"),
        *(
            Row(
                f"{n} seeds together, of {n} runs", quartiles(seconds[n] / (n * seconds[1])),
                most=WHOLE if n == most else None,
            )
            for n in several
        ),
        Row("its steps, one seed", quartiles(speed[1]), " tokens/s"),
        *(
            Row(
                f"tokens/s of {n} seeds together, times", quartiles(speed[n] / speed[1]),
                least=throughput if n == most else None,
            )
            for n in several
        ),
    ]  # fmt: skip


def main() -> None:
    console = Console()
    jax.config.update("jax_enable_compilation_cache", False)
    config = launch.override(Config(), QUICK if FLAGS.quick else {})
    config = launch.override(config, {name: FLAGS[name].value for name in FLAGS})
    print_rows(console, "whole runs, compilation included, and steps", run(config, console)["rows"])


def define_flags() -> None:
    """Define the flags of this binary."""
    flags.DEFINE_bool("quick", False, "1 and 8 seeds, once")
    launch.define_overrides(Config)


if __name__ == "__main__":
    define_flags()
    launch.launch(main)
