"""Can a trained model's implicit factor be made explicit without training it again?

python -m experiments.explicit --model=runs/variants/RUN                  # its softmax models
python -m experiments.explicit --model=RUN --variant=backcopy-softmax --finetune=300
python -m experiments.explicit --model=gpt2 --corpus=PATH --finetune=0
python -m experiments.explicit --model=smollm2-135m --corpus=PATH --distil=200 --finetune=0
python -m experiments.explicit --model=smollm2-135m --corpus=PATH --finetune=2000 --draws=1,2,3
python -m experiments.explicit --redraw=runs/explicit/RUN
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from sysout_jax.analysis.compress import schemes
from sysout_jax.analysis.compress.calibration import PRODUCTS
from sysout_jax.analysis.compress.compression import Compressor, check_scheme
from sysout_jax.analysis.intervene import explicit_factor
from sysout_jax.analysis.intervene.explicit_factor import FORMS, Form
from sysout_jax.analysis.intervene.explicit_models import explicit_models
from sysout_jax.analysis.intervene.sink_constants import constants
from sysout_jax.analysis.intervene.sink_forms import all_forms
from sysout_jax.analysis.intervene.weak_sinks import Profile, profile
from sysout_jax.analysis.locate.first_token import first_token
from sysout_jax.analysis.locate.scan import for_length
from sysout_jax.analysis.measure.summary import summary_in_batches
from sysout_jax.analysis.statistics import bootstrap_interval
from sysout_jax.core.measures import SINK_EPS
from sysout_jax.core.variants import kept
from sysout_jax.errors import InputError, at_least, finite
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, param_axes
from sysout_jax.results import RunDirectory, as_flag
from sysout_jax.training.distil import Reads, added, distil
from sysout_jax.training.optimizer import OptimizerConfig, make_optimizer
from sysout_jax.training.step import TrainState, make_step, make_steps

from .cli import grid, launch, showing
from .cli.grid import Place
from .inputs import identity
from .inputs.evaluation_text import Text, Texts, corpus_name
from .inputs.model_selection import Choice, Chosen, of_softmax, origins
from .reports.explicit_report import REPORT

# What --help explains.
OFTEN = ("model", "corpus", "distil", "finetune", "methods", "sequences", "seq_len", "workdir")
METHODS = ("w8a8-tensor", "w4a4")
Say = Callable[[str], None]
# Forms of a model whose texts begin with one token: models of their own, "factor" by an edit.
MADE = ("trained", "factor", "extra_key", "dropped", "constant", "gate")
STEPS_PER_CALL = 25
DRAW = "-draw-"  # between a form and the seed of a further draw, in the name of a cell
SMOKE = {"sequences": 3, "calibration": 4, "batch": 2, "finetune": 2}
BINS = 20  # of a gate's values, for the figure


@dataclass(frozen=True)
class Config:
    """Everything that determines the forms of a model and what they are compared by."""

    choice: Choice = field(default_factory=Choice)
    corpus: str | None = None  # text to fit and judge by; None: a run's own, else Python's source
    token_dtype: str | None = None  # of tokens:DIR: uint16, uint32, uint64; None: told by its ids
    methods: tuple[str, ...] = METHODS  # of compression, as experiments.compress names them
    distil: int = 0  # steps of what a form adds, frozen weights, to predict as the trained model
    finetune: int = 100  # steps of all weights, after that, that the trained model is given too
    finetune_lr: float = 1e-3  # of both, by Adam and AdamW, constant after up to ten steps
    finetune_batch: int = 16  # sequences of each step
    draws: tuple[int, ...] = (1,)  # seeds of the training text's order: forms are trained on each
    sequences: int = 64  # of the validation part, to judge by
    calibration: int = 64  # sequences of the training part, to fit gates and ranges on
    seq_len: int | None = None  # T, of each; None: 64, or the learned positions if fewer
    batch: int = 8  # sequences that are run together
    place: Place = field(default_factory=Place)

    def __post_init__(self) -> None:
        for name, least in (
            ("distil", 0), ("finetune", 0), ("finetune_batch", 1), ("sequences", 1),
            ("calibration", 1), ("seq_len", 3), ("batch", 1),
        ):  # fmt: skip
            at_least(least, name, getattr(self, name))
        finite("finetune_lr", self.finetune_lr)
        grid.check_values("draws", self.draws)
        for draw in self.draws:
            at_least(0, "draws", draw)
        for name in ("draws", "finetune_lr", "finetune_batch"):
            value = getattr(self, name)
            if value != getattr(Config, name) and not self.distil + self.finetune:
                raise InputError(name, as_flag(value), "with --distil or --finetune", "no effect")
        if self.methods:
            grid.check_values("methods", self.methods)
        for method in self.methods:
            schemes.scheme(method)


def run(config: Config, console: Console) -> RunDirectory:
    """Make and judge the forms of every model; what is finished is kept when interrupted."""
    chosen = list(of_softmax(config.choice))
    for each in chosen:
        explicit_factor.check(each.model.config)
        for method in config.methods:
            check_scheme(each.model.config, schemes.scheme(method), tuple(PRODUCTS))
    texts = Texts(
        config.corpus, config.calibration, config.sequences, config.seq_len, console,
        config.token_dtype,
    )  # fmt: skip
    read = [texts.of(each) for each in chosen]  # before any work: text missing or too short

    @lru_cache(maxsize=1)  # cells of one model follow each other, and one at a time is in memory
    def judge(at: int) -> _Judge:
        return _Judge(config, chosen[at], read[at])

    def say(what: str) -> None:
        console.print(f"  {what}", markup=False, highlight=False)

    made_of = [identity.of(each, *text.rows) for each, text in zip(chosen, read, strict=True)]
    named = {
        grid.part_name(each.cell, part): (at, part, form, draw)
        for at, each in enumerate(chosen)
        for part, form, draw in _parts(config, _forms_of(each, read[at]))
    }
    return grid.run(
        config, "explicit", named, lambda cell, log: judge(cell[0]).found(*cell[1:], say),
        lambda cell: made_of[cell[0]],
        grid.common(config, "variant", "seed"),
        lambda there: {"models": _models(there)}, REPORT, console,
        described={
            "methods": config.methods, "config": grid.told(config), "origins": origins(chosen)
        },
        of=[each.name for each in chosen],
    )  # fmt: skip


def _same_first_token(chosen: Chosen, text: Text) -> bool:
    """Whether the first token's keys and values are the same in all texts, and always seen."""
    return text.begun_by_bos(chosen) and chosen.model.config.window is None


