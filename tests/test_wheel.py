"""The wheel in an environment that has its dependencies and no clone: `sysout NAME`."""

import json
import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONFIG = {"model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "n_embd": 768,
          "n_layer": 12, "n_head": 12}  # fmt: skip


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(place)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(place.glob("*.whl"))


@pytest.fixture(scope="module")
def sysout(wheel, tmp_path_factory):
    """Calls the installed command from an empty directory."""
    place = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place / "env"], check=True)
    python = place / "env/bin/python"
    install = ["install", "-q", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", "--python", python, *install], check=True)
    site = next((place / "env/lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    empty = place / "empty"
    empty.mkdir()
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [place / "env/bin/sysout", *arguments],
            cwd=empty, env=environment, capture_output=True, text=True,
        )  # fmt: skip

    return call


def test_the_wheel_holds_package_and_commands_alone(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert "sysout_jax/experiments/analyze.py" in names
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"sysout_jax"}


def test_commands_are_listed_and_unknown_ones_are_one_line(sysout):
    said = sysout().stdout
    assert "analyze" in said
    assert "variants" in said
    wrong = sysout("analyse")
    assert wrong.returncode != 0
    assert wrong.stderr.startswith("error: command='analyse': unknown; accepted: analyze, ")
    assert wrong.stderr.count("\n") == 1


def test_a_command_runs_without_a_clone(sysout, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    done = sysout("models", "--check", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("accepted")


def test_what_needs_the_clone_says_so(sysout):
    done = sysout("claims")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.slow
def test_a_model_is_trained_and_analysed_without_a_clone(sysout):
    trained = sysout("variants", "--smoke", "--corpus=backcopy", "--name=first")
    assert trained.returncode == 0, trained.stderr
    found = sysout("analyze", "--model=runs/variants/first", "--variant=softmax", "--smoke")
    assert found.returncode == 0, found.stderr
