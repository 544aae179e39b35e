"""Do variants without outliers converge faster? Learning rates, seeds, tokens, time, intervals.

python -m experiments.convergence                                          # Bigram-Backcopy
python -m experiments.convergence --corpus=PATH --model=llama-tiny --lrs=1e-3,3e-3 --steps=2000
python -m experiments.convergence --name=rates --lrs=1e-3,1e-2    # again: goes on, and more rates
python -m experiments.convergence --redraw=runs/convergence/RUN
"""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import numpy as np
from absl import flags
from rich.console import Console

from sysout_jax.analysis.measure import zero_shot
from sysout_jax.core.attention import PAPER, VARIANTS
from sysout_jax.data.batches import SPLITS
from sysout_jax.errors import InputError, at_least, one_of
from sysout_jax.model.config import SHAPES
from sysout_jax.model.decoder import parameter_count
from sysout_jax.planning.timing import step_flops, step_seconds
from sysout_jax.results import RunDirectory
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.loop import Corpus, Run, corpus_of, train
from sysout_jax.training.optimizer import OptimizerConfig

from .cli import factorial, grid, launch, showing
from .cli.factorial import SMOKE_VARIANTS
from .cli.grid import Cells, Place, check_values
from .cli.presets import BACKCOPY, FILLED_IN, NOT_GIVEN, SMOKE, TEXT
from .cli.progress import reading
from .inputs import identity
from .records.study import history, study_names
from .reports.convergence_report import REPORT, compared

FLAGS = flags.FLAGS
# What --help explains.
OFTEN = ("corpus", "variants", "lrs", "baseline", "steps", "seeds", "name", "workdir")
# The learning rate is constant after warm-up: then every step is the end of a shorter run, and
# losses may be compared at any of them.
SYNTHETIC = replace(BACKCOPY, measure_every=50)
SYNTHETIC_LRS = (2.3e-3, 7e-3, 2.1e-2)
REAL = replace(
    TEXT, seeds=(0, 1, 2), steps=300, measure_every=25,
    optimizer=OptimizerConfig(schedule="constant"),
)  # fmt: skip
REAL_LRS = (1e-3, 3e-3, 9e-3)
SEQUENCES = 64  # of each zero-shot measure
OF_A_CELL = ("corpus", "variant", "lr", "checkpoint_every", *FILLED_IN)
# What it times are steps of one device.
NO_FLAG = (*OF_A_CELL, "mesh", "parallel")
Cell = tuple[str, float]  # a variant at a learning rate


@dataclass(frozen=True)
class Config:
    """Everything that determines a comparison; a cell is one variant at one learning rate."""

    train: TrainConfig = SYNTHETIC  # but for variant and learning rate
    variants: tuple[str, ...] = PAPER  # attention variants to compare, or all
    lrs: tuple[float, ...] = SYNTHETIC_LRS  # learning rates that each is trained with
    baseline: str = "softmax"  # the variant that the others are compared with
    rounds: int = 20  # how often the step of each variant is timed, in turn
    place: Place = field(default_factory=Place)

    def __post_init__(self) -> None:
        for name in (self.baseline, *self.variants):
            one_of("variants", name, VARIANTS)
        if self.baseline not in self.variants:
            raise InputError(
                "baseline", self.baseline, f"one of --variants={','.join(self.variants)}"
            )
        at_least(1, "rounds", self.rounds)
        names = tuple(f"{lr:g}" for lr in self.lrs)
        check_values("variants", self.variants)
        check_values("lrs", names)
        for lr in self.lrs:
            if not 0 < lr < float("inf"):
                raise InputError("lrs", ",".join(names), "finite numbers above 0")

    @property
    def cells(self) -> list[Cell]:
        """Learning rate by learning rate."""
        return [(name, lr) for lr in self.lrs for name in self.variants]

    @property
    def timing(self) -> str:
        """The cell with the costs of these variants, which are timed in turn."""
        return f"timing-{hashlib.sha256(','.join(self.variants).encode()).hexdigest()[:8]}"

    def training(self, variant: str, lr: float) -> TrainConfig:
        """The training run of a cell."""
        optimizer = replace(self.train.optimizer, lr=lr)
        return replace(self.train, variant=variant, optimizer=optimizer)


def run(config: Config, console: Console) -> RunDirectory:
    """Train the cells of this process that are not there yet, compare, draw."""
    train_config = config.train
    with reading(console, train_config.corpus) as progress:
        corpus = corpus_of(train_config, progress)
    made_of = identity.of_text(*(
        corpus.batch(split, 0, 0, train_config.batch_size, train_config.seq_len)
        for split in SPLITS
    ))  # fmt: skip
    about = _describe(config, corpus)

    def found(cell: Cell | None, log: grid.Log) -> dict[str, Any]:
        return _costs(config, corpus) if cell is None else _train(config, cell, corpus, log)

    def gathered(there: Cells) -> dict[str, Any]:
        cells = [cell for cell in there.all() if cell.get("variant") in config.variants]
        cells.sort(key=lambda cell: (cell["lr"], config.variants.index(cell["variant"])))
        timed = there.read(config.timing)["variants"] if config.timing in there else {}
        rates = sorted({*config.lrs, *(cell["lr"] for cell in cells)})
        record = about | {"lrs": rates, "variants": timed, "cells": cells}
        return record | {"compared": compared(record)}

    # The timing first: what is compared needs it.
    named = {config.timing: None, **{f"{name}-{lr:g}": (name, lr) for name, lr in config.cells}}
    return grid.run(
        config, "convergence", named, found, lambda cell: made_of,
        {"train": config.train, "rounds": config.rounds}, gathered, REPORT, console,
        described=about, of=study_names([train_config.corpus]),
        train=config.train,
    )  # fmt: skip


