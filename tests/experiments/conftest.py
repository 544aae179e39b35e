"""Binaries run in this process: parse flags, run, and give back what a user would see."""

import contextlib
import io
from collections.abc import Callable
from typing import NamedTuple

import pytest
from absl import flags

from experiments import launch, variants


class Outcome(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture(scope="session")
def run_variants() -> Callable[..., Outcome]:
    """Call `python -m experiments.variants` with these arguments."""
    variants.define_flags()

    def run(*arguments: str) -> Outcome:
        for name in flags.FLAGS:
            flags.FLAGS[name].unparse()
        rest = flags.FLAGS(["variants", *arguments])
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = launch.guarded(variants.main, rest)
        return Outcome(status, out.getvalue(), err.getvalue())

    return run
