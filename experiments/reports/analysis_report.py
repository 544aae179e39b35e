"""What experiments.analyze says: sentences of each part, its tables, the page, three lines."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.report.findings import publish
from sysout_jax.report.summary import summary
from sysout_jax.report.tables import tables as tables_of
from sysout_jax.report.words import headline, known_lines
from sysout_jax.showing import Interval, Table

from ..cli.showing import Report
from ..cli.tables import Section
from ..cli.verdict import Verdict, again, given

Record = dict[str, Any]

READOUTS = {
    "kl": "KL, nats", "surprisal": "surprisal", "entropy": "entropy", "accuracy": "accuracy",
    "slope": "slope", "spearman": "Spearman",
}  # fmt: skip
DIGITS = {"accuracy": 3}


def tables(record: dict[str, Any]) -> dict[str, Table]:
    """The tables of a record: of the dimensions part, predictions and checkpoints."""
    part = record["parts"].get("dimensions")
    if part is None:
        return {}
    made = {"dimensions": _predictions(part["ablations"])}
    return made | ({"steps": _steps(part["stages"])} if part["stages"] else {})


def _predictions(ablations: list[Any]) -> Table:
    """A row for each way to read the final state; random sets together, lowest to highest."""
    headings = ["read from", "dimensions", *READOUTS.values(), "different predictions"]
    groups: dict[tuple[str, bool], list[Any]] = {}
    for each in ablations:
        groups.setdefault((each["of"], each["kept"]), []).append(each)
    rows = []
    for (of, kept), of_group in groups.items():
        which = f"{of}, {len(of_group)} sets" if len(of_group) > 1 else of
        named = f"{which} alone" if kept else f"all but {which}" if of else "all dimensions"
        read = [_cell([each["values"][name] for each in of_group], name) for name in READOUTS]
        distinct = sorted(each["distinct"] for each in of_group)
        shown = f"{distinct[0]} to {distinct[-1]}" if len(distinct) > 1 else f"{distinct[0]}"
        rows.append([named, str(of_group[0]["count"]) if of else "", *read, shown])
    return Table.of("Predictions without outlier dimensions", headings, rows, "lr")


def _cell(intervals: list[Any], name: str) -> str:
    """A value with its bootstrap interval; of several sets their range."""
    digits = DIGITS.get(name, 2)
    if len(intervals) == 1:
        return f"{Interval.of(intervals[0]):.{digits}f}"
    means = np.array([mean for mean, *_ in intervals], np.float64)
    if np.isnan(means).all():
        return ""
    return f"{np.nanmin(means):.{digits}f} to {np.nanmax(means):.{digits}f}"


def _steps(stages: list[Any]) -> Table:
    """A row for each checkpoint."""
    headings = ["step", "outlier dimensions", "largest score", "kurtosis", "KL without them, nats"]
    rows = []
    for each in stages:
        numbers = ", ".join(map(str, each["dimensions"])) or "none"
        kl = "" if each["kl"] is None else _cell([each["kl"]], "kl")
        scores = (f"{each[name]:.2f}" for name in ("largest", "kurtosis"))
        rows.append([str(each["step"]), numbers, *scores, kl])
    return Table.of("Checkpoints", headings, rows, "r")


def sections(record: Record) -> Iterator[Section]:
    """The sentences of each part; its tables, as `Findings.table` names them, where asked for."""
    yield Section("known", None, known_lines(record))
    for name in record["parts"]:
        yield Section(name, None, headline(record, name))
    for name, table in tables_of(record).items():
        yield Section(name, table, asked=True)


def verdict(record: Record, directory: Path) -> Verdict:
    """The sentences of the page, and what is done with the model next."""
    of = given(record, "model", "variant", "seed", "corpus", "revision", "file")
    sink = record["parts"].get("interventions", {}).get("sink")
    command = ("convert", *of, "--out=converted")
    if record.get("status", "complete") != "complete":  # what Python saves has none
        command = ("analyze", *again(record))
    elif (sink is not None and not sink["heads"]) or record["model"]["variant"] != "softmax":
        command = ("compress", *of)
    return Verdict(*summary(record), command)


REPORT = Report(
    sections, verdict, lambda record, directory: {"report": [publish(record, directory)]}
)
