"""Every panel drawn of a committed record shows something."""

import json

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection, PolyCollection
from matplotlib.image import imread

from sysout_jax import plots
from sysout_jax.plots.style import grid, save, save_stacked
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


def test_a_running_mean_stands_at_the_middle_of_what_it_is_of():
    record = read_record(ROOT / "results" / "variants" / "sinks")
    study = record["studies"][0]
    with plots.figures(record) as drawn:
        (axes,) = dict(drawn)["stdlib-loss"].axes
    for line, entry in zip(axes.lines, study["variants"].values(), strict=False):
        steps, loss = entry["curve"]["step"], np.mean(entry["curve"]["loss"], axis=1)
        at = [steps.index(step) for step in line.get_xdata()]
        expected = [loss[n - 2 : n + 3].mean() for n in at]
        np.testing.assert_allclose(line.get_ydata(), expected, rtol=1e-6)
        assert at == list(range(2, len(steps) - 2))


def test_what_was_drawn_of_another_record_is_gone(tmp_path):
    """Else its figures would be on the page of this one."""
    (tmp_path / "narrow").mkdir()
    for name in ("boost-old.png", "boost-old.pdf", "narrow/boost-old.png"):
        (tmp_path / name).write_text("an earlier record's")
    for name in ("my-photo.png", "boost.txt", "narrow/mine.png"):
        (tmp_path / name).write_text("of somebody else")
    plots.draw({"experiment": "compression", "models": []}, tmp_path, ["loss", "boost-*"])
    left = {path.name for path in tmp_path.rglob("*.*")}
    assert left == {"my-photo.png", "boost.txt", "mine.png"}


def test_what_is_said_under_panels_is_so_where_they_are_stacked(tmp_path):
    figure, panels = grid(3, 2.0, 2.0)
    for axes in panels:
        axes.plot([1, 2], color="black")
    figure.suptitle("what is drawn", color="red")
    figure.supxlabel("what its marks are", color="blue")
    pixels = imread(save_stacked(figure, tmp_path / "a.png"))[..., :3]
    red, blue = (np.flatnonzero((pixels == rgb).all(-1).any(1)) for rgb in ([1, 0, 0], [0, 0, 1]))
    assert red.max() < len(pixels) / 4 < 3 * len(pixels) / 4 < blue.min()


def test_a_title_fits_its_figure(tmp_path):
    figure, (axes,) = grid(1, 4.0, 3.0)
    axes.set_title("/data/corpora/" + "deduplicated-" * 9 + "books.txt, 3 seeds", loc="left")
    save(figure, tmp_path / "a.png")
    title = axes._left_title.get_window_extent()
    assert 0 <= title.x0 < title.x1 <= figure.bbox.width
    assert axes.get_title("left").replace("\n", "").endswith("3 seeds")


def test_growth_says_its_setting_as_tables_do():
    record = read_record(ROOT / "results" / "laboratory")
    with plots.figures(record) as drawn:
        axes = dict(drawn)["growth"].axes[0]
    assert axes.get_title("left") == "Bigram-Backcopy: adamw, 1 layer"
