"""Do weights make activations, and activations the sink? Doses of each, and as much elsewhere.

python -m experiments.causal --model=runs/variants/RUN                    # its softmax models
python -m experiments.causal --model=RUN --variant=softmax --factors=0,1,4,16
python -m experiments.causal --redraw=runs/causal/RUN
"""

from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from rich.console import Console

from sysout_jax.analysis.intervene.dose_response import check, doses
from sysout_jax.errors import InputError, at_least
from sysout_jax.results import RunDirectory

from .cli import grid, launch, showing
from .cli.grid import Place
from .inputs import identity
from .inputs.evaluation_text import corpus_name, length_of, read_corpus
from .inputs.model_selection import Choice, Chosen, of_softmax, origins
from .reports.causal_report import REPORT

# What --help explains.
OFTEN = ("model", "corpus", "variant", "sequences", "seq_len", "controls", "workdir")
SMOKE = {"sequences": 3, "batch": 3, "controls": 1}


@dataclass(frozen=True)
class Config:
    """Everything that determines the doses and what they are measured on."""

    choice: Choice = field(default_factory=Choice)
    corpus: str | None = None  # text to measure on; None: a run's own, else Python's source
    token_dtype: str | None = None  # of tokens:DIR: uint16, uint32, uint64; None: told by its ids
    factors: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0)  # of the weights, the activation
    controls: int = 8  # neurons and channels at random that are given as much
    sequences: int = 64  # of the validation part
    seq_len: int | None = None  # T, of each; None: 64, or the learned positions if fewer
    batch: int = 64  # sequences that are run together
    place: Place = field(default_factory=Place)

    def __post_init__(self) -> None:
        for name, least in (("controls", 1), ("sequences", 1), ("seq_len", 3), ("batch", 1)):
            at_least(least, name, getattr(self, name))
        shown = ",".join(f"{factor:g}" for factor in self.factors)
        distinct = len(set(self.factors)) == len(self.factors)
        if not distinct or not {0.0, 1.0} <= set(self.factors):
            raise InputError("factors", shown, "different numbers, 0 and 1 among them")
        if not all(abs(factor) < float("inf") for factor in self.factors):
            raise InputError("factors", shown, "finite numbers")


def run(config: Config, console: Console) -> RunDirectory:
    """Give every dose to every model; what is finished is kept when interrupted."""
    chosen, rows = list(of_softmax(config.choice)), {}
    for each in chosen:  # before any work: text that is missing, models without a later layer
        check(each.model.config)
        corpus, _ = read_corpus(config.corpus, each, console, config.token_dtype)
        length = length_of(config.seq_len, each.model.config)
        rows[each.cell] = corpus.distinct("val", config.sequences, length)

    def found(each: Chosen, log: grid.Log) -> dict[str, Any]:
        model, text = each.model, rows[each.cell]
        made = doses(
            model.config, model.params, text, config.factors, config.controls, config.batch
        )
        corpus = corpus_name(config.corpus, each)
        return {"name": each.name, "seed": each.seed, "corpus": corpus, **asdict(made)}

    return grid.run(
        config, "causal", {each.cell: each for each in chosen}, found,
        lambda each: identity.of(each, rows[each.cell]),
        grid.common(config, "variant", "seed"), lambda there: {"models": there.all()},
        REPORT, console, described={"config": grid.told(config), "origins": origins(chosen)},
        of=[each.name for each in chosen],
    )  # fmt: skip


# ----------------------------------------------------------------------------- the binary


config_from_flags = partial(launch.from_flags, Config(), SMOKE)
define_flags = partial(grid.define_flags, Config, "a few sequences and one control, in seconds")


def main() -> None:
    showing.run_or_redraw("experiments.causal", run, config_from_flags, REPORT)


if __name__ == "__main__":
    define_flags()
    launch.launch(main, OFTEN, [Config()])
