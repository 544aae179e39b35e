"""Bigram-Backcopy as a laboratory: variants, optimisers, norms, depths, BOS or none, by chains.

python -m experiments.laboratory                                  # one factor at a time
python -m experiments.laboratory --name=all --full                # every combination
python -m experiments.laboratory --name=all --full --shard=0/4    # a quarter of the cells
python -m experiments.laboratory --redraw=runs/laboratory/RUN
"""

from dataclasses import asdict, astuple, dataclass, field, replace
from functools import partial
from math import inf
from typing import Any

import numpy as np
from absl import flags
from rich.console import Console

from sysout_jax.analysis.compress import schemes
from sysout_jax.analysis.compress.compression import Compressor, added_losses
from sysout_jax.analysis.statistics import fit_growth
from sysout_jax.core.attention import PAPER, VARIANTS
from sysout_jax.data import Backcopies, Backcopy
from sysout_jax.errors import InputError, at_least, one_of
from sysout_jax.model.decoder import parameter_count
from sysout_jax.plots.laboratory import DEFAULT_CELL
from sysout_jax.results import RunDirectory
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.loop import Run, train
from sysout_jax.training.optimizer import OPTIMIZERS, USES

from .cli import factorial, grid, launch, showing
from .cli.factorial import SMOKE_VARIANTS, check_bases, crossed
from .cli.grid import Cells, Place, check_values
from .cli.presets import BACKCOPY, FILLED_IN, NORMS, PENALTIES, SMOKE
from .records.study import history
from .reports.laboratory_report import REPORT

FLAGS = flags.FLAGS
# What --help explains.
OFTEN = (
    "variants", "optimizers", "layers", "losses", "starts", "norms", "penalties", "chains", "steps",
    "seeds", "name", "workdir",
)  # fmt: skip
BASE = replace(
    BACKCOPY, batch_size=4, steps=1500, measure_every=150, val_batches=8, seeds=(0, 1),
    seeds_at_once=32,
)  # fmt: skip
# The same for every variant: AdamW's is that of the theory's trainings, Muon's updates have its
# size, Lion's are a sign. SGD's was the best of 0.02, 0.05, 0.1, 0.3 and 1 for softmax, by both
# losses of four other runs.
RATES = {"adamw": 5e-3, "sgd": 0.05, "lion": 5e-4, "muon": 5e-3}
LOSSES = {"all": 0, "masked": 1}  # the first position that is trained: BOS predicts, or not
STARTS = {"bos": True, "none": False}
CURVES = ("noop_sink_best", "sink_gap")  # measures whose whole course is recorded
MEASURES = (
    "loss_copy", "loss_bigram", "noop_sink", "noop_sink_best", "first_token_attention",
    "value_drain@value", "residual_peak@block_out", "top1_over_median@block_out",
    "neuron_rms_kurtosis@block_out", "weight_ratio@down", "implicit_scale", "gate_noop",
    "gate_active", "sink_effect",
)  # fmt: skip
FITTED = 0.1  # of the steps: growth is fitted to what comes after, as in theory C2
OF_A_CELL = (
    "corpus", "train_tokens", "variant", "optimizer", "lr", "decay", "eps", "layers", "loss_from",
    "bos", "penalties", "checkpoint_every", *FILLED_IN,
)  # fmt: skip
# What a cell is beside its variant, the usual value of each first.
AXES = ("optimizers", "layers", "losses", "starts", "decays", "epsilons", "norms", "penalties")
NO_FLAG = (*OF_A_CELL, "mesh", "parallel", "tokenizer")


@dataclass(frozen=True)
class Cell:
    """One setting; all seeds of all chains are trained in it together."""

    variant: str
    optimizer: str
    layers: int
    loss: str
    start: str
    decay: float
    eps: float
    norm: str
    penalty: str

    @property
    def name(self) -> str:
        """Of its file."""
        return "-".join(map(str, astuple(self)))


