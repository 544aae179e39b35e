"""The tables of README.md and docs/, from their records and from the code.

python -m tests.pages     # writes them
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import analysis, goals, lengths, train
from experiments import claims, models
from experiments.reports import (
    benchmark_report,
    causal_report,
    compress_report,
    convergence_report,
    explicit_report,
    laboratory_report,
    plan_report,
)
from experiments.reports.variants_report import markdown_tables, markdown_variants
from sysout_jax.files import write_text
from sysout_jax.results import read_record
from tests import usage

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = (README, *sorted((ROOT / "docs").glob("*.md")))
TABLES = re.compile(r"<!-- (claims|models|variants|table: \S+ \S+) -->\n.*?\n?<!-- end -->", re.S)

Record = dict[str, Any]


def _rows(record: Record) -> Mapping[str, str]:
    return {"rows": goals.markdown(record["rows"])}


REPORTS: Mapping[str, Callable[[Record], Mapping[str, str]]] = {
    "variants": markdown_tables,
    "benchmark": benchmark_report.markdown_tables,
    "benchmarks.analysis": lambda record: {"passes": analysis.markdown_table(record)},
    "benchmarks.first_result": _rows,
    "benchmarks.long_context": lengths.markdown_tables,
    "benchmarks.train": lambda record: {"steps": train.markdown_table(record)},
    "benchmarks.variants": _rows,
    "benchmarks.seeds": _rows,
    "benchmarks.startup": _rows,
    "causal": causal_report.markdown_tables,
    "compression": compress_report.markdown_tables,
    "convergence": convergence_report.markdown_tables,
    "explicit": explicit_report.markdown_tables,
    "laboratory": laboratory_report.markdown_tables,
    "plan": lambda record: {"plan": plan_report.markdown_table(record)},
}


def table(directory: str, name: str) -> str:
    """A table of the record below a directory, in Markdown."""
    record = read_record(ROOT / directory)
    return REPORTS[record["experiment"]](record)[name]


def written(path: Path) -> str:
    """The page with its tables as records and code are now."""
    of_ledger = claims.markdown_summary if path == README else claims.markdown_table
    made: Mapping[str, Callable[[], str]] = {
        "claims": lambda: of_ledger(claims.decided(claims.RESULTS)),
        "models": models.markdown,
        "variants": markdown_variants,
    }

    def renewed(found: re.Match[str]) -> str:
        mark = found[1]
        says = made[mark]() if mark in made else table(*mark.removeprefix("table: ").split())
        return f"<!-- {mark} -->\n{says}\n<!-- end -->"

    text = TABLES.sub(renewed, path.read_text())
    return usage.written(text) if path == usage.PAGE else text


if __name__ == "__main__":
    for page in PAGES:
        write_text(page, written(page))
