"""Tables on a terminal: none is wider than it, and nothing of them is left out."""

import io
import re
from importlib import import_module

import pytest
from rich.cells import cell_len
from rich.console import Console

from experiments.cli.showing import WIDTH
from experiments.cli.tables import Section, csv, print_table, show
from sysout_jax.results import read_record
from sysout_jax.showing import Table
from tests.pages import ROOT

RECORDS = (
    "benchmark/fruitfly-h100", "causal/backcopy", "compress/backcopy", "convergence/backcopy",
    "explicit/backcopy", "laboratory", "variants/demo",
)  # fmt: skip
SENTENCE = re.compile(r"  (?:  )?\S")  # under a table, or what follows of one

NUMBER = re.compile(r"[-+]?\d+\.\d+")


def printed(name, width):
    """The lines of the tables of a record, without blanks at their ends."""
    console = Console(file=io.StringIO(), width=width)
    command = import_module(f"experiments.{name.partition('/')[0]}")
    show(console, command.REPORT.sections(read_record(ROOT / "results" / name)))
    lines = [line.rstrip() for line in console.file.getvalue().splitlines()]
    assert max(map(cell_len, lines)) <= width
    return [line for line in lines if line and not SENTENCE.match(line)]


@pytest.mark.parametrize("name", RECORDS)
def test_a_table_fits_and_is_whole(name):
    whole = printed(name, WIDTH)
    rule = next(n for n, line in enumerate(whole) if set(line) <= {" ", "─"})
    first = re.split(r" {2,}", whole[rule + 1].strip())
    assert max(map(cell_len, whole)) > 80
    for width in (80, 120):
        lines = printed(name, width)
        assert max(map(cell_len, lines)) <= width
        shown = " ".join(lines)
        assert all(cell in shown for cell in first[1:])
        assert set(NUMBER.findall(" ".join(whole))) <= set(NUMBER.findall(shown))


@pytest.mark.parametrize(("width", "parts"), [(30, 3), (47, 2), (60, 1)])
def test_parts_begin_with_what_a_row_is(width, parts):
    headings = ["name", "norm", "one two", "three", "four"]
    rows = [[f"row {n}", "own", *(f"{n}.{k} ±0.001" for k in range(3))] for n in range(2)]
    console = Console(file=io.StringIO(), width=width)
    print_table(console, Table.of("a title", headings, rows, "llr"))
    lines = console.file.getvalue().splitlines()
    assert sum("row 1" in line for line in lines) == parts
    assert sum("own" in line for line in lines) == 2  # the same everywhere: in the first part alone
    assert all(any(cell in line for line in lines) for row in rows for cell in row)
    assert max(map(len, lines)) <= width


def test_a_title_is_no_markup():
    console = Console(file=io.StringIO(), width=80)
    shown = Table.of("notes [draft] [/b]\nof two lines", ("name", "x"), [("a" * 30, 1)])
    print_table(console, shown)
    assert "notes [draft] [/b]" in console.file.getvalue()
    lines = csv([Section("s", shown)])["s"].splitlines()
    assert lines == ["# notes [draft] [/b]", "# of two lines", "name,x", "a" * 30 + ",1"]


def test_a_long_text_at_the_end_leaves_room_for_what_a_row_is():
    layers = "; ".join(f"matrix {n} of layers {n},{n + 9}" for n in range(12))
    rows = [["smollm2-135m", "hqq-w3-g64", f"3.{n}", layers] for n in range(2)]
    console = Console(file=io.StringIO(), width=80)
    print_table(console, Table.of("t", ["model", "method", "bits", "what climbs"], rows, "llrl"))
    lines = console.file.getvalue().splitlines()
    assert sum("smollm2-135m" in line for line in lines) >= 2
    assert sum("hqq-w3-g64" in line for line in lines) >= 2
    assert set(layers.split()) <= set(" ".join(lines).split())
    assert max(map(len, lines)) <= 80
