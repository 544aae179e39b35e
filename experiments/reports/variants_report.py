"""What the variants experiment shows on a terminal: progress, the table, and what it means."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.analysis.statistics import Interval, mean_interval, spread
from sysout_jax.core.attention import PAPER, VARIANTS
from sysout_jax.core.detectors import MASSIVE_RATIO, WEIGHT_RATIO
from sysout_jax.core.measures import SINK_EPS, SINK_RATE_PRESENT, VALUE_DRAINED
from sysout_jax.showing import Table

from ..cli.showing import Report
from ..cli.tables import Section
from ..cli.verdict import LINE, Verdict, few

Record = dict[str, Any]
# Measures that the terminal's table shows, with short headings; the record holds all of them.
COLUMNS = {
    "first_token_attention": "attention\nto first\ntoken",
    "noop_sink": "the same,\nno-op\nqueries",
    "sink_rate@attn_weights": "Sink₀(0.3)",
    "value_drain@value": "value\ndrain",
    "residual_peak@block_out": "residual\npeak",
    "top1_over_median@block_out": "max/\nmedian |h|",
    "neuron_rms_kurtosis@block_out": "kurtosis",
    "weight_ratio@down": "max/mean\n|W_down|",
    "gate_noop": "factor,\nno-op",
    "gate_active": "factor,\nothers",
}


def variants_table(mark: str = "") -> Table:
    """Name, formula between two marks, source of every variant."""
    rows = [(v.label, f"{mark}{v.formula}{mark}", v.cite) for v in VARIANTS.values()]
    return Table.of("", ("variant", "formula", "source"), rows, "l")


def catalogue(mark: str = "") -> tuple[list[Section], list[Record], Verdict]:
    """The table of every variant, its rows, and what can be done with them."""
    rows = [
        {"name": v.name, "label": v.label, "formula": v.formula, "source": v.cite}
        for v in VARIANTS.values()
    ]
    said = Verdict(
        f"{len(rows)} variants, {len(PAPER)} of them of An et al. 2025: (a) to (f)", "",
        "a variant without sinks is not thereby better: train, and compare",
        ("variants", f"--variants={PAPER[0]},{PAPER[-2]}"),
    )  # fmt: skip
    return [Section("variants", variants_table(mark))], rows, said


def final(entry: Record, name: str, at: int = -1) -> Interval:
    """A measure of a trained variant over its seeds; `at` 0 is the value before training."""
    return mean_interval(entry["measured"]["measures"][name][at])


def sections(record: Record) -> Iterator[Section]:
    """The table of each study and, under it, what the numbers say."""
    return (section(study) for study in record["studies"] if study["variants"])


def section(study: Record) -> Section:
    """That of one study, of which a variant is trained."""
    return Section(study["name"], _table(study), findings(study), apart=True)


def title(study: Record) -> str:
    """The table's title: what was trained, and how its numbers are to be read."""
    config, seeds = study["config"], len(study["config"]["seeds"])
    tokens = study["tokens_per_seed"] / 1e6
    return (
        f"{study['corpus']}: {config['steps']} steps, {tokens:.2f}M tokens, "
        f"{seeds} seed{'s' * (seeds > 1)}\n"
        "validation loss: mean ± sd; measures: mean ± half-width of the 95% interval"
    )


def _table(study: Record) -> Table:
    """A row for the untrained model and for each variant."""
    entries = list(study["variants"].values())
    columns = {
        name: heading
        for name, heading in COLUMNS.items()
        if any(name in entry["measured"]["measures"] for entry in entries)
    }
    rows = [[f"{entries[0]['label']}, untrained", *_cells(entries[0], columns, at=0)]]
    for entry in entries:
        mark = "" if entry["normalised"] else " †"
        rows.append([entry["label"] + mark, *_cells(entry, columns, at=-1)])
    return Table.of(title(study), ["variant", "validation\nloss", *columns.values()], rows)


def _cells(entry: Record, columns: dict[str, str], at: int) -> list[str]:
    cells = [f"{spread(entry['measured']['val_loss'][at]):±.3f}"]
    for name in columns:
        if name not in entry["measured"]["measures"]:
            cells.append("")
            continue
        found = final(entry, name, at)
        cells.append(f"{found:±.2f}" if abs(found.mean) < 10 else f"{found:±.1f}")
    return cells


