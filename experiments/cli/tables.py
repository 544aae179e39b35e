"""What a report says: tables, and sentences under them; on a terminal or in Markdown."""

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

import rich.table
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from sysout_jax.showing import Table

GAP, EDGES = 3, 2  # blanks between two columns of a table, and at its ends
INDENT = 2  # blanks before a sentence under a table


class Section(NamedTuple):
    """A table by name, and lines under it; in Markdown the table alone."""

    name: str
    table: Table | None
    lines: Sequence[str] = ()
    apart: bool = False  # the first row is what others are compared with
    asked: bool = False  # long: not shown, but printed where a flag of `PRINTED` asks


def show(console: Console, sections: Iterable[Section]) -> None:
    """Print what a report says."""
    for section in sections:
        if section.asked:
            continue
        if section.table:
            print_table(console, section.table, section.apart)
        for line in section.lines:
            print_line(console, line)
        if section.lines:
            console.print()


def print_line(console: Console, line: str) -> None:
    """Print a sentence under a table, in lines that fit."""
    width = max(console.width, 2 * INDENT)
    text = textwrap.fill(
        line, width, initial_indent=" " * INDENT, subsequent_indent=" " * 2 * INDENT,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def markdown(sections: Iterable[Section]) -> dict[str, str]:
    """Name -> table in Markdown, as README and docs show it."""
    return {name: table.to_markdown() for name, table, *_ in sections if table}


def csv(sections: Iterable[Section]) -> dict[str, str]:
    """Name -> title and table as lines of comma-separated values."""
    return {
        name: "# " + (table.title or name).replace("\n", "\n# ") + f"\n{table.to_csv()}"
        for name, table, *_ in sections
        if table
    }


TEXTS: Mapping[str, Callable[[Iterable[Section]], dict[str, str]]] = MappingProxyType(
    {"markdown": markdown, "csv": csv}
)
# Flags, and what each prints to stdout.
PRINTED: Mapping[str, str] = MappingProxyType(
    {
        "markdown": "tables in Markdown", "csv": "tables as comma-separated values",
        "json": "the record",
    }
)  # fmt: skip


def print_table(console: Console, shown: Table, apart: bool = False) -> None:
    """Print a table; what is wider than the console in parts of it, one below the other.

    Every part begins with the columns that say what a row is or, from the second on, with those of
    them that differ.

    Args:
      console: whose width is kept.
      shown: the table.
      apart: set the first row off from the others.
    """
    rows, left = shown.texts, len(shown.sides.partition("r")[0])
    columns = list(zip(*rows, strict=True))
    # A long text at the end is broken, too: it would leave no room for what a row is.
    widths = [
        min(_width(column), console.width // (3 if at < left else 2))
        for at, column in enumerate(columns)
    ]
    least = max(widths[left:], default=0) + GAP * left + EDGES
    while sum(widths[:left]) + least > console.width and max(widths[:left]) > 1:
        widths[widths.index(max(widths[:left]))] -= 1
    differ = [at for at in range(left) if at == 0 or len({*columns[at][1:]} - {""}) > 1]
    parts = [list(range(left))]
    for at in range(left, len(widths)):
        taken = sum(widths[n] + GAP for n in [*parts[-1], at]) - GAP + EDGES
        if taken > console.width and parts[-1][-1] >= left:
            parts.append(list(differ))
        parts[-1].append(at)
    for number, part in enumerate(parts):
        table = rich.table.Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.title, table.title_justify = (Text(shown.title) if number == 0 else None), "left"
        for at in part:
            justify: Literal["left", "right"] = "left" if shown.sides[at] == "l" else "right"
            table.add_column(rows[0][at], justify=justify, width=widths[at], overflow="fold")
        for row in rows[1:]:
            first = apart and row is rows[1]
            cells = (row[at] for at in part)
            table.add_row(*cells, style="dim" if first else "", end_section=first)
        console.print(table, markup=False)


def _width(column: Sequence[str]) -> int:
    """What the cells of a column need, if its heading may be broken between words."""
    return max(map(cell_len, (*column[0].split(), *column[1:])))
