"""Figures of the variants experiment: one set per study."""

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from sysout_jax.analysis.statistics import mean_interval
from sysout_jax.plots.forest import Mark, forest
from sysout_jax.plots.stems import draw_stems
from sysout_jax.plots.style import array, grid, legend_below, looks, note

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TRAINING = (
    "noop_sink", "first_token_attention", "value_drain@value", "residual_peak@block_out",
    "top1_over_median@block_out", "neuron_rms_kurtosis@block_out", "implicit_scale",
)  # fmt: skip
BARS = (
    "noop_sink", "first_token_attention", "sink_rate@attn_weights", "value_drain@value",
    "residual_peak@block_out", "top1_over_median@block_out", "implicit_scale",
)  # fmt: skip
BANDS = "lines: mean, bands: lowest to highest seed"
PANELS = 6  # of the measures that a study has
SHARES = ("noop_sink", "first_token_attention", "sink_rate@attn_weights", "implicit_scale")
SMOOTHED = 5  # recorded points in the running mean of a loss curve


def figures(record: Mapping[str, Any]) -> Iterator[tuple[str, "Figure"]]:
    """Every figure of a variants record, by name."""
    for study in record["studies"]:
        if study["variants"]:
            for name, figure in _of_study(study, record["labels"]).items():
                yield f"{study['name']}-{name}", figure


def _of_study(study: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, "Figure"]:
    return {
        "loss": _loss(study),
        "training": _training(study, labels),
        "measures": _bars(study, labels),
        "attention": _attention(study),
        "magnitude": _magnitude(study),
    }


def _lines(
    axes: "Axes",
    study: Mapping[str, Any],
    series: Callable[[Mapping[str, Any]], tuple[list[int], np.ndarray]],
) -> None:
    """One line per variant, its mean over seeds, in a band from the lowest to the highest seed."""
    for look, entry in zip(looks(list(study["variants"])), study["variants"].values(), strict=True):
        steps, values = series(entry)
        marker = "." if len(steps) == 1 else None
        axes.plot(
            steps, np.nanmean(values, axis=1), look.line, marker=marker, color=look.colour,
            label=entry["label"], lw=1.3,
        )  # fmt: skip
        axes.fill_between(
            steps, values.min(axis=1), values.max(axis=1), color=look.colour, alpha=0.15, lw=0
        )
    axes.set_xlabel("optimiser steps")
    axes.set_xlim(left=0)


