"""One `load` for every kind of model, and what it says of what is none."""

import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax import loading
from sysout_jax.errors import InputError
from sysout_jax.families import hub
from sysout_jax.families.verdict import would_load
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import init
from sysout_jax.model.model import Model
from sysout_jax.model.stream import Layers, streamed
from sysout_jax.training.checkpoint import save
from tests import quick
from tests.families.gguf_writing import write_gguf
from tests.refusing import refusal

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = ModelConfig(vocab=17, context=5, layers=1, width=6, heads=2, mlp_width=7)
    one = init(config, jax.random.key(0))
    place = tmp_path_factory.mktemp("run") / "models" / "softmax"
    save(place, config, jax.tree.map(lambda x: jnp.stack([x, 2 * x]), one), (3, 5))
    return place


refused = partial(refusal, so.load)


def test_a_run_of_this_project(run):
    first, second = so.load(run), so.load(run, seed=5)
    np.testing.assert_array_equal(second.params["embed"], 2 * first.params["embed"])
    half = so.load(run, dtype="bfloat16")
    assert half.config.execution.dtype == "bfloat16"
    assert {str(x.dtype) for x in jax.tree.leaves(half.params)} == {"bfloat16"}
    assert "dtype='int8': unknown" in refused(run, dtype="int8")
    with pytest.raises(InputError, match=r"stream: .* has no safetensors"):
        loading.open_layers(run)


SHARDED = """
import json, sys
import jax, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from sysout_jax.loading import load
directory, letter, path, given = json.loads(sys.argv[1])
mesh = Mesh(np.array(jax.devices()), ("model",))
def shard(axes, shape):
    letters = axes.replace("-> ", "").split()
    return NamedSharding(mesh, PartitionSpec(*("model" if x == letter else None for x in letters)))
leaf = load(directory, shard=shard, **given).params
for name in path:
    leaf = leaf[name]
shapes = [part.data.shape for part in leaf.addressable_shards]
print(json.dumps([str(leaf.dtype), shapes, float(np.asarray(leaf).sum())]))
"""


def on_two_devices(directory, letter, *path, **given):
    """Of a tensor that is divided along an axis: its type, its shards, and the sum of all."""
    asked = json.dumps([str(directory), letter, path, given])
    done = subprocess.run(
        [sys.executable, "-c", SHARDED, asked], cwd=ROOT, capture_output=True, text=True,
        env=os.environ | quick.TWO_DEVICES, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


def test_a_mesh_gets_the_shards_of_a_run(run):
    """Each of two devices holds half of the width; the values are those of the seed."""
    path = ("block_0", "mlp", "up")
    dtype, shapes, total = on_two_devices(run, "D", *path, seed=5, dtype="float16")
    assert (dtype, shapes) == ("float16", [[3, 7], [3, 7]])
    up = np.asarray(so.load(run, seed=5).params["block_0"]["mlp"]["up"])
    assert total == pytest.approx(up.sum(), abs=1e-2)


def test_a_published_directory(golden):
    directory, ids, expected = golden("gpt2")
    model = so.load(directory, dtype="float32")
    logits, _ = so.apply(model, jnp.asarray(ids))
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-4)
    assert "is no training run; accepted: no seed" in refused(directory, seed=0)
    assert "revision=main: " in refused(directory, revision="main")
    with pytest.raises(InputError, match="revision=main: "):
        loading.open_layers(directory, revision="main")


STREAMED = (
    "llama", "gpt2", "gemma3", "olmo", "phi", "opt projected, post", "mixtral", "gemma3 with images"
)  # fmt: skip


@pytest.mark.parametrize("case", STREAMED)
def test_streaming_equals_the_records(case, golden):
    """One layer in memory at a time, each part read when it is needed and in that order."""
    directory, ids, expected = golden(case)
    opened, asked = loading.open_layers(directory), []

    def read(top):
        asked.append(top)
        return opened.params(top)

    wanted = dict.fromkeys(("block_in", "attn_weights", "final_norm"))
    logits, taps = streamed(opened.config, read, jnp.asarray(ids), wanted)
    np.testing.assert_allclose(logits, expected["logits"], atol=1e-4)
    layers = opened.config.layers
    np.testing.assert_allclose(taps["block_in"], expected["hidden"][:layers], rtol=1e-4, atol=1e-4)
    if opened.config.embed_width is None:  # the reference shows what it projects that to
        np.testing.assert_allclose(
            taps["final_norm"], expected["hidden"][layers], rtol=1e-4, atol=1e-4
        )
    np.testing.assert_allclose(taps["attn_weights"], expected["attention"], atol=1e-4)
    assert [top for top in asked if "block" in top] == [f"block_{i}" for i in range(layers)]
    tops = {path[0] for path in opened.plan}
    assert tops <= {*asked} <= tops | {"final_norm"}


