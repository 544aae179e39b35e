"""The tables of README.md, theory/README.md and docs/, from their records and from the code.

python -m tests.pages     # writes them
"""

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks import analysis, goals, lengths, train
from experiments import claims, models
from experiments.cli.tables import Section, markdown
from experiments.reports import (
    analysis_report,
    assumptions_report,
    benchmark_report,
    causal_report,
    compress_report,
    convergence_report,
    convert_report,
    explicit_report,
    laboratory_report,
    plan_report,
    tour_report,
    variants_report,
)
from sysout_jax.files import write_text
from sysout_jax.report.tables import tables as tables_of
from sysout_jax.results import read_record
from sysout_jax.showing import Table
from tests import usage

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
PAGES = (README, ROOT / "theory" / "README.md", *sorted((ROOT / "docs").rglob("*.md")))
TABLES = re.compile(r"<!-- (claims|models|variants|table: \S+ \S+) -->\n.*?\n?<!-- end -->", re.S)

Record = dict[str, Any]


REPORTS: Mapping[str, Callable[[Record], Iterable[Section]]] = {
    "variants": variants_report.sections,
    "assumptions": assumptions_report.sections,
    "benchmark": benchmark_report.sections,
    "causal": causal_report.sections,
    "compression": compress_report.sections,
    "convergence": convergence_report.sections,
    "convert": convert_report.sections,
    "tour": tour_report.sections,
    "explicit": explicit_report.sections,
    "laboratory": laboratory_report.sections,
}
OTHERS: Mapping[str, Callable[[Record], Mapping[str, Table]]] = {
    "analysis": lambda record: {**tables_of(record), **analysis_report.tables(record)},
    "benchmarks.analysis": lambda record: {"passes": analysis.table(record)},
    "benchmarks.long_context": lengths.tables,
    "benchmarks.train": lambda record: {"steps": train.table(record)},
    "plan": lambda record: {"plan": plan_report.table(record)},
}


def table(directory: str, name: str) -> str:
    """A table of the record below a directory, in Markdown."""
    record = read_record(ROOT / directory)
    experiment = record["experiment"]
    if experiment in REPORTS:
        return markdown(REPORTS[experiment](record))[name]
    of_rows = {"rows": goals.table("", record["rows"])} if name == "rows" else {}
    return (of_rows or OTHERS[experiment](record))[name].to_markdown()


def written(path: Path) -> str:
    """The page with its tables as records and code are now."""
    made: Mapping[str, Callable[[], str]] = {
        "claims": lambda: claims.markdown(summary=path == README),
        "models": lambda: models.table().to_markdown(),
        "variants": lambda: variants_report.variants_table("`").to_markdown(),
    }

    def renewed(found: re.Match[str]) -> str:
        mark = found[1]
        place = mark.removeprefix("table: ").split()
        says = made[mark]() if mark in made else table(*place)
        return f"<!-- {mark} -->\n{says}\n<!-- end -->"

    text = TABLES.sub(renewed, path.read_text())
    return usage.written(path, text) if path.parent == usage.PAGES else text


if __name__ == "__main__":
    for page in PAGES:
        write_text(page, written(page))
