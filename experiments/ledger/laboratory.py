"""Claims decided by the laboratory: other chains, optimisers, decays, norms and depths, no BOS.

A claim on sinks must hold for every chain: the interval is over the seeds of one chain. "Best head"
is the head that gives the first token most, of all layers; with one layer there is no other.
"""

import numpy as np

from sysout_jax.analysis.statistics import Interval, mean_interval

from ..records.laboratory import along, by_chain, cell_of, setting
from .claim import (
    AN,
    EQUAL,
    HOLDS,
    MASSIVE,
    SINK,
    UNDECIDED,
    WITH_SINKS,
    WITHOUT,
    Record,
    Verdict,
    above,
    at_equal_loss,
    below,
    claim,
    smaller,
    together,
)

WRITTEN = "2026-11-26T13:16"  # UTC, before the first cell was trained
LATER = "2026-11-26T21:24"  # UTC, before decays and value gates were
LAST = "2026-11-26T22:14"  # UTC, before norms and eps were
SINK_OF = "noop_sink_best"
EXPLAINED = 0.9  # R^2 of a law that describes the growth


def _sinks(record: Record, variant: str, **setting: object) -> list[Interval]:
    """Attention of no-op queries to the first token in each chain."""
    cell = cell_of(record, variant, **setting)
    return by_chain(record, cell["measures"][SINK_OF])


def _chains(found: list[Interval]) -> str:
    return " ".join(f"{each.mean:.2f}" for each in found)


def _in_all(record: Record, variants: tuple[str, ...], keep: bool) -> Verdict:
    """Whether the variants have a sink, or have none, in every chain."""
    decide = above if keep else below
    found = {name: _sinks(record, name) for name in variants}
    says = together([decide(each, SINK) for chains in found.values() for each in chains])
    texts = [f"{name} {_chains(chains)}" for name, chains in found.items()]
    return Verdict(says, f"by chain: {'; '.join(texts)}")


@claim(
    "On other chains, too, default attention, value bias and context-aware bias (a, b, c) keep "
    "attention outliers",
    f"{AN}, section 5", f"no-op queries give the first token more than {SINK} in each chain",
    "laboratory", WRITTEN,
)  # fmt: skip
def chains_keep_sinks(record: Record) -> Verdict:
    return _in_all(record, WITH_SINKS, keep=True)


@claim(
    "On other chains, too, attention bias, an explicit factor and sigmoid attention (d, e, f) have "
    "none",
    f"{AN}, section 5", f"no-op queries give the first token less than {SINK} in each chain",
    "laboratory", WRITTEN,
)  # fmt: skip
def chains_lose_sinks(record: Record) -> Verdict:
    return _in_all(record, WITHOUT, keep=False)


@claim(
    "Softmax-off-by-one and sink logits do not remove outliers: S cannot see the query except "
    "through the logits",
    "theory A2", f"attention of no-op queries to the first token above {SINK} with each",
    "laboratory", WRITTEN, disputed=True,
)  # fmt: skip
def one_is_not_enough(record: Record) -> Verdict:
    return _in_all(record, ("softmax_off_by_one", "sink_logit"), keep=True)


@claim(
    "The sink does not come from predicting what follows BOS: it forms where that is not trained",
    "this project", f"softmax above {SINK} in each chain with the loss of BOS masked",
    "laboratory", WRITTEN, disputed=True,
)  # fmt: skip
def the_sink_needs_no_loss_at_bos(record: Record) -> Verdict:
    found = _sinks(record, "softmax", loss="masked")
    return Verdict(together([above(each, SINK) for each in found]), f"by chain: {_chains(found)}")


@claim(
    "Without a token whose value nobody needs (BOS) no sink forms on the first token",
    "theory B5", f"softmax below {SINK} in each chain on rows without BOS, and its bigram loss no "
    f"more than {EQUAL} nats above that with BOS", "laboratory", WRITTEN, disputed=True,
)  # fmt: skip
def no_sink_without_bos(record: Record) -> Verdict:
    found = _sinks(record, "softmax", start="none")
    cost = mean_interval(_above_floor(record, start="none") - _above_floor(record))
    says = together([*(below(each, SINK) for each in found), below(cost, EQUAL)])
    return Verdict(says, f"by chain: {_chains(found)}; {cost:.3f} nats more")