def _forms_of(chosen: Chosen, text: Text) -> tuple[str, ...]:
    return MADE if _same_first_token(chosen, text) else tuple(FORMS)


def _parts(
    config: Config, forms: tuple[str, ...]
) -> Iterator[tuple[str | None, str | None, int | None]]:
    """Part, form and draw of a model's cells: its own, and of each form one, which its first draw
    is in, and one for each other draw."""
    first, *others = config.draws
    yield None, None, None
    for form in forms:
        yield form, form, first
        if config.distil or config.finetune:
            yield from ((f"{form}{DRAW}{draw}", form, draw) for draw in others)


def _models(there: grid.Cells) -> list[dict[str, Any]]:
    """The models that cells are of; under "draws" of a form what its other draws made of it."""
    models = grid.by_model(there, "forms", tuple(FORMS))
    for model in models:
        parts = model["forms"]
        model["forms"] = {name: found for name, found in parts.items() if DRAW not in name}
        for name, found in parts.items():
            form, of_draw, draw = name.partition(DRAW)
            if of_draw and found and form in model["forms"]:
                model["forms"][form].setdefault("draws", {})[draw] = found
    return models


class _Judge:
    """One model, whose forms are made at once and judged one after the other."""

    def __init__(self, config: Config, chosen: Chosen, text: Text) -> None:
        self.config, self.chosen, self.text = config, chosen, text
        of = _FixedFirst if _same_first_token(chosen, text) else _RunningText
        self.of = of(config, chosen, text)
        self.before = _profile(config, self.of.forms["trained"], text).losses

    def found(
        self, part: str | None, name: str | None, draw: int | None, say: Say
    ) -> dict[str, Any]:
        """What a form is like, trained on a draw; no form: what the sink of the model is like."""
        config, about = self.config, {"name": self.chosen.name, "seed": self.chosen.seed}
        if name is None or draw is None:
            corpus = corpus_name(config.corpus, self.chosen)
            return {**about, "corpus": corpus, **self.of.about()}
        form, trained, judged = self.of.forms[name], self.of.forms["trained"], {}
        if part == name:
            judged = _judged(config, form, self.text, self.before)
        if not form.edits:
            if config.distil and added(form.params, trained.params):
                form, divergences = _distilled(config, form, trained, self.text, draw, say)
                found = _judged(config, form, self.text, self.before)
                judged["distilled"] = found | {"divergence": divergences}
            if config.finetune:
                form = _finetuned(config, form, self.text, draw)
                judged["finetuned"] = _judged(config, form, self.text, self.before)
        return about | {"part": part, "found": judged}


