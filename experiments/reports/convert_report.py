"""What experiments.convert says: the ways to treat sinks, and the model before and after."""

from collections.abc import Iterator, Mapping
from typing import Any

from sysout_jax.analysis.measure.summary import SUMMARY_LABELS
from sysout_jax.showing import Interval, Table

from ..cli.tables import Section

HEADINGS = ["way", "loss", "change", "max/median |h|", "max/RMS down_in"]
KEPT = (  # of the measures, those that a sink makes
    "first_token_attention", "residual_peak@block_out", "top1_over_mean@down_in",
    "tensor_kurtosis@block_out",
)  # fmt: skip


def tables(record: dict[str, Any]) -> Mapping[str, Table]:
    """Name -> table: the ways to treat sinks, and the model before and after."""
    made = {}
    if record["treatments"]:
        title = f"{record['name']}: on {record['tokens']['calibration']:,} tokens of calibration"
        made["treatments"] = Table.of(title, HEADINGS, _treatments(record))
    if record["check"]:
        title = f"{record['name']}: on {record['check']['tokens']:,} other tokens"
        made["before-after"] = Table.of(title, ["", "before", "after"], _before_after(record))
    return made


def _treatments(record: dict[str, Any]) -> list[list[str]]:
    """A row for each way to treat sinks, on the calibration text."""
    return [
        [
            each["name"] + (f", k = {each['bound']:g}" if each["bound"] else ""),
            f"{each['loss']:.3f}", f"{Interval.of(each['change']):±+.3f}",
            f"{each['over_median']:.3g}", f"{each['over_rms']:.3g}",
        ]
        for each in record["treatments"]
    ]  # fmt: skip


def _before_after(record: dict[str, Any]) -> list[list[str]]:
    """A row for each measure, on the text of the check."""
    check = record["check"]
    before, after = check["measures"]
    rows = [
        ["loss", f"{check['loss'][0]:.3f}", f"{check['loss'][1]:.3f}"],
        ["change", "", f"{Interval.of(check['change']):±+.3f}"],
        [
            "max/median |h|, largest of all layers and texts",
            *(f"{max(of):.4g}" for of in check["over_median"]),
        ],
    ]
    for name in before:
        if name in KEPT and name in after:
            rows.append([SUMMARY_LABELS[name], *(f"{of[name]:.3g}" for of in (before, after))])
    return rows


def sections(record: dict[str, Any]) -> Iterator[Section]:
    """What was found and done, the ways to treat sinks, and the model before and after."""
    yield Section("said", None, record["said"])
    for name, table in tables(record).items():
        yield Section(name, table, apart=name == "treatments")
    if record["check"]:
        pairs = zip(*record["check"]["generated"], strict=True)
        lines = [
            f"text {text + 1}, {name}: {said!r}"
            for text, both in enumerate(pairs)
            for name, said in zip(("before", "after"), both, strict=True)
        ]
        yield Section("generated", None, lines)
