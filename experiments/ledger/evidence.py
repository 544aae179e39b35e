"""What numbers say of a bound: a verdict, its p-value, its interval.

Units are seeds, chains or texts. A continuous measure is tested by Student's t over units, in which
a laboratory's chain is one unit: its seeds agree more than chains do. P-values are two-sided, but
for equality and for where a relation is. Where parts must all hold, the largest p supports; the
smallest, times their number, refutes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Protocol

import numpy as np
from scipy import stats

from sysout_jax.analysis.statistics import Interval, mean_interval

from ..records.laboratory import of_units
from ..records.units import Record

SUPPORTED, REFUTED, EQUIVALENT = "supported", "refuted", "equivalent"
INCONCLUSIVE, INAPPLICABLE = "inconclusive", "not applicable"
UNMEASURED, SUPERSEDED = "not measured", "superseded"
ALPHA = 0.05  # of a claim alone, and of the false discovery rate over all
Records = Sequence[Record]


@dataclass(frozen=True)
class Judged:
    """What records say by a predicate alone, before the number of claims is corrected for."""

    says: str
    numbers: str
    short: str  # one number, for a cell
    p: float | None = None  # None: not tested
    units: int = 0


class Predicate(Protocol):
    """What decides a claim."""

    @property
    def threshold(self) -> str: ...

    def judge(self, records: Records) -> Judged: ...


@dataclass(frozen=True)
class Piece:
    """One quantity against its bound; `towards` is the side that the claim is on."""

    p: float
    towards: bool
    interval: Interval


def _alike(units: np.ndarray) -> bool:
    """Whether units differ by no more than float64 rounds."""
    return float(np.std(units)) <= 1e-12 * float(np.abs(units).max())


def piece(found: np.ndarray, bound: float, below: bool) -> Piece:
    """The mean of units against a bound; units without any spread have no t, and p is NaN."""
    units = of_units(found)
    spread = units.size > 1 and not _alike(units)
    p = float(stats.ttest_1samp(units, bound).pvalue) if spread else nan
    mean = float(np.mean(units))
    return Piece(p, mean < bound if below else mean > bound, mean_interval(units))


def all_hold(pieces: Sequence[Piece]) -> tuple[str, float]:
    """The verdict of all pieces and its p-value."""
    against = [each.p for each in pieces if not each.towards]
    if any(isnan(each.p) for each in pieces):
        return INCONCLUSIVE, nan
    p = min(1.0, len(pieces) * min(against)) if against else max(each.p for each in pieces)
    return (REFUTED if against else SUPPORTED) if p < ALPHA else INCONCLUSIVE, p


def within(difference: np.ndarray, margin: float) -> float:
    """The p-value of two one-sided t-tests that |mean| < margin; NaN for fewer than two units."""
    units = of_units(difference)
    if units.size < 2:
        return nan
    if _alike(units):
        return 0.0 if abs(units[0]) < margin else 1.0
    low = stats.ttest_1samp(units, -margin, alternative="greater").pvalue
    high = stats.ttest_1samp(units, margin, alternative="less").pvalue
    return float(max(low, high))


def of_pieces(pieces: Sequence[Piece], names: Sequence[str], digits: int, units: int) -> Judged:
    """The verdict of several quantities, each by its name; the worst is the one for a cell."""
    says, p = all_hold(pieces)
    texts = [f"{each.interval:.{digits}f}" for each in pieces]
    if len(pieces) > 1:
        texts = [f"{name} {text}" for name, text in zip(names, texts, strict=True)]
    worst = min(pieces, key=lambda each: (each.towards, -each.p if each.towards else each.p))
    short = f"{worst.interval.mean:.{digits}f}"
    return Judged(says, ", ".join(texts), short, None if isnan(p) else p, units)


def p_below(found: Interval, bound: float) -> float:
    """Two-sided, that a mean is below a bound, by the normal law that its interval assumes."""
    if found.mean >= bound:
        return 1.0
    spread = (found.high - found.low) / (2.0 * stats.norm.ppf(0.975))
    return float(2.0 * stats.norm.sf((bound - found.mean) / spread)) if spread else 0.0
