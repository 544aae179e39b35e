"""Claims decided by the smallest language model with sinks, of Python's source: a CPU's two hours.

Seeds are others than those of `ledger_levers`, whose record is of the same preset. Of that record
sinks had been seen when the thresholds were written here.
"""

from sysout_jax.core.measures import SINK_RATE_PRESENT

from .books import text_outliers_are_a_factor, text_removal_harms
from .claim import (
    AN,
    NEGLIGIBLE_NATS,
    WITH_SINKS,
    Record,
    Verdict,
    above,
    by_variant,
    claim,
    in_each,
    the_factor_can_be_made_explicit,
)

VARIANTS_OF, EXPLICIT = "variants/sinks", "explicit/sinks"
FIRST = "2026-11-27T03:04"  # UTC, when one seed of softmax had been seen
WRITTEN = "2026-11-27T06:30"  # UTC, before the first of these models was trained


@claim(
    "In a small model of source text, too, default attention and biases beside the values (a, b, "
    "c) keep attention outliers",
    f"{AN}, section 5", f"Sink_0(0.3) above {SINK_RATE_PRESENT} in each", VARIANTS_OF, FIRST,
)  # fmt: skip
def source_biases_keep_sinks(record: Record) -> Verdict:
    found = by_variant(record, "stdlib", "sink_rate@attn_weights", WITH_SINKS)
    return in_each(found, lambda x: above(x, SINK_RATE_PRESENT))


claim(
    "There, too, taking the attention outliers away harms the model",
    f"{AN}, section 4",
    f"more than {NEGLIGIBLE_NATS} nats without the first token and without a factor",
    EXPLICIT, WRITTEN, name="source_removal_harms",
)(text_removal_harms)  # fmt: skip


claim(
    "There, too, attention outliers are a factor and no more: S replaces the first token",
    f"{AN}, section 4; theory A1",
    f"less than {NEGLIGIBLE_NATS} nats with S in its place", EXPLICIT, WRITTEN,
    name="source_outliers_are_a_factor",
)(text_outliers_are_a_factor)  # fmt: skip


claim(
    "There, too, the factor can be made explicit without training: gates fitted to S",
    "this project", "as on Backcopy", EXPLICIT, WRITTEN, disputed=True,
    name="source_the_factor_can_be_made_explicit",
)(the_factor_can_be_made_explicit)  # fmt: skip
