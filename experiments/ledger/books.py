"""Claims decided by the fruit fly, a language model of books: what of other tables carries over.

Most thresholds were written for the same models with learned positions, whose record is
results/variants/books-h100, before the first fruit fly was trained: what held there is predicted.
Softmax and the factor were trained again, with other seeds, to decide what three had left open.
"""

from sysout_jax.analysis.statistics import Interval, mean_interval
from sysout_jax.core.measures import SINK_RATE_ABSENT, SINK_RATE_PRESENT

from .claim import (
    AN,
    FAILS,
    HOLDS,
    MASSIVE,
    NEGLIGIBLE_NATS,
    UNDECIDED,
    WITH_SINKS,
    WITHOUT,
    Record,
    Verdict,
    above,
    below,
    by_variant,
    claim,
    cost_of_form,
    in_each,
    listed,
    measured,
)

VARIANTS_OF, ANALYZED, COMPRESSED, EXPLICIT = (
    f"{name}/fruitfly-h100" for name in ("variants", "analyze", "compress", "explicit")
)
PAIR = "variants/fruitfly-pair-h100"  # softmax and the factor alone, five other seeds
MOST = f"{ANALYZED}-seed2"  # of the two seeds taken apart, the one that is above MASSIVE
FIRST = "2026-11-26T01:54"  # UTC, when those of Backcopy were written that are used here again
BEFORE = "2026-11-26T10:34"  # UTC; the record was begun at 17:09
AFTER = "2026-11-26T17:40"
LATE = "2026-11-26T21:50"
RENEWED = "2026-11-27T07:06"  # UTC, when four seeds had been seen: one had decided before
UNTOUCHED = 1e-6  # nats: what float32 rounds; a treatment of less changes nothing
LAST = 1000  # steps over which training losses are averaged


@claim(
    "The same in a language model: softmax develops attention outliers",
    f"{AN}, section 3", f"Sink_0(0.3) above {SINK_RATE_PRESENT}", PAIR, BEFORE,
)  # fmt: skip
def text_attention_outliers_form(record: Record) -> Verdict:
    found = measured(record, "books", "softmax", "sink_rate@attn_weights")
    return Verdict(above(found, SINK_RATE_PRESENT), f"Sink rate {found:.2f}")


@claim(
    "The same in a language model: softmax develops activation outliers",
    f"{AN}, section 3; Sun et al. 2024", f"max/median of |h| above {MASSIVE:g}", PAIR, AFTER,
)  # fmt: skip
def text_activation_outliers_form(record: Record) -> Verdict:
    found = measured(record, "books", "softmax", "top1_over_median@block_out")
    return Verdict(above(found, MASSIVE), f"max/median {found:.0f}")


@claim(
    "The same in a language model: biases beside the values (b, c) keep attention outliers",
    f"{AN}, section 5", f"Sink_0(0.3) above {SINK_RATE_PRESENT} in each", VARIANTS_OF, AFTER,
)  # fmt: skip
def text_biases_keep_sinks(record: Record) -> Verdict:
    found = by_variant(record, "books", "sink_rate@attn_weights", WITH_SINKS[1:])
    return in_each(found, lambda x: above(x, SINK_RATE_PRESENT))


@claim(
    "The same in a language model: an explicit factor and sigmoid attention (e, f) have none",
    f"{AN}, section 5", f"Sink_0(0.3) below {SINK_RATE_ABSENT} in each", VARIANTS_OF, BEFORE,
)  # fmt: skip
def text_explicit_factors_remove_sinks(record: Record) -> Verdict:
    found = by_variant(record, "books", "sink_rate@attn_weights", ("context_scale", "sigmoid"))
    return in_each(found, lambda x: below(x, SINK_RATE_ABSENT), digits=3)


@claim(
    "Large activations go with the attention outliers when the factor is explicit",
    f"{AN}, section 5", "max/median of |h| with (e) below half of softmax's, pairs of seeds",
    PAIR, BEFORE, disputed=True,
)  # fmt: skip
def text_factor_removes_large_activations(record: Record) -> Verdict:
    variants = record["studies"][0]["variants"]
    softmax, factor = (
        variants[name]["measured"]["measures"]["top1_over_median@block_out"][-1]
        for name in ("softmax", "context_scale")
    )
    share = mean_interval([e / a for e, a in zip(factor, softmax, strict=True)])
    return Verdict(below(share, 0.5), f"{share:.2f} of softmax's")


