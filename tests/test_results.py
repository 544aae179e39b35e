"""Run directories and records: whole or absent, and never a number that JSON does not know."""

import dataclasses
import datetime
import errno
import json
import math
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax import results
from sysout_jax.errors import InputError, Preempted
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.stored import from_record
from sysout_jax.results import RunDirectory, named_run, plain, provenance, read_record, write_json
from sysout_jax.training.optimizer import OptimizerConfig
from tests.refusing import refusal

ROOT = Path(__file__).parents[1]


class Noon(datetime.datetime):
    """A clock that stands still."""

    @classmethod
    def now(cls, tz=None):
        return cls(2031, 5, 7, 12, 0, 0, tzinfo=tz)


@pytest.fixture
def noon(monkeypatch):
    monkeypatch.setattr(results.datetime, "datetime", Noon)


@pytest.fixture
def open_run():
    """RunDirectory, its log closed after the test: only `record` closes it."""
    opened = []

    def open_run(*arguments):
        opened.append(RunDirectory(*arguments))
        return opened[-1]

    yield open_run
    for run in opened:
        run._metrics.close()


def listing(directory):
    return sorted(path.name for path in Path(directory).iterdir())


# ------------------------------------------------------------------------- the directory


def test_runs_of_one_second_do_not_collide(tmp_path, noon, open_run):
    runs = [open_run(tmp_path / "work dir", "study") for _ in range(3)]
    names = ["20310507-120000", "20310507-120000-2", "20310507-120000-3"]
    assert [run.path.name for run in runs] == names
    assert listing(tmp_path / "work dir" / "study") == [*names, "latest"]
    assert open_run(tmp_path / "work dir", "other").path.name == names[0]


def test_a_run_never_takes_anothers_directory(tmp_path, noon):
    for suffix in ("", *(f"-{n}" for n in range(2, 100))):
        (tmp_path / "study" / f"20310507-120000{suffix}").mkdir(parents=True)
        (tmp_path / "study" / f"20310507-120000{suffix}" / "metrics.jsonl").touch()
    with pytest.raises(InputError, match=r"workdir=.*File exists"):
        RunDirectory(tmp_path, "study")


def test_a_work_directory_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    workdir = tmp_path / "file" / "below"
    said = f"workdir={workdir}: Not a directory; accepted: a directory that is writable"
    assert refusal(RunDirectory, workdir, "study") == said


def test_metrics_grow_by_whole_lines(tmp_path, open_run):
    run = open_run(tmp_path, "study")
    for step in range(3):
        run.log({"step": step, "loss": np.float32([1.5, math.nan]), "seeds": (1, 2)})
        lines = (run.path / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(step + 1))
    assert json.loads(lines[0]) == {"step": 0, "loss": [1.5, None], "seeds": [1, 2]}


@pytest.mark.parametrize(
    ("of", "name"),
    [
        (["backcopy-softmax", "backcopy-softmax"], "20310507-120000-backcopy-softmax"),
        (["EleutherAI/pythia 1b", "ß"], "20310507-120000-EleutherAI-pythia-1b"),
        (["../..", ".hidden"], "20310507-120000-..-..-.hidden"),
        (["x" * 300], "20310507-120000-" + "x" * 60),
    ],
)
def test_a_run_is_named_after_its_models(tmp_path, noon, of, name):
    with RunDirectory(tmp_path, "study", of=of).record("study"):
        assert listing(tmp_path / "study") == [name, "latest"]


def unlinkable(path, target):
    raise PermissionError(errno.EPERM, "Operation not permitted")


@pytest.mark.parametrize("links", [True, False])
def test_latest_is_the_run_begun_last(tmp_path, open_run, monkeypatch, links):
    """As a link or, where the file system has none, as a file."""
    if not links:
        monkeypatch.setattr(Path, "symlink_to", unlinkable)
    latest = tmp_path / "study" / "latest"
    for name in (None, "a", "b/shard-0-of-2", None):
        run = open_run(tmp_path, "study", name)
        assert latest.is_symlink() == links
        for below in (".", "models/softmax"):
            assert Path(named_run(str(latest / below))) == run.path / below
    run._metrics.close()
    RunDirectory(tmp_path, "study", "c")._metrics.close()
    RunDirectory(tmp_path, "study", run.path.name)._metrics.close()
    assert named_run(str(latest)) == str(run.path)
    assert not list((tmp_path / "study").glob(".*"))


