"""What experiments.causal says: the response to each dose, beside that of as much elsewhere."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sysout_jax.analysis.intervene.dose_response import TREATMENTS
from sysout_jax.analysis.statistics import Interval, mean_interval
from sysout_jax.showing import Table

from ..cli.showing import Report
from ..cli.tables import Section
from ..cli.verdict import LINE, Verdict, few, of_model
from ..records.causal import response, specific
from .explicit_report import first_group, groups

Record = dict[str, Any]
MEASURES = {
    "ratio": "max |h| of first token / median",
    "peak": "residual peak",
    "attention": "attention to first token",
    "loss": "loss",
}


def _rows(record: Record, models: list[Record]) -> Iterator[list[str]]:
    for treatment, label in TREATMENTS.items():
        for factor in record["config"]["factors"]:
            cells = [
                _shown(mean_interval([response(m, treatment, factor, control)[n] for m in models]))
                for control in (False, True)
                for n in MEASURES
            ]
            yield [label, f"{factor:g}", *cells]


def _shown(found: Interval) -> str:
    digits = 1 if abs(found.mean) >= 10 else 2 if abs(found.mean) >= 3 else 3
    return f"{found:±.{digits}f}"


def sentences(models: list[Record]) -> list[str]:
    """What taking each cause away does, beyond as much elsewhere."""
    lines = []
    for treatment, label in TREATMENTS.items():
        told = ", ".join(
            f"{name} {specific(models, treatment, 0.0, measure):to+.3f}"
            for measure, name in MEASURES.items()
        )
        lines.append(f"{label}, taken away, against as much elsewhere: {told}")
    places = [model["place"] for model in models]
    layers = ", ".join(f"{p['layer']} (attention {p['head'][0]}.{p['head'][1]})" for p in places)
    return [*lines, f"layers of the causes, and layer and head of the response: {layers}"]


def sections(record: Record) -> Iterator[Section]:
    """A table for each name and, under it, what taking the causes away does."""
    elsewhere = (f"{measure}, elsewhere" for measure in MEASURES.values())
    headings = ["treatment", "times", *MEASURES.values(), *elsewhere]
    for name, models in groups(record).items():
        seeds = f"{len(models)} seed{'s' * (len(models) > 1)}"
        title = f"{name}: {seeds}; mean ± half-width of the 95% interval"
        table = Table.of(title, headings, _rows(record, models), "llr")
        yield Section(name, table, sentences(models))


def verdict(record: Record, directory: Path) -> Verdict:
    """What taking each cause away does beyond as much elsewhere, over the seeds of the first
    model."""
    if not record["models"]:
        return Verdict("no model is finished", "", "", ("runs",))
    models, others = first_group(record)
    ratios, shares, undecided = [], [], list[str]()
    for treatment, cause in zip(TREATMENTS, ("weights", "activation"), strict=True):
        ratio, share, loss = (
            specific(models, treatment, 0.0, measure) for measure in ("ratio", "attention", "loss")
        )
        ratios.append(f"{cause} {ratio.mean:{'+,.0f' if abs(ratio.mean) >= 100 else '+.1f'}}")
        shares.append(f"{cause} {share.mean:+.2f}")
        undecided += [
            f"{what} without {cause}" for what, found in (("attention", share), ("loss", loss))
            if found.low <= 0 <= found.high
        ]  # fmt: skip
    alone = "one model decides nothing over seeds" if len(models) == 1 else ""
    return Verdict(
        f"taken away, max |h|/median: {', '.join(ratios)}",
        f"attention to the first token: {', '.join(shares)}",
        others if others
        else f"not beyond as much elsewhere: {few(undecided, LINE - 30)}" if undecided else alone,
        ("explicit", *of_model(record)),
    )  # fmt: skip


REPORT = Report(sections, verdict)
