"""A forest plot draws each mean, interval and point where its numbers say, and no more."""

import numpy as np
from matplotlib.figure import Figure

from sysout_jax.plots.forest import LINEAR, Mark, costs, forest


def drawn(*marks):
    """The axes, the points, and the ends of the whiskers, as (x, y) in rows of numbers."""
    axes = Figure().add_subplot()
    forest(axes, ["first", "second", "third"], marks, fontsize=7)
    points = [line.get_xydata() for line in axes.lines if len(line.get_xydata())]
    whiskers = [segment for each in axes.collections for segment in each.get_segments()]
    return axes, points, whiskers


def test_rows_are_in_the_order_of_the_labels():
    axes, points, whiskers = drawn(
        Mark(0, (1.0, 0.5, 2.0), "black"), Mark(2, (3.0, 2.5, 3.25), "red", offset=0.25)
    )
    assert [label.get_text() for label in axes.get_yticklabels()] == ["first", "second", "third"]
    np.testing.assert_array_equal(axes.get_yticks(), [2, 1, 0])
    np.testing.assert_array_equal(points, [[[1.0, 2]], [[3.0, 0.25]]])
    np.testing.assert_allclose(whiskers, [[[0.5, 2], [2.0, 2]], [[2.5, 0.25], [3.25, 0.25]]])


def test_a_bar_ends_at_the_mean_and_has_its_dots():
    axes, points, whiskers = drawn(
        Mark(1, (2.0, 1.0, 3.0), "red", height=0.5, dots=(1.5, None, 2.5))
    )
    (bar,) = axes.patches
    assert (bar.get_x(), bar.get_width(), bar.get_y(), bar.get_height()) == (0, 2.0, 0.75, 0.5)
    np.testing.assert_array_equal(points, [[[1.5, 1], [np.nan, 1], [2.5, 1]]])
    np.testing.assert_allclose(whiskers, [[[1.0, 1], [3.0, 1]]])


def test_what_is_not_known_is_not_drawn():
    _, points, whiskers = drawn(
        Mark(0, (None, None, None), "red"), Mark(1, (1.0, None, None), "red"),
        Mark(2, (1.0, 1.5, 2.0), "red"),
    )  # fmt: skip
    np.testing.assert_array_equal(points, [[[1.0, 1]], [[1.0, 0]]])
    np.testing.assert_allclose(whiskers, [[[1.0, 0], [2.0, 0]]])  # a mean outside its interval


def test_costs_are_linear_about_zero_and_name_each_series_once():
    axes = Figure().add_subplot()
    series = [
        Mark(row, (at, at, at), colour, marker=mark, label=name)
        for row, at in enumerate((0.1, -2.0))
        for name, colour, mark in (("at once", "red", "o"), ("trained", "black", "^"))
    ]
    costs(axes, ["first", "second"], series)
    handles, labels = axes.get_legend_handles_labels()
    assert labels == ["at once", "trained"]
    assert [(each.get_color(), each.get_marker()) for each in handles] == [
        ("red", "o"), ("black", "^"),
    ]  # fmt: skip
    assert axes.get_xscale() == "symlog"
    scaled = axes.xaxis.get_transform().transform(np.array([0, LINEAR / 2, LINEAR]))
    assert scaled[1] * 2 == scaled[2]
    assert [0.0, 0.0] in [list(line.get_xdata()) for line in axes.lines]
