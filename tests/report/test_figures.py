"""Every panel drawn of a committed record shows something."""

import json

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection, PolyCollection

from sysout_jax import plots
from sysout_jax.results import read_record
from tests.pages import ROOT

RECORDS = [
    path.parent
    for path in sorted((ROOT / "results").rglob("result.json"))
    if json.loads(path.read_text()).get("experiment") in plots.EXPERIMENTS
]
# What their figures say of a band or a whisker: over what it is, too.
SAID = {
    "variants": ("lowest to highest seed", "Student's 95% interval over seeds"),
    "convergence": ("Student's 95% interval over seeds", "95% of resamples of seeds"),
    "compression": ("95% interval over se",),
    "explicit": ("95% interval over se",),
    "benchmark": ("Student's 95% interval over seeds",),
    "causal": ("Student's 95% interval over seeds",),
}


def shown(axes):
    """Whether some artist of the axes has ink: a line of one point has it from its marker."""
    lines = [
        np.isfinite(np.asarray(line.get_ydata(), float)).sum() > (line.get_marker() == "None")
        for line in axes.lines
    ]
    areas = [
        isinstance(each, PathCollection) or np.ptp(each.get_datalim(axes.transData), axis=0).any()
        for each in axes.collections
    ]
    return any(lines) or any(areas) or bool(axes.images or axes.patches or axes.texts)


@pytest.mark.parametrize("directory", RECORDS, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_panel_is_empty(directory):
    with plots.figures(read_record(directory)) as drawn:
        for name, figure in drawn:
            empty = [axes.get_title("left") for axes in figure.axes if not shown(axes)]
            assert not empty, (name, empty)


def has_intervals(axes):
    """Whether a band or a whisker is drawn."""
    return any(isinstance(each, LineCollection | PolyCollection) for each in axes.collections)


@pytest.mark.parametrize("experiment", SAID)
def test_a_figure_says_what_its_intervals_are(experiment):
    of = [each for each in map(read_record, RECORDS) if each["experiment"] == experiment]
    told = set()
    for record in of:
        with plots.figures(record) as drawn:
            for name, figure in drawn:
                flat = [a for a in figure.axes if a.name != "3d" and a.get_label() != "<colorbar>"]
                if any(map(has_intervals, flat)):
                    titles = [legend.get_title().get_text() for legend in figure.legends]
                    says = " ".join([figure.get_supxlabel(), *titles])
                    assert any(each in says for each in SAID[experiment]), (name, says)
                    told.add(says)
    assert all(any(each in says for says in told) for each in SAID[experiment])


def test_growth_says_its_setting_as_tables_do():
    record = read_record(ROOT / "results" / "laboratory")
    with plots.figures(record) as drawn:
        axes = dict(drawn)["growth"].axes[0]
    assert axes.get_title("left") == "Bigram-Backcopy: adamw, 1 layer"