def test_streaming_edits_and_refusals(golden):
    directory, ids, _ = golden("llama")
    opened, model = loading.open_layers(directory), so.load(directory)

    def halve(value, layer):
        return jnp.where(layer >= 1, 0.5 * value, value)

    edits = {"down_out": so.Edit(halve), "final_norm": so.Edit(halve)}
    logits, _ = streamed(opened.config, opened.params, jnp.asarray(ids), edits=edits)
    np.testing.assert_allclose(logits, so.apply(model, jnp.asarray(ids), edits=edits)[0], atol=1e-5)

    def never(top):
        raise AssertionError(top)

    with pytest.raises(InputError, match="tap attn_gate: this architecture has none"):
        streamed(opened.config, never, jnp.asarray(ids), {"attn_gate": None})


def test_of_a_run_directory_one_model_is_asked_for(run, tmp_path):
    shutil.copytree(run, tmp_path / "models" / "a-softmax")
    shutil.copytree(run, tmp_path / "models" / "b-sigmoid")
    (tmp_path / "config.json").write_text('{"studies": []}')
    assert refused(tmp_path) == (
        f"{tmp_path}: a run, of several models; accepted: models/a-softmax, models/b-sigmoid"
    )
    shutil.rmtree(tmp_path / "models")
    assert "accepted: one that has ended" in refused(tmp_path)


def test_what_is_no_model(tmp_path):
    assert (
        "no such file or directory; accepted: smollm2-135m, gemma3-270m, a run's model"
        in refused(tmp_path / "nosuch")
    )
    for name in ("../nosuch", "~nouser-of-this/model", "a" * 5000):
        assert "no such file or directory" in refused(name)
        assert "no such file or directory" in would_load(name).message
    assert (
        "model=: no such file or directory; accepted: smollm2-135m, gemma3-270m, a run's"
        in refused("")
    )
    assert "accepted: a directory that a training run wrote" in refused(tmp_path)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights" / "model.safetensors").write_bytes(b"")
    assert "model.safetensors but no config.json; accepted" in refused(tmp_path / "weights")
    assert ": weights alone; accepted: the directory" in refused(
        tmp_path / "weights" / "model.safetensors"
    )
    for name in ("config.json", "model.safetensors.index.json", "tokenizer.model"):
        (tmp_path / "weights" / name).write_text("{}")
        assert "one file of a model; accepted: its directory" in refused(
            tmp_path / "weights" / name
        )
    (tmp_path / "config.json").write_text("{}")
    assert "no model_type; accepted: a config.json with one of llama" in refused(tmp_path)
    (tmp_path / "model.pt").write_bytes(b"\x80\x02}q\x00.")
    assert "pickle files can run code" in refused(tmp_path / "model.pt")


# ------------------------------------------------------------------------- the hub


def test_a_hub_id_is_fetched_once_named(golden, monkeypatch, tmp_path):
    """Only safetensors, config and tokenizer files are asked for, at the pinned revision."""
    import huggingface_hub

    directory, _, _ = golden("gpt2")
    shutil.copytree(directory, tmp_path / "snapshot")
    seen = {}

    def snapshot(name, **arguments):
        seen.update(name=name, **arguments)
        return str(tmp_path / "snapshot")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.chdir(tmp_path)
    assert so.load("openai-community/gpt2", revision="607a30d").config.layers == 2
    assert seen["name"] == "openai-community/gpt2"
    assert seen["revision"] == "607a30d"
    assert seen["allow_patterns"] == list(hub.WANTED)
    fetched = [
        name
        for name in ("config.json", "model.safetensors", "model-00001-of-00002.safetensors",
                     "pytorch_model.bin", "modeling_evil.py", "tokenizer.json",
                     "consolidated.safetensors", "onnx/model.safetensors", "merges.txt")
        if list(huggingface_hub.utils.filter_repo_objects(
            [name], allow_patterns=seen["allow_patterns"], ignore_patterns=seen["ignore_patterns"]))
    ]  # fmt: skip
    assert fetched == ["config.json", "model.safetensors", "model-00001-of-00002.safetensors",
                       "tokenizer.json", "merges.txt"]  # fmt: skip


