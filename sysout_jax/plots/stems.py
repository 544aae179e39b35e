"""Magnitudes as stems over a plane: the paper's 3-D plots."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from mpl_toolkits.mplot3d import Axes3D


def draw_stems(
    axes: "Axes3D", size: np.ndarray, labels: tuple[str, str, str], top: float | None = None
) -> None:
    """Draw one stem for each entry of a matrix of magnitudes.

    Args:
      axes: of a figure, with projection="3d".
      size: [rows, columns]; NaN draws nothing.
      labels: of rows, columns and heights.
      top: the largest height of the axis; None for that of the matrix.
    """
    from mpl_toolkits.mplot3d.art3d import Line3DCollection

    shape, size = size.shape, np.nan_to_num(size)
    top = top or max(float(size.max()), 1e-12)
    rows, columns = (axis.ravel() for axis in np.indices(shape))
    order = np.argsort(size.ravel())  # the tallest stems drawn last
    foot = np.stack([rows, columns, np.zeros(size.size)], axis=1)[order]
    head = np.stack([rows, columns, size.ravel()], axis=1)[order]
    stems = Line3DCollection(np.stack([foot, head], axis=1), cmap="plasma_r", linewidths=0.9)
    stems.set_array(head[:, 2])
    stems.set_clim(0, top)
    axes.add_collection3d(stems)
    bounds: Any = {"xlim": (0, shape[0]), "ylim": (0, shape[1]), "zlim": (0, top)}
    axes.set(**bounds)
    axes.set_xlabel(labels[0], labelpad=-8)
    axes.set_ylabel(labels[1], labelpad=-8)
    axes.set_zlabel(labels[2], labelpad=-8)
    axes.tick_params(labelsize=6.5, pad=-3)
    axes.view_init(elev=22, azim=-58)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.pane.set_facecolor("white")
        axis.pane.set_edgecolor("#cccccc")


def draw_panel(
    axes: "Axes3D", panel: Mapping[str, Any], pieces: list[str], top: float | None = None
) -> None:
    """Draw a panel of an analysis record: its stems, its title, its outliers by name.

    Args:
      axes: of a figure, with projection="3d".
      panel: as analysis/existence.py makes it; neighbours may be joined, the largest shown.
      pieces: the labels of the tokens.
      top: as of `draw_stems`.
    """
    size = np.abs(np.array(panel["values"], dtype=np.float64))
    draw_stems(axes, size, (panel["axes"][0], panel["axes"][1], ""), top)
    axes.locator_params(nbins=4)
    axes.zaxis.set_tick_params(pad=0)
    for which, axis in enumerate((axes.xaxis, axes.yaxis)):
        count = (panel["rows"], panel["features"])[which]
        step = joined(count, size.shape[which])
        if step > 1:
            ticks = np.linspace(0, size.shape[which], 4, dtype=int)[:-1]
            axis.set_ticks(ticks, [f"{at * step}" for at in ticks])
    for row, column in panel["marks"]:
        at = (
            row // joined(panel["rows"], size.shape[0]),
            column // joined(panel["features"], size.shape[1]),
        )
        height = float(np.nan_to_num(size[at]))
        axes.scatter([at[0]], [at[1]], [height], s=16, color="#009E73", depthshade=False, zorder=9)
    named = [
        mark_label(panel, row, column, pieces).replace("$", r"\$")  # no formula begins there
        for row, column in panel["marks"]
    ]
    axes.set_title(f"{panel['title']}, layer {panel['layer']}", loc="left", y=1.0)
    axes.text2D(
        0.0, 0.98, "; ".join(named), transform=axes.transAxes, fontsize=7.5, color="#00543D",
        va="top",
    )  # fmt: skip


def joined(features: int, columns: int) -> int:
    """How many neighbours each column of a panel stands for."""
    return -(-features // columns)


def mark_label(panel: Mapping[str, Any], row: int, column: int, pieces: list[str]) -> str:
    """What is written at a marked entry, e.g. "token 0 'Summer', neuron 12"."""
    if panel["axes"][1] == "key":
        return f"key {column} '{pieces[column]}'"
    first = (
        f"token {row} '{pieces[row]}'" if panel["axes"][0] == "token" else coordinate(panel, 0, row)
    )
    return f"{first}, {coordinate(panel, 1, column)}"


def coordinate(panel: Mapping[str, Any], axis: int, index: int) -> str:
    """An index on the rows (0) or columns (1) of a panel, e.g. "neuron 12 of expert 3"."""
    name, count = panel["axes"][axis], (panel["rows"], panel["features"])[axis]
    experts = panel.get("experts", 0)
    if name != "neuron" or not experts:
        return f"{name} {index}"
    return f"neuron {of_expert(index, count // experts)}"


def of_expert(index: int, width: int) -> str:
    """Number `index` of a mixture, as that of one of its experts, which have `width` each."""
    return f"{index % width} of expert {index // width}"
