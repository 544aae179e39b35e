"""The predicates that decide claims: each renders its threshold, and judges records by it.

What forms or does not is counted, k of n units; what has a size is tested by its mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import copysign, isnan
from typing import Any

import numpy as np
from scipy import stats

from sysout_jax.analysis.statistics import Interval, mean_interval

from ..records.laboratory import of_units
from ..records.units import Record, Unmeasured, values, words
from .evidence import (
    ALPHA,
    EQUIVALENT,
    INAPPLICABLE,
    INCONCLUSIVE,
    REFUTED,
    SUPPORTED,
    Judged,
    Piece,
    Records,
    all_hold,
    of_pieces,
    p_below,
    piece,
    within,
)

EQUAL_NATS = 0.05  # within which losses are equal


def pooled(records: Records, cell: str, measure: str) -> np.ndarray:
    """Of several records one after another: [units] or [repeats, chains]."""
    return np.concatenate([values(record, cell, measure) for record in records])


@dataclass(frozen=True)
class Has:
    """A property of a unit: a measure beyond a bound, in every run of a chain."""

    measure: str
    bound: float
    below: bool = False

    @property
    def text(self) -> str:
        return f"{words(self.measure)} {'below' if self.below else 'above'} {self.bound:g}"

    def of(self, records: Records, cell: str) -> np.ndarray:
        """[units]: the share of a unit's runs that have it; 0 or 1 where there is one."""
        found = pooled(records, cell, self.measure)
        holds = found < self.bound if self.below else found > self.bound
        return of_units(holds.astype(np.float64))


@dataclass(frozen=True)
class Control:
    """A positive control in the same records: what must be there for a claim to be testable."""

    has: Has
    cell: str = "softmax"

    @property
    def text(self) -> str:
        return f"where {self.cell} has {self.has.text} in most units"

    def refusal(self, records: Records) -> Judged | None:
        """Why nothing is decided: in no unit of the control, or in no more than half."""
        found = self.has.of(records, self.cell) == 1.0
        if found.mean() > 0.5:
            return None
        numbers = f"control: {self.has.text} in {found.sum()} of {found.size} of {self.cell}"
        return Judged(INCONCLUSIVE if found.any() else INAPPLICABLE, numbers, "", units=found.size)


@dataclass(frozen=True)
class Equal:
    """Equal loss on every part of the task, by two one-sided tests."""

    parts: tuple[str, ...]
    margin: float = EQUAL_NATS

    @property
    def text(self) -> str:
        parts = " and ".join(words(part) for part in self.parts)
        return f"at equal {parts} (within {self.margin:g} nats, TOST)"

    def refusal(self, records: Records, one: str, other: str) -> Judged | None:
        """Why nothing is decided: a part of the loss is not shown to be equal."""
        for part in self.parts:
            difference = pooled(records, one, part) - pooled(records, other, part)
            if not within(difference, self.margin) < ALPHA:
                cost = mean_interval(of_units(difference))
                numbers = f"{words(part)} of {one} differs by {cost:.3f} nats"
                return Judged(INCONCLUSIVE, numbers, "", units=of_units(difference).size)
        return None


def _guarded(
    records: Records, control: Control | None, equal: Equal | None,
    pairs: Sequence[tuple[str, str]] = (),
) -> Judged | None:  # fmt: skip
    refusals = [control.refusal(records)] if control else []
    refusals += [equal.refusal(records, *pair) for pair in pairs] if equal else []
    return next((each for each in refusals if each), None)


def _under(text: str, *conditions: Equal | Control | None) -> str:
    return "; ".join([text, *(each.text for each in conditions if each)])


