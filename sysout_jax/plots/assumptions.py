"""What the theory assumes of a sink, beside a model's numbers."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from sysout_jax.plots.style import COLOURS, Record, grid, named

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LOWEST = -0.2  # R² that is drawn
NONE = 1e-6  # of the state that is found: rounding


def figures(record: Record) -> Iterator[tuple[str, "Figure"]]:
    """A figure for each model that has a sink, by name."""
    for model in record["models"]:
        if model["heads"]:
            yield named(model), _figure(model)


def _figure(model: Record) -> "Figure":
    large = any(layer["massive"] for layer in model["layers"])
    parts = [_hulls, _size, _told] if large else [_hulls, _told]
    figure, panels = grid(len(parts), 3.4, 2.8)
    for draw, axes in zip(parts, panels, strict=True):
        draw(axes, model)
    figure.suptitle(named(model), x=0.01, ha="left", fontsize=9.5)
    return figure


def _hulls(axes: "Axes", model: Record) -> None:
    keys = [hull["keys"] for hull in model["hulls"]]
    for name, label, colour in (
        ("distance", "values from zero", COLOURS[0]),
        ("sink_key", "keys from the sink's", COLOURS[1]),
    ):
        mean, low, high = np.array([hull[name] for hull in model["hulls"]], float).T
        axes.errorbar(
            keys, mean, [mean - low, high - mean], color=colour, lw=1.3, capsize=2, label=label
        )
    axes.set_xscale("log", base=2)
    axes.set_xlabel("keys")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=7)
    axes.set_title("distance of the hull / mean length", loc="left")


def _size(axes: "Axes", model: Record) -> None:
    of = [(layer["layer"], layer["massive"]) for layer in model["layers"] if layer["massive"]]
    axes.set_title("state along u: found, and asked by T3", loc="left")
    axes.set_xlabel("layer")
    layers = [layer for layer, _ in of]
    axes.plot(layers, [each["along"][0] for _, each in of], color=COLOURS[2], lw=1.3, label="found")
    asked = [each for _, each in of if each["asked"]]
    if asked and all(each["asked_most"] <= NONE * each["along"][0] for each in asked):
        axes.plot([], [], " ", label="asked: 0, all texts have one state")
        axes.set_ylim(bottom=0.0)
    elif asked:
        axes.set_yscale("log")
        for values, label, style in (
            ([each["asked"][0] for _, each in of], "asked, mean of texts", "-"),
            ([each["asked_most"] for _, each in of], "asked, largest", ":"),
        ):
            axes.plot(layers, values, style, color=COLOURS[3], lw=1.3, label=label)
    axes.locator_params(axis="x", integer=True)
    axes.legend(fontsize=7)


def _told(axes: "Axes", model: Record) -> None:
    names = list(model["explained"])
    for at, name in enumerate(names):
        of = np.sort([max(head["explained"][name], LOWEST) for head in model["heads"]])
        axes.plot(of, at + np.linspace(-0.3, 0.3, len(of)), ".", ms=2, color=COLOURS[0])
        axes.plot(model["explained"][name][0], at, "|", ms=14, color=COLOURS[3])
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(LOWEST, 1.02)
    axes.set_xlabel(f"R², those below {LOWEST} at the edge")
    axes.set_title("R² of logit S, held out, by head", loc="left")
