"""What compression costs, method by method, and how well theory E1 predicts rounding noise."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from sysout_jax.analysis.statistics import over_seeds
from sysout_jax.plots.forest import Mark, costs
from sysout_jax.plots.style import (
    DARK,
    LINES,
    Look,
    Record,
    array,
    count_axis,
    grid,
    looks,
    named,
    note,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHAPES = ("o", "s", "^", "D", "v", "P", "X")


def figures(record: Record) -> Iterator[tuple[str, "Figure"]]:
    """Every figure of a compression record, by name."""
    if not record["models"]:
        return
    corpora = list(dict.fromkeys(model["corpus"] for model in record["models"]))
    for number, corpus in enumerate(corpora):
        groups: dict[str, list[Record]] = {}
        for model in sorted(record["models"], key=lambda model: str(model["label"])):
            if model["corpus"] == corpus and model["methods"]:
                groups.setdefault(model["name"], []).append(model)
        suffix = f"-{number}" if len(corpora) > 1 else ""
        if groups:
            yield f"loss{suffix}", _loss(record["methods"], corpus, groups)
        layers = {name: of for name, of in groups.items() if "noise" in of[0]}
        if layers:
            yield f"layers{suffix}", _layers(layers)
    for model in record["models"]:
        for method, found in model["methods"].items():
            if found.get("stands_out"):
                name = named(model)
                yield f"boost-{name}-{method}", _boost(name, method, found)
    if rows := noise_rows(record):
        yield "noise", _noise(rows)


def noise_rows(record: Record) -> list[Record]:
    """The tensors of the models as trained: most conversions leave their weights."""
    return [
        row for model in record["models"] if "trained" not in model
        for row in model.get("noise", ())
    ]  # fmt: skip


def _loss(methods: list[str], corpus: str, groups: Mapping[str, list[Record]]) -> "Figure":
    """The change of the loss by each method, for each model."""
    # Rows for the methods, or for the legend beside them.
    figure, (axes,) = grid(1, 7.2, 0.9 + max(0.26 * len(methods), 0.2 * len(groups)))
    offsets = np.linspace(0.3, -0.3, len(groups)) if len(groups) > 1 else [0.0]
    marks = []
    for at, (models, look) in zip(offsets, _looked(groups), strict=True):
        for row, method in enumerate(methods):
            found = [m["methods"][method] for m in models if method in m["methods"]]
            changes = [each["change"] for each in found]
            label, marker = models[0]["label"], SHAPES[LINES.index(look.line)]
            if any(change[0] is None for change in changes):
                where = {"transform": axes.get_yaxis_transform(), "va": "center", "fontsize": 6}
                place = len(methods) - 1 - row + float(at)
                axes.text(0.01, place, "not finite", color=look.colour, **where)
            elif changes:
                marks.append(
                    Mark(row, over_seeds(changes), look.colour, float(at), 0.0, marker, (), label)
                )
    costs(axes, methods, marks)
    for place in range(len(methods) - 2, -1, -2):
        axes.axhspan(place - 0.5, place + 0.5, color="#f4f4f4", lw=0, zorder=0)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.set_title(corpus, loc="left")
    several = any(len(models) > 1 for models in groups.values())
    note(figure, f"points: mean, whiskers: 95% interval over {'seeds' if several else 'sequences'}")
    return figure


def _boost(model: str, method: str, found: Record) -> "Figure":
    """How far each layer's step stands out, by part or matrix; circles are those that climb."""
    figure, (axes,) = grid(1, 6.4, 2.8)
    names = list(found["stands_out"])
    for name, (colour, line) in zip(names, looks(names), strict=True):
        z = array(found["stands_out"][name])  # null of the first layer, which has no step
        axes.plot(np.arange(len(z)), z, line, lw=1.2, color=colour, label=name)
        climbing = [n for n in found["boosted"].get(name, ()) if np.isfinite(z[n])]
        if name in found["boosted"]:
            axes.plot(climbing, z[climbing], "o", ms=5, mfc="none", color=colour)
    axes.axhline(found["above"], color=DARK, lw=0.8, ls=":")
    axes.set(xlabel="layer", ylabel="step from the layer before, z")
    axes.set_yscale("symlog", linthresh=found["above"])  # one step can be a hundred times another
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    axes.set_title(f"{model}, {method}: {found['bits']:.2f} bits a weight", loc="left")
    return figure


def _looked(groups: Mapping[str, list[Record]]) -> list[tuple[list[Record], Look]]:
    """The models of each name, and the look of their variant."""
    found = looks([models[0]["label"] for models in groups.values()])
    return list(zip(groups.values(), found, strict=True))


def _layers(groups: Mapping[str, list[Record]]) -> "Figure":
    """The SQNR at 8 bits of the inputs of each product, over layers, mean over seeds."""
    taps = [
        row["name"]
        for row in next(iter(groups.values()))[0]["noise"]
        if row["kind"] == "activation"
    ]
    figure, panels = grid(len(taps), 3.0, 2.3, sharey=True)
    for axes, tap in zip(panels, taps, strict=True):
        for models, look in _looked(groups):
            found = [
                array(row["measured"]["8"])
                for model in models
                for row in model.get("noise", ())
                if row["kind"] == "activation" and row["name"] == tap
            ]
            mean = np.mean(found, axis=0)
            axes.plot(
                np.arange(len(mean)),
                mean,
                marker="o",
                ls=look.line,
                ms=3,
                lw=1.2,
                color=look.colour,
                label=models[0]["label"],
            )
        axes.set_title(tap, loc="left")
        axes.set_xlabel("layer")
        count_axis(axes.xaxis, len(mean), most=6)
    panels[0].set_ylabel("SQNR at 8 bits, dB")
    panels[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    return figure


def _noise(rows: list[Record]) -> "Figure":
    """Measured against predicted SQNR of every tensor, a panel for each width."""
    widths = list(rows[0]["measured"])
    figure, panels = grid(len(widths), 2.9, 2.9)
    names = list(dict.fromkeys((row["kind"], row["name"]) for row in rows))
    for axes, bits in zip(panels, widths, strict=True):
        found = looks([name for _, name in names])
        for (kind, name), (colour, _) in zip(names, found, strict=True):
            mine = [row for row in rows if (row["kind"], row["name"]) == (kind, name)]
            predicted, measured = (
                np.concatenate([array(row[key][bits]) for row in mine])
                for key in ("predicted", "measured")
            )
            label = name if kind == "activation" else f"W {name}"
            axes.plot(
                predicted,
                measured,
                SHAPES[kind == "weight"],
                ms=3.5,
                alpha=0.7,
                color=colour,
                label=label,
                mew=0,
            )
        low, high = (
            min(axes.get_xlim()[0], axes.get_ylim()[0]),
            max(axes.get_xlim()[1], axes.get_ylim()[1]),
        )
        axes.plot([low, high], [low, high], color="#222222", lw=0.8, zorder=0)
        axes.set(xlim=(low, high), ylim=(low, high), aspect="equal", xlabel="predicted by E1, dB")
        axes.set_title(f"{bits} bits", loc="left")
    panels[0].set_ylabel("measured SQNR, dB")
    panels[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    return figure
