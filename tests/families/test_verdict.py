"""Whether files would load, of each form in which models are published, and by the command."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sysout_jax.families.verdict import would_load
from tests.families import gguf_writing

ROOT = Path(__file__).parents[2]


def test_directories_and_config_files(golden, tmp_path):
    directory, _, _ = golden("llama")
    whole, alone = would_load(str(directory)), would_load(str(directory / "config.json"))
    assert (whole.accepted, whole.family) == (alone.accepted, alone.family) == (True, "llama")
    assert whole.message.startswith("layers 2, width 20; safetensors (")
    assert alone.message.endswith("only its config.json was looked at")
    raw = json.loads((directory / "config.json").read_text()) | {"unsloth\x1b[2J": True}
    (tmp_path / "config.json").write_text(json.dumps(raw))
    assert would_load(str(tmp_path)).ignored == (r"unsloth\x1b[2J",)
    (tmp_path / "model.safetensors").write_bytes(b"")
    broken = would_load(str(tmp_path))
    assert not broken.accepted
    assert "0 bytes with a header of 0" in broken.message


def test_what_is_not_there(tmp_path):
    for name in ("", "./nosuch", str(tmp_path / "nosuch")):
        verdict = would_load(name)
        assert not verdict.accepted
        assert "no such file or directory" in verdict.message


def test_the_command(tmp_path):
    """A line each, and as JSON the same in objects; flags may follow the paths."""
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    good.write_text(json.dumps({"model_type": "gpt2", "n_special": 0}))
    bad.write_text(json.dumps({"model_type": "gpt2", "scale_attn_weights": False}))
    command = [sys.executable, "-m", "experiments.models", "--check", str(good), str(bad)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    first, second = done.stdout.splitlines()
    assert "analyze" not in done.stderr  # of a config file there is nothing to analyse
    assert first.startswith(f"accepted  {good}: gpt2, layers 12, width 768;")
    assert first.endswith("; ignored: n_special")
    assert second.startswith(f"refused   {bad}: ")
    assert "scale_attn_weights=false, which is not read here (accepted: true)" in second
    as_json = subprocess.run(
        [*command, "--json"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert [set(each) for each in json.loads(as_json)] == [
        {"path", "accepted", "family", "ignored", "message"}
    ] * 2
    assert [each["accepted"] for each in json.loads(as_json)] == [True, False]
    for bare in (["--check"], ["--check", "--json"]):
        done = subprocess.run([*command[:3], *bare], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode
        assert "Traceback" not in done.stderr


def test_a_directory_of_one_gguf_file_and_of_two(golden, tmp_path):
    """As `so.load` takes it: the only one is meant."""
    pytest.importorskip("gguf")
    directory, _, _ = golden("llama")
    gguf_writing.write_gguf(directory, tmp_path / "one.gguf")
    verdict = would_load(str(tmp_path))
    assert (verdict.accepted, verdict.family) == (True, "llama")
    assert verdict.message.startswith("layers 2, width 20; GGUF ")
    shutil.copy(tmp_path / "one.gguf", tmp_path / "two.gguf")
    assert "2 GGUF files; accepted: file= one of" in would_load(str(tmp_path)).message
