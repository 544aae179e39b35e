"""The tutorials of notebooks/, executed: what they print is kept in them, not written by hand.

python -m tests.notebooks                # all of them, some minutes
python -m tests.notebooks find prove
"""

import os
import sys
import tempfile
from collections.abc import Iterable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import nbclient
import nbformat
import pytest

from sysout_jax.families.catalogue import from_wheel
from sysout_jax.files import write_text

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "notebooks"
TUTORIALS = ("find", "remove", "convert_and_quantise", "train_variants", "prove")
OF_SMOLLM2 = ("find", "remove", "convert_and_quantise")
FIGURE = "# Figure: "  # the first line of a cell that draws; what follows stands for the figure
Output = dict[str, Any]


def executed(path: Path, environment: Mapping[str, str]) -> Any:
    """A notebook run from top to bottom in its own folder, by this Python, on the CPU."""
    book = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    client = nbclient.NotebookClient(book, timeout=1800, resources=resources)
    client.create_kernel_manager()
    client.km.kernel_spec.argv[0] = sys.executable  # whatever kernels are installed
    with tempfile.TemporaryDirectory() as place:
        own = {"JAX_PLATFORMS": "cpu", "IPYTHONDIR": place, **environment}
        with client.setup_kernel(env=os.environ | own):
            for number, cell in enumerate(book.cells):
                client.execute_cell(cell, number)
    return book


def kept(source: str, outputs: Iterable[Output]) -> list[Output]:
    """Of a cell's outputs the text and the figures, without what a run adds.

    Raises:
      ValueError: a warning or a progress bar, or a figure without a text that stands for it.
    """
    found: list[Output] = []
    for output in outputs:
        if output["output_type"] == "stream":
            if output["name"] != "stdout":
                raise ValueError(f"printed to {output['name']}: {output['text']}")
            if found and found[-1]["output_type"] == "stream":
                found[-1]["text"] += output["text"]
            else:
                found.append({"output_type": "stream", "name": "stdout", "text": output["text"]})
            continue
        data = {"text/plain": output["data"]["text/plain"]}
        if "image/png" in output["data"]:
            first = source.partition("\n")[0]
            if not first.startswith(FIGURE):
                raise ValueError(f"a figure, and no {FIGURE.strip()} above {first!r}")
            data = {
                "image/png": output["data"]["image/png"],
                "text/plain": first.removeprefix(FIGURE),
            }
        found.append({"output_type": "display_data", "data": data, "metadata": {}})
    return found


def code_of(book: Any) -> str:
    """A digest of a notebook's code, by which outputs are told to be of that code."""
    code = [cell.source for cell in book.cells if cell.cell_type == "code"]
    return sha256("\0".join(code).encode()).hexdigest()[:16]


def renew(name: str) -> None:
    """Execute a tutorial and keep what it prints."""
    path = FOLDER / f"{name}.ipynb"
    source = nbformat.read(path, as_version=4)
    own = {"XDG_CACHE_HOME": str(ROOT / ".cache")}  # where the tests keep the published model
    if name in OF_SMOLLM2:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", own["XDG_CACHE_HOME"])
            from_wheel("smollm2-135m")
    for cell, run in zip(source.cells, executed(path, own).cells, strict=True):
        if cell.cell_type == "code":
            cell.outputs = [nbformat.from_dict(each) for each in kept(cell.source, run.outputs)]
    source.metadata["printed_by"] = code_of(source)
    nbformat.validate(source)
    write_text(path, nbformat.writes(source) + "\n")


if __name__ == "__main__":
    for name in sys.argv[1:] or TUTORIALS:
        renew(name)
        print(name)
