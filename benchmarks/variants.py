"""What each attention variant adds to the time of a training step, in turn with softmax.

python -m benchmarks.variants            # the paper's, at least one of each kind, width 256
python -m benchmarks.variants --all      # all variants
python -m benchmarks.variants --quick    # the paper's, narrow
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.console import Console

from benchmarks import goals
from benchmarks.goals import Row, print_rows, quartiles
from experiments.cli import launch
from sysout_jax.core.attention import PAPER, VARIANTS
from sysout_jax.core.primitives import Heads
from sysout_jax.errors import at_least, one_of
from sysout_jax.model.config import SHAPES
from sysout_jax.planning.timing import step_seconds
from sysout_jax.results import RunDirectory, plain
from sysout_jax.training.config import TrainConfig

FLAGS = flags.FLAGS
VOCAB = 2048
WIDE = TrainConfig(
    seq_len=256, batch_size=8, model=replace(SHAPES["gpt2-tiny"], width=256, heads=4)
)
# Kinds of variants -> at most so many times softmax's step.
GOALS: Mapping[str, float] = MappingProxyType(
    {"gate per head": 1.03, "extra key": 1.08, "unnormalised": 1.10}
)


@dataclass(frozen=True)
class Config:
    """What is timed."""

    variants: tuple[str, ...] = PAPER
    rounds: int = 9  # of one call each, after one that compiles
    steps: int = 1  # in a call
    width: int = 256
    workdir: str = "runs"

    def __post_init__(self) -> None:
        for name in self.variants:
            one_of("variants", name, tuple(VARIANTS))
        at_least(2, "rounds", self.rounds)
        at_least(4, "width", self.width)


def kind(name: str) -> str:
    """What a variant adds: "gate per head", "extra key", "unnormalised", or "" for anything else.

    By its entry in the table and by what it does: an extra key has some of the attention's mass.
    """
    variant = VARIANTS[name]
    gates = [param.axes for key, param in variant.params.items() if key.startswith("gate")]
    if gates:
        return "" if any("H" in axes for axes in gates) else "gate per head"
    if not variant.normalised:
        return "unnormalised"
    size = {"D": 2, "N": 1, "K": 1, "H": 2}
    shapes = {
        key: [size[letter] for letter in param.axes.replace("->", " ").split()]
        for key, param in variant.params.items()
    }
    q = jnp.ones((2, 1, 2))
    heads = Heads(q, q, q, q[:, 0], q[:, 0], jnp.ones((2, 2), bool))
    mixed = variant(heads, {key: jnp.ones(shape) for key, shape in shapes.items()})
    extra = mixed.extra is not None and float(jnp.sum(mixed.extra)) > 0
    return "extra key" if extra else ""


def run(config: Config, console: Console) -> dict[str, Any]:
    """Time a step with each variant and keep a record."""
    names = ("softmax", *(name for name in config.variants if name != "softmax"))
    base = replace(WIDE, model=replace(WIDE.model, width=config.width))
    directory = RunDirectory(config.workdir, "benchmarks-variants")
    console.print(f"run      {directory.path}", soft_wrap=True)
    with directory.record("benchmarks.variants", config=goals.timed(config), rows=[]) as record:
        configs = {name: replace(base, variant=name) for name in names}
        with console.status(f"timing {len(names)} variants in turn"):
            seconds = step_seconds(configs, VOCAB, config.rounds, config.steps)
        record["seconds"] = seconds
        record["rows"] = rows(seconds)
    return dict(plain(record))


def rows(seconds: Mapping[str, np.ndarray]) -> list[Row]:
    """The time of each variant over softmax's in the same round."""
    found = [Row("softmax", quartiles(1e3 * seconds["softmax"]), " ms a step")]
    for name, times in seconds.items():
        if name != "softmax":
            what = f"{VARIANTS[name].label}{f', {kind(name)}' if kind(name) else ''}"
            ratio = quartiles(times / seconds["softmax"])
            found.append(Row(what, ratio, "", GOALS.get(kind(name))))
    return found


def main() -> None:
    console = Console()
    jax.config.update("jax_enable_compilation_cache", False)
    config = Config(tuple(VARIANTS) if FLAGS.all else PAPER, workdir=FLAGS.workdir)
    if FLAGS.quick:
        config = replace(config, rounds=3, width=32)
    print_rows(console, "a step's time, times softmax's", run(config, console)["rows"])


def define_flags() -> None:
    """Define the flags of this binary."""
    flags.DEFINE_string("workdir", "runs", "where run directories go")
    flags.DEFINE_bool("all", False, "all variants, not the paper's six alone")
    flags.DEFINE_bool("quick", False, "at width 32, in seconds")


if __name__ == "__main__":
    define_flags()
    launch.launch(main)
