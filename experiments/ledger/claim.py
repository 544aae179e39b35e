"""What a claim is, and the words in which claims are stated: settings, records, properties.

What (a) to (f) are is in core/attention. Gates on outputs, as (e), are judged by what the first
token does to the output, g p_0 |v_0| / |o|, not by attention that a gate shuts off.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sysout_jax.core.measures import SINK_EPS, SINK_RATE_ABSENT, SINK_RATE_PRESENT

from .evidence import Predicate
from .predicates import Control, Equal, Has, Paired, Share

BACKCOPY, LABORATORY, SOURCE, BOOKS = "Backcopy", "laboratory", "source text", "books"
PUBLISHED, GEMMA = "SmolLM2-135M", "Gemma 3 270M"
SETTINGS = (BACKCOPY, LABORATORY, SOURCE, BOOKS, PUBLISHED, GEMMA)


@dataclass(frozen=True)
class Trial:
    """What decides a statement in one setting.

    held: the commit, and the name there, of a ledger that first held this bound, before claims.json
      held thresholds; what was added since, or made stricter, only withholds verdicts.
    renews: the same of the threshold that this one takes the place of, where it differs.
    """

    predicate: Predicate
    records: str  # below results/, with commas
    held: str = ""
    renews: str = ""
    superseded: str = ""  # the statement that is decided in its place


@dataclass(frozen=True)
class Statement:
    """A claim of the paper, of other works, or of this project."""

    name: str
    says: str
    source: str
    tests: Mapping[str, Trial]  # by setting


AN = "An et al. 2025 (arXiv:2502.06415)"
GU, SUN = "Gu et al. 2025 (arXiv:2410.10781)", "Sun et al. 2024 (arXiv:2402.17762)"
QIU, CHEN = "Qiu et al. 2025 (arXiv:2505.06708)", "Chen et al. 2026 (arXiv:2603.17771)"

DEMO, LAB, CHAINED = "variants/backcopy", "laboratory", "benchmark/sinks-contexts-second"
CELLS, SIX = "benchmark/sinks", "variants/sinks"
CELLS_TWO, CELLS_THREE = "benchmark/sinks-second", "benchmark/sinks-third"
CELLS_FOUR, CELLS_FIVE = "benchmark/sinks-fourth", "benchmark/sinks-fifth"
FLY, PAIR = "variants/fruitfly-h100", "variants/fruitfly-pair-h100"
LEVERS = "benchmark/fruitfly-h100"
TAKEN_APART = "analyze/fruitfly-h100, analyze/fruitfly-h100-seed2"
ON_TEXTS = "analyze/smollm2-135m-books, analyze/smollm2-135m-stdlib"
RELATED = "analyze/smollm2-135m-relations-books, analyze/smollm2-135m-relations-stdlib"
DOSED = "causal/smollm2-135m-books, causal/smollm2-135m-stdlib"
EXACT = "convert/smollm2-135m-leave-books, convert/smollm2-135m-leave-stdlib"
COMPRESSED = "compress/smollm2-135m-books, compress/smollm2-135m-stdlib"
BEST_WAY = "converted by=prefix+bound"

SIX_SEEDS = "variants/factor-and-bias"
SINKS_AND_BIAS, FLY_AND_BIAS = "variants/sinks-factor-and-bias", "variants/fruitfly-factor-and-bias"
MECHANISMS, VALUES = "variants/sinks-mechanisms", "variants/sinks-values"
GATE_AND_BIAS = "value_bias+context_scale"
PREDICTED = "94c831f"  # by theory/README.md, section 6
DISTILLED, GATED = "explicit/smollm2-135m", "gate_bias by=distilled"

RATE, LARGEST = "sink_rate@attn_weights", "top1_over_median@block_out"
KURTOSIS, PEAK = "neuron_rms_kurtosis@block_out", "residual_peak@block_out"
NOOP, BEST = Has("noop_sink", SINK_EPS), Has("noop_sink_best", SINK_EPS)
NO_NOOP, NO_BEST = (Has(each.measure, SINK_EPS, below=True) for each in (NOOP, BEST))
RATED, NO_RATE = Has(RATE, SINK_RATE_PRESENT), Has(RATE, SINK_RATE_ABSENT, below=True)
MOVES, NO_MOVES = Has("sink_effect", 0.1), Has("sink_effect", 0.1, below=True)
LARGE, MASSIVE = Has(LARGEST, 100.0), Has(LARGEST, 1000.0)  # this project's bound; Sun et al.'s
HARM = 0.01  # nats that are a loss
COPIES, VALID = Equal(("loss_bigram", "loss_copy")), Equal(("loss",))
ABC, BC = ("softmax", "value_bias", "context_bias"), ("value_bias", "context_bias")
DF = ("attention_bias", "sigmoid")


def forms(has: Has, *cells: str, equal: Equal | None = None) -> Share:
    """Of cells, where softmax has it too."""
    return Share(has, cells, control=Control(Has(has.measure, has.bound)), equal=equal)


def goes(has: Has, present: Has, *cells: str, equal: Equal | None = None) -> Share:
    """That cells have none, where softmax has it."""
    return Share(has, cells, control=Control(present), equal=equal)


def than(measure: str, one: str, other: str = "softmax", ratio: float = 0.0, below: bool = True,
          **more: object) -> Paired:  # fmt: skip
    """A measure of one cell below another's, or below a share of it; or above."""
    return Paired(measure, ((one, other),), ratio, below, bool(ratio), **more)  # type: ignore[arg-type]


def models(predicate: Predicate, records: str, **first: str) -> dict[str, Trial]:
    """In each published model, by its own records; `first`: of the first one's test."""
    return {
        PUBLISHED: Trial(predicate, records, **first),
        GEMMA: Trial(predicate, records.replace("smollm2-135m", "gemma3-270m")),
    }


def was(text: str) -> dict[str, str]:
    """Whether an earlier threshold is held or renewed, and which: fields of a test."""
    kind, _, name = text.partition(" ")
    return {kind: name}
