"""A training step against PyTorch's, in turn in one process: the same weights and batches.

pip install -r requirements-reference.txt    # PyTorch
python -m benchmarks.train                   # two styles, three sizes, in minutes
python -m benchmarks.train --quick           # the smallest model, without torch.compile
python -m benchmarks.train --sizes=124m --styles=gpt2-tiny --dtype=bfloat16    # on a GPU
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import jax
import numpy as np
from absl import flags
from rich.console import Console

from benchmarks import goals
from experiments.cli import launch
from sysout_jax.core.flash import takes
from sysout_jax.errors import InputError, at_least, one_of
from sysout_jax.model.config import SHAPES, ModelConfig
from sysout_jax.model.decoder import parameter_count
from sysout_jax.model.execution import DTYPES, Execution
from sysout_jax.planning.machines import chip_of, model_flops
from sysout_jax.planning.timing import alternated
from sysout_jax.results import RunDirectory
from sysout_jax.showing import Table
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.loop import check_kernel

FLAGS = flags.FLAGS
STYLES = ("gpt2-tiny", "llama-tiny")


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

    def architecture(self, style: str, dtype: str = "float32") -> ModelConfig:
        """The model's config in one of the styles."""
        own = self.mlp_width if SHAPES[style].mlp == "swiglu" else None
        return replace(
            SHAPES[style], layers=self.layers, width=self.width, heads=self.heads, kv_heads=None,
            mlp_width=own, vocab=self.vocab, context=self.seq_len, execution=Execution(dtype=dtype),
        )  # fmt: skip


SIZES: Mapping[str, Size] = {
    "60k": Size(2, 48, 4, 128, 64, 64, 32, 10),
    "1m": Size(4, 128, 4, 344, 2048, 256, 16, 1),
    "10m": Size(6, 320, 5, 864, 8192, 256, 8, 1),
    # GPT-2's, its vocabulary filled up to a multiple of 64
    "124m": Size(12, 768, 12, 2048, 50_304, 1024, 16, 5),
}
SIDE, PRODUCTS = 2048, 5  # of the products of matrices that measure a peak
HEADINGS = ("model", "", "ms", "tokens/s", "of the peak", "times ours", "goal", "met")
GOALS = {"eager": 1.0, "compile": 0.9}  # PyTorch's time is at least so many times ours
ON_CPU = ("60k", "1m", "10m")  # the other takes minutes a step there
QUICK = {"sizes": ("60k",), "styles": STYLES[:1], "compiled": False}


@dataclass(frozen=True)
class Config:
    """What is timed."""

    sizes: tuple[str, ...] = ON_CPU  # of models: 60k, 1m, 10m, 124m
    styles: tuple[str, ...] = STYLES  # of models: gpt2-tiny, llama-tiny
    dtype: str = "float32"  # of activations, or bfloat16; parameters are float32
    batch_size: int | None = None  # sequences in a step; None: as many as the size's own
    rounds: int = 7  # of calls in turn, after one that compiles
    compiled: bool = True  # torch.compile besides eager PyTorch; needs a C++ compiler
    flash: bool = False  # ours with fused attention, besides without
    workdir: str = "runs"  # where run directories go

    def __post_init__(self) -> None:
        for flag, found, accepted in (
            ("sizes", self.sizes, tuple(SIZES)), ("styles", self.styles, STYLES),
        ):  # fmt: skip
            for name in found:
                one_of(flag, name, accepted)
            if not found:
                raise InputError(flag, "", f"some of {', '.join(accepted)}")
        one_of("dtype", self.dtype, DTYPES)
        if self.flash and self.dtype != "bfloat16":
            raise InputError("flash", None, "--dtype=bfloat16", f"--dtype={self.dtype}")
        at_least(1, "batch_size", self.batch_size)
        at_least(2, "rounds", self.rounds)


def forms(c: ModelConfig, flash: bool) -> dict[str, ModelConfig]:
    """Ours, by name: the best form first; with `flash` two, where the kernel takes such heads."""
    if not flash or not takes(c.sizes["H"]):
        return {"ours": c}
    return {"ours": c.with_execution(flash=True), "ours, dense": c}


