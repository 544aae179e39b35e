"""Commands that go cell by cell: stopped, in shards and at once they leave the same record."""

import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import compress
from experiments.cli.grid import Cells, Place, by_model, part_name
from experiments.inputs import identity
from sysout_jax.training.checkpoint import save
from tests.analysis import first_sink as planted

GIVEN = {
    "causal": ("--controls=1", "--factors=0,1"),
    "compress": ("--methods=w8,wanda-2:4", "--calibration=3"),
    "explicit": ("--methods=w8", "--calibration=3", "--finetune=1"),
}
CELLS = {"causal": 1, "compress": 3, "explicit": 7}  # of a model


def test_cells_of_a_way_and_of_a_method_are_told_apart(tmp_path):
    """`rotate` and then w4a4 is another cell than the method rotate-w4a4."""
    parts = [(None, "rotate-w4a4"), ("rotate", "w4a4"), ("bound", "rotate-w4a4"),
             ("bound+rotate", "w4a4"), ("bound", "w4a4"), ("prefix+bound", None)]  # fmt: skip
    cells = Cells(tmp_path, {})
    names = [part_name(part_name("m", way), method) for way, method in parts]
    assert len({cells._path(name) for name in names}) == len(parts)


def record_of(directory):
    """What a run found, without what clocks and command lines say."""
    record = json.loads((directory / "result.json").read_text())
    assert record.pop("seconds") > 0
    assert record.pop("provenance")
    return record


@pytest.mark.parametrize("command", GIVEN)
def test_stopped_and_in_shards_or_at_once(command, deep, request, tmp_path, monkeypatch):
    """Each cell is made once, whichever process makes it, and the records are the same."""
    run = partial(request.getfixturevalue(f"run_{command}"), drawn=False)
    write, made = Cells.write, []

    def counted(cells, name, found):
        if len(made) == 1 and not (tmp_path / "stopped").exists():
            (tmp_path / "stopped").touch()
            raise KeyboardInterrupt
        write(cells, name, found)
        made.append(name)

    monkeypatch.setattr(Cells, "write", counted)
    small = ("--sequences=3", "--seq_len=9", "--batch=3", f"--workdir={tmp_path}")
    given = (f"--model={deep}", *GIVEN[command], *small)
    place = tmp_path / command / "parts"
    stopped = run(*given, "--name=parts")
    assert (stopped.status, stopped.err) == (130, "error: interrupted\n")
    assert "\ngoes on  " in stopped.out
    halfway = record_of(place)
    assert (halfway["status"], len(halfway["models"])) == ("interrupted", 1)
    for index in (1, 0):
        done = run(*given, "--name=parts", f"--shard={index}/2")
        assert done.status == 0, done.err
    assert len(made) == len(set(made)) == 2 * CELLS[command]
    gathered = run(*given, "--name=parts")
    assert gathered.status == 0, gathered.err
    assert len(made) == 2 * CELLS[command]
    whole = run(*given).directory
    assert len(made) == 4 * CELLS[command]
    assert record_of(place) == record_of(whole)
    assert [model["seed"] for model in record_of(whole)["models"]] == [3, 5]


def test_more_methods_join_those_that_are_there(deep, run_compress, tmp_path, monkeypatch):
    monkeypatch.setattr(compress, "enough", lambda rows: None)  # to convert: none is
    small = ("--sequences=3", "--calibration=4", "--seq_len=9", f"--workdir={tmp_path}", "--name=a")
    for methods in ("w4,w8", "w6"):
        done = run_compress(f"--model={deep}", f"--methods={methods}", *small, drawn=False)
        assert done.status == 0, done.err
    record = record_of(tmp_path / "compress" / "a")
    assert record["methods"] == ["w6", "w4", "w8"]
    assert [list(model["methods"]) for model in record["models"]] == [["w6", "w4", "w8"]] * 2
    refused = run_compress(f"--model={deep}", *small, "--alpha=0.25")
    assert refused.refusal.startswith("--alpha=0.25: the cells in ")
    # With conversions, losses are of other tokens where texts begin with a BOS.
    refused = run_compress(f"--model={deep}", *small, "--methods=w8", "--conversions=leave")
    where = f"the cells in {tmp_path}/compress/a/cells have none"
    said = f"--conversions=some: {where}; accepted: that, or another --name"
    assert refused.refusal == said