@dataclass(frozen=True)
class Config:
    """Everything that determines the cells."""

    train: TrainConfig = BASE  # but for what a cell is; seeds are those of each chain
    # Runs on one chain are alike: chains are what is counted.
    chains: tuple[int, ...] = tuple(range(12))  # seeds of Markov chains, trained in one program
    # attention variants, or all
    variants: tuple[str, ...] = (*PAPER, "softmax_off_by_one", "sink_logit", "value_gate")
    # adamw, sgd, muon, lion, each at its own rate
    optimizers: tuple[str, ...] = ("adamw", "sgd", "muon")
    layers: tuple[int, ...] = (1, 2, 3)  # depths
    losses: tuple[str, ...] = tuple(LOSSES)  # all; masked: what follows BOS is not trained
    starts: tuple[str, ...] = tuple(STARTS)  # bos; none: rows begin with a token of the chain
    decays: tuple[float, ...] = (1e-4, 0.0, 0.1, 0.3, 1.0, 3.0)  # weight decay, times the rate
    epsilons: tuple[float, ...] = (1e-8, 1e-6, 1e-4)  # under Adam's quotient
    # own (RMSNorm), layer, rms, unscaled, sandwich, qk, gated, pre_affine, single_scale, tanh
    norms: tuple[str, ...] = ("own", "layer", "unscaled", "sandwich", "qk")
    penalties: tuple[str, ...] = ("none",)  # none, tweo: on activations, beside the loss
    # of the variants: those that are also trained with each other factor changed
    bases: tuple[str, ...] = ("softmax", "context_scale")
    full: bool = False  # every combination; else one factor at a time
    methods: tuple[str, ...] = ("w8a8", "w4a4")  # of compression, as experiments.compress has them
    place: Place = field(default_factory=Place)

    def __post_init__(self) -> None:
        for flag, accepted in (
            ("variants", VARIANTS), ("bases", VARIANTS), ("optimizers", OPTIMIZERS),
            ("losses", LOSSES), ("starts", STARTS), ("norms", NORMS), ("penalties", PENALTIES),
        ):  # fmt: skip
            for value in getattr(self, flag):
                one_of(flag, value, accepted)
        for value in self.layers:
            at_least(1, "layers", value)
        for flag in ("chains", "variants", "methods", *AXES):
            check_values(flag, getattr(self, flag))
        if self.bases != Config.bases:
            check_bases(self.bases, self.variants)
        for method in self.methods:
            schemes.scheme(method)
        for decay in self.decays:
            if not 0 <= decay < inf:
                raise InputError("decays", decay, "numbers of at least 0")
        for eps in self.epsilons:
            if not 0 < eps < inf:
                raise InputError("epsilons", eps, "numbers above 0")
        for chain in self.chains:
            if not 0 <= chain < 2**32:
                raise InputError("chains", chain, "integers from 0 to 2**32 - 1")

    @property
    def cells(self) -> list[Cell]:
        """Every combination if `full`; else all variants with the first value of each other factor,
        and of `bases` those with one other factor at another value; the most shared first. An
        optimiser without an eps has cells with the first alone."""
        axes = [getattr(self, flag) for flag in AXES]
        made = [Cell(*each) for each in crossed(self.variants, axes, self.bases, self.full)]
        return list(dict.fromkeys(
            each if "eps" in USES[each.optimizer] else replace(each, eps=self.epsilons[0])
            for each in made
        ))  # fmt: skip

    @property
    def runs(self) -> list[tuple[int, int]]:
        """(seed, chain) of each run of a cell."""
        return [(seed, chain) for seed in self.train.seeds for chain in self.chains]

    def training(self, cell: Cell) -> TrainConfig:
        """The training of a cell. Run r has chain r modulo their number, as `Backcopies` gives it,
        and a seed of its own."""
        count = len(self.chains)
        seeds = tuple(seed * count + at for seed in self.train.seeds for at in range(count))
        optimizer = replace(
            self.train.optimizer, optimizer=cell.optimizer, lr=RATES[cell.optimizer],
            decay=cell.decay, eps=cell.eps,
        )  # fmt: skip
        model = replace(self.train.model, layers=cell.layers, **NORMS[cell.norm])
        return replace(
            self.train, variant=cell.variant, seeds=seeds, loss_from=LOSSES[cell.loss],
            bos=STARTS[cell.start], optimizer=optimizer, model=model,
            penalties=PENALTIES[cell.penalty],
        )  # fmt: skip


def run(config: Config, console: Console) -> RunDirectory:
    """Train the cells of this process that are not there yet; the record has all that are."""
    factorial.check_methods(config)
    about = {
        "train": config.train, "chains": config.chains, "rates": RATES, "methods": config.methods,
    }  # fmt: skip
    floor = {start: _floor(config, begins) for start, begins in STARTS.items()}
    return grid.run(
        config, "laboratory", {cell.name: cell for cell in config.cells}, partial(_train, config),
        None, about, lambda there: {"cells": _sorted(there)}, REPORT, console,
        described={**about, "runs": config.runs, "floor": floor}, train=config.train,
    )  # fmt: skip


