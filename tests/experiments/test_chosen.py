"""A model is measured on a mesh as on one device."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.chosen import Choice
from sysout_jax.errors import InputError

ROOT = Path(__file__).parents[2]


def test_measures_on_a_mesh_are_those_of_one_device():
    """Parameters are placed by the table; a KV head that tensor=4 does not divide is copied."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.experiments.on_mesh"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["held"] == [1, 8]
    alone, spread = result["found"]
    assert alone.keys() == spread.keys()
    assert len(alone) > 10
    for name, value in alone.items():
        assert spread[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name


def test_a_mesh_that_cannot_be_is_refused():
    with pytest.raises(InputError, match="--stream: with --mesh=data=2; accepted: a mesh of one"):
        Choice(stream=True, mesh="data=2")
    with pytest.raises(InputError, match="2 devices, but there are 1"):
        Choice(mesh="data=2").shard()
    with pytest.raises(InputError, match="--mesh=model=2"):
        Choice(mesh="model=2").shard()
