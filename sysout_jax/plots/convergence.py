"""Loss curves with bands, learning rates, and speed-ups of the convergence experiment."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from sysout_jax.analysis.statistics import mean_interval
from sysout_jax.plots.forest import Mark, forest
from sysout_jax.plots.style import DARK, Look, Record, array, grid, looks, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SEEN = 0.1  # of the run: its first tenth is left out where losses are compared


def figures(record: Record) -> Iterator[tuple[str, "Figure"]]:
    """Every figure of a convergence record, by name."""
    if record["compared"]:
        yield "loss", _loss(record)
        yield "rates", _rates(record)
        yield "speed", _speed(record)


def _looks(record: Record) -> dict[str, Look]:
    names = list(record["variants"])
    return dict(zip(names, looks(names), strict=True))


def _cells(record: Record, name: str) -> list[Record]:
    """The cells of a variant that have a loss to show, by learning rate."""
    mine = [c for c in record["cells"] if c["variant"] == name and "diverged" not in c]
    return sorted(mine, key=lambda cell: cell["lr"])


def _curve(record: Record, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and losses [n, seeds], at the best learning rate."""
    lr = record["compared"]["variants"][name]["lr"]
    (cell,) = [cell for cell in _cells(record, name) if cell["lr"] == lr]
    return array(cell["step"]), array(cell["val_loss"])


def _band(axes: "Axes", steps: np.ndarray, values: np.ndarray, look: Look, label: str) -> None:
    """The mean over seeds in a band of Student's 95% interval."""
    found = np.array([mean_interval(row) for row in values])
    axes.plot(steps, found[:, 0], look.line, color=look.colour, lw=1.2, label=label)
    axes.fill_between(steps, found[:, 1], found[:, 2], color=look.colour, alpha=0.13, lw=0)


def _loss(record: Record) -> "Figure":
    """Validation loss, and its difference from the baseline's in pairs of seeds."""
    figure, (losses, differences) = grid(2, 4.6, 3.3)
    _, base = _curve(record, record["baseline"])
    looked = _looks(record)
    for name, its in record["compared"]["variants"].items():
        steps, values = _curve(record, name)
        shown = steps >= SEEN * steps[-1]
        look, label = looked[name], record["variants"][name]["label"]
        _band(losses, steps[shown], values[shown], look, f"{label}, lr {its['lr']:g}")
        if name != record["baseline"]:
            _band(differences, steps[shown], (values - base)[shown], look, label)
    losses.set_ylabel("validation loss, nats per token")
    losses.set_title(record["corpus"], loc="left")
    losses.legend(fontsize=7.5)
    differences.axhline(0, color=DARK, lw=0.8)
    differences.set_ylabel(f"minus that of {record['variants'][record['baseline']]['label']}")
    note(figure, "lines: mean, bands: Student's 95% interval over seeds")
    for axes in (losses, differences):
        axes.set_xlabel("optimiser steps")
    return figure


def _rates(record: Record) -> "Figure":
    """The last loss of each variant at each learning rate."""
    figure, (axes,) = grid(1, 5.4, 3.3)
    for name, look in _looks(record).items():
        cells = _cells(record, name)
        found = np.array([mean_interval(array(c["val_loss"][-1])) for c in cells]).reshape(-1, 3)
        lrs = np.array([cell["lr"] for cell in cells])
        reach = np.nan_to_num(np.abs(found[:, 1:] - found[:, :1])).T
        label = record["variants"][name]["label"]
        axes.errorbar(
            lrs, found[:, 0], yerr=reach, fmt="o", ls=look.line, ms=3.5, lw=1.2, capsize=2,
            color=look.colour, label=label,
        )  # fmt: skip
    axes.set_xscale("log")
    axes.set_xticks(record["lrs"], [f"{lr:g}" for lr in record["lrs"]])
    axes.minorticks_off()
    axes.set_xlabel("learning rate")
    axes.set_ylabel("validation loss at the last step")
    axes.set_title(record["corpus"], loc="left")
    note(figure, "points: mean, whiskers: Student's 95% interval over seeds")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8)
    return figure


def _speed(record: Record) -> "Figure":
    """Speed-ups to the baseline's last loss, in steps and in time."""
    others = [n for n in record["compared"]["variants"] if n != record["baseline"]]
    figure, panels = grid(2, 4.0, 0.9 + 0.3 * len(others), sharey=True)
    labels = [record["variants"][name]["label"] for name in others]
    for axes, key, title in zip(
        panels, ("speedup", "speedup_seconds"), ("in steps", "in time"), strict=True
    ):
        found = [record["compared"]["variants"][name][key] for name in others]
        colours = [_looks(record)[name].colour for name in others]
        forest(axes, labels, map(Mark, range(len(others)), found, colours))
        axes.axvline(1, color=DARK, lw=0.8)
        axes.set_title(title, loc="left")
        axes.set_xlabel("speed-up to the baseline's last loss (0: not reached)")
    note(figure, "points: of all seeds, whiskers: middle 95% of resamples of seeds")
    return figure
