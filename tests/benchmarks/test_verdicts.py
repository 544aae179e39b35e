"""What `make bench` ends with: budgets, and the goals that this machine meets."""

import dataclasses
import os
import sys
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import budgets, verdicts
from sysout_jax.errors import InputError
from sysout_jax.results import RunDirectory, read_record

RECORDS = Path(__file__).parents[2] / "results" / "benchmarks"


@pytest.mark.parametrize("place", sorted(path.parent.name for path in RECORDS.glob("*/*.json")))
def test_every_goal_of_a_record_is_told(place):
    """As many as the record has, with the words that the documentation has in its tables."""
    record = read_record(RECORDS / place)
    found = list(verdicts.verdicts(record))
    page = (RECORDS.parents[1] / "docs" / "performance.md").read_text()
    for name, what, shown, goal, met, _ in found:
        assert record["experiment"] == f"benchmarks.{name}"
        assert what
        assert f"| {shown} | {goal} | {met} |" in page
    rows = record.get("rows", [])
    assert len(found) >= sum(row["most"] is not None or row["least"] is not None for row in rows)


def test_goals_of_grouped_rows_say_of_which():
    found = [row[1] for row in verdicts.verdicts(read_record(RECORDS / "train-cpu"))]
    assert found[:3] == [
        "gpt2-tiny, 60k, eager", "gpt2-tiny, 60k, compile", "gpt2-tiny, 1m, eager",
    ]  # fmt: skip
    assert len(found) == len(set(found)) == 12


def test_the_last_complete_run_of_each_counts(tmp_path, monkeypatch):
    rows = {name: budgets.BUDGETS[name] for name in ("demo", "test")}
    rows["test"] = dataclasses.replace(rows["test"], seconds=0.0)
    monkeypatch.setattr(budgets, "BUDGETS", rows)
    seconds = {"demo": 100.0, "test": 7.0}
    monkeypatch.setattr(budgets, "waited", lambda command, one_core: seconds[command[1]])
    config = budgets.Config(only=("demo", "test"), workdir=str(tmp_path))
    budgets.run(config, Console(quiet=True))
    stopped = RunDirectory(tmp_path, "benchmarks-seeds")
    with pytest.raises(KeyboardInterrupt), stopped.record("benchmarks.seeds", rows=[]):
        raise KeyboardInterrupt
    shown = verdicts.table(tmp_path)
    assert [list(row[:5]) for row in shown.rows] == [
        ["budgets", "make demo", "100 s", "<= 300 s", "yes"],
        ["budgets", "make test", "7 s", "<= 0 s", "no"],
    ]
    assert shown.title.startswith("goals on ")


def test_a_directory_without_runs_is_refused(tmp_path):
    with pytest.raises(InputError, match="accepted: a directory with complete runs"):
        verdicts.table(tmp_path)


def test_a_command_is_waited_for_and_has_to_end_well(tmp_path):
    assert budgets.waited([sys.executable, "-c", "import time; time.sleep(0.2)"]) > 0.2
    with pytest.raises(InputError, match="exit status 3: what is wrong"):
        budgets.waited([sys.executable, "-c", "print('what is wrong'); raise SystemExit(3)"])


@pytest.mark.parametrize("one_core", [False, True])
def test_a_command_runs_in_an_empty_place_and_may_be_held_to_a_core(one_core):
    before = os.sched_getaffinity(0)
    count = 1 if one_core else len(before)
    asks = f"import os; assert len(os.sched_getaffinity(0)) == {count}; assert not os.listdir()"
    assert budgets.waited([sys.executable, "-c", asks], one_core) > 0.0
    assert os.sched_getaffinity(0) == before


@pytest.mark.parametrize("only", [("lint",), ()])
def test_only_what_has_a_budget(only):
    with pytest.raises(InputError, match="only"):
        budgets.Config(only=only)
