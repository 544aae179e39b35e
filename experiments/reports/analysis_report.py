"""What experiments.analyze says: sentences of each part, its tables, the page, three lines."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sysout_jax.report.findings import publish
from sysout_jax.report.summary import summary
from sysout_jax.report.tables import tables as tables_of
from sysout_jax.report.words import headline, known_lines

from ..cli.showing import Report
from ..cli.tables import Section
from ..cli.verdict import Verdict, again, conversion, of_model

Record = dict[str, Any]


def sections(record: Record) -> Iterator[Section]:
    """The sentences of each part; its tables, as `Findings.table` names them, where asked for."""
    yield Section("known", None, known_lines(record))
    for name in record["parts"]:
        yield Section(name, None, headline(record, name))
    for name, table in tables_of(record).items():
        yield Section(name, table, asked=True)


def verdict(record: Record, directory: Path) -> Verdict:
    """The sentences of the page, and what is done with the model next."""
    of = of_model(record)
    sink = record["parts"].get("interventions", {}).get("sink")
    command = conversion(of)
    if record.get("status", "complete") != "complete":  # what Python saves has none
        command = ("analyze", *again(record))
    elif (sink is not None and not sink["heads"]) or record["model"]["variant"] != "softmax":
        command = ("compress", *of)
    return Verdict(*summary(record), command)


REPORT = Report(
    sections, verdict, lambda record, directory: {"report": [publish(record, directory)]}
)