def _describe(config: Config, corpus: Corpus) -> dict[str, Any]:
    c = config.train
    return {
        "corpus": c.corpus,
        "baseline": config.baseline,
        "config": c,
        "tokens": corpus.tokens,
        "split": corpus.split,
        "epochs": corpus.epochs(c.steps, c.batch_size, c.seq_len),
        "tokens_per_step": c.batch_size * c.seq_len,
    }


def _costs(config: Config, corpus: Corpus) -> dict[str, Any]:
    """Parameters, operations and seconds of each variant."""
    cells = {name: config.training(name, config.lrs[0]) for name in config.variants}
    seconds = step_seconds(cells, corpus.vocab, config.rounds)
    costs = {
        name: {
            "label": VARIANTS[name].label,
            "parameters": parameter_count(cell.architecture(corpus.vocab)),
            "flops": step_flops(cell, corpus.vocab),
            "seconds": seconds[name],
        }
        for name, cell in cells.items()
    }
    return {"variants": costs}


def _train(config: Config, cell: Cell, corpus: Corpus, log: grid.Log) -> dict[str, Any]:
    """What the record says of a cell."""
    training = config.training(*cell)

    def found(trained: Run) -> dict[str, Any]:
        measured = history(trained)["measured"]
        return {
            "step": measured["step"],
            "val_loss": measured["val_loss"],
            "measures": {name: values[-1] for name, values in measured["measures"].items()},
            "zero_shot": _zero_shot(trained, corpus),
        }

    about = {"variant": cell[0], "lr": cell[1], "seeds": training.seeds}
    return factorial.trained_cell(about, lambda: train(training, corpus, log), found)


def _zero_shot(trained: Run, corpus: Corpus) -> dict[str, list[Any]]:
    """Whole next words where there is text, and copying from the context: [seeds] each."""
    c = trained.config
    found: dict[str, list[Any]] = {}
    eot = trained.tokenizer.eot if trained.tokenizer is not None else None
    specials = {special for special in (corpus.bos, eot) if special is not None}
    if trained.tokenizer is not None:
        kinds = zero_shot.vocabulary(trained.tokenizer.decode, corpus.vocab, specials)
        rows = corpus.batch("val", 0, 0, SEQUENCES, c.seq_len)
    ids = np.array([i for i in range(corpus.vocab) if i not in specials])
    length = c.seq_len // 2
    twice = zero_shot.repeated(jax.random.key(0), ids, length, SEQUENCES, corpus.bos)
    for seed in c.seeds:
        model = trained.model(seed)
        guesses, losses = zero_shot.greedy(model.config, model.params, twice)
        copied = zero_shot.copying(twice, guesses, losses, length)
        for name in ("loss_first", "loss_second", "accuracy"):
            found.setdefault(f"copy_{name}", []).append(getattr(copied, name))
        if trained.tokenizer is not None:
            guesses, _ = zero_shot.greedy(model.config, model.params, rows)
            right, total = zero_shot.next_words(kinds, rows, guesses, c.seq_len // 4)
            found.setdefault("next_word", []).append(right / total if total else float("nan"))
            found.setdefault("words", []).append(total)
    return found


# ----------------------------------------------------------------------------- the binary


def main() -> None:
    showing.run_or_redraw("experiments.convergence", run, config_from_flags, REPORT)


def config_from_flags() -> Config:
    """The comparison that the flags ask for.

    Raises:
      InputError: a flag's value is not accepted.
    """
    config = Config()
    if FLAGS.corpus != SYNTHETIC.corpus:
        config = Config(replace(REAL, corpus=FLAGS.corpus), lrs=REAL_LRS)
    base = config.train
    if FLAGS.model is not None:
        one_of("model", FLAGS.model, tuple(SHAPES))
        base = replace(base, model=replace(SHAPES[FLAGS.model], **NOT_GIVEN))
    if jax.default_backend() != "cpu":
        base = launch.override(base, {"dtype": "bfloat16"})
    if FLAGS.smoke:
        base = launch.override(base, SMOKE)
        config = replace(config, variants=SMOKE_VARIANTS, lrs=config.lrs[:2], rounds=2)
    launch.check_tokenizer([base.corpus])
    return factorial.from_flags(replace(config, train=base), OF_A_CELL)


def define_flags() -> None:
    """Define the flags of this binary."""
    flags.DEFINE_string(
        "corpus", "backcopy", "backcopy (a synthetic task), stdlib (Python's own source), PATH (a "
        "file, directory or glob), tokens:DIR (nanoGPT's train.bin and val.bin)",
    )  # fmt: skip
    flags.DEFINE_string("model", None, f"shape to start from: {', '.join(SHAPES)}")
    smoke = "a few steps of two variants at two rates, in seconds"
    factorial.define_flags(Config, smoke, NO_FLAG)


if __name__ == "__main__":
    define_flags()
    launch.launch(main, OFTEN, [Config()])
