"""Notebooks run from top to bottom; the tutorials are kept with what they print."""

import ast
import base64
import importlib
import inspect
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

import sysout_jax

nbformat = pytest.importorskip("nbformat", reason="needs nbclient and ipykernel")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient and ipykernel")

from tests import notebooks, quick  # noqa: E402

ROOT = Path(__file__).parent.parent
COLAB = notebooks.FOLDER / "colab_tpu.ipynb"
TUTORIALS = [notebooks.FOLDER / f"{name}.ipynb" for name in notebooks.TUTORIALS]
NOTEBOOKS = [COLAB, *TUTORIALS]
LARGEST = 250_000  # bytes of a notebook
PLACES = re.compile(r"/(?:home|root|tmp|work|mnt|usr|content)/|[A-Z]:\\|\.venv|site-packages")


def named(paths):
    return {"argnames": "path", "argvalues": paths, "ids": [path.stem for path in paths]}


def cells(path, kind="code"):
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == kind]


def said(outputs):
    """The text of a cell's outputs."""
    return "\n".join(each.get("text") or each["data"]["text/plain"] for each in outputs)


def test_they_are_there():
    assert sorted(notebooks.FOLDER.glob("*.ipynb")) == sorted(NOTEBOOKS)


@pytest.mark.parametrize(**named(NOTEBOOKS))
def test_they_are_valid_and_hold_nothing_of_a_run_but_outputs(path):
    book = nbformat.read(path, 4)
    nbformat.validate(book)
    assert len(cells(path)) >= 5
    assert all(cell.execution_count is None and cell.metadata == {} for cell in cells(path))
    fields = {"accelerator", "colab", "kernelspec", "language_info", "printed_by"}
    assert set(book.metadata) <= fields
    assert path.stat().st_size <= LARGEST


def test_the_colab_notebook_keeps_nothing_printed():
    assert all(cell.outputs == [] for cell in cells(COLAB))


@pytest.mark.parametrize(**named(TUTORIALS))
def test_what_a_tutorial_printed_is_kept(path):
    """To renew it: `python -m tests.notebooks NAME`, never by hand."""
    book, figures = nbformat.read(path, 4), 0
    assert book.metadata["printed_by"] == notebooks.code_of(book)
    for cell in cells(path):
        assert cell.outputs == notebooks.kept(cell.source, cell.outputs)
        assert bool(cell.outputs) == ("print(" in cell.source or "Figure: " in cell.source)
        assert not re.search(r"Error|Traceback|Warning", said(cell.outputs))
        assert not PLACES.search(said(cell.outputs))
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                figures += 1
                assert base64.b64decode(output.data["image/png"]).startswith(b"\x89PNG")
                assert len(output.data["text/plain"].split()) >= 5
    assert figures >= 1


def test_what_cannot_be_kept_is_refused():
    warning = {"output_type": "stream", "name": "stderr", "text": "careful"}
    with pytest.raises(ValueError, match="printed to stderr: careful"):
        notebooks.kept("", [warning])
    figure = {"output_type": "display_data", "data": {"image/png": "", "text/plain": "<Figure>"}}
    with pytest.raises(ValueError, match="no # Figure"):
        notebooks.kept("plot()", [figure])
    printed = [{"output_type": "stream", "name": "stdout", "text": text} for text in "ab"]
    (one,) = notebooks.kept("", printed)
    assert one["text"] == "ab"
    (drawn,) = notebooks.kept("# Figure: a line\nplot()", [figure])
    assert drawn["data"]["text/plain"] == "a line"


NO_PROSE = re.compile(
    r"`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|\]\([^)]*\)|\b(?:19|20)\d\d\b|^#[^\n]*", re.M | re.S
)


def numbers(text):
    return re.findall(r"(?<![\w.-])\d[\d,]*(?:\.\d+)?%?(?![\w-])", text)


@pytest.mark.parametrize(**named(TUTORIALS))
def test_numbers_of_the_prose_are_printed_beside_it(path):
    """In the outputs of the cell before or behind; years, names such as A1 and formulas aside."""
    book = nbformat.read(path, 4).cells
    printed = [said(cell.get("outputs", ())) for cell in book]
    for at, cell in enumerate(book):
        if cell.cell_type == "markdown":
            beside = numbers("\n".join(printed[max(at - 1, 0) : at + 2]))
            missing = set(numbers(NO_PROSE.sub(" ", cell.source))) - set(beside)
            assert not missing, (at, missing)