def test_a_text_or_weights_that_changed_under_one_path(place, run_causal, tmp_path):
    """What was found in others is not gone on with; a cell that does not say is."""
    shutil.copytree(place, tmp_path / "a")
    model, text = tmp_path / "a" / "model", tmp_path / "a" / "text"
    given = (
        f"--model={model}", f"--corpus=tokens:{text}", "--bos=no", "--sequences=2", "--controls=1",
        "--seq_len=9", f"--workdir={tmp_path}", "--name=a",
    )  # fmt: skip
    found = run_causal(*given, drawn=False).record
    assert run_causal(*given, drawn=False).record["models"] == found["models"]
    cell = tmp_path / "causal" / "a" / "cells" / "model-3.json"
    said = f"--name: {cell} is of another text or other weights under the same path"
    ids = np.fromfile(text / "val.bin", np.uint16)
    (ids[::-1]).tofile(text / "val.bin")
    assert run_causal(*given, drawn=False).refusal == f"{said}; accepted: another one"
    ids.tofile(text / "val.bin")
    params = jax.tree.map(lambda x: 2 * x[None], planted.params())
    shutil.rmtree(model)
    save(model, planted.CONFIG, params, [3])
    assert run_causal(*given, drawn=False).refusal.startswith(said)
    there = json.loads(cell.read_text())
    del there["made_of"]
    cell.write_text(json.dumps(there))
    assert run_causal(*given, drawn=False).status == 0


def test_words_for_text_and_weights():
    rows = np.arange(12).reshape(3, 4)
    assert identity.of_text(rows, rows) == identity.of_text(rows.astype(np.uint16), rows)
    assert identity.of_text(rows, rows) != identity.of_text(rows, rows + 1)
    params = {"a": jnp.arange(3.0), "b": jnp.arange(100_000.0).reshape(100, 1000)}
    others = [
        {**params, "a": params["a"].at[1].set(7.0)}, {**params, "b": 2 * params["b"]},
        {**params, "b": params["b"].reshape(1000, 100)}, {**params, "a": jnp.arange(3)},
        {"a": params["a"], "c": params["b"]},
    ]  # fmt: skip
    words = {identity.of_weights(each) for each in (params, *others)}
    assert len(words) == 1 + len(others)
    assert identity.of_weights(jax.tree.map(jnp.copy, params)) == identity.of_weights(params)


def test_a_part_waits_for_its_model(tmp_path):
    """Another process may not have made it yet."""
    cells = Cells(tmp_path, {"batch": 2}).begin()
    cells.write("b-w4", {"name": "b", "seed": None, "part": "w4", "found": 1})
    cells.write("a-w8", {"name": "a", "seed": None, "part": "w8", "found": 2})
    cells.write("a-w2:4", {"name": "a", "seed": None, "part": "w2:4", "found": 3})
    cells.write("a", {"name": "a", "seed": None, "loss": 4.0})
    assert "a-w2:4" in cells
    expected = {"name": "a", "seed": None, "loss": 4.0, "methods": {"w2:4": 3, "w8": 2}}
    assert by_model(cells, "methods", ["w2:4"]) == [expected]


def test_settings_bind_once_a_cell_is_there(tmp_path):
    """Not those of a flag that was mistyped; whoever began with others writes none beside it."""
    mistyped = Cells(tmp_path, {"batch": 2}).begin()
    cells = Cells(tmp_path, {"batch": 3}).begin()
    with pytest.raises(ValueError, match=r"batch=2: the cells in .* have 3; accepted: that, or"):
        mistyped.write("a", {})
    assert cells.names() == []
    cells.write("a", {"loss": 4.0})
    with pytest.raises(ValueError, match=r"batch=2: the cells in .* have 3; accepted: that, or"):
        Cells(tmp_path, {"batch": 2})
    assert Cells(tmp_path, {"batch": 3}).all() == [{"loss": 4.0}]


def test_a_refused_process_leaves_what_another_has_begun(tmp_path):
    """The other has finished no cell yet: its settings hold, and its cell can be written."""
    place = Place(str(tmp_path), "a")
    directory, cells = place.opened("study", {"steps": 100})
    with directory.record("study"):
        with pytest.raises(ValueError, match="another run is writing to it"):
            place.opened("study", {"steps": 200})
        cells.write("first", {"loss": 4.0})
    assert json.loads((cells.place / "about.json").read_text()) == {"steps": 100}
