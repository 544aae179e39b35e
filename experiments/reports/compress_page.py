"""The page of experiments.compress: what methods cost, and the worst tensors, layers and tokens."""

import html
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.files import write_text
from sysout_jax.plots.style import named
from sysout_jax.report.page import document, drawn
from sysout_jax.report.tables import shown
from sysout_jax.showing import Table

from ..cli.tables import Section

Record = dict[str, Any]
SHOWN = 12  # tensors that are named
CAPTIONS = {  # of figures, by how their names begin
    "loss": "Change of the loss by each method; the interval is over sequences or seeds.",
    "layers": "Measured signal to noise of the inputs of each layer's products at 8 bits.",
    "boost": "How far each part stands out, and which of them get more bits.",
    "noise": "Measured signal to noise beside theory E1, a point for each tensor.",
}


def write_page(
    record: Record, directory: Path, sections: Iterable[Section], said: Sequence[str]
) -> Path:
    """Write report.html into a run directory whose figures are drawn; returns its path.

    Args:
      record: of experiments.compress.
      directory: the run directory.
      sections: of its report, those that a console leaves out too.
      said: the sentences of its verdict.
    """
    trained = [model for model in record["models"] if "trained" not in model]
    names = ", ".join(dict.fromkeys(model["name"] for model in trained))
    texts = dict.fromkeys(
        f"{model['tokens']['evaluation']:,} tokens of {model['corpus']}, calibrated on "
        f"{model['tokens']['calibration']:,} others"
        for model in record["models"]
    )
    figures = directory / "figures"
    pictures = "".join(
        drawn(figures, path.stem, caption)
        for begin, caption in CAPTIONS.items()
        for path in sorted(figures.glob(f"{begin}*.png"))
    )
    parts = [
        f"<p>{html.escape('; '.join(texts))}.</p>",
        *map(_section, sections),
        f"<h2>Figures</h2>{pictures}" if pictures else "",
    ]
    title = f"What compression costs {names or 'no model'}"
    return write_text(directory / "report.html", document(title, said, "\n".join(parts), record))


def _section(section: Section) -> str:
    lines = "".join(f"<li>{html.escape(line)}</li>" for line in section.lines)
    return (shown(section.table) if section.table else "") + (f"<ul>{lines}</ul>" if lines else "")


def details(model: Record) -> Iterator[tuple[str, Table]]:
    """(name, table): the tensors and the layers that rounding costs most, and the tokens."""
    name = named(model)
    if model.get("noise"):
        yield f"{name}-tensors", _tensors(name, model["noise"])
        yield f"{name}-layers", _layers(name, model["noise"])
    of = {m: found for m, found in model["methods"].items() if found.get("worst")}
    if of:  # older records have none
        method = max(of, key=lambda m: -np.inf if of[m]["loss"] is None else of[m]["loss"])
        rows = [
            [each["token"], each["after_text"], each["before"], each["after"], each["sequence"],
             each["position"]]
            for each in of[method]["worst"]
        ]  # fmt: skip
        title = f"{name}, worst tokens under {method}: loss in nats, before and under it"
        headings = ("token", "after", "before", "under it", "sequence", "position")
        yield f"{name}-tokens", Table.of(title, headings, rows, "llr")


def _tensors(name: str, noise: list[Record]) -> Table:
    """The tensors with the lowest ratio of signal to noise at the most bits."""
    bits = list(noise[0]["measured"])
    rows = [
        [each["kind"], each["name"], layer, ratio,
         *(each["measured"][b][layer] for b in bits), each["predicted"][bits[0]][layer]]
        for each in noise
        for layer, ratio in enumerate(each["peak_over_rms"])
    ]  # fmt: skip
    rows = sorted((row for row in rows if row[4] is not None), key=lambda row: row[4])[:SHOWN]
    headings = [
        "kind", "tensor", "layer", "max/RMS", *(f"SQNR, {b} bits" for b in bits),
        f"theory E1, {bits[0]}",
    ]  # fmt: skip
    return Table.of(
        f"{name}, worst tensors: lowest SQNR at {bits[0]} bits, dB", headings, rows, "llr"
    )


def _layers(model: str, noise: list[Record]) -> Table:
    """Of each layer the tensor of each kind that rounding costs most."""
    first, rows = next(iter(noise[0]["measured"])), []
    kinds = list(dict.fromkeys(each["kind"] for each in noise))
    for layer in range(len(noise[0]["peak_over_rms"])):
        cells: list[Any] = []
        for kind in kinds:
            of = [
                (each["measured"][first][layer], each["name"]) for each in noise
                if each["kind"] == kind and each["measured"][first][layer] is not None
            ]  # fmt: skip
            low, name = min(of, default=(None, ""))
            cells += [name, low]
        rows.append([layer, *cells])
    headings = ["layer"]
    for kind in kinds:
        headings += [f"worst {kind}", f"{kind}'s SQNR, dB"]
    return Table.of(f"{model}, layers: lowest SQNR at {first} bits", headings, rows, "r")
