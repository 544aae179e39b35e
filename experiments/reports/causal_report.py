"""What experiments.causal says: the response to each dose, beside that of as much elsewhere."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.console import Console

from sysout_jax.analysis.intervene.dose_response import TREATMENTS
from sysout_jax.analysis.statistics import Interval, mean_interval

from ..cli.tables import markdown, print_columns
from ..records.causal import response, specific
from .explicit_report import groups

Record = dict[str, Any]
MEASURES = {
    "ratio": "max \\|h\\| of first token / median",
    "peak": "residual peak",
    "attention": "attention to first token",
    "loss": "loss",
}


def _rows(record: Record, models: list[Record]) -> Iterator[list[str]]:
    yield [
        "treatment",
        "times",
        *MEASURES.values(),
        *(f"{m}, elsewhere" for m in MEASURES.values()),
    ]
    for treatment, label in TREATMENTS.items():
        for factor in record["config"]["factors"]:
            cells = [
                _shown(mean_interval([response(m, treatment, factor, control)[n] for m in models]))
                for control in (False, True)
                for n in MEASURES
            ]
            yield [label, f"{factor:g}", *cells]


def _shown(found: Interval) -> str:
    mean, low, high = found
    digits = 1 if abs(mean) >= 10 else 2 if abs(mean) >= 3 else 3
    half = "" if np.isnan(low) else f" ±{(high - low) / 2:.{digits}f}"
    return f"{mean:.{digits}f}{half}"


def sentences(models: list[Record]) -> list[str]:
    """What taking each cause away does, beyond as much elsewhere."""
    lines = []
    for treatment, label in TREATMENTS.items():
        told = ", ".join(
            f"{name.replace(chr(92), '')} {_signed(specific(models, treatment, 0.0, measure))}"
            for measure, name in MEASURES.items()
        )
        lines.append(f"{label}, taken away, against as much elsewhere: {told}")
    places = [model["place"] for model in models]
    layers = ", ".join(f"{p['layer']} (attention {p['head'][0]}.{p['head'][1]})" for p in places)
    return [*lines, f"layers of the causes, and layer and head of the response: {layers}"]


def _signed(found: Interval) -> str:
    mean, low, high = found
    return f"{mean:+.3f}" + ("" if np.isnan(low) else f" ({low:+.3f} to {high:+.3f})")


def print_tables(console: Console, record: Record) -> None:
    """A table for each name and, under it, what taking the causes away does."""
    for name, models in groups(record).items():
        headings, *rows = _rows(record, models)
        shown = [heading.replace("\\|", "|") for heading in headings]
        seeds = f"{len(models)} seed{'s' * (len(models) > 1)}"
        title = f"{name}: {seeds}; mean ± half-width of the 95% interval"
        print_columns(console, title, [shown, *rows], left=2)
        for line in sentences(models):
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)


def markdown_tables(record: Record) -> dict[str, str]:
    """For each name the table in Markdown, as docs show it."""
    tables = {}
    for name, models in groups(record).items():
        rows = list(_rows(record, models))
        tables[name] = markdown([rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]])
    return tables
