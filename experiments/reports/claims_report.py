"""The ledger as tables: claims by settings, and each claim with its numbers and threshold."""

import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from sysout_jax.showing import Table

from ..cli.tables import Section
from ..cli.verdict import Verdict

Rows = Mapping[str, Mapping[str, Any]]

# status -> its mark in a cell
MARKS = {
    "supported": "✔", "refuted": "✘", "equivalent": "≈", "inconclusive": "?",
    "not applicable": "–", "not measured": "…", "superseded": "→",
}  # fmt: skip
LINKED = "docs/claims.md"
LINE = 120  # characters of a line of the README


def _claims(rows: Rows) -> dict[str, dict[str, Mapping[str, Any]]]:
    """statement's name -> setting -> its row."""
    found: dict[str, dict[str, Mapping[str, Any]]] = {}
    for name, row in rows.items():
        found.setdefault(name.partition(".")[0], {})[row["setting"]] = row
    return found


def matrix(rows: Rows) -> Table:
    """Claims by settings: a mark and a number in each cell."""
    settings = list(dict.fromkeys(row["setting"] for row in rows.values()))
    lines = [
        [next(iter(by_setting.values()))["statement"],
         *(_cell(by_setting.get(setting)) for setting in settings)]
        for by_setting in _claims(rows).values()
    ]  # fmt: skip
    return Table.of("", ["claim", *settings], lines)


def _cell(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return ""
    return f"{MARKS[row['status']]} {row['short']}".strip()


def markdown_ledger(rows: Rows, withdrawn: Mapping[str, str]) -> str:
    """The matrix, then each claim with its thresholds, and what was measured with its p-values."""
    parts = [matrix(rows).to_markdown(), _tally(rows)]
    for by_setting in _claims(rows).values():
        first = next(iter(by_setting.values()))
        parts += [
            f"### {first['statement']}",
            f"Source: {first['source']}.",
            _thresholds(by_setting),
        ]
        lines = [
            [setting, _status(row), row["numbers"], *(_p(row[key]) for key in ("p", "holm", "bh"))]
            for setting, row in by_setting.items()
        ]
        headings = ("setting", "status", "measured", "p", "Holm", "BH")
        parts.append(Table.of("", headings, lines, "lllr").to_markdown())
    parts.append("### Withdrawn")
    parts.append("\n".join(f"- {claim}: {why}." for claim, why in withdrawn.items()))
    return "\n\n".join(parts)


def _status(row: Mapping[str, Any]) -> str:
    lost = f" ({row['alone']} alone)" if row["alone"] != row["status"] else ""
    return f"{row['status']}{lost}"


def _thresholds(by_setting: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each threshold, with the settings that it decides and when it was written."""
    found: dict[tuple[str, str], list[str]] = {}
    for setting, row in by_setting.items():
        when = "before the run" if row["predicted"] else "after the run"
        found.setdefault((row["threshold"], when if row["first"] else "no run yet"), []).append(
            setting
        )
    return "\n".join(
        f"- {', '.join(settings)} ({when}): {threshold}."
        for (threshold, when), settings in found.items()
    )


def _p(value: float | None) -> str:
    return "" if value is None else "<0.001" if value < 0.0005 else f"{value:.3f}"


def _tally(rows: Rows) -> str:
    """How many tests have each status."""
    count = Counter(row["status"] for row in rows.values())
    told = ", ".join(f"{MARKS[status]} {status} {count[status]}" for status in MARKS)
    predicted = sum(row["predicted"] for row in rows.values() if row["p"] is not None)
    tested = sum(row["p"] is not None for row in rows.values())
    return f"{told}. Of {tested} with a p-value {predicted} had their threshold before the run."


def markdown_summary(rows: Rows) -> str:
    """What the README shows: how many tests have each status, and where they are."""
    count = len(_claims(rows))
    told = f"{count} claims, {len(rows)} tests: {_tally(rows)} [All of them]({LINKED})."
    return textwrap.fill(told, LINE, break_long_words=False, break_on_hyphens=False)


def sections(rows: Rows) -> Iterator[Section]:
    """Claims by settings; every test with its numbers and threshold."""
    yield Section("claims", matrix(rows), [_tally(rows)])
    headings = (
        "test", "claim", "setting", "status", "measured", "p", "Holm", "BH", "threshold",
        "before the run",
    )  # fmt: skip
    lines = [
        [name, row["statement"], row["setting"], _status(row), row["numbers"], row["p"],
         row["holm"], row["bh"], row["threshold"], "yes" if row["predicted"] else "no"]
        for name, row in rows.items()
    ]  # fmt: skip
    yield Section("tests", Table.of("Tests", headings, lines, "llllr"), asked=True)


def verdict(rows: Rows) -> Verdict:
    """How many tests decide something, how many do not, and one that a command can decide."""
    count = Counter(row["status"] for row in rows.values())
    claims = len(_claims(rows))
    supported, refuted = (count[status] for status in ("supported", "refuted"))
    open_ = [name for name, row in rows.items() if row["status"] == "not measured"]
    return Verdict(
        f"{claims} claims, {len(rows)} tests: {supported} supported, {refuted} refuted",
        f"{count['inconclusive']} are inconclusive: neither for nor against a claim",
        f"{count['not measured']} are not measured, {count['not applicable']} cannot be here",
        ("claims", f"--run={open_[0]}" if open_ else "--check"),
    )  # fmt: skip