class _FixedFirst:
    """The forms of a model whose texts all begin with one token, which is read no more."""

    def __init__(self, config: Config, chosen: Chosen, text: Text) -> None:
        model = chosen.model
        calibrated, self.held_out = (
            explicit_factor.factors(model.config, model.params, rows[:, :-1], config.batch)
            for rows in (text.calibration, text.evaluation)
        )
        first = int(text.evaluation[0, 0])
        self.forms, self.gates = explicit_factor.forms(
            model.config, model.params, first, calibrated
        )

    def about(self) -> dict[str, Any]:
        return {"factors": _factors(self.gates, self.held_out)}


class _RunningText:
    """The forms of a model whose texts begin with different tokens, in the layers that read what
    makes the first token a sink: models where that can be left out, else edits.

    Raises:
      InputError: there is no such sink.
    """

    def __init__(self, config: Config, chosen: Chosen, text: Text) -> None:
        model, rows = chosen.model, text.calibration
        of = for_length(model.config, rows.shape[1] - 1)
        first = first_token(of, model.params, rows, config.batch)
        self.sink = first.sink
        if not self.sink.present:
            found = f"no head of {chosen.name} gives its first token more than {SINK_EPS:g} of its"
            raise InputError(
                "model", None, "a model with a sink",
                f"{found} attention (at most {self.sink.most:.2f})",
            )  # fmt: skip
        whole = model.config.with_execution(query_block=None)
        fitted = constants(whole, model.params, rows[:, :-1], self.sink.first, config.batch)
        edited = all_forms(of, rows.shape[1] - 1, self.sink, fitted)
        made = {
            "trained": Form(of, model.params, True),
            **{name: Form(of, model.params, True, edits) for name, edits in edited.items()},
        }
        self.models: tuple[str, ...] = ()
        if first.layers and first.writers:
            models = explicit_models(
                model.config, model.params, fitted, first.layers, first.writers
            )
            self.models = tuple(models)
            made |= models
        self.forms = {name: made[name] for name in FORMS}

    def about(self) -> dict[str, Any]:
        return {"sink": asdict(self.sink), "models": self.models}


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
    if form.edits:
        return _changed(form.losses(text.evaluation, config.batch), before)
    rows, found = form.rows(text.evaluation), _profile(config, form, text)
    judged = _changed(found.losses, before) | {
        "losses": found.losses,
        "largest": found.over_median.max(axis=0),
        "measures": summary_in_batches(form.config, form.params, rows[:, :-1], config.batch),
    }
    compressor = Compressor(
        form.config, form.params, form.rows(text.calibration), batch=config.batch
    )
    judged["methods"] = {}
    for method in config.methods:
        small = compressor.compress(schemes.scheme(method))
        after = replace(form, params=small.params, edits=small.edits).losses(
            text.evaluation, config.batch
        )
        judged["methods"][method] = _changed(after, found.losses) | {"losses": after}
    return judged


