"""Forest plots: a row for each label, and in it means with their intervals."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sysout_jax.plots.style import DARK, array

LINEAR = 0.01  # nats: below it the axis of a change of loss is linear


@dataclass(frozen=True)
class Mark:
    """A mean with its interval in one row; what is null or NaN is not drawn."""

    row: int  # of the labels
    found: Sequence[float | None]  # mean, low, high
    colour: str
    offset: float = 0.0  # above the middle of the row
    height: float = 0.0  # of a bar up to the mean; 0: a point there
    marker: str = "o"  # of that point
    dots: Sequence[float | None] = ()  # what the mean is of
    label: str = ""  # of its series, where the figure has a legend


def forest(axes: Any, labels: Sequence[str], marks: Iterable[Mark], fontsize: int = 8) -> None:
    """Draw marks in rows, the first label at the top.

    Args:
      axes: of a figure; its rows are from 0, the last label's, up.
      labels: of the rows.
      marks: in any order.
      fontsize: of the labels.
    """
    for mark in marks:
        place, beside = len(labels) - 1 - mark.row + mark.offset, mark.colour
        mean, low, high = array(mark.found)
        if mark.height:
            axes.barh(place, mean, mark.height, color=mark.colour, alpha=0.75)
            beside = DARK
        elif np.isfinite(mean):
            size = 9 if mark.marker == "|" else 4
            axes.plot(mean, place, mark.marker, ms=size, color=mark.colour)
        if np.isfinite(low) and np.isfinite(high):
            reach = [[max(mean - low, 0.0)], [max(high - mean, 0.0)]]
            axes.errorbar(mean, place, xerr=reach, fmt="none", ecolor=beside, elinewidth=1)
        dots = array(mark.dots)
        axes.plot(dots, np.full(dots.shape, place), "o", ms=2.5, mew=0, color=beside)
    axes.set_yticks(np.arange(len(labels))[::-1], labels, fontsize=fontsize)
    axes.set_ylim(-0.6, len(labels) - 0.4)
    axes.grid(axis="y", visible=False)


def costs(axes: Any, labels: Sequence[str], marks: Sequence[Mark]) -> None:
    """Draw changes of a loss in rows, on an axis that is linear about zero, with what a legend
    says of each series."""
    forest(axes, labels, marks)
    for label, marker, colour in dict.fromkeys((m.label, m.marker, m.colour) for m in marks):
        axes.plot([], [], marker, ms=4, color=colour, label=label)
    axes.axvline(0, color=DARK, lw=0.8)
    axes.set_xscale("symlog", linthresh=LINEAR)
    axes.set_xlabel(f"change of the loss, nats (linear below {LINEAR})")
