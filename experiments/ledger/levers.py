"""Claims on what makes outliers in a language model, decided by the benchmark's two presets that
have them: the fruit fly (books) and, for sinks alone, a smaller one (Python's source).

One thing is changed: variant, style, text, context, optimiser, norm; in LLaMA's style the variant
too. Seeds are paired with those of softmax with nothing changed, or nothing but the style.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise

from sysout_jax.analysis.statistics import Interval, mean_interval
from sysout_jax.core.measures import SINK_RATE_ABSENT, SINK_RATE_PRESENT

from ..records.benchmark import cell_of
from .claim import (
    AN,
    EQUAL,
    HOLDS,
    MASSIVE,
    UNDECIDED,
    WITHOUT,
    Record,
    Unmeasured,
    Verdict,
    above,
    at_equal_loss,
    below,
    claim,
    together,
)

LEVERS, SOURCE = "benchmark/fruitfly-h100", "benchmark/sinks"
CONTEXTS = f"{SOURCE}-contexts"
WRITTEN = "2026-11-27T02:13"  # UTC, before the first cell of the fruit fly was trained
LATER = "2026-11-27T03:04"  # UTC, when one seed of softmax had been seen in the smaller preset
LAST = "2026-11-27T06:30"  # UTC, before rows of one length were measured on
SINKS, LARGEST = "sink_rate@attn_weights", "top1_over_median@block_out"
KURTOSIS = "neuron_rms_kurtosis@block_out"


def _cell(record: Record, **moved: str) -> Record:
    """The cell that differs from softmax with nothing changed in what is given.

    Raises:
      Unmeasured: the record does not have it, or it diverged.
    """
    found, name = cell_of(record, **moved), " ".join(["the cell", *moved.values()])
    if found is None:
        raise Unmeasured(name)
    if "diverged" in found:
        raise Unmeasured(f"{name}, which diverged")
    return found


def _measured(cell: Record, measure: str) -> Interval:
    return mean_interval(cell["measures"][measure])


def _more(measure: str, one: Record, other: Record) -> Interval:
    """How much more there is of a measure in one cell than in another, pairs of seeds."""
    pairs = zip(one["measures"][measure], other["measures"][measure], strict=True)
    return mean_interval([a - b for a, b in pairs])


def _share(one: Record, other: Record) -> Interval:
    """max/median of |h| in one cell, of another's."""
    pairs = zip(one["measures"][LARGEST], other["measures"][LARGEST], strict=True)
    return mean_interval([a / b for a, b in pairs])


def _costs(one: Record, other: Record) -> Interval:
    """Validation loss of one cell above another's."""
    pairs = zip(one["val_loss"][-1], other["val_loss"][-1], strict=True)
    return mean_interval([a - b for a, b in pairs])


@claim(
    "In a language model, gates on values remove spikes and keep sinks",
    "Qiu et al. 2025 (arXiv:2505.06708)",
    f"max/median below half of softmax's, pairs of seeds; Sink_0(0.3) above {SINK_RATE_PRESENT}",
    LEVERS, WRITTEN, disputed=True,
)  # fmt: skip
def text_value_gates(record: Record) -> Verdict:
    gate = _cell(record, variant="value_gate")
    share, sinks = _share(gate, _cell(record)), _measured(gate, SINKS)
    says = together([below(share, 0.5), above(sinks, SINK_RATE_PRESENT)])
    return Verdict(says, f"{share:.2f} of softmax's max/median; Sink rate {sinks:.2f}")


def _in_llamas_style(record: Record, variant: str) -> tuple[Interval, Interval]:
    """A variant's share of softmax's max/median there, and softmax's."""
    softmax = _cell(record, setting="llama")
    moved = _cell(record, variant=variant, setting="llama")
    return _share(moved, softmax), _measured(softmax, LARGEST)


