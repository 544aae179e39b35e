"""Dose and response of the causal experiment: the cause, and as much elsewhere, side by side."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from sysout_jax.analysis.statistics import mean_interval
from sysout_jax.plots.style import COLOURS, Record, grid, note

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PANELS = {
    "ratio": "max |h| of first token / median",
    "attention": "attention to first token",
    "loss": "loss, nats",
}
LINES = {"weight": ("row of W_down", COLOURS[3]), "activation": ("largest channel", COLOURS[2])}


def figures(record: Record) -> Iterator[tuple[str, "Figure"]]:
    """Every figure of a record of doses, by name."""
    for name in dict.fromkeys(model["name"] for model in record["models"]):
        yield name, _figure(record, name)


def _figure(record: Record, name: str) -> "Figure":
    factors = sorted(record["config"]["factors"])
    models = [model for model in record["models"] if model["name"] == name]
    figure, panels = grid(len(PANELS), 3.4, 3.0)
    for axes, (measure, label) in zip(panels, PANELS.items(), strict=True):
        for treatment, (what, colour) in LINES.items():
            for control, style in ((False, "-"), (True, ":")):
                found = np.array([
                    mean_interval([
                        each[measure] for model in models for each in model["responses"]
                        if (each["treatment"], each["control"]) == (treatment, control)
                        and each["factor"] == factor
                    ])
                    for factor in factors
                ])  # fmt: skip
                places = np.arange(len(factors))
                told = f"{what}, elsewhere" if control else what
                axes.plot(places, found[:, 0], style, color=colour, lw=1.3, label=told)
                if len(models) > 1:
                    axes.fill_between(
                        places, found[:, 1], found[:, 2], color=colour, alpha=0.12, lw=0
                    )
        axes.set_xticks(np.arange(len(factors)), [f"{factor:g}" for factor in factors])
        axes.set_xlabel("times what was trained")
        axes.set_title(label, loc="left")
    panels[0].set_yscale("log")
    panels[0].legend(fontsize=7)
    figure.suptitle(name, x=0.01, ha="left", fontsize=9.5)
    if len(models) > 1:
        note(figure, "lines: mean, bands: Student's 95% interval over seeds")
    return figure
