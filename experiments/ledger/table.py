"""The ledger: every claim, what the records say of it, and that corrected for their number."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
from scipy.stats import false_discovery_control

from sysout_jax.files import read_json
from sysout_jax.results import read_record

from ..records.units import Record, Unmeasured
from .causes import CAUSES
from .claim import Statement, Trial
from .evidence import (
    ALPHA,
    EQUIVALENT,
    INCONCLUSIVE,
    REFUTED,
    SUPERSEDED,
    SUPPORTED,
    UNMEASURED,
    Judged,
)
from .outliers import OUTLIERS
from .registry import registration

Row = dict[str, Any]
STATEMENTS = OUTLIERS + CAUSES
# "sinks_form.books" -> its statement, its setting and what decides it there.
TESTS: Mapping[str, tuple[Statement, str, Trial]] = MappingProxyType(
    {
        f"{each.name}.{setting.split()[0].partition('-')[0].lower()}": (each, setting, test)
        for each in STATEMENTS
        for setting, test in each.tests.items()
    }
)
# Claims of earlier ledgers that nothing could have refuted, and why.
WITHDRAWN: Mapping[str, str] = MappingProxyType(
    {
        "the activation follows the row of W_down that writes most into it": "the neuron was "
        "chosen as the largest writer, so that without it the channel falls by arithmetic",
        "a drained sink is a factor S, on random heads": "an identity: theorem A1, not a finding "
        "about trained models",
        "massive activations set to their mean are harmless, in models with BOS": "the state of "
        "BOS is the same in every text, so that its mean is itself",
    }
)


def decided(results: Path, stored: Mapping[str, Row]) -> dict[str, Row]:
    """Every claim with its status, from the records below a directory.

    Args:
      results: the directory of records.
      stored: what results/claims.json says: its registrations hold where there is no git.

    Raises:
      InputError: a record that cannot be read.
    """
    held: dict[str, Record | None] = {}
    rows = {}
    for name, (statement, setting, test) in TESTS.items():
        for each in test.records.split(", "):
            if each not in held:
                there = (results / each / "result.json").exists()
                held[each] = read_record(results / each) if there else None
        records = {each: held[each] for each in test.records.split(", ")}
        judged = judge(test, records.values())
        rows[name] = {
            "statement": statement.says, "source": statement.source, "setting": setting,
            "threshold": test.predicate.threshold, "alone": judged.says, "numbers": judged.numbers,
            "short": judged.short, "units": judged.units, "p": judged.p, "records": test.records,
            "renews": test.renews, **registration(name, test, records, stored.get(name, {})),
        }  # fmt: skip
    corrected(rows)
    return rows


def judge(test: Trial, records: Iterable[Record | None]) -> Judged:
    """What records say by a test alone; a record that is not there leaves it not measured."""
    there = [record for record in records if record is not None]
    try:
        if len(there) < len(test.records.split(", ")):
            raise Unmeasured("there is no record yet")
        judged = test.predicate.judge(there)
    except Unmeasured as error:
        return Judged(UNMEASURED, str(error), "")
    if test.superseded:
        text = f"{judged.numbers}; see {test.superseded}"
        return Judged(SUPERSEDED, text, judged.short, units=judged.units)
    return judged


def corrected(rows: Mapping[str, Row]) -> None:
    """Give rows their status: p-values adjusted over all that were tested, by Holm for a single
    error and by Benjamini and Hochberg for the share of them; what does not survive the second is
    inconclusive."""
    tested = [row for row in rows.values() if row["p"] is not None]
    p = np.array([row["p"] for row in tested], np.float64)
    for row in rows.values():
        row |= {"holm": None, "bh": None, "status": row["alone"]}
    rates = false_discovery_control(p, method="bh") if p.size else p
    for row, holm, rate in zip(tested, holms(p), rates, strict=True):
        lost = row["alone"] in (SUPPORTED, REFUTED, EQUIVALENT) and not rate < ALPHA
        row |= {"holm": float(holm), "bh": float(rate)}
        row["status"] = INCONCLUSIVE if lost else row["alone"]


def holms(p: np.ndarray) -> np.ndarray:
    """Holm's adjusted p-values: the largest so far of (m - i) p_(i), i = 0 for the smallest.

    Args:
      p: [m].
    """
    order = np.argsort(p)
    steps = np.maximum.accumulate((p.size - np.arange(p.size)) * p[order])
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(steps, 1.0)
    return adjusted


def read_stored(path: Path) -> dict[str, Row]:
    """What a file of claims says; nothing where there is none yet."""
    return read_json(path) if path.exists() else {}
