"""The ledger: every claim about outliers that records can decide, or could.

A claim is one decorated function from its record to a verdict. Its threshold is in words beside it
and in numbers in the function, with the day, or the time in UTC, at which it was written: a record
that is older did not test a prediction, and the table says so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sysout_jax.analysis.statistics import Interval, mean_interval
from sysout_jax.core.attention import PAPER, VARIANTS

HOLDS, FAILS, UNDECIDED = "holds", "fails", "not decided"
AN = "An et al. 2025 (arXiv:2502.06415)"
SINK = 0.3  # attention to the first token above which it is a sink (Gu et al. 2025)
MASSIVE = 100.0  # max/median of |h|: this project's bound; Sun et al. 2024 ask for 1,000
WEIGHT = 1000.0  # max/mean of |W_down| (An et al. 2025)
NEGLIGIBLE_NATS = 0.01  # nats per token that are no loss
EQUAL = 0.05  # nats of loss within which models are of equal loss
WITH_SINKS, WITHOUT = PAPER[:3], PAPER[3:]
Record = dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """What a record says of a claim, and the numbers that say it."""

    says: str
    numbers: str


class Unmeasured(Exception):
    """A record does not have yet what a claim is decided by; the message says what."""


@dataclass(frozen=True)
class Claim:
    """A row of the ledger."""

    name: str
    statement: str
    source: str
    disputed: bool  # whether other works dispute it, or it comes from them
    threshold: str
    written: str  # 2026-11-26, or 2026-11-26T02:01:29Z: when the threshold was
    record: str  # below results/
    decide: Callable[[Record], Verdict]


_table: dict[str, Claim] = {}


def claim(
    statement: str,
    source: str,
    threshold: str,
    record: str,
    written: str,
    disputed: bool = False,
    name: str | None = None,
) -> Callable[[Callable[[Record], Verdict]], Callable[[Record], Verdict]]:
    """Enter the decorated function in the ledger under its own name, or, where it decides by
    another record too, under the given one."""

    def enter(decide: Callable[[Record], Verdict]) -> Callable[[Record], Verdict]:
        own = name or decide.__name__
        _table[own] = Claim(own, statement, source, disputed, threshold, written, record, decide)
        return decide

    return enter


# --------------------------------------------------------------------- reading records


def measured(record: Record, study: str, variant: str, measure: str) -> Interval:
    """A measure at the end of training, over seeds."""
    (found,) = [each for each in record["studies"] if each["name"] == study]
    return mean_interval(found["variants"][variant]["measured"]["measures"][measure][-1])


def above(found: Interval, threshold: float) -> str:
    """Whether a quantity is above a threshold: holds, fails, or the interval has it inside."""
    if found.low > threshold:
        return HOLDS
    return FAILS if found.high < threshold else UNDECIDED


def below(found: Interval, threshold: float) -> str:
    """Whether it is below."""
    return {HOLDS: FAILS, FAILS: HOLDS}.get(above(found, threshold), UNDECIDED)


def formed(found: Interval, threshold: float, what: str, digits: int = 0) -> Verdict:
    """Whether it is above; what is below at these sizes is absent, and not refuted."""
    says = above(found, threshold)
    numbers = f"{what} {found:.{digits}f}"
    if says == FAILS:
        return Verdict(UNDECIDED, f"{numbers}: none at this size")
    return Verdict(says, numbers)


def smaller(one: Interval, other: Interval) -> str:
    """Whether the first is the smaller, intervals apart."""
    if one.high < other.low:
        return HOLDS
    return FAILS if one.low > other.high else UNDECIDED


def together(verdicts: Sequence[str]) -> str:
    """All must hold; one that fails decides."""
    if FAILS in verdicts:
        return FAILS
    return HOLDS if set(verdicts) == {HOLDS} else UNDECIDED


def at_equal_loss(says: str, cost: float) -> str:
    """What is so at a loss that differs by more than `EQUAL` is not decided, unless it fails."""
    return UNDECIDED if abs(cost) > EQUAL and says != FAILS else says


def by_variant(
    record: Record, study: str, measure: str, names: Sequence[str]
) -> dict[str, Interval]:
    """A measure of several variants."""
    return {name: measured(record, study, name, measure) for name in names}


def listed(found: Mapping[str, Interval], digits: int = 2) -> str:
    """Several of them, by the paper's letters."""
    return ", ".join(f"({VARIANTS[n].letter}) {x:.{digits}f}" for n, x in found.items())


def in_each(
    found: Mapping[str, Interval], says: Callable[[Interval], str], digits: int = 2
) -> Verdict:
    """Whether it is so of every variant, and the numbers of each."""
    return Verdict(together([says(each) for each in found.values()]), listed(found, digits))


