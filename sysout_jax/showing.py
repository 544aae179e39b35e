"""Tables as a notebook, a terminal and pandas show them."""

import csv
import html
import io
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from sysout_jax.errors import InputError

if TYPE_CHECKING:
    import pandas as pd


WORDS = 24  # characters from which on the text of a cell may be broken


def _plain(cell: str) -> str:
    """A cell as Markdown shows it as it is: what would be a tag is none."""
    cell = cell.replace("\n", " ").replace("|", "\\|")
    return cell if re.search("`.*`", cell) else re.sub("<(?=[a-zA-Z/!?])", "&lt;", cell)


class Interval(NamedTuple):
    """A mean and the bounds of an interval around it, NaN where they are not known.

    As text: f"{found:.2f}" is "0.12 [0.10, 0.14]", f"{found:to+.2f}" "+0.12 (+0.10 to +0.14)" and
    f"{found:±.2f}" "0.12 ±0.02", each the mean alone without bounds and nothing without a mean.
    """

    mean: float
    low: float
    high: float

    @classmethod
    def of(cls, found: Sequence[float | None]) -> "Interval":
        """As a record holds it, with null for what is not known."""
        return cls(*(math.nan if value is None else value for value in found))

    def __format__(self, spec: str) -> str:
        style = next((style for style in ("±", "to") if spec.startswith(style)), "")
        spec = spec.removeprefix(style)
        mean, low, high = (format(value, spec) for value in self)
        if math.isnan(self.mean) or math.isnan(self.low):
            return "" if math.isnan(self.mean) else mean
        if style == "±":
            return f"{mean} ±{format((self.high - self.low) / 2, spec.removeprefix('+'))}"
        return f"{mean} ({low} to {high})" if style else f"{mean} [{low}, {high}]"

    def __str__(self) -> str:
        return f"{self:.3g}" or "–"


@dataclass(frozen=True, repr=False)
class Table:
    """Rows under headings; cells are text, numbers, intervals, or None for none.

    `align` has "l" or "r" for each column, the last one for all that follow. The columns before
    the first "r" say what a row is.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    align: str = "lr"

    @classmethod
    def of(
        cls, title: str, headings: Sequence[str], rows: Iterable[Sequence[Any]], align: str = "lr"
    ) -> "Table":
        """A table of any sequences."""
        return cls(title, tuple(headings), tuple(map(tuple, rows)), align)

    @property
    def texts(self) -> list[list[str]]:
        """The headings and the rows as texts."""
        return [list(self.headings), *([_cell(value) for value in row] for row in self.rows)]

    @property
    def sides(self) -> str:
        """The alignment of every column."""
        return self.align.ljust(len(self.headings), self.align[-1])[: len(self.headings)]

    def __repr__(self) -> str:
        widths = [max(map(len, column)) for column in zip(*self.texts, strict=True)]
        pad = [str.ljust if side == "l" else str.rjust for side in self.sides]

        def line(row: Sequence[str]) -> str:
            cells = zip(pad, row, widths, strict=True)
            return "  ".join(to(cell, width) for to, cell, width in cells).rstrip()

        return "\n".join([self.title, *map(line, self.texts)])

    def to_markdown(self) -> str:
        """The table in Markdown, without its title."""
        lines = [[_plain(cell) for cell in row] for row in self.texts]
        lines.insert(1, ["---" if side == "l" else "---:" for side in self.sides])
        return "\n".join(f"| {' | '.join(row)} |" for row in lines)

    def to_html(self) -> str:
        """An HTML table that scrolls by itself where the screen is narrow, every cell escaped.

        Columns with a long text have the class "words": a style may break their lines.
        """
        heads, *rows = self.texts
        long = [any(len(cell) > WORDS for cell in column) for column in zip(*rows, strict=True)]
        kinds = [' class="words"' if words else "" for words in long] or [""] * len(heads)
        names = (re.sub("([_@/])", r"\1<wbr>", html.escape(heading)) for heading in heads)
        head = "".join(f"<th{k}>{name}</th>" for k, name in zip(kinds, names, strict=True))
        body = "".join(
            "<tr>"
            + "".join(f"<td{k}>{html.escape(x)}</td>" for k, x in zip(kinds, row, strict=True))
            + "</tr>"
            for row in rows
        )
        whole = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
        return f'<div class="wide" style="overflow-x:auto"><table>{whole}</table></div>'

    def _repr_html_(self) -> str:
        return f"<p><strong>{html.escape(self.title)}</strong></p>{self.to_html()}"

    def to_csv(self) -> str:
        """The table as comma-separated values, without its title; an interval is three columns."""
        headings, columns = zip(*self._columns(), strict=True)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerows([headings, *zip(*columns, strict=True)])
        return text.getvalue().rstrip("\n")

    def to_pandas(self) -> "pd.DataFrame":
        """A data frame; an interval is three columns: its heading, and that with low and high.

        Raises:
          InputError: pandas is not installed.
        """
        try:
            import pandas as pd
        except ImportError:
            accepted = "pip install pandas, or the rows of the table"
            raise InputError("to_pandas", None, accepted, "pandas is not installed") from None
        return pd.DataFrame(dict(self._columns()))

    def _columns(self) -> Iterator[tuple[str, list[Any]]]:
        """Heading and cells; of intervals three: the heading, and that with low and high."""
        for at, heading in enumerate(self.headings):
            cells = [row[at] for row in self.rows]
            wide = any(isinstance(cell, Interval) for cell in cells)
            names = (heading, f"{heading} low", f"{heading} high") if wide else (heading,)
            for n, name in enumerate(names):
                yield (
                    name,
                    [
                        cell[n] if isinstance(cell, Interval) else None if n else cell
                        for cell in cells
                    ],
                )


def facts(title: str, rows: Iterable[tuple[str, Any]]) -> str:
    """A short table of names and values as HTML, for `_repr_html_`."""
    return Table.of(title, ("", ""), rows)._repr_html_()


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