@claim(
    "Attention bias (d), which removes large activations in GPT-2's style, fails in LLaMA's",
    "Owen et al. 2025 (arXiv:2503.22329)",
    "max/median with (d) above half of softmax's in LLaMA's style, pairs of seeds, where softmax's "
    f"is above {MASSIVE:g}", LEVERS, WRITTEN, disputed=True,
)  # fmt: skip
def text_attention_bias_fails_on_llama(record: Record) -> Verdict:
    share, largest = _in_llamas_style(record, "attention_bias")
    says = above(share, 0.5) if above(largest, MASSIVE) == HOLDS else UNDECIDED
    return Verdict(says, f"{share:.2f} of softmax's {largest:.0f}")


@claim(
    "In LLaMA's style, too, an explicit factor removes large activations",
    f"{AN}, section 5",
    "max/median with (e) below half of softmax's, pairs of seeds, where softmax's is above "
    f"{MASSIVE:g}", LEVERS, WRITTEN,
)  # fmt: skip
def text_llama_factor_removes_large_activations(record: Record) -> Verdict:
    share, largest = _in_llamas_style(record, "context_scale")
    says = below(share, 0.5) if above(largest, MASSIVE) == HOLDS else UNDECIDED
    return Verdict(says, f"{share:.2f} of softmax's {largest:.0f}")


@claim(
    "In LLaMA's style, too, softmax develops attention outliers",
    f"{AN}, section 3", f"Sink_0(0.3) above {SINK_RATE_PRESENT}", LEVERS, WRITTEN,
)  # fmt: skip
def text_llama_attention_outliers_form(record: Record) -> Verdict:
    return _keep(record, {"setting": "llama"})


@claim(
    "In a language model, less text makes fewer sinks",
    "Gu et al. 2025 (arXiv:2410.10781)",
    "Sink_0(0.3) lower with a 32nd of the tokens shown 32 times than with all, pairs of seeds",
    LEVERS, WRITTEN, disputed=True,
)  # fmt: skip
def text_repeated_makes_fewer_sinks(record: Record) -> Verdict:
    repeated, usual = _cell(record, setting="repeated"), _cell(record)
    change = _more(SINKS, repeated, usual)
    cost = f"{_costs(repeated, usual):.3f}"
    return Verdict(below(change, 0.0), f"Sink rate {change:.2f} more, at {cost} nats more")


@claim(
    "In a language model, longer contexts make stronger sinks",
    "Barbero et al. 2025 (arXiv:2504.02732)",
    "Sink_0(0.3) higher than with a quarter of the context and as many tokens a step, pairs of "
    "seeds, each on rows of its own length", LEVERS, WRITTEN, disputed=True,
)  # fmt: skip
def text_longer_contexts_make_stronger_sinks(record: Record) -> Verdict:
    quarter = _cell(record, setting="quarter_context")
    change = _more(SINKS, _cell(record), quarter)
    text = f"Sink rate {change:.2f} more than the {_measured(quarter, SINKS):.2f} of T / 4"
    return Verdict(above(change, 0.0), text)


@claim(
    "In a language model, Adam makes large activations and Muon does not",
    "Kaul et al. 2024 (arXiv:2410.17174); Park et al. 2025 (arXiv:2506.19697)",
    f"max/median with Muon below half of AdamW's, pairs of seeds, at a loss no more than {EQUAL} "
    "nats above it", LEVERS, WRITTEN, disputed=True,
)  # fmt: skip
def text_optimisers(record: Record) -> Verdict:
    muon, adamw = _cell(record, optimizer="muon"), _cell(record)
    share, cost = _share(muon, adamw), _costs(muon, adamw)
    says = at_equal_loss(below(share, 0.5), max(0.0, cost.mean))
    return Verdict(says, f"{share:.2f} of AdamW's, at {cost:.3f} nats more")


