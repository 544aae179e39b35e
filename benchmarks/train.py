"""A training step against PyTorch's, in turn in one process: the same weights, batches, threads.

pip install -r requirements-reference.txt    # PyTorch
python -m benchmarks.train                   # two styles, three sizes, in minutes
python -m benchmarks.train --quick           # the smallest size, without torch.compile
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from absl import flags
from rich.console import Console
from rich.table import Table

from benchmarks import torch_decoder
from experiments import launch
from sysout_jax.errors import InputError
from sysout_jax.model.config import SHAPES, ModelConfig, at_least
from sysout_jax.model.decoder import param_axes, parameter_count
from sysout_jax.results import RunDirectory
from sysout_jax.training.optimizer import OptimizerConfig, make_optimizer
from sysout_jax.training.step import make_step, make_steps, start, token_loss
from sysout_jax.training.timing import Stepping, alternated

FLAGS = flags.FLAGS
STYLES = ("gpt2-tiny", "llama-tiny")
EQUAL = 1e-4  # largest difference of loss and gradients at step 0, as shares of the largest value


@dataclass(frozen=True)
class Size:
    """A model and its batch; heads are as many for keys as for queries, which the peer assumes."""

    layers: int
    width: int
    heads: int
    mlp_width: int  # of SwiGLU; GELU has 4 times the width
    vocab: int
    seq_len: int
    batch_size: int
    steps: int  # in each timed call

    def architecture(self, style: str) -> ModelConfig:
        """The model's config in one of the styles."""
        own = self.mlp_width if SHAPES[style].mlp == "swiglu" else None
        return replace(
            SHAPES[style], layers=self.layers, width=self.width, heads=self.heads, kv_heads=None,
            mlp_width=own, vocab=self.vocab, context=self.seq_len,
        )  # fmt: skip


SIZES: Mapping[str, Size] = {
    "60k": Size(2, 48, 4, 128, 64, 64, 32, 25),
    "1m": Size(4, 128, 4, 344, 2048, 256, 16, 2),
    "10m": Size(6, 320, 5, 864, 8192, 256, 8, 1),
}


@dataclass(frozen=True)
class Config:
    """What is timed."""

    sizes: tuple[str, ...] = tuple(SIZES)
    styles: tuple[str, ...] = STYLES
    rounds: int = 7  # of calls in turn, after one that compiles
    compiled: bool = True  # torch.compile besides eager PyTorch; needs a C++ compiler
    workdir: str = "runs"

    def __post_init__(self) -> None:
        for flag, found, accepted in (
            ("sizes", self.sizes, tuple(SIZES)), ("styles", self.styles, STYLES),
        ):  # fmt: skip
            if not found or not set(found) <= set(accepted):
                raise InputError(
                    f"--{flag}={','.join(found)}: accepted: some of {', '.join(accepted)}"
                )
        at_least(2, "rounds", self.rounds)


def timed(style: str, size: Size, config: Config) -> dict[str, Any]:
    """Seconds per step of ours and of the peer, and how far they are apart at step 0.

    Raises:
      ValueError: they do not compute the same.
    """
    c, optimiser = size.architecture(style), OptimizerConfig(schedule="constant", warmup=0)
    transform = make_optimizer(optimiser, 1, param_axes(c))
    state = jax.vmap(partial(start, c, transform))(jax.random.key(0)[None])
    params = jax.tree.map(lambda x: np.asarray(x[0]), state.params)
    shape = (size.steps, 1, size.batch_size, size.seq_len + 1)
    batches = jax.random.randint(jax.random.key(1), shape, 0, c.vocab)
    theirs = torch.from_numpy(np.array(batches[:, 0], np.int64))

    eager = torch_decoder.filled(c, params)
    difference = apart(c, params, eager, batches[0, 0], theirs[0])
    if not difference <= EQUAL:
        raise ValueError(f"{style}: loss or gradients are {difference:.1e} from PyTorch's")
    peers: dict[str, Any] = {"eager": eager}
    if config.compiled:
        peers["compile"] = torch.compile(torch_decoder.filled(c, params))
    ours = Stepping(make_steps(make_step(c, transform)), state, batches)
    calls = {"ours": ours} | {
        name: partial(torch_decoder.run, torch_decoder.make_step(model, optimiser), theirs)
        for name, model in peers.items()
    }
    seconds = {name: s / size.steps for name, s in alternated(calls, config.rounds).items()}
    return {
        "parameters": parameter_count(c), "tokens_per_step": size.batch_size * size.seq_len,
        "difference": difference, "seconds": seconds,
        "ratio": {name: quartiles(seconds[name] / seconds["ours"]) for name in peers},
    }  # fmt: skip


