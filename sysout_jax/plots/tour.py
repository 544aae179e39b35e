"""One text as a published model reads it, as trained and converted: the spike and its attention."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from sysout_jax.plots.analysis import attention_map
from sysout_jax.plots.stems import draw_panel
from sysout_jax.plots.style import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figures(record: Record) -> Iterator[tuple[str, "Figure"]]:
    """The figure of each model of a record."""
    for model in record["models"]:
        yield model["name"], _figure(model)


def _figure(model: Record) -> "Figure":
    """A row as trained and a row converted; magnitudes on one scale."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 7.6))
    largest = [np.nanmax(np.array(of["panels"][0]["values"], np.float64))
               for of in model["drawn"].values()]  # fmt: skip
    for row, (name, of) in enumerate(model["drawn"].items()):
        state, attention = of["panels"]
        axes: Any = figure.add_subplot(2, 2, 2 * row + 1, projection="3d")
        draw_panel(axes, state, of["pieces"], max(largest))
        attention_map(figure.add_subplot(2, 2, 2 * row + 2), attention, of["pieces"])
        label = f"{model['name']}, " + (name if row == 0 else f"converted ({name})")
        figure.text(0.01, 0.99 - 0.485 * row, label, fontsize=9.5, va="top", weight="bold")
    figure.subplots_adjust(left=0.03, right=0.95, top=0.93, bottom=0.08, wspace=0.16, hspace=0.34)
    return figure
