"""Interrupted runs of the variants experiment end with the bits of one that was not."""

import contextlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import variants
from sysout_jax.results import RunDirectory
from sysout_jax.training.checkpoint import load
from sysout_jax.training.states import saved_steps
from tests import quick

ROOT = Path(__file__).parents[2]
TINY = (
    "--corpus=backcopy", "--variants=softmax,context_scale", "--width=8", "--heads=2",
    "--batch_size=3", "--val_batches=2", "--seq_len=7", "--seeds=0,3", "--steps=400",
    "--steps_per_call=10", "--measure_every=200", "--save_every=40",
)  # fmt: skip
# Runs are begun in children and ended in this process: both have to compile alike.
ENV = os.environ | quick.ENVIRONMENT | quick.CACHE


def command(workdir, *arguments):
    return [sys.executable, "-m", "experiments.variants", *TINY, f"--workdir={workdir}", *arguments]


def begin(workdir, *arguments):
    return subprocess.Popen(
        command(workdir, *arguments), cwd=ROOT, env=ENV, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def signalled(patch, number, row):
    """The process sends itself this signal once a run of it has written that many rows.

    Whoever looks at the rows from outside may look too late on a busy machine.
    """
    log, sent = RunDirectory.log, []

    def then(run, content):
        log(run, content)
        if rows(run.path) == row:
            sent.append(time.monotonic())
            os.kill(os.getpid(), number)

    patch.setattr(RunDirectory, "log", then)
    return sent


KILLED = """
import runpy, signal, pytest
from tests.experiments.test_interrupted import signalled
signalled(pytest.MonkeyPatch(), signal.SIGKILL, 51)
runpy.run_module("experiments.variants", run_name="__main__")
"""


def ended(process):
    """Wait for a run, which must end well and in silence."""
    _, err = process.communicate()
    assert (process.returncode, err) == (0, "")


def trained(directory):
    """What a run found, without what clocks say: record, rows, parameters."""
    (study,) = json.loads((directory / "result.json").read_text())["studies"]
    for entry in study["variants"].values():
        assert entry.pop("seconds") > 0
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        assert row.pop("tokens_per_second", 1) > 0
    models = {
        (path.name, seed): jax.tree.map(np.asarray, dict(load(path, seed).params))
        for path in (directory / "models").iterdir()
        for seed in (0, 3)
    }
    return study, sorted(rows, key=lambda row: (row["variant"], row["step"])), models


@pytest.fixture(scope="module")
def whole(run_variants, tmp_path_factory):
    """A run that nothing interrupts, and what it found."""
    workdir = tmp_path_factory.mktemp("whole")
    directory = run_variants(*TINY, f"--workdir={workdir}", "--name=a", drawn=False).directory
    assert not (directory / "states").exists()
    return directory


def same(directory, whole):
    found, expected = trained(directory), trained(whole)
    assert found[0] == expected[0]
    assert found[1] == expected[1]
    jax.tree.map(np.testing.assert_array_equal, found[2], expected[2])


def rows(directory):
    log = directory / "metrics.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


def wait_for_rows(process, directory):
    while process.poll() is None and rows(directory) <= 20:
        time.sleep(0.02)


def test_killed_and_preempted(whole, run_variants, tmp_path, monkeypatch):
    """SIGKILL, SIGTERM, and to the end: parameters, rows and record are the same."""
    directory = tmp_path / "variants" / "a"
    arguments = command(tmp_path, "--name=a")[3:]
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=ROOT, env=ENV)
    assert killed.returncode == -signal.SIGKILL
    assert not (directory / "result.json").exists()
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        json.loads(line)  # whole
    (directory / "metrics.jsonl").write_text("")
    with monkeypatch.context() as patch:
        sent = signalled(patch, signal.SIGTERM, 13)
        outcome = run_variants("--name=a", f"--workdir={tmp_path}")  # its config is that of the run
    assert time.monotonic() - sent[0] < 30  # what machines that are taken away allow
    assert (outcome.status, outcome.err) == (0, "")
    last = outcome.out.splitlines()[-1]
    assert "\ngoes on  " in outcome.out
    assert re.fullmatch(r"asked to stop (at step \d+ of|before) variant \w+", last)
    assert json.loads((directory / "result.json").read_text())["status"] == "preempted"
    states = max(map(saved_steps, directory.glob("states/backcopy/*")), key=len)
    damaged = states[max(states)]  # of a group that has another: a finished one has its last alone
    (damaged / "about.json").write_text("")
    outcome = run_variants("--name=a", f"--workdir={tmp_path}", drawn=False)
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.out.count("cannot be used (about.json is missing or not as it was written)") == 1
    same(directory, whole)
    assert not (directory / "states").exists()


