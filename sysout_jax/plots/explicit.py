"""The forms of a model whose factor was made explicit: how good the gates are, what each costs."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from sysout_jax.analysis.statistics import over_seeds
from sysout_jax.plots.forest import Mark, costs
from sysout_jax.plots.style import COLOURS, Record, array, grid, legend_below, looks

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = (  # of a form's numbers, None: its own
    (None, "at once", 0.2, "o", COLOURS[3]),
    ("distilled", "what it adds trained", 0.0, "^", COLOURS[2]),
    ("finetuned", "all trained", -0.2, "s", COLOURS[1]),
)


def figures(record: Record) -> Iterator[tuple[str, "Figure"]]:
    """Every figure of a record of explicit forms, by name."""
    names = list(dict.fromkeys(model["name"] for model in record["models"]))
    for name in names:
        models = [m for m in record["models"] if m["name"] == name and m["forms"]]
        if models:
            yield name, _figure(name, models)


def trained_on(form: Record, kind: str) -> list[Record]:
    """What training made of a form, of each draw of text: "distilled" or "finetuned"."""
    draws = (form, *form.get("draws", {}).values())
    return [draw[kind] for draw in draws if kind in draw]


def _figure(name: str, models: list[Record]) -> "Figure":
    fitted = "factors" in models[0]
    figure, panels = grid(1 + fitted, 3.6, 3.0)
    if fitted:
        _gates(panels[0], models)
    _costs(panels[-1], models)
    figure.suptitle(name, x=0.01, ha="left", fontsize=9.5)
    return figure


def _gates(axes: Any, models: list[Record]) -> None:
    """The mean of S where the gate has a value, on held-out text, one line per seed."""
    axes.plot([0, 1], [0, 1], color="#999999", lw=0.8, ls="--")
    names = [f"seed {model['seed']}" for model in models]
    for model, name, look in zip(models, names, looks(names), strict=True):
        binned = model["factors"]["binned"]
        mean, count = array(binned["mean"]), array(binned["count"])
        centres = (np.arange(len(mean)) + 0.5) / len(mean)
        sizes = 4 + 60 * count / count.sum()
        axes.plot(centres, mean, look.line, color=look.colour, lw=0.8)
        axes.scatter(centres, mean, s=sizes, color=look.colour, label=name)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="fitted gate", ylabel="implicit factor S, mean")
    axes.set_aspect("equal")
    if models[0]["seed"] is not None:
        axes.legend(loc="lower right", fontsize=7)
    axes.set_title("held-out gates (area: queries)", loc="left")


def _costs(axes: Any, models: list[Record]) -> None:
    """The change of the loss by each form, at once and after fine-tuning."""
    forms = list(dict.fromkeys(form for model in models for form in model["forms"]))
    marks: list[Mark] = []
    for kind, label, offset, marker, colour in KINDS:
        for row, form in enumerate(forms):
            found = [model["forms"][form] for model in models if form in model["forms"]]
            if kind:
                found = [after for each in found for after in trained_on(each, kind)]
            if found:
                change = over_seeds([each["change"] for each in found])
                marks.append(Mark(row, change, colour, offset, marker=marker, label=label))
    costs(axes, [form.replace("_", " ") for form in forms], marks)
    axes.set_title("what each form costs", loc="left")
    over = "seeds" if len(models) > 1 else "sequences"
    says = f"points: mean, whiskers: 95% interval over {over}"
    if any("draws" in form for model in models for form in model["forms"].values()):
        says += ",\nof what is trained over draws of text"
    handles, labels = axes.get_legend_handles_labels()
    legend_below(axes.figure, handles, labels, says, columns=3)
