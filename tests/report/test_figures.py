"""Every panel drawn of a committed record shows something."""

import json

import numpy as np
import pytest
from matplotlib.collections import PathCollection

from sysout_jax import plots
from sysout_jax.results import read_record
from tests.pages import ROOT

RECORDS = [
    path.parent
    for path in sorted((ROOT / "results").rglob("result.json"))
    if json.loads(path.read_text()).get("experiment") in plots.EXPERIMENTS
]


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
