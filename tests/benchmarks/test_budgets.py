"""Budgets: how long a command takes, on which cores, and what is said of one that fails."""

import os
import sys

import pytest

from benchmarks import budgets
from sysout_jax.errors import InputError

CORES = "import os; assert len(os.sched_getaffinity(0)) {}; assert not os.listdir()"


def test_a_command_is_timed_in_an_empty_place_and_held_to_a_core():
    before = os.sched_getaffinity(0)
    assert 0.0 < budgets.waited([sys.executable, "-c", CORES.format("== 1")], one_core=True) < 30.0
    assert 0.0 < budgets.waited([sys.executable, "-c", CORES.format(f"== {len(before)}")]) < 30.0
    assert os.sched_getaffinity(0) == before


def test_the_time_of_what_failed_says_nothing():
    with pytest.raises(InputError, match="it ended with exit status 3: no room"):
        budgets.waited([sys.executable, "-c", "import sys; print('no room'); sys.exit(3)"])


def test_only_what_has_a_budget():
    assert budgets.Config(only=("convert", "analyze")).only == ("convert", "analyze")
    for only in (("lint",), ()):
        with pytest.raises(InputError, match="only"):
            budgets.Config(only=only)
