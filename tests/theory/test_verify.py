"""Every statement holds and its control fails; the binary says so and exits accordingly."""

import importlib
import inspect
import json
import math
import os
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from theory import check, readme, verify

ROOT = Path(__file__).parents[2]
ENV = os.environ | {"JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "xla")}
RECORD = json.loads(readme.RECORD.read_text())


@pytest.mark.parametrize("id", check.statements())
def test_statement_holds(id, monkeypatch):
    """And each of its bounds is compared as an identity where it is attained."""
    bounds = []

    def compare(*args, error=check.relative, **rest):
        kinds = error if isinstance(error, Mapping) else defaultdict(lambda: error)
        found = check.compare(*args, error=error, **rest)
        names = [part.name for part in found if not part.name.endswith(check.TIGHT)]
        bounds.extend(name for name in names if kinds[name] in (check.at_least, check.at_most))
        return found

    statement = check.statements()[id]
    module = inspect.getmodule(statement.parts)
    if hasattr(module, "compare"):
        monkeypatch.setattr(module, "compare", compare)
    found = statement(jax.random.key(7), quick=True)
    assert found.passed, found
    assert found.id == id
    assert found.instances >= 1
    names = {part.name for part in found.parts}
    assert {name + check.TIGHT for name in bounds} <= names
    # README.md shows a record: it is of what is checked today.
    (shown,) = (each for each in RECORD["checks"] if each["id"] == id)
    assert shown["claim"] == found.claim
    assert names <= {part["name"] for part in shown["parts"]}


def edges():
    """Statements with the shape that --quick leaves out first: one position, or one key."""
    for id, each in check.statements().items():
        module = importlib.import_module(inspect.getmodule(each.parts).__name__)
        if hasattr(module, "draw") and hasattr(module, "SHAPES"):
            yield pytest.param(module, id=id)


@pytest.mark.parametrize("module", list(edges()))
def test_the_smallest_shape(module, monkeypatch):
    """Only the statement itself: what an assumption excludes may not be possible there."""
    monkeypatch.setattr(module, "SHAPES", module.SHAPES[:1])
    for part in module.verify(jax.random.key(3), quick=True).parts:
        assert part.max_error <= part.tolerance, part


def run(*flags):
    return subprocess.run(
        [sys.executable, "-m", "theory.verify", *flags],
        cwd=ROOT, env=ENV, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_record_is_json_and_figures_are_drawn(tmp_path):
    done = run("--only=D3", "--quick", "--json", f"--figures={tmp_path / 'figures'}")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [each["id"] for each in found["checks"]] == ["D3"]
    assert found["checks"][0]["passed"] is True
    assert found["quick"] is True
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        "spectral-bound.png", "spectral-bound.pdf",
    }  # fmt: skip


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    done = run("--only=D3", f"--figures={tmp_path / 'file' / 'figures'}")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: --figures=")
    assert len(done.stderr.splitlines()) == 1


def test_an_interrupt_is_one_line():
    # A shell's background jobs ignore SIGINT, and so would what they start.
    ours = signal.signal(signal.SIGINT, signal.default_int_handler)
    begun = subprocess.Popen(
        [sys.executable, "-m", "theory.verify", "--only=D3,E2,F2"],
        cwd=ROOT, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    signal.signal(signal.SIGINT, ours)
    begun.stdout.readline()  # the first statement is done, others have begun
    begun.send_signal(signal.SIGINT)
    _, error = begun.communicate(timeout=300)
    assert begun.returncode == 130, error
    assert error.splitlines()[-1].startswith("error: interrupted after ")


def test_a_process_that_is_killed_is_one_line():
    begun = subprocess.Popen(
        [sys.executable, "-m", "theory.verify", "--only=D3,E2,F2"],
        cwd=ROOT, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    begun.stdout.readline()
    children = Path(f"/proc/{begun.pid}/task/{begun.pid}/children").read_text().split()
    workers = [int(x) for x in children if "spawn_main" in Path(f"/proc/{x}/cmdline").read_text()]
    os.kill(workers[0], signal.SIGKILL)
    _, error = begun.communicate(timeout=300)
    assert begun.returncode == 1, error
    assert error.splitlines()[-1].startswith("error: a process was killed")


@pytest.mark.parametrize("flag", ["--only=Z9", "A1", "--only=A1,", "--only="])
def test_an_unknown_statement_is_one_line(flag):
    done = run(flag)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert len(done.stderr.splitlines()) == 1


def part(error, control):
    return check.Part("x", 1, error, 1e-3, control)


@pytest.mark.parametrize("broken", [0, 1])
def test_nan_of_any_shape_passes_nothing(broken):
    def measure(case):
        return {"x": jnp.where(case[0] == broken, jnp.nan, case[1])}

    (found,) = check.compare(
        lambda key, shape, scale: (jnp.asarray(shape), scale), lambda case: {"x": case[1]},
        measure, lambda case: {"x": case[1] + 1.0}, jax.random.key(0), shapes=(0, 1), instances=2,
    )  # fmt: skip
    assert math.isnan(found.max_error)


@pytest.mark.parametrize(
    ("error", "control", "passed"),
    [
        (1e-4, 1.0, True),
        (1e-2, 1.0, False),
        (1e-4, 1e-4, False),
        (float("nan"), 1.0, False),
        (1e-4, float("nan"), False),
    ],
)
def test_a_check_passes_only_if_its_control_fails(error, control, passed):
    made = check.Statement(
        "Z1", "a claim", lambda key, quick: [part(0.0, 1.0), part(error, control)]
    )
    found = made(jax.random.key(0))
    assert found.passed is passed
    assert verify.line(found).startswith("ok" if passed else "FAIL")


@pytest.mark.parametrize(("share", "passed"), [(0.5, True), (0.05, False)])
def test_a_control_has_to_fail_in_a_tenth_of_the_instances(share, passed):
    (found,) = check.compare(
        lambda key, shape, scale: jax.random.uniform(key), lambda x: {"x": x}, lambda x: {"x": x},
        lambda x: {"x": jnp.where(x < share, x + 1.0, x)}, jax.random.key(0), shapes=(0, 1),
    )  # fmt: skip
    assert found.passed is passed


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_weaker_bound_is_noticed_where_it_is_attained(share):
    """The triangle inequality, and half of it."""

    def draw(key, shape, scale):
        return scale * jax.random.normal(key, (2, shape))

    def predict(x):
        return {"norm": share * jnp.linalg.norm(jnp.sum(x, axis=0))}

    def measure(x):
        return {"norm": jnp.sum(jnp.linalg.norm(x, axis=1))}

    def control(x):
        return {"norm": jnp.linalg.norm(x[0]) - jnp.linalg.norm(x[1])}

    def parallel(x):
        return x.at[1].set(2.0 * x[0])

    bound, attained = check.compare(
        draw, predict, measure, control, jax.random.key(0),
        shapes=(3,), error=check.at_least, tight={"norm": parallel},
    )  # fmt: skip
    assert bound.passed
    assert attained.name == "norm: tight"
    assert attained.passed is (share == 1.0)
