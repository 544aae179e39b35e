"""What all figures share: style, colours, a grid of axes, files."""

import re
import textwrap
from collections.abc import Mapping, Sequence
from itertools import cycle, product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from sysout_jax.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = Mapping[str, Any]  # what a run wrote, or a part of it
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

PAPER = (  # variants (a) to (f), which have the first colours in every figure
    "softmax", "value_bias", "context_bias", "attention_bias", "context_scale", "sigmoid",
)  # fmt: skip
LINES = ("-", "--", ":", "-.")  # one after the other, as colours run out
GAP = 12  # pixels above and below a panel that is stacked
LETTERS = 12  # of a title, in an inch
DARK = "#222222"  # of zero, and of whiskers on bars


class Look(NamedTuple):
    """What tells one series of a figure from others."""

    colour: str
    line: str  # its style


def looks(names: Sequence[str]) -> list[Look]:
    """The look of each series of a figure: that of (a) to (f) is the same in all figures.

    Args:
      names: of variants, with or without their letter, or of other series, which get what is free
        by their position; beside (a) to (f), colours of those that are absent come last.
    """
    plain = [re.sub(r"^\([a-z]\) ", "", name) for name in names]
    fixed = {name: COLOURS[at] for at, name in enumerate(PAPER) if name in plain}
    free = [colour for colour in COLOURS if colour not in fixed.values()]
    if fixed:
        free.sort(key=COLOURS[: len(PAPER)].__contains__)
    others = cycle([*product(LINES, free), *product(LINES[1:], fixed.values())])
    made = []
    for name in plain:
        if name in fixed:  # a second model of that name is another series
            made.append(Look(fixed.pop(name), LINES[0]))
        else:
            line, colour = next(others)
            made.append(Look(colour, line))
    return made


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


def note(figure: "Figure", says: str) -> None:
    """What the marks of a figure stand for, under it."""
    figure.supxlabel(says, fontsize=8, color="#555555")


def legend_below(
    figure: "Figure", handles: Sequence[Any], labels: Sequence[str], says: str, columns: int
) -> None:
    """One legend of all panels under a figure, below what its marks stand for."""
    figure.legend(
        handles, labels, loc="outside lower center", ncols=min(len(labels), columns), fontsize=8,
        title=says, title_fontproperties={"size": 8},
    )  # fmt: skip


def named(model: Mapping[str, Any]) -> str:
    """What a record calls a model, and its seed if it has one."""
    return str(model["name"]) if model["seed"] is None else f"{model['name']}-{model['seed']}"


def array(rows: Any) -> np.ndarray:
    """Rows of a record as floats; null, which stands for what is not finite, is NaN."""
    return np.array(rows, dtype=np.float64)


def count_axis(axis: Any, count: int, most: int = 10) -> None:
    """Ticks at whole numbers from 0 to count - 1, at most so many."""
    axis.set_ticks(np.arange(0, count, -(-count // most)))


def _wrapped(figure: "Figure") -> None:
    """Break a title that is longer than its figure: a path, or the name of a model."""
    if len(figure.axes) == 1 and "$" not in (title := figure.axes[0].get_title(loc="left")):
        room = int(LETTERS * figure.get_figwidth())
        lines = [textwrap.fill(line, room) for line in title.split("\n")]
        figure.axes[0].set_title("\n".join(lines), loc="left")


def save(figure: "Figure", path: Path) -> Path:
    """Write a figure, whole or not at all; the suffix, .png or .pdf, says how."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_pdf import FigureCanvasPdf

    _wrapped(figure)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        if path.suffix == ".png":
            FigureCanvasAgg(figure).print_png(str(partial))
        else:  # without the date, so that the same record gives the same bytes
            FigureCanvasPdf(figure).print_pdf(str(partial), metadata={"CreationDate": None})
    return path


def save_stacked(figure: "Figure", path: Path) -> Path | None:
    """Write a figure's title, panels and notes one below the other, for narrow screens, as .png.

    Returns:
      The path; None, and nothing written, where no panels stand side by side, or where one takes
      its labels from its neighbour.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.image import imsave

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    boxes = _panels(figure, renderer)
    if len({round(left) for left, *_ in boxes}) < 2:
        return None
    about = [each.get_window_extent(renderer).extents for each in (*figure.texts, *figure.legends)]
    above = [box for box in about if box[1] > figure.bbox.height / 2]
    boxes = [*above, *boxes, *(box for box in about if box[1] <= figure.bbox.height / 2)]
    pixels = np.asarray(canvas.buffer_rgba())
    height = len(pixels)
    cut = [
        pixels[max(0, int(height - top)) : int(height - bottom) + 1, max(0, int(left)) : int(right)]
        for left, bottom, right, top in boxes
    ]
    widest = max(piece.shape[1] for piece in cut)
    white = [
        np.pad(piece, ((GAP, GAP), (0, widest - piece.shape[1]), (0, 0)), constant_values=255)
        for piece in cut
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial:
        imsave(partial, np.concatenate(white), format="png")
    return path


def _panels(figure: "Figure", renderer: Any) -> list[tuple[float, float, float, float]]:
    """Left, bottom, right and top of each panel in pixels, in the order of reading; none where
    panels have no place in a grid, or no labels of their own."""
    from matplotlib.transforms import Bbox

    cells: dict[tuple[int, int], list[Bbox]] = {}
    bars: list[Bbox] = []
    for axes in figure.axes:
        spec, labels = axes.get_subplotspec(), axes.yaxis.get_tick_params()
        box = axes.get_tightbbox(renderer)
        if box is None:  # what is not drawn
            continue
        if spec is None:
            bars.append(box)
            continue
        if not (labels.get("labelleft", True) or labels.get("labelright")):
            return []
        top = spec.get_topmost_subplotspec()
        cells.setdefault((top.rowspan.start, top.colspan.start), []).append(box)
    panels = [Bbox.union(cells[place]) for place in sorted(cells)]
    for bar in bars if panels else []:  # of colours: beside its panel, or of all, after them
        beside = [at for at, box in enumerate(panels) if box.y0 < (bar.y0 + bar.y1) / 2 < box.y1
                  and box.x0 < bar.x0 and bar.height < 1.2 * box.height]  # fmt: skip
        if beside:
            nearest = max(beside, key=lambda at: panels[at].x0)
            panels[nearest] = Bbox.union([panels[nearest], bar])
        else:
            panels.append(bar)
    return [(box.x0, box.y0, box.x1, box.y1) for box in panels]
