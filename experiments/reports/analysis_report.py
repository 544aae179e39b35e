"""What the part dimensions of experiments.analyze says, in Markdown."""

from typing import Any

import numpy as np

from ..cli.tables import markdown

READOUTS = {
    "kl": "KL, nats", "surprisal": "surprisal", "entropy": "entropy", "accuracy": "accuracy",
    "slope": "slope", "spearman": "Spearman",
}  # fmt: skip
DIGITS = {"accuracy": 3}


def markdown_tables(record: dict[str, Any]) -> dict[str, str]:
    """The tables of a record: of the dimensions part, predictions and checkpoints."""
    part = record["parts"].get("dimensions")
    if part is None:
        return {}
    made = {"dimensions": _predictions(part["ablations"])}
    return made | ({"steps": _steps(part["stages"])} if part["stages"] else {})


def _predictions(ablations: list[Any]) -> str:
    """A row for each way to read the final state; random sets together, lowest to highest."""
    rows = [["read from", "dimensions", *READOUTS.values(), "different predictions"]]
    rows.append(["---", *["---:"] * (len(rows[0]) - 1)])
    groups: dict[tuple[str, bool], list[Any]] = {}
    for each in ablations:
        groups.setdefault((each["of"], each["kept"]), []).append(each)
    for (of, kept), of_group in groups.items():
        which = f"{of}, {len(of_group)} sets" if len(of_group) > 1 else of
        named = f"{which} alone" if kept else f"all but {which}" if of else "all dimensions"
        read = [_cell([each["values"][name] for each in of_group], name) for name in READOUTS]
        distinct = sorted(each["distinct"] for each in of_group)
        shown = f"{distinct[0]} to {distinct[-1]}" if len(distinct) > 1 else f"{distinct[0]}"
        count = str(of_group[0]["count"]) if of else ""
        rows.append([named, count, *read, shown])
    return markdown(rows)


def _cell(intervals: list[Any], name: str) -> str:
    """A value with its bootstrap interval; of several sets their range."""
    digits = DIGITS.get(name, 2)
    if len(intervals) == 1:
        mean, low, high = (_number(x, digits) for x in intervals[0])
        return mean if low == "" else f"{mean} [{low}, {high}]"
    means = np.array([mean for mean, *_ in intervals], np.float64)
    if np.isnan(means).all():
        return ""
    return f"{np.nanmin(means):.{digits}f} to {np.nanmax(means):.{digits}f}"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _steps(stages: list[Any]) -> str:
    """A row for each checkpoint."""
    rows = [["step", "outlier dimensions", "largest score", "kurtosis", "KL without them, nats"]]
    rows.append(["---:"] * len(rows[0]))
    for each in stages:
        numbers = ", ".join(map(str, each["dimensions"])) or "none"
        kl = "" if each["kl"] is None else _cell([each["kl"]], "kl")
        scores = (f"{each[name]:.2f}" for name in ("largest", "kurtosis"))
        rows.append([str(each["step"]), numbers, *scores, kl])
    return markdown(rows)