def test_what_latest_does_not_stand_for(tmp_path):
    gone = ("~nouser-of-this/latest", str(tmp_path / "latest"), "x" * 5000 + "/latest")
    for path in ("latest", "", "gpt2", *gone):
        assert named_run(path) == path
    (tmp_path / "study" / "latest").mkdir(parents=True)
    assert named_run(str(tmp_path / "study" / "latest")) == str(tmp_path / "study" / "latest")
    with RunDirectory(tmp_path, "study").record("study"):
        assert (tmp_path / "study" / "latest").is_dir()  # of the user: left alone


MANY = """
import sys
from sysout_jax.files import write_text
from sysout_jax.results import RunDirectory
from pathlib import Path

for n in range(40):
    write_text(Path(sys.argv[1]) / "shared.json", sys.argv[2] * 10000)
    RunDirectory(sys.argv[1], "study", f"{sys.argv[2]}{n}")
"""


def test_several_runs_at_once(tmp_path):
    """Each file is one writer's whole, and latest one of the runs, at any time."""
    command = [sys.executable, "-c", MANY, str(tmp_path)]
    writers = [subprocess.Popen([*command, name], cwd=ROOT) for name in "ab"]
    latest, shared = tmp_path / "study" / "latest", tmp_path / "shared.json"
    while any(writer.poll() is None for writer in writers):
        if shared.exists():
            assert shared.read_text() in ("a" * 10000, "b" * 10000)
        if latest.is_symlink():
            assert latest.is_dir()
    assert [writer.returncode for writer in writers] == [0, 0]
    assert not [path for path in tmp_path.rglob(".*")]
    assert named_run(str(latest)) in {str(tmp_path / "study" / f"{name}39") for name in "ab"}


# ------------------------------------------------------------------------- JSON


@dataclasses.dataclass(frozen=True)
class Example:
    name: str
    inner: ModelConfig
    values: tuple[float, ...]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, None),
        (math.inf, None),
        (-math.inf, None),
        (np.float32("nan"), None),
        (jnp.asarray([1.0, jnp.inf]), [1.0, None]),
        (np.arange(6).reshape(2, 3), [[0, 1, 2], [3, 4, 5]]),
        (np.asarray(7, np.int64), 7),
        (jnp.asarray([0.5], jnp.bfloat16), [0.5]),
        (np.asarray([True, False]), [True, False]),
        (1.23456789, 1.23457),
        (np.float32(0.1), 0.1),
        (1.23456789e-30, 1.23457e-30),
        (123456789, 123456789),
        ({1: {"a": (1, 2)}}, {"1": {"a": [1, 2]}}),
        (Path("a") / "b", "a/b"),
        (None, None),
        ("text", "text"),
        (True, True),
        (0.0, 0.0),
    ],
    ids=repr,
)
def test_plain(value, expected):
    found = plain(value)
    assert found == expected
    assert type(found) is type(expected)
    assert json.loads(json.dumps(found, allow_nan=False)) == expected


def test_dataclasses_become_mappings(tmp_path):
    path = write_json(tmp_path / "a.json", Example("x", ModelConfig(width=6), (0.5, math.nan)))
    content = json.loads(path.read_text())
    assert content["values"] == [0.5, None]
    assert from_record(content["inner"]) == ModelConfig(width=6)


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        {"a": {}, "b": []},
        {"a": {"b": {"c": [1, 2]}}, "d": "e"},
        [[1, 2], [3]],
        [{"a": [[]]}, [], "x"],
        {'quoted "key"\n': 'a "text"\n with é'},
        3,
        None,
    ],
    ids=repr,
)
def test_the_layout_is_json(tmp_path, value):
    assert json.loads(write_json(tmp_path / "a.json", value).read_text()) == value


