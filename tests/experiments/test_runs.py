"""The list of runs: what became of each, told from what is on disk."""

import errno
import fcntl
import json
import os
import shutil
import struct
import sys
from types import SimpleNamespace

import pytest

from experiments.records.study import study_names
from sysout_jax.errors import InputError
from sysout_jax.results import RunDirectory


def test_what_became_of_each(run_runs, tmp_path, monkeypatch):
    with RunDirectory(tmp_path, "analyze", of=["gpt2"]).record("analysis") as record:
        began = record["provenance"]["started"]
    with pytest.raises(InputError), RunDirectory(tmp_path, "compress", "broke").record("study"):
        raise InputError("--a: no")
    killed = RunDirectory(tmp_path, "variants", "killed")
    killed._metrics.close()
    (killed.path / "result.json").write_text("{")
    goes_on = RunDirectory(tmp_path, "variants", "all/shard-0-of-2")
    (goes_on.path / "result.json").write_text('{"status": "complete"}')  # of before
    (goes_on.path / "states").mkdir()
    (goes_on.path / "states" / "big").write_bytes(bytes(1_234_567))
    monkeypatch.setenv("COLUMNS", "120")
    outcome = run_runs(f"--workdir={tmp_path}")
    goes_on._metrics.close()
    assert (outcome.status, outcome.err) == (0, "")
    table, _, end = outcome.out.partition("\nfound ")
    assert "4 runs below" in end
    assert "experiments.analyze \\" in end  # the one that is complete
    found = [line.split() for line in table.splitlines()[-5:] if line.strip()]
    began = began[:16].split("T")
    assert [line[:3] for line in found] == [
        ["analyze", (tmp_path / "analyze" / "latest").resolve().name, "complete"],
        ["compress", "broke", "failed"],
        ["variants", "all/shard-0-of-2", "running"],
        ["variants", "killed", "killed"],
    ]  # fmt: skip
    assert found[0][3:] == [*began, "0.0"]
    assert found[2][-1] == "1.2"


def test_the_next_command_is_not_of_a_benchmark(run_runs, tmp_path):
    for experiment in ("analyze", "benchmarks-train"):
        with RunDirectory(tmp_path, experiment).record("any"):
            pass
    assert "experiments.analyze" in run_runs(f"--workdir={tmp_path}").out.partition("\nnext")[2]


def test_files_that_are_gone_before_they_are_counted(run_runs, tmp_path, monkeypatch):
    """A run that goes on removes its older states."""
    goes_on = RunDirectory(tmp_path, "variants", "long")
    old = goes_on.path / "states" / "step-000000001"
    old.mkdir(parents=True)
    for name in "abc":
        (old / name).write_bytes(bytes(600_000))
    stat = os.stat

    def late(path, **how):
        if str(path).endswith(("/a", "/b")):
            shutil.rmtree(old, ignore_errors=True)
        return stat(path, **how)

    monkeypatch.setattr(os, "stat", late)
    outcome = run_runs(f"--workdir={tmp_path}", "--csv")
    goes_on._metrics.close()
    assert (outcome.status, outcome.out.count("variants,long,running")) == (0, 1)
    assert outcome.out.splitlines()[-1].endswith(",0.0")