@pytest.mark.parametrize(**named(NOTEBOOKS))
def test_jax_is_that_of_the_project(path):
    """What a cell installs has the range of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (needed,) = (line for line in project["dependencies"] if re.match(r"jax[>=]", line))
    asked = set(re.findall(r"jax(?:\[[^\]]*\])?(>=[\d.]+)", path.read_text()))
    assert asked == {needed.removeprefix("jax")}


@pytest.mark.parametrize(**named(NOTEBOOKS))
def test_names_and_arguments_are_those_of_the_library(path):
    """Of every notebook, also of those that are run only where `-m slow` asks for it."""
    tree = ast.parse("\n".join(cell.source for cell in cells(path)))
    given = {}  # the arguments that each name of the library takes
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.startswith("sysout_jax"):
            home = importlib.import_module(node.module)
            assert [name.name for name in node.names if not hasattr(home, name.name)] == []
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("so", "so.measures"):
            called = eval(ast.unparse(node), {"so": sysout_jax})
            given[id(node)] = set(inspect.signature(called).parameters) if callable(called) else {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and id(node.func) in given:
            assert {each.arg for each in node.keywords} <= given[id(node.func)], node.func.attr


# --------------------------------------------------------------------------- the first cell

INSTALL = """
import importlib.util, json, subprocess, sys

def installing(command, check):
    assert command[:4] == [sys.executable, "-m", "pip", "install"], command
    asked.append(command[-1])
    sys.path.append(command[-1])  # where an installed package is: after the working directory

asked, subprocess.run, JAX = [], installing, "jax"
(cell,) = (c for c in json.load(open(sys.argv[1]))["cells"] if any("pip" in x for x in c["source"])
           and c["cell_type"] == "code")
exec("".join(cell["source"]))
print(asked, importlib.util.find_spec("sysout_jax.data").origin)
"""
WHEEL = "sysout_jax-0.1.0-py3-none-any.whl"


def wheel(place):
    """The package as a wheel has it, in a file."""
    with zipfile.ZipFile(place, "w") as archive:
        for name in ("__init__.py", "data/__init__.py"):
            archive.write(ROOT / "sysout_jax" / name, f"sysout_jax/{name}")


def installed(path, where):
    """What the cell asks pip for, and where the package then is, or the error."""
    bare = [sys.executable, "-E", "-S", "-c", INSTALL, str(path)]  # without what may be installed
    done = subprocess.run(bare, cwd=where, capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr.splitlines()[-1]


@pytest.mark.parametrize(**named(NOTEBOOKS))
def test_inside_a_clone_nothing_is_installed(path):
    origin = ROOT / "sysout_jax" / "data" / "__init__.py"
    assert installed(path, path.parent) == f"[] {origin}"


@pytest.mark.parametrize(**named(NOTEBOOKS))
def test_a_clone_beside_is_installed(path, tmp_path):
    """There the clone is a directory of the package's name, and no package."""
    (tmp_path / "sysout_jax").symlink_to(ROOT)
    wheel(tmp_path / WHEEL)  # which may be older
    shutil.copy(path, tmp_path)
    asked, origin = installed(path, tmp_path).split()
    assert asked == "['./sysout_jax']"
    assert (tmp_path / origin).samefile(ROOT / "sysout_jax" / "data" / "__init__.py")


@pytest.mark.parametrize(**named(NOTEBOOKS))
def test_a_wheel_beside_is_installed(path, tmp_path):
    assert installed(path, tmp_path).startswith("FileNotFoundError: neither sysout_jax/ nor ")
    wheel(tmp_path / WHEEL)
    asked, origin = installed(path, tmp_path).split()
    assert asked == f"['./{WHEEL}']"
    assert WHEEL in origin


# --------------------------------------------------------------------------- from top to bottom

SMALL = {
    "SYSOUT_STEPS": "2", "SYSOUT_SIZE": "1,16,2,24", "SYSOUT_INSTANCES": "20",
    "SYSOUT_TEXTS": "4", "SYSOUT_TOKENS": "32",
}  # fmt: skip
CACHE = {
    **quick.CACHE,
    "XDG_CACHE_HOME": str(ROOT / ".cache"),  # where the fixture `smollm2` keeps the model
}
QUICK = ("train_variants", "prove")


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else pytest.mark.slow)
        for path in NOTEBOOKS
    ],
)
def test_it_runs(path, request):
    if path.stem in notebooks.OF_SMOLLM2:
        request.getfixturevalue("smollm2")
    book = notebooks.executed(path, SMALL | CACHE | quick.ENVIRONMENT)
    drawn = 0
    for cell, before in zip(book.cells, nbformat.read(path, 4).cells, strict=True):
        if cell.cell_type == "code" and path != COLAB:
            outputs = notebooks.kept(cell.source, cell.outputs)
            assert [set(each) for each in outputs] == [set(each) for each in before.outputs]
        drawn += sum("image/png" in each.get("data", {}) for each in cell.get("outputs", ()))
    assert drawn >= 1
