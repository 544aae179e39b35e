"""Tests catch deliberate errors: in measures, detectors, norms, attention, formats, statistics and
the ledger. Those in theory/ are in tests/theory/test_mutations.py."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools.mutate import ROOT, read

HERE = Path(__file__).parent
LISTS = [HERE / name / "mutations.toml" for name in ("core", "analysis", "experiments")]


def test_the_lists_are_long_and_survivors_are_few():
    mutants = [each for path in LISTS for each in read(path)]
    assert len(mutants) >= 300
    assert len({(each.file, each.error) for each in mutants}) == len(mutants)
    assert sum(bool(each.survives) for each in mutants) <= 0.05 * len(mutants)


@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.parent.name)
def test_an_error_is_of_one_line_that_is_there_once(path):
    for each in read(path):
        assert each.old != each.new
        compile(each.broken, each.file, "exec")
        assert all((ROOT / test).is_file() for test in each.tests)


@pytest.mark.slow
@pytest.mark.parametrize("path", LISTS, ids=lambda path: path.parent.name)
def test_every_error_is_caught_but_those_named(path):
    done = subprocess.run(
        [sys.executable, "-m", "tools.mutate", path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
