"""What a benchmark found beside its goal: one row each, printed and recorded."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Console

from sysout_jax.showing import Table

HEADINGS = ("what", "median (quartiles)", "goal", "met")


@dataclass(frozen=True)
class Row:
    """A quantity: median and quartiles of its rounds, and what it should be."""

    what: str
    found: list[float]  # median, lower and upper quartile
    unit: str = ""
    most: float | None = None  # the goal
    least: float | None = None

    @property
    def met(self) -> bool | None:
        """Whether the median reaches the goal; None where there is none."""
        if self.most is None and self.least is None:
            return None
        return (self.most is None or self.found[0] <= self.most) and (
            self.least is None or self.found[0] >= self.least
        )


def timed(config: Any) -> dict[str, Any]:
    """What a record says of a config: what was timed, not where files went."""
    return {name: value for name, value in asdict(config).items() if name != "workdir"}


def quartiles(values: np.ndarray | Sequence[float]) -> list[float]:
    """Median, lower and upper quartile."""
    return [float(np.percentile(values, share)) for share in (50, 25, 75)]


def texts(rows: Iterable[dict[str, Any]]) -> list[list[str]]:
    """The rows of a record, as they are shown."""
    made = []
    for row in rows:
        known = Row(**row)
        sign, goal = ("<=", known.most) if known.least is None else (">=", known.least)
        met = {True: "yes", False: "no", None: ""}[known.met]
        median, low, high = (f"{value:.3g}" for value in known.found)
        shown = f"{median} ({low} to {high})" if len({median, low, high}) > 1 else median
        aim = "" if goal is None else f"{sign} {goal:g}{known.unit}"
        made.append([known.what, f"{shown}{known.unit}", aim, met])
    return made


def table(title: str, rows: Iterable[dict[str, Any]]) -> Table:
    """The rows of a record, as docs/performance.md shows them."""
    return Table.of(title, HEADINGS, texts(rows), "lrrl")


def print_table(console: Console, shown: Table) -> None:
    """Print a table; lines as long as they are."""
    console.print(f"{shown!r}\n", soft_wrap=True, markup=False)


def print_rows(console: Console, title: str, rows: Iterable[dict[str, Any]]) -> None:
    """Print a table of rows."""
    print_table(console, table(title, rows))