def _above_floor(record: Record, **setting: object) -> np.ndarray:
    """Loss on bigram queries over the least possible, of each run of softmax."""
    cell = cell_of(record, "softmax", **setting)
    floors = dict(zip(record["chains"], record["floor"][cell["start"]], strict=True))
    losses = zip(cell["measures"]["loss_bigram"], record["runs"], strict=True)
    return np.array([loss - floors[chain] for loss, (_, chain) in losses])


@claim(
    "Adam makes residual peaks, SGD and Muon do not",
    "Guo et al. 2024 (arXiv:2410.13835); Kaul et al. 2024",
    "residual peak of AdamW above that of SGD and Muon, intervals apart, at equal loss (bigram "
    f"queries, within {EQUAL} nats)", "laboratory", WRITTEN, disputed=True,
)  # fmt: skip
def optimisers(record: Record) -> Verdict:
    names = ("adamw", "sgd", "muon")
    peaks = {
        name: mean_interval(
            cell_of(record, "softmax", optimizer=name)["measures"]["residual_peak@block_out"]
        )
        for name in names
    }
    losses = {name: float(_above_floor(record, optimizer=name).mean()) for name in names}
    says = together([smaller(peaks[name], peaks["adamw"]) for name in ("sgd", "muon")])
    says = at_equal_loss(says, max(losses.values()) - min(losses.values()))
    texts = [f"{name} {peaks[name]:.2f} at {losses[name]:.3f} nats" for name in names]
    return Verdict(says, f"{'; '.join(texts)} above the floor")


@claim(
    "The sink's logit grows like the logarithm of the step",
    "theory C2, F2", f"of softmax's runs with a sink, R^2 of a line in log(step) is above "
    f"{EXPLAINED} on average and above that of a line in the step, pairs of runs", "laboratory",
    WRITTEN, disputed=True,
)  # fmt: skip
def sink_logits_grow_like_log(record: Record) -> Verdict:
    cell = cell_of(record, "softmax")
    sinks = np.array(cell["measures"][SINK_OF]) > SINK
    log, linear = (
        np.array(cell["growth"][law]["r_squared"])[sinks] for law in ("logarithmic", "linear")
    )
    found, gain = mean_interval(log), mean_interval(log - linear)
    says = together([above(found, EXPLAINED), above(gain, 0.0)])
    numbers = f"R^2 {found:.2f}, {gain:.2f} above linear; {setting(cell)}, {sinks.sum()} runs"
    return Verdict(says, numbers)


@claim(
    "In models of two and three layers the factor (e) still has no sink in any head, and softmax "
    "has one",
    f"{AN}, section 5", f"best head: softmax above, context_scale below {SINK} in each chain at "
    "both depths", "laboratory", WRITTEN,
)  # fmt: skip
def deeper_models_agree(record: Record) -> Verdict:
    says, texts = [], []
    for layers in (2, 3):
        softmax, factor = (
            _sinks(record, name, layers=layers) for name in ("softmax", "context_scale")
        )
        says += [above(each, SINK) for each in softmax] + [below(each, SINK) for each in factor]
        texts.append(f"{layers} layers: softmax {_chains(softmax)}, factor {_chains(factor)}")
    return Verdict(together(says), "by chain, " + "; ".join(texts))


@claim(
    "Outliers against weight decay are an inverted U",
    "Gu et al. 2025 (arXiv:2410.10781)",
    "softmax: at a decay inside the grid, no-op queries give the first token more than at both of "
    "its ends, pairs of runs", "laboratory", LATER, disputed=True,
)  # fmt: skip
def weight_decay(record: Record) -> Verdict:
    cells = along(record, "softmax", "decay")
    found = {decay: np.array(cell["measures"][SINK_OF]) for decay, cell in cells.items()}
    least, *inside, most = sorted(found)
    best = max(inside, key=lambda decay: found[decay].mean())
    rises = [mean_interval(found[best] - found[end]) for end in (least, most)]
    means = ", ".join(f"{decay:g}: {found[decay].mean():.2f}" for decay in sorted(found))
    over = " and ".join(f"{rise:.2f}" for rise in rises)
    says = together([above(rise, 0.0) for rise in rises])
    return Verdict(says, f"{means}; at {best:g} {over} above the ends, {len(record['runs'])} runs")


