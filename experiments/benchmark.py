"""Mitigations side by side: variants, optimisers, norms, settings; outliers, loss, compression.

python -m experiments.benchmark                                      # the small preset, on a CPU
python -m experiments.benchmark --preset=fruitfly --corpus=PATH --variants=all --name=all
python -m experiments.benchmark --preset=fruitfly --corpus=PATH --name=all --shard=0/8
python -m experiments.benchmark --redraw=runs/benchmark/RUN
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from absl import flags
from rich.console import Console

from sysout_jax.analysis.compress import schemes
from sysout_jax.analysis.compress.calibration import disjoint_rows
from sysout_jax.analysis.compress.compression import Compressor, added_losses
from sysout_jax.core.attention import PAPER, VARIANTS
from sysout_jax.data.corpus import Progress
from sysout_jax.errors import at_least, one_of
from sysout_jax.model.decoder import parameter_count
from sysout_jax.results import RunDirectory
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.loop import Corpus, Run, corpus_of, train
from sysout_jax.training.optimizer import OPTIMIZERS, effective

from .cli import factorial, grid, launch, showing
from .cli.factorial import SMOKE_VARIANTS, check_bases, crossed
from .cli.grid import Cells, Place, check_values
from .cli.presets import FILLED_IN, NORMS, PRESETS, SETTINGS, SMOKE
from .cli.progress import reading
from .inputs import identity
from .records.benchmark import AXES
from .records.study import history
from .reports.benchmark_report import REPORT

FLAGS = flags.FLAGS
# What --help explains.
OFTEN = (
    "preset", "corpus", "variants", "optimizers", "norms", "settings", "steps", "seeds", "name",
    "workdir",
)  # fmt: skip
# Of each optimiser, times the preset's: Muon's updates have AdamW's size, Lion's are a sign, and
# SGD's are the gradient, clipped.
RATES: Mapping[str, float] = MappingProxyType({"adamw": 1.0, "muon": 1.0, "lion": 0.1, "sgd": 200})
METHODS = ("w8-tensor", "w4", "w8a8", "w6a6", "w4a4", "magnitude-0.5", "wanda-0.5")
OF_A_CELL = ("variant", "optimizer", "checkpoint_every", *FILLED_IN)
NO_FLAG = (*OF_A_CELL, "mesh", "parallel")
SMALL: Mapping[str, Any] = MappingProxyType(
    {
        "variants": SMOKE_VARIANTS, "optimizers": ("adamw",), "norms": ("own",),
        "methods": ("w8a8",), "sequences": 2, "calibration": 2,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Everything that determines the cells: a cell is a variant, an optimiser, a norm
    and a setting."""

    train: TrainConfig = field(default_factory=lambda: PRESETS["small"])  # but for what a cell is
    preset: str = "small"  # what cells share: small, sinks, fruitfly
    # attention variants, or all
    variants: tuple[str, ...] = (*PAPER, "sink_logit", "element_gate", "value_gate", "softpick")
    # adamw, muon, sgd, lion, each at its own multiple of the preset's rate
    optimizers: tuple[str, ...] = ("adamw", "muon", "sgd")
    # own (the preset's), layer, rms, unscaled, sandwich, qk, gated, pre_affine, single_scale, tanh
    norms: tuple[str, ...] = ("own", "rms", "sandwich", "qk")
    # own (the preset's), llama, repeated, quarter_context, four_contexts, no_bos, decay_0, decay_1,
    # eps_1e-4, tweo
    settings: tuple[str, ...] = ("own",)
    # of the variants: those that are also trained with each other factor changed
    bases: tuple[str, ...] = ("softmax", "context_scale")
    full: bool = False  # every combination; else one factor at a time
    methods: tuple[str, ...] = METHODS  # of compression, as experiments.compress names them
    sequences: int = 64  # of the validation part, to evaluate compressed models on
    calibration: int = 32  # sequences of the training part, to calibrate on
    place: Place = field(default_factory=Place)

    def __post_init__(self) -> None:
        for flag, accepted in (
            ("variants", VARIANTS), ("bases", VARIANTS), ("optimizers", RATES), ("norms", NORMS),
            ("settings", SETTINGS),
        ):  # fmt: skip
            for value in getattr(self, flag):
                one_of(flag, value, accepted)
        for flag in ("variants", "optimizers", "norms", "settings", "methods"):
            check_values(flag, getattr(self, flag))
        if self.bases != Config.bases:
            check_bases(self.bases, self.variants)
        for method in self.methods:
            schemes.scheme(method)
        for flag in ("sequences", "calibration"):
            at_least(1, flag, getattr(self, flag))

    @property
    def cells(self) -> list[dict[str, str]]:
        """All variants with the first optimiser, norm and setting, and of `bases` those with one
        of the three at another value; every combination if `full`. Of settings that train the
        same with an optimiser, only the first."""
        axes = (self.optimizers, self.norms, self.settings)
        made = crossed(self.variants, axes, self.bases, self.full)
        same = {(o, s): self._first(o, s) for o in self.optimizers for s in self.settings}
        kept = dict.fromkeys((*each[:3], same[each[1], each[3]]) for each in made)
        return [dict(zip(AXES, each, strict=True)) for each in kept]

    def _first(self, optimizer: str, setting: str) -> str:
        """The first setting that an optimiser trains as it trains another."""

        def trained(name: str) -> TrainConfig:
            base = SETTINGS[name](self.train)
            return replace(base, optimizer=effective(replace(base.optimizer, optimizer=optimizer)))

        return next(name for name in self.settings if trained(name) == trained(setting))

    def training(self, cell: Mapping[str, str]) -> TrainConfig:
        """The training of a cell."""
        base, optimizer = SETTINGS[cell["setting"]](self.train), cell["optimizer"]
        lr = base.optimizer.lr * RATES[optimizer]
        return replace(
            base,
            variant=cell["variant"],
            optimizer=replace(base.optimizer, optimizer=optimizer, lr=lr),
            model=replace(base.model, **NORMS[cell["norm"]]),
        )

    @property
    def about(self) -> dict[str, Any]:
        """What all cells of a directory have in common."""
        common = ("train", "preset", "methods", "sequences", "calibration")
        return {name: getattr(self, name) for name in common}


