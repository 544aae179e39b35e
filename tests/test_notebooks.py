"""Notebooks run from top to bottom, and are kept without what they printed."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="needs nbclient and ipykernel")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
SMALL = {"SYSOUT_STEPS": "2", "SYSOUT_SIZE": "1,16,2,24"}


def test_they_are_there():
    assert [path.name for path in NOTEBOOKS] == ["colab_tpu.ipynb", "quickstart.ipynb"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_printed_is_kept(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    code = [cell for cell in book.cells if cell.cell_type == "code"]
    assert len(code) >= 5
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)
    wanted = json.dumps(book, indent=1, ensure_ascii=False, sort_keys=True) + "\n"
    assert json.loads(path.read_text()).keys() == json.loads(wanted).keys()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_jax_is_that_of_the_project(path):
    """What a cell installs has the range of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (needed,) = (line for line in project["dependencies"] if re.match(r"jax[>=]", line))
    asked = set(re.findall(r"jax(?:\[[^\]]*\])?(>=[\d.]+)", path.read_text()))
    assert asked == {needed.removeprefix("jax")}


BESIDE = """
import importlib, json, subprocess, sys

def installing(command, check):
    assert command[:4] == [sys.executable, "-m", "pip", "install"], command
    assert "./sysout_jax" in command, command
    sys.path.append("sysout_jax")  # where an installed package is: after the working directory

subprocess.run = installing
JAX = "jax"
book = json.load(open(sys.argv[1]))
(cell,) = (c for c in book["cells"] if any("find_spec" in line for line in c["source"]))
exec("".join(cell["source"]))
importlib.invalidate_caches()
print(importlib.util.find_spec("sysout_jax.data").origin)
"""


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_beside_a_clone(path, tmp_path):
    """The layout that the notebook asks for: there the clone is no package, and is installed."""
    (tmp_path / "sysout_jax").symlink_to(ROOT)
    shutil.copy(path, tmp_path)
    bare = [sys.executable, "-E", "-S", "-c"]  # without what may be installed
    command = [*bare, BESIDE, path.name]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = tmp_path / done.stdout.strip()
    assert found.samefile(ROOT / "sysout_jax" / "data" / "__init__.py")


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(ROOT / "notebooks" / "quickstart.ipynb", id="quickstart"),
        pytest.param(ROOT / "notebooks" / "colab_tpu.ipynb", id="colab", marks=pytest.mark.slow),
    ],
)
def test_it_runs(path, monkeypatch, tmp_path):
    for name, value in SMALL.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "xla"))
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    book = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(path.parent)}}
    manager = nbclient.NotebookClient(book, timeout=600, resources=where)
    manager.create_kernel_manager()
    manager.km.kernel_spec.argv[0] = sys.executable  # this Python, whatever kernels are installed
    with manager.setup_kernel():
        for number, cell in enumerate(book.cells):
            manager.execute_cell(cell, number)
    figures = [
        output for cell in book.cells for output in cell.get("outputs", ())
        if "image/png" in output.get("data", {})
    ]  # fmt: skip
    assert len(figures) == 2  # the curves, and one of the analysis
    said = "".join(
        output.get("text", "") for cell in book.cells for output in cell.get("outputs", ())
    )
    assert "cpu" in said
    assert "Error" not in said
