"""Claims on causes, decided by doses: softmax models of three layers on Bigram-Backcopy, the fruit
fly's of books, and smaller ones of Python's source.

Changes are against the same model without the dose, and less those that as much does elsewhere, in
pairs of seeds. Thresholds were written before the first dose was given.
"""

from sysout_jax.analysis.intervene.dose_response import ACTIVATION, WEIGHT

from ..records.causal import specific
from .claim import AN, Record, Verdict, above, below, claim, together

WRITTEN = "2026-11-26T14:05"  # UTC
LATER = "2026-11-27T06:30"  # UTC, for the models of source
BACKCOPY, BOOKS, SOURCE = "causal/backcopy", "causal/fruitfly-h100", "causal/sinks"
FALLS = 0.1  # of attention to the first token, that counts as the sink going


@claim(
    "Weights make the activation outlier: it follows the row of W_down that writes most into the "
    "first token",
    f"{AN}, section 3", "the first token's max|h|/median falls when the row is taken away and "
    "rises when it is doubled, beyond as much elsewhere", BACKCOPY, WRITTEN,
)  # fmt: skip
def weights_cause_activations(record: Record) -> Verdict:
    gone, doubled = (specific(record["models"], WEIGHT, dose, "ratio") for dose in (0.0, 2.0))
    says = together([below(gone, 0.0), above(doubled, 0.0)])
    return Verdict(says, f"taken away {gone:.2f}, doubled {doubled:.2f}")


@claim(
    "Activation outliers make attention outliers: the sink goes with the first token's largest "
    "channel",
    f"{AN}, section 3; Sun et al. 2024", f"attention to it falls by more than {FALLS} when the "
    "channel is set to zero, beyond as much elsewhere", BACKCOPY, WRITTEN, disputed=True,
)  # fmt: skip
def activations_cause_sinks(record: Record) -> Verdict:
    found = specific(record["models"], ACTIVATION, 0.0, "attention")
    return Verdict(below(found, -FALLS), f"attention {found:.2f}")


@claim(
    "Weight outliers make attention outliers: the sink goes with the row of W_down",
    f"{AN}, section 3", f"attention to the first token falls by more than {FALLS} when the row "
    "is taken away, beyond as much elsewhere", BACKCOPY, WRITTEN, disputed=True,
)  # fmt: skip
def weights_cause_sinks(record: Record) -> Verdict:
    found = specific(record["models"], WEIGHT, 0.0, "attention")
    return Verdict(below(found, -FALLS), f"attention {found:.2f}")


claim(
    "The same in a language model: the activation outlier follows that row of W_down",
    f"{AN}, section 3", "as on Backcopy", BOOKS, WRITTEN,
    name="text_weights_cause_activations",
)(weights_cause_activations)  # fmt: skip


claim(
    "The same in a language model: the sink goes with the first token's largest channel",
    f"{AN}, section 3; Sun et al. 2024", "as on Backcopy", BOOKS, WRITTEN, disputed=True,
    name="text_activations_cause_sinks",
)(activations_cause_sinks)  # fmt: skip


claim(
    "The same in a language model: the sink goes with the row of W_down",
    f"{AN}, section 3", "as on Backcopy", BOOKS, WRITTEN, disputed=True,
    name="text_weights_cause_sinks",
)(weights_cause_sinks)  # fmt: skip


claim(
    "In a small model of source text, too, the activation outlier follows that row of W_down",
    f"{AN}, section 3", "as on Backcopy", SOURCE, LATER,
    name="source_weights_cause_activations",
)(weights_cause_activations)  # fmt: skip


claim(
    "In a small model of source text, too, the sink goes with the first token's largest channel",
    f"{AN}, section 3; Sun et al. 2024", "as on Backcopy", SOURCE, LATER, disputed=True,
    name="source_activations_cause_sinks",
)(activations_cause_sinks)  # fmt: skip


claim(
    "In a small model of source text, too, the sink goes with the row of W_down",
    f"{AN}, section 3", "as on Backcopy", SOURCE, LATER, disputed=True,
    name="source_weights_cause_sinks",
)(weights_cause_sinks)  # fmt: skip
