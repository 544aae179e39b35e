"""Figures of the theory, drawn from what its checks measured."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sysout_jax.plots.style import COLOURS, STYLE, save
from theory.check import Check

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Data = dict[str, dict[str, Any]]  # part name -> its data


def draw(checks: Sequence[Check], directory: Path) -> list[Path]:
    """Draw the figures whose statements are among the checks, as PNG and PDF.

    Args:
      checks: what `verify` yielded.
      directory: made if missing.

    Returns:
      The paths of the PNG files.
    """
    import matplotlib as mpl

    data: dict[str, Data] = {
        check.id: {part.name: dict(part.data) for part in check.parts} for check in checks
    }
    paths = []
    style: Any = dict(STYLE)
    with mpl.rc_context(style):
        for name, (needed, figure) in FIGURES.items():
            if not needed <= data.keys() or not all(_has_data(data[id]) for id in needed):
                continue
            drawn = figure(data)
            save(drawn, directory / f"{name}.pdf")
            paths.append(save(drawn, directory / f"{name}.png"))
    return paths


def _has_data(parts: Data) -> bool:
    return any(parts.values())


def _panels(count: int, width: float = 3.6, height: float = 2.9) -> tuple["Figure", list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * count, height), layout="constrained")
    return figure, list(figure.subplots(1, count, squeeze=False)[0])


def growth(data: dict[str, Data]) -> "Figure":
    """C2 and C4: the logit gap against the logarithm of time, with fitted slopes."""
    figure, panels = _panels(3)
    titles = {"square": "$L = o^2/2$: slope 1/2", "linear": "$L = c\\,o$: slope 1"}
    for axes, (kind, title) in zip(panels, titles.items(), strict=False):
        part = data["C2"][f"slope, {kind}"]
        time = np.array(part["time"])
        rows = zip(part["sizes"], part["gap"], part["slopes"], COLOURS[1:], strict=False)
        for m, gap, slope, colour in rows:
            label = f"$m = {m:g}$, fitted slope {slope:.3f}"
            axes.plot(time, gap, color=colour, lw=1.4, label=label)
            later = time > time[-1] / 10
            fit = slope * np.log(time) + np.mean(np.array(gap)[later] - slope * np.log(time[later]))
            axes.plot(time, fit, color=colour, lw=0.8, ls="--")
        axes.set(xscale="log", xlabel="time $t$", ylabel="logit gap $\\Delta$")
        axes.set_title(title, loc="left")
        axes.legend(fontsize=7)
    part = data["C4"]["clipped gate: growth"]
    names = {"ungated": "no gate", "gated": "sigmoid gate", "clipped": "gate that reaches 0"}
    for (name, label), colour in zip(names.items(), COLOURS, strict=False):
        panels[2].plot(part["time"], part[name], color=colour, lw=1.4, label=label)
    panels[2].set(xscale="log", xlabel="time $t$", ylabel="logit gap $\\Delta$")
    panels[2].set_title("with a gate: slower, not bounded", loc="left")
    panels[2].legend(fontsize=7)
    return figure


def required_range(data: dict[str, Data]) -> "Figure":
    """B3: the budget for an eps-update against T and against 1/eps; lines predicted."""
    figure, panels = _panels(2, 4.2, 3.1)
    found = {
        name.removesuffix(": slopes"): part
        for name, part in data["B3"].items()
        if name.endswith(": slopes")
    }
    for (name, part), colour, marker in zip(found.items(), COLOURS, "os^D", strict=False):
        measured, closed = np.array(part["budget"]), np.array(part["predicted"])
        lengths, accuracy = np.array(part["lengths"]), 1.0 / np.array(part["eps"])
        middle = len(accuracy) // 2
        for axes, x, at in (
            (panels[0], lengths, np.s_[:, middle]),
            (panels[1], accuracy, np.s_[-1, :]),
        ):
            axes.plot(x, closed[at], color=colour, lw=1.0)
            axes.plot(x, measured[at], marker, color=colour, ms=4.5, mfc="white", label=name)
    eps, longest = part["eps"][middle], lengths[-1]
    panels[0].set(xlabel="keys $T$", ylabel="logit gap (a, d), −z (e), −s (f); nats")
    panels[0].set_title(f"$\\varepsilon = 10^{{{np.log10(eps):.1f}}}$, $m = 1$", loc="left")
    panels[1].set(xlabel="$1/\\varepsilon$")
    panels[1].set_title(f"$T = {longest}$, $m = 1$", loc="left")
    for axes in panels:
        axes.set(xscale="log", ylim=(0, None))
    panels[1].legend(fontsize=7.5, title="marks: found by descent, lines: B3", title_fontsize=7)
    return figure


def portrait(data: dict[str, Data]) -> "Figure":
    """C3: trajectories of the gap and the sink's value, and the line that divides them."""
    figure, (axes,) = _panels(1, 4.8, 3.6)
    for delta, sink in data["C3"]["trained head"]["portrait"]:
        axes.plot(delta, sink, color=COLOURS[3], lw=1.0, alpha=0.8)
        axes.plot(delta[0], sink[0], "o", color=COLOURS[3], ms=3)
        middle = len(delta) // 2
        axes.annotate(
            "", (delta[middle + 1], sink[middle + 1]), (delta[middle], sink[middle]),
            arrowprops={"arrowstyle": "->", "color": COLOURS[3], "lw": 1.0},
        )  # fmt: skip
    line = np.linspace(-3, 6, 200)
    axes.plot(
        line, np.exp(-line / 2), color=COLOURS[2], ls="--", lw=1.2,
        label="$|v_0|^2 = m^2(1-p)/p$: below it, attention moves to the sink",
    )  # fmt: skip
    axes.set(xlim=(-3.2, 6), ylim=(0, 2.4), xlabel="logit gap $\\Delta$ of the sink")
    axes.set_ylabel("norm of the sink's value $|v_0|$, $m = 1$")
    axes.legend(fontsize=7.5, loc="upper right")
    return figure