@claim(
    "In a language model, an explicit factor learns faster at the same rate",
    f"{AN}, section 6", "training loss of the last 1,000 steps below softmax's, pairs of seeds",
    PAIR, BEFORE,
)  # fmt: skip
def text_learns_faster(record: Record) -> Verdict:
    variants = record["studies"][0]["variants"]
    softmax, factor = (_last(variants[name]["curve"]) for name in ("softmax", "context_scale"))
    found = mean_interval([e - a for e, a in zip(factor, softmax, strict=True)])
    return Verdict(below(found, 0.0), f"{found:.3f} nats")


def _last(curve: Record) -> list[float]:
    """Training loss of each seed, the mean over the last `LAST` steps."""
    rows = [
        loss for step, loss in zip(curve["step"], curve["loss"], strict=True)
        if step > curve["step"][-1] - LAST
    ]  # fmt: skip
    return [sum(seed) / len(rows) for seed in zip(*rows, strict=True)]


def _cheaper(record: Record, method: str) -> Verdict:
    """Whether the explicit factor loses less than softmax, pairs of seeds."""
    lost = {
        (model["variant"], model["seed"]): model["methods"][method]["change"][0]
        for model in record["models"]
    }
    seeds = [seed for name, seed in lost if name == "softmax"]
    found = mean_interval([lost["context_scale", s] - lost["softmax", s] for s in seeds])
    return Verdict(below(found, 0.0), f"{found:.3f} nats")


@claim(
    "In a language model, an explicit factor quantises better (W4A4)",
    f"{AN}, section 6", "the loss rises less than softmax's, 95% over pairs of seeds",
    COMPRESSED, BEFORE,
)  # fmt: skip
def text_quantises_better(record: Record) -> Verdict:
    return _cheaper(record, "w4a4")


@claim(
    "In a language model, an explicit factor prunes better (half of each matrix by magnitude)",
    f"{AN}, section 6", "the loss rises less than softmax's, 95% over pairs of seeds",
    COMPRESSED, BEFORE,
)  # fmt: skip
def text_prunes_better(record: Record) -> Verdict:
    return _cheaper(record, "magnitude-0.5")


@claim(
    "In a language model, attention outliers are a factor and no more: S replaces the first token",
    f"{AN}, section 4; theory A1", f"less than {NEGLIGIBLE_NATS} nats with S in its place",
    EXPLICIT, BEFORE,
)  # fmt: skip
def text_outliers_are_a_factor(record: Record) -> Verdict:
    found = cost_of_form(record, "factor")
    return Verdict(below(found, NEGLIGIBLE_NATS), f"{found:.3f} nats")


@claim(
    "In a language model, taking the attention outliers away harms",
    f"{AN}, section 4",
    f"more than {NEGLIGIBLE_NATS} nats without the first token and without a factor",
    EXPLICIT, RENEWED,
)  # fmt: skip
def text_removal_harms(record: Record) -> Verdict:
    found = cost_of_form(record, "dropped")
    return Verdict(above(found, NEGLIGIBLE_NATS), f"{found:.3f} nats")


@claim(
    "The last layers write the negative of the outliers into the residual stream",
    f"{AN}, section 3", "cosine of write and residual below -0.9 in a model of 4 layers or more",
    ANALYZED, FIRST,
)  # fmt: skip
def last_layers_remove_them(record: Record) -> Verdict:
    life = record["parts"]["lifecycle"]
    if life["disappearance"] is None:
        return Verdict(UNDECIDED, "the largest channel is never removed")
    cosine = life["disappearance"]["cosine"]
    refuted = FAILS if life["outlier"] else UNDECIDED
    what = "" if life["outlier"] else ", of a channel that no detector calls an outlier"
    return Verdict(HOLDS if cosine < -0.9 else refuted, f"cosine {cosine:.2f}{what}, one seed")


