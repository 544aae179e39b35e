"""What experiments.benchmark says: a row for each cell, and what else makes or removes outliers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console

from sysout_jax.analysis.statistics import mean_interval
from sysout_jax.core.attention import VARIANTS

from ..cli.tables import markdown, print_columns
from ..records.benchmark import AXES, cell_of

Record = dict[str, Any]
COLUMNS = {
    "first_token_attention": "attention to first token",
    "sink_rate@attn_weights": "Sink₀(0.3)",
    "value_drain@value": "value drain",
    "top1_over_median@block_out": "max/median |h|",
    "neuron_rms_kurtosis@block_out": "kurtosis",
    "weight_ratio@down": "max/mean |W_down|",
}


def rows(record: Record) -> list[list[str]]:
    """Texts, headings first; the untrained baseline, then the cells."""
    headings = [
        "variant", "optimiser", "norm", "setting", "validation loss", "minus softmax's",
        *COLUMNS.values(), *(f"{method}: rise" for method in record["methods"]),
    ]  # fmt: skip
    plain = cell_of(record)  # which losses are compared with
    if plain and "diverged" in plain:
        plain = None
    found = [headings]
    if plain:
        before = [plain["begun"][name] for name in COLUMNS]
        losses = _shown(plain["val_loss"][0], 3)
        blank = [""] * len(record["methods"])
        found.append(["before training", "", "", "", losses, "", *map(_measure, before), *blank])
    for cell in record["cells"]:
        found.append(_row(record, cell, plain))
    return found


def _row(record: Record, cell: Record, plain: Record | None) -> list[str]:
    names = [_label(cell), *(cell[name] for name in AXES[1:])]
    if "diverged" in cell:
        blank = [""] * (len(COLUMNS) + len(record["methods"]))
        return [*names, f"diverged at step {cell['diverged']['step']}", "", *blank]
    last = cell["val_loss"][-1]
    apart = "" if plain is None or plain is cell else _apart(last, plain["val_loss"][-1])
    return [
        *names, _shown(last, 3), apart,
        *(_measure(cell["measures"][name]) for name in COLUMNS),
        *(_shown(cell["compressed"][method], 3) for method in record["methods"]),
    ]  # fmt: skip


def _label(cell: Record) -> str:
    return VARIANTS[cell["variant"]].label + ("" if VARIANTS[cell["variant"]].normalised else " †")


def _apart(values: Sequence[float], others: Sequence[float]) -> str:
    """The mean of pairs of seeds with its interval."""
    return _shown([a - b for a, b in zip(values, others, strict=True)], 3, "+")


def _measure(values: Sequence[float]) -> str:
    return _shown(values, 2 if abs(float(np.mean(np.array(values, np.float64)))) < 10 else 1)


def _shown(values: Sequence[float | None], digits: int, sign: str = "") -> str:
    """Mean ± half-width of the 95% interval over seeds; nothing where a value is not finite."""
    numbers = [value for value in values if value is not None]
    if len(numbers) < len(values):
        return ""
    mean, low, high = mean_interval(numbers)
    half = "" if np.isnan(low) else f" ±{(high - low) / 2:.{digits}f}"
    return f"{mean:{sign}.{digits}f}{half}"


def title(record: Record) -> str:
    """What the cells have in common, and how their numbers are to be read."""
    train, tokens = record["train"], record["tokens_per_seed"] / 1e6
    return (
        f"{record['preset']} preset on {train['corpus']}: {train['steps']} steps, {tokens:.2f}M "
        f"tokens, {len(train['seeds'])} seeds; mean ± half-width of the 95% interval"
    )


def print_tables(console: Console, record: Record) -> None:
    """The table, and what its marks mean."""
    print_columns(console, title(record), rows(record), left=len(AXES))
    console.print("  one learning rate per optimiser: experiments.convergence compares rates")
    console.print("  † rows do not sum to one: Sink₀ is measured on rows brought to one\n")


def markdown_tables(record: Record) -> dict[str, str]:
    """Name -> the table in Markdown, as docs show it."""
    headings, *texts = rows(record)
    escaped = [heading.replace("|", "\\|") for heading in headings]
    line = ["---"] * len(AXES) + ["---:"] * (len(headings) - len(AXES))
    return {"cells": markdown([escaped, line, *texts])}
