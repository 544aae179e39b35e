"""Can a trained model's implicit factor be made explicit without training it again?

python -m experiments.explicit --model=runs/variants/RUN                  # its softmax models
python -m experiments.explicit --model=RUN --variant=backcopy-softmax --finetune=300
python -m experiments.explicit --model=gpt2 --corpus=PATH --finetune=0
python -m experiments.explicit --redraw=runs/explicit/RUN
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.console import Console

from sysout_jax.analysis.compress import schemes
from sysout_jax.analysis.compress.compression import Compressor
from sysout_jax.analysis.intervene import explicit_factor
from sysout_jax.analysis.intervene.explicit_factor import FORMS, Form
from sysout_jax.analysis.measure.summary import summary_in_batches
from sysout_jax.analysis.statistics import bootstrap_interval
from sysout_jax.errors import InputError
from sysout_jax.model.config import at_least, finite
from sysout_jax.model.decoder import Params, param_axes
from sysout_jax.results import RunDirectory, read_record
from sysout_jax.training.optimizer import OptimizerConfig, make_optimizer
from sysout_jax.training.step import TrainState, make_step, make_steps

from .cli import launch
from .cli.progress import model_bar
from .inputs.evaluation_text import Text, Texts
from .inputs.model_selection import Choice, Chosen, every
from .reports.explicit_report import markdown_tables, print_tables

FLAGS = flags.FLAGS
# What --help explains.
OFTEN = ("model", "corpus", "finetune", "methods", "sequences", "seq_len", "workdir")
METHODS = ("w8a8-tensor", "w4a4")
MODELS = tuple(name for name in FORMS if name != "factor")  # the others run without edits
STEPS_PER_CALL = 25
SMOKE = {"sequences": 3, "calibration": 2, "batch": 2, "finetune": 2}
BINS = 20  # of a gate's values, for the figure


@dataclass(frozen=True)
class Config:
    """Everything that determines the forms of a model and what they are compared by."""

    choice: Choice = field(default_factory=Choice)
    corpus: str | None = None  # text to fit, to fine-tune and to judge by; None: the run's own
    token_dtype: str | None = None  # of tokens:DIR: uint16, uint32, uint64; None: told by its ids
    methods: tuple[str, ...] = METHODS  # of compression, as experiments.compress names them
    finetune: int = 100  # optimiser steps that every form, the trained one too, is given
    finetune_lr: float = 1e-3  # their learning rate, constant, of AdamW
    finetune_batch: int = 16  # sequences of each
    sequences: int = 64  # of the validation part, to judge by
    calibration: int = 64  # sequences of the training part, to fit gates and ranges on
    seq_len: int | None = None  # T, of each; None: 64, or the learned positions if fewer
    batch: int = 8  # sequences that are run together
    workdir: str = "runs"  # where run directories go

    def __post_init__(self) -> None:
        for name, least in (
            ("finetune", 0), ("finetune_batch", 1), ("sequences", 1), ("calibration", 1),
            ("seq_len", 3), ("batch", 1),
        ):  # fmt: skip
            at_least(least, name, getattr(self, name))
        finite("finetune_lr", self.finetune_lr)
        if self.choice.stream:
            raise InputError("stream", accepted="without it, forms are of a model in memory")
        for method in self.methods:
            schemes.scheme(method)


def run(config: Config, console: Console) -> RunDirectory:
    """Make and judge the forms of every model; what is finished is kept when interrupted."""
    chosen = list(_softmax(config.choice))
    texts = Texts(
        config.corpus, config.calibration, config.sequences, config.seq_len, console,
        config.token_dtype,
    )  # fmt: skip
    for each in chosen:
        texts.of(each)  # before any work: text that is missing or too short
    directory = RunDirectory(config.workdir, "explicit", of=[each.name for each in chosen])
    directory.write("config.json", config)
    console.print(f"run      {directory.path}", soft_wrap=True, markup=False)
    about = {"methods": list(config.methods), "config": asdict(config), "models": []}
    with directory.record("explicit", **about) as record:
        for each in chosen:
            _one(config, each, texts.of(each), record["models"], console)
    found = read_record(directory.path)
    print_tables(console, found)
    launch.publish(console, directory.path, found)
    return directory


def _softmax(choice: Choice) -> Iterator[Chosen]:
    """The models that the flags mean; of a run, those of variant softmax unless one is named."""
    path = Path(choice.model).expanduser()
    if choice.variant is None and (path / "models").is_dir():
        choice = replace(choice, variant="softmax")
    for chosen in every(choice):
        explicit_factor.check(chosen.model.config)
        if not chosen.bos:
            raise InputError(
                "bos",
                "no",
                "a model whose texts begin with a BOS token",
                f"{chosen.name} reads texts whose first tokens differ",
            )
        yield chosen


def _one(config: Config, chosen: Chosen, text: Text, found: list[Any], console: Console) -> None:
    """Add the forms of one model to the record."""
    model = chosen.model
    calibrated, held_out = (
        explicit_factor.factors(model.config, model.params, rows[:, :-1], config.batch)
        for rows in (text.calibration, text.evaluation)
    )
    first = int(text.evaluation[0, 0])
    made, gates = explicit_factor.forms(model.config, model.params, first, calibrated)
    before = made["trained"].losses(text.evaluation, config.batch)
    entry: dict[str, Any] = {
        "name": chosen.name,
        "seed": chosen.seed,
        "corpus": config.corpus or chosen.corpus,
        "factors": _factors(gates, held_out),
        "forms": {},
    }
    found.append(entry)
    with model_bar(console) as bar:
        task = bar.add_task(chosen.described, total=len(made), state="")
        for name, form in made.items():
            bar.update(task, state=FORMS[name])
            entry["forms"][name] = _judged(config, form, text, before)
            if name in MODELS and config.finetune:
                tuned = _finetuned(config, form, text)
                entry["forms"][name]["finetuned"] = _judged(config, tuned, text, before)
            bar.advance(task)
        bar.update(task, state=f"loss {before.mean():.4g} as trained")


def _factors(gates: explicit_factor.Gates, found: explicit_factor.Factors) -> dict[str, Any]:
    """What S is like on held-out text, and how well the gates predict it there."""
    x, s = found.flat
    predicted = gates(x)
    bins = np.minimum((predicted * BINS).astype(int), BINS - 1).ravel()
    counts = np.bincount(bins, minlength=BINS)
    sums = np.bincount(bins, weights=s.ravel(), minlength=BINS)
    return {
        "mean": s.mean(axis=1),
        "sd": s.std(axis=1),
        "explained": explicit_factor.explained(gates, found),
        "binned": {"count": counts, "mean": sums / np.where(counts, counts, np.nan)},
    }


def _judged(config: Config, form: Form, text: Text, before: np.ndarray) -> dict[str, Any]:
    """Loss, measures, and what compression costs; changes are paired by sequence."""
    losses = form.losses(text.evaluation, config.batch)
    judged: dict[str, Any] = {
        "loss": float(losses.mean()), "change": bootstrap_interval(losses - before)
    }  # fmt: skip
    if form.edits:
        return judged
    tokens = form.rows(text.evaluation)[:, :-1]
    judged["measures"] = summary_in_batches(form.config, form.params, tokens, config.batch)
    compressor = Compressor(
        form.config, form.params, form.rows(text.calibration), batch=config.batch
    )
    judged["methods"] = {}
    for method in config.methods:
        small = compressor.compress(schemes.scheme(method))
        after = replace(form, params=small.params, edits=small.edits).losses(
            text.evaluation, config.batch
        )
        judged["methods"][method] = {
            "loss": float(after.mean()), "change": bootstrap_interval(after - losses)
        }  # fmt: skip
    return judged


def _finetuned(config: Config, form: Form, text: Text) -> Form:
    """The form after some steps on its own kind of rows; every form sees the same text."""
    optimizer = make_optimizer(
        OptimizerConfig(lr=config.finetune_lr, schedule="constant", warmup=10, decay=0.0),
        config.finetune, param_axes(form.config),
    )  # fmt: skip
    steps = make_steps(make_step(form.config, optimizer))
    width = text.evaluation.shape[1] - 1

    def begin(params: Params) -> TrainState:
        return TrainState(params, optimizer.init(params))

    state = jax.vmap(begin)(jax.tree.map(lambda x: jnp.array(x, copy=True)[None], form.params))
    for done in range(0, config.finetune, STEPS_PER_CALL):
        numbers = range(done, min(done + STEPS_PER_CALL, config.finetune))
        rows = [text.corpus.batch("train", 1, n, config.finetune_batch, width) for n in numbers]
        state, _ = steps(state, jnp.asarray(np.stack([form.rows(each)[None] for each in rows])))
    return replace(form, params=jax.tree.map(lambda x: x[0], state.params))


# ----------------------------------------------------------------------------- the binary


def main() -> None:
    console = launch.console_for_tables()
    if FLAGS.redraw:
        launch.redraw("experiments.explicit", console, print_tables, markdown_tables)
    else:
        run(config_from_flags(), console)


def config_from_flags() -> Config:
    """The config that the flags ask for.

    Raises:
      InputError: a flag's value is not accepted.
    """
    given = {name: FLAGS[name].value for name in FLAGS if name != "methods"}
    config = launch.override(Config(), SMOKE if FLAGS.smoke else {})
    if FLAGS.methods is not None:
        config = replace(config, methods=tuple(FLAGS.methods))
    return launch.override(config, given)


def define_flags() -> None:
    """Define the flags of this binary."""
    flags.DEFINE_bool("smoke", False, "a few sequences and steps, in seconds")
    launch.define_tables()
    launch.define_overrides(Config)
    flags.adopt_module_key_flags(launch)  # so that --help lists them


if __name__ == "__main__":
    define_flags()
    launch.launch(main, OFTEN, [Config()])