@pytest.mark.parametrize(
    "sent", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_going_on_as_the_run_says(whole, tmp_path, sent):
    """The line that a stopped run prints, given to a shell, ends with the bits of a whole run."""
    status, said = {signal.SIGINT: (130, "error: interrupted\n"), signal.SIGTERM: (0, "")}[sent]
    for attempt in range(3):  # a busy machine may look when SIGTERM has nothing left to stop
        workdir = tmp_path / f"a place's {attempt}"
        process = begin(workdir)
        wait_for_rows(process, workdir / "variants" / "latest")
        process.send_signal(sent)
        out, err = process.communicate(timeout=30)  # within seconds
        assert (process.returncode, err) == (status, said)
        directory = (workdir / "variants" / "latest").resolve()
        if json.loads((directory / "result.json").read_text())["status"] != "complete":
            break
    assert re.fullmatch(r"\d{8}-\d{6}-backcopy", directory.name)
    (told,) = (line for line in out.splitlines() if line.startswith("goes on  "))
    assert all(directory.glob("states/backcopy/*/step-*"))
    subprocess.run(told.removeprefix("goes on  "), shell=True, cwd=ROOT, env=ENV, check=True)
    same(directory, whole)


def test_resuming_from_a_relative_path(whole, run_variants, tmp_path, monkeypatch):
    """Of the latest run, as it is named from where it was begun; or not at all."""
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        signalled(patch, signal.SIGTERM, 21)
        run_variants(*TINY, "--workdir=runs", "--name=a")
    begun = max(saved_steps(Path("runs/variants/a/states/backcopy/softmax-seed-0")))
    outcome = run_variants("--resume_from=runs/variants/latest", "--name=b", drawn=False)
    assert (outcome.status, outcome.err) == (0, "")
    assert "cannot be used" not in outcome.out
    assert begun > 0
    same(Path("runs/variants/b"), whole)
    for state in Path("runs/variants/a/states").glob("backcopy/softmax-seed-0/step-*"):
        (state / "about.json").write_text("")
    outcome = run_variants("--resume_from=runs/variants/a", "--name=c")
    assert outcome.out.strip() == ""
    group = "runs/variants/a/states/backcopy/softmax-seed-0"
    assert outcome.refusal == (
        f"{group}: none of its states is whole; accepted: remove it, and training begins at step 0"
    )
    assert not Path("runs/variants/c").exists()


@pytest.mark.slow
def test_killed_at_twenty_random_times(whole, tmp_path):
    directory, dice = tmp_path / "variants" / "a", random.Random(int(os.environ.get("SEED", "0")))
    begun = time.monotonic()
    ended(begin(tmp_path / "timed", "--name=a"))
    seconds = time.monotonic() - begun
    seen, killed = [], 0
    while killed < 20:
        process = begin(tmp_path, "--name=a")
        time.sleep(dice.uniform(0, seconds))
        process.kill()
        process.communicate()
        if process.returncode == 0:  # it was done before: another run
            same(directory, whole)
            shutil.rmtree(directory)
            continue
        killed += 1
        seen.append([max(saved_steps(path), default=0) for path in directory.glob("states/*/*")])
    print(f"{seconds:.1f} s a run; states after each kill: {seen}")
    ended(begin(tmp_path, "--name=a"))
    same(directory, whole)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 32 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(disk)]
    if os.geteuid() or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here: that needs root")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.slow
def test_a_directory_that_became_read_only(whole, small_disk, run_variants, tmp_path):
    """Its run is refused in a line and can be resumed elsewhere; writable again, it goes on."""
    directory = small_disk / "variants" / "a"
    process = begin(small_disk, "--name=a")
    wait_for_rows(process, directory)
    process.kill()
    process.communicate()

    def remount(how):
        subprocess.run(["mount", "-o", f"remount,{how}", str(small_disk)], check=True)

    remount("ro")
    for arguments in (["--name=a"], ["--smoke", "--corpus=backcopy"]):
        outcome = run_variants(f"--workdir={small_disk}", *arguments)
        assert outcome.refusal == (
            f"--workdir={small_disk}: Read-only file system; accepted: a directory that is writable"
        )
    resume = [f"--resume_from={directory}", f"--workdir={tmp_path}", "--name=b"]
    outcome = run_variants(*resume)
    assert (outcome.status, outcome.err) == (0, "")
    same(tmp_path / "variants" / "b", whole)
    remount("rw")
    ended(begin(small_disk, "--name=a"))
    same(directory, whole)


@pytest.mark.slow
def test_a_disk_that_is_really_full(whole, small_disk):
    """The run ends in one line with its states whole; with room again, the same bits."""
    directory = small_disk / "variants" / "a"
    process = begin(small_disk, "--name=a")
    wait_for_rows(process, directory)
    filler = small_disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    _, err = process.communicate()
    assert process.returncode == 1
    assert re.fullmatch(rf"error: {directory}/\S+: .*No space left on device\n", err), err
    assert any(saved_steps(path) for path in directory.glob("states/*/*"))
    filler.unlink()
    ended(begin(small_disk, "--name=a"))
    same(directory, whole)