def run(config: Config, console: Console) -> RunDirectory:
    """Train and compress the cells of this process that are not there yet."""
    c = config.train
    factorial.check_methods(config)
    with reading(console, c.corpus) as progress:
        # Refused before anything is written: what a cell cannot be trained or judged on.
        read = {cell["setting"]: _read(config, cell, progress) for cell in config.cells}
    tokens = c.steps * c.batch_size * c.seq_len
    split = read[config.settings[0]].corpus.split
    return grid.run(
        config, "benchmark", {"-".join(cell.values()): cell for cell in config.cells},
        lambda cell, log: _found(config, cell, read[cell["setting"]], log),
        lambda cell: read[cell["setting"]].made_of, config.about,
        lambda there: {"cells": _sorted(there)}, REPORT, console,
        described={**config.about, "tokens_per_seed": tokens, "split": split},
        of=[config.preset], train=c,
    )  # fmt: skip


@dataclass(frozen=True, eq=False)
class _Read:
    """What the cells of a setting are trained on, and compressed models calibrated and judged by:
    sequences [B, T+1] that have no text in common."""

    corpus: Corpus
    calibration: np.ndarray
    evaluation: np.ndarray
    made_of: str


def _read(config: Config, cell: Mapping[str, str], progress: Progress | None = None) -> _Read:
    training = config.training(cell)
    corpus, length = corpus_of(training, progress), training.measured_len
    trained = corpus.batch("train", 0, 0, training.batch_size, training.seq_len)
    evaluation = corpus.distinct("val", config.sequences, length)
    candidates = corpus.batch("train", 0, 0, 2 * config.calibration, length)
    return _Read(
        corpus, disjoint_rows(candidates, evaluation, config.calibration), evaluation,
        identity.of_text(trained, evaluation),
    )  # fmt: skip


def _sorted(there: Cells) -> list[dict[str, Any]]:
    """All cells that are there, of this process or another."""
    tables = [list(table) for table in (SETTINGS, NORMS, OPTIMIZERS)]

    def place(cell: dict[str, Any]) -> list[int]:
        names = (cell["setting"], cell["norm"], cell["optimizer"])
        places = [table.index(name) for table, name in zip(tables, names, strict=True)]
        return [*places, VARIANTS.order(cell["variant"])]

    return sorted(there.all(), key=place)


def _found(config: Config, cell: Mapping[str, str], read: _Read, log: Any) -> dict[str, Any]:
    """What the record says of a cell; lists are over seeds."""
    training = config.training(cell)
    parameters = parameter_count(training.architecture(read.corpus.vocab))

    def found(trained: Run) -> dict[str, Any]:
        measured = history(trained)["measured"]
        return {
            "step": measured["step"],
            "val_loss": measured["val_loss"],
            "begun": {name: values[0] for name, values in measured["measures"].items()},
            "measures": {name: values[-1] for name, values in measured["measures"].items()},
            "compressed": _compressed(config, trained, read),
        }

    about = {**cell, "lr": training.optimizer.lr, "parameters": parameters}
    return factorial.trained_cell(about, lambda: train(training, read.corpus, log), found)


def _compressed(config: Config, trained: Run, read: _Read) -> dict[str, list[float]]:
    """Method -> the rise of the loss by it, of each seed."""
    found = []
    for seed in trained.config.seeds:
        model = trained.model(seed)
        compressor = Compressor(model.config, model.params, read.calibration)
        found.append(added_losses(compressor, config.methods, read.evaluation))
    return {method: [each[method] for each in found] for method in config.methods}


# ----------------------------------------------------------------------------- the binary


def main() -> None:
    showing.run_or_redraw("experiments.benchmark", run, config_from_flags, REPORT)


def config_from_flags() -> Config:
    """The cells that the flags ask for.

    Raises:
      InputError: a flag's value is not accepted.
    """
    preset = FLAGS.preset or Config.preset
    one_of("preset", preset, tuple(PRESETS))
    base = PRESETS[preset]
    if jax.default_backend() != "cpu":
        base = launch.override(base, {"dtype": "bfloat16"})
    config = Config(base, preset)
    if FLAGS.smoke:
        smaller = launch.override(base, {**SMOKE, "tokenizer": "bytes"})
        config = replace(config, train=smaller, **SMALL)
    return factorial.from_flags(config, OF_A_CELL)


define_flags = partial(
    factorial.define_flags, Config, "a few steps of two variants, in seconds", NO_FLAG
)


if __name__ == "__main__":
    define_flags()
    launch.launch(main, OFTEN, [Config()])
