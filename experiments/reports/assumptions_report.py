"""What experiments.assumptions says: the theory's assumptions beside a model's numbers."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.analysis.measure.assumptions import ALLOWED, KINDS
from sysout_jax.core.measures import SINK_EPS
from sysout_jax.plots.style import named
from sysout_jax.showing import Interval, Table

from ..cli.showing import Report
from ..cli.tables import Section
from ..cli.verdict import LINE, Verdict, conversion, few, of_one

Record = dict[str, Any]
LAYER = (
    "layer", "sink heads", "key: spread", "value: spread", "key, over ids", "value, over ids",
    "a", "r", "tan about u", "about a shared u", "about a channel", "a that T3 asks",
)  # fmt: skip


def sections(record: Record) -> Iterator[Section]:
    """For each model the statements, the layers that have a sink head, and what tells the factor;
    of a model without a sink one line."""
    for model in record["models"]:
        name = named(model)
        about = f"{model['texts']} texts of {model['tokens']} tokens"
        if not model["heads"]:
            given = model["sink"]["most"]
            line = (
                f"{name}: no sink on {about}: no head gives the first token more than {SINK_EPS:g}"
                f" of its attention, the most is {given:.2f}"
            )
            yield Section(f"{name}-statements", None, [line])
            continue
        title = f"{name}, {about}; mean and 95% interval over texts"
        headings = ("statement", "what is measured", "found")
        yield Section(
            f"{name}-statements", Table.of(title, headings, _statements(model), "llr"),
            [*_lines(model)],
        )  # fmt: skip
        title = f"{name}: layers with a sink head; a and r in units of the residual stream"
        yield Section(f"{name}-layers", Table.of(title, LAYER, map(_layer, model["layers"]), "r"))
        title = f"{name}: R² of logit S on held-out queries, median over sink heads"
        told = [(features, _found(of)) for features, of in model["explained"].items()]
        yield Section(f"{name}-factor", Table.of(title, ("told by", "R²"), told))


def _statements(model: Record) -> Iterator[tuple[str, str, str]]:
    """Statement, quantity and what was found."""
    hulls, bound = model["hulls"], model["range"]
    for hull in hulls:
        what = f"distance of {hull['keys']} values' hull from zero, over mean |v|"
        yield "B1, B2", what, f"{Interval.of(hull['distance']):.2f}"
    yield "", "the smallest of all", f"{min(hull['least'] for hull in hulls):.3f}"
    yield "", f"share with a half-space, {_keys(hulls)}", f"{Interval.of(hulls[-1]['met']):.2f}"
    what = f"distance of the sink's key from the hull of {_keys(hulls)}, over mean |k_j - k_0|"
    yield "", what, f"{Interval.of(hulls[-1]['sink_key']):.2f}"
    what = "share of pairs of a query and a sink head to which the bound applies"
    yield "B2", what, f"{Interval.of(bound['applies']):.2f}"
    if bound["required"]:
        yield "", "attention to the sink that it requires of them", _found(bound["required"])
        yield "", "that they have", _found(bound["actual"])
        applying = round(bound["applies"][0] * bound["pairs"])
        yield "", "pairs that have less", f"{bound['violated']} of {applying:,}"
    yield "A1, T4", "|v_0| over the others' mean, mean over sink heads", _found(model["drain"])
    drains = sorted(head["drain"] for head in model["heads"])
    yield "", "in the heads where it is least, middle and most", _three(drains, ".2f")
    yield "T2", "cosine of the mean query and the sink's key", _found(model["cosine"])
    yield "", "and the other keys, mean over them", _found(model["cosine_others"])
    yield from _of_state(model)


def _of_state(model: Record) -> Iterator[tuple[str, str, str]]:
    """What the layers show that read a state that stands out."""
    layers = [layer for layer in model["layers"] if layer["massive"]]
    if not layers:
        return
    massive = [layer["massive"] for layer in layers]
    told = _span([layer["layer"] for layer in layers])

    def row(statement: str, what: str, of: list[float], spec: str) -> tuple[str, str, str]:
        return statement, what, _three(sorted(of), spec)

    what = f"spread of the sink's key over texts, over its length, {told}"
    yield row("T1, T4", what, [layer["key_spread"][0] for layer in layers], ".1%")
    yield row("", "of its value", [layer["value_spread"][0] for layer in layers], ".1%")
    of = [layer["value_kinds"] for layer in layers]
    yield row("", f"of its value over {KINDS} ids as first token", of, ".1%")
    tangents = [each["tangent"][0] for each in massive]
    yield row("B4", f"tangent of the state about its direction u, {told}", tangents, ".3f")
    of = [each["tangent_shared"][0] for each in massive]
    yield row("", "about one direction for all these layers", of, ".3f")
    yield row("", "about its largest channel", [each["axis"][0] for each in massive], ".3f")
    yield row("T3", f"state a along u, {told}", [each["along"][0] for each in massive], ",.0f")
    asked = [each["asked"][0] for each in massive if each["asked"]]
    most = [each["asked_most"] for each in massive if each["asked"]]
    if asked:
        what = f"a that a value constant to {ALLOWED:.0%} asks for, texts' mean"
        yield row("", what, asked, ",.0f")
        yield row("", "and the text with the largest y", most, ",.0f")


def _lines(model: Record) -> Iterator[str]:
    """What the sink is, and what a reader must know of the rows."""
    layers = [layer["layer"] for layer in model["layers"]]
    count, sink = len(model["heads"]), model["sink"]
    yield f"{count} heads give the first token more than {SINK_EPS:g}, in {_span(layers)}"
    if sink["emergence"] is None:
        yield "no state of it stands out, so that B4 and T3 have no subject"
    else:
        yield f"layer {sink['emergence']} makes its state, of largest |h| {sink['size']:,.0f}"
    if model["kinds"] == 1:
        yield "all texts begin with the same token: over texts its key and value cannot vary"


def _layer(layer: Record) -> list[Any]:
    """A row of the layers' table."""
    massive = layer["massive"] or {}
    constant = [f"{Interval.of(layer[name]):±.1%}" for name in ("key_spread", "value_spread")]
    kinds = [f"{layer[name]:.1%}" for name in ("key_kinds", "value_kinds")]

    def interval(name: str, spec: str) -> str | None:
        return f"{Interval.of(massive[name]):±{spec}}" if massive.get(name) else None

    return [
        str(layer["layer"]), str(layer["heads"]), *constant, *kinds, interval("along", ",.0f"),
        f"{massive['across']:,.0f}" if massive else None,
        *(interval(name, ".3f") for name in ("tangent", "tangent_shared", "axis")),
        interval("asked", ",.0f"),
    ]  # fmt: skip