def test_rows_of_numbers_are_one_line(tmp_path):
    path = write_json(tmp_path / "a.json", {"a": {"b": [[1, 2], [3, 4]]}, "c": [1.5, 2.5]})
    assert path.read_text() == (
        '{\n "a": {\n  "b": [\n   [1, 2],\n   [3, 4]\n  ]\n },\n "c": [1.5, 2.5]\n}\n'
    )


# ------------------------------------------------------------------------- whole or absent


def full_disk(path, text):
    with open(path, "wb") as file:
        file.write(text[: len(text) // 2])
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_a_failing_write_keeps_the_old_file(tmp_path, monkeypatch):
    target = write_json(tmp_path / "a.json", {"old": 1})
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", full_disk)
        with pytest.raises(OSError, match=r"No space left on device: .*/a\.json"):
            write_json(target, {"new": 2})
    assert json.loads(target.read_text()) == {"old": 1}
    assert listing(tmp_path) == ["a.json"]


def test_a_failing_rename_keeps_the_old_file(tmp_path):
    (tmp_path / "a.json").mkdir()
    with pytest.raises(OSError, match=r"a\.json"):
        write_json(tmp_path / "a.json", {"new": 2})
    assert listing(tmp_path) == ["a.json"]


def test_what_json_does_not_know_leaves_nothing(tmp_path):
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"value": object()})
    assert listing(tmp_path) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_full_disk_surfaces_from_the_log(tmp_path):
    run = RunDirectory(tmp_path, "study")
    run._metrics.close()
    run._metrics = open("/dev/full", "w")  # noqa: SIM115
    with pytest.raises(OSError, match=r"No space left on device: .*/metrics\.jsonl"):
        run.log({"step": 1})
    with pytest.raises(OSError, match="No space left on device"):
        run._metrics.close()


def test_a_full_disk_surfaces_from_the_record(tmp_path, monkeypatch):
    run = RunDirectory(tmp_path, "study")
    monkeypatch.setattr(Path, "write_bytes", full_disk)
    with pytest.raises(OSError, match="No space left on device"), run.record("study"):
        pass
    assert listing(run.path) == ["metrics.jsonl"]


# ------------------------------------------------------------------------- the record


def test_a_complete_record(tmp_path):
    run = RunDirectory(tmp_path, "study")
    with run.record("study", labels={"a": "A"}) as record:
        record["numbers"] = jnp.asarray([1.0, jnp.nan])
        assert not (run.path / "result.json").exists()
        time.sleep(0.01)
    found = read_record(run.path)
    assert (found["experiment"], found["status"]) == ("study", "complete")
    assert (found["labels"], found["numbers"]) == ({"a": "A"}, [1.0, None])
    assert 0.01 <= found["seconds"] < 10
    assert "reason" not in found
    assert listing(run.path) == ["metrics.jsonl", "result.json"]


@pytest.mark.parametrize(
    ("error", "status", "reason"),
    [
        (ArithmeticError("loss is nan at step 3"), "failed", "loss is nan at step 3"),
        (KeyboardInterrupt(), "interrupted", ""),
        (SystemExit(3), "failed", "3"),
        (Preempted("asked to stop"), "preempted", "asked to stop"),
    ],
    ids=["failed", "interrupted", "exit", "preempted"],
)
def test_a_record_of_a_run_that_ended_early(tmp_path, error, status, reason):
    run = RunDirectory(tmp_path, "study")

    def body():
        with run.record("study", done=[]) as record:
            record["done"].append("the first")
            raise error

    with pytest.raises(type(error)) as caught:
        body()
    assert caught.value is error
    found = read_record(run.path)
    assert (found["status"], found["reason"]) == (status, reason)
    assert found["done"] == ["the first"]
    assert found["seconds"] >= 0


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (None, "No such file or directory; accepted: a run directory"),
        ('{"a": 1', "; accepted: a run directory with its result.json"),
        ("", "; accepted: a run directory with its result.json"),
        ("[1, 2]", "a JSON list; accepted: a run directory with its result.json"),
        ("{}", "nothing is in it; accepted: a run directory with its result.json"),
        (b"\xff\xfe", "; accepted: a run directory with its result.json"),
    ],
    ids=["missing", "cut short", "empty", "a list", "an empty mapping", "binary"],
)
def test_records_that_cannot_be_read(tmp_path, content, wanted):
    if content is not None:
        raw = content if isinstance(content, bytes) else content.encode()
        (tmp_path / "result.json").write_bytes(raw)
    message = refusal(read_record, tmp_path)
    assert message.startswith(f"{tmp_path / 'result.json'}: ")
    assert wanted in message


