"""What the part dimensions of experiments.analyze says."""

from typing import Any

import numpy as np

from sysout_jax.showing import Interval, Table

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