@claim(
    "In a language model, outliers against weight decay are an inverted U",
    "Gu et al. 2025 (arXiv:2410.10781)",
    "Sink_0(0.3) at a decay of 0.1 above those at 0 and at 1, pairs of seeds", LEVERS, WRITTEN,
    disputed=True,
)  # fmt: skip
def text_weight_decay(record: Record) -> Verdict:
    usual = _cell(record)
    rises = [_more(SINKS, usual, _cell(record, setting=end)) for end in ("decay_0", "decay_1")]
    says = together([above(rise, 0.0) for rise in rises])
    return Verdict(says, f"{' and '.join(f'{x:.2f}' for x in rises)} above those at 0 and at 1")


@claim(
    "In a language model, a larger eps of Adam makes smaller outlier channels",
    "He et al. 2024 (arXiv:2405.19279)",
    f"kurtosis at 1e-4 below that at 1e-8, pairs of seeds, at equal loss (within {EQUAL} nats)",
    LEVERS, WRITTEN, disputed=True,
)  # fmt: skip
def text_larger_eps_removes_outlier_channels(record: Record) -> Verdict:
    larger, usual = _cell(record, setting="eps_1e-4"), _cell(record)
    change, cost = _more(KURTOSIS, larger, usual), _costs(larger, usual)
    says = at_equal_loss(below(change, 0.0), cost.mean)
    before = _measured(usual, KURTOSIS).mean
    return Verdict(says, f"{change:.2f}, from {before:.1f}, at {cost:.3f} nats more")


@claim(
    "In a language model, large states are the pre-norm's work: with norms behind the branches "
    "too (sandwich) they go",
    "Sun et al. 2026 (arXiv:2603.05498)",
    "max/median below half of that with norms before the branches alone, pairs of seeds, at equal "
    f"loss (within {EQUAL} nats)", LEVERS, WRITTEN, disputed=True,
)  # fmt: skip
def text_sandwich_norms_remove_large_states(record: Record) -> Verdict:
    sandwich, usual = _cell(record, norm="sandwich"), _cell(record)
    share, cost = _share(sandwich, usual), _costs(sandwich, usual)
    says = at_equal_loss(below(share, 0.5), cost.mean)
    return Verdict(says, f"{share:.2f} of the usual, at {cost:.3f} nats more")


def _keep(record: Record, *changes: dict[str, str]) -> Verdict:
    """Whether each of the changes keeps sinks."""
    return _each(record, changes, lambda found: above(found, SINK_RATE_PRESENT))


def _lose(record: Record, *changes: dict[str, str]) -> Verdict:
    """Whether none of the changes has sinks."""
    return _each(record, changes, lambda found: below(found, SINK_RATE_ABSENT))


def _each(
    record: Record, changes: Sequence[dict[str, str]], says: Callable[[Interval], str]
) -> Verdict:
    found = {" ".join(c.values()): _measured(_cell(record, **c), SINKS) for c in changes}
    texts = [f"{name} {each:.2f}".lstrip() for name, each in found.items()]
    return Verdict(
        together([says(each) for each in found.values()]), f"Sink rate {', '.join(texts)}"
    )


def _variants(*names: str) -> list[dict[str, str]]:
    return [{"variant": name} for name in names]


@claim(
    "In a small model of source text, too, attention bias, an explicit factor and sigmoid "
    "attention (d, e, f) have none",
    f"{AN}, section 5", f"Sink_0(0.3) below {SINK_RATE_ABSENT} in each", SOURCE, LATER,
)  # fmt: skip
def source_explicit_factors_remove_sinks(record: Record) -> Verdict:
    return _lose(record, *_variants(*WITHOUT))


@claim(
    "There softmax-off-by-one and sink logits do not remove sinks",
    "theory A2", f"Sink_0(0.3) above {SINK_RATE_PRESENT} with each", SOURCE, LATER, disputed=True,
)  # fmt: skip
def source_one_is_not_enough(record: Record) -> Verdict:
    return _keep(record, *_variants("softmax_off_by_one", "sink_logit"))


@claim(
    "There gates on values keep sinks",
    "Qiu et al. 2025 (arXiv:2505.06708)", f"Sink_0(0.3) above {SINK_RATE_PRESENT}", SOURCE, LATER,
    disputed=True,
)  # fmt: skip
def source_value_gates_keep_sinks(record: Record) -> Verdict:
    return _keep(record, *_variants("value_gate"))


