"""Several processes over loopback give the losses of one, and end together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from sysout_jax.data import load_corpus
from sysout_jax.data.backcopy import Backcopy
from sysout_jax.errors import InputError
from sysout_jax.training import hosts
from sysout_jax.training.checkpoint import load

ROOT = Path(__file__).parents[2]
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def begin(processes, mesh, parallel="jit", devices=1, steps=4, measures=False):
    """The processes of a run, started."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    asked = {
        "devices": devices,
        "mesh": mesh,
        "parallel": parallel,
        "steps": steps,
        "measures": measures,
    }
    if processes > 1:
        asked |= {"coordinator": f"127.0.0.1:{port}", "processes": processes}
    return [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.on_hosts",
             json.dumps(asked | ({"process": n} if processes > 1 else {}))],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"XLA_FLAGS": QUICK},
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


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("host", 2, 0), "--coordinator=host: accepted: HOST:PORT, or auto"),
        (("host:1", None, 0), "--processes=None: accepted"),
        (("host:1", 2, 2), "--process=2: accepted: from 0 to 1"),
        ((None, 2, None), "--processes=2: accepted: with --coordinator=HOST:PORT"),
        (("auto", None, 1), "--process=1: accepted: with --coordinator=HOST:PORT"),
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


@pytest.mark.slow
def test_a_study_of_two_processes_leaves_one_record_and_its_model(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "experiments.variants", "--smoke", "--corpus=backcopy",
             "--variants=softmax", "--seeds=0", "--jobs=1", "--mesh=data=2", "--processes=2",
             f"--coordinator=127.0.0.1:{port}", f"--process={n}", f"--workdir={tmp_path}"],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env=os.environ | {"XLA_FLAGS": QUICK},
        )
        for n in range(2)
    ]  # fmt: skip
    for process in started:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    (run,) = (tmp_path / "variants").iterdir()
    assert json.loads((run / "result.json").read_text())["status"] == "complete"
    assert load(run / "models" / "backcopy-softmax").config.variant == "softmax"
