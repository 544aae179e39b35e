"""The tables of README.md, theory/README.md and docs/, from their records and from the code.

python -m tests.pages     # writes them
"""

import re
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import analysis, goals, lengths, train
from experiments import claims, models
from experiments.cli.tables import markdown
from experiments.reports import plan_report, variants_report
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


OTHERS: Mapping[str, Callable[[Record], Mapping[str, Table]]] = {
    "analysis": tables_of,
    "benchmarks.analysis": lambda record: {"passes": analysis.table(record)},
    "benchmarks.long_context": lengths.tables,
    "benchmarks.train": lambda record: {"steps": train.table(record)},
    "plan": lambda record: {"plan": plan_report.table(record)},
}


def table(directory: str, name: str) -> str:
    """A table of the record below a directory, in Markdown."""
    record = read_record(ROOT / directory)
    experiment = record["experiment"]
    if name == "rows":
        return goals.table("", record["rows"]).to_markdown()
    if experiment in OTHERS:
        return OTHERS[experiment](record)[name].to_markdown()
    command = {"compression": "compress"}.get(experiment, experiment)
    report = import_module(f"experiments.reports.{command}_report").REPORT
    return markdown(report.sections(record))[name]


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