@dataclass(frozen=True)
class Share:
    """More than a share of units have a property, in each cell: k of n, exact binomial.

    A chain has it if all its runs do, and is without it if most are. Without a control an
    absence is not refuted, as nothing shows that it could be there: p is that of one side, doubled.
    So few units that no outcome could decide are not a test, and not among those corrected for."""

    has: Has
    cells: tuple[str, ...] = ("softmax",)
    most: float = 0.5
    control: Control | None = None
    equal: Equal | None = None

    @property
    def threshold(self) -> str:
        more = "most units" if self.most == 0.5 else f"more than {self.most:.0%} of units"
        told = f"{', '.join(self.cells)}: {self.has.text} in {more}"
        return _under(told, self.equal, self.control)

    def judge(self, records: Records) -> Judged:
        shares = [self.has.of(records, cell) for cell in self.cells]
        counts, n = [int((share == 1.0).sum()) for share in shares], shares[0].size
        pieces = [self._piece(share) for share in shares]
        names = [f"{cell} " for cell in self.cells] if len(pieces) > 1 else [""]
        numbers = ", ".join(
            f"{name}{k} of {n} [{each.interval.low:.2f}, {each.interval.high:.2f}]"
            for name, k, each in zip(names, counts, pieces, strict=True)
        )
        short = f"{min(counts)}/{n}"
        pairs = [(cell, self.control.cell) for cell in self.cells] if self.control else []
        if refused := _guarded(records, self.control, self.equal, pairs):
            return Judged(refused.says, f"{numbers}; {refused.numbers}", short, units=n)
        if min(self._test(each, n, "two-sided") for each in (0, n)) >= ALPHA:
            return Judged(INCONCLUSIVE, f"{numbers}; too few to decide", short, units=n)
        says, p = all_hold(pieces)
        if self.control is None and not all(each.towards for each in pieces):
            numbers += "; no control"
        return Judged(says, numbers, short, p, n)

    def _piece(self, share: np.ndarray) -> Piece:
        k, nearly, n = int((share == 1.0).sum()), int((share >= 0.5).sum()), share.size
        towards = k / n > self.most
        if self.control is None:
            p = min(1.0, 2.0 * self._test(k, n, "greater"))
        elif not towards and nearly / n > self.most:
            p = 1.0
        else:
            p = self._test(k if towards else nearly, n, "two-sided")
        interval = stats.binomtest(k, n).proportion_ci(0.95, "exact")
        return Piece(p, towards, Interval(k / n, interval.low, interval.high))

    def _test(self, k: int, n: int, side: str) -> float:
        return float(stats.binomtest(k, n, self.most, side).pvalue)


@dataclass(frozen=True)
class Level:
    """The mean of a measure is beyond a bound in each cell."""

    measure: str
    bound: float
    below: bool = False
    cells: tuple[str, ...] = ("softmax",)
    also: tuple[tuple[str, float], ...] = ()  # other measures that must be so too, their bounds
    digits: int = 2
    control: Control | None = None

    @property
    def threshold(self) -> str:
        told = [Has(*each, self.below).text for each in ((self.measure, self.bound), *self.also)]
        cells = ", ".join(words(cell) for cell in self.cells)
        return _under(f"{cells}: mean {' and '.join(told)}", self.control)

    def judge(self, records: Records) -> Judged:
        if refused := _guarded(records, self.control, None):
            return refused
        pieces, names = [], []
        for measure, bound in ((self.measure, self.bound), *self.also):
            for cell in self.cells:
                found = pooled(records, cell, measure)
                pieces.append(piece(found, bound, self.below))
                names.append(words(measure) if self.also else cell)
        return of_pieces(pieces, names, self.digits, of_units(found).size)