def _profile(config: Config, form: Form, text: Text) -> Profile:
    rows = form.rows(text.evaluation)
    return profile(form.config, form.params, rows, int(form.reads_first), config.batch)


def _changed(losses: np.ndarray, before: np.ndarray) -> dict[str, Any]:
    return {"loss": float(losses.mean()), "change": bootstrap_interval(losses - before)}


def _distilled(
    config: Config, form: Form, trained: Form, text: Text, draw: int, say: Say
) -> tuple[Form, np.ndarray]:
    """The form after some steps of what it adds, and the divergence from the trained model before
    each of them; every form sees the same text."""
    width, corpus = text.evaluation.shape[1] - 1, text.corpus
    assert corpus is not None

    def told(done: int, divergence: float) -> None:
        if done % STEPS_PER_CALL == 0:
            say(f"step {done} of {config.distil}: {divergence:.4f} nats from the trained model")

    params, divergences = distil(
        Reads(form.config, form.params, int(not form.reads_first)),
        Reads(trained.config, trained.params),
        lambda n: corpus.batch("train", draw, n, config.finetune_batch, width),
        config.distil, _optimizer(config, config.distil), told,
    )  # fmt: skip
    return replace(form, params=params), divergences


def _optimizer(config: Config, steps: int) -> OptimizerConfig:
    """AdamW at a constant rate, after a warm-up of a tenth of the steps and of ten at most."""
    warmup = min(10, steps // 10)
    return OptimizerConfig(lr=config.finetune_lr, schedule="constant", warmup=warmup, decay=0.0)


@kept  # of each form the models of all seeds have one
def _steps(model: ModelConfig, how: OptimizerConfig, count: int) -> tuple[Any, Any]:
    """The optimiser, and the program of some of its steps."""
    optimizer = make_optimizer(how, count, param_axes(model))
    return optimizer, make_steps(make_step(model, optimizer))


def _finetuned(config: Config, form: Form, text: Text, draw: int) -> Form:
    """The form after some steps on its own kind of rows; every form sees the same text."""
    optimizer, steps = _steps(form.config, _optimizer(config, config.finetune), config.finetune)
    width = text.evaluation.shape[1] - 1

    def begin(params: Params) -> TrainState:
        return TrainState(params, optimizer.init(params))

    assert text.corpus is not None
    state = jax.vmap(begin)(jax.tree.map(lambda x: jnp.array(x, copy=True)[None], form.params))
    for done in range(0, config.finetune, STEPS_PER_CALL):
        numbers = range(done, min(done + STEPS_PER_CALL, config.finetune))
        rows = [text.corpus.batch("train", draw, n, config.finetune_batch, width) for n in numbers]
        state, told = steps(state, jnp.asarray(np.stack([form.rows(each)[None] for each in rows])))
        if not np.isfinite(told.loss).all():
            said = f"not finite after {done} steps of finetuning"
            raise InputError("finetune_lr", config.finetune_lr, "a smaller one", said)
    return replace(form, params=jax.tree.map(lambda x: x[0], state.params))


# ----------------------------------------------------------------------------- the binary


config_from_flags = partial(launch.from_flags, Config(), SMOKE)
define_flags = partial(grid.define_flags, Config, "a few sequences and steps, in seconds")


def main() -> None:
    showing.run_or_redraw("experiments.explicit", run, config_from_flags, REPORT)


if __name__ == "__main__":
    define_flags()
    launch.launch(main, OFTEN, [Config()])