def test_a_file_system_without_locks(run_runs, tmp_path, monkeypatch, caplog):
    """A run goes on there, after a line that says what nobody sees to."""

    def none(file, how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with RunDirectory(tmp_path, "variants", "mine").record("study"):
        pass
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith("no lock on this file system: let one run alone write to it")
    outcome = run_runs(f"--workdir={tmp_path}", "--csv")
    assert (outcome.status, outcome.out.count("variants,mine,complete")) == (0, 1)


def test_no_such_place(run_runs, tmp_path):
    assert run_runs(f"--workdir={tmp_path / 'none'}").refusal == (
        f"--workdir={tmp_path / 'none'}: no such directory; accepted: where runs are"
    )


# ------------------------------------------------------------------------- event files


def scalars(path):
    """(step, tag, number) of an event file, read as its format says: length, check, message."""
    from tensorboardX.proto.event_pb2 import Event

    raw, found = path.read_bytes(), []
    while raw:
        (length,) = struct.unpack("<Q", raw[:8])
        event = Event.FromString(raw[12 : 12 + length])
        found += [(event.step, each.tag, each.simple_value) for each in event.summary.value]
        raw = raw[16 + length :]
    return found


def logged(workdir):
    """A run of two seeds whose last line was cut short."""
    run = RunDirectory(workdir, "variants", "mine")
    row = {"corpus": "/data/books.txt", "variant": "softmax", "seeds": [3, 5], "step": 7}
    run.log(row | {"loss": [2.5, 1.25], "tokens_per_second": 9.0})
    run.log(row | {"step": 8, "loss": [2.0, None], "measures": {"top1@block_out": [4.0, 8.0]}})
    run.log({"phase": "timed"})
    run._metrics.write(json.dumps(row)[:20])
    run._metrics.close()


def test_what_training_logged_as_event_files(run_runs, tmp_path):
    logged(tmp_path / "runs")
    out = tmp_path / "events"
    outcome = run_runs(f"--workdir={tmp_path / 'runs'}", f"--tensorboard={out}")
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.endswith(f"5 numbers of 1 runs in {out}\n")
    found = {
        file.parent.relative_to(out).as_posix(): scalars(file) for file in out.rglob("events.*")
    }
    assert found == {
        "mine/books-txt-softmax/seed-3": [
            (7, "loss", 2.5), (8, "loss", 2.0), (8, "measures/top1_block_out", 4.0)
        ],
        "mine/books-txt-softmax/seed-5": [(7, "loss", 1.25), (8, "measures/top1_block_out", 8.0)],
    }  # fmt: skip
    again = run_runs(f"--workdir={tmp_path / 'runs'}", f"--tensorboard={out}")
    assert "it exists; accepted: a directory that is not there yet" in again.refusal


def test_two_corpora_of_one_name_are_two_models(run_runs, tmp_path):
    """As their directories below models/ are."""
    run = RunDirectory(tmp_path / "runs", "variants", "both")
    for at in ("/a/text", "/b/text"):
        run.log({"corpus": at, "variant": "softmax", "seeds": [0], "step": 1, "loss": [2.0]})
    run._metrics.close()
    out = tmp_path / "events"
    assert run_runs(f"--workdir={tmp_path / 'runs'}", f"--tensorboard={out}").status == 0
    assert {path.name for path in (out / "both").iterdir()} == {"text-softmax", "text-1-softmax"}


def test_studies_have_names_of_their_own():
    assert study_names(["x/a-2", "a", "b/a"]) == ["a-2", "a", "a-3"]
    assert study_names(["a", "x/a", "y/a", "***"]) == ["a", "a-1", "a-2", "corpus"]


@pytest.mark.parametrize("line", ["{no JSON}", "7"])
def test_a_damaged_log_is_one_line(run_runs, tmp_path, monkeypatch, line):
    """Before anything is written."""
    monkeypatch.setitem(sys.modules, "tensorboardX", SimpleNamespace(SummaryWriter=None))
    logged(tmp_path)
    log = tmp_path / "variants" / "mine" / "metrics.jsonl"
    log.write_text(log.read_text().replace('{"phase": "timed"}', line))
    outcome = run_runs(f"--workdir={tmp_path}", f"--tensorboard={tmp_path / 'events'}")
    accepted = "lines of JSON, as a training logs them"
    assert outcome.refusal == f"{log}: line 3 is none; accepted: {accepted}"


@pytest.mark.parametrize("flag", ["json", "csv", "markdown", "wide"])
def test_event_files_are_no_table(run_runs, tmp_path, flag):
    outcome = run_runs(f"--workdir={tmp_path}", f"--tensorboard={tmp_path}/a", f"--{flag}")
    assert outcome.refusal == f"--{flag}: no effect; accepted: without --tensorboard"


def test_event_files_need_their_package(run_runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    logged(tmp_path)
    outcome = run_runs(f"--workdir={tmp_path}", f"--tensorboard={tmp_path / 'events'}")
    assert "needs the package tensorboardX: pip install tensorboardX" in outcome.refusal
