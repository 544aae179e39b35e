"""Checkpoints on disk: whatever is wrong with one gets one line, and no model."""

import itertools
import json
import random
import struct
import subprocess
import sys
from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sysout_jax as so
from sysout_jax.data import load_tokenizer
from sysout_jax.errors import InputError
from sysout_jax.families import tensor_map
from sysout_jax.families.checkpoint import Checkpoint, load_checkpoint, open_checkpoint
from sysout_jax.families.config_map import read_config
from sysout_jax.families.llama import LLAMA
from sysout_jax.families.table import FAMILIES
from sysout_jax.families.tensors import INDEX, SINGLE
from sysout_jax.families.verdict import would_load
from sysout_jax.model.decoder import init
from tests.refusing import refusal
from tests.test_loading import on_two_devices

CONFIG = {
    "model_type": "llama", "vocab_size": 19, "hidden_size": 22, "intermediate_size": 29,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5,
}  # fmt: skip
ROOT = Path(__file__).parents[2]


@cache
def values():
    """Every stored tensor by name."""
    rng = np.random.default_rng(0)
    layout = tensor_map.layout(LLAMA, read_config(LLAMA, CONFIG))
    return {stored.name: rng.standard_normal(stored.shape).astype(np.float32) for stored in layout}


def write(directory, tensors=None, config=CONFIG):
    directory.mkdir(exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    save_file(values() if tensors is None else tensors, directory / SINGLE)
    return directory


@pytest.fixture
def place(tmp_path):
    return write(tmp_path / "model")


def refused(directory, **arguments):
    message = refusal(load_checkpoint, directory, **arguments)
    assert len(message) < 4000
    return message


def leaves(params):
    return dict(tensor_map.leaves(params))


# ------------------------------------------------------------------------- what is loaded


def test_matrices_are_turned_into_ours(place):
    params = leaves(load_checkpoint(place).params)
    stored = values()["model.layers.1.self_attn.k_proj.weight"]
    np.testing.assert_array_equal(
        params["blocks", "attn", "key"][1], stored.reshape(2, 6, 22).transpose(2, 0, 1)
    )
    out = values()["model.layers.0.self_attn.o_proj.weight"]
    np.testing.assert_array_equal(params["blocks", "attn", "out"][0], out.T.reshape(4, 6, 22))
    np.testing.assert_array_equal(params["head",], values()["lm_head.weight"].T)


@pytest.mark.parametrize("stored", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("wanted", [None, "float32", "float16", "bfloat16"])
def test_dtypes(tmp_path, stored, wanted):
    """Kept as stored, or cast once; fp16 computes in fp32, where outliers do not overflow."""
    kind = np.dtype(getattr(ml_dtypes, stored, None) or stored)
    write(tmp_path / "model", {k: v.astype(kind) for k, v in values().items()})
    model = load_checkpoint(tmp_path / "model", wanted)
    assert {str(x.dtype) for x in jax.tree.leaves(model.params)} == {wanted or stored}
    assert model.config.execution.dtype == (
        "bfloat16" if (wanted or stored) == "bfloat16" else "float32"
    )
    once = values()["model.norm.weight"].astype(kind)
    expected = once.astype(jnp.dtype(wanted or stored))
    np.testing.assert_array_equal(np.asarray(leaves(model.params)["final_norm", "scale"]), expected)


def test_an_unknown_dtype(place):
    assert "dtype='int8': unknown; accepted: float32" in refused(place, dtype="int8")


def shard(directory, parts=3):
    """The checkpoint in several files with an index."""
    names = sorted(values())
    weight_map = {}
    for number in range(parts):
        file = f"model-{number}.safetensors"
        save_file({name: values()[name] for name in names[number::parts]}, directory / file)
        weight_map |= dict.fromkeys(names[number::parts], file)
    (directory / SINGLE).unlink(missing_ok=True)
    (directory / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return weight_map


def test_shards_are_one_model(place):
    whole = leaves(load_checkpoint(place).params)
    shard(place)
    parts = leaves(load_checkpoint(place).params)
    assert whole.keys() == parts.keys()
    for path, value in whole.items():
        np.testing.assert_array_equal(value, parts[path])


def test_parameters_go_where_they_are_sent(place):
    """`shard` sees the axis letters of each parameter, and its sharding is the parameter's."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("model",))
    seen = set()

    def send(axes, shape):
        assert len(shape) == len(axes.replace("-> ", "").split())
        seen.add(axes)
        where = [("model" if letter == "F" else None) for letter in axes.replace("-> ", "").split()]
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*where))

    params = leaves(load_checkpoint(place, shard=send).params)
    assert {"L D -> N H", "L D -> F", "L F -> D", "V -> D", "L D", "D"} <= seen
    assert params["blocks", "mlp", "down"].sharding.spec == jax.sharding.PartitionSpec(
        None, "model", None
    )


def test_prefix_and_buffers_may_vary(tmp_path):
    """As older checkpoints are: no prefix, rotary buffers, a head beside the embedding."""
    tied = CONFIG | {"tie_word_embeddings": True}
    bare = {name.removeprefix("model."): value for name, value in values().items()}
    bare["layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, np.float32)
    bare["lm_head.weight"] = bare["embed_tokens.weight"]
    model = load_checkpoint(write(tmp_path / "model", bare, tied))
    assert ("head",) not in leaves(model.params)


def test_a_head_of_its_own_unties(tmp_path, caplog):
    """As transformers reads it, whatever config.json says."""
    tied, tensors = CONFIG | {"tie_word_embeddings": True}, dict(values())
    both = write(tmp_path / "tied", tensors, tied)
    found, expected = load_checkpoint(both), load_checkpoint(write(tmp_path / "own", tensors))
    assert found.config == expected.config
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    said = "tied: its head is not the embedding that config.json ties it to"
    assert [said in line for line in caplog.messages].count(True) == 1
    wide = tensors | {"lm_head.weight": np.ones((20, 22), np.float32)}
    said = refused(write(tmp_path / "wide", wide, tied))
    assert "of another shape: lm_head.weight [20, 22] for [19, 22]" in said


@pytest.mark.parametrize("left_out", ["", "model.", "model.decoder."])
def test_as_much_of_a_prefix_as_there_is(golden, tmp_path, left_out):
    """OPT's published files say "decoder." where its code says "model.decoder."."""
    directory, _, _ = golden("opt")
    tensors = load_file(directory / "model.safetensors")
    (tmp_path / "config.json").write_text((directory / "config.json").read_text())
    renamed = {name.removeprefix(left_out): value for name, value in tensors.items()}
    save_file(renamed, tmp_path / "model.safetensors")
    found, expected = (load_checkpoint(place).params for place in (tmp_path, directory))
    jax.tree.map(np.testing.assert_array_equal, found, expected)


# ------------------------------------------------------------------------- what is refused


def test_every_fault_is_named_at_once(tmp_path):
    wrong = dict(values())
    del wrong["model.norm.weight"], wrong["model.layers.1.mlp.up_proj.weight"]
    wrong["model.layers.0.mlp.down_proj.weight"] = np.zeros((29, 22), np.float32)
    wrong["model.layers.7.extra.weight"] = np.zeros(3, np.float32)
    message = refused(write(tmp_path / "model", wrong))
    assert "missing: model.norm.weight, model.layers.1.mlp.up_proj.weight" in message
    assert "left over: model.layers.7.extra.weight" in message
    assert "of another shape: model.layers.0.mlp.down_proj.weight [29, 22] for [22, 29]" in message


def test_a_model_of_states_alone_is_named(tmp_path):
    """As models of embeddings are: not a damaged download."""
    states = {name: x for name, x in values().items() if name != "lm_head.weight"}
    message = refused(write(tmp_path / "model", states))
    assert message.endswith(
        "a base model without a head for words; accepted: a language model, as LlamaForCausalLM, "
        "or one whose head is tied"
    )


def test_many_faults_stay_one_line(tmp_path):
    config = CONFIG | {"num_hidden_layers": 20}
    message = refused(write(tmp_path / "model", config=config))
    assert "and 142 more" in message


@pytest.mark.parametrize(
    "change", [{"num_hidden_layers": 10**12}, {"vocab_size": 10**12}, {"num_hidden_layers": 22}]
)
def test_sizes_that_no_checkpoint_has(tmp_path, change):
    message = refused(write(tmp_path / "model", config=CONFIG | change))
    assert "than the 21 stored tensors" in message or "integer of at most 10000)" in message


def test_a_tensor_in_two_shards(place):
    weight_map = shard(place)
    file = place / weight_map["model.norm.weight"]
    other = next(place / f for f in set(weight_map.values()) if f != file.name)
    save_file(load_file(other) | {"model.norm.weight": values()["model.norm.weight"]}, other)
    assert "wrongly stored: model.norm.weight is stored twice" in refused(place)


def test_a_tensor_in_another_shard_than_the_index_says(place):
    weight_map = shard(place)
    at = weight_map["model.norm.weight"]
    weight_map["model.norm.weight"] = next(f for f in weight_map.values() if f != at)
    (place / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert "model.norm.weight is not in " in refused(place)


@pytest.mark.parametrize(
    "file", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors", "..", ".", "", "a\\b",
             ".hidden", 3, None, ["model.safetensors"], "model\n.safetensors"],
)  # fmt: skip
def test_an_index_cannot_leave_the_directory(place, file):
    weight_map = shard(place)
    weight_map["model.norm.weight"] = file
    (place / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert "accepted: the name of a file in the directory" in refused(place)


def test_a_pickle_of_weights_is_named_and_not_the_optimisers(place):
    (place / SINGLE).rename(place / "pytorch_model-00001-of-00002.bin")
    (place / "optimizer.bin").write_bytes(b"")
    assert "pytorch_model-00001-of-00002.bin" in refused(place)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt"])
def test_pickles_are_refused_and_never_opened(place, name):
    (place / SINGLE).rename(place / name)
    message = refused(place)
    assert name in message
    assert "save_file" in message
    shard(place)
    weight_map = dict.fromkeys(values(), name)
    (place / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert "pickle files can run code" in refused(place)


@pytest.mark.parametrize(
    ("index", "wanted"),
    [("{", "not JSON"), ("[]", "a JSON list"), ("{}", "no weight_map"), ('{"weight_map": 3}', "no"),
     ('{"weight_map": {"a": "nosuch.safetensors"}}', "No such file")],
)  # fmt: skip
def test_an_index_that_is_none(place, index, wanted):
    shard(place)
    (place / INDEX).write_text(index)
    assert wanted in refused(place)


def test_no_weights_and_no_config(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert f"no {SINGLE} and no {INDEX}" in refused(tmp_path)
    (tmp_path / "config.json").unlink()
    assert "config.json: No such file or directory" in refused(tmp_path)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["float32", "float16", "bfloat16"])
def test_values_that_are_not_finite(tmp_path, bad, kind):
    kind = np.dtype(getattr(ml_dtypes, kind, None) or kind)
    tensors = {k: v.astype(kind) for k, v in values().items()}
    tensors["model.norm.weight"][7] = bad
    message = refused(write(tmp_path / "model", tensors))
    assert message.endswith("tensor model.norm.weight holds NaN or infinity")


def neox(dtype):
    """A tiny Pythia as it is published: its causal mask and its bases beside the parameters."""
    config = {
        "model_type": "gpt_neox", "vocab_size": 19, "hidden_size": 16, "intermediate_size": 24,
        "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 8,
    }  # fmt: skip
    layout = tensor_map.layout(FAMILIES["gpt_neox"], read_config(FAMILIES["gpt_neox"], config))
    rng = np.random.default_rng(0)
    tensors = {x.name: rng.standard_normal(x.shape).astype(np.float32) for x in layout}
    at = "gpt_neox.layers.0.attention."
    mask = np.tril(np.ones((1, 1, 8, 8))).astype(dtype)
    buffers = {at + "bias": mask, at + "masked_bias": np.asarray(-1e9, np.float32)}
    return config, tensors, buffers | {at + "rotary_emb.inv_freq": np.ones(4, np.float32)}


@pytest.mark.parametrize("dtype", [np.uint8, np.bool_, np.float16, np.float32])
def test_buffers_are_skipped_whatever_their_dtype(tmp_path, dtype):
    config, tensors, buffers = neox(dtype)
    plain = write(tmp_path / "plain", tensors, config)
    published = write(tmp_path / "published", tensors | buffers, config)
    for one, other in zip(
        *(jax.tree.leaves(load_checkpoint(x).params) for x in (plain, published)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_the_head_of_gpt_neox_by_either_name(tmp_path):
    """As transformers 5 names it inside, and saves it where it is asked for its own names."""
    config, tensors, _ = neox(np.float32)
    other = {n.replace("embed_out.", "lm_head."): x for n, x in tensors.items()}
    assert other.keys() != tensors.keys()
    one, two = (write(tmp_path / n, x, config) for n, x in (("one", tensors), ("two", other)))
    found = (load_checkpoint(place).params["head"] for place in (one, two))
    np.testing.assert_array_equal(*found)


def test_a_tie_of_which_the_head_alone_is_stored(tmp_path):
    """As safetensors' save_model writes it, and as an index of both names it."""
    tied = CONFIG | {"tie_word_embeddings": True}
    both = {name: x for name, x in values().items() if name != "lm_head.weight"}
    alone = {name: x for name, x in both.items() if "embed_tokens" not in name}
    alone["lm_head.weight"] = both["model.embed_tokens.weight"]
    expected = load_checkpoint(write(tmp_path / "both", both, tied)).params["embed"]
    found = load_checkpoint(write(tmp_path / "alone", alone, tied)).params["embed"]
    np.testing.assert_array_equal(found, expected)
    place = write(tmp_path / "index", both, tied)
    (place / SINGLE).rename(place / "model-1.safetensors")
    names = dict.fromkeys([*both, "lm_head.weight"], "model-1.safetensors")
    (place / INDEX).write_text(json.dumps({"weight_map": names}))
    np.testing.assert_array_equal(load_checkpoint(place).params["embed"], expected)
    names["model.layers.0.nosuch"] = "model-1.safetensors"
    (place / INDEX).write_text(json.dumps({"weight_map": names}))
    assert "wrongly stored: model.layers.0.nosuch is not in model-1" in refused(place)


def test_a_tokenizer_that_cannot_be_read_leaves_a_model_of_ids(place, caplog, monkeypatch):
    """Which is said before a tensor is read, and by `--check`."""
    (place / "tokenizer.json").write_text("{")
    verdict = would_load(str(place))
    assert verdict.accepted
    assert "; no tokenizer: tokenizer=" in verdict.message
    assert load_checkpoint(place).tokenizer is None
    assert [x.startswith("no tokenizer: tokenizer=") for x in caplog.messages] == [True]
    (place / "tokenizer.json").unlink()
    assert would_load(str(place)).message.endswith("; no tokenizer")
    load_tokenizer("bytes").save(place / "tokenizer.json")
    assert would_load(str(place)).message.endswith("; a tokenizer of 258")
    read = []
    for name in ("tokenizer", "params"):
        whole = getattr(Checkpoint, name)
        monkeypatch.setattr(
            Checkpoint,
            name,
            lambda self, _name=name, _whole=whole, **k: read.append(_name) or _whole(self, **k),
        )
    load_checkpoint(place)
    assert read == ["tokenizer", "params"]


@pytest.mark.parametrize(
    ("extra", "dtype", "said"),
    [
        ("model.layers.0.self_attn.q_proj.g_idx", np.int32, "GPTQ"),
        ("model.layers.0.self_attn.q_proj.qweight", np.int32, "AWQ or GPTQ"),
        ("model.layers.0.self_attn.q_proj.weight_packed", np.int32, "compressed-tensors"),
        ("model.layers.0.self_attn.q_proj.weight.absmax", np.float32, "bitsandbytes"),
        ("model.layers.0.self_attn.q_proj.SCB", np.float32, "bitsandbytes"),
        ("model.norm.weight", ml_dtypes.float8_e4m3fn, "FP8"),
        ("model.norm.weight", np.uint32, "MLX"),
    ],
)
def test_quantised_weights_are_called_what_they_are(tmp_path, extra, dtype, said):
    place = write(tmp_path / "model", values() | {extra: np.zeros(22, dtype)})
    message = refused(place)
    assert f"its weights are stored quantised ({said}); accepted: the model that" in message


LLAMA_LIKE = {
    "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 1,
    "vocab_size": 10, "intermediate_size": 8,
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (LLAMA_LIKE | {"model_type": "llama", "head_dim": 1 << 30},
         "queries of width x heads x their size = 64 x 2 x 1073741824"),
        ({"model_type": "mpt", "d_model": 1 << 28, "n_heads": 1 << 28, "n_layers": 1,
          "vocab_size": 10}, "an embedding of vocabulary x width = 10 x 268435456"),
        (LLAMA_LIKE | {"model_type": "mixtral", "num_local_experts": 10_000,
                       "num_hidden_layers": 300},
         "layers x experts x width x their width = 300 x 10000 x 64 x 8"),
    ],
)  # fmt: skip
def test_sizes_far_beyond_the_file_are_refused_before_anything_is_laid_out(
    tmp_path, monkeypatch, config, said
):
    """They took all memory, or minutes."""
    tensors = {f"x{i}": np.zeros(1, np.float32) for i in range(300)}
    place = write(tmp_path / "model", tensors, config)
    monkeypatch.setattr(tensor_map, "shapes", lambda config: pytest.fail("laid out"))
    assert f"{said}; accepted: sizes that fit the 300 numbers" in refused(place)


def test_git_lfs_pointers(place, caplog):
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    said = "a Git LFS pointer, not the file itself; accepted"
    (place / "tokenizer.json").write_text(pointer)
    assert load_checkpoint(place).tokenizer is None
    assert f"no tokenizer: {place / 'tokenizer.json'}: {said}" in caplog.text
    for name in (SINGLE, "config.json"):
        (place / name).write_text(pointer)
        assert f"{name}: {said}" in refused(place)
    (place / "model.gguf").write_text(pointer)
    assert f"model.gguf: {said}" in refused(place / "model.gguf")


def test_integers_are_refused(tmp_path):
    tensors = values() | {"model.norm.weight": np.zeros(22, np.int32)}
    assert "model.norm.weight is I32 (accepted: F32, F16, BF16)" in refused(
        write(tmp_path / "model", tensors)
    )


def test_a_name_declared_twice(place):
    """The library would keep the last; which one was meant is not known."""
    raw = (place / SINGLE).read_bytes()
    length = struct.unpack_from("<Q", raw)[0]
    header = raw[8 : 8 + length].rstrip()
    entry = header[1 : header.index(b"}") + 1]
    doubled = b"{" + entry + b"," + header[1:]
    (place / SINGLE).write_bytes(struct.pack("<Q", len(doubled)) + doubled + raw[8 + length :])
    assert "declared twice in the header" in refused(place)


# ------------------------------------------------------------------------- fuzz


def mutate(raw, rng):
    """One damage: of the length, of the header's bytes or fields, or of the file's extent."""
    length = struct.unpack_from("<Q", raw)[0]
    header, body = raw[8 : 8 + length], raw[8 + length :]
    kind = rng.randrange(8)
    if kind == 0:
        return raw[: rng.randrange(len(raw))]
    if kind == 1:
        return struct.pack("<Q", rng.choice([0, 1, 2**63, 2**40, length - 1, length + 1])) + raw[8:]
    if kind == 2:
        at = rng.randrange(8 + length)
        return raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1 :]
    if kind == 3:
        return raw + bytes(rng.randrange(1, 100))
    if kind == 4:
        at = rng.randrange(length)
        return raw[: 8 + at] + rng.randbytes(rng.randrange(1, 9)) + raw[8 + at :]
    entries = json.loads(header)
    name = rng.choice([n for n in entries if n != "__metadata__"])
    if kind == 5:
        entries[name]["shape"] = rng.choice([[2**62], [-1], [], "3", [22, 22], [2**31, 2**33]])
    elif kind == 6:
        start, end = entries[name]["data_offsets"]
        entries[name]["data_offsets"] = rng.choice(
            [[end, start], [start, end + 4], [-4, end], [start], [2**63, 2**63 + 4], [0, 2**70]]
        )
    else:
        entries[name]["dtype"] = rng.choice(["F64", "I8", "F8_E4M3", "U16", "x", None, 3])
    changed = json.dumps(entries).encode()
    return struct.pack("<Q", len(changed)) + changed + body


def test_damaged_files_give_one_line_and_no_model(place):
    """Every mutation is refused in one line, or leaves every tensor's name and shape as they were
    (a bit of a name's own spacing, say); bits of the numbers themselves carry no checksum."""
    raw = (place / SINGLE).read_bytes()
    rng = random.Random(0)
    whole = leaves(open_checkpoint(place).params())
    refused = 0
    for _ in range(400):
        damaged = mutate(raw, rng)
        (place / SINGLE).write_bytes(damaged)
        try:
            found = leaves(open_checkpoint(place).params())
        except InputError as error:
            refused += 1
            message = str(error)
            if "\n" in message or not message.startswith(str(place)):
                pytest.fail(message)
        else:
            assert {p: x.shape for p, x in found.items()} == {p: x.shape for p, x in whole.items()}
    assert refused > 350


@pytest.mark.parametrize("seed", range(3))
def test_damaged_configs_give_one_line(place, seed):
    raw = (place / "config.json").read_bytes()
    rng = random.Random(seed)
    for _ in range(30):
        at = rng.randrange(len(raw))
        damaged = raw[:at] + rng.randbytes(rng.randrange(1, 4)) + raw[at + rng.randrange(3) :]
        (place / "config.json").write_bytes(damaged)
        try:
            open_checkpoint(place)
        except InputError as error:
            if "\n" in str(error):
                pytest.fail(str(error))


# ------------------------------------------------------------------------- export


def test_export_writes_whole_or_nothing(place, tmp_path, monkeypatch):
    model = load_checkpoint(place)
    with pytest.raises(InputError, match="exists; accepted: a directory that does not"):
        so.export(model, place, "llama")
    with pytest.raises(InputError, match="family='bert': unknown; accepted: llama"):
        so.export(model, tmp_path / "out", "bert")
    for size in (0, -5):
        with pytest.raises(InputError, match=f"shard_bytes={size}: accepted: an integer of at"):
            so.export(model, tmp_path / "out", "llama", shard_bytes=size)
    assert not (tmp_path / "out").exists()

    def full(*arguments, **keywords):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("sysout_jax.families.export.save_file", full)
    with pytest.raises(OSError, match="No space left"):
        so.export(model, tmp_path / "out", "llama")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("family", ["llama", "mixtral"])
@pytest.mark.parametrize("most", [1, 1600, 3000])
def test_files_of_an_export_hold_no_more_than_they_may(family, most, tmp_path):
    """Bytes that the index names are those that are there, of each expert its own."""
    experts = {"experts": 4, "experts_per_token": 2} if family == "mixtral" else {}
    config = so.ModelConfig(
        vocab=23, context=9, layers=2, width=8, heads=2, mlp_width=12, mlp="swiglu", norm="rms",
        position="rope", **experts,
    )  # fmt: skip
    so.export(so.Model(config, init(config, jax.random.key(0))), tmp_path / "out", family, most)
    index = json.loads((tmp_path / "out" / INDEX).read_text())
    held = {path.name: load_file(path) for path in (tmp_path / "out").glob("*.safetensors")}
    assert {name: file for file, of in held.items() for name in of} == index["weight_map"]
    sizes = {name: [] for name in sorted(held)}
    for name, file in index["weight_map"].items():  # as they were written
        sizes[file].append(held[file][name].nbytes)
    assert index["metadata"]["total_size"] == sum(map(sum, sizes.values()))
    assert all(sum(of) <= most or len(of) == 1 for of in sizes.values())
    assert all(sum(a) + b[0] > most for a, b in itertools.pairwise(sizes.values()))


def test_a_model_trained_here_is_exported(tmp_path):
    """Any architecture that a family can say, scanned layers too."""
    config = so.ModelConfig(
        vocab=19, context=11, layers=2, width=12, heads=3, mlp_width=17, norm="layer", bias=True,
        tied=True,
    ).with_execution(scan_layers=True)  # fmt: skip
    rng = np.random.default_rng(0)
    tree = {}
    for path, shape in tensor_map.shapes(config).items():
        at = tree
        for name in path[:-1]:
            at = at.setdefault(name, {})
        at[path[-1]] = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    model = so.Model(config, tree)
    so.export(model, tmp_path / "out", "gpt2")
    tokens = jnp.arange(11, dtype=jnp.int32)[None]
    back, _ = so.apply(load_checkpoint(tmp_path / "out"), tokens)
    np.testing.assert_allclose(back, so.apply(model, tokens)[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match=r"the llama family has no .*norm='layer'"):
        so.export(model, tmp_path / "other", "llama")


# ------------------------------------------------------------------------- memory

PEAK = """
import sys, threading
import jax, jax.numpy as jnp, numpy as np
from sysout_jax.families.checkpoint import open_checkpoint

def private():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])

opened = open_checkpoint(sys.argv[1], "float32")
jax.block_until_ready(jnp.zeros(3))
before, peak, done = private(), 0, threading.Event()

def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, private())

watcher = threading.Thread(target=watch)
watcher.start()
params = opened.params()
copies = [np.array(x) for x in jax.tree.leaves(params)] if sys.argv[2] == "twice" else []
done.set()
watcher.join()
print(max(peak, private()) - before)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("kind", ["bfloat16", "float32"])
def test_loading_holds_the_model_and_one_tensor(tmp_path, kind):
    """Private memory grows by the model in its target dtype, the largest tensor, and some for
    everything else; that the watch would see a second copy is shown by making one."""
    config = CONFIG | {"hidden_size": 512, "intermediate_size": 4096, "vocab_size": 16384,
                       "head_dim": 128, "num_hidden_layers": 3}  # fmt: skip
    layout = tensor_map.layout(LLAMA, read_config(LLAMA, config))
    stored = np.dtype(getattr(ml_dtypes, kind, None) or kind)
    write(tmp_path / "model", {s.name: np.ones(s.shape, stored) for s in layout}, config)
    model = sum(4 * int(np.prod(s.shape)) for s in layout)
    largest = max(4 * int(np.prod(s.shape)) for s in layout)
    allowed = model + largest + (32 << 20)

    def peak(how):
        done = subprocess.run(
            [sys.executable, "-c", PEAK, str(tmp_path / "model"), how],
            cwd=ROOT, capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        return int(done.stdout)

    assert 0.9 * model < peak("once") < allowed
    assert peak("twice") > allowed


def test_a_mesh_gets_its_shards(place):
    _, shapes, _ = on_two_devices(place, "K", "blocks", "attn", "key")
    assert shapes == [[2, 22, 1, 6], [2, 22, 1, 6]]
