"""Several processes over loopback give the losses of one, and end together."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.data import load_corpus
from sysout_jax.data.backcopy import Backcopy
from sysout_jax.errors import InputError
from sysout_jax.model.decoder import init
from sysout_jax.training import hosts
from sysout_jax.training.checkpoint import load, save
from sysout_jax.training.states import saved_steps
from tests import quick
from tests.training.test_states import TINY

ROOT = Path(__file__).parents[2]


def begin(processes, mesh, parallel="jit", devices=1, steps=4, **more):
    """The processes of a run, started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = {"devices": devices, "mesh": mesh, "parallel": parallel, "steps": steps}
    asked |= dict.fromkeys(("measures", "states", "stop", "poison")) | more
    if processes > 1:
        asked |= {"coordinator": f"127.0.0.1:{port}", "processes": processes}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.on_hosts",
             json.dumps(asked | ({"process": n} if processes > 1 else {}))],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"XLA_FLAGS": quick.UNOPTIMISED},
        )
        for n in range(processes)
    ]  # fmt: skip


def end(started):
    results = []
    for process in started:
        out, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
        results.append(json.loads(out.splitlines()[-1]))
    return results


@cache
def alone(measures=False):
    return end(begin(1, "data=1", measures=measures))[0]


def agree(results, measures=False):
    expected = alone(measures)
    for found in results:
        np.testing.assert_allclose(found["loss"], expected["loss"], atol=1e-5)
        np.testing.assert_allclose(found["val_loss"], expected["val_loss"], atol=1e-5)
        assert found["params"] == pytest.approx(expected["params"], rel=1e-5)
        assert found["measures"].keys() == expected["measures"].keys()
        for name, value in expected["measures"].items():
            np.testing.assert_allclose(found["measures"][name], value, rtol=1e-3, atol=1e-4)


def test_two_processes_train_as_one_and_each_reads_its_half():
    results = end(begin(2, "data=2"))
    agree(results)
    assert [found["read"] for found in results] == [[4], [4]]
    assert alone()["read"] == [8]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "devices", "mesh", "parallel", "read"),
    [
        (4, 1, "data=4", "jit", 2),
        (4, 1, "data=2,fsdp=2", "jit", 2),
        (2, 2, "data=2,tensor=2", "jit", 4),
        (2, 1, "tensor=2", "jit", 8),
        (2, 2, "data=4", "shard_map", 4),
        (2, 2, "data=4", "pmap", 4),
    ],
)
def test_processes_train_as_one(processes, devices, mesh, parallel, read):
    results = end(begin(processes, mesh, parallel, devices, measures=True))
    agree(results, measures=True)
    assert [found["read"] for found in results] == [[read]] * processes


# ------------------------------------------------------------------------- interrupted


def stopped(started):
    """All of them end by themselves, with a state, where one was asked to."""
    for process in started:
        out, err = process.communicate(timeout=300)
        assert (process.returncode, err) == (0, "")
        assert out.splitlines()[-1] == "asked to stop at step 2 of variant context_scale"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parallel", "devices", "mesh"),
    [
        ("jit", 1, "fsdp=2"),
        ("jit", 2, "data=2,fsdp=2"),
        ("shard_map", 1, "data=2"),
        ("pmap", 2, "data=4"),
    ],
)
def test_processes_that_were_stopped_go_on_together_and_alone(tmp_path, parallel, devices, mesh):
    """The one that is told is not the one that writes; the state is put onto one device as well."""
    kept = {"states": str(tmp_path / "states")}
    stopped(begin(2, mesh, parallel, devices, **kept, stop=[1, 2]))
    shutil.copytree(kept["states"], tmp_path / "copy")
    together = end(begin(2, mesh, parallel, devices, **kept))
    agree(together)
    assert together[0]["params"] == together[1]["params"]
    (last,) = saved_steps(tmp_path / "states" / "context_scale-seed-3")
    assert last == 4  # of a run that has ended, its last alone
    agree(end(begin(1, "data=1", states=str(tmp_path / "copy"))))


