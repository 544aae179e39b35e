"""The measures of a model beside untrained ones, and the whole sweep of a sink's threshold."""

from typing import TYPE_CHECKING

from sysout_jax.plots.forest import Mark, forest
from sysout_jax.plots.style import COLOURS, Record, array

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def measures(record: Record, part: Record) -> "Figure":
    """Each measure over its value before training, and Sink_k(eps) at every eps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.4, 0.9 + 0.27 * len(part["scores"])), layout="constrained")
    ratios, sweep = figure.subplots(1, 2, width_ratios=(3, 2))
    scores, marks = part["scores"], []
    for at, row in enumerate(scores):
        value, before = array(row["value"]), array(row["untrained"])[0]
        if before > 0 and value[0] > 0:
            marks.append(Mark(at, (value / before).tolist(), COLOURS[3]))
        else:
            said, place = f"{before:.3g} before, {value[0]:.3g} now", len(scores) - 1 - at
            ratios.text(1.0, place, said, fontsize=7, va="center", ha="center")
    forest(ratios, [row["label"] for row in scores], marks)
    ratios.axvline(1.0, color="grey", lw=0.8)
    ratios.set_xscale("log")
    ratios.set_xlabel("over its value before training")
    eps = array(part["sweep"]["eps"])
    for key, (now, before) in enumerate(
        zip(array(part["sweep"]["value"]), array(part["sweep"]["untrained"]), strict=True)
    ):
        sweep.step(eps, now, color=COLOURS[key + 1], where="post", label=f"key {key}")
        sweep.step(eps, before, color=COLOURS[key + 1], where="post", ls=":", lw=1)
    sweep.axvline(0.3, color="grey", lw=0.8)
    sweep.set(xlabel=r"threshold $\epsilon$", xlim=(0, 1), ylim=(-0.02, 1.02))
    sweep.set_title(r"Sink$_k(\epsilon)$; dotted: before training", loc="left")
    sweep.legend(fontsize=7)
    return figure
