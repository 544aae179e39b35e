"""However a command ends, it is in one line: signals, streams that cannot be written, devices."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from experiments import variants
from experiments.cli import ending

ROOT = Path(__file__).parents[2]
TABLE = [sys.executable, "-m", "experiments.variants", "--list", "--markdown"]
SMOKE = [sys.executable, "-m", "experiments.variants", "--smoke", "--corpus=backcopy"]
INTERRUPTED, TERMINATED = "error: interrupted\n", "error: terminated\n"

# SIGINT reaches Python while the garbage collector calls back, as JAX has it call: whatever a
# callback raises is printed and lost.
LOST = """
import gc, signal, sys, time
from absl import flags
from experiments.cli import launch

def main():
    sent = []

    def callback(phase, _):
        if not sent:
            sent.append(phase)
            signal.raise_signal(signal.%s)

    gc.callbacks.append(callback)
    gc.collect()
    for _ in range(100):
        time.sleep(0.01)
    print("went on")

flags.FLAGS(["x"])
sys.exit(launch.guarded(main, ["x"]))
"""


def run(command, **how):
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, **how)


@pytest.mark.parametrize(
    ("name", "status", "said"), [("SIGINT", 130, INTERRUPTED), ("SIGTERM", 143, TERMINATED)]
)
def test_a_signal_in_a_callback_is_not_lost(name, status, said):
    done = run([sys.executable, "-c", LOST % name])
    assert (done.returncode, done.stdout, done.stderr) == (status, "", said)


def interrupted_after(seconds, workdir):
    """Status and stderr of a run that is sent SIGINT so many seconds after its beginning."""
    # A background job of a shell ignores SIGINT, and so would its children.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [*SMOKE, f"--workdir={workdir}"], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    signal.signal(signal.SIGINT, before)
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    return process.returncode, err


@pytest.mark.parametrize("seconds", [0.3, 0.8])
def test_ctrl_c_during_imports(tmp_path, seconds):
    assert interrupted_after(seconds, tmp_path) == (130, INTERRUPTED)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.25 * n for n in range(1, 33)])
def test_ctrl_c_in_the_first_seconds(tmp_path, seconds):
    """During imports, the backend's start, compilation and training."""
    found = interrupted_after(seconds, tmp_path)
    if found[0] == 0:
        pytest.skip("the run was done before")
    assert found == (130, INTERRUPTED)


def test_ignored_ctrl_c_stays_ignored():
    """As nohup and background jobs of a shell have it."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    process = subprocess.Popen(TABLE, cwd=ROOT, stdout=subprocess.PIPE)
    signal.signal(signal.SIGINT, before)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate()
    assert process.returncode == 0
    assert b"context_scale" in out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("command", [TABLE, TABLE[:-1]])
def test_standard_output_on_a_full_disk(command):
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert done.returncode == 1
    assert done.stderr == "error: standard output: No space left on device\n"


@pytest.mark.parametrize("argument", ["--list", "--help", "--helpfull"])
def test_output_that_nobody_reads(argument):
    """As `| head` leaves it."""
    unread, pipe = os.pipe()
    os.close(unread)
    command = [*TABLE[:-1], argument]
    done = subprocess.run(command, cwd=ROOT, stdout=pipe, stderr=subprocess.PIPE, check=False)
    os.close(pipe)
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize(
    ("closed", "arguments", "status", "said"),
    [
        (">&-", TABLE, 0, None),  # what it ends with, as otherwise
        ("<&- >&-", TABLE[:-1], 0, ""),
        (">&-", [*TABLE, "--name="], 2, "error: --name=: empty; accepted: a value, or no --name\n"),
        ("2>&-", [*TABLE, "--name="], 2, ""),
    ],
)
def test_closed_streams(closed, arguments, status, said):
    """As cron jobs and daemons begin."""
    done = run(["sh", "-c", f'"$@" {closed}', "sh", *arguments])
    said = run(arguments).stderr if said is None else said
    assert (done.returncode, done.stderr) == (status, said)


def test_no_file_takes_the_place_of_a_closed_stream():
    """What a library prints to descriptor 1 must not go into a record."""
    script = "import experiments, os; print(os.open(os.devnull, os.O_RDONLY), file=sys.stderr)"
    prepared = f"import sys; sys.argv = ['-m']; {script}"
    done = run(["sh", "-c", '"$@" >&- <&-', "sh", sys.executable, "-c", prepared])
    assert int(done.stderr) > 2


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize(
    "said",
    ["RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\n...",
     "INTERNAL: Failed to load. Out of memory."],
)  # fmt: skip
def test_a_device_without_room(run_variants, monkeypatch, said, several):
    """Of several processes too: none is gone."""

    def full(*_):
        raise jax.errors.JaxRuntimeError(said)

    monkeypatch.setattr(variants, "run", full)
    monkeypatch.setattr(ending.hosts, "is_distributed", lambda: several)
    done = run_variants("--smoke", "--corpus=backcopy")
    assert (done.status, done.err) == (
        1,
        "error: out of memory on the device; accepted: less at a time, by --remat, --accumulate, "
        "--seeds_at_once, --measure_seq_len, --batch_size, --seq_len, as docs/errors.md says\n",
    )


@pytest.mark.parametrize("platform", ["cuda", "nonesuch"])
def test_a_platform_that_is_not_there(tmp_path, platform):
    environment = os.environ | {"JAX_PLATFORMS": platform}
    done = run([*SMOKE, f"--workdir={tmp_path}"], env=environment)
    if done.returncode == 0:
        pytest.skip(f"{platform} is on this machine")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"error: JAX_PLATFORMS={platform}: ")
    assert done.stderr.endswith("; accepted: what this machine has, such as cpu\n")
    assert not list(tmp_path.iterdir())


LIBTPU = """
import os

def get_library_path():
    return os.path.join(os.path.dirname(__file__), "libtpu.so")

os.environ.setdefault("TPU_LIBRARY_PATH", get_library_path())
"""
FINDS = """
import sys
from jax._src.cloud_tpu_init import get_tpu_library_path
from experiments.cli import launch

launch.TPU_CHIPS = ()
launch.launch(lambda: print(get_tpu_library_path()), tpu_compiler=%s)
"""


@pytest.mark.parametrize("wanted", [True, False])
def test_only_plan_looks_for_a_tpu_compiler(tmp_path, wanted):
    package = tmp_path / "libtpu"
    package.mkdir()
    (package / "__init__.py").write_text(LIBTPU)
    (package / "libtpu.so").touch()
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = run([sys.executable, "-c", FINDS % wanted], env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{package / 'libtpu.so' if wanted else None}\n"