@claim(
    "Gates on values remove spikes and keep sinks",
    "Qiu et al. 2025 (arXiv:2505.06708)",
    f"max/median below half of softmax's, pairs of runs, where that is above {MASSIVE:g}; no-op "
    f"queries give the first token more than {SINK} in each chain", "laboratory", LATER,
    disputed=True,
)  # fmt: skip
def value_gates(record: Record) -> Verdict:
    softmax, gate = (
        np.array(cell_of(record, name)["measures"]["top1_over_median@block_out"])
        for name in ("softmax", "value_gate")
    )
    sinks, spikes = _sinks(record, "value_gate"), mean_interval(softmax)
    smaller_spikes = above(mean_interval(0.5 * softmax - gate), 0.0)
    says = [smaller_spikes if above(spikes, MASSIVE) == HOLDS else UNDECIDED]
    says += [above(each, SINK) for each in sinks]
    return Verdict(
        together(says),
        f"by chain: {_chains(sinks)}; max/median {mean_interval(gate):.0f}, softmax's {spikes:.0f}",
    )


@claim(
    "Sinks are not the norm's work: LayerNorm, norms without a scale, norms behind the branches "
    "too (sandwich) and norms of queries and keys keep them",
    "Gu et al. 2025 (arXiv:2410.10781); Sun et al. 2026 (arXiv:2603.05498)",
    f"softmax: no-op queries give the first token more than {SINK} in each chain with each",
    "laboratory", LAST, disputed=True,
)  # fmt: skip
def norms_keep_sinks(record: Record) -> Verdict:
    norms = along(record, "softmax", "norm")
    found = {name: _sinks(record, "softmax", norm=name) for name in norms if name != "own"}
    says = together([above(each, SINK) for chains in found.values() for each in chains])
    texts = [f"{name} {_chains(chains)}" for name, chains in found.items()]
    return Verdict(says, f"by chain: {'; '.join(texts)}")


def _falls(record: Record, measure: str, **setting: object) -> Verdict:
    """Whether a measure of softmax is smaller in a setting than usual, at equal loss; pairs of
    runs. What is smaller at another loss is not decided."""
    usual, moved = (
        np.array(cell_of(record, "softmax", **each)["measures"][measure]) for each in ({}, setting)
    )
    change = mean_interval(moved - usual)
    cost = mean_interval(_above_floor(record, **setting) - _above_floor(record))
    says = at_equal_loss(below(change, 0.0), cost.mean)
    text = f"{change:.2f}, from {usual.mean():.2f}, at {cost:.3f} nats more"
    return Verdict(says, text)


@claim(
    "Large states of the first token are the pre-norm's work: with norms behind the branches too "
    "(sandwich) they go",
    "Sun et al. 2026 (arXiv:2603.05498)", "softmax's residual peak is smaller than with norms "
    f"before the branches alone, pairs of runs, at equal loss (bigram queries, within {EQUAL} "
    "nats)", "laboratory", LAST, disputed=True,
)  # fmt: skip
def sandwich_norms_remove_peaks(record: Record) -> Verdict:
    return _falls(record, "residual_peak@block_out", norm="sandwich")


@claim(
    "Norms without a scale for each channel make smaller outlier channels",
    "Park et al. 2025 (arXiv:2506.19697)", "softmax's kurtosis is smaller than with scales, pairs "
    "of runs, at equal loss", "laboratory", LAST, disputed=True,
)  # fmt: skip
def unscaled_norms_remove_outlier_channels(record: Record) -> Verdict:
    return _falls(record, "neuron_rms_kurtosis@block_out", norm="unscaled")


@claim(
    "A larger eps of Adam makes smaller outlier channels",
    "He et al. 2024 (arXiv:2405.19279)", "softmax's kurtosis is smaller at 1e-4 than at 1e-8, "
    "pairs of runs, at equal loss", "laboratory", LAST, disputed=True,
)  # fmt: skip
def larger_eps_removes_outlier_channels(record: Record) -> Verdict:
    return _falls(record, "neuron_rms_kurtosis@block_out", eps=1e-4)
