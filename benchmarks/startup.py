"""What a user waits for before anything happens: import, first step, loading, the quick proofs.

python -m benchmarks.startup            # each in processes of its own
python -m benchmarks.startup --quick    # fewer rounds, a small checkpoint, no proofs
"""

import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from rich.console import Console

from benchmarks import goals
from benchmarks.goals import Row, print_rows, quartiles
from experiments.cli import launch
from sysout_jax.errors import at_least
from sysout_jax.families.export import export
from sysout_jax.loading import load
from sysout_jax.model.config import SHAPES, ModelConfig
from sysout_jax.model.decoder import init
from sysout_jax.model.model import Model
from sysout_jax.planning.timing import alternated
from sysout_jax.results import RunDirectory, plain

FLAGS = flags.FLAGS
ROOT = Path(__file__).parent.parent
QUICK = {"rounds": 1, "layers": 1, "proofs": False}
IMPORT = "import sysout_jax"
FIRST_STEP = """
from sysout_jax.training.config import TrainConfig
from sysout_jax.planning.timing import step_seconds
step_seconds({"softmax": TrainConfig()}, 256, rounds=0, steps=1)
"""


@dataclass(frozen=True)
class Config:
    """What is timed."""

    rounds: int = 3  # of each
    layers: int = 12  # of the GPT-2 that is loaded, 768 wide
    proofs: bool = True  # theory.verify --quick, too
    workdir: str = "runs"  # where run directories go

    def __post_init__(self) -> None:
        at_least(1, "rounds", self.rounds)
        at_least(1, "layers", self.layers)


def run(config: Config, console: Console) -> dict[str, Any]:
    """Time all of it and keep a record."""
    directory = RunDirectory(config.workdir, "benchmarks-startup")
    console.print(f"run      {directory.path}", soft_wrap=True)
    shape = replace(SHAPES["gpt2-124m"], layers=config.layers)
    with (
        directory.record("benchmarks.startup", config=goals.timed(config), rows=[]) as record,
        tempfile.TemporaryDirectory() as scratch,
    ):
        with console.status("children that import, and take a first step"):
            record["rows"] += started(Path(scratch), config.rounds)
        with console.status("loading a checkpoint"):
            record["rows"] += loaded(Path(scratch), shape, config.rounds)
        if config.proofs:
            with console.status("theory.verify --quick"):
                seconds = child("-m", "theory.verify", "--quick")
            record["rows"].append(Row("theory.verify --quick", quartiles([seconds]), " s"))
    return dict(plain(record))


def child(*arguments: str, cache: Path | None = None) -> float:
    """Seconds of a Python process from its start to its end."""
    place = {} if cache is None else {
        "JAX_COMPILATION_CACHE_DIR": str(cache), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }  # fmt: skip
    begun = time.perf_counter()
    subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=os.environ | place, check=True,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return time.perf_counter() - begun


def started(scratch: Path, rounds: int) -> list[Row]:
    """Import, and the first training step of 120k parameters with an empty and a filled cache."""
    imported = [child("-c", IMPORT) for _ in range(rounds)]
    cold, cached = [], []
    for turn in range(rounds):
        cache = scratch / f"cache-{turn}"
        cold.append(child("-c", FIRST_STEP, cache=cache))
        cached.append(child("-c", FIRST_STEP, cache=cache))
    return [
        Row("import sysout_jax", quartiles(imported), " s", 3.0),
        Row("to the first step, nothing compiled before", quartiles(cold), " s", 8.0),
        Row("to the first step, compiled before", quartiles(cached), " s", 3.0),
    ]


def loaded(scratch: Path, shape: ModelConfig, rounds: int) -> list[Row]:
    """A published checkpoint to arrays on the device, and its file read, both from the page cache.

    Without the page cache both wait for the disk.
    """
    params = jax.jit(partial(init, shape))(jax.random.key(0))
    place = scratch / "gpt2"
    export(Model(shape, params, None), place, "gpt2")
    del params
    files = sorted(place.glob("*.safetensors"))
    size = sum(file.stat().st_size for file in files) / 1e9
    seconds = alternated(
        {
            "load": lambda: jax.block_until_ready(load(place).params),
            "read": lambda: [len(file.read_bytes()) for file in files],
        },
        rounds,
    )
    rates = {name: size / np.array(times) for name, times in seconds.items()}
    return [
        Row(f"safetensors to the device, {size:.2f} GB", quartiles(rates["load"]), " GB/s"),
        Row("its files read, for comparison", quartiles(rates["read"]), " GB/s"),
        Row("loading, times reading", quartiles(rates["load"] / rates["read"])),
    ]


def main() -> None:
    console = Console()
    config = launch.override(Config(), QUICK if FLAGS.quick else {})
    config = launch.override(config, {name: FLAGS[name].value for name in FLAGS})
    print_rows(console, "starting", run(config, console)["rows"])


def define_flags() -> None:
    """Define the flags of this binary."""
    flags.DEFINE_bool("quick", False, "one round, one layer, no proofs")
    launch.define_overrides(Config)


if __name__ == "__main__":
    define_flags()
    launch.launch(main)
