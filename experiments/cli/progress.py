"""Bars for what takes long: training, reading a corpus, the parts of a model."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

from sysout_jax.training.config import TrainConfig


class Progress:
    """One line per variant while it trains: a bar, its loss and speed."""

    def __init__(self, console: Console, study: TrainConfig, variants: tuple[str, ...]) -> None:
        self._bar = RichProgress(
            TextColumn("{task.description:<20}"),
            BarColumn(bar_width=20),
            TextColumn("{task.completed}/{task.total}  {task.fields[state]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
        )
        groups = -(-len(study.seeds) // study.seeds_at_once)
        self._tasks = {
            name: self._bar.add_task(name, total=study.steps * groups, start=False, state="")
            for name in variants
        }
        self._steps = study.steps

    def __enter__(self) -> "Progress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def update(self, row: dict[str, Any]) -> None:
        """Show one row of the training log."""
        task = self._tasks[row["variant"]]
        self._bar.start_task(task)
        if "loss" in row:
            done = self._bar.tasks[task].completed // self._steps * self._steps + row["step"]
            speed = row["tokens_per_second"] / 1e3
            state = f"loss {np.mean(row['loss']):.3f}  {speed:.0f}k tokens/s"
            self._bar.update(task, completed=done, state=state)


@contextlib.contextmanager
def cell_bars(
    console: Console, train: TrainConfig | None, names: list[str]
) -> Iterator[Callable[[str, dict[str, Any]], None]]:
    """A bar for each cell that is trained, or else one that counts cells; yields what to call with
    the name of a cell as it is begun, and with each row of its training's log."""
    if train is not None:
        with Progress(console, train, tuple(names)) as progress:
            yield lambda name, row: progress.update({**row, "variant": name})
        return
    with RichProgress(
        TextColumn("{task.completed}/{task.total}", markup=False),
        BarColumn(bar_width=20),
        TextColumn("{task.fields[state]}", markup=False),
        TimeElapsedColumn(),
        console=console,
    ) as bar:
        task = bar.add_task("cells", total=len(names), state="")
        yield lambda name, row: bar.update(task, completed=names.index(name), state=name)
        bar.update(task, completed=len(names), state="")


@contextlib.contextmanager
def reading(console: Console, corpus: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar that goes when the corpus is read; yields what to call with bytes done and in all."""
    bar = RichProgress(
        TextColumn(f"reading {corpus}", markup=False),
        BarColumn(bar_width=20),
        DownloadColumn(),
        console=console,
        transient=True,
    )
    with bar:
        task = bar.add_task(corpus, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
