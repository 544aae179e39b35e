"""Tests of the ledger catch a wrong predicate, threshold, correction or registration."""

import subprocess
import sys

import pytest

from tests.experiments.ledger_mutants import MUTANTS, ROOT


def test_every_mutant_is_a_line_of_the_ledger():
    assert len(MUTANTS) >= 30
    for name, (file, old, new) in MUTANTS.items():
        assert (ROOT / file).read_text().count(old) == 1, name
        assert old != new


@pytest.mark.slow
def test_mutants_are_caught():
    done = subprocess.run(
        [sys.executable, "-m", "tests.experiments.ledger_mutants"],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
