"""Published sizes: loaded, and streamed in less memory than they have parameters."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.families.large import LIMIT

ROOT = Path(__file__).parents[2]


def measure(shape, place):
    done = subprocess.run(
        [sys.executable, "-m", "tests.families.large", shape, str(place)],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def room(place, needed):
    free = shutil.disk_usage(place).free
    if free < needed:
        pytest.skip(f"{free / 1e9:.0f} GB free on the disk, {needed / 1e9:.0f} needed")


@pytest.mark.slow
def test_a_model_of_a_billion_parameters_is_loaded_and_analysed(tmp_path):
    room(tmp_path, 4e9)
    found = measure("1b", tmp_path / "model")
    assert found["checkpoint"] == pytest.approx(2.2e9, rel=0.01)
    largest = 2 * 32000 * 2048
    idle = 300e6  # Python, JAX and NumPy
    assert found["pass"]["loaded"]["RssAnon"] < found["checkpoint"] + largest + idle
    assert found["pass"]["layers"] == {"attn_weights": 22, "block_out": 22, "down_in": 22}
    assert found["analysis"]["layers"] == 22


@pytest.mark.slow
def test_a_model_larger_than_its_memory_is_streamed(tmp_path):
    """13.5 GB of parameters under a limit of 5 GB, which the kernel enforces."""
    room(tmp_path, 16e9)
    found = measure("7b", tmp_path / "model")
    assert found["checkpoint"] > 2.5 * LIMIT
    assert found["pass"]["end"]["VmHWM"] < LIMIT
    assert found["analysis"]["VmHWM"] < LIMIT
    assert found["pass"]["layers"] == {"attn_weights": 32, "block_out": 32, "down_in": 32}
    assert found["analysis"]["layers"] == 32
