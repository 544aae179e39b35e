"""tools/venv.sh against a stand-in interpreter that only logs what it is asked to do."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
import tomllib
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from sysout_jax.planning.machines import INSTALL

ROOT = Path(__file__).parents[1]
STAND_IN = """#!/bin/sh
case "$*" in
    *sys.version_info*) cat version; [ ! -e too_old ] ;;
    --version) echo Python 3.10.13 ;;
    *ensurepip*) [ ! -e no_ensurepip ] ;;
    "-m venv --clear .venv")
        rm -rf .venv && mkdir -p .venv/bin && cp "$0" .venv/bin/python && echo venv >>log
        sleep 0.02 ;;
    *"pip --disable"*) echo "${*##* }" >>log && [ ! -e offline ] ;;
esac
"""
BASE = ["venv", "requirements.txt"]
DEV = ["requirements-dev.txt"]


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone with nothing in it but the bootstrap."""
    root = tmp_path / "a clone"
    (root / "tools").mkdir(parents=True)
    shutil.copy(ROOT / "tools/venv.sh", root / "tools")
    (root / "requirements.txt").write_text("jax==1\n")
    (root / "requirements-dev.txt").write_text("pytest==1\n")
    (root / "version").write_text("3.12.1 of /usr\n")
    (root / "python").write_text(STAND_IN)
    (root / "python").chmod(0o755)
    return root


def bootstrap(clone: Path, wanted: str, python: str = "./python") -> tuple[list[str], str]:
    """What one call did to .venv, and what it said on stderr."""
    log = clone / "log"
    log.write_text("")
    done = subprocess.run(
        ["sh", "tools/venv.sh", python, wanted], cwd=clone, capture_output=True, text=True
    )
    assert (done.returncode != 0) == bool(done.stderr)
    return log.read_text().split(), done.stderr


def test_each_set_is_installed_once(clone: Path) -> None:
    assert bootstrap(clone, "demo") == (BASE, "")
    assert bootstrap(clone, "demo") == ([], "")
    assert bootstrap(clone, "dev") == (DEV, "")
    assert bootstrap(clone, "dev") == ([], "")
    assert bootstrap(clone, "demo") == ([], "")


@pytest.mark.parametrize(
    ("path", "content"),
    [
        ("version", "3.13.0 of /usr\n"),
        ("version", "3.12.1 of /opt\n"),
        ("requirements.txt", "jax==2\n"),
        (".venv/bin/python", "no interpreter"),
        (".venv/stamp", ""),
    ],
)
def test_a_stale_venv_is_built_anew(clone: Path, path: str, content: str) -> None:
    bootstrap(clone, "dev")
    (clone / path).write_text(content)
    assert bootstrap(clone, "demo") == (BASE, "")
    assert bootstrap(clone, "dev") == (DEV, "")


def test_changed_dev_requirements_matter_to_dev_only(clone: Path) -> None:
    bootstrap(clone, "dev")
    (clone / "requirements-dev.txt").write_text("pytest==2\n")
    assert bootstrap(clone, "demo") == ([], "")
    assert bootstrap(clone, "dev") == (BASE + DEV, "")


def test_a_moved_clone_is_built_anew(clone: Path) -> None:
    bootstrap(clone, "demo")
    assert bootstrap(clone.rename(clone.with_name("moved")), "demo") == (BASE, "")


