"""What experiments.explicit says: the forms of a model side by side, and how far S is a gate."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.console import Console

from sysout_jax.analysis.intervene.explicit_factor import FORMS
from sysout_jax.analysis.statistics import mean_interval

from ..cli.tables import markdown, print_columns

MEASURES = {
    "first_token_attention": "attention to first token",
    "top1_over_median@block_out": "max/median |h|",
    "neuron_rms_kurtosis@block_out": "kurtosis",
}


def groups(record: dict[str, Any]) -> dict[str, list[Any]]:
    """The models of a record by name; those of one name are seeds."""
    found: dict[str, list[Any]] = {}
    for model in record["models"]:
        found.setdefault(model["name"], []).append(model)
    return found


def _rows(record: dict[str, Any], models: list[Any]) -> Iterator[list[str]]:
    steps = record["config"]["finetune"]
    tuned = [f"change, {steps} steps on"] if steps else []
    yield [
        "form", "loss", "change", *tuned, *MEASURES.values(),
        *(f"{method}: change" for method in record["methods"]),
    ]  # fmt: skip
    for name, label in FORMS.items():
        of = [model["forms"][name] for model in models if name in model["forms"]]
        if of:
            yield [label, *_cells(record, of, bool(steps))]


def _cells(record: dict[str, Any], of: list[Any], tuned: bool) -> Iterator[str]:
    """Of one form, over seeds; what a form has not is left empty."""
    yield f"{np.mean([each['loss'] for each in of]):.3f}"
    yield _over([each["change"] for each in of])
    if tuned:
        yield _over([each["finetuned"]["change"] for each in of if "finetuned" in each])
    for name in MEASURES:
        values = [each["measures"][name] for each in of if "measures" in each]
        yield f"{np.mean(values):.3g}" if values else ""
    for method in record["methods"]:
        yield _over([each["methods"][method]["change"] for each in of if "methods" in each])


def _over(changes: list[list[float]]) -> str:
    """The mean change with the half-width of its interval: over seeds, or over sequences of one."""
    if not changes:
        return ""
    if len(changes) == 1:
        mean, low, high = changes[0]
    else:
        mean, low, high = mean_interval([change[0] for change in changes])
    half = "" if low is None else f" ±{(high - low) / 2:.3f}"  # of one sequence there is none
    return f"{mean:+.3f}{half}"


def print_tables(console: Console, record: dict[str, Any]) -> None:
    """A table for each name, and under it what S is like."""
    for name, models in groups(record).items():
        rows = list(_rows(record, models))
        seeds = f"{len(models)} seed{'s' * (len(models) > 1)}"
        title = f"{name}: nats per token, {seeds}; ± 95% interval"
        print_columns(console, title, rows)
        console.print(f"  {factors_line(models)}", markup=False, highlight=False, soft_wrap=True)


def factors_line(models: list[Any]) -> str:
    """What S is like on held-out text, over layers, heads and seeds."""
    mean, sd, explained = (
        np.array([model["factors"][key] for model in models], np.float64)
        for key in ("mean", "sd", "explained")
    )
    return (
        f"S: mean {mean.mean():.2f}, sd over queries {sd.mean():.2f}; a gate linear in the "
        f"attention input explains {np.nanmean(explained):.2f} of its variance on held-out text "
        f"({np.nanmin(explained):.2f} to {np.nanmax(explained):.2f} over heads and seeds)"
    )


def markdown_tables(record: dict[str, Any]) -> dict[str, str]:
    """For each name the table in Markdown, as docs show it."""
    tables = {}
    for name, models in groups(record).items():
        rows = [[cell.replace("|", "\\|") for cell in row] for row in _rows(record, models)]
        tables[name] = markdown([rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]])
    return tables
