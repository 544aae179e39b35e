"""How kinds relate, what outlier tokens do for heads, and what interventions cost."""

from typing import TYPE_CHECKING

import numpy as np

from sysout_jax.plots.forest import Mark, forest
from sysout_jax.plots.style import COLOURS, DARK, Record, array, count_axis, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def relations(record: Record, part: Record) -> "Figure | None":
    """Precision and recall with intervals, beside what shuffled positions give."""
    rows = [row for row in part["rows"] if row["sequences"]]
    if not rows:
        return None
    figure, panels = grid(3, 2.7, 0.5 + 0.5 * len(rows), sharey=True)
    labels = [f"{row['given']} → {row['found']} ({row['on']})" for row in rows]
    for axes, name in zip(panels, ("precision", "recall", "jaccard"), strict=True):
        marks = [Mark(at, row[name], COLOURS[3], height=0.6) for at, row in enumerate(rows)]
        marks += [
            Mark(at, (row.get(f"null_{name}"), None, None), COLOURS[2], marker="|")
            for at, row in enumerate(rows)
        ]
        forest(axes, labels, marks)
        axes.set(xlim=(0, 1.02))
        axes.set_title(name, loc="left")
    figure.supxlabel(
        "whiskers: bootstrap 95%; red: the same number at random places", fontsize=8,
        color="#555555",
    )  # fmt: skip
    return figure


def roles(record: Record, part: Record) -> "Figure":
    """Every head of every layer: S, its spread, the error of S x attention over the rest, drain."""
    panels = {
        "scale": ("implicit scale S", 0.0, 1.0),
        "scale_sd": ("its sd over queries", 0.0, None),
        "error": ("error |o − S o$^R$| / |o|", 0.0, None),
        "drain": ("value norm, O over the rest", 0.0, None),
    }
    layers, heads = array(part["scale"]).shape
    height = min(max(1.6, 0.28 * layers + 0.9), 6.0)
    figure, axes = grid(4, max(2.8, 0.3 * heads + 1.4), height)
    for ax, (name, (title, low, high)) in zip(axes, panels.items(), strict=True):
        values = array(part[name])
        image = ax.imshow(values, cmap="cividis", vmin=low, vmax=high, aspect="auto")
        if values.size <= 40:
            for (row, column), value in np.ndenumerate(values):
                ax.text(
                    column, row, f"{value:.2f}", ha="center", va="center", fontsize=7,
                    color="white" if image.norm(value) < 0.6 else "black",
                )  # fmt: skip
        ax.set_title(title, loc="left")
        ax.set(xlabel="head", ylabel="layer")
        count_axis(ax.xaxis, heads)
        count_axis(ax.yaxis, layers)
        ax.grid(visible=False)
        figure.colorbar(image, ax=ax).outline.set_visible(False)
    figure.suptitle(f"O: {part['outliers']}", x=0.01, ha="left", fontsize=9)
    return figure


def interventions(record: Record, part: Record) -> "Figure":
    """The change of the loss by each intervention, and by its random control."""
    effects = part["effects"]
    groups: dict[tuple[str, str, str], dict[bool, Record]] = {}
    for effect in effects:
        key = (effect["kind"], effect["detector"], effect["treatment"])
        groups.setdefault(key, {})[effect["control"]] = effect
    figure, (axes,) = grid(1, 7.4, 0.9 + 0.36 * len(groups))
    looks = {False: (COLOURS[3], 0.19), True: ("#bbbbbb", -0.19)}
    marks = [
        Mark(row, effect["change"], *looks[control], height=0.36)
        for row, entries in enumerate(groups.values())
        for control, effect in entries.items()
    ]
    forest(axes, [f"{kind}, {who}: {what}" for kind, who, what in groups], marks)
    axes.axvline(0, color=DARK, lw=0.8)
    before = f"{part['loss'][0]:.3f} nats, perplexity {part['perplexity']:.4g}"
    axes.set_xlabel("change of the loss, nats per token")
    figure.supxlabel(
        f"before: {before}; blue: outliers, grey: as many at random, whiskers: bootstrap 95%",
        fontsize=8, color="#555555", ha="right", x=0.99,
    )  # fmt: skip
    return figure
