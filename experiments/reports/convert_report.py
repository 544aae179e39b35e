"""What experiments.convert says: the ways to treat sinks, and the model before and after."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sysout_jax.converting import CONVERTED
from sysout_jax.core.detectors import MASSIVE_RATIO
from sysout_jax.showing import Interval, Table

from ..cli.showing import Report
from ..cli.tables import Section
from ..cli.verdict import LINE, Verdict, of_model

Record = dict[str, Any]
KINDS = {  # of conversions, what stands in the sink's place
    "constants": "its key and value are constants",
    "prefix": "keys and values stand before every text",
}
HEADINGS = ("way", "loss", "change", "max/median |h|", "max/RMS of down_in")
KEPT = {  # of the measures, those that a sink makes, as a terminal shows them
    "first_token_attention": "attention to first token",
    "residual_peak@block_out": "residual peak, |h| of the first token over the mean",
    "top1_over_mean@down_in": "max/mean |down_in|",
    "tensor_kurtosis@block_out": "tensor kurtosis",
}


def sections(record: Record) -> Iterator[Section]:
    """For each model what was found and done with the ways to treat sinks, and before and after."""
    for model in record["models"]:
        name, rows = model["name"], [*_ways(model)]
        title = f"{name}, {model['tokens']['calibration']:,} tokens of calibration"
        table = Table.of(title, HEADINGS, rows) if rows else None
        yield Section(f"{name}-ways", table, model["said"], apart=True)
        check = model["check"]
        if check:
            title = f"{name}, {check['tokens']:,} other tokens"
            table = Table.of(title, ("", "before", "after"), _rows(check))
            yield Section(f"{name}-check", table, [*_texts(check)])


def _ways(model: Record) -> Iterator[list[str]]:
    """A row for each way to treat sinks, on the calibration text."""
    for each in model["treatments"]:
        yield [
            each["name"] + (f", k = {each['bound']:g}" if each["bound"] else ""),
            f"{each['loss']:.3f}", f"{Interval.of(each['change']):±+.3f}",
            f"{each['over_median']:,.0f}", f"{each['over_rms']:,.0f}",
        ]  # fmt: skip


def _rows(check: Record) -> Iterator[list[str]]:
    """A row for each measure, on the text of the check."""
    yield ["loss", *(f"{loss:.3f}" for loss in check["loss"])]
    yield ["its change", "", f"{Interval.of(check['change']):±+.3f}"]
    peaks = (f"{max(of):,.0f}" for of in check["over_median"])
    yield ["max/median |h|, largest of all layers and texts", *peaks]
    before, after = check["measures"]
    for name, label in KEPT.items():
        if name in before:
            yield [label, f"{before[name]:.3g}", f"{after[name]:.3g}"]


def _texts(check: Record) -> Iterator[str]:
    """What greedy decoding writes after the beginning of a text."""
    for number, pair in enumerate(zip(*check["generated"], strict=True), 1):
        for name, said in zip(("before", "after"), pair, strict=True):
            yield f"text {number}, {name}: {said!r}"


def verdict(record: Record, directory: Path) -> Verdict:
    """What the conversion changed."""
    if not record["models"]:
        return Verdict("no model is finished", "", "", ("runs",))
    model = record["models"][0]
    of = of_model(record)
    if model["kind"] not in CONVERTED:
        said = next(iter(model["said"]), "")
        return Verdict(
            "nothing was converted", said if len(said) <= LINE else "", "",
            ("analyze", *of),
        )  # fmt: skip
    found, means, check = f"converted by {KINDS[model['kind']]}", "", model["check"]
    if check:
        (before, after), sizes = check["loss"], [max(of) for of in check["over_median"]]
        found = (
            f"loss {before:.3f} to {after:.3f}, max/median |h| {sizes[0]:,.0f} to {sizes[1]:,.0f}"
        )
        means = _means(*sizes)
    rows = next((line for line in model["said"] if line.startswith("rows of W_down")), "no layer")
    return Verdict(
        found, means, "" if rows.endswith("no layer") else f"not the weights: {rows}",
        ("compress", *of, f"--conversions={record['config']['weak']}"),
    )  # fmt: skip


def _means(before: float, after: float) -> str:
    """What became of massive states, from max/median |h|."""
    ratio = f"{MASSIVE_RATIO:,.0f}"
    if after >= MASSIVE_RATIO:
        return f"a massive state is left: max/median |h| is at least {ratio}"
    if before >= MASSIVE_RATIO:
        return f"the massive state is gone: max/median |h| is below {ratio}"
    return f"there was no massive state: max/median |h| was below {ratio}"


REPORT = Report(sections, verdict)
