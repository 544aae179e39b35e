"""How kinds relate, what outlier tokens do for heads, and what interventions cost."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sysout_jax.plots.style import COLOURS, array, count_axis, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = Mapping[str, Any]


def relations(record: Record, part: Record) -> "Figure | None":
    """Precision and recall with intervals, beside what shuffled positions give."""
    rows = [row for row in part["rows"] if row["sequences"]]
    if not rows:
        return None
    figure, panels = grid(3, 2.7, 0.5 + 0.5 * len(rows), sharey=True)
    places = np.arange(len(rows))[::-1]
    for axes, name in zip(panels, ("precision", "recall", "jaccard"), strict=True):
        for place, row in zip(places, rows, strict=True):
            mean, low, high = array(row[name])
            axes.barh(place, mean, color=COLOURS[3], alpha=0.75, height=0.6)
            axes.errorbar(mean, place, xerr=[[mean - low], [high - mean]], color="#222222", lw=1)
            if f"null_{name}" in row:
                axes.plot(row[f"null_{name}"], place, "|", color=COLOURS[2], ms=14, mew=2)
        axes.set(xlim=(0, 1.02))
        axes.set_title(name, loc="left")
        axes.grid(axis="y", visible=False)
    labels = [f"{row['given']} → {row['found']} ({row['on']})" for row in rows]
    panels[0].set_yticks(places, labels)
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
        "error": ("error |o − S o$^R$| / |o|", 0.0, 1.0),
        "drain": ("value norm, O over the rest", 0.0, 1.0),
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
    places = np.arange(len(groups))[::-1]
    for place, entries in zip(places, groups.values(), strict=True):
        for control, effect in entries.items():
            mean, low, high = array(effect["change"])
            at = place + (-0.19 if control else 0.19)
            axes.barh(at, mean, 0.36, color="#bbbbbb" if control else COLOURS[3])
            axes.errorbar(mean, at, xerr=[[mean - low], [high - mean]], color="#222222", lw=0.9)
    labels = [f"{kind}, {who}: {what}" for kind, who, what in groups]
    axes.set_yticks(places, labels, fontsize=8)
    axes.axvline(0, color="#222222", lw=0.8)
    axes.grid(axis="y", visible=False)
    before = f"{part['loss'][0]:.3f} nats, perplexity {part['perplexity']:.4g}"
    axes.set_xlabel("change of the loss, nats per token")
    figure.supxlabel(
        f"before: {before}; blue: outliers, grey: as many at random, whiskers: bootstrap 95%",
        fontsize=8, color="#555555", ha="right", x=0.99,
    )  # fmt: skip
    return figure
