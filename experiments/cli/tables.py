"""One table for the terminal and for Markdown."""

from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table

GAP, EDGES = 3, 2  # blanks between two columns of a table, and at its ends


def print_columns(
    console: Console, title: str, rows: Sequence[Sequence[str]], left: int = 1, apart: bool = False
) -> None:
    """Print a table; what is wider than the console in parts of it, one below the other.

    Args:
      console: whose width is kept.
      title: above it.
      rows: texts, headings first.
      left: how many columns say what a row is: every part begins with them, or, from the second on,
        with those of them that differ.
      apart: set the first row off from the others.
    """
    columns = list(zip(*rows, strict=True))
    widths = [_width(column) for column in columns]
    widths[:left] = [min(width, console.width // 3) for width in widths[:left]]
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
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.title, table.title_justify = (title if number == 0 else None), "left"
        for at in part:
            justify: Literal["left", "right"] = "left" if at < left else "right"
            table.add_column(rows[0][at], justify=justify, width=widths[at], overflow="fold")
        for row in rows[1:]:
            first = apart and row is rows[1]
            cells = (row[at] for at in part)
            table.add_row(*cells, style="dim" if first else "", end_section=first)
        console.print(table, markup=False)


def _width(column: Sequence[str]) -> int:
    """What the cells of a column need, if its heading may be broken between words."""
    return max(map(cell_len, (*column[0].split(), *column[1:])))


def markdown(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
