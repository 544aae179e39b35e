"""The life cycle as composed figures: panels in the order of the computation, arrows between."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sysout_jax.plots.stems import draw_panel
from sysout_jax.plots.style import COLOURS, Record, array, count_axis, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Places = Mapping[str, tuple[int, int]]  # panel -> (column, row)
Arrows = tuple[tuple[str, str], ...]

GATED: Places = {
    "|block_in|": (0, 0), "|mlp_norm|": (1, 0), "|gate_out|": (2, 0), "|W_down|": (0, 1),
    "|up_out|": (1, 1), "|act_out|": (2, 1), "|block_out|": (0, 2), "|down_out|": (1, 2),
    "|down_in|": (2, 2),
}  # fmt: skip
PLAIN: Places = {
    **{name: at for name, at in GATED.items() if name not in ("|gate_out|", "|up_out|")},
    "|up_out|": (2, 0),
}
MADE: Arrows = (
    ("|block_in|", "|mlp_norm|"), ("|mlp_norm|", "|gate_out|"), ("|mlp_norm|", "|up_out|"),
    ("|gate_out|", "|act_out|"), ("|act_out|", "|down_in|"), ("|up_out|", "|down_in|"),
    ("|down_in|", "|down_out|"), ("|W_down|", "|down_out|"), ("|down_out|", "|block_out|"),
)  # fmt: skip
PLAINLY: Arrows = (
    ("|block_in|", "|mlp_norm|"), ("|mlp_norm|", "|up_out|"), ("|up_out|", "|act_out|"),
    ("|act_out|", "|down_in|"), ("|down_in|", "|down_out|"), ("|W_down|", "|down_out|"),
    ("|down_out|", "|block_out|"),
)  # fmt: skip
ATTENTION: Places = {
    "|attn_norm|": (0, 1), "|query|": (1, 0), "|key|": (1, 1), "|value|": (1, 2),
    "logits": (2, 0), "weights": (2, 1), "|attn_out|": (2, 2),
}  # fmt: skip
SPREAD: Arrows = (
    ("|attn_norm|", "|query|"), ("|attn_norm|", "|key|"), ("|attn_norm|", "|value|"),
    ("|query|", "logits"), ("|key|", "logits"), ("logits", "weights"), ("weights", "|attn_out|"),
    ("|value|", "|attn_out|"),
)  # fmt: skip
GOING: Places = {
    "|block_in|": (0, 0), "|mlp_norm|": (1, 0), "|down_in|": (2, 0), "|attn_out|": (0, 1),
    "|block_out|": (1, 1), "|down_out|": (2, 1),
}  # fmt: skip
GONE: Arrows = (
    ("|block_in|", "|mlp_norm|"), ("|mlp_norm|", "|down_in|"), ("|down_in|", "|down_out|"),
    ("|down_out|", "|block_out|"), ("|block_in|", "|attn_out|"), ("|attn_out|", "|block_out|"),
)  # fmt: skip


def emergence(record: Record, part: Record) -> "Figure":
    """The layer that makes the activation, from the residual stream and back to it."""
    stage = part["emergence"]
    gated = any(panel["title"] == "|gate_out|" for panel in stage["panels"])
    places, arrows = (GATED, MADE) if gated else (PLAIN, PLAINLY)
    title = f"layer {stage['layer']} adds {stage['gained']:.3g} to channel {part['channel']}"
    return _composed(record, stage, places, arrows, title)


def given_by_seeing(record: Record, part: Record) -> float:
    """What the head gives the token, of the attention of queries that see it."""
    stage, model = part["spread"], record["model"]
    length, windowed = len(record["prompt"]), model.get("window_layers")
    seeing = length - part["token"]
    if model.get("window") and (windowed is None or stage["layer"] in windowed):
        seeing = min(seeing, model["window"])
    return float(stage["received"][stage["head"]]) * length / seeing


def spread(record: Record, part: Record) -> "Figure":
    """The attention of a later layer to the token."""
    stage = part["spread"]
    title = (
        f"head {stage['head']} gives token {part['token']} {given_by_seeing(record, part):.2f} of "
        "the attention of queries that see it"
    )
    return _composed(record, stage, ATTENTION, SPREAD, title)


def disappearance(record: Record, part: Record) -> "Figure | None":
    """The layer that removes the activation; None where there is none."""
    stage = part["disappearance"]
    if stage is None:
        return None
    title = (
        f"layer {stage['layer']} removes {stage['removed']:.3g}; cosine of its write with the "
        f"residual {stage['cosine']:.2f}"
    )
    return _composed(record, stage, GOING, GONE, title)


def _composed(
    record: Record, stage: Record, places: Places, arrows: Arrows, title: str
) -> "Figure":
    from matplotlib.figure import Figure

    columns = 1 + max(column for column, _ in places.values())
    rows = 1 + max(row for _, row in places.values())
    figure = Figure(figsize=(3.0 * columns, 2.6 * rows + 0.3))
    for panel in stage["panels"]:
        name = panel["title"].partition(",")[0]
        box = _box(*places[name], columns, rows)
        if panel["axes"][0] == "query":
            _map(figure, box, panel)
        else:
            axes: Any = figure.add_axes(box, projection="3d")
            draw_panel(axes, panel, record["prompt"])
    for start, end in arrows:
        _arrow(figure, places[start], places[end], columns, rows)
    figure.suptitle(title, x=0.02, y=0.995, ha="left", va="top", fontsize=10)
    return figure


def _box(column: int, row: int, columns: int, rows: int) -> tuple[float, float, float, float]:
    """left, bottom, width, height in the figure: gaps are left for arrows."""
    width, height = 1 / columns, 0.95 / rows
    left, bottom = column * width + 0.1 * width, (rows - 1 - row) * height + 0.14 * height
    return left, bottom, 0.76 * width, 0.74 * height


def _arrow(
    figure: "Figure", start: tuple[int, int], end: tuple[int, int], columns: int, rows: int
) -> None:
    """From the edge of one panel towards the next."""
    from matplotlib.patches import FancyArrowPatch

    def centre(place: tuple[int, int]) -> np.ndarray:
        left, bottom, width, height = _box(*place, columns, rows)
        return np.array([left + width / 2, bottom + height / 2])

    a, b = centre(start), centre(end)
    vertical = start[0] == end[0]
    middle, reach = (a + b) / 2, (0.07 if vertical else 0.075)
    middle[1] += 0.012 if vertical else 0.0  # titles are above panels
    ends = [tuple(middle - reach * (b - a)), tuple(middle + reach * (b - a))]
    figure.add_artist(
        FancyArrowPatch(
            ends[0], ends[1], transform=figure.transFigure, arrowstyle="-|>", lw=1.6,
            mutation_scale=13, color="#0072B2", shrinkA=0, shrinkB=0,
        )
    )  # fmt: skip


def _map(figure: "Figure", box: tuple[float, float, float, float], panel: Record) -> None:
    left, bottom, width, height = box
    axes = figure.add_axes((left + 0.1 * width, bottom + 0.2 * height, 0.8 * width, 0.7 * height))
    values = array(panel["values"])
    logits = panel["title"].startswith("logits")
    axes.imshow(values, cmap="viridis" if logits else "magma", aspect="auto")
    axes.set_title(f"{panel['title']}, layer {panel['layer']}", loc="left")
    axes.grid(visible=False)
    axes.set(xlabel="key", ylabel="query")
    axes.tick_params(labelsize=6.5)
    low, high = np.nanmin(values), np.nanmax(values)
    axes.text(
        0.97, 0.95, f"{low:.2g} to {high:.2g}", transform=axes.transAxes, ha="right", va="top",
        fontsize=7, color="#222222" if logits else "white",
    )  # fmt: skip


def trace(record: Record, part: Record) -> "Figure":
    """The value at the outlier's token and channel, layer by layer."""
    figure, (axes,) = grid(1, 5.6, 3.0)
    for colour, (name, values) in zip(COLOURS, part["trace"].items(), strict=False):
        axes.plot(array(values), "o-", ms=3, color=colour, label=name)
    axes.axvline(part["emergence"]["layer"], color="grey", lw=0.8, ls=":")
    if part["disappearance"]:
        axes.axvline(part["disappearance"]["layer"], color="grey", lw=0.8, ls="--")
    piece = record["prompt"][part["token"]].replace("$", r"\$")
    axes.set_title(f"token {part['token']} '{piece}', channel {part['channel']}", loc="left")
    axes.set(xlabel="layer", ylabel="value")
    count_axis(axes.xaxis, len(part["trace"]["block_in"]))
    axes.legend(fontsize=8)
    return figure