@dataclass(frozen=True)
class Paired:
    """A measure of one cell beside another's, pairs of units: a difference, or a ratio."""

    measure: str
    pairs: tuple[tuple[str, str], ...]  # (cell, than)
    bound: float = 0.0
    below: bool = True
    ratio: bool = False
    also: tuple[str, ...] = ()  # measures of which the same must be so
    digits: int = 2
    control: Control | None = None
    equal: Equal | None = None

    @property
    def threshold(self) -> str:
        side, measures = "below" if self.below else "above", (self.measure, *self.also)
        what = " and ".join(words(each) for each in measures)
        if self.ratio:
            told = [f"{one} {side} {self.bound:g} of {other}" for one, other in self.pairs]
        else:
            by = f" by more than {abs(self.bound):g}" if self.bound else ""
            told = [f"{one} {side} {other}{by}" for one, other in self.pairs]
        return _under(f"{what}, pairs: {', '.join(told)}", self.equal, self.control)

    def judge(self, records: Records) -> Judged:
        if refused := _guarded(records, self.control, self.equal, self.pairs):
            return refused
        pieces, names = [], []
        for measure in (self.measure, *self.also):
            for one, other in self.pairs:
                a, b = (pooled(records, cell, measure) for cell in (one, other))
                found = a / b if self.ratio else a - b
                pieces.append(piece(found, self.bound, self.below))
                of = f"{words(measure)} of " if self.also else ""
                names.append(f"{of}{one} {'/' if self.ratio else '-'} {other}")
        return of_pieces(pieces, names, self.digits, of_units(found).size)


@dataclass(frozen=True)
class Dose:
    """A dose changes a measure by more than a bound, beyond as much elsewhere, pairs of models."""

    treatment: str
    factor: float
    measure: str = "attention"
    falls: float = 0.1

    @property
    def control(self) -> Control:
        """What is to fall is there: twice what it is to fall by."""
        return Control(Has(self.measure, 2 * self.falls), f"{self.treatment} dose=1")

    @property
    def threshold(self) -> str:
        falls = f"{words(self.measure)} falls by more than {self.falls:g}, beyond as much elsewhere"
        return _under(f"{self.treatment} times {self.factor:g}: {falls}", self.control)

    def judge(self, records: Records) -> Judged:
        if refused := self.control.refusal(records):
            return refused

        def change(beside: str) -> np.ndarray:
            dosed, before = (
                pooled(records, f"{self.treatment} dose={dose:g}{beside}", self.measure)
                for dose in (self.factor, 1.0)
            )
            return dosed - before

        found = change("") - change(" beside=1")
        return of_pieces([piece(found, -self.falls, below=True)], ("",), 2, found.size)


@dataclass(frozen=True)
class Cost:
    """What stands in for the sink costs less than a share of what removing it does."""

    form: str
    share: float = 0.1
    than: str | None = None  # a form that it must cost less than
    removal: str = "dropped"
    measure: str = "cost"

    @property
    def threshold(self) -> str:
        less = f" and less than {words(self.than)}" if self.than else ""
        form, removal = words(self.form), words(self.removal)
        what = "" if self.measure == "cost" else f"{words(self.measure)}: "
        told = f"{what}{form} costs less than {self.share:.0%} of what {removal} does{less}, pairs"
        return f"{told}; where {removal} costs more than nothing"

    def judge(self, records: Records) -> Judged:
        cost, removal = (pooled(records, cell, self.measure) for cell in (self.form, self.removal))
        price = piece(removal, 0.0, below=False)
        numbers = f"{mean_interval(cost):.3f} of {price.interval:.3f} nats"
        short = f"{cost.mean() / removal.mean():.0%}"
        if not (price.towards and price.p < ALPHA):
            return Judged(INCONCLUSIVE, numbers, short, units=cost.size)
        pieces = [piece(cost - self.share * removal, 0.0, below=True)]
        if self.than:
            other = pooled(records, self.than, self.measure)
            pieces.append(piece(cost - other, 0.0, below=True))
            numbers += f", {words(self.than)} {mean_interval(other):.3f}"
        says, p = all_hold(pieces)
        return Judged(says, numbers, short, None if isnan(p) else p, cost.size)


