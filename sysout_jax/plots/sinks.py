"""What can take a sink's place, and whether the sink comes back elsewhere."""

from typing import TYPE_CHECKING

import numpy as np

from sysout_jax.analysis.intervene.relocation import relocated
from sysout_jax.plots.style import COLOURS, Record, array, grid

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHOWN = 32  # tokens: what comes back does so at the first that are left


def forms(record: Record, part: Record) -> "Figure | None":
    """The cost of each form with its interval; |h| and attention of each token, before and after.

    None where no form was measured.
    """
    rows = part["forms"]["forms"] if "forms" in part else []
    if not rows:
        return None
    figure, (costs, sizes, shares) = grid(3, 3.4, 0.9 + 0.3 * len(rows))
    places = np.arange(len(rows))[::-1]
    for place, row in zip(places, rows, strict=True):
        mean, low, high = array(row["change"])
        moved = relocated(row["relocation"])
        costs.barh(place, mean, color="#bbbbbb" if moved else COLOURS[3], height=0.6)
        costs.errorbar(mean, place, xerr=[[mean - low], [high - mean]], color="#222222", lw=0.9)
    costs.set_yticks(places, [row["label"].removeprefix("in its place: ") for row in rows])
    costs.axvline(0, color="#222222", lw=0.8)
    costs.grid(axis="y", visible=False)
    costs.set_title("change of the loss", loc="left")
    labels = {"trained": "as trained"} | {row["name"]: row["label"].split(",")[0] for row in rows}
    for axes, what in ((sizes, "peaks"), (shares, "attention")):
        for number, (name, values) in enumerate(part["forms"][what].items()):
            shown = array(values)[:SHOWN]
            axes.plot(shown, "o-", ms=3, lw=1, color=COLOURS[number], label=labels[name])
        more = len(next(iter(part["forms"][what].values()))) > SHOWN
        axes.set(xlabel=f"token, of the first {SHOWN}" if more else "token")
    sizes.set_yscale("log")
    sizes.set_title("largest |h|", loc="left")
    shares.set_title("share of attention", loc="left")
    shares.legend(fontsize=7)
    figure.supxlabel(
        "grey: the sink relocates; whiskers: bootstrap 95%", fontsize=8, color="#555555"
    )  # fmt: skip
    return figure
