"""A model before and after its conversion, layer by layer."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sysout_jax.plots.style import COLOURS, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = Mapping[str, Any]


def figures(record: Record) -> Iterator[tuple[str, "Figure"]]:
    """Every figure of a record of conversions, by name."""
    for model in record["models"]:
        if model["check"] or model["sink"]:
            yield model["name"], _figure(model)


def _figure(record: Record) -> "Figure":
    figure, (peaks, spread) = grid(2, 3.8, 2.8)
    if record["check"]:
        for name, of, colour in zip(
            ("before", "after"), record["check"]["over_median"], COLOURS[2:4], strict=True
        ):
            peaks.plot(np.arange(len(of)), of, color=colour, lw=1.3, label=name)
        peaks.set_yscale("log")
        peaks.legend(fontsize=7)
    peaks.set_title("largest |h| / median", loc="left")
    sink = record["sink"] or {}
    if sink.get("replaces_first"):  # of tokens that all texts begin with there is no spread
        for name, colour in zip(("key", "value"), COLOURS[:2], strict=True):
            of = record["spread"][name]
            spread.plot(np.arange(len(of)), of, color=colour, lw=1.3, label=name)
        for layer in sink["layers"]:
            spread.axvspan(layer - 0.5, layer + 0.5, color=COLOURS[0], alpha=0.08, lw=0)
        spread.set_yscale("log")
        spread.legend(fontsize=7)
    spread.set_title("first token: spread over texts", loc="left")
    for axes in (peaks, spread):
        axes.set_xlabel("layer")
    figure.suptitle(f"{record['name']}: {record['kind']}", x=0.01, ha="left", fontsize=9.5)
    return figure
