"""Cells of the laboratory: sinks of every run by variant and setting, and how their logits grow."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from sysout_jax.plots.forest import Mark, forest
from sysout_jax.plots.style import Record, array, grid, looks, note

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# What a cell is beside its variant, where nothing is said.
DEFAULT_CELL: Mapping[str, Any] = MappingProxyType(
    {
        "optimizer": "adamw", "layers": 1, "loss": "all", "start": "bos", "decay": 1e-4,
        "eps": 1e-8, "norm": "own", "penalty": "none",
    }
)  # fmt: skip


def figures(record: Record) -> Iterator[tuple[str, "Figure"]]:
    """Every figure of a laboratory record, by name."""
    cells = [cell for cell in record["cells"] if "diverged" not in cell]
    if cells:
        yield "sinks", _sinks(record, cells)
        yield "growth", _growth(cells)


def setting(cell: Record) -> str:
    """What a cell is beside its variant, in words."""
    words = [cell["optimizer"], f"{cell['layers']} layer{'s' * (cell['layers'] > 1)}"]
    words += ["BOS not trained"] if cell["loss"] == "masked" else []
    words += ["no BOS"] if cell["start"] == "none" else []
    words += [f"{n} {cell[n]:g}" for n in ("decay", "eps") if cell[n] != DEFAULT_CELL[n]]
    words += [f"{cell['norm']} norms"] if cell["norm"] != DEFAULT_CELL["norm"] else []
    words += [cell["penalty"]] if cell["penalty"] != DEFAULT_CELL["penalty"] else []
    return ", ".join(words)


def _sinks(record: Record, cells: list[Record]) -> "Figure":
    """A row for each cell, a point for each run, a line at their mean."""
    figure, (sink, drain) = grid(2, 4.6, 1.0 + 0.24 * len(cells), sharey=True)
    panels = {"noop_sink_best": sink, "value_drain@value": drain}
    names = [f"{cell['variant']}: {setting(cell)}" for cell in cells]
    variants = list(dict.fromkeys(cell["variant"] for cell in cells))
    colours = dict(zip(variants, (look.colour for look in looks(variants)), strict=True))
    for name, axes in panels.items():
        runs = [array(cell["measures"][name]) for cell in cells]
        marks = [
            Mark(row, (found.mean(), None, None), colours[cell["variant"]], marker="|",
                 dots=found.tolist())
            for row, (cell, found) in enumerate(zip(cells, runs, strict=True))
        ]  # fmt: skip
        forest(axes, names, marks, fontsize=7)
    sink.set_xlim(-0.03, 1.03)
    sink.set_xlabel("no-op queries: attention to first token, best head")
    drain.set_xlabel("norm of its value over the others' mean")
    note(figure, f"points: runs, of {len(record['chains'])} chains; lines: their means")
    return figure


def _growth(cells: list[Record]) -> "Figure":
    """Mean log odds of the first token against steps, of the first cell's setting."""
    from matplotlib.ticker import LogLocator

    usual = [cell for cell in cells if setting(cell) == setting(cells[0])]
    figure, (axes,) = grid(1, 5.4, max(3.4, 0.8 + 0.2 * len(usual)))  # as tall as the legend
    for cell, look in zip(usual, looks([cell["variant"] for cell in usual]), strict=True):
        steps, gaps = array(cell["step"]), array(cell["curves"]["sink_gap"])
        after = steps > 0
        axes.plot(
            steps[after], gaps[after].mean(axis=1), look.line, color=look.colour,
            label=cell["variant"],
        )  # fmt: skip
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.set_xlabel("optimiser steps")
    axes.set_ylabel("log odds of first token\nagainst other tokens, best head")
    axes.set_title(f"Bigram-Backcopy: {setting(cells[0])}", loc="left")
    note(figure, "lines: mean over runs; a logarithm of the steps is a straight line")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    return figure