def _found(of: Any) -> str:
    return f"{Interval.of(of):.2f}"


def _three(of: list[float], spec: str) -> str:
    """The least, the middle one and the most of sorted numbers."""
    return ", ".join(format(each, spec) for each in (of[0], of[len(of) // 2], of[-1]))


def _keys(hulls: list[Record]) -> str:
    return f"{hulls[-1]['keys']} keys"


def _span(layers: list[int]) -> str:
    """Layers in words; of a row of them its ends."""
    if len(layers) > 1 and layers == list(range(layers[0], layers[-1] + 1)):
        return f"layers {layers[0]} to {layers[-1]}"
    return f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers))}"


def verdict(record: Record, directory: Path) -> Verdict:
    """What the assumptions of the theory are met by, over the models that have a sink."""
    with_sink = [model for model in record["models"] if model["heads"]]
    if not with_sink:
        given_most = max((m["sink"]["most"] for m in record["models"]), default=0.0)
        return Verdict(
            f"no sink: a head gives the first token at most {given_most:.2f}, not {SINK_EPS:g}",
            "the theory's assumptions have no subject in it", "",
            ("variants", "--preset=sinks"),
        )  # fmt: skip
    hulls = [hull for model in with_sink for hull in model["hulls"]]
    ranges = [model["range"] for model in with_sink]
    pairs, violated = (sum(each[name] for each in ranges) for name in ("pairs", "violated"))
    applies = np.mean([each["applies"][0] for each in ranges])
    least = min(hull["least"] for hull in hulls)
    failed = [m["name"] for m in with_sink if min(h["least"] for h in m["hulls"]) <= 0]
    return Verdict(
        f"B2's bound applies to {applies:.0%} of {pairs:,} pairs of a query and a sink head",
        f"and {violated} of them have less attention on the sink than it requires",
        f"values of a text surround zero in {few(failed, LINE - 32)}" if failed
        else f"values of a text come within {least:.2f} of their length of zero",
        conversion(of_one(record)),
    )  # fmt: skip


REPORT = Report(sections, verdict)
