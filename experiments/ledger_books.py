"""Claims decided by a language model of books: what of the ledger's other tables carries over.

All thresholds are younger than their records: these rows describe, and a larger run will test them.
"""

from experiments.ledger import (
    AN,
    FREE,
    Record,
    Verdict,
    above,
    below,
    by_variant,
    claim,
    listed,
    measured,
    shown,
    together,
)
from sysout_jax.analysis.statistics import mean_interval

RATE = 0.1  # of heads and layers whose first key takes more than 0.3: a sink in the model
LAST = 20  # rows of 50 steps each over which training losses are averaged


@claim(
    "The same in a language model: softmax develops attention outliers",
    f"{AN}, section 3", f"Sink_0(0.3) above {RATE}", "variants/books-h100", "2026-11-26",
)  # fmt: skip
def text_attention_outliers_form(record: Record) -> Verdict:
    found = measured(record, "books", "softmax", "sink_rate@attn_weights")
    return Verdict(above(found, RATE), f"Sink rate {shown(found)}")


@claim(
    "The same in a language model: an explicit factor and sigmoid attention (e, f) have none",
    f"{AN}, section 5", "Sink_0(0.3) below 0.02 in each", "variants/books-h100", "2026-11-26",
)  # fmt: skip
def text_explicit_factors_remove_sinks(record: Record) -> Verdict:
    found = by_variant(record, "books", "sink_rate@attn_weights", ("context_scale", "sigmoid"))
    return Verdict(together([below(x, 0.02) for x in found.values()]), listed(found, 3))


@claim(
    "Large activations go with the attention outliers when the factor is explicit",
    f"{AN}, section 5", "max/median of |h| with (e) below half of softmax's, pairs of seeds",
    "variants/books-h100", "2026-11-26", disputed=True,
)  # fmt: skip
def text_factor_removes_large_activations(record: Record) -> Verdict:
    variants = record["studies"][0]["variants"]
    softmax, factor = (
        variants[name]["measured"]["measures"]["top1_over_median@block_out"][-1]
        for name in ("softmax", "context_scale")
    )
    share = mean_interval([e / a for e, a in zip(factor, softmax, strict=True)])
    return Verdict(below(share, 0.5), f"{shown(share)} of softmax's")


@claim(
    "In a language model, an explicit factor learns faster at the same rate",
    f"{AN}, section 6", "training loss of the last 1,000 steps below softmax's, pairs of seeds",
    "variants/books-h100", "2026-11-26",
)  # fmt: skip
def text_learns_faster(record: Record) -> Verdict:
    variants = record["studies"][0]["variants"]
    softmax, factor = (
        [sum(row[seed] for row in variants[name]["curve"]["loss"][-LAST:]) / LAST
         for seed in range(len(record["studies"][0]["config"]["seeds"]))]
        for name in ("softmax", "context_scale")
    )  # fmt: skip
    found = mean_interval([e - a for e, a in zip(factor, softmax, strict=True)])
    return Verdict(below(found, 0.0), f"{shown(found, 3)} nats")


def _cheaper(record: Record, method: str) -> Verdict:
    """Whether the explicit factor loses less than softmax, pairs of seeds."""
    lost = {
        (model["variant"], model["seed"]): model["methods"][method]["change"][0]
        for model in record["models"]
    }
    seeds = [seed for name, seed in lost if name == "softmax"]
    found = mean_interval([lost["context_scale", s] - lost["softmax", s] for s in seeds])
    return Verdict(below(found, 0.0), f"{shown(found, 3)} nats")


@claim(
    "In a language model, an explicit factor quantises better (W4A4)",
    f"{AN}, section 6", "the loss rises less than softmax's, 95% over pairs of seeds",
    "compress/books-h100", "2026-11-26",
)  # fmt: skip
def text_quantises_better(record: Record) -> Verdict:
    return _cheaper(record, "w4a4")


@claim(
    "In a language model, an explicit factor prunes better (half of each matrix by magnitude)",
    f"{AN}, section 6", "the loss rises less than softmax's, 95% over pairs of seeds",
    "compress/books-h100", "2026-11-26",
)  # fmt: skip
def text_prunes_better(record: Record) -> Verdict:
    return _cheaper(record, "magnitude-0.5")


@claim(
    "In a language model, attention outliers are a factor and no more: S replaces the first token",
    f"{AN}, section 4; theory A1", f"less than {FREE} nats with S in its place",
    "explicit/books-h100", "2026-11-26",
)  # fmt: skip
def text_outliers_are_a_factor(record: Record) -> Verdict:
    found = mean_interval([model["forms"]["factor"]["change"][0] for model in record["models"]])
    exact = mean_interval([model["forms"]["extra_key"]["change"][0] for model in record["models"]])
    numbers = f"{shown(found, 3)} nats; with key and value as parameters {shown(exact, 3)}"
    return Verdict(below(found, FREE), numbers)
