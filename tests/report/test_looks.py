"""A variant looks the same in every figure, and no two series of one figure look alike."""

import pytest

from sysout_jax import plots
from sysout_jax.core.attention import PAPER, VARIANTS
from sysout_jax.plots import style
from sysout_jax.plots.style import COLOURS, LINES, looks
from sysout_jax.results import read_record
from tests.pages import ROOT

BESIDE = ("sink_logit", "value_bias+context_scale", "v_scale")


def legend(directory, figure):
    """Label -> (colour, line style) of a figure of a committed record."""
    with plots.figures(read_record(ROOT / "results" / directory)) as drawn:
        axes = dict(drawn)[figure].axes
    handles = [each for one in axes for each in zip(*one.get_legend_handles_labels(), strict=True)]
    return {
        label.partition(",")[0]: (handle.get_color(), handle.get_linestyle())
        for handle, label in handles
    }


def test_the_paper_has_the_names_of_the_table():
    assert style.PAPER == PAPER


@pytest.mark.parametrize("names", [PAPER[::-1], (*BESIDE, *PAPER), ("softmax", *BESIDE)])
def test_variants_of_the_paper_have_their_colours(names):
    for name, look in zip(names, looks(names), strict=True):
        if name in PAPER:
            assert look == (COLOURS[PAPER.index(name)], "-")
        else:
            assert look.colour not in COLOURS[: len(PAPER)]


@pytest.mark.parametrize(
    "names",
    [
        tuple(VARIANTS), tuple(VARIANTS)[::-1], ("softmax", *tuple(VARIANTS)[6:]),
        ("(a) softmax", "(a) softmax", "(a) softmax, bound"), tuple(map(str, range(40))),
    ],
)  # fmt: skip
def test_no_two_of_a_figure_look_alike(names):
    assert len(set(looks(names))) == len(names)


def test_what_is_no_variant_has_the_colours_in_their_order():
    assert [look.colour for look in looks(["chain 0", "chain 1", "chain 2"])] == list(COLOURS[:3])


def test_colours_run_out_before_line_styles_change():
    count = len(COLOURS) * len(LINES)
    found = looks(list(map(str, range(count + 1))))
    assert [look.line for look in found[: len(COLOURS) + 1]] == ["-"] * len(COLOURS) + ["--"]
    assert found[count] == found[0]


@pytest.mark.parametrize(
    ("directory", "figure"),
    [
        ("variants/sinks", "stdlib-loss"), ("variants/factor-and-bias", "backcopy-training"),
        ("variants/sinks-values", "stdlib-loss"), ("compress/fruitfly-h100", "loss"),
        ("compress/stdlib", "layers"), ("convergence/stdlib", "loss"),
        ("laboratory", "growth"),
    ],
)  # fmt: skip
def test_figures_of_committed_records_have_them(directory, figure):
    found = legend(directory, figure)
    series = {label: look for label, look in found.items() if look[1] != "--"}
    assert len(set(series.values())) == len(series) >= 2
    for name, colour in zip(PAPER, COLOURS, strict=False):
        mine = [look for label, look in found.items() if label.split()[-1] == name]
        assert all(look[0] == colour for look in mine)
