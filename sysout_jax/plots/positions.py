"""Where outliers sit: by layer, by class of token, by feature, by head."""

from typing import TYPE_CHECKING

import numpy as np

from sysout_jax.plots.style import COLOURS, Record, array, count_axis, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = {
    "an_block_out": "block_out (An)",
    "an_down_in": "down_in (An)",
    "sun": "massive (Sun)",
    "an_attention": "attention (An)",
}


def by_layer(record: Record, part: Record) -> "Figure":
    """Magnitudes, attention received and weight ratios of every layer."""
    figure, panels = grid(4, 3.9, 2.6)
    layers = np.arange(len(part["heads"]))
    for axes, (name, site) in zip(panels, part["sites"].items(), strict=False):
        for which, top in enumerate(array(site["top"]).T):
            axes.plot(layers, top, "o-", ms=3, color=COLOURS[which + 1], label=f"top-{which + 1}")
        median = array(site["median"])
        zero = "" if median.all() else ", 0 where not drawn"
        axes.plot(layers, median, "o-", ms=3, color="grey", label=f"median{zero}")
        axes.set_yscale("log")
        axes.set_title(f"|{name}|, mean over sequences", loc="left")
    attention, weights = panels[2], panels[3]
    for colour, (name, values) in zip(COLOURS[1:], part["attention"].items(), strict=False):
        attention.plot(layers, array(values), "o-", ms=3, color=colour, label=name)
    attention.set_title("share of attention that a key receives", loc="left")
    attention.set_ylim(bottom=0)
    matrices = part["weights"]["matrices"]
    for colour, name, rows, columns in zip(
        COLOURS[1:], matrices, array(part["weights"]["row_ratio"]).T,
        array(part["weights"]["column_ratio"]).T, strict=False,
    ):  # fmt: skip
        weights.plot(layers, rows, "o-", ms=3, color=colour, label=name)
        weights.plot(layers, columns, "s--", ms=3, color=colour)
    weights.set_yscale("log")
    weights.set_title("max/mean |W|: by row ●—, by column ■- -", loc="left")
    for axes in panels:
        axes.set_xlabel("layer")
        count_axis(axes.xaxis, len(layers))
        axes.legend(fontsize=7, ncols=2)
    return figure


def by_class(record: Record, part: Record) -> "Figure":
    """The classes of outlier tokens, beside how frequent the class is in the text."""
    figure, (axes,) = grid(1, 6.4, 3.0)
    names, kinds = part["class_names"], part["kinds"]
    places, width = np.arange(len(names)), 0.8 / (len(kinds) + 1)
    axes.bar(places, array(part["base_rate"]), width, color="#bbbbbb", label="all tokens")
    for which, (name, kind) in enumerate(kinds.items()):
        share = array(kind["classes"]) / max(kind["flagged"], 1)
        at = places + (which + 1) * width
        label = f"{KINDS[name]}, n = {kind['flagged']}"
        axes.bar(at, share, width, color=COLOURS[which + 1], label=label)
    axes.set_xticks(places + 0.4 - width / 2, names)
    axes.set(ylabel="share of the kind's tokens", ylim=(0, 1))
    axes.grid(axis="x", visible=False)
    axes.legend(fontsize=7.5)
    return figure


def by_feature(record: Record, part: Record) -> "Figure":
    """The features with the largest peaks in every layer; the larger, the larger.

    Where the median is zero, nothing says how far a peak stands out: such are grey.
    """
    figure, panels = grid(len(part["sites"]), 4.2, 2.8)
    labels = {"block_out": "channel", "down_in": "neuron"}
    experts = ", expert after expert" if record["model"].get("experts") else ""
    for axes, (name, site) in zip(panels, part["sites"].items(), strict=True):
        features, ratio = array(site["features"]), array(site["over_median"])
        layer = np.broadcast_to(np.arange(len(features))[:, None], features.shape)
        told = np.isfinite(ratio)
        axes.scatter(layer[~told], features[~told], s=40, color="#999999", lw=0)
        size = 8 + 120 * ratio[told] / max(float(ratio[told].max(initial=0.0)), 1e-12)
        dots = axes.scatter(
            layer[told], features[told], s=size, c=np.log10(np.maximum(ratio[told], 1e-12)),
            cmap="plasma_r", lw=0,
        )  # fmt: skip
        axes.set_title(f"largest {labels[name]}s of |{name}|", loc="left")
        axes.set(xlabel="layer", ylabel=f"{labels[name]} index{experts * (name == 'down_in')}")
        count_axis(axes.xaxis, len(features))
        if told.any():
            bar = figure.colorbar(dots, ax=axes, label="log$_{10}$ of peak/median")
            bar.outline.set_visible(False)
        if not told.all():
            axes.text(0.98, 0.02, "grey: the median is 0", transform=axes.transAxes, ha="right",
                      fontsize=7)  # fmt: skip
    return figure


def by_head(record: Record, part: Record) -> "Figure":
    """The share of each head's attention that is on outlier tokens, by layer."""
    figure, (axes,) = grid(1, 5.4, 2.8)
    heads = array(part["heads"])
    layers = np.arange(len(heads))
    axes.fill_between(layers, heads.min(1), heads.max(1), color="#0072B2", alpha=0.15, lw=0)
    axes.plot(np.repeat(layers, heads.shape[1]), heads.ravel(), ".", color="#56B4E9", ms=4)
    axes.plot(layers, heads.mean(1), "o-", color="#0072B2", ms=4, label="mean of heads")
    axes.set(xlabel="layer", ylabel="share of attention", ylim=(0, 1))
    axes.set_title(f"attention on {part['heads_of']}; dots are heads", loc="left")
    count_axis(axes.xaxis, len(heads))
    axes.legend(fontsize=8)
    return figure
