"""What all figures share: style, colours, a grid of axes, files."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sysout_jax.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE: Mapping[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 150,
    "savefig.bbox": "tight",
    "mathtext.fontset": "cm",
}
# Okabe & Ito's palette, readable with any colour vision; then their darker shades.
COLOURS = (
    "#000000", "#E69F00", "#D55E00", "#0072B2", "#009E73", "#56B4E9", "#CC79A7", "#8A6D00",
    "#7A3500", "#003F63", "#00543D", "#7F4666",
)  # fmt: skip

DARK = "#222222"  # of zero, and of whiskers on bars


def grid(panels: int, width: float, height: float, **kwargs: Any) -> tuple["Figure", list[Any]]:
    """A figure with room for `panels` axes, three in a row, each of the given size in inches."""
    from matplotlib.figure import Figure

    columns = 2 if panels == 4 else min(panels, 3)
    rows = -(-panels // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **kwargs).ravel()
    for spare in axes[panels:]:
        spare.remove()
    return figure, list(axes[:panels])


def array(rows: Any) -> np.ndarray:
    """Rows of a record as floats; null, which stands for what is not finite, is NaN."""
    return np.array(rows, dtype=np.float64)


def count_axis(axis: Any, count: int, most: int = 10) -> None:
    """Ticks at whole numbers from 0 to count - 1, at most so many."""
    axis.set_ticks(np.arange(0, count, -(-count // most)))


def save(figure: "Figure", path: Path) -> Path:
    """Write a figure, whole or not at all; the suffix, .png or .pdf, says how."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf

    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        if path.suffix == ".png":
            FigureCanvasAgg(figure).print_png(str(partial))
        else:  # without the date, so that the same record gives the same bytes
            FigureCanvasPdf(figure).print_pdf(str(partial), metadata={"CreationDate": None})
    return path
