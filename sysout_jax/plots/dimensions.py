"""Outlier dimensions beside the residual stream's peaks, and predictions without them."""

from typing import TYPE_CHECKING, Any

import numpy as np

from sysout_jax.plots.style import COLOURS, Record, array, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAMED = 8  # dimensions that the figure names
DRAWN = {"kl": "KL, nats", "slope": "slope on frequencies"}


def dimensions(record: Record, part: Record) -> "Figure":
    """Scores beside peaks; divergence and slope of each ablation; scores over checkpoints."""
    stages = part["stages"]
    ablated = len(part["ablations"]) > 1
    figure, panels = grid(1 + ablated * len(DRAWN) + (len(stages) > 1), 3.3, 2.9)
    places, *others = panels
    _scores(places, part)
    if ablated:
        for axes, (name, label) in zip(others, DRAWN.items(), strict=False):
            _readout(axes, part, name, label)
    if len(stages) > 1:
        axes = panels[-1]
        largest = array([stage["largest"] for stage in stages])
        axes.plot(array([stage["step"] for stage in stages]), largest, "o-", color=COLOURS[3], ms=3)
        axes.axhline(1.0, color="grey", lw=0.8, ls=":")
        axes.set(xlabel="optimiser steps", ylabel="largest score")
        axes.set_ylim(bottom=0)
    return figure


def _scores(axes: Any, part: Record) -> None:
    """Every dimension: its peak in the residual stream and its score after the final norm."""
    peaks, scores = array(part["peaks"]), array(part["scores"])
    outliers = [each["index"] for each in part["dimensions"]]
    massive = list(part["overlaps"][0]["dimensions"])
    axes.plot(peaks, scores, ".", color="#999999", ms=3)
    axes.plot(peaks[outliers], scores[outliers], "o", color=COLOURS[2], ms=4, label="outlier")
    if massive:
        axes.plot(
            peaks[massive], scores[massive], "o", mfc="none", color=COLOURS[3], ms=8,
            label="massive activations",
        )  # fmt: skip
    for index in dict.fromkeys([*outliers[:NAMED], *massive[:NAMED]]):
        axes.annotate(
            str(index), (peaks[index], scores[index]), xytext=(4, 2), textcoords="offset points",
            fontsize=7,
        )  # fmt: skip
    axes.axhline(1.0, color="grey", lw=0.8, ls=":")
    axes.set(xlabel="peak over median $|h|$, residual stream", ylabel="score after the final norm")
    if (peaks > 0).all() and (scores > 0).all():
        axes.set(xscale="log", yscale="log")
    if outliers or massive:
        axes.legend(fontsize=7, loc="lower right")


def _readout(axes: Any, part: Record, name: str, label: str) -> None:
    """One readout of each kind of ablation: random sets grey, the rest with intervals."""
    rows: dict[tuple[str, bool], list[Record]] = {}
    for each in part["ablations"]:
        rows.setdefault((each["of"], each["kept"]), []).append(each)
    labels = []
    for place, ((of, kept), entries) in zip(np.arange(len(rows))[::-1], rows.items(), strict=True):
        for each in entries:
            mean, low, high = array(each["values"][name])
            colour = COLOURS[2] if of == "outlier dimensions" else "#777777"
            axes.plot([low, high], [place, place], color=colour, lw=0.9)
            axes.plot(mean, place, "o", color=colour, ms=3.5)
        labels.append(f"{of} alone" if kept else f"without {of}" if of else "all dimensions")
    axes.set_yticks(np.arange(len(rows))[::-1], labels, fontsize=8)
    axes.set_xlabel(label)
    axes.grid(axis="y", visible=False)
