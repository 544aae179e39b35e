"""Cells of the benchmark: outliers, loss and what compression costs, a row for each cell."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from sysout_jax.analysis.statistics import mean_interval
from sysout_jax.plots.forest import Mark, forest
from sysout_jax.plots.style import Record, grid, looks, note

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {
    "sink_rate@attn_weights": "Sink$_0$(0.3)",
    "top1_over_median@block_out": "max/median |h|",
    "weight_ratio@down": "max/mean |W_down|",
    "val_loss": "validation loss",
    "w8a8": "W8A8: rise of loss",
    "w4a4": "W4A4: rise of loss",
}


def figures(record: Record) -> Iterator[tuple[str, "Figure"]]:
    """The figure of a benchmark record."""
    cells = [cell for cell in record["cells"] if "diverged" not in cell]
    if cells:
        yield "cells", _cells(cells)


def _values(cell: Record, name: str) -> list[float] | None:
    """Of each seed; None where the cell has no such number."""
    if name == "val_loss":
        return list(cell["val_loss"][-1])
    found = cell["measures"].get(name, cell["compressed"].get(name))
    return None if found is None or None in found else list(found)


def _way(cell: Record) -> str:
    """How a cell is trained: its optimiser, and what else is not the preset's own."""
    rest = (cell[name] for name in ("norm", "setting"))
    return ", ".join([cell["optimizer"], *(each for each in rest if each != "own")])


def _cells(cells: list[Record]) -> "Figure":
    """Seeds as points, their mean and its interval; a colour for each way to train."""
    panels = {name: text for name, text in PANELS.items() if any(_values(c, name) for c in cells)}
    figure, axes = grid(len(panels), 3.4, 1.0 + 0.2 * len(cells), sharey=True)
    labels = [f"{cell['variant']}: {_way(cell)}" for cell in cells]
    ways = list(dict.fromkeys(map(_way, cells)))
    look = dict(zip(ways, looks(ways), strict=True))
    for axis, (name, text) in zip(axes, panels.items(), strict=True):
        marks = [
            Mark(row, mean_interval(values), look[_way(cell)].colour, marker="|", dots=values)
            for row, cell in enumerate(cells) if (values := _values(cell, name)) is not None
        ]  # fmt: skip
        forest(axis, labels, marks, fontsize=7)
        axis.set_xlabel(text)
        axis.locator_params(axis="x", nbins=4)
    note(figure, "bars: mean, whiskers: Student's 95% interval over seeds, dots: seeds")
    return figure