def spectral(data: dict[str, Data]) -> "Figure":
    """D3: how much of the first singular value the bound accounts for."""
    figure, (axes,) = _panels(1, 4.4, 3.0)
    part = data["D3"]["energy"]
    axes.plot(part["massive over rest"], part["bound over energy"], color=COLOURS[3], lw=1.5)
    axes.axhline(1.0, color="grey", lw=0.8, ls="--")
    axes.set(xscale="log", xlabel="$M/R$: energy of the massive row over the rest")
    axes.set(ylabel="$(M + \\alpha R)/\\sigma_1^2$", ylim=(0, 1.05))
    return figure


def quantisation(data: dict[str, Data]) -> "Figure":
    """E1: SQNR against max/RMS, predicted and measured."""
    figure, (axes,) = _panels(1, 4.6, 3.2)
    curves = data["E1"]["sqnr"]
    for (name, (ratio, closed, measured)), colour in zip(
        curves.items(), (COLOURS[i] for i in (3, 4, 2)), strict=False
    ):
        axes.plot(ratio, closed, color=colour, lw=1.2)
        axes.plot(ratio, measured, "o", color=colour, ms=3.2, mfc="white", label=name)
    axes.axhline(0.0, color="grey", lw=0.8, ls="--")
    axes.set(xscale="log", xlabel="largest magnitude over RMS", ylabel="SQNR, dB")
    axes.legend(fontsize=8, title="marks: rounded, lines: E1", title_fontsize=7.5)
    return figure


def race(data: dict[str, Data]) -> "Figure":
    """F1: attention to BOS at idle positions by how fast the gate learns."""
    figure, (axes,) = _panels(1, 4.6, 2.9)
    sinks = data["F1"]["trained: sink"]["sink"]
    for place, values in enumerate(sinks.values()):
        axes.bar(place, np.mean(values), color=COLOURS[3], alpha=0.75, width=0.6)
        axes.plot([place] * len(values), values, "o", color="black", ms=3)
    axes.set_xticks(range(len(sinks)), [name.replace(" x ", " × ") for name in sinks])
    axes.set(ylabel="attention to BOS at idle positions", ylim=(0, 1.03))
    axes.grid(axis="x", visible=False)
    return figure


FIGURES: dict[str, tuple[set[str], Callable[[dict[str, Data]], "Figure"]]] = {
    "growth": ({"C2", "C4"}, growth),
    "required-range": ({"B3"}, required_range),
    "mutual-reinforcement": ({"C3"}, portrait),
    "spectral-bound": ({"D3"}, spectral),
    "quantisation-error": ({"E1"}, quantisation),
    "race": ({"F1"}, race),
}