def apart(
    c: ModelConfig,
    params: Mapping[str, Any],
    peer: torch_decoder.Decoder,
    batch: jax.Array,
    theirs: torch.Tensor,
) -> float:
    """The largest difference of loss and gradients, as a share of each array's largest value."""
    loss, grads = jax.jit(jax.value_and_grad(lambda p: jnp.mean(token_loss(c, p, batch))))(params)
    found = peer(theirs)
    found.backward()
    pairs = [(np.asarray(loss), found.detach().numpy())]
    for name, ours in torch_decoder.renamed(c, grads).items():
        grad = peer.get_parameter(name).grad
        assert grad is not None
        pairs.append((ours, grad.numpy()))
    peer.zero_grad(set_to_none=True)
    return max(float(np.abs(a - b).max() / np.abs(a).max()) for a, b in pairs)


def quartiles(ratios: np.ndarray) -> list[float]:
    """The median of the ratios within rounds, and their quartiles."""
    return [float(q) for q in np.quantile(ratios, (0.5, 0.25, 0.75))]


def run(config: Config, console: Console) -> dict[str, Any]:
    """Time all of it and keep a record; sizes that are done stay in it when the rest is not."""
    directory = RunDirectory(config.workdir, "benchmarks-train")
    console.print(f"run      {directory.path}", soft_wrap=True)
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # JAX takes that many too
    cells: list[dict[str, Any]] = []
    about = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "load": os.getloadavg(),
    }
    with directory.record("benchmarks.train", config=config, peer=about, cells=cells) as record:
        for style in config.styles:
            for size in config.sizes:
                with console.status(f"{style}, {size}"):
                    cells.append(
                        {"style": style, "size": size, **timed(style, SIZES[size], config)}
                    )
    return record


def print_table(console: Console, record: Mapping[str, Any]) -> None:
    """Milliseconds of a step, and how many times ours the peer's take."""
    peers = list(record["cells"][0]["ratio"])
    headings = (*(f"{name}, ms" for name in ("ours", *peers)), *(f"{p} / ours" for p in peers))
    table = Table("style", "parameters", *headings)
    for cell in record["cells"]:
        times = (
            f"{1e3 * float(np.median(cell['seconds'][name])):.1f}" for name in ("ours", *peers)
        )
        ratios = ("{:.2f} ({:.2f} to {:.2f})".format(*cell["ratio"][name]) for name in peers)
        table.add_row(cell["style"], f"{cell['parameters']:,}", *times, *ratios)
    console.print(table)
    console.print("a step's time, median of rounds; ratios within rounds, median and quartiles")


def main() -> None:
    console = Console()
    config = Config(
        tuple(FLAGS.sizes), tuple(FLAGS.styles), FLAGS.rounds, FLAGS.compiled, FLAGS.workdir
    )
    if FLAGS.quick:
        config = replace(config, sizes=("60k",), compiled=False)
    print_table(console, run(config, console))


def define_flags() -> None:
    """Define the flags of this binary."""
    flags.DEFINE_list("sizes", list(SIZES), f"of models: {', '.join(SIZES)}")
    flags.DEFINE_list("styles", list(STYLES), f"of models: {', '.join(STYLES)}")
    flags.DEFINE_integer("rounds", 7, "how often each is timed, in turn, after it was compiled")
    flags.DEFINE_bool("compiled", True, "torch.compile besides eager PyTorch: a C++ compiler")
    flags.DEFINE_string("workdir", "runs", "where run directories go")
    flags.DEFINE_bool("quick", False, "the smallest size, without torch.compile")


if __name__ == "__main__":
    define_flags()
    launch.launch(main)
