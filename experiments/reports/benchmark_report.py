"""What experiments.benchmark says: a row for each cell, and what else makes or removes outliers."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.analysis.statistics import mean_interval
from sysout_jax.core.attention import VARIANTS
from sysout_jax.showing import Table

from ..cli.showing import Report
from ..cli.tables import Section
from ..cli.verdict import Verdict, numbered
from ..records.benchmark import AXES, DEFAULT_CELL, cell_of

Record = dict[str, Any]
COLUMNS = {
    "first_token_attention": "attention to first token",
    "sink_rate@attn_weights": "Sink₀(0.3)",
    "value_drain@value": "value drain",
    "top1_over_median@block_out": "max/median |h|",
    "neuron_rms_kurtosis@block_out": "kurtosis",
    "weight_ratio@down": "max/mean |W_down|",
}
KINDS = {
    "attention": "sink_rate@attn_weights", "massive activations": "top1_over_median@block_out",
    "channels": "neuron_rms_kurtosis@block_out", "weights": "weight_ratio@down",
}  # fmt: skip
NOTES = (
    "one learning rate per optimiser: experiments.convergence compares rates",
    "† rows do not sum to one: Sink₀ is measured on rows brought to one",
)
UNCORRECTED = ("less and more are not corrected for the number of comparisons",)


def sections(record: Record) -> Iterator[Section]:
    """The untrained baseline, then the cells."""
    headings = [
        "variant", "optimiser", "norm", "setting", "validation loss", "minus softmax's",
        *COLUMNS.values(), *(f"{method}: rise" for method in record["methods"]),
    ]  # fmt: skip
    plain = cell_of(record)  # which losses are compared with
    if plain and "diverged" in plain:
        plain = None
    rows = [_row(record, cell, plain) for cell in record["cells"]]
    if plain:
        before = [plain["begun"][name] for name in COLUMNS]
        blank = [""] * len(record["methods"])
        loss = f"{mean_interval(plain['val_loss'][0]):±.3f}"
        first = ["before training", "", "", "", loss, "", *map(_measure, before), *blank]
        rows.insert(0, first)
    yield Section("cells", Table.of(title(record), headings, rows, "llllr"), NOTES)
    if plain:
        yield Section("kinds", _kinds(record["cells"], plain), UNCORRECTED)


def _kinds(cells: list[Record], plain: Record) -> Table:
    """What training makes of each kind of outlier with softmax, and how much less other cells have,
    over pairs of seeds."""

    def row(names: list[str], of: Record, other: Record) -> list[str]:
        found = [
            mean_interval(np.subtract(*(np.array(x[name], np.float64) for x in (of, other))))
            for name in KINDS.values()
        ]
        told = ["less" if x.high < 0.0 else "more" if x.low > 0.0 else "" for x in found]
        return [*names, *(f"{x:±+.2f} {say}".strip() for x, say in zip(found, told, strict=True))]

    said = (
        f"kinds of outliers ({', '.join(COLUMNS[name] for name in KINDS.values())}): softmax after "
        "training minus before, then each minus softmax; less, more: by the 95% interval"
    )
    rows = [row([_label(plain), "", "", ""], plain["measures"], plain["begun"])] + [
        row(_names(cell), cell["measures"], plain["measures"])
        for cell in cells if cell is not plain and "diverged" not in cell
    ]  # fmt: skip
    return Table.of(said, ["variant", "optimiser", "norm", "setting", *KINDS], rows, "llllr")


def _row(record: Record, cell: Record, plain: Record | None) -> list[str]:
    names = _names(cell)
    if "diverged" in cell:
        blank = [""] * (len(COLUMNS) + len(record["methods"]))
        return [*names, f"diverged at step {cell['diverged']['step']}", "", *blank]
    last = np.array(cell["val_loss"][-1], np.float64)
    apart = ""
    if plain is not None and plain is not cell:  # pairs of seeds
        apart = f"{mean_interval(last - np.array(plain['val_loss'][-1], np.float64)):±+.3f}"
    return [
        *names, f"{mean_interval(last):±.3f}", apart,
        *(_measure(cell["measures"][name]) for name in COLUMNS),
        *(f"{mean_interval(cell['compressed'][method]):±.3f}" for method in record["methods"]),
    ]  # fmt: skip


def _names(cell: Record) -> list[str]:
    return [_label(cell), *(cell[name] for name in AXES[1:])]


def _label(cell: Record) -> str:
    return VARIANTS[cell["variant"]].label + ("" if VARIANTS[cell["variant"]].normalised else " †")


def _measure(values: Sequence[float | None]) -> str:
    found = mean_interval(values)
    return f"{found:±.2f}" if abs(found.mean) < 10 else f"{found:±.1f}"


def title(record: Record) -> str:
    """What the cells have in common, and how their numbers are to be read."""
    train, tokens = record["train"], record["tokens_per_seed"] / 1e6
    return (
        f"{record['preset']} preset on {train['corpus']}: {train['steps']} steps, {tokens:.2f}M "
        f"tokens, {len(train['seeds'])} seeds; mean ± half-width of the 95% interval"
    )


def verdict(record: Record, directory: Path) -> Verdict:
    """The cell with the smallest activations beside softmax's, and what it costs."""
    cells = [cell for cell in record["cells"] if "diverged" not in cell]
    if not cells:
        return Verdict("no cell is finished", "", "", ("runs",))
    name = "top1_over_median@block_out"
    sizes = [mean_interval(cell["measures"][name]).mean for cell in cells]
    best = cells[int(np.argmin(sizes))]
    plain = cell_of(record)
    beside, means = "", "softmax as usual is not among the cells: losses have nothing beside them"
    if plain and "diverged" not in plain:
        beside = f"; softmax {mean_interval(plain['measures'][name]).mean:,.1f}"
        losses = (np.array(cell["val_loss"][-1], np.float64) for cell in (best, plain))
        apart = mean_interval(np.subtract(*losses))
        means = f"its loss is {apart:to+.3f} nats from softmax's"
    diverged, seeds = len(record["cells"]) - len(cells), len(record["train"]["seeds"])
    lr = f"one learning rate each; {numbered(seeds, 'seed')}"
    return Verdict(
        f"max/median |h| {min(sizes):,.1f} in {_short(best)}{beside}", means,
        f"{lr}; {numbered(diverged, 'cell')} diverged" if diverged else lr,
        (
            "convergence", f"--corpus={record['train']['corpus']}",
            f"--variants=softmax,{best['variant']}", "--baseline=softmax",
        )
        if best["variant"] != "softmax"
        else ("benchmark", "--variants=all"),
    )  # fmt: skip


def _short(cell: Record) -> str:
    """A cell by what is not usual of it."""
    others = [cell[name] for name in AXES[1:] if cell[name] != DEFAULT_CELL[name]]
    return " ".join([cell["variant"], *others])


REPORT = Report(sections, verdict)
