"""Do variants without outliers converge faster? Learning rates, seeds, tokens, time, intervals.

python -m experiments.convergence                                          # Bigram-Backcopy
python -m experiments.convergence --corpus=PATH --model=llama-tiny --lrs=1e-3,3e-3 --steps=2000
python -m experiments.convergence --resume=runs/convergence/RUN --lrs=1e-2    # go on, and more
python -m experiments.convergence --redraw=runs/convergence/RUN
"""

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from rich.console import Console

from sysout_jax.analysis.measure import zero_shot
from sysout_jax.core.attention import PAPER, VARIANTS
from sysout_jax.errors import Diverged, InputError
from sysout_jax.model.config import SHAPES, at_least, one_of
from sysout_jax.model.decoder import parameter_count
from sysout_jax.planning.timing import step_flops, step_seconds
from sysout_jax.results import RunDirectory, code_version, read_mapping, read_record, write_json
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.loop import Corpus, Run, corpus_of, train
from sysout_jax.training.optimizer import OptimizerConfig

from .cli import ending, launch
from .cli.grid import TRAINED_AGAIN
from .cli.presets import BACKCOPY, FILLED_IN, NOT_GIVEN, SMOKE, TEXT
from .cli.progress import Progress, reading
from .records.study import history, study_names
from .reports.convergence_report import compared, markdown_tables, print_tables

FLAGS = flags.FLAGS
# What --help explains.
OFTEN = ("corpus", "variants", "lrs", "baseline", "steps", "seeds", "resume", "workdir")
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
GOES_ON = ("lrs", "variants")  # flags that may be given with --resume
OF_A_CELL = ("corpus", "variant", "lr", "checkpoint_every", *FILLED_IN)
# What it times are steps of one device.
NO_FLAG = (*OF_A_CELL, "mesh", "parallel")


@dataclass(frozen=True)
class Config:
    """Everything that determines a comparison; a cell is one variant at one learning rate."""

    train: TrainConfig = SYNTHETIC  # but for variant and learning rate
    variants: tuple[str, ...] = PAPER
    lrs: tuple[float, ...] = SYNTHETIC_LRS
    baseline: str = "softmax"
    rounds: int = 20  # of the interleaved timing
    workdir: str = "runs"

    def __post_init__(self) -> None:
        for name in (self.baseline, *self.variants):
            one_of("variants", name, VARIANTS)
        if self.baseline not in self.variants:
            raise InputError(
                "baseline", self.baseline, f"one of --variants={','.join(self.variants)}"
            )
        at_least(1, "rounds", self.rounds)
        names = tuple(f"{lr:g}" for lr in self.lrs)
        for flag, values in (("variants", self.variants), ("lrs", names)):
            if not values or len(set(values)) < len(values):
                found = ",".join(values)
                raise InputError(flag, found, "at least one, none of them twice")
        for lr in self.lrs:
            if not 0 < lr < float("inf"):
                raise InputError("lrs", ",".join(names), "finite numbers above 0")

    def cell(self, variant: str, lr: float) -> TrainConfig:
        """The training run of a cell."""
        optimizer = replace(self.train.optimizer, lr=lr)
        return replace(self.train, variant=variant, optimizer=optimizer)


def run(config: Config, console: Console, resumed: Path | None = None) -> RunDirectory:
    """Train every cell that is not there yet, compare, draw; a finished cell is on disk at once."""
    train_config = config.train
    with reading(console, train_config.corpus) as progress:
        corpus = corpus_of(train_config, progress)
    for split in ("train", "val"):
        corpus.batch(split, 0, 0, train_config.batch_size, train_config.seq_len)
    costs, cells = _there(resumed) if resumed else ({}, {})  # refused before anything is written
    directory = RunDirectory.reopened(resumed) if resumed else RunDirectory(
        config.workdir, "convergence", of=study_names([train_config.corpus])
    )  # fmt: skip
    directory.write_config(config)
    console.print(f"run      {directory.path}", soft_wrap=True, markup=False)
    about = _describe(config, corpus)
    with (
        ending.telling_how_to_go_on(f"--resume={directory.path}"),
        directory.record("convergence", **about, variants={}, cells=[], compared={}) as record,
    ):
        record["variants"] = _costs(config, corpus, directory, console, costs)
        try:
            _train_all(config, corpus, directory, console, cells, record["cells"])
        finally:
            record["compared"] = compared(record)
    found = read_record(directory.path)
    print_tables(console, found)
    launch.publish(console, directory.path, found)
    return directory