# ------------------------------------------------------------------------- provenance


def test_provenance(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/opt/somewhere/program.py", "--steps=3", "--corpus=a b"])
    found = provenance()
    assert found["command"].startswith("python")
    assert found["command"].endswith(" --steps=3 '--corpus=a b'")
    assert "/opt/somewhere" not in found["command"]
    assert set(found["libraries"]) == {"jax", "jaxlib", "flax", "optax", "numpy"}
    assert found["libraries"]["jax"] == jax.__version__
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["device"]["platform"] == jax.devices()[0].platform
    assert found["device"]["count"] == jax.device_count()
    assert found["device"]["kind"]
    assert found["device"]["cpu_cores"] >= 1
    started = datetime.datetime.strptime(found["started"], "%Y-%m-%dT%H:%M:%S%z")
    assert abs((datetime.datetime.now(datetime.UTC) - started).total_seconds()) < 60
    assert json.loads(json.dumps(found)) == found


def test_the_command_can_be_typed_again(monkeypatch):
    class Main:
        __spec__ = type("Spec", (), {"name": "experiments.variants"})

    monkeypatch.setitem(sys.modules, "__main__", Main)
    monkeypatch.setattr(sys, "argv", ["/opt/clone/experiments/variants.py", "--smoke"])
    assert provenance()["command"] == "python -m experiments.variants --smoke"


def git(directory, *arguments):
    identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    done = subprocess.run(
        ["git", "-C", str(directory), *identity, *arguments],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def test_the_commit_is_that_of_the_clone_of_this_file(tmp_path, monkeypatch):
    """A clone of its own: whether this one is a clone, and dirty, is not for a test to assume."""
    monkeypatch.setattr(results, "__file__", str(tmp_path / "sysout_jax" / "results.py"))
    assert provenance()["code"] == {"commit": None, "dirty": None}
    git(tmp_path, "init", "-q")
    (tmp_path / "a").write_text("a")
    git(tmp_path, "add", "a")
    git(tmp_path, "commit", "-q", "-m", "a")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert len(commit) == 40
    assert provenance()["code"] == {"commit": commit, "dirty": False}
    (tmp_path / "a").write_text("b")
    assert provenance()["code"] == {"commit": commit, "dirty": True}
    monkeypatch.setenv("PATH", "")
    assert provenance()["code"] == {"commit": None, "dirty": None}


def test_a_run_goes_on_in_its_own_directory(tmp_path):
    begun = RunDirectory(tmp_path, "probe", "mine")
    begun.log({"step": 1})
    begun._metrics.write('{"step": 2, "lo')  # as a kill leaves it
    begun._metrics.close()
    again = RunDirectory(tmp_path, "probe", "mine")
    again.log({"step": 2})
    with again.record("probe", found=7):
        pass
    assert read_record(begun.path)["found"] == 7
    assert (begun.path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'


def test_a_directory_is_of_one_run_at_a_time(tmp_path):
    """A second run is refused in one line and changes nothing; a dead one holds nothing."""
    first = RunDirectory(tmp_path, "probe", "mine")
    first.write_config(OptimizerConfig(lr=0.123456789))
    first.log({"step": 1})
    message = f"{first.path}: another run is writing to it; accepted: a directory of its own"
    assert refusal(RunDirectory, tmp_path, "probe", "mine") == message
    first.log({"step": 2})
    first._metrics.close()  # as the kernel does when a process dies
    second = RunDirectory(tmp_path, "probe", "mine")
    assert (first.path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    second.forget_log()
    second.log({"step": 3})
    second._metrics.close()
    assert (first.path / "metrics.jsonl").read_text() == '{"step": 3}\n'
    # What a run goes on from has every digit.
    assert json.loads((first.path / "config.json").read_text())["lr"] == 0.123456789