# ------------------------------------------------------------------------- what is refused


@pytest.fixture(scope="module")
def stopped(whole, tmp_path_factory):
    """A run directory with its config and no result, and a state that is not whole."""
    directory = tmp_path_factory.mktemp("stopped") / "variants" / "a"
    (directory / "states" / "backcopy" / "softmax-seed-0" / "step-000000040").mkdir(parents=True)
    shutil.copy(whole / "config.json", directory)
    return directory


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--lr=0.5"], ("--lr=0.5: ", "was trained with 0.007", "--init_from")),
        (["--steps=400", "--seeds=0"], ("--seeds=0: ", "was trained with 0,3")),
        (["--width=16"], ("--width=16: ", "was trained with 8")),
        (["--variants=softmax"], ("--variants=softmax: ", "softmax,context_scale")),
        (["--corpus=stdlib"], ("--corpus=stdlib: ", "was trained with backcopy")),
        (["--model=gpt2-tiny"], ("was trained with",)),
        (["--smoke"], ("--", "was trained with")),
    ],
)
@pytest.mark.parametrize("how", ["name", "resume_from"])
def test_flags_that_contradict_the_run(run_variants, stopped, how, arguments, told):
    given = f"--name=a --workdir={stopped.parents[1]}" if how == "name" else f"--{how}={stopped}"
    before = sorted(stopped.parents[1].rglob("*"))
    said = run_variants(*given.split(), *arguments).refusal
    assert all(part in said for part in (*told, str(stopped), "accepted: ")), said
    assert sorted(stopped.parents[1].rglob("*")) == before


@pytest.mark.parametrize("how", ["name", "resume_from"])
def test_a_preset_is_not_of_a_run_without_text(run_variants, stopped, how):
    given = f"--name=a --workdir={stopped.parents[1]}" if how == "name" else f"--{how}={stopped}"
    outcome = run_variants(*given.split(), "--preset=sinks")
    assert outcome.refusal == "--preset=sinks: not of --corpus=backcopy; accepted: with text"


def test_a_complete_run_is_left_alone(run_variants, whole):
    before = {path: path.stat().st_mtime_ns for path in whole.rglob("*")}
    outcome = run_variants("--name=a", f"--workdir={whole.parents[1]}")
    assert (outcome.status, outcome.out) == (0, f"complete {whole}\n")
    assert {path: path.stat().st_mtime_ns for path in whole.rglob("*")} == before
    refused = run_variants(f"--resume_from={whole}").refusal
    assert f"--init_from={whole / 'models'}/NAME" in refused


@pytest.mark.parametrize("content", ["{}", '{"status": "compl', "[]", '{"seconds": 1}'])
def test_a_damaged_record_is_none_of_a_complete_run(
    run_variants, stopped, tmp_path, monkeypatch, content
):
    directory = shutil.copytree(stopped, tmp_path / "variants" / "a")
    (directory / "result.json").write_text(content)
    asked = []
    monkeypatch.setattr(variants, "run", lambda config, console: asked.append(config))
    outcome = run_variants("--name=a", f"--workdir={tmp_path}")
    assert (outcome.status, outcome.err) == (0, "")
    assert [config.studies[0].steps for config in asked] == [400]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"steps": 3}', "a field", "a range"])
def test_a_damaged_config_is_one_line(run_variants, stopped, tmp_path, content):
    directory = shutil.copytree(stopped, tmp_path / "variants" / "a")
    whole = (directory / "config.json").read_text()
    changes = {"a field": whole.replace('"jobs"', '"job"'), "a range": whole.replace("400", "0")}
    (directory / "config.json").write_text(changes.get(content, content))
    for flag in ("--name=a", f"--resume_from={directory}"):
        outcome = run_variants(flag, f"--workdir={tmp_path}")
        assert outcome.refusal.startswith(f"{flag}: config.json: ")
        assert outcome.refusal.count("accepted:") == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        *(
            ([f"--{flag}=", "--smoke"], (f"--{flag}=: empty; accepted: ",))
            for flag in ("redraw", "name", "resume_from", "init_from", "workdir", "model")
        ),
        (
            ["--resume_from=nowhere"],
            ("--resume_from=nowhere: config.json: No such file", "variants"),
        ),
        (["--name=../a"], ("--name=../a: accepted: letters",)),
        (["--name=latest"], ("--name=latest: accepted: letters", "not latest")),
        (["--keep_last=0"], ("--keep_last=0: accepted: ",)),
        (["--init_from=nowhere", "--smoke"], ("nowhere/config.json: No such file", "RUN/models")),
    ],
)
def test_bad_flags_are_one_line(run_variants, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    said = run_variants(*arguments, "--corpus=backcopy").refusal
    assert all(part in said for part in told), said
