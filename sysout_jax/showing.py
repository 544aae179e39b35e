"""Tables as a notebook, a terminal and pandas show them."""

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from sysout_jax.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


class Between(NamedTuple):
    """A cell: a mean with the bounds of its interval, None where they are not known."""

    mean: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.mean is None:
            return "–"
        if self.low is None or self.high is None:
            return f"{self.mean:.3g}"
        return f"{self.mean:.3g} [{self.low:.3g}, {self.high:.3g}]"


@dataclass(frozen=True, repr=False)
class Table:
    """Rows under headings; cells are text, numbers, `Between`, or None for none."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]

    @classmethod
    def of(cls, title: str, headings: Sequence[str], rows: Iterable[Sequence[Any]]) -> "Table":
        """A table of any sequences."""
        return cls(title, tuple(headings), tuple(map(tuple, rows)))

    def __repr__(self) -> str:
        lines = [self.headings, *(tuple(map(_cell, row)) for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

        def line(row: Sequence[str]) -> str:
            first, *others = map(str.ljust, row, widths)
            others = [cell.strip().rjust(n) for cell, n in zip(others, widths[1:], strict=True)]
            return "  ".join([first, *others]).rstrip()

        return "\n".join([self.title, *map(line, lines)])

    def to_html(self) -> str:
        """An HTML table that scrolls by itself where the screen is narrow, every cell escaped."""
        head = "".join(f"<th>{html.escape(heading)}</th>" for heading in self.headings)
        body = "".join(
            f"<tr>{''.join(f'<td>{html.escape(_cell(value))}</td>' for value in row)}</tr>"
            for row in self.rows
        )
        whole = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
        return f'<div class="wide" style="overflow-x:auto"><table>{whole}</table></div>'

    def _repr_html_(self) -> str:
        return f"<p><strong>{html.escape(self.title)}</strong></p>{self.to_html()}"

    def to_pandas(self) -> "pd.DataFrame":
        """A data frame; an interval is three columns: its heading, and that with low and high.

        Raises:
          InputError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            accepted = "pip install 'sysout_jax[pandas]', or the rows of the table"
            raise InputError("to_pandas", None, accepted, "pandas is not installed") from None
        columns: dict[str, list[Any]] = {}
        for at, heading in enumerate(self.headings):
            cells = [row[at] for row in self.rows]
            wide = any(isinstance(cell, Between) for cell in cells)
            names = (heading, f"{heading} low", f"{heading} high") if wide else (heading,)
            for n, name in enumerate(names):
                columns[name] = [
                    cell[n] if isinstance(cell, Between) else None if n else cell for cell in cells
                ]
        return pd.DataFrame(columns)


def facts(title: str, rows: Iterable[tuple[str, Any]]) -> str:
    """A short table of names and values as HTML, for `_repr_html_`."""
    return Table.of(title, ("", ""), rows)._repr_html_()


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
