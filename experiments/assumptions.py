"""Does a trained model meet what the theory assumes of a sink, and by how much?

python -m experiments.assumptions --model=smollm2-135m --corpus=PATH
python -m experiments.assumptions --model=runs/variants/RUN               # its softmax models
python -m experiments.assumptions --redraw=runs/assumptions/RUN
"""

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from rich.console import Console

from sysout_jax.analysis.locate.scan import default_batch_size
from sysout_jax.analysis.measure.assumptions import assumptions, check
from sysout_jax.converting import LENGTH
from sysout_jax.errors import at_least
from sysout_jax.results import RunDirectory

from .cli import grid, launch, showing
from .cli.grid import Place
from .inputs import identity
from .inputs.evaluation_text import Text, Texts, corpus_name, length_of
from .inputs.model_selection import Choice, Chosen, of_softmax, origins
from .reports.assumptions_report import REPORT

# What --help explains.
OFTEN = ("model", "corpus", "variant", "sequences", "calibration", "seq_len", "workdir")
SMOKE = {"sequences": 4, "calibration": 4, "seq_len": 32}


@dataclass(frozen=True)
class Config:
    """Everything that determines what is measured and on which text."""

    choice: Choice = field(default_factory=Choice)
    corpus: str | None = None  # text to measure on; None: a run's own, else Python's source
    token_dtype: str | None = None  # of tokens:DIR: uint16, uint32, uint64; None: told by its ids
    sequences: int = 16  # of the validation part, to measure on
    calibration: int = 32  # of the training part, to fit what tells the factor
    seq_len: int | None = None  # T, of each; None: 256, or the learned positions if fewer
    batch: int | None = None  # sequences that are run together; None: as many as suit their length
    place: Place = field(default_factory=Place)

    def __post_init__(self) -> None:
        for name in ("sequences", "calibration", "seq_len", "batch"):
            at_least(1, name, getattr(self, name))


def run(config: Config, console: Console) -> RunDirectory:
    """Measure every model; what is finished is kept when interrupted."""
    chosen = list(of_softmax(config.choice))
    texts = {each.cell: _text(config, each, console) for each in chosen}  # before any work

    def found(each: Chosen, log: grid.Log) -> dict[str, Any]:
        model, text = each.model, texts[each.cell]
        batch = config.batch or default_batch_size(text.evaluation.shape[1] - 1)
        made = assumptions(model.config, model.params, text.calibration, text.evaluation, batch)
        return {
            "name": each.name, "seed": each.seed, "corpus": corpus_name(config.corpus, each),
            "texts": len(text.evaluation), "tokens": text.evaluation.shape[1] - 1,
            "calibration": len(text.calibration), **asdict(made),
        }  # fmt: skip

    return grid.run(
        config, "assumptions", {each.cell: each for each in chosen}, found,
        lambda each: identity.of(each, *texts[each.cell].rows),
        grid.common(config, "variant", "seed"), lambda there: {"models": there.all()},
        REPORT, console, described={"config": grid.told(config), "origins": origins(chosen)},
        of=[each.name for each in chosen],
    )  # fmt: skip


def _text(config: Config, chosen: Chosen, console: Console) -> Text:
    """The text for a model that the theory is about."""
    length = length_of(config.seq_len, chosen.model.config, LENGTH)
    text = Texts(
        config.corpus, config.calibration, config.sequences, length, console, config.token_dtype
    ).of(chosen)
    check(chosen.model.config, text.calibration, text.evaluation)
    return text


# ----------------------------------------------------------------------------- the binary


config_from_flags = partial(launch.from_flags, Config(), SMOKE)
define_flags = partial(grid.define_flags, Config, "a few short sequences")


def main() -> None:
    showing.run_or_redraw("experiments.assumptions", run, config_from_flags, REPORT)


if __name__ == "__main__":
    define_flags()
    launch.launch(main, OFTEN, [Config()])
