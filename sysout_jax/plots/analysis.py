"""Figures of the analysis experiment: one function per figure, by part."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sysout_jax.analysis.statistics import LAWS, MODULATED, modulated
from sysout_jax.plots import dimensions, effects, lifecycle, measures, positions, sinks
from sysout_jax.plots.stems import draw_panel
from sysout_jax.plots.style import Record, array, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def figures(record: Record) -> Iterator[tuple[str, "Figure"]]:
    """Every figure of an analysis record, by name: part, or part-subject."""
    for part in record["parts"]:
        for name, draw in FIGURES[part].items():
            figure = draw(record, record["parts"][part])
            if figure is not None:
                yield name, figure


def existence(record: Record, part: Record) -> "Figure":
    """The paper's Figure 1: magnitudes in 3-D with the outliers named, and the attention map."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 7.4))
    for at, panel in enumerate(part["panels"][:3]):
        axes: Any = figure.add_subplot(2, 2, at + 1, projection="3d")
        draw_panel(axes, panel, record["prompt"])
    attention_map(figure.add_subplot(2, 2, 4), part["panels"][3], record["prompt"])
    figure.subplots_adjust(left=0.03, right=0.95, top=0.95, bottom=0.08, wspace=0.16, hspace=0.2)
    return figure


def attention_map(axes: Any, panel: Record, pieces: list[str]) -> None:
    """Weights by query and key; the square root shows a hundredth beside one."""
    image = axes.imshow(np.sqrt(array(panel["values"])), cmap="magma", vmin=0, vmax=1)
    axes.set_title(f"{panel['title']}, layer {panel['layer']}, mean of heads", loc="left")
    axes.grid(visible=False)
    axes.set(xlabel="key", ylabel="query")
    if len(pieces) <= 40:
        size = 7 if len(pieces) <= 20 else 5
        ticks = np.arange(len(pieces))
        labels = [piece.replace("$", r"\$") for piece in pieces]
        axes.set_xticks(ticks, labels, rotation=90, fontsize=size)
        axes.set_yticks(ticks, labels, fontsize=size)
    axes.tick_params(length=0, pad=1)
    bar = axes.figure.colorbar(image, ax=axes, shrink=0.75)
    marks = np.array([0, 0.01, 0.1, 0.3, 0.6, 1.0])
    bar.set_ticks(np.sqrt(marks).tolist(), labels=[f"{mark:g}" for mark in marks])
    bar.outline.set_visible(False)


def dynamics(record: Record, part: Record) -> "Figure":
    """Each kind over the checkpoints, where it is half way, and the law that fits it best."""
    figure, panels = grid(len(part["emergence"]), 3.1, 2.4)
    steps, law = array(part["steps"]), _modulated(part.get("growth"))  # older records have none
    for axes, row in zip(panels, part["emergence"], strict=True):
        axes.plot(steps, array(part["measures"][row["measure"]]), "o-", color="#0072B2", ms=3)
        if row["fits"]:
            fit, after = row["fits"][0], steps[steps > 0]
            curve = fit["intercept"] + fit["slope"] * LAWS[fit["law"]](after)
            label = f"{fit['law']}, R² {fit['r_squared']:.2f}"
            axes.plot(after, curve, "--", color="#D55E00", lw=1, label=label)
            axes.legend(fontsize=7)
        if law and law["measure"] == row["measure"]:
            after = steps[steps > 0]
            curve = modulated(after, **law["parameters"])
            axes.plot(after, curve, "-", color="#009E73", lw=1, label=MODULATED)
            axes.legend(fontsize=7)
        if row["step"] is not None:
            axes.axvline(row["step"], color="grey", lw=0.8, ls=":")
        axes.set_title(row["kind"], loc="left")
        axes.set_xlabel("optimiser steps")
        axes.set_ylim(bottom=0)
    return figure


def _modulated(growth: Record | None) -> Record | None:
    """The modulated logarithm of the massive activation, where it is the best of the laws."""
    if not growth or not growth["laws"] or growth["laws"][0]["law"] != MODULATED:
        return None
    return {"measure": growth["measure"], "parameters": growth["laws"][0]["parameters"]}


FIGURES: Mapping[str, Mapping[str, Callable[[Record, Record], "Figure | None"]]] = {
    "existence": {"existence": existence},
    "positions": {
        "positions-layers": positions.by_layer,
        "positions-tokens": positions.by_class,
        "positions-features": positions.by_feature,
        "positions-heads": positions.by_head,
    },
    "relations": {"relations": effects.relations},
    "lifecycle": {
        "lifecycle-trace": lifecycle.trace,
        "lifecycle-emergence": lifecycle.emergence,
        "lifecycle-spread": lifecycle.spread,
        "lifecycle-disappearance": lifecycle.disappearance,
    },
    "roles": {"roles": effects.roles},
    "measures": {"measures": measures.measures},
    "dimensions": {"dimensions": dimensions.dimensions},
    "interventions": {"interventions": effects.interventions, "interventions-forms": sinks.forms},
    "dynamics": {"dynamics": dynamics},
    "seeds": {},  # a table says it all
}