@dataclass(frozen=True)
class Equivalence:
    """One cell is below another, or within a margin of it: two one-sided tests.

    Where being within it is what is claimed, a mean that is shown to be beyond it refutes."""

    measure: str
    one: str
    other: str
    margin: float
    claimed: bool = False  # whether being equivalent is what is claimed
    mean: float | None = None  # that the mean itself must be within, for it to be
    level: float = ALPHA  # of each test; 0.025 has the interval of 95% within the margin

    @property
    def threshold(self) -> str:
        level = "" if self.level == ALPHA else f" at {self.level:g}"
        near = f"within {self.margin:g} of {self.other} (TOST{level})"
        near += "" if self.mean is None else f", the mean within {self.mean:g}"
        text = near if self.claimed else f"below {self.other}; equivalent {near}"
        return f"{words(self.measure)}, pairs: {self.one} {text}"

    def judge(self, records: Records) -> Judged:
        found = pooled(records, self.one, self.measure) - pooled(records, self.other, self.measure)
        differs = piece(found, 0.0, below=True)
        p = min(within(found, self.margin) * ALPHA / self.level, 1.0)
        numbers, short = f"{differs.interval:.4f}", f"{differs.interval.mean:.3f}"
        mean = differs.interval.mean
        far = self.mean is not None and abs(mean) >= self.mean
        if self.claimed and abs(mean) > self.margin:
            p = piece(found, copysign(self.margin, mean), below=mean < 0).p
            says = REFUTED if p < ALPHA else INCONCLUSIVE
        elif p < ALPHA and not far:
            says = SUPPORTED if self.claimed else EQUIVALENT
        elif self.claimed:
            says, p = INCONCLUSIVE, max(p, ALPHA)  # where the mean is too far, no test shows it
        elif differs.p < ALPHA:
            says, p = SUPPORTED if differs.towards else REFUTED, differs.p
        else:
            says, p = INCONCLUSIVE, min(p, differs.p)
        return Judged(says, numbers, short, None if isnan(p) else p, of_units(found).size)


@dataclass(frozen=True)
class Relation:
    """Outliers of one kind are where those of another are: precision and recall."""

    given: str
    found: str
    precision: float = 0.9
    level: float = 0.001  # of the permutation test

    @property
    def threshold(self) -> str:
        return (f"{self.given} to {self.found}: precision above {self.precision:g}, recall above "
                f"chance, p < {self.level:g} by permutation; where both kinds are")  # fmt: skip

    def judge(self, records: Records) -> Judged:
        rows = [self._row(record) for record in records]
        if without := [row for row in rows if not row["sequences"]]:
            given, found = (without[0][key] for key in ("mean_given", "mean_found"))
            kinds = f"{self.given} {given:.1f} and {self.found} {found:.1f} a text"
            return Judged(INAPPLICABLE, f"{kinds}: never both", "")
        told, beyond, short_of = [], True, []
        for row in rows:
            precision, recall = Interval(*row["precision"]), Interval(*row["recall"])
            chance = row["null_precision"] * row["mean_given"] / row["mean_found"]
            told.append(f"precision {precision:.2f}, recall {recall:.2f} (chance {chance:.2f})")
            beyond &= precision.low > self.precision and recall.low > chance
            short_of += [p_below(precision, self.precision), p_below(recall, chance)]
        # The permutations test that there is a relation; what falls short does so by its interval.
        p, against = max(row["p_value"] for row in rows), min(1.0, len(short_of) * min(short_of))
        says = SUPPORTED if beyond and p < self.level else INCONCLUSIVE
        places = min(row["items"] for row in rows)
        if says == INCONCLUSIVE and against < ALPHA:
            says, p = REFUTED, against
        elif beyond and says == INCONCLUSIVE and 1.0 / places >= self.level:  # one place, always
            few = f"{places} places are too few for p < {self.level:g}"
            return Judged(INCONCLUSIVE, "; ".join([*told, few]), "", units=len(rows))
        worst = min(row["precision"][0] for row in rows)
        return Judged(says, "; ".join(told), f"{worst:.2f}", p, min(r["sequences"] for r in rows))

    def _row(self, record: Record) -> dict[str, Any]:
        for row in record.get("parts", {}).get("relations", {}).get("rows", ()):
            if (row["given"], row["found"]) == (self.given, self.found):
                return dict(row)
        raise Unmeasured(f"relations of {self.given} and {self.found}")