def cost_of_form(record: Record, form: str) -> Interval:
    """What an explicit form loses at once, over models."""
    return mean_interval([model["forms"][form]["change"][0] for model in record["models"]])


# ------------------------------------------------------------------ the claims of the paper


@claim(
    "Softmax attention develops attention outliers: one early token takes most of the attention",
    f"{AN}, section 3", f"no-op queries give the first token more than {SINK}", "variants/demo",
    "2026-11-26",
)  # fmt: skip
def attention_outliers_form(record: Record) -> Verdict:
    found = measured(record, "backcopy", "softmax", "noop_sink")
    return Verdict(above(found, SINK), f"attention {found:.2f}")


@claim(
    "Softmax models develop activation outliers in the residual stream",
    f"{AN}, section 3; Sun et al. 2024", f"max/median of |h| above {MASSIVE:g}", "variants/demo",
    "2026-11-26",
)  # fmt: skip
def activation_outliers_form(record: Record) -> Verdict:
    found = measured(record, "backcopy", "softmax", "top1_over_median@block_out")
    return formed(found, MASSIVE, "max/median")


@claim(
    "Softmax models develop weight outliers in the down projection",
    f"{AN}, section 3", f"max/mean of |W_down| above {WEIGHT:g}", "variants/demo", "2026-11-26",
)  # fmt: skip
def weight_outliers_form(record: Record) -> Verdict:
    found = measured(record, "backcopy", "softmax", "weight_ratio@down")
    return formed(found, WEIGHT, "max/mean")


@claim(
    "Default attention, value bias and context-aware bias (a, b, c) keep attention outliers",
    f"{AN}, section 5", f"no-op queries give the first token more than {SINK} in each",
    "variants/demo", "2026-11-26",
)  # fmt: skip
def biases_keep_sinks(record: Record) -> Verdict:
    found = by_variant(record, "backcopy", "noop_sink", WITH_SINKS)
    return in_each(found, lambda x: above(x, SINK))


@claim(
    "Attention bias, an explicit factor and sigmoid attention (d, e, f) have no attention outliers",
    f"{AN}, section 5", f"no-op queries give the first token less than {SINK} in each",
    "variants/demo", "2026-11-26",
)  # fmt: skip
def explicit_factors_remove_sinks(record: Record) -> Verdict:
    found = by_variant(record, "backcopy", "noop_sink", WITHOUT)
    return in_each(found, lambda x: below(x, SINK))


@claim(
    "The outlier token's value is drained where it takes the attention (a, b, c)",
    "Gu et al. 2025 (arXiv:2410.10781); Guo et al. 2024 (arXiv:2410.13835)",
    "norm of its value below half of the others' mean in each", "variants/demo", "2026-11-26",
)  # fmt: skip
def values_of_sinks_drain(record: Record) -> Verdict:
    found = by_variant(record, "backcopy", "value_drain@value", WITH_SINKS)
    return in_each(found, lambda x: below(x, 0.5))


@claim(
    "Attention with a drained outlier is attention over the other tokens times a factor S",
    f"{AN}, section 4; theory A1", "the identity to 1e-12 in float64, and not without the outlier",
    "theory", "2026-11-25",
)  # fmt: skip
def outliers_are_a_factor(record: Record) -> Verdict:
    (check,) = [each for each in record["checks"] if each["id"] == "A1"]
    says = HOLDS if check["passed"] else FAILS
    return Verdict(says, f"error {check['max_error']:.1e} over {check['instances']:,} heads")


@claim(
    "The factor is context-aware: the explicit one closes where there is nothing to do",
    f"{AN}, sections 4 and 5", "mean factor of (e) on no-op queries below half of the others'",
    "variants/demo", "2026-11-26",
)  # fmt: skip
def the_factor_sees_the_context(record: Record) -> Verdict:
    idle, active = (
        measured(record, "backcopy", "context_scale", name) for name in ("gate_noop", "gate_active")
    )
    half = Interval(*(0.5 * value for value in active))
    return Verdict(smaller(idle, half), f"{idle:.2f} against {active:.2f}")


def _effects(record: Record, treatment: str) -> Interval:
    (found,) = [
        effect for effect in record["parts"]["interventions"]["effects"]
        if (effect["kind"], effect["detector"]) == ("attention", "an_attention")
        and effect["treatment"] == treatment and not effect["control"]
    ]  # fmt: skip
    return Interval(*found["change"])


