"""Binaries run in this process: parse flags, run, and give back what a user would see."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
from absl import flags

from experiments import (
    analyze,
    assumptions,
    benchmark,
    causal,
    claims,
    compress,
    convergence,
    convert,
    explicit,
    laboratory,
    plan,
    runs,
    tour,
    variants,
)
from experiments.cli import launch
from tests import usage

FLAGS = flags.FLAGS


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


def _binary(module: ModuleType) -> Callable[..., Outcome]:
    def run(*arguments: str) -> Outcome:
        usage.define(module)
        rest = FLAGS([module.__name__, *launch.named_runs(arguments)])
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = launch.guarded(module.main, rest)
        return Outcome(status, out.getvalue(), err.getvalue())

    return run


@pytest.fixture(scope="session")
def run_variants() -> Callable[..., Outcome]:
    """Call `python -m experiments.variants` with these arguments."""
    return _binary(variants)


@pytest.fixture(scope="session")
def run_analyze() -> Callable[..., Outcome]:
    """Call `python -m experiments.analyze` with these arguments."""
    return _binary(analyze)


@pytest.fixture(scope="session")
def run_assumptions() -> Callable[..., Outcome]:
    """Call `python -m experiments.assumptions` with these arguments."""
    return _binary(assumptions)


@pytest.fixture(scope="session")
def run_compress() -> Callable[..., Outcome]:
    """Call `python -m experiments.compress` with these arguments."""
    return _binary(compress)


@pytest.fixture(scope="session")
def run_convergence() -> Callable[..., Outcome]:
    """Call `python -m experiments.convergence` with these arguments."""
    return _binary(convergence)


@pytest.fixture(scope="session")
def run_tour() -> Callable[..., Outcome]:
    """Call `python -m experiments.tour` with these arguments."""
    return _binary(tour)


@pytest.fixture(scope="session")
def run_convert() -> Callable[..., Outcome]:
    """Call `python -m experiments.convert` with these arguments."""
    return _binary(convert)


@pytest.fixture(scope="session")
def run_explicit() -> Callable[..., Outcome]:
    """Call `python -m experiments.explicit` with these arguments."""
    return _binary(explicit)


@pytest.fixture(scope="session")
def run_laboratory() -> Callable[..., Outcome]:
    """Call `python -m experiments.laboratory` with these arguments."""
    return _binary(laboratory)


@pytest.fixture(scope="session")
def run_causal() -> Callable[..., Outcome]:
    """Call `python -m experiments.causal` with these arguments."""
    return _binary(causal)


@pytest.fixture(scope="session")
def run_plan() -> Callable[..., Outcome]:
    """Call `python -m experiments.plan` with these arguments."""
    return _binary(plan)


@pytest.fixture(scope="session")
def run_runs() -> Callable[..., Outcome]:
    """Call `python -m experiments.runs` with these arguments."""
    return _binary(runs)


@pytest.fixture(scope="session")
def run_claims() -> Callable[..., Outcome]:
    """Call `python -m experiments.claims` with these arguments."""
    return _binary(claims)


@pytest.fixture(scope="session")
def trained(run_variants: Callable[..., Outcome], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two variants on Backcopy, two seeds, a few steps."""
    place = tmp_path_factory.mktemp("trained")
    done = run_variants(
        "--corpus=backcopy", "--variants=softmax,context_scale", "--seeds=3,5", "--steps=6",
        "--measure_every=3", "--val_batches=1", "--batch_size=4", "--seq_len=16", "--width=16",
        f"--workdir={place}",
    )  # fmt: skip
    assert done.status == 0, done.err
    return (place / "variants" / "latest").resolve()


@pytest.fixture(scope="session")
def deep(run_variants: Callable[..., Outcome], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of softmax with two layers, two seeds, a few steps."""
    place = tmp_path_factory.mktemp("deep")
    done = run_variants(
        "--corpus=backcopy", "--variants=softmax", "--seeds=3,5", "--steps=4", "--layers=2",
        "--measure_every=4", "--val_batches=1", "--batch_size=4", "--seq_len=16", "--width=16",
        f"--workdir={place}",
    )  # fmt: skip
    assert done.status == 0, done.err
    return (place / "variants" / "latest").resolve()


@pytest.fixture(scope="session")
def run_benchmark() -> Callable[..., Outcome]:
    """Call `python -m experiments.benchmark` with these arguments."""
    return _binary(benchmark)
