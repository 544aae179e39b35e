"""What a child measures of itself, and what is said of one that dies."""

import numpy as np
import pytest

from benchmarks import children


def grown(size):
    """Work that holds that many bytes for a moment."""
    return lambda: int(np.ones(size, np.uint8)[-1])


def broken():
    raise ValueError("no such model")


def test_a_child_measures_its_own_peak(tmp_path):
    size = 64 * 2**20
    found = children.measured("tests.benchmarks.test_children:grown", tmp_path, 2, size=size)
    assert found["found"] == 1
    assert len(found["seconds"]) == 2
    assert found["whole"] > sum(found["seconds"])
    assert 0.9 * size < found["peak"] - found["loaded"] < 1.5 * size  # held once, not twice


def test_what_was_held_before_the_work_is_not_its_peak():
    np.ones(2**28, np.uint8)
    found = children.carried_out(grown(2**24), 1)
    assert 0 <= found["peak"] - found["loaded"] < 2**26


def test_the_last_word_of_a_child_that_dies_is_said(tmp_path):
    with pytest.raises(children.Died, match="status 1: ValueError: no such model"):
        children.measured("tests.benchmarks.test_children:broken", tmp_path)


def test_a_child_has_no_more_memory_than_the_limit(tmp_path):
    work = "tests.benchmarks.test_children:grown"
    with pytest.raises(children.NoMemory, match="Unable to allocate"):
        children.measured(work, tmp_path, limit=2**28, size=2**29)
    assert children.measured(work, tmp_path, limit=2**29, size=2**27)["found"] == 1
    with pytest.raises(children.Died) as died:
        children.measured("tests.benchmarks.test_children:broken", tmp_path, limit=2**30)
    assert not isinstance(died.value, children.NoMemory)
