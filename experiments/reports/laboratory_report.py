"""What experiments.laboratory says: a row for each cell, the growth of sink logits, sentences."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.analysis.statistics import Interval, mean_interval
from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.measures import SINK_EPS
from sysout_jax.plots.laboratory import setting
from sysout_jax.showing import Table

from ..cli.showing import Report
from ..cli.tables import Section
from ..cli.verdict import LINE, Verdict, few, numbered
from ..records.laboratory import by_chain, of_units, trained

Record = dict[str, Any]
COLUMNS = {
    "noop_sink_best": "no-op queries to first token, best head",
    "value_drain@value": "value drain",
    "residual_peak@block_out": "residual peak",
    "top1_over_median@block_out": "max/median |h|",
    "neuron_rms_kurtosis@block_out": "kurtosis",
    "weight_ratio@down": "max/mean |W_down|",
    "gate_noop": "factor, no-op",
    "gate_active": "factor, others",
}
SINK = "noop_sink_best"
SHARES = ("noop_sink_best", "value_drain@value", "gate_noop", "gate_active")


def sections(record: Record) -> Iterator[Section]:
    """The cells, the growth of sink logits and, under them, what the numbers say."""
    if cells := trained(record):
        yield Section("cells", _cells(record, cells))
        if grown := [_growth(record, c) for c in cells if c["growth"] and _sinks(c).any()]:
            yield Section("growth", _growths(grown))
    yield Section("said", None, sentences(record))


def _cells(record: Record, cells: list[Record]) -> Table:
    shown = {n: text for n, text in COLUMNS.items() if any(n in c["measures"] for c in cells)}
    runs, chains = len(record["runs"]), len(record["chains"])
    over = "chains" if chains > 1 else "runs"
    title = (
        f"Bigram-Backcopy: {record['train']['steps']} steps, {runs} runs of {chains} chains in "
        f"each cell; mean ± half-width of the 95% interval over {over}"
    )
    headings = [
        "setting", "variant", "copy loss", "bigram loss above its floor", "runs with a sink",
        *shown.values(), *(f"{method} adds" for method in record["methods"]),
    ]  # fmt: skip
    return Table.of(title, headings, [_row(record, cell, shown) for cell in cells], "llr")


def _growths(grown: list[list[str]]) -> Table:
    headings = ["setting", "variant", "best law", "log: slope", "log: R²", "linear: R²"]
    title = f"log odds of the first token against steps, where a run has more than {SINK_EPS}"
    return Table.of(title, headings, grown, "llr")


def _row(record: Record, cell: Record, columns: dict[str, str]) -> list[str]:
    found = cell["measures"]
    above = by_chain(record, found["loss_bigram"]) - record["floor"][cell["start"]]
    texts = [
        f"{_mean(record, found[n]):±.{2 if n in SHARES else 1}f}" if n in found else ""
        for n in columns
    ]
    sinks = _sinks(cell)
    return [
        setting(cell), VARIANTS[cell["variant"]].label,
        f"{_mean(record, found['loss_copy']):±.3f}", f"{_mean(record, above.ravel()):±.3f}",
        f"{sinks.sum()} of {len(sinks)}", *texts,
        *(f"{_mean(record, rise):±.3f}" for rise in cell["compressed"].values()),
    ]  # fmt: skip


def _mean(record: Record, values: Any) -> Interval:
    """Over the units of a cell."""
    return mean_interval(of_units(by_chain(record, values)))


def _sinks(cell: Record) -> np.ndarray:
    """Which runs of a cell have a sink."""
    return np.array(cell["measures"][SINK], np.float64) > SINK_EPS


def _growth(record: Record, cell: Record) -> list[str]:
    """The fits of the runs that have a sink, by chains that have such a run."""
    sinks, of = _sinks(cell), np.array([chain for _, chain in record["runs"]])
    units = [sinks & (of == chain) for chain in dict.fromkeys(of[sinks])]
    if len(record["chains"]) == 1:
        units = [np.array([run]) for run in np.flatnonzero(sinks)]

    def fitted(law: str, what: str) -> Interval:
        values = np.array(cell["growth"][law][what], np.float64)
        return mean_interval([values[unit].mean() for unit in units])

    explained = {law: fitted(law, "r_squared").mean for law in cell["growth"]}
    return [
        setting(cell), VARIANTS[cell["variant"]].label,
        max(explained, key=lambda law: explained[law]),
        f"{fitted('logarithmic', 'slope'):±.2f}", f"{explained['logarithmic']:.2f}",
        f"{explained['linear']:.2f}",
    ]  # fmt: skip


def sentences(record: Record) -> list[str]:
    """What the cells say, each computed from the record."""
    lines = [
        f"{VARIANTS[cell['variant']].label}, {setting(cell)}: diverged at step "
        f"{cell['diverged']['step']}, seed {cell['diverged']['seed']}, chain "
        f"{cell['diverged']['chain']}"
        for cell in record["cells"]
        if "diverged" in cell
    ]
    sides: dict[str, list[str]] = {"in every run": [], "in some": [], "in none": []}
    for cell in trained(record):
        sinks = _sinks(cell)
        side = "in every run" if sinks.all() else "in some" if sinks.any() else "in none"
        sides[side].append(f"{cell['variant']} ({setting(cell)})")
    told = "; ".join(f"{side}: {', '.join(names)}" for side, names in sides.items() if names)
    return [*lines, f"sink ({SINK} > {SINK_EPS}) {told or 'of no cell: none is finished'}"]


def verdict(record: Record, directory: Path) -> Verdict:
    """In how many cells sinks form, and which variants have none in any."""
    sinks = [(cell, _sinks(cell)) for cell in trained(record)]
    if not sinks:
        return Verdict("no cell is finished", "", "", ("runs",))
    every, some = (sum(bool(test(of)) for _, of in sinks) for test in (np.all, np.any))
    variants = dict.fromkeys(cell["variant"] for cell, _ in sinks)
    without = [v for v in variants if not any(of.any() for c, of in sinks if c["variant"] == v)]
    diverged = len(record["cells"]) - len(sinks)
    return Verdict(
        f"{len(sinks)} cells: sinks in every run of {every}, in some of "
        f"{some - every}, in none of {len(sinks) - some}",
        f"no sink in any cell: {few(without, LINE - 21)}" if without
        else "every variant has a sink in some run",
        f"{numbered(diverged, 'cell')} diverged" if diverged
        else f"{numbered(len(record['runs']), 'run')} of each cell, on one synthetic task",
        ("claims",),
    )  # fmt: skip


REPORT = Report(sections, verdict)