def _loss(study: Mapping[str, Any]) -> "Figure":
    figure, (axes,) = grid(1, 5.6, 3.4)
    points = max(len(entry["curve"]["step"]) for entry in study["variants"].values())
    window = min(SMOOTHED, -(-points // SMOOTHED))  # of a short curve, most is left

    def series(entry: Mapping[str, Any]) -> tuple[list[int], np.ndarray]:
        """The mean of every few recorded points, at the step of the middle one."""
        loss = array(entry["curve"]["loss"])
        kernel = np.ones(window) / window
        smooth = np.stack([np.convolve(seed, kernel, mode="valid") for seed in loss.T], axis=1)
        begin = (window - 1) // 2
        return entry["curve"]["step"][begin : begin + len(smooth)], smooth

    _lines(axes, study, series)
    if "loss_floor" in study:
        axes.axhline(
            study["loss_floor"], color="grey", lw=0.9, ls="--", label="entropy of the task"
        )
    axes.set_ylabel("training loss, nats per token")
    axes.set_title(_title(study), loc="left")
    axes.legend(fontsize=8)
    note(figure, BANDS + (f"; each point: mean of {window} recorded" if window > 1 else ""))
    return figure


def _title(study: Mapping[str, Any]) -> str:
    seeds = len(study["config"]["seeds"])
    return f"{study['corpus']}, {seeds} seed{'s' * (seeds > 1)}"


def _training(study: Mapping[str, Any], labels: Mapping[str, str]) -> "Figure":
    names = _measured(study, TRAINING)
    figure, panels = grid(len(names), 3.3, 2.5)
    for axes, name in zip(panels, names, strict=True):

        def series(entry: Mapping[str, Any], name: str = name) -> tuple[list[int], np.ndarray]:
            measured = entry["measured"]
            return measured["step"], array(measured["measures"][name])

        _lines(axes, study, series)
        axes.set_title(labels[name], loc="left")
        axes.set_ylim(bottom=0)
    handles, legend = panels[0].get_legend_handles_labels()
    legend_below(figure, handles, legend, BANDS, columns=6)
    return figure


def _measured(study: Mapping[str, Any], names: tuple[str, ...]) -> tuple[str, ...]:
    """The first of `names` that every variant of the study was measured by.

    Where a task says which queries are no-ops, theirs stand for the attention of all queries.
    """
    everywhere = [entry["measured"]["measures"] for entry in study["variants"].values()]
    found = [name for name in names if all(name in measures for measures in everywhere)]
    if "noop_sink" in found:
        found.remove("first_token_attention")
    return tuple(found[:PANELS])


def _bars(study: Mapping[str, Any], labels: Mapping[str, str]) -> "Figure":
    names = _measured(study, BARS)
    figure, panels = grid(len(names), 3.0, 2.3, sharey=True)
    entries = list(study["variants"].values())
    rows = [entry["label"] + ("" if entry["normalised"] else " †") for entry in entries]
    for axes, name in zip(panels, names, strict=True):
        values = [array(entry["measured"]["measures"][name]) for entry in entries]
        # No measure is negative and a share ends at one: intervals of three seeds may not.
        found = np.clip(
            [mean_interval(each[-1]) for each in values], 0, 1 if name in SHARES else None
        )
        marks = [
            Mark(row, found[row].tolist(), look.colour, height=0.66, dots=values[row][-1].tolist())
            for row, look in enumerate(looks(list(study["variants"])))
        ]
        forest(axes, rows, marks)
        rows_up = np.arange(len(values))[::-1]
        before = [each[0].mean() for each in values]
        axes.vlines(before, rows_up - 0.45, rows_up + 0.45, color="grey", lw=0.9, ls="--")
        axes.set_title(labels[name], loc="left")
        axes.set_xlim(left=0)
    says = (
        "bars: mean, whiskers: Student's 95% interval over seeds, dots: seeds, "
        "dashed: mean before training"
    )
    if not all(entry["normalised"] for entry in entries):
        says += "; †: Sink$_0$ of rows brought to one"
    note(figure, says)
    return figure


def _attention(study: Mapping[str, Any]) -> "Figure":
    entries = list(study["variants"].values())
    figure, panels = grid(len(entries), 2.9, 2.9)
    for axes, entry in zip(panels, entries, strict=True):
        shot = entry["snapshot"]
        # The square root shows weights of a hundredth beside weights of one.
        image = axes.imshow(
            np.sqrt(array(shot["attention"])), cmap="magma", vmin=0, vmax=1, aspect="equal"
        )
        axes.set_title(f"{entry['label']}, layer {shot['attention_layer']}", loc="left")
        axes.grid(visible=False)
        ticks = np.arange(len(shot["pieces"]))
        axes.set_xticks(ticks, shot["pieces"], rotation=90, fontsize=4.5)
        axes.set_yticks(ticks, shot["pieces"], fontsize=4.5)
        axes.tick_params(length=0, pad=1)
    bar = figure.colorbar(image, ax=panels, shrink=0.6, aspect=30)
    marks = np.array([0, 0.01, 0.1, 0.3, 0.6, 1.0])
    bar.set_ticks(np.sqrt(marks).tolist(), labels=[f"{mark:g}" for mark in marks])
    bar.set_label("attention weight, mean over heads; unnormalised rows brought to one", fontsize=8)
    bar.outline.set_visible(False)
    return figure


def _magnitude(study: Mapping[str, Any]) -> "Figure":
    entries = list(study["variants"].values())
    figure, panels = grid(len(entries), 3.3, 2.9, subplot_kw={"projection": "3d"})
    top = max(np.max(array(entry["snapshot"]["magnitude"])) for entry in entries)
    for axes, entry in zip(panels, entries, strict=True):
        shot = entry["snapshot"]
        draw_stems(axes, array(shot["magnitude"]), ("token", "channel", "|block_out|"), top)
        axes.set_title(f"{entry['label']}, layer {shot['magnitude_layer']}", loc="left", y=0.98)
    return figure