def run(config: Config, console: Console) -> dict[str, Any]:
    """Time all of it and keep a record; sizes that are done stay in it when the rest is not.

    Raises:
      InputError: there is no PyTorch, or no fused kernel on these devices.
    """
    if find_spec("torch") is None:
        raise InputError(
            "PyTorch is not installed", accepted="pip install -r requirements-reference.txt"
        )
    check_kernel(ModelConfig(execution=Execution(dtype=config.dtype, flash=config.flash)))
    from benchmarks import side_by_side, torch_decoder  # which import it

    directory = RunDirectory(config.workdir, "benchmarks-train")
    console.print(f"run      {directory.path}", soft_wrap=True)
    peer = {**torch_decoder.prepare(), "load": os.getloadavg()}
    peak = peak_of(config.dtype)
    cells: list[dict[str, Any]] = []
    about = {"config": goals.timed(config), "peer": peer, "peak": peak, "cells": cells}
    with directory.record("benchmarks.train", **about) as record:
        for style in config.styles:
            for name in config.sizes:
                size = SIZES[name]
                size = replace(size, batch_size=config.batch_size or size.batch_size)
                c = size.architecture(style, config.dtype)
                with console.status(f"{style}, {name}"):
                    found = side_by_side.timed(
                        forms(c, config.flash), size.batch_size, size.steps, config.rounds,
                        config.compiled, lambda text: console.print(text, soft_wrap=True),
                    )  # fmt: skip
                cell = described(c, size, found, peak["flops"])
                cells.append({"style": style, "size": name, **cell})
    return record


def peak_of(dtype: str) -> dict[str, Any]:
    """Operations per second that a step's are a share of, and where the number is from.

    The chip's published rate where it is known in that dtype; else what a product of two square
    matrices reaches here, the best of `PRODUCTS`.
    """
    chip = chip_of(jax.devices()[0].device_kind)
    if chip and dtype == "bfloat16":
        return {"flops": chip.flops, "source": chip.source}
    x = jax.random.normal(jax.random.key(0), (SIDE, SIDE), dtype)
    product = jax.jit(lambda x: x @ x)
    seconds = alternated({"": lambda: jax.block_until_ready(product(x))}, PRODUCTS)[""]
    source = f"product of two matrices of {SIDE} x {SIDE} in {dtype}, measured"
    return {"flops": 2 * SIDE**3 / float(seconds.min()), "source": source}


def described(c: ModelConfig, size: Size, found: Mapping[str, Any], peak: float) -> dict[str, Any]:
    """What a record says of a cell: what was found, and rates by the median of rounds.

    The utilisation is the share of the peak that the model's own operations
    (`machines.model_flops`) are.
    """
    tokens = size.batch_size * size.seq_len
    run = TrainConfig(model=c, seq_len=size.seq_len, batch_size=size.batch_size)
    flops = model_flops(run, c.vocab)
    median = {name: float(np.median(seconds)) for name, seconds in found["seconds"].items()}
    return {
        "parameters": parameter_count(c),
        "tokens_per_step": tokens,
        "flops_per_step": flops,
        "peak_flops": peak,
        **found,
        "tokens_per_second": {name: tokens / seconds for name, seconds in median.items()},
        "utilisation": {name: flops / seconds / peak for name, seconds in median.items()},
    }


def texts(record: Mapping[str, Any]) -> list[list[str]]:
    """A row for each that was timed: milliseconds of a step, rates, and how many times ours."""
    found = []
    for cell in record["cells"]:
        for name in ("ours", *cell["ratio"]):
            ratio, goal = cell["ratio"].get(name), GOALS.get(name)
            found.append([
                f"{cell['style']}, {cell['size']}" if name == "ours" else "",
                name,
                f"{1e3 * float(np.median(cell['seconds'][name])):.1f}",
                f"{cell['tokens_per_second'][name]:,.0f}",
                f"{cell['utilisation'][name]:.1%}",
                "{:.2f} ({:.2f} to {:.2f})".format(*ratio) if ratio else "",
                f">= {goal}" if goal else "",
                ("yes" if ratio[0] >= goal else "no") if goal and ratio else "",
            ])  # fmt: skip
        for name, why in cell["left_out"].items():
            found.append(["", name, "", "", "", why, "", ""])
    return found


def table(record: Mapping[str, Any]) -> Table:
    """The rows of a record, as docs/performance.md shows them."""
    return Table.of("", HEADINGS, texts(record), "ll" + "r" * (len(HEADINGS) - 3) + "l")


def print_table(console: Console, record: Mapping[str, Any]) -> None:
    """The rows of a record."""
    goals.print_table(console, table(record))
    console.print("a step's time, median of rounds; ratios within rounds, median and quartiles")


def main() -> None:
    console = Console()
    config = launch.override(Config(), QUICK if FLAGS.quick else {})
    config = launch.override(config, {name: FLAGS[name].value for name in FLAGS})
    print_table(console, run(config, console))


def define_flags() -> None:
    """Define the flags of this binary."""
    flags.DEFINE_bool("quick", False, "the smallest model, without torch.compile")
    launch.define_overrides(Config)


if __name__ == "__main__":
    define_flags()
    launch.launch(main)
