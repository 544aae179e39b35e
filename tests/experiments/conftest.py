"""Binaries run in this process: parse flags, run, and give back what a user would see.

Figures take seconds: where another test sees the same ones, a run has drawn=False.
"""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import pytest
from absl import flags

from experiments.cli import launch
from tests import usage
from tests.analysis import first_sink as planted

FLAGS = flags.FLAGS


class Outcome(NamedTuple):
    status: int
    out: str
    err: str
    place: Path  # where its run is, if it has one

    @property
    def directory(self) -> Path:
        """That of its run, which ended well."""
        assert self.status == 0, self.err
        return self.place

    @property
    def record(self) -> Any:
        """What its run, which ended well, has found; read anew at each call."""
        return json.loads((self.directory / "result.json").read_text())

    @property
    def refusal(self) -> str:
        """What it was refused with: one line, and nothing else."""
        assert (self.status, self.err.count("\n")) == (2, 1), self
        assert self.err.startswith("error: ")
        return self.err.removeprefix("error: ").removesuffix("\n")


def _binary(module: ModuleType) -> Callable[..., Outcome]:
    def run(*arguments: str, drawn: bool = True) -> Outcome:
        usage.define(module)
        rest = FLAGS([module.__name__, *launch.named_runs(arguments)])
        out, err = io.StringIO(), io.StringIO()
        with (
            contextlib.redirect_stdout(out), contextlib.redirect_stderr(err),
            pytest.MonkeyPatch.context() as patch,
        ):  # fmt: skip
            if not drawn:
                patch.setattr(module, "REPORT", module.REPORT._replace(draw=lambda *_: {}))
            status = launch.guarded(module.main, rest)
        workdir, run_name = (FLAGS[n].value if n in FLAGS else None for n in ("workdir", "name"))
        place = Path(workdir or "", module.__name__.rpartition(".")[2], run_name or "latest")
        return Outcome(status, out.getvalue(), err.getvalue(), place.resolve())

    return run


def _runs(module: ModuleType) -> Callable[[], Callable[..., Outcome]]:
    @pytest.fixture(scope="session", name=f"run_{module.__name__.rpartition('.')[2]}")
    def run() -> Callable[..., Outcome]:
        return _binary(module)

    return run


# run_variants(...) and so on: what `python -m experiments.variants` does with these arguments.
for _module in usage.binaries():
    globals()[f"_{_module.__name__}"] = _runs(_module)


def _few_steps(run: Callable[..., Outcome], place: Path, *arguments: str) -> Path:
    return run(
        "--corpus=backcopy", "--seeds=3,5", "--val_batches=1", "--batch_size=4", "--seq_len=16",
        "--width=16", *arguments, f"--workdir={place}",
    ).directory  # fmt: skip


@pytest.fixture(scope="session")
def trained(run_variants: Callable[..., Outcome], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two variants on Backcopy, two seeds, a few steps."""
    place = tmp_path_factory.mktemp("trained")
    two = "--variants=softmax,context_scale"
    return _few_steps(run_variants, place, two, "--steps=6", "--measure_every=3")


@pytest.fixture(scope="session")
def deep(run_variants: Callable[..., Outcome], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of softmax with two layers, two seeds, a few steps."""
    place = tmp_path_factory.mktemp("deep")
    deep = ("--variants=softmax", "--layers=2", "--steps=4", "--measure_every=4")
    return _few_steps(run_variants, place, *deep)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The planted model as a training run writes one, and text of its ids."""
    place = tmp_path_factory.mktemp("planted")
    planted.write(place)
    return place


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few documents of two sentences."""
    path = tmp_path_factory.mktemp("text") / "some text.txt"
    words = "Summer is warm. Winter is cold.\n"
    path.write_text("<|endoftext|>".join(words * n for n in range(1, 9)))
    return path


@pytest.fixture(scope="module")
def record(finished: Outcome) -> Any:
    """What the run of a file of tests has found, its `finished`."""
    return finished.record