@claim(
    "There sinks are not the norm's work: RMSNorm, norms behind the branches too (sandwich) and "
    "norms of queries and keys keep them",
    "Gu et al. 2025 (arXiv:2410.10781); Sun et al. 2026 (arXiv:2603.05498)",
    f"Sink_0(0.3) above {SINK_RATE_PRESENT} with each", SOURCE, LATER, disputed=True,
)  # fmt: skip
def source_norms_keep_sinks(record: Record) -> Verdict:
    return _keep(record, *({"norm": name} for name in ("rms", "sandwich", "qk")))


@claim(
    "There sinks are not Adam's work: Muon makes them too",
    "Gu et al. 2025 (arXiv:2410.10781)", f"Sink_0(0.3) above {SINK_RATE_PRESENT}", SOURCE, LATER,
    disputed=True,
)  # fmt: skip
def source_muon_makes_sinks(record: Record) -> Verdict:
    return _keep(record, {"optimizer": "muon"})


@claim(
    "There no sink forms on the first token without BOS",
    "theory B5", f"Sink_0(0.3) below {SINK_RATE_ABSENT}", SOURCE, LATER, disputed=True,
)  # fmt: skip
def source_no_sink_without_bos(record: Record) -> Verdict:
    return _lose(record, {"setting": "no_bos"})


@claim(
    "In LLaMA's style, too, softmax has sinks there",
    f"{AN}, section 3", f"Sink_0(0.3) above {SINK_RATE_PRESENT}", SOURCE, LATER,
)  # fmt: skip
def source_llama_keeps_sinks(record: Record) -> Verdict:
    return _keep(record, {"setting": "llama"})


claim(
    "In a small model of source text, too, less text makes fewer sinks",
    "Gu et al. 2025 (arXiv:2410.10781)", "as in the fruit fly", SOURCE, LATER, disputed=True,
    name="source_repeated_makes_fewer_sinks",
)(text_repeated_makes_fewer_sinks)  # fmt: skip


claim(
    "In a small model of source text, too, longer contexts make stronger sinks",
    "Barbero et al. 2025 (arXiv:2504.02732)", "as in the fruit fly", SOURCE, LATER, disputed=True,
    name="source_longer_contexts_make_stronger_sinks",
)(text_longer_contexts_make_stronger_sinks)  # fmt: skip


@claim(
    "There longer contexts make stronger sinks when all are measured on rows of one length",
    "Barbero et al. 2025 (arXiv:2504.02732)",
    "Sink_0(0.3) higher than with a quarter of the context, and higher still with four times, "
    "pairs of seeds, each on rows of the shortest", CONTEXTS, LAST, disputed=True,
)  # fmt: skip
def source_longer_contexts_make_stronger_sinks_on_equal_rows(record: Record) -> Verdict:
    cells = [_cell(record, setting=name) for name in ("quarter_context", "own", "four_contexts")]
    rises = [_more(SINKS, longer, shorter) for shorter, longer in pairwise(cells)]
    rates = ", ".join(f"{_measured(cell, SINKS):.2f}" for cell in cells)
    says = together([above(rise, 0.0) for rise in rises])
    return Verdict(says, f"Sink rate {rates}: {' and '.join(f'{x:.2f}' for x in rises)} more")


claim(
    "In a small model of source text, too, outliers against weight decay are an inverted U",
    "Gu et al. 2025 (arXiv:2410.10781)", "as in the fruit fly", SOURCE, LATER, disputed=True,
    name="source_weight_decay",
)(text_weight_decay)  # fmt: skip


claim(
    "In a small model of source text, too, a larger eps of Adam makes smaller outlier channels",
    "He et al. 2024 (arXiv:2405.19279)", "as in the fruit fly", SOURCE, LATER, disputed=True,
    name="source_larger_eps_removes_outlier_channels",
)(text_larger_eps_removes_outlier_channels)  # fmt: skip