def test_a_hub_that_cannot_be_reached(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    message = refused("openai-community/gpt2", revision="abc")
    assert message.startswith("model=openai-community/gpt2 at revision abc: not fetched (")
    assert message.endswith("the id of a model on the hub that this machine can reach")


@pytest.fixture
def listed(monkeypatch, tmp_path):
    """A hub whose repository "some/model" has these files, of which none is a safetensors file."""

    def files(*names):
        monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path))
        monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: [*names])
        if "config.json" in names:
            (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')

    return files


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("README.md", "a.gguf", "Q8/b.gguf"), "has no model*.safetensors; accepted: file= one of "
         "a.gguf, Q8/b.gguf"),
        (("1B/config.json", "1B/model.safetensors"), "accepted: file= one of 1B"),
        (("config.json", "pytorch_model.bin"), "pytorch_model.bin: pickle files can run code"),
        (("README.md",), "has no model*.safetensors; accepted: an id that has them"),
    ],
)  # fmt: skip
def test_a_hub_id_without_safetensors_is_told_from_its_list_of_files(listed, files, said):
    listed(*files)
    verdict = would_load("some/model")
    assert not verdict.accepted
    assert said in refused("some/model")
    assert said in verdict.message


def test_a_list_of_files_that_cannot_be_had_changes_nothing(listed, monkeypatch):
    listed("config.json")
    monkeypatch.setattr("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: 1 / 0)
    assert would_load("some/model").accepted
    assert "no model.safetensors and no" in refused("some/model")


@pytest.mark.parametrize("name", ["tokenizer.model", "spiece.model", "vocab.txt"])
def test_a_tokenizer_that_is_not_read_is_said_once(name, golden, tmp_path, listed, caplog):
    """Of a directory, and of an id, whose list of files has it and of which it is not fetched."""
    said = f"{name} is not read; accepted: a tokenizer.json beside it"
    shutil.copytree(golden("gpt2")[0], tmp_path, dirs_exist_ok=True)
    listed("model.safetensors", name)
    assert so.load("some/model").tokenizer is None
    assert caplog.messages == [f"some/model: {said}"]
    (tmp_path / name).write_bytes(b"")
    so.load(tmp_path)
    assert caplog.messages[1:] == [f"{tmp_path}: {said}"]


def test_an_error_of_the_hubs_http_library_is_one_line(monkeypatch):
    class ProxyError(Exception):
        """As httpx has it: of no class of the standard library."""

    def refuse(*_, **__):
        raise ProxyError("407 Proxy Authentication Required")

    monkeypatch.setattr("huggingface_hub.snapshot_download", refuse)
    assert "some/model: not fetched (407 Proxy Auth" in refused("some/model")


@pytest.mark.parametrize(
    ("name", "accepted"),
    [("gpt2", True), ("meta-llama/Llama-2-7b-hf", True), ("./gpt2", False), ("/gpt2", False),
     ("a/b/c", False), ("..", False), ("a/..", False), ("", False), ("a b", False), ("~", False)],
)  # fmt: skip
def test_what_may_be_an_id(name, accepted):
    assert hub.is_hub_id(name) is accepted


# ------------------------------------------------------------------------- GGUF files


@pytest.fixture
def written(golden, tmp_path):
    """LLaMA's record as a GGUF file, and the model that it is."""
    directory, ids, _ = golden("llama")
    return write_gguf(directory, tmp_path / "model.gguf"), so.load(directory), ids


def test_a_gguf_file_whatever_its_name_dtype_and_way_of_reading(written):
    file, model, ids = written
    expected, _ = so.apply(model, ids)
    half = so.load(file, dtype="bfloat16")
    assert {str(x.dtype) for x in jax.tree.leaves(half.params)} == {"bfloat16"}
    opened = loading.open_layers(file)
    found, _ = streamed(opened.config, opened.params, jnp.asarray(ids))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    blob = file.rename(file.with_name("sha256-1a2b"))
    found = so.load(blob)
    assert found.origin.weights == "GGUF F32 (21 F32)"
    assert model.origin.weights == "safetensors (21 F32)"
    np.testing.assert_allclose(so.apply(found, ids)[0], expected, atol=1e-5)


def test_one_of_several_gguf_files(written):
    file, _, _ = written
    place = file.parent
    assert loading.resolve(place).path == file
    other = place / "below" / "other.gguf"
    other.parent.mkdir()
    shutil.copy(file, other)
    assert loading.resolve(place, file="below/other.gguf").path == other
    shutil.copy(file, place / "second.gguf")
    assert "2 GGUF files; accepted: file= one of model.gguf, second.gguf" in refused(place)
    assert so.load(place, file="second.gguf").config.layers == 2
    for name in ("../model.gguf", "/model.gguf", "x/../../model.gguf", "x//y", "", ".", "a\\b"):
        assert f"file={name}: accepted: the name of a .gguf file" in refused(place, file=name)
    assert "accepted: the name of a .gguf file" in refused(place, file="model\n.gguf")
    for name in ("a model (Q4).gguf", "b+c[1].gguf", "ü..gguf"):
        file.rename(place / name)
        assert name in refused(place)
        assert loading.resolve(place, file=name).path == place / name
        (place / name).rename(file)
    assert "file=model.bin: not in" in refused(place, file="model.bin")
    assert "file=third.gguf: not in" in refused(place, file="third.gguf")
    assert "file=model.gguf: not in" in refused(file, file="model.gguf")


def test_one_of_several_folders(golden, tmp_path, monkeypatch):
    """As the 1B trio of Qiu et al. 2025 is published."""
    directory, ids, expected = golden("qwen3 gates by head")
    shutil.copytree(directory, tmp_path / "1B_gate_headwise")
    shutil.copytree(golden("qwen3")[0], tmp_path / "1B_baseline")
    message = refused(tmp_path)
    assert "in folders; accepted: file= one of 1B_baseline, 1B_gate_headwise" in message
    model = so.load(tmp_path, file="1B_gate_headwise")
    np.testing.assert_allclose(so.apply(model, ids)[0], expected["logits"], atol=1e-4)
    assert "file=1B: not in" in refused(tmp_path, file="1B")
    asked = []

    def snapshot(name, revision, allow_patterns, ignore_patterns):
        asked.append((allow_patterns, ignore_patterns))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert so.load("some/models", file="1B_baseline").config.variant == "softmax"
    assert asked == [([f"1B_baseline/{name}" for name in hub.WANTED], [])]


def test_of_a_hub_id_only_the_file_and_its_parts_are_fetched(written, monkeypatch):
    file, _, _ = written
    asked = []

    def snapshot(name, revision, allow_patterns, ignore_patterns):
        asked.append((allow_patterns, ignore_patterns))
        return str(file.parent)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert loading.resolve("some/model", file="model.gguf").path == file
    with pytest.raises(InputError, match="not in"):
        loading.resolve("some/model", file="Q8/big-00002-of-00003.gguf")
    parts = [f"Q8/big-{i:05d}-of-00003.gguf" for i in (1, 2, 3)]
    with pytest.raises(InputError, match="not in"):
        loading.resolve("some/model", file="a [1].gguf")
    assert asked == [(["model.gguf"], ["*/*"]), (parts, []), (["a [[]1].gguf"], ["*/*"])]


@pytest.fixture
def closed():
    """A directory with a file, a folder and a run's params that this user may not read."""
    root, user = os.geteuid() == 0, os.geteuid()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        for folder in ("folder", "whole"):
            (place / folder).mkdir()
            (place / folder / "config.json").write_text('{"model_type": "gpt2"}')
            (place / folder / "model.safetensors").write_bytes(b"")
        (place / "model.gguf").write_bytes(b"GGUF")
        (place / "model.bin").write_bytes(b"x")
        shut = [place / x for x in ("folder", "whole/config.json", "model.gguf", "model.bin")]
        place.chmod(0o755)
        for path in shut:
            path.chmod(0)
        try:
            os.seteuid(65534 if root else user)
            yield place
        finally:
            os.seteuid(user)
            for path in shut:
                path.chmod(0o755)


def test_what_may_not_be_read(closed):
    for name in ("folder", "folder/config.json", "folder/nosuch", "whole", "model.gguf"):
        said = refused(closed / name)
        assert ": Permission denied; accepted: " in said, said
        assert said.startswith(str(closed / name.partition("/")[0]))
        assert "Permission denied" in would_load(str(closed / name)).message, name
        with pytest.raises(InputError, match="Permission denied"):
            loading.open_layers(closed / name)
    assert "Permission denied" in refused(closed / "model.bin")


@pytest.mark.parametrize("source", [None, 3, ["gpt2"]])
def test_what_is_no_name(source):
    with pytest.raises(InputError, match="accepted: a name or a path"):
        inspect.unwrap(so.load)(source)


def test_what_is_saved_is_loaded(tmp_path):
    """Untrained and converted models too; what is there is not written over."""
    config = ModelConfig(vocab=9, layers=1, width=8, heads=2)
    model = so.init(config, seed=7)
    same = init(config, jax.random.key(7))
    jax.tree.map(np.testing.assert_array_equal, model.params, same)
    converted = so.convert(model, prefix=[3]).model
    for name, each in (("one", model), ("two", converted)):
        so.save(each, tmp_path / name)
        again = so.load(tmp_path / name)
        assert again.config == each.config
        jax.tree.map(np.testing.assert_array_equal, again.params, each.params)
    with pytest.raises(InputError, match="one: exists; accepted: one that is not there yet"):
        so.save(model, tmp_path / "one")


def test_a_model_that_is_read_layer_by_layer_is_not_saved(tmp_path):
    lazy = Model(ModelConfig(), Layers(lambda name: None, ("embed",)), None)
    with pytest.raises(InputError, match="model='gpt2': accepted: what load returns"):
        inspect.unwrap(so.save)("gpt2", tmp_path / "lazy")
    with pytest.raises(InputError, match="model: it is read layer by layer"):
        so.save(lazy, tmp_path / "lazy")
