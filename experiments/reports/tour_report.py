"""What experiments.tour says: the outliers, what takes the sink's place, the model without it."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.analysis.statistics import ratio_interval
from sysout_jax.showing import Interval, Table

from ..cli.showing import Report
from ..cli.tables import Section
from ..cli.verdict import Verdict, conversion, given, of_model

Record = dict[str, Any]


def sections(record: Record) -> Iterator[Section]:
    """For each model three short tables and what they say."""
    for model in record["models"]:
        name = model["name"]
        title = f"{name}: its outliers on {model['tokens']:,} tokens of {model['corpus']}"
        kinds = Table.of(title, ("kind", "where", "how large"), _kinds(model), "l")
        yield Section(f"{name}-outliers", kinds)
        if model["forms"]:
            title = "what takes the sink's place: change of the loss in nats, 95% over texts"
            forms = Table.of(title, ("form", "change", "share of removal"), _forms(model))
            yield Section(f"{name}-forms", forms)
        title = "converted, no training: max/median |h|, loss, and its rise in 8 bits a tensor"
        headings = ("model", "max/median |h|", "loss", "rise under W8A8", "gone")
        yield Section(f"{name}-ways", Table.of(title, headings, _ways(model)), model["said"], True)


def _kinds(model: Record) -> Iterator[list[str]]:
    massive, sink, rows = model["massive"], model["sink"], model["rows"]
    yield [
        "activations", f"after layer {massive['layer']}, at the first token in "
        f"{massive['first']:.0%} of texts",
        f"|h| {massive['size']:,.0f}, {massive['over_median']:,.0f} medians",
    ]  # fmt: skip
    yield [
        "attention", f"layers from {sink['first']} on",
        f"{sink['heads']:.0%} of heads give the first token more than 0.3",
    ]  # fmt: skip
    layers = ", ".join(map(str, rows["layers"])) or "none"
    yield [
        "weights", f"rows of W_down, layers {layers}",
        f"max/mean of a row {max(rows['ratios']):.0f}, of the median layer "
        f"{np.median(rows['ratios']):.0f}",
    ]  # fmt: skip


def _forms(model: Record) -> Iterator[list[str]]:
    for form in model["forms"]:
        share = "" if form["share"] is None else f"{round(form['share'][0], 2) + 0.0:.0%}"
        yield [form["label"], f"{Interval.of(form['change']):±+.3f}", share]


def _ways(model: Record) -> Iterator[list[str]]:
    trained = model["ways"][0]
    base = np.asarray(trained["losses"])
    rise = np.asarray(trained["rounded"]) - base
    for way in model["ways"]:
        left = ratio_interval(np.asarray(way["rounded"]) - base, rise)
        gone = "" if way is trained or left is None else f"{1 - left.mean:.0%}"
        yield [
            way["name"], f"{way['over_median']:,.0f}", f"{way['loss']:.3f}",
            f"{Interval.of(way['rise']):±+.3f}", gone,
        ]  # fmt: skip


def verdict(record: Record, directory: Path) -> Verdict:
    """The largest activation, what conversion takes of its cost, and what stays."""
    if not record["models"]:
        return Verdict("no model is finished", "", "", ("runs",))
    model = record["models"][0]
    massive, trained, rest = model["massive"], model["ways"][0], model["ways"][1:]
    best = min(rest, key=lambda way: way["rise"][0])
    layers = ", ".join(map(str, model["rows"]["layers"])) or "none"
    of = [*([] if given(record, "model") else [f"--model={model['name']}"]), *of_model(record)]
    return Verdict(
        f"|h| {massive['size']:,.0f} after layer {massive['layer']}, "
        f"{massive['over_median']:,.0f} medians; {model['sink']['heads']:.0%} of heads are sinks",
        f"8 bits cost {trained['rise'][0]:+.3f} nats; converted ({best['name']}) "
        f"{best['rise'][0]:+.3f}",
        f"its loss is {best['loss'] - trained['loss']:+.3f}; rows of W_down stand out: {layers}",
        conversion(of, f"--weak={best['name']}"),
    )  # fmt: skip


REPORT = Report(sections, verdict)
