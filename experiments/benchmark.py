"""Mitigations side by side: variants, optimisers, norms, settings; outliers, loss, compression.

python -m experiments.benchmark                                      # the small preset, on a CPU
python -m experiments.benchmark --preset=fruitfly --corpus=PATH --variants=all --name=all
python -m experiments.benchmark --preset=fruitfly --corpus=PATH --name=all --shard=0/8
python -m experiments.benchmark --redraw=runs/benchmark/RUN
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import jax
import numpy as np
from absl import flags
from rich.console import Console

from sysout_jax.analysis.compress import schemes
from sysout_jax.analysis.compress.calibration import PRODUCTS, apart
from sysout_jax.analysis.compress.compression import Compressor, added_losses, check_scheme
from sysout_jax.core.attention import PAPER, VARIANTS
from sysout_jax.data.corpus import Progress
from sysout_jax.errors import at_least, one_of
from sysout_jax.model.decoder import parameter_count
from sysout_jax.results import RunDirectory
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.loop import Corpus, Run, corpus_of, train
from sysout_jax.training.optimizer import OPTIMIZERS, effective

from .cli import grid, launch, showing
from .cli.grid import Cells, Place, check_bases, check_values, crossed
from .cli.presets import FILLED_IN, NORMS, PRESETS, SETTINGS, SMOKE
from .cli.progress import reading
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


@dataclass(frozen=True)
class Config:
    """Everything that determines the cells: a cell is a variant, an optimiser, a norm
    and a setting."""

    train: TrainConfig = field(default_factory=lambda: PRESETS["small"])  # but for what a cell is
    preset: str = "small"
    variants: tuple[str, ...] = (*PAPER, "sink_logit", "element_gate", "value_gate", "softpick")
    optimizers: tuple[str, ...] = ("adamw", "muon", "sgd")
    norms: tuple[str, ...] = ("own", "rms", "sandwich", "qk")
    settings: tuple[str, ...] = ("own",)
    bases: tuple[str, ...] = ("softmax", "context_scale")
    full: bool = False
    methods: tuple[str, ...] = METHODS
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

    def training(self, variant: str, optimizer: str, norm: str, setting: str) -> TrainConfig:
        """The training of a cell."""
        base = SETTINGS[setting](self.train)
        lr = base.optimizer.lr * RATES[optimizer]
        return replace(
            base,
            variant=variant,
            optimizer=replace(base.optimizer, optimizer=optimizer, lr=lr),
            model=replace(base.model, **NORMS[norm]),
        )

    @property
    def about(self) -> dict[str, Any]:
        """What all cells of a directory have in common."""
        common = ("train", "preset", "methods", "sequences", "calibration")
        return {name: getattr(self, name) for name in common}


def run(config: Config, console: Console) -> RunDirectory:
    """Train and compress the cells of this process that are not there yet."""
    c = config.train
    for cell in config.cells:
        for method in config.methods:
            model = config.training(**cell).model
            check_scheme(model, schemes.scheme(method), tuple(PRODUCTS))
    with reading(console, c.corpus) as progress:
        # Refused before anything is written: what a cell cannot be trained or judged on.
        read = {cell["setting"]: _read(config, cell, progress) for cell in config.cells}
    tokens = c.steps * c.batch_size * c.seq_len
    split = read[config.settings[0]].corpus.split
    return grid.run(
        config, "benchmark", {"-".join(cell.values()): cell for cell in config.cells},
        lambda cell, log: _found(config, cell, read[cell["setting"]], log), config.about,
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


def _read(config: Config, cell: Mapping[str, str], progress: Progress | None = None) -> _Read:
    training = config.training(**cell)
    corpus, length = corpus_of(training, progress), training.measured_len
    corpus.batch("train", 0, 0, training.batch_size, training.seq_len)
    evaluation = corpus.distinct("val", config.sequences, length)
    candidates = corpus.batch("train", 0, 0, 2 * config.calibration, length)
    return _Read(corpus, apart(candidates, evaluation, config.calibration), evaluation)


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
    training = config.training(**cell)
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
    return grid.trained_cell(about, lambda: train(training, read.corpus, log), found)


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
    one_of("preset", FLAGS.preset, tuple(PRESETS))
    base = PRESETS[FLAGS.preset]
    if jax.default_backend() != "cpu":
        base = launch.override(base, {"dtype": "bfloat16"})
    given: dict[str, Any] = {}
    if FLAGS.smoke:
        base = launch.override(base, {**SMOKE, "tokenizer": "bytes"})
        given = {"variants": ("softmax", "context_scale"), "bases": (), "methods": ("w8a8",)}
        given |= {"sequences": 2, "calibration": 2}
    base = launch.override(base, {n: FLAGS[n].value for n in FLAGS if n not in OF_A_CELL})
    for name in ("variants", "optimizers", "norms", "settings", "bases", "methods"):
        if (texts := FLAGS[name].value) is not None:
            given[name] = tuple(texts)
    if FLAGS.variants == ["all"]:
        given["variants"] = tuple(VARIANTS)
    for name in ("sequences", "calibration"):
        if FLAGS[name].value is not None:
            given[name] = FLAGS[name].value
    config = Config(base, FLAGS.preset, full=FLAGS.full, place=grid.place_from_flags(), **given)
    before = PRESETS[FLAGS.preset].optimizer
    launch.check_optimizer(before, config.optimizers, base.optimizer.schedule)
    return config


def define_flags() -> None:
    """Define the flags of this binary."""
    default = Config()
    flags.DEFINE_string("preset", default.preset, f"what cells share: {', '.join(PRESETS)}")
    for name, text in (
        ("variants", "attention variants, or all"),
        ("optimizers", f"of {', '.join(RATES)}, each at its own multiple of the preset's rate"),
        ("norms", f"of {', '.join(NORMS)}; own: the preset's"),
        ("settings", f"of {', '.join(SETTINGS)}; own: the preset's"),
        ("bases", "of the variants: those that what is not first in those lists is tried with"),
        ("methods", "of compression, as experiments.compress names them"),
    ):
        flags.DEFINE_list(name, None, f"{text}; default: {','.join(getattr(default, name))}")
    flags.DEFINE_integer("sequences", None, "validation sequences for compressed models; 64")
    flags.DEFINE_integer("calibration", None, "training sequences to calibrate on; 32")
    flags.DEFINE_bool("full", False, "every combination; else one factor at a time")
    grid.define_flags(TrainConfig, "a few steps of two variants, in seconds", skip=NO_FLAG)


if __name__ == "__main__":
    define_flags()
    launch.launch(main, OFTEN, [Config()])