@pytest.mark.slow
@pytest.mark.parametrize("process", [0, 1])
def test_a_nan_on_one_host_ends_all_at_that_step(process):
    """The loss is of all: every process finds the same, and none waits for another."""
    for found in begin(2, "data=2", poison=[process, 3]):
        _, err = found.communicate(timeout=300)
        assert found.returncode == 1
        assert err.startswith("error: loss is nan at step 4 of seed 3, variant context_scale;")


# ------------------------------------------------------------------------- lost


def when_one_is_lost(victim, how):
    """One of two processes gets a signal: how long the other lives, how it ends, what it says."""
    started = begin(2, "data=2", steps=1_000_000)
    try:
        for _ in range(2):
            assert started[0].stdout.readline()  # the second row: both have compiled
        begun = time.monotonic()
        started[victim].send_signal(how)
        _, err = started[1 - victim].communicate(timeout=300)
        return time.monotonic() - begun, started[1 - victim].returncode, err
    finally:
        for process in started:
            process.kill()
            process.communicate()


@pytest.mark.parametrize(
    ("victim", "how"),
    [
        (1, signal.SIGKILL),
        pytest.param(0, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(1, signal.SIGSTOP, marks=pytest.mark.slow),  # alive, but silent
    ],
)
def test_the_others_stop_when_one_is_lost(victim, how):
    seconds, status, err = when_one_is_lost(victim, how)
    assert seconds < hosts.HEARTBEAT + 10  # usually at once: the connection tells
    assert status == 1
    assert err.splitlines()[-1].startswith("error: another process of this run is gone")


# ------------------------------------------------------------------------- what all do together


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """What came of it in each of two processes, and the model that they began with."""
    model = tmp_path_factory.mktemp("run") / "softmax"
    architecture = TINY.architecture(65)
    keys = jnp.stack([jax.random.key(seed) for seed in (7, 8)])
    params = jax.vmap(lambda key: init(architecture, key))(keys)
    save(model, architecture, params, TINY.seeds)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.on_two", str(port), str(n), str(model)],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for n in range(2)
    ]  # fmt: skip
    return end(started), params


def test_arrays_are_gathered_on_the_hosts(two):
    """One after the other, by a program that is compiled once for all leaves of a shape."""
    for process, found in enumerate(each["gathered"] for each in two[0]):
        assert found["host"] == {"cut": True, "all": True, "too": True, "own": False}
        assert found["sums"] == {"cut": 276.0, "all": 300.0, "too": 276.0, "own": 0.0}
        assert found["compiled"] == 1
        kept = ["own"] if process else ["all", "cut", "own", "too"]
        assert sorted(found["left"]) == kept


def test_a_model_to_begin_with_is_divided_over_processes(two):
    results, params = two
    wanted = sum(float(np.abs(x).sum()) for x in jax.tree.leaves(params))
    for found in results:
        assert found["begun"]["placed"]
        assert found["begun"]["sum"] == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("what", ["config", "text"])
def test_processes_that_were_told_different_things(two, what):
    """All refuse to train, before the first step."""
    for found in two[0]:
        assert found[what] == (
            "process=1: its config or text is not that of process 0; "
            "accepted: the same command, code and text for all"
        )


def test_those_who_are_done_wait_for_who_saves(monkeypatch):
    """Process 0 writes models and draws after the others have nothing left to do: for hours."""
    asked = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **how: asked.update(how))
    monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
    monkeypatch.setattr(hosts, "_end_in_words", lambda: None)
    hosts.connect("auto", None, None)
    assert asked["shutdown_timeout_seconds"] >= 24 * 3600
    assert asked["initialization_timeout"] >= 300
    assert asked["heartbeat_timeout_seconds"] <= 60


def test_hosts_that_nobody_brought_together(monkeypatch):
    """A TPU's runtime knows of all its hosts, though JAX was not told to connect them."""
    monkeypatch.setattr(jax, "process_count", lambda: 4)
    with pytest.raises(
        InputError, match=r"^coordinator: none for a machine of 4 hosts; accepted: auto"
    ):
        hosts.connect(None, None, None)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("host", 2, 0), "coordinator=host: accepted: HOST:PORT, or auto"),
        (("host:1", None, 0), "processes=None: accepted"),
        (("host:1", 2, 2), "process=2: accepted: from 0 to 1"),
        ((None, 2, None), "processes=2: accepted: with coordinator=HOST:PORT"),
        (("auto", None, 1), "process=1: accepted: with coordinator=HOST:PORT"),
    ],
)
def test_flags_that_do_not_go_together(given, said):
    with pytest.raises(InputError, match=said):
        hosts.connect(*given)


