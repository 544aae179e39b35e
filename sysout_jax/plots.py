"""Figures, drawn from a record alone."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sysout_jax.analysis.statistics import mean_interval
from sysout_jax.errors import InputError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STYLE: Mapping[str, Any] = {
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.labelsize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "figure.dpi": 150,
    "savefig.bbox": "tight",
    "mathtext.fontset": "cm",
}
# Okabe & Ito's palette, readable with any colour vision; then their darker shades.
COLOURS = (
    "#000000", "#E69F00", "#D55E00", "#0072B2", "#009E73", "#56B4E9", "#CC79A7", "#8A6D00",
    "#7A3500", "#003F63", "#00543D", "#7F4666",
)  # fmt: skip
TRAINING = (
    "noop_sink", "first_token_attention", "value_drain@value", "residual_peak@block_out",
    "top1_over_median@block_out", "neuron_rms_kurtosis@block_out", "implicit_scale",
)  # fmt: skip
BARS = (
    "noop_sink", "first_token_attention", "sink_rate@attn_weights", "value_drain@value",
    "residual_peak@block_out", "top1_over_median@block_out", "implicit_scale",
)  # fmt: skip
PANELS = 6  # of the measures that a study has
SHARES = ("noop_sink", "first_token_attention", "sink_rate@attn_weights", "implicit_scale")
SMOOTHED = 5  # recorded points in the running mean of a loss curve


def draw(record: Mapping[str, Any], directory: Path) -> list[Path]:
    """Draw every figure of a variants record.

    Args:
      record: what `results.read_record` returned.
      directory: where the figures go; made if missing.

    Returns:
      The paths of the PNG files, one directory per study.

    Raises:
      InputError: the record is of another experiment.
    """
    if record.get("experiment") != "variants":
        raise InputError(f"record of {record.get('experiment')!r}; accepted: of 'variants'")
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    paths = []
    style: Any = dict(STYLE)
    with mpl.rc_context(style):
        for study in record["studies"]:
            if not study["variants"]:
                continue
            for name, figure in _figures(study, record["labels"]).items():
                path = directory / f"{study['name']}-{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                partial = path.with_name(f".{path.name}")
                FigureCanvasAgg(figure).print_png(str(partial))
                partial.replace(path)
                paths.append(path)
    return paths


def _figures(study: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, "Figure"]:
    return {
        "loss": _loss(study),
        "training": _training(study, labels),
        "measures": _bars(study, labels),
        "attention": _attention(study),
        "magnitude": _magnitude(study),
    }


def _grid(panels: int, width: float, height: float, **kwargs: Any) -> tuple["Figure", list[Any]]:
    """A figure with room for `panels` axes, three in a row, each of the given size in inches."""
    from matplotlib.figure import Figure

    columns = 2 if panels == 4 else min(panels, 3)
    rows = -(-panels // columns)
    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **kwargs).ravel()
    for spare in axes[panels:]:
        spare.remove()
    return figure, list(axes[:panels])


def _lines(
    axes: "Axes",
    study: Mapping[str, Any],
    series: Callable[[Mapping[str, Any]], tuple[list[int], np.ndarray]],
) -> None:
    """One line per variant, its mean over seeds, in a band from the lowest to the highest seed."""
    for colour, entry in zip(_colours(study), study["variants"].values(), strict=True):
        steps, values = series(entry)
        axes.plot(steps, np.nanmean(values, axis=1), color=colour, label=entry["label"], lw=1.3)
        axes.fill_between(
            steps, values.min(axis=1), values.max(axis=1), color=colour, alpha=0.15, lw=0
        )
    axes.set_xlabel("optimiser steps")
    axes.set_xlim(left=0)


def _colours(study: Mapping[str, Any]) -> list[str]:
    """One colour per variant, the same in every figure."""
    return [COLOURS[entry["order"] % len(COLOURS)] for entry in study["variants"].values()]


def _array(rows: Any) -> np.ndarray:
    """Rows of a record as floats; null, which stands for what is not finite, is NaN."""
    return np.array(rows, dtype=np.float64)


def _loss(study: Mapping[str, Any]) -> "Figure":
    figure, (axes,) = _grid(1, 5.6, 3.4)

    def series(entry: Mapping[str, Any]) -> tuple[list[int], np.ndarray]:
        loss = _array(entry["curve"]["loss"])
        window = min(SMOOTHED, len(loss))
        kernel = np.ones(window) / window
        smooth = [np.convolve(seed, kernel, mode="valid") for seed in loss.T]
        return entry["curve"]["step"][window - 1 :], np.stack(smooth, axis=1)

    _lines(axes, study, series)
    if "loss_floor" in study:
        axes.axhline(
            study["loss_floor"], color="grey", lw=0.9, ls="--", label="entropy of the task"
        )
    axes.set_ylabel("training loss, nats per token")
    axes.set_title(_title(study), loc="left")
    axes.legend(fontsize=8)
    return figure


def _title(study: Mapping[str, Any]) -> str:
    seeds = len(study["config"]["seeds"])
    return f"{study['corpus']}, {seeds} seed{'s' * (seeds > 1)}"


def _training(study: Mapping[str, Any], labels: Mapping[str, str]) -> "Figure":
    names = _measured(study, TRAINING)
    figure, panels = _grid(len(names), 3.3, 2.5)
    for axes, name in zip(panels, names, strict=True):

        def series(entry: Mapping[str, Any], name: str = name) -> tuple[list[int], np.ndarray]:
            measured = entry["measured"]
            return measured["step"], _array(measured["measures"][name])

        _lines(axes, study, series)
        axes.set_title(labels[name], loc="left")
        axes.set_ylim(bottom=0)
    handles, legend = panels[0].get_legend_handles_labels()
    columns = min(len(legend), 6)
    figure.legend(handles, legend, loc="outside lower center", ncols=columns, fontsize=8)
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
    figure, panels = _grid(len(names), 3.0, 2.3, sharey=True)
    entries = list(study["variants"].values())
    places = np.arange(len(entries))[::-1]
    for axes, name in zip(panels, names, strict=True):
        before = []
        for place, colour, entry in zip(places, _colours(study), entries, strict=True):
            values = _array(entry["measured"]["measures"][name])
            mean, low, high = mean_interval(values[-1])
            axes.barh(place, mean, color=colour, alpha=0.75, height=0.66)
            if np.isfinite(low):
                # No measure is negative and a share ends at one: intervals of three seeds may not.
                high = min(high, 1.0) if name in SHARES else high
                reach = [[mean - max(low, 0.0)], [high - mean]]
                axes.errorbar(mean, place, xerr=reach, color="#222222", lw=1, capsize=2.5)
            axes.plot(values[-1], np.full(values[-1].size, place), "o", ms=2.2, color="#222222")
            before.append(values[0].mean())
        axes.axvline(np.mean(before), color="grey", lw=0.9, ls="--")
        axes.set_title(labels[name], loc="left")
        axes.set_xlim(left=0)
        axes.grid(axis="y", visible=False)
    marks = ["" if entry["normalised"] else " †" for entry in entries]
    panels[0].set_yticks(places, [e["label"] + m for e, m in zip(entries, marks, strict=True)])
    note = "bars: mean, whiskers: 95% interval over seeds, dots: seeds, dashed: before training"
    if any(marks):
        note += "; †: Sink$_0$ of rows brought to one"
    figure.supxlabel(note, fontsize=8, color="#555555")
    return figure


def _attention(study: Mapping[str, Any]) -> "Figure":
    entries = list(study["variants"].values())
    figure, panels = _grid(len(entries), 2.9, 2.9)
    for axes, entry in zip(panels, entries, strict=True):
        shot = entry["snapshot"]
        # The square root shows weights of a hundredth beside weights of one.
        image = axes.imshow(
            np.sqrt(_array(shot["attention"])), cmap="magma", vmin=0, vmax=1, aspect="equal"
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
    from mpl_toolkits.mplot3d.art3d import Line3DCollection

    entries = list(study["variants"].values())
    figure, panels = _grid(len(entries), 3.3, 2.9, subplot_kw={"projection": "3d"})
    top = max(np.max(_array(entry["snapshot"]["magnitude"])) for entry in entries)
    for axes, entry in zip(panels, entries, strict=True):
        shot = entry["snapshot"]
        size = _array(shot["magnitude"])
        token, channel = (axis.ravel() for axis in np.indices(size.shape))
        order = np.argsort(size.ravel())  # the tallest stems drawn last
        foot = np.stack([token, channel, np.zeros(size.size)], axis=1)[order]
        head = np.stack([token, channel, size.ravel()], axis=1)[order]
        stems = Line3DCollection(np.stack([foot, head], axis=1), cmap="plasma_r", linewidths=0.9)
        stems.set_array(head[:, 2])
        stems.set_clim(0, top)
        axes.add_collection3d(stems)
        axes.set(xlim=(0, size.shape[0]), ylim=(0, size.shape[1]), zlim=(0, top))
        axes.set_title(f"{entry['label']}, layer {shot['magnitude_layer']}", loc="left", y=0.98)
        axes.set_xlabel("token", labelpad=-8)
        axes.set_ylabel("channel", labelpad=-8)
        axes.set_zlabel("|block_out|", labelpad=-8)
        axes.tick_params(labelsize=6.5, pad=-3)
        axes.view_init(elev=22, azim=-58)
        for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
            axis.pane.set_facecolor("white")
            axis.pane.set_edgecolor("#cccccc")
    return figure
