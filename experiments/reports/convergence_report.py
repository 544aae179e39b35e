"""What experiments.convergence says: comparisons from its cells, tables, and sentences."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.analysis.measure.convergence import (
    FASTER,
    SLOWER,
    UNDECIDED,
    Curve,
    best_rate,
    compare,
    order_since,
)
from sysout_jax.analysis.statistics import spread
from sysout_jax.showing import Interval, Table

from ..cli.showing import Report
from ..cli.tables import Section
from ..cli.verdict import LINE, Verdict, again, few, given, numbered

Record = dict[str, Any]
LAST = 2 / 3  # of the run: if the order still changes after it, the run is not decided
TOKENS = (
    "variant", "best lr", "validation loss", "difference", "steps to baseline's loss",
    "tokens, M", "speed-up", "verdict",
)  # fmt: skip
TIME = (
    "variant", "parameters", "FLOPs", "ms per step", "time per step", "seconds to baseline's loss",
    "speed-up", "difference", "verdict",
)  # fmt: skip
ZERO_SHOT = {
    "next_word": "next word",
    "copy_loss_first": "loss, random tokens",
    "copy_loss_second": "the same, again",
    "copy_accuracy": "accuracy, again",
}


def cells_of(record: Record, variant: str) -> dict[float, Record | None]:
    """Learning rate -> the cell of a variant; None where it diverged."""
    return {
        cell["lr"]: None if "diverged" in cell or _broken(cell) else cell
        for cell in record["cells"]
        if cell["variant"] == variant
    }


def _broken(cell: Record) -> bool:
    """Whether a loss was not finite, which a record holds as null."""
    return any(loss is None for row in cell["val_loss"] for loss in row)


def compared(record: Record) -> Record:
    """Each variant at its best learning rate beside the baseline at its own.

    Empty while no cell of the baseline is finished.
    """
    curves, best = {}, {}
    for name, costs in record["variants"].items():
        cells = cells_of(record, name)
        final = {lr: None if cell is None else cell["val_loss"][-1] for lr, cell in cells.items()}
        found = best_rate(final)
        if found is not None:
            cell: Any = cells[found.lr]
            losses = np.array(cell["val_loss"], np.float64)
            seconds = np.array(costs["seconds"], np.float64)
            curves[name], best[name] = Curve(np.array(cell["step"]), losses, seconds), found
    if record["baseline"] not in curves:
        return {}
    baseline = curves[record["baseline"]]
    means = [curve.losses.mean(axis=1) for curve in curves.values()]
    third = np.searchsorted(baseline.steps, LAST * baseline.steps[-1], side="right") - 1
    fell = baseline.losses[third] - baseline.losses[-1]
    return {
        "target": float(baseline.losses[-1].mean()),
        "order_since": order_since(baseline.steps, means),
        "fell_in_last_third": float(fell.mean()),
        "variants": {
            name: asdict(best[name]) | compare(baseline, curve).__dict__
            for name, curve in curves.items()
        },
    }


def sections(record: Record) -> Iterator[Section]:
    """The tables and, under them, what the numbers say."""
    for name, title, headings, rows in _tables(record):
        yield Section(name, Table.of(title, headings, rows))
    yield Section("said", None, [*sentences(record), *NOTES])


def _tables(record: Record) -> Iterator[tuple[str, str, Sequence[str], list[list[str]]]]:
    """(name, title, headings, rows) of each table."""
    found = record["compared"]
    if not found:
        return
    steps, seeds = record["config"]["steps"], len(record["config"]["seeds"])
    tokens = steps * record["tokens_per_step"] / 1e6
    title = f"{record['corpus']}: {steps} steps, {tokens:.2f}M tokens, {seeds} seed"
    title += "s" * (seeds > 1)
    rows = [_tokens(record, name) for name in found["variants"]]
    yield "tokens", f"{title}, each variant at its best learning rate", TOKENS, rows
    rows = [_time(record, name) for name in found["variants"]]
    yield "time", "the same at equal time, where the quicker has finished", TIME, rows
    headings = ["variant", *(f"lr {lr:g}" for lr in sorted(record["lrs"]))]
    rates = [[_label(record, name), *_rates(record, name)] for name in record["variants"]]
    yield "rates", "validation loss at the last step, mean ± sd (* best)", headings, rates
    cells: dict[str, Any] = {n: cells_of(record, n)[v["lr"]] for n, v in found["variants"].items()}
    shown = [n for n in ZERO_SHOT if all(n in cell["zero_shot"] for cell in cells.values())]
    zero_shot = [
        [_label(record, name), *(f"{spread(cell['zero_shot'][n]):±.3f}" for n in shown)]
        for name, cell in cells.items()
    ]
    headings = ["variant", *(ZERO_SHOT[name] for name in shown)]
    yield "zero-shot", "zero-shot at the best learning rate, mean ± sd", headings, zero_shot


def _label(record: Record, name: str) -> str:
    return str(record["variants"][name]["label"])


def _tokens(record: Record, name: str) -> list[str]:
    its, steps = record["compared"]["variants"][name], record["config"]["steps"]
    cell: Any = cells_of(record, name)[its["lr"]]
    edge = " (edge)" if its["edge"] else ""
    millions = record["tokens_per_step"] / 1e6
    row = [_label(record, name), f"{its['lr']:g}{edge}", f"{spread(cell['val_loss'][-1]):±.3f}", ""]
    row += [_reached(its["steps"], steps), _reached(its["steps"], steps, millions), "", ""]
    if name != record["baseline"]:
        row[3] = f"{Interval.of(its['difference']):to+.3f}"
        row[-2:] = _times(its["speedup"]), its["verdict"]
    return row


def _time(record: Record, name: str) -> list[str]:
    its, steps = record["compared"]["variants"][name], record["config"]["steps"]
    costs, base = record["variants"][name], record["variants"][record["baseline"]]
    pace = float(np.median(costs["seconds"]))
    seconds = _reached(its["seconds"], steps * pace)
    if name == record["baseline"]:
        parameters, flops = f"{costs['parameters']:,}", f"{costs['flops'] / 1e6:,.0f}M"
        return [_label(record, name), parameters, flops, f"{pace * 1e3:.1f}", "", seconds,
                "", "", ""]  # fmt: skip
    return [
        _label(record, name),
        f"{costs['parameters'] / base['parameters'] - 1:+.2%}",
        f"{costs['flops'] / base['flops'] - 1:+.2%}",
        f"{pace * 1e3:.1f}",
        _times(its["step_seconds"]),
        seconds,
        _times(its["speedup_seconds"]),
        f"{Interval.of(its['difference_at_equal_time']):to+.3f}",
        its["verdict_at_equal_time"],
    ]


def _rates(record: Record, name: str) -> Iterator[str]:
    cells = cells_of(record, name)
    best = record["compared"]["variants"].get(name, {}).get("lr")
    for lr in sorted(record["lrs"]):
        if lr not in cells:
            yield ""
        elif (cell := cells[lr]) is None:
            yield "diverged"
        else:
            yield f"{spread(cell['val_loss'][-1]):±.3f}" + " *" * (lr == best)


def _times(interval: list[float]) -> str:
    """A ratio with its interval; 0 is a loss that was not reached, at less than the same speed."""
    mean, low, high = (f"{value:.2f}" if value else "<1" for value in interval)
    return mean if mean == low == high == "<1" else f"{mean} ({low} to {high})"


def _reached(interval: list[float | None], most: float, unit: float = 1.0) -> str:
    """What it took, times a unit; more than `most`, all there was, where the record has null."""
    digits = ".0f" if most * unit >= 100 else ".3g"
    mean, low, high = (
        f">{most * unit:{digits}}" if x is None else f"{x * unit:{digits}}" for x in interval
    )
    return mean if mean == low == high else f"{mean} ({low} to {high})"


def sentences(record: Record) -> list[str]:
    """What the comparison says, each computed from the record."""
    found, steps = record["compared"], record["config"]["steps"]
    if not found:
        return ["no learning rate of the baseline is finished: nothing to compare with"]
    others = {n: v for n, v in found["variants"].items() if n != record["baseline"]}
    lines = []
    for what, key in (("tokens", "verdict"), ("time", "verdict_at_equal_time")):
        sides = {
            side: [_label(record, n) for n, v in others.items() if v[key] == side]
            for side in (FASTER, SLOWER, UNDECIDED)
        }
        said = "; ".join(f"{side}: {', '.join(names)}" for side, names in sides.items() if names)
        lines.append(f"at equal {what}, {said or 'nothing to compare'}")
    edges = [
        f"{_label(record, n)} ({v['edge']})" for n, v in found["variants"].items() if v["edge"]
    ]
    lines.append(
        "best learning rate at the edge of the grid: "
        + (", ".join(edges) + " => add --lrs beyond it" if edges else "none")
    )
    since = {n: v["since"] for n, v in others.items() if v["since"] > LAST * steps}
    lines.append(
        f"ahead of or behind the baseline, on average, on one side through the last third: "
        f"{len(others) - len(since)} of {len(others)}; the order of all last changed at step "
        f"{found['order_since']:.0f} of {steps}"
    )
    lines.append(
        f"the baseline's loss fell by {found['fell_in_last_third']:.3f} nats in the last third"
    )
    return lines


NOTES = (
    "difference: minus the baseline's, 95% interval of Student over pairs of seeds; verdicts are "
    "its, and one in twenty is wrong by chance",
    "steps and speed-ups: paired bootstrap over seeds, which is their range where seeds are few",
)


def verdict(record: Record, directory: Path) -> Verdict:
    """Which variants are faster, at equal tokens and at equal time."""
    found, name = record["compared"], given(record, "name") or [f"--name={directory.name}"]
    if not found:
        return Verdict(
            "no learning rate of the baseline is finished", "nothing to compare with", "",
            ("convergence", *again(record, *name)),
        )  # fmt: skip
    others = {n: v for n, v in found["variants"].items() if n != record["baseline"]}
    told = []
    for key in ("verdict", "verdict_at_equal_time"):
        sides = {side: sum(v[key] == side for v in others.values()) for side in (FASTER, SLOWER)}
        left = len(others) - sum(sides.values())
        told.append(
            f"{sides[FASTER]} faster, {sides[SLOWER]} slower, {left} not decided of "
            f"{numbered(len(others), 'variant')}"
        )
    edges = [n for n, v in found["variants"].items() if v["edge"]]
    lrs = sorted(record["lrs"])
    beyond = f"{lrs[0] / 3:.2g},{lrs[-1] * 3:.2g}"
    return Verdict(
        f"at equal tokens {told[0]}", f"at equal time {told[1]}",
        f"best rate at the grid's edge: {few(edges, LINE - 30)}" if edges
        else f"{numbered(len(record['config']['seeds']), 'seed')}: one verdict in 20 is chance",
        ("convergence", *again(record, *name, f"--lrs={beyond}")) if edges
        else ("benchmark", f"--variants={','.join(found['variants'])}"),
    )  # fmt: skip


REPORT = Report(sections, verdict)
