"""The conversion as a user meets it: a model in; a model, tables and a record out, or one line."""

import shutil

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import sysout_jax as so
from experiments.cli.grid import Cells
from experiments.cli.tables import markdown
from experiments.reports.convert_report import sections
from sysout_jax.model.decoder import init
from sysout_jax.plots.conversion import figures
from sysout_jax.training.checkpoint import save
from tests.analysis import first_sink as planted
from tests.images import ink


@pytest.fixture(scope="module")
def finished(place, run_convert):
    return run_convert(
        f"--model={place}/model", f"--corpus=tokens:{place}/text", f"--out={place}/out",
        "--calibration=5", "--sequences=4", "--seq_len=64", "--bos=no", f"--workdir={place}/runs",
    )  # fmt: skip


def test_the_model_is_written_and_loads(record, place):
    (record,) = record["models"]
    model = so.load(place / "out")
    assert record["kind"] == "constants"
    assert model.config.sink.silent == (planted.MADE,)
    ids = planted.texts(seed=8)[:, :-1]
    peak = so.apply(model, ids, {"block_out": so.measures.top1_over_median})[1]["block_out"]
    assert float(peak.max()) < 100
    before, after = record["check"]["over_median"]
    assert max(before) > 1000 > 100 > max(after)
    assert record["tokens"] == {"calibration": 5 * 65, "check": 4 * 64}
    assert len(record["check"]["generated"][0]) == 2


def test_it_is_analysed_like_any_model(finished, place):
    found = so.analyze(so.load(place / "out"), planted.texts()[0, :-1], parts=("existence",))
    assert found.record["model"]["sink"]["replaces_first"] is True


def test_the_tables_show_the_record(finished, record):
    (model,) = record["models"]
    tables = markdown(sections(record))
    assert tables["model-ways"].count("\n") == 1 + len(model["treatments"])
    assert f"| {model['check']['loss'][1]:.3f} |" in tables["model-check"]
    assert "constants in layers 3 to 5" in finished.out
    assert [name for name, _ in figures(record)] == ["model"]
    assert 0.02 < ink(finished.directory / "figures" / "model.png") < 0.8


def test_a_prefix_is_exported(place, run_convert):
    out = place / "prefixed"
    done = run_convert(
        f"--model={place}/model", f"--corpus=tokens:{place}/text", f"--out={out}", "--prefix=3,4",
        "--calibration=4", "--sequences=2", "--seq_len=32", "--weak=leave", "--nocheck",
        "--export=prefix", f"--workdir={place}/runs",
    )  # fmt: skip
    assert done.status == 0, done.err
    tensors = load_file(out / "prefix.safetensors")
    assert tensors["key.5"].shape == tensors["value.0"].shape == (1, 1, 2, 16)
    ids = planted.texts(2, 20)
    both = np.concatenate([np.full((2, 2), (3, 4)), ids], axis=1)
    whole = so.apply(so.load(place / "model"), both)[0]
    np.testing.assert_allclose(so.apply(so.load(out), ids)[0], whole[:, 2:], atol=1e-3)
    so.analyze(so.load(out), ids[0], parts=("existence",))


def test_a_model_without_a_sink_is_not_written(place, run_convert, tmp_path):
    params = init(planted.CONFIG, jax.random.key(0))
    save(tmp_path / "model", planted.CONFIG, jax.tree.map(lambda x: x[None], params), [0])
    done = run_convert(
        f"--model={tmp_path}/model", f"--corpus=tokens:{place}/text", f"--out={tmp_path}/out",
        "--smoke", "--bos=no", f"--workdir={tmp_path}/runs",
    )  # fmt: skip
    assert done.status == 0, done.err
    assert "so there is no sink" in done.out
    assert not (tmp_path / "out").exists()


def test_a_run_that_goes_on_writes_its_own_model_alone(place, run_convert, tmp_path, monkeypatch):
    """Stopped between model and cell it takes its model, and no other: none is lost or missing."""
    write, out, stops = Cells.write, tmp_path / "out", iter((True, False, False))

    def stopped(cells, name, found):
        if next(stops):
            raise KeyboardInterrupt
        write(cells, name, found)

    def convert(to):
        return run_convert(
            f"--model={place}/model", f"--corpus=tokens:{place}/text", f"--out={to}", "--nocheck",
            "--calibration=4", "--sequences=2", "--seq_len=32", "--weak=leave", "--bos=no",
            "--name=mine", f"--workdir={tmp_path}/runs", drawn=False,
        )  # fmt: skip

    monkeypatch.setattr(Cells, "write", stopped)
    assert convert(out).status == 130
    written = (out / "config.json").read_bytes()
    out.rename(tmp_path / "kept")
    shutil.copytree(place / "model", out)
    refused = convert(out)
    assert refused.refusal == (
        f"--out={out}: exists, and is not what this run writes; accepted: a directory that does "
        "not exist"
    )
    shutil.rmtree(out)
    shutil.copytree(tmp_path / "kept", out)
    assert convert(out).status == 0
    assert (out / "config.json").read_bytes() == written
    assert convert(out).status == 0  # finished
    other = convert(tmp_path / "other")
    assert other.refusal.startswith(f"--out={tmp_path}/other: the cells in {tmp_path}/runs/")
    shutil.rmtree(out)
    said = f"--out={out}: not there any more, and the run mine is finished; "
    assert convert(out).refusal.startswith(said)


@pytest.mark.parametrize("prefix", ["99999", "3,-1"])
def test_a_prefix_that_is_none_leaves_no_run(place, run_convert, tmp_path, prefix):
    done = run_convert(
        f"--model={place}/model", f"--corpus=tokens:{place}/text", f"--out={tmp_path}/out",
        f"--prefix={prefix}", f"--workdir={tmp_path}/runs",
    )  # fmt: skip
    assert done.refusal.startswith(f"--prefix: token id {prefix.split(',')[-1]}; accepted: 0 to")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "--out: not given; accepted: a directory that does not exist"),
        (["--out={place}/text"], "--out={place}/text: exists; accepted: "),
        (["--out={place}/x", "--weak=no"], "--weak='no': unknown; accepted: bound, prefix, "),
        (["--out={place}/x", "--export=onnx"], "--export='onnx': unknown; accepted: none, prefix"),
        (["--out={place}/x", "--calibration=2"], "text: 2 of 64 tokens is too short; "),
        (["--out={place}/x", "--export=prefix"], "--export=prefix: constants stand in a token"),
    ],
)
def test_wrong_flags_are_one_line(place, run_convert, tmp_path, arguments, line):
    done = run_convert(
        f"--model={place}/model", f"--corpus=tokens:{place}/text", "--sequences=2", "--nocheck",
        "--seq_len=64", "--bos=no", f"--workdir={tmp_path}",
        *(argument.format(place=place) for argument in arguments),
    )  # fmt: skip
    assert done.refusal.startswith(line.format(place=place))
    assert not (place / "x").exists()