def _describe(config: Config, corpus: Corpus) -> dict[str, Any]:
    c = config.train
    return {
        "corpus": c.corpus,
        "baseline": config.baseline,
        "lrs": list(config.lrs),
        "config": c,
        "tokens": corpus.tokens,
        "split": corpus.split,
        "epochs": corpus.epochs(c.steps, c.batch_size, c.seq_len),
        "tokens_per_step": c.batch_size * c.seq_len,
    }


def _there(run: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The costs that a run has found, and its cells by the names of their files.

    Raises:
      InputError: one of the files cannot be read.
    """
    path = run / "costs.json"
    costs = read_mapping(path, "remove it, and all is timed again") if path.exists() else {}
    files = sorted((run / "cells").glob("[!.]*.json"))
    return costs, {file.stem: read_mapping(file, TRAINED_AGAIN) for file in files}


def _costs(
    config: Config,
    corpus: Corpus,
    directory: RunDirectory,
    console: Console,
    there: dict[str, Any],
) -> dict[str, Any]:
    """Parameters, operations and seconds of each variant; those there if all were timed before."""
    if list(there) == list(config.variants):
        return there
    cells = {name: config.cell(name, config.lrs[0]) for name in config.variants}
    with console.status(f"timing {len(cells)} variants in turn"):
        seconds = step_seconds(cells, corpus.vocab, config.rounds)
    costs = {
        name: {
            "label": VARIANTS[name].label,
            "order": VARIANTS.order(name),
            "parameters": parameter_count(cell.architecture(corpus.vocab)),
            "flops": step_flops(cell, corpus.vocab),
            "seconds": seconds[name],
        }
        for name, cell in cells.items()
    }
    return dict(json.loads(directory.write("costs.json", costs).read_text()))


def _train_all(
    config: Config,
    corpus: Corpus,
    directory: RunDirectory,
    console: Console,
    there: dict[str, Any],
    found: list[Any],
) -> None:
    """Take or train every cell, learning rate by learning rate, into `found`."""
    place = directory.path / "cells"
    place.mkdir(exist_ok=True)
    cells = {f"{name} {lr:g}": (name, lr) for lr in config.lrs for name in config.variants}
    with Progress(console, config.train, tuple(cells)) as progress:
        for title, (name, lr) in cells.items():
            file = f"{name}-{lr:g}"
            if file not in there:

                def log(row: dict[str, Any], title: str = title, lr: float = lr) -> None:
                    directory.log({"lr": lr, **row})
                    progress.update(row | {"variant": title})

                cell = _train(config.cell(name, lr), corpus, log)
                there[file] = json.loads(write_json(place / f"{file}.json", cell).read_text())
            found.append(there[file])


def _train(cell: TrainConfig, corpus: Corpus, log: Any) -> dict[str, Any]:
    """What the record says of a cell."""
    begun = time.perf_counter()
    about = {
        "variant": cell.variant,
        "lr": cell.optimizer.lr,
        "seeds": cell.seeds,
        "code": code_version(),
        "device": jax.devices()[0].device_kind,
    }
    try:
        trained = train(cell, corpus, log)
    except Diverged as error:
        return about | {"diverged": {"step": error.step, "seed": error.seed}}
    measured = history(trained)["measured"]
    return about | {
        "step": measured["step"],
        "val_loss": measured["val_loss"],
        "measures": {name: values[-1] for name, values in measured["measures"].items()},
        "zero_shot": _zero_shot(trained, corpus),
        "seconds": time.perf_counter() - begun,
    }


def _zero_shot(trained: Run, corpus: Corpus) -> dict[str, list[Any]]:
    """Whole next words where there is text, and copying from the context: [seeds] each."""
    c = trained.config
    found: dict[str, list[Any]] = {}
    specials = {corpus.bos} if corpus.bos is not None else set()
    if trained.tokenizer is not None:
        specials |= {trained.tokenizer.eot}
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
    console = launch.console_for_tables()
    if FLAGS.redraw:
        launch.redraw("experiments.convergence", console, print_tables, markdown_tables)
    elif FLAGS.resume:
        path = Path(FLAGS.resume)
        run(resumed_config(path), console, path)
    else:
        run(config_from_flags(), console)


def resumed_config(path: Path) -> Config:
    """The config of a run that is to go on, with more rates and variants if the flags say so.

    Raises:
      InputError: no run of this experiment, or a flag that would change what is there.
    """
    for name in FLAGS:
        mine = not str(FLAGS.find_module_defining_flag(name)).startswith("absl")
        if mine and FLAGS[name].present and name not in ("resume", *GOES_ON):
            raise InputError(
                name, None, "--lrs and --variants", f"the run in --resume={path} has its own"
            )
    config = launch.read_config(Config, path, "resume", "experiments.convergence")
    lrs = launch.numbers("lrs", FLAGS.lrs or [], float)
    known = {f"{lr:g}" for lr in config.lrs}
    more = tuple(lr for lr in lrs if f"{lr:g}" not in known)
    names = tuple(name for name in FLAGS.variants or [] if name not in config.variants)
    return replace(config, lrs=config.lrs + more, variants=config.variants + names)


def config_from_flags() -> Config:
    """The comparison that the flags ask for.

    Raises:
      InputError: a flag's value is not accepted.
    """
    synthetic = FLAGS.corpus == "backcopy"
    base = SYNTHETIC if synthetic else replace(REAL, corpus=FLAGS.corpus)
    lrs: tuple[float, ...] = SYNTHETIC_LRS if synthetic else REAL_LRS
    variants = PAPER
    if FLAGS.model is not None:
        one_of("model", FLAGS.model, tuple(SHAPES))
        base = replace(base, model=replace(SHAPES[FLAGS.model], **NOT_GIVEN))
    if jax.default_backend() != "cpu":
        base = launch.override(base, {"dtype": "bfloat16"})
    rounds = FLAGS.rounds
    if FLAGS.smoke:
        base, lrs, variants = launch.override(base, SMOKE), lrs[:2], ("softmax", "context_scale")
        rounds = 2
    given = {name: FLAGS[name].value for name in FLAGS if name not in OF_A_CELL}
    if FLAGS.lrs is not None:
        lrs = launch.numbers("lrs", FLAGS.lrs, float)
    if FLAGS.variants is not None:
        variants = tuple(VARIANTS) if FLAGS.variants == ["all"] else tuple(FLAGS.variants)
    base = launch.override(base, given)
    return Config(base, variants, lrs, FLAGS.baseline, rounds, FLAGS.workdir)


def define_flags() -> None:
    """Define the flags of this binary."""
    flags.DEFINE_string(
        "corpus", "backcopy", "backcopy (a synthetic task), stdlib (Python's own source), PATH (a "
        "file, directory or glob), tokens:DIR (nanoGPT's train.bin and val.bin)",
    )  # fmt: skip
    flags.DEFINE_list("variants", None, f"to compare, or all; default: {','.join(PAPER)}")
    flags.DEFINE_list("lrs", None, "learning rates that each variant is trained with")
    flags.DEFINE_string("baseline", "softmax", "the variant that the others are compared with")
    flags.DEFINE_string("model", None, f"shape to start from: {', '.join(SHAPES)}")
    flags.DEFINE_integer("rounds", 20, "how often the step of each variant is timed, in turn")
    flags.DEFINE_string("workdir", "runs", "where run directories go")
    flags.DEFINE_bool("smoke", False, "a few steps of two variants at two rates, in seconds")
    flags.DEFINE_string(
        "resume", None, "go on with this run directory; --lrs and --variants add to it"
    )
    launch.define_tables()
    launch.define_overrides(TrainConfig, skip=NO_FLAG)
    flags.adopt_module_key_flags(launch)  # so that --help lists them


if __name__ == "__main__":
    define_flags()
    launch.launch(main, OFTEN, [Config()])
