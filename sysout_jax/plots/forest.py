"""Forest plots: a row for each label, and in it means with their intervals."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sysout_jax.plots.style import DARK, array


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