@claim(
    "Sinks can go while massive activations stay",
    "Bondarenko et al. 2023; Qiu et al. 2025 (arXiv:2505.06708)",
    f"max/median above {MASSIVE:g} with one of d, e, f, which have no sinks", VARIANTS_OF, FIRST,
    disputed=True,
)  # fmt: skip
def massive_without_sinks(record: Record) -> Verdict:
    found = by_variant(record, "books", "top1_over_median@block_out", WITHOUT)
    some = any(above(each, MASSIVE) == HOLDS for each in found.values())
    return Verdict(HOLDS if some else UNDECIDED, f"max/median {listed(found, 0)}")


def _shared(record: Record, given: str, found: str) -> Verdict:
    """Whether outliers of one kind are where those of another are, more than by chance. How many
    there are is kept by the permutations, so that recall is above its null where precision is."""
    (row,) = [
        row for row in record["parts"]["relations"]["rows"]
        if (row["given"], row["found"]) == (given, found)
    ]  # fmt: skip
    if not row["sequences"]:
        a_sequence = f"{given} {row['mean_given']:.1f}, {found} {row['mean_found']:.1f}"
        return Verdict(UNDECIDED, f"flagged {row['on']} a sequence: {a_sequence}; never both")
    precision = Interval(*row["precision"])
    says = above(precision, row["null_precision"])
    return Verdict(says, f"precision {precision:.2f}, by chance {row['null_precision']:.2f}")


@claim(
    "Weight outliers and activation outliers share their features",
    f"{AN}, table 1",
    "precision and recall above their permutation null, on a model that has both", MOST, FIRST,
)  # fmt: skip
def weights_make_activations(record: Record) -> Verdict:
    return _shared(record, "weights", "activations")


@claim(
    "Activation outliers and attention outliers share their tokens",
    f"{AN}, table 1",
    "precision and recall above their permutation null, on a model that has both", MOST, FIRST,
)  # fmt: skip
def activations_make_attention(record: Record) -> Verdict:
    return _shared(record, "activations", "attention")


def _largest(record: Record, treatment: str) -> tuple[Interval, float]:
    """What a treatment of the largest activation costs, and how large it is: max/median."""
    site = record["parts"]["positions"]["sites"]["block_out"]
    ratio = max(top[0] / median for top, median in zip(site["top"], site["median"], strict=True))
    (change,) = [
        Interval(*effect["change"]) for effect in record["parts"]["interventions"]["effects"]
        if (effect["kind"], effect["detector"]) == ("activations", "largest")
        and effect["treatment"] == treatment and not effect["control"]
    ]  # fmt: skip
    return change, ratio


@claim(
    "Setting massive activations to their mean is harmless",
    "Sun et al. 2024 (arXiv:2402.17762)",
    f"less than {NEGLIGIBLE_NATS} nats, on a model that has them",
    MOST, FIRST, disputed=True,
)  # fmt: skip
def set_to_mean(record: Record) -> Verdict:
    change, ratio = _largest(record, "set to mean")
    edited = max(abs(change.low), abs(change.high)) > UNTOUCHED
    says = below(change, NEGLIGIBLE_NATS) if ratio > MASSIVE and edited else UNDECIDED
    what = "one seed" if edited else "of BOS, whose state is its mean in every text; one seed"
    return Verdict(says, f"{change:.4f} nats at max/median {ratio:.0f}, {what}")


@claim(
    "Every massive activation is critical: a model without it is worse",
    "Sun et al. 2024 (arXiv:2402.17762), disputed by Owen et al. 2025 (arXiv:2503.22329)",
    f"more than {NEGLIGIBLE_NATS} nats when the largest is set to zero, on a model that has them",
    MOST, LATE, disputed=True,
)  # fmt: skip
def massive_activations_are_critical(record: Record) -> Verdict:
    change, ratio = _largest(record, "set to zero")
    says = above(change, NEGLIGIBLE_NATS) if ratio > MASSIVE else UNDECIDED
    return Verdict(says, f"{change:.4f} nats at max/median {ratio:.0f}, one seed")
