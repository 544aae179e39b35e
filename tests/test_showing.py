"""Intervals and tables as text, Markdown, HTML and for pandas."""

import csv
import io
import math
import sys
from types import SimpleNamespace

import pytest

from sysout_jax.showing import Interval, Table

NONE = math.nan
TABLE = Table.of("T", ("a<b", "x"), [("<i>", Interval(1.0, 0.5, 2.0)), ("j", None), ("k", 1 / 3)])


@pytest.mark.parametrize(
    ("found", "spec", "text"),
    [
        ((0.124, 0.1, 0.144), ".2f", "0.12 [0.10, 0.14]"),
        ((0.124, 0.1, 0.144), "±.2f", "0.12 ±0.02"),
        ((0.124, 0.1, 0.144), "±+.2f", "+0.12 ±0.02"),
        ((-0.124, -0.144, 0.1), "to+.2f", "-0.12 (-0.14 to +0.10)"),
        ((1234.5, 1e-7, 2e6), ".3g", "1.23e+03 [1e-07, 2e+06]"),
        ((0.25, NONE, NONE), "±+.3f", "+0.250"),
        ((0.25, NONE, NONE), "to.1f", "0.2"),
        ((NONE, NONE, NONE), ".2f", ""),
    ],
)
def test_an_interval_as_text(found, spec, text):
    assert format(Interval(*found), spec) == text


def test_an_interval_of_a_record():
    found = ([1.0, 0.5, 2.0], [1.0, None, None], [None] * 3)
    assert [str(Interval.of(each)) for each in found] == ["1 [0.5, 2]", "1", "–"]


def test_a_table_as_text_and_as_html():
    assert repr(TABLE).splitlines() == [
        "T", "a<b           x", "<i>  1 [0.5, 2]", "j             –", "k        0.3333"
    ]  # fmt: skip
    shown = TABLE._repr_html_()
    assert "<i>" not in shown
    assert "<th>a&lt;b</th>" in shown
    assert "<td>1 [0.5, 2]</td>" in shown


def test_a_table_as_comma_separated_values():
    rows = list(csv.reader(TABLE.to_csv().splitlines()))
    assert rows == [
        ["a<b", "x", "x low", "x high"],
        ["<i>", "1.0", "0.5", "2.0"],
        ["j", "", "", ""],
        ["k", str(1 / 3), "", ""],
    ]
    odd = Table.of("T", ("a, b", "c", "c"), [('say "x"', "1\n2", None)])  # two headings alike
    assert list(csv.reader(io.StringIO(odd.to_csv()))) == [
        ["a, b", "c", "c"], ['say "x"', "1\n2", ""]
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("align", "line"),
    [
        ("lr", "| --- | ---: | ---: | ---: |"),
        ("l", "| --- | --- | --- | --- |"),
        ("lrl", "| --- | ---: | --- | --- |"),
        ("llrrl", "| --- | --- | ---: | ---: |"),
    ],
)
def test_a_table_in_markdown(align, line):
    table = Table.of("T", ("max\n|h|", "b", "c", "d"), [("x|y", 0.5, None, "z")], align)
    assert table.to_markdown().splitlines() == [
        r"| max \|h\| | b | c | d |", line, r"| x\|y | 0.5 | – | z |"
    ]  # fmt: skip
    tokens = Table.of("T", ("piece", "p"), [("<bos>", "p < 0.1"), ("`<s>`", "")])
    assert tokens.to_markdown().splitlines()[2:] == ["| &lt;bos> | p < 0.1 |", "| `<s>` |  |"]


def test_a_data_frame(monkeypatch):
    """The columns that it is made of."""
    monkeypatch.setitem(sys.modules, "pandas", SimpleNamespace(DataFrame=dict))
    assert TABLE.to_pandas() == {
        "a<b": ["<i>", "j", "k"], "x": [1.0, None, 1 / 3], "x low": [0.5, None, None],
        "x high": [2.0, None, None],
    }  # fmt: skip


def test_long_texts_and_names_may_be_broken():
    """A column with a long text is of a class; a heading has places to break at."""
    long = Table.of("", ("a_b@c", "d"), [("short", 1), ("one, two, three, four, five", 2)])
    shown = long.to_html()
    assert '<th class="words">a_<wbr>b@<wbr>c</th><th>d</th>' in shown
    assert shown.count('<td class="words">') == 2
    assert "<td>2</td>" in shown
