"""Can a trained model's implicit factor be made explicit without training it again?

python -m experiments.explicit --model=runs/variants/RUN                  # its softmax models
python -m experiments.explicit --model=RUN --variant=backcopy-softmax --finetune=300
python -m experiments.explicit --model=gpt2 --corpus=PATH --finetune=0
python -m experiments.explicit --model=smollm2-135m --corpus=PATH         # no BOS: by edits alone
python -m experiments.explicit --redraw=runs/explicit/RUN
"""

from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
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
from sysout_jax.analysis.intervene.passes import passes
from sysout_jax.analysis.intervene.relocation import TAPS
from sysout_jax.analysis.intervene.sink_forms import sink_forms
from sysout_jax.analysis.locate.scan import for_length, scan
from sysout_jax.analysis.locate.sinks import first_token_sink
from sysout_jax.analysis.measure.summary import summary_in_batches
from sysout_jax.analysis.statistics import bootstrap_interval
from sysout_jax.core.measures import SINK_EPS
from sysout_jax.errors import InputError, at_least, finite
from sysout_jax.model.decoder import Params, param_axes
from sysout_jax.results import RunDirectory
from sysout_jax.training.optimizer import OptimizerConfig, make_optimizer
from sysout_jax.training.step import TrainState, make_step, make_steps

from .cli import grid, launch
from .cli.grid import Place
from .inputs.evaluation_text import Text, Texts
from .inputs.model_selection import Choice, Chosen, of_softmax
from .reports.explicit_report import sections

FLAGS = flags.FLAGS
# What --help explains.
OFTEN = ("model", "corpus", "finetune", "methods", "sequences", "seq_len", "workdir")
METHODS = ("w8a8-tensor", "w4a4")
# Forms of a model whose texts begin with one token: models of their own, "factor" by an edit.
MADE = ("trained", "factor", "extra_key", "dropped", "constant", "gate")
MODELS = tuple(name for name in MADE if name != "factor")
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
    place: Place = field(default_factory=Place)

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
    chosen = list(of_softmax(config.choice))
    for each in chosen:
        explicit_factor.check(each.model.config)
    texts = Texts(
        config.corpus, config.calibration, config.sequences, config.seq_len, console,
        config.token_dtype,
    )  # fmt: skip
    read = [texts.of(each) for each in chosen]  # before any work: text missing or too short

    @lru_cache(maxsize=1)  # cells of one model follow each other, and one at a time is in memory
    def judge(at: int) -> _Judge | _ByEdits:
        kind = _Judge if _same_first_token(chosen[at]) else _ByEdits
        return kind(config, chosen[at], read[at])

    named = {
        grid.part_name(each.cell, form): (at, form)
        for at, each in enumerate(chosen)
        for form in (None, *_forms_of(each))
    }
    return grid.run(
        config, "explicit", named, lambda cell, log: judge(cell[0]).found(cell[1]),
        grid.common(config, "variant", "seed"),
        lambda there: {"models": grid.by_model(there, "forms", tuple(FORMS))}, sections,
        console, described={"methods": config.methods, "config": grid.told(config)},
        of=[each.name for each in chosen],
    )  # fmt: skip


def _same_first_token(chosen: Chosen) -> bool:
    """Whether the first token's keys and values are the same in all texts, and always seen."""
    return chosen.bos and chosen.model.config.window is None


def _forms_of(chosen: Chosen) -> tuple[str, ...]:
    """The forms of a model: as models that do not read the first token, or as edits of one that
    does, from the layer on from which its keys and values are nearly the same."""
    return MADE if _same_first_token(chosen) else tuple(FORMS)


class _Judge:
    """One model, whose forms are made at once and judged one after the other."""

    def __init__(self, config: Config, chosen: Chosen, text: Text) -> None:
        model, self.config, self.chosen, self.text = chosen.model, config, chosen, text
        calibrated, self.held_out = (
            explicit_factor.factors(model.config, model.params, rows[:, :-1], config.batch)
            for rows in (text.calibration, text.evaluation)
        )
        first = int(text.evaluation[0, 0])
        self.forms, self.gates = explicit_factor.forms(
            model.config, model.params, first, calibrated
        )
        self.before = self.forms["trained"].losses(text.evaluation, config.batch)

    def found(self, name: str | None) -> dict[str, Any]:
        """What a form is like; None: what the factor of the model is like."""
        config, about = self.config, {"name": self.chosen.name, "seed": self.chosen.seed}
        if name is None:
            corpus = config.corpus or self.chosen.corpus
            return {**about, "corpus": corpus, "factors": _factors(self.gates, self.held_out)}
        form = self.forms[name]
        judged = _judged(config, form, self.text, self.before)
        if name in MODELS and config.finetune:
            tuned = _finetuned(config, form, self.text)
            judged["finetuned"] = _judged(config, tuned, self.text, self.before)
        return about | {"part": name, "found": judged}


class _ByEdits:
    """One model whose texts begin with different tokens: all of its forms, in the layers that read
    what makes the first token a sink.

    Raises:
      InputError: there is no such sink.
    """

    def __init__(self, config: Config, chosen: Chosen, text: Text) -> None:
        self.about = {"name": chosen.name, "seed": chosen.seed}
        self.corpus, rows, model = config.corpus or chosen.corpus, text.evaluation, chosen.model
        of = for_length(model.config, rows.shape[1] - 1)
        self.sink = first_token_sink(of, scan(of, model.params, rows[:, :-1], None, config.batch))
        if not self.sink.present:
            found = f"no head of {chosen.name} gives its first token more than {SINK_EPS:g} of its"
            raise InputError(
                "model", None, "a model with a sink",
                f"{found} attention (at most {self.sink.most:.2f})",
            )  # fmt: skip
        of_model = passes(of, model.params, rows, [self.sink.first], config.batch, TAPS, {})
        self.forms = sink_forms(of_model, of_model.taps, self.sink, text.calibration)
        self.before = of_model.before

    def found(self, name: str | None) -> dict[str, Any]:
        """What a form costs; None: where the sink is."""
        if name is None:
            return {**self.about, "corpus": self.corpus, "sink": asdict(self.sink)}
        cost = {"loss": float(self.before.mean()), "change": (0.0, 0.0, 0.0)}
        for form in self.forms.forms:
            if form.name == name:
                cost = {"loss": form.loss, "change": form.change}
        return {**self.about, "part": name, "found": cost}


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

    assert text.corpus is not None
    state = jax.vmap(begin)(jax.tree.map(lambda x: jnp.array(x, copy=True)[None], form.params))
    for done in range(0, config.finetune, STEPS_PER_CALL):
        numbers = range(done, min(done + STEPS_PER_CALL, config.finetune))
        rows = [text.corpus.batch("train", 1, n, config.finetune_batch, width) for n in numbers]
        state, _ = steps(state, jnp.asarray(np.stack([form.rows(each)[None] for each in rows])))
    return replace(form, params=jax.tree.map(lambda x: x[0], state.params))


# ----------------------------------------------------------------------------- the binary


def main() -> None:
    launch.run_or_redraw("experiments.explicit", run, config_from_flags, sections)


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
    grid.define_flags(Config, "a few sequences and steps, in seconds")


if __name__ == "__main__":
    define_flags()
    launch.launch(main, OFTEN, [Config()])