@claim(
    "Taking the attention outliers away harms the model",
    f"{AN}, section 4", f"more than {NEGLIGIBLE_NATS} nats when rows are brought to one again",
    "analyze/backcopy", "2026-11-26",
)  # fmt: skip
def removal_harms(record: Record) -> Verdict:
    found = _effects(record, "removed, rows renormalised")
    return Verdict(above(found, NEGLIGIBLE_NATS), f"{found:.3f} nats, 95% over sequences, one seed")


@claim(
    "Putting the factor S in their place does not",
    f"{AN}, section 4", f"less than {NEGLIGIBLE_NATS} nats with S",
    "analyze/backcopy", "2026-11-26",
)  # fmt: skip
def the_factor_replaces_them(record: Record) -> Verdict:
    found = _effects(record, "removed, rescaled by S")
    return Verdict(below(found, NEGLIGIBLE_NATS), f"{found:.3f} nats, 95% over sequences, one seed")


def _compressed(record: Record, method: str) -> dict[str, Interval]:
    found: dict[str, list[float]] = {}
    for model in record["models"]:
        found.setdefault(model["variant"], []).append(model["methods"][method]["change"][0])
    return {name: mean_interval(found[name]) for name in PAPER if name in found}


def _cheaper(record: Record, method: str) -> Verdict:
    """Whether the explicit factor loses less than softmax, unpaired intervals apart."""
    found = _compressed(record, method)
    softmax, factor = found["softmax"], found["context_scale"]
    return Verdict(smaller(factor, softmax), f"(a) {softmax:.4f}, (e) {factor:.4f} nats")


@claim(
    "Models with an explicit factor quantise better (W8A8, one scale per tensor)",
    f"{AN}, section 6", "the 95% intervals of the loss's change are apart",
    "compress/backcopy", "2026-11-26",
)  # fmt: skip
def quantises_better(record: Record) -> Verdict:
    return _cheaper(record, "w8a8-tensor")


@claim(
    "Models with an explicit factor prune better (half of each matrix by magnitude)",
    f"{AN}, section 6", "the 95% intervals of the loss's change are apart",
    "compress/backcopy", "2026-11-26",
)  # fmt: skip
def prunes_better(record: Record) -> Verdict:
    return _cheaper(record, "magnitude-0.5")


@claim(
    "Models with an explicit factor converge faster",
    f"{AN}, section 6",
    "at its best learning rate, the loss is below softmax's at the end, 95% over pairs of seeds, "
    "and on average through the last third", "convergence/backcopy", "2026-11-26",
)  # fmt: skip
def converges_faster(record: Record) -> Verdict:
    compared = record["compared"]["variants"]["context_scale"]
    found, since = Interval(*compared["difference"]), compared["since"]
    says = below(found, 0.0)
    if says == HOLDS and since > record["config"]["steps"] * 2 / 3:
        says = UNDECIDED
    return Verdict(says, f"{found:.4f} nats, of one sign since step {since:g}")


@claim(
    "On source text, models with an explicit factor converge faster at their best learning rate",
    f"{AN}, section 6", "the same as on Backcopy", "convergence/stdlib-tuned",
    "2026-11-26T02:01:29Z",
)  # fmt: skip
def text_converges_faster(record: Record) -> Verdict:
    return converges_faster(record)


# ------------------------------------------------------- what other works add, or dispute


@claim(
    "Attention sinks need massive activations", "Sun et al. 2024 (arXiv:2402.17762)",
    f"fails where sinks are above {SINK} and max/median of |h| is below {MASSIVE:g}",
    "variants/demo", "2026-11-26", disputed=True,
)  # fmt: skip
def sinks_need_massive_activations(record: Record) -> Verdict:
    sink = measured(record, "backcopy", "softmax", "noop_sink")
    peak = measured(record, "backcopy", "softmax", "top1_over_median@block_out")
    without = above(sink, SINK) == HOLDS and below(peak, MASSIVE) == HOLDS
    return Verdict(
        FAILS if without else UNDECIDED, f"attention {sink:.2f} at max/median {peak:.0f}"
    )


@claim(
    "A trained model's implicit factor can be made explicit without training: gates fitted to S",
    "this project",
    f"a fitted gate costs less than {NEGLIGIBLE_NATS} nats, and less than a constant factor",
    "explicit/backcopy", "2026-11-26", disputed=True,
)  # fmt: skip
def the_factor_can_be_made_explicit(record: Record) -> Verdict:
    gate, constant = (cost_of_form(record, form) for form in ("gate", "constant"))
    says = together(
        [below(gate, NEGLIGIBLE_NATS), HOLDS if gate.high < constant.low else UNDECIDED]
    )
    return Verdict(says, f"gate {gate:.3f}, constant {constant:.3f} nats")


LEDGER: Mapping[str, Claim] = MappingProxyType(_table)