def _sorted(there: Cells) -> list[dict[str, Any]]:
    """All cells that are there, of this command or another."""

    def place(cell: dict[str, Any]) -> Any:
        others = (OPTIMIZERS.index(cell["optimizer"]), cell["layers"], cell["loss"], cell["start"])
        decay = (cell["decay"] != DEFAULT_CELL["decay"], cell["decay"])
        changed = list(NORMS).index(cell["norm"]), list(PENALTIES).index(cell["penalty"])
        return *others, decay, cell["eps"], *changed, VARIANTS.order(cell["variant"])

    return sorted(there.all(), key=place)


def _floor(config: Config, begins_with_bos: bool) -> list[float]:
    """The least possible `loss_bigram` of each chain, on the rows that its runs are measured on."""
    found = []
    for chain in config.chains:
        task = Backcopy(chain, begins_with_bos)
        rows = _rows(config.train, task, "val")
        least = task.entropy_floor(rows)[:, 1:]
        found.append(float(least[~task.trigger_queries(rows[:, 1:-1])].mean()))
    return found


def _rows(c: TrainConfig, task: Backcopy, split: str) -> np.ndarray:
    """[B, T+1]: as many of a part of a chain as its runs are measured on."""
    shape = (c.batch_size, c.measured_len)
    return np.concatenate([task.batch(split, 0, n, *shape) for n in range(c.val_batches)])


def _train(config: Config, cell: Cell, log: Any) -> dict[str, Any]:
    """What the record says of a cell; values are by run, in the order of `Config.runs`."""
    training = config.training(cell)
    corpus = Backcopies(config.chains, STARTS[cell.start])
    parameters = parameter_count(training.architecture(corpus.vocab))

    def run_of(seed: int) -> dict[str, int]:
        return dict(zip(("seed", "chain"), config.runs[training.seeds.index(seed)], strict=True))

    about = {**asdict(cell), "parameters": parameters}

    def found(trained: Run) -> dict[str, Any]:
        return {**found_in(trained), "compressed": _compressed(config, cell, trained)}

    return factorial.trained_cell(about, lambda: train(training, corpus, log), found, run_of)


def _compressed(config: Config, cell: Cell, trained: Run) -> dict[str, list[float]]:
    """Method -> what it adds to the loss of each run, on rows of its own chain."""
    found = []
    for seed, (_, chain) in zip(trained.config.seeds, config.runs, strict=True):
        model, task = trained.model(seed), Backcopy(chain, STARTS[cell.start])
        calibration, rows = (_rows(config.train, task, split) for split in ("train", "val"))
        compressor = Compressor(model.config, model.params, calibration)
        found.append(added_losses(compressor, config.methods, rows, LOSSES[cell.loss]))
    return {method: [each[method] for each in found] for method in config.methods}


def found_in(trained: Run) -> dict[str, Any]:
    """Measures at the start and the end, curves, and the fits of the sink logit's growth."""
    measured = history(trained)["measured"]
    steps, measures = np.array(measured["step"]), measured["measures"]
    later = steps > FITTED * steps[-1]
    growth: dict[str, Any] = {}
    for gaps in np.array(measures["sink_gap"]).T:
        for fit in fit_growth(steps[later], gaps[later]):
            law = growth.setdefault(fit.law, {"slope": [], "r_squared": []})
            law["slope"].append(fit.slope)
            law["r_squared"].append(fit.r_squared)
    shown = [name for name in MEASURES if name in measures]
    return {
        "val_loss": measured["val_loss"][-1],
        "begun": {name: measures[name][0] for name in shown},
        "measures": {name: measures[name][-1] for name in shown},
        "step": steps,
        "curves": {name: measures[name] for name in CURVES},
        "growth": growth,
    }


# ----------------------------------------------------------------------------- the binary


def main() -> None:
    showing.run_or_redraw("experiments.laboratory", run, config_from_flags, REPORT)


def config_from_flags() -> Config:
    """The cells that the flags ask for.

    Raises:
      InputError: a flag's value is not accepted.
    """
    config = Config()
    if FLAGS.smoke:
        usual = {axis: getattr(config, axis)[:1] for axis in AXES}
        config = Config(launch.override(BASE, SMOKE), variants=SMOKE_VARIANTS, **usual)
    return factorial.from_flags(config, OF_A_CELL)


define_flags = partial(
    factorial.define_flags, Config, "a few steps of two variants, in seconds", NO_FLAG
)


if __name__ == "__main__":
    define_flags()
    launch.launch(main, OFTEN, [Config()])