@pytest.mark.skipif(not shutil.which("flock"), reason="flock is what keeps two makes apart")
def test_two_at_once_build_it_once(clone: Path) -> None:
    command = ["sh", "tools/venv.sh", "./python", "demo"]
    both = [subprocess.Popen(command, cwd=clone, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [one.wait() for one in both] == [0, 0]
    assert (clone / "log").read_text().split() == BASE


@pytest.mark.parametrize(("wanted", "file"), [("demo", BASE[-1]), ("dev", DEV[-1])])
def test_a_failed_install_is_not_trusted(clone: Path, wanted: str, file: str) -> None:
    if wanted == "dev":
        bootstrap(clone, "demo")
    (clone / "offline").touch()
    done, said = bootstrap(clone, wanted)
    assert done[-1] == file
    assert said.startswith(f"Setting up .venv failed at {file}; is the package index reachable?")
    (clone / "offline").unlink()
    assert bootstrap(clone, wanted)[0] == BASE + (DEV if wanted == "dev" else [])


@pytest.mark.parametrize(
    ("fault", "python", "found"),
    [
        ("too_old", "./python", "Python 3.10.13"),
        ("no_ensurepip", "./python", "Python 3.12.1 of /usr without venv or ensurepip"),
        (None, "pythonless", "no Python that runs"),
    ],
)
def test_an_unfit_python_gets_one_line(
    clone: Path, fault: str | None, python: str, found: str
) -> None:
    if fault:
        (clone / fault).touch()
    done, said = bootstrap(clone, "demo", python)
    assert done == []
    assert said.startswith(f"PYTHON={python}: found {found}; needed: Python 3.11 or newer")
    assert said.count("\n") == 1


def pins(python: str) -> dict[str, str]:
    """Package name to the version both requirements files together pin for this Python."""
    lines = [
        Requirement(line)
        for file in ("requirements.txt", "requirements-dev.txt")
        for line in (ROOT / file).read_text().splitlines()
        if line and not line.startswith("#")
    ]
    return {
        canonicalize_name(line.name): str(line.specifier).removeprefix("==")
        for line in lines
        if line.marker is None or line.marker.evaluate({"python_version": python})
    }


def pinned_apart(extra: str) -> list[Requirement]:
    """The lines of an extra's own file, before those that only its packages need."""
    text = (ROOT / f"requirements-{extra}.txt").read_text().partition("\n\n")[0]
    return [Requirement(line) for line in text.splitlines() if not line.startswith("#")]


@pytest.mark.parametrize("extra", ["reference", "docs"])
def test_an_extra_with_a_file_of_its_own_is_pinned_in_its_range(extra: str) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = extras["optional-dependencies"][extra]
    declared = {Requirement(text).name: Requirement(text).specifier for text in texts}
    pinned = pinned_apart(extra)
    assert {one.name for one in pinned} == set(declared)
    for one in pinned:
        assert declared[one.name].contains(str(one.specifier).removeprefix("=="))


def test_docs_are_pinned_as_the_rest_is() -> None:
    """They are installed into the same .venv."""
    here = pins(f"{sys.version_info.major}.{sys.version_info.minor}")
    lines = (ROOT / "requirements-docs.txt").read_text().splitlines()
    for one in (Requirement(line) for line in lines if line and not line.startswith("#")):
        version = str(one.specifier).removeprefix("==")
        assert here.get(canonicalize_name(one.name), version) == version


@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_the_pins_lie_in_the_declared_ranges(python: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    del extras["reference"], extras["docs"]  # pinned apart, above
    del extras["tensorboard"]  # whoever wants it installs it; tests are skipped without
    del extras["pandas"]  # no test installs it: a stand-in serves, and users have their own
    (libtpu,) = map(Requirement, extras.pop("tpu-plan"))  # large: pinned where users are told of it
    told = re.search(r"libtpu==([\d.]+)", INSTALL)
    assert told
    assert libtpu.specifier.contains(told[1])
    pinned = pins(python)
    for text in chain(project["dependencies"], *extras.values()):
        declared = Requirement(text)
        if declared.name != project["name"]:
            assert declared.specifier.contains(pinned[canonicalize_name(declared.name)]), text


def test_whatever_a_pinned_package_needs_is_pinned() -> None:
    pinned = pins(f"{sys.version_info.major}.{sys.version_info.minor}")
    todo = [(name, "") for name in pinned]
    for name, extra in todo:
        for text in importlib.metadata.requires(name) or []:
            need = Requirement(text)
            if need.marker is None or need.marker.evaluate({"extra": extra}):
                assert need.specifier.contains(pinned[canonicalize_name(need.name)]), (name, text)
                todo += [(need.name, wanted) for wanted in need.extras]
