"""What experiments.laboratory says: a row for each cell, the growth of sink logits, sentences."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.console import Console

from sysout_jax.analysis.statistics import mean_interval
from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.measures import SINK_EPS

from ..cli.tables import markdown, print_columns
from ..records.laboratory import setting, trained

Record = dict[str, Any]
COLUMNS = {
    "noop_sink_best": "no-op queries to first token, best head",
    "value_drain@value": "value drain",
    "residual_peak@block_out": "residual peak",
    "top1_over_median@block_out": "max/median \\|h\\|",
    "neuron_rms_kurtosis@block_out": "kurtosis",
    "weight_ratio@down": "max/mean \\|W_down\\|",
    "gate_noop": "factor, no-op",
    "gate_active": "factor, others",
}
SINK = "noop_sink_best"
SHARES = ("noop_sink_best", "value_drain@value", "gate_noop", "gate_active")


def tables(record: Record) -> Iterator[tuple[str, str, list[list[str]]]]:
    """(name, title, rows of texts, headings first) of each table."""
    cells = trained(record)
    if not cells:
        return
    shown = {n: text for n, text in COLUMNS.items() if any(n in c["measures"] for c in cells)}
    runs, chains = len(record["runs"]), len(record["chains"])
    title = (
        f"Bigram-Backcopy: {record['train']['steps']} steps, {runs} runs of {chains} chains in "
        "each cell; mean ± half-width of the 95% interval over runs"
    )
    headings = [
        "setting", "variant", "copy loss", "bigram loss above its floor", "runs with a sink",
        *shown.values(),
    ]  # fmt: skip
    yield "cells", title, [headings, *(_row(record, cell, shown) for cell in cells)]
    headings = ["setting", "variant", "best law", "log: slope", "log: R²", "linear: R²"]
    grown = [_growth(cell) for cell in cells if cell["growth"] and _sinks(cell).any()]
    title = f"log odds of the first token against steps, where a run has more than {SINK_EPS}"
    yield "growth", title, [headings, *grown]


def _row(record: Record, cell: Record, columns: dict[str, str]) -> list[str]:
    found = cell["measures"]
    floors = dict(zip(record["chains"], record["floor"][cell["start"]], strict=True))
    above = [
        loss - floors[chain]
        for loss, (_, chain) in zip(found["loss_bigram"], record["runs"], strict=True)
    ]
    texts = [_shown(found[n], 2 if n in SHARES else 1) if n in found else "" for n in columns]
    sinks = _sinks(cell)
    return [
        setting(cell), VARIANTS[cell["variant"]].label, _shown(found["loss_copy"], 3),
        _shown(above, 3), f"{sinks.sum()} of {len(sinks)}", *texts,
    ]  # fmt: skip


def _sinks(cell: Record) -> np.ndarray:
    """Which runs of a cell have a sink."""
    return np.array(cell["measures"][SINK], np.float64) > SINK_EPS


def _growth(cell: Record) -> list[str]:
    """The fits of the runs that have a sink."""
    sinks = _sinks(cell)
    fits = {
        law: {name: np.array(values, np.float64)[sinks] for name, values in found.items()}
        for law, found in cell["growth"].items()
    }
    explained = {law: float(np.mean(found["r_squared"])) for law, found in fits.items()}
    return [
        setting(cell), VARIANTS[cell["variant"]].label,
        max(explained, key=lambda law: explained[law]),
        _shown(fits["logarithmic"]["slope"], 2), f"{explained['logarithmic']:.2f}",
        f"{explained['linear']:.2f}",
    ]  # fmt: skip


def _shown(values: Any, digits: int) -> str:
    """Mean and half-width of its interval; nothing where a value is not finite."""
    if any(value is None for value in values):
        return ""
    mean, low, high = mean_interval(values)
    half = "" if np.isnan(low) else f" ±{(high - low) / 2:.{digits}f}"
    return f"{mean:.{digits}f}{half}"


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


def print_tables(console: Console, record: Record) -> None:
    """The tables and, under them, what the numbers say."""
    for _, title, (headings, *rows) in tables(record):
        shown = [heading.replace("\\|", "|") for heading in headings]
        print_columns(console, title, [shown, *rows], left=2)
    for line in sentences(record):
        console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    console.print()


def markdown_tables(record: Record) -> dict[str, str]:
    """Name -> the table in Markdown, as docs show it."""
    return {
        name: markdown([rows[0], ["---"] * 2 + ["---:"] * (len(rows[0]) - 2), *rows[1:]])
        for name, _, rows in tables(record)
    }
