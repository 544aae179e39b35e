"""What experiments.compress says: tables of perplexity, and how well noise is predicted."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from rich.console import Console

from sysout_jax.analysis.compress.noise import Agreement, agreement
from sysout_jax.analysis.statistics import mean_interval

from ..cli.tables import markdown, print_columns

BEFORE = "as trained"


def tables(record: dict[str, Any]) -> Iterator[tuple[str, str, list[list[str]]]]:
    """For each corpus its name, a title, and rows of texts: headings, then one row a method.

    A cell is the perplexity, a geometric mean over seeds, and the change of the loss in nats: over
    seeds with the half-width of Student's interval, or for one model with that over sequences.
    """
    for corpus in dict.fromkeys(model["corpus"] for model in record["models"]):
        mine = [model for model in record["models"] if model["corpus"] == corpus]
        mine.sort(key=lambda model: str(model["label"]))  # the paper's letters first
        groups: dict[str, list[Any]] = {}
        for model in mine:
            groups.setdefault(model["name"], []).append(model)
        labels = {name: of[0]["label"] for name, of in groups.items()}
        distinct = len(set(labels.values())) == len(labels)
        rows = [["method", *(labels[name] if distinct else name for name in groups)]]
        rows.append([BEFORE, *(_perplexity([m["loss"] for m in of]) for of in groups.values())])
        for method in record["methods"]:
            if any(method in model["methods"] for model in mine):
                rows.append([method, *(_cell(of, method) for of in groups.values())])
        seeds = max(map(len, groups.values()))
        sequences = mine[0]["tokens"]["evaluation"]
        spread = "95% over seeds" if seeds > 1 else "95% over sequences"
        yield (
            corpus,
            f"{corpus}: perplexity (change of the loss in nats, {spread}); {seeds} seed"
            f"{'s' * (seeds > 1)}, {sequences:,} tokens",
            rows,
        )


def _cell(models: list[Any], method: str) -> str:
    found = [model["methods"][method] for model in models if method in model["methods"]]
    if not found:
        return ""
    if any(each["loss"] is None for each in found):
        return "not finite"
    if len(found) > 1:
        mean, low, high = mean_interval([each["change"][0] for each in found])
    else:
        mean, low, high = found[0]["change"]
    half = "" if low is None else f" ±{(high - low) / 2:.3f}"  # of one sequence there is none
    return f"{_perplexity([each['loss'] for each in found])} ({mean:+.3f}{half})"


def _perplexity(losses: list[float]) -> str:
    return f"{np.exp(np.mean(losses)):.4g}"


def print_tables(console: Console, record: dict[str, Any]) -> None:
    """One table for each corpus, and how well the noise of rounding is predicted."""
    for _, title, rows in tables(record):
        print_columns(console, title, rows, apart=True)
    _print_agreements(console, record)


def markdown_tables(record: dict[str, Any]) -> dict[str, str]:
    """For each corpus the table in Markdown, as README and docs show it."""
    return {
        corpus: markdown([rows[0], ["---", *["---:"] * (len(rows[0]) - 1)], *rows[1:]])
        for corpus, _, rows in tables(record)
    }


def agreements(record: dict[str, Any]) -> Iterator[tuple[str, str, str, Agreement]]:
    """(kind of tensor, bits, what is compared with the measured SQNR, how they go together), over
    all layers and models."""
    for kind in ("activation", "weight"):
        rows = [
            each for model in record["models"] for each in model.get("noise", ())
            if each["kind"] == kind
        ]  # fmt: skip
        if not rows:
            continue
        for bits in rows[0]["measured"]:
            measured = _joined([each["measured"][bits] for each in rows])
            predicted = _joined([each["predicted"][bits] for each in rows])
            yield kind, bits, "theory E1", agreement(predicted, measured)
            for name, label in (
                ("peak_over_rms", "log max/RMS"),
                ("max_median_ratio", "log max/median ratio"),
                ("kurtosis", "log kurtosis"),
            ):
                with np.errstate(divide="ignore"):  # of a tensor of zeros, which is left out
                    values = np.log(_joined([each[name] for each in rows]))
                yield kind, bits, label, agreement(values, measured)


def _joined(columns: list[Any]) -> np.ndarray:
    return np.concatenate([np.array(column, np.float64) for column in columns])


def _print_agreements(console: Console, record: dict[str, Any]) -> None:
    """One line for each kind of tensor and width."""
    lines: dict[tuple[str, str], list[tuple[str, Agreement]]] = {}
    for kind, bits, what, found in agreements(record):
        lines.setdefault((kind, bits), []).append((what, found))
    for (kind, bits), compared in lines.items():
        said = ", ".join(f"{what} {found.pearson:.2f}" for what, found in compared)
        _, first = compared[0]
        console.print(
            f"  SQNR of {kind}s at {bits} bits over {first.n} tensors: {first.difference:+.1f} dB "
            f"from theory E1; correlation with {said}",
            markup=False, highlight=False, soft_wrap=True,
        )  # fmt: skip