def findings(study: Record) -> list[str]:
    """What the study's numbers say, each sentence computed from them."""
    entries = study["variants"]
    lines = [
        _told("attention sink", *_sink(study), above=True, study=study),
        _told("value drain", "value_drain@value", VALUE_DRAINED, above=False, study=study),
    ]
    massive = {n: final(e, "massive_activations").mean for n, e in entries.items()}
    peak = max(final(e, "top1_over_median@block_out").mean for e in entries.values())
    ratio = max(final(e, "weight_ratio@down").mean for e in entries.values())
    found = [entries[name]["label"] for name, count in massive.items() if count > 0]
    lines.append(
        f"massive activations (|h| > 100 and > {MASSIVE_RATIO:g} x median): "
        + (", ".join(found) if found else f"none; the largest max/median is {peak:.0f}")
    )
    lines.append(
        f"weight outliers (max/mean |W_down| > {WEIGHT_RATIO:g}): "
        + ("found" if ratio > WEIGHT_RATIO else "none")
        + f"; the largest ratio is {ratio:.0f}"
    )
    if not found or ratio <= WEIGHT_RATIO:
        lines.append("=> what is none here is undecided, not refuted: it takes larger, longer runs")
    if any(not entry["normalised"] for entry in entries.values()):
        lines.append(
            "† rows do not sum to one: Sink₀ is measured on rows brought to one, "
            "the attention to the first token on the rows as they are"
        )
    return lines


def _sink(study: Record) -> tuple[str, float]:
    """The measure that tells a sink, and its threshold."""
    measured = next(iter(study["variants"].values()))["measured"]["measures"]
    if "noop_sink" in measured:
        return "noop_sink", SINK_EPS
    # Of a language model some heads are sinks, and the mean over all is small.
    return "sink_rate@attn_weights", SINK_RATE_PRESENT


def _told(what: str, name: str, threshold: float, above: bool, study: Record) -> str:
    """Which variants show `what`."""
    sides = _sides(name, threshold, above, study)
    told = "; ".join(f"{side}: {', '.join(names)}" for side, names in sides.items() if names)
    return f"{what} ({name} {'>' if above else '<'} {threshold:g}) {told}"


def _sides(name: str, threshold: float, above: bool, study: Record) -> dict[str, list[str]]:
    """The variants with every seed on that side of the threshold, with none, and with some."""
    sides: dict[str, list[str]] = {"in every seed": [], "in none": [], "in some": []}
    for entry in study["variants"].values():
        values = np.asarray(entry["measured"]["measures"][name][-1])
        shown = values > threshold if above else values < threshold
        side = "in every seed" if shown.all() else "in some" if shown.any() else "in none"
        sides[side].append(entry["label"])
    return sides


def verdict(record: Record, directory: Path) -> Verdict:
    """What the last study that has a variant shows."""
    studies = [study for study in record["studies"] if study["variants"]]
    if not studies:
        return Verdict("no variant is finished", "", "", ("runs",))
    study = studies[-1]
    entries, sides = study["variants"], _sides(*_sink(study), above=True, study=study)
    peaks = {n: final(entry, "top1_over_median@block_out").mean for n, entry in entries.items()}
    largest = max(peaks, key=lambda name: peaks[name])
    every, none = sides["in every seed"], sides["in none"]
    massive = any(final(entry, "massive_activations").mean > 0 for entry in entries.values())
    seeds = len(study["config"]["seeds"])
    return Verdict(
        f"sinks in every seed of {len(every)} of {len(entries)} variants; "
        f"max/median |h| up to {peaks[largest]:,.0f}",
        f"no sink in any seed: {few(none, LINE - 21)}",
        f"no activation of {MASSIVE_RATIO:g} medians: undecided here, not refuted"
        if not massive
        else "one seed: nothing is said of others"
        if seeds == 1
        else f"{seeds} seeds: what lies within the intervals is not told from chance",
        ("analyze", f"--model={directory}", f"--variant={study['name']}-{largest}"),
    )


REPORT = Report(sections, verdict)
