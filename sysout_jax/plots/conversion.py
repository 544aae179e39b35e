"""A model before and after its conversion, layer by layer."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sysout_jax.plots.style import COLOURS, Record, grid, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def figures(record: Record) -> Iterator[tuple[str, "Figure"]]:
    """Every figure of a record of conversions, by name."""
    for model in record["models"]:
        # Of tokens that all texts begin with there is no spread.
        spread = (model["sink"] or {}).get("replaces_first")
        parts = [_peaks] * bool(model["check"]) + [_spread] * bool(spread)
        if parts:
            yield model["name"], _figure(model, parts)


def _figure(record: Record, parts: Sequence[Callable[["Axes", Record], None]]) -> "Figure":
    figure, panels = grid(len(parts), 3.8, 2.8)
    for draw, axes in zip(parts, panels, strict=True):
        draw(axes, record)
        axes.set_xlabel("layer")
    figure.suptitle(f"{record['name']}: {record['kind']}", x=0.01, ha="left", fontsize=9.5)
    if _spread in parts:
        note(figure, "grey: layers whose first token is written as constants")
    return figure


def _peaks(axes: "Axes", record: Record) -> None:
    found = record["check"]["over_median"]
    for name, of, colour in zip(("before", "after"), found, COLOURS[2:4], strict=True):
        axes.plot(np.arange(len(of)), of, color=colour, lw=1.3, label=name)
    axes.set_yscale("log")
    axes.legend(fontsize=7)
    axes.set_title("largest |h| / median", loc="left")


def _spread(axes: "Axes", record: Record) -> None:
    for name, colour in zip(("key", "value"), COLOURS[:2], strict=True):
        of = record["spread"][name]
        axes.plot(np.arange(len(of)), of, color=colour, lw=1.3, label=name)
    for layer in record["sink"]["layers"]:
        axes.axvspan(layer - 0.5, layer + 0.5, color=COLOURS[0], alpha=0.08, lw=0)
    axes.set_yscale("log")
    axes.legend(fontsize=7)
    axes.set_title("first token: spread over texts", loc="left")