@pytest.mark.parametrize("name", ["backcopy", "stdlib"])
def test_rows_of_a_batch_are_those_of_the_whole(name):
    corpus = Backcopy() if name == "backcopy" else load_corpus("stdlib", "bytes")
    whole = corpus.batch("train", 3, 5, 7, 11)
    rows = np.array([1, 2, 6])
    np.testing.assert_array_equal(corpus.batch("train", 3, 5, 7, 11, rows), whole[rows])


# ------------------------------------------------------------------------- the binary


def study(workdir, *arguments, where=(ROOT, ROOT)):
    """Two processes that run experiments.variants together, started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [
        subprocess.Popen(
            [sys.executable, "-m", "experiments.variants", *arguments, "--corpus=backcopy",
             "--variants=softmax", "--width=8", "--seeds=0", "--jobs=1", "--mesh=fsdp=2",
             "--seq_len=7", "--batch_size=4", "--val_batches=1", "--steps=400", "--save_every=20",
             "--steps_per_call=5", "--measure_every=200", "--processes=2", f"--process={n}",
             f"--coordinator=127.0.0.1:{port}", f"--workdir={workdir}"],
            cwd=where[n], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"XLA_FLAGS": quick.UNOPTIMISED, "PYTHONPATH": str(ROOT)},
        )
        for n in range(2)
    ]  # fmt: skip


def results(started):
    found = []
    for process in started:
        out, err = process.communicate(timeout=300)
        found.append((process.returncode, err, out.splitlines()[-1:]))
    return found


def rows(run):
    log = run / "metrics.jsonl"
    return log.read_text().count("\n") if log.exists() else 0


@pytest.mark.slow
def test_a_study_of_two_processes_ends_the_same_however_often_it_was_interrupted(tmp_path):
    """One of them killed, then the one that does not write told to stop, then to the end."""
    whole, run = (tmp_path / name / "variants" / "a" for name in ("whole", "cut"))
    for status, err, _ in results(study(tmp_path / "whole", "--name=a")):
        assert (status, err) == (0, "")
    assert not (whole / "states").exists()
    for how, after in ((signal.SIGKILL, 20), (signal.SIGTERM, 50)):
        started = study(tmp_path / "cut", "--name=a")
        while rows(run) < after and started[1].poll() is None:
            time.sleep(0.02)
        started[1].send_signal(how)
        ends = results(started)
        if how == signal.SIGTERM:
            assert [(status, err) for status, err, _ in ends] == [(0, ""), (0, "")]
            assert all("asked to stop" in line for _, _, (line,) in ends)
        else:
            assert ends[0][0] == 1
            assert "another process of this run is gone" in ends[0][1]
        assert saved_steps(run / "states" / "backcopy" / "softmax-seed-0")
    for status, err, _ in results(study(tmp_path / "cut", "--name=a")):
        assert (status, err) == (0, "")
    a, b = (load(path / "models" / "backcopy-softmax") for path in (whole, run))
    jax.tree.map(np.testing.assert_array_equal, dict(a.params), dict(b.params))
    assert json.loads((run / "result.json").read_text())["status"] == "complete"


@pytest.mark.slow
def test_a_directory_that_not_all_processes_see(tmp_path):
    """Without a name, states are left out; with one, the run is refused."""
    blind = "not seen by process 1"
    (tmp_path / "elsewhere").mkdir()
    for name in ([], ["--name=a"]):
        ends = results(study("runs", *name, where=(tmp_path, tmp_path / "elsewhere")))
        statuses = [status for status, _, _ in ends]
        assert statuses == ([2, 2] if name else [0, 0])
        assert (f"{blind}; accepted: a --workdir that all" in ends[0][1]) == bool(name)
