"""Every family equals the reference: logits, residual stream and attention maps, and what its own
modules say of the taps between; what is loaded is exported bit by bit."""

import json
import re
import shutil
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import sysout_jax as so
from sysout_jax.errors import InputError
from sysout_jax.families import tensor_map
from sysout_jax.families.checkpoint import Checkpoint, load_checkpoint, open_checkpoint
from sysout_jax.families.table import FAMILIES
from sysout_jax.model.decoder import unstack_blocks
from tests.families import reference

TOLERANCE = 1e-4
# bfloat16 keeps 8 bits, and sums over some twenty channels average little of the rounding away: of
# the largest logit, at every token. The reference's own distance from float32 is as large.
BFLOAT16 = 0.08
# Parameters rounded to float16's 11 bits, activations in float32: of the largest logit.
FLOAT16 = 0.005
MIXTURES = ("mixtral", "gpt_oss", "qwen3_moe", "olmoe")
RECORDED = [*reference.RECORDED, *reference.GATED]
WANTED = dict.fromkeys(("block_in", "attn_weights", "final_norm"))


def compare(directory, ids, expected, tolerance=TOLERANCE):
    """Logits and taps of our model beside the reference's."""
    model = load_checkpoint(directory)
    logits, taps = so.apply(model, jnp.asarray(ids), WANTED)
    assert np.abs(expected["logits"]).max() > 1
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=tolerance)
    layers = model.config.layers
    np.testing.assert_allclose(
        taps["block_in"], expected["hidden"][:layers], rtol=tolerance, atol=tolerance
    )
    if model.config.embed_width is None:
        np.testing.assert_allclose(
            taps["final_norm"], expected["hidden"][layers], rtol=tolerance, atol=tolerance
        )
    if "attention" in expected:
        np.testing.assert_allclose(
            taps["attn_weights"], expected["attention"], rtol=0, atol=tolerance
        )
    return model


def test_every_family_is_recorded():
    recorded = {json.loads(str(np.load(reference.place_of(case))["config"]))["model_type"]
                for case in reference.RECORDED}  # fmt: skip
    within = {family.within.model_type for family in FAMILIES.values() if family.within}
    assert recorded == {family.model_types[0] for family in FAMILIES.values()} | within
    assert {reference.place_of(case) for case in RECORDED} == {*reference.GOLDEN.iterdir()}


@pytest.mark.parametrize("case", RECORDED)
def test_logits_and_taps_equal_the_records(case, golden):
    compare(*golden(case))


def bits(directory):
    tensors = {}
    for file in directory.glob("*.safetensors"):
        tensors |= load_file(file)
    return {name: (x.dtype, x.shape, x.tobytes()) for name, x in tensors.items()}


def text_only(within, tensors):
    """The tensors of the text decoder, as a model of text alone names them."""
    begins = dict(within.names) if within else {}
    if not any(name.startswith(tuple(begins)) for name in tensors):
        return tensors
    found = {}
    for name, value in tensors.items():
        there = next((each for each in begins if name.startswith(each)), None)
        if there is not None:
            found[name.replace(there, begins[there], 1)] = value
    return found


def test_a_larger_model_without_its_head_is_read_as_well(golden, tmp_path):
    """As `Gemma3Model` saves it: the decoder's names begin with "language_model." alone."""
    directory, _, _ = golden("gemma3 with images")
    expected = load_checkpoint(directory).params
    bare = shutil.copytree(directory, tmp_path / "bare")
    for file in bare.glob("*.safetensors"):
        tensors = load_file(file)
        begins = ("language_model.model.", "model.language_model.")
        for name in [name for name in tensors if name.startswith(begins)]:
            tail = name.removeprefix(begins[0]).removeprefix(begins[1])
            tensors[f"language_model.{tail}"] = tensors.pop(name)
        save_file(tensors, file)
    (bare / "model.safetensors.index.json").unlink(missing_ok=True)
    found = load_checkpoint(bare).params
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize("case", RECORDED)
def test_what_is_loaded_is_exported_bit_by_bit(case, golden, tmp_path):
    directory, _, _ = golden(case)
    opened = open_checkpoint(directory)
    so.export(load_checkpoint(directory), tmp_path / "out", opened.family.name, shard_bytes=9000)
    assert bits(tmp_path / "out") == text_only(opened.family.within, bits(directory))
    assert len(list((tmp_path / "out").glob("*.safetensors"))) > 1
    again = open_checkpoint(tmp_path / "out")
    assert again.config == opened.config


def fused(tensors, router):
    """Experts as one tensor each of gate and up, and of down, by their published names."""
    out, experts = {}, {}
    for name, value in tensors.items():
        found = re.fullmatch(r"(.*layers\.\d+)\.\w+\.experts\.(\d+)\.(\w+)\.weight", name)
        if found:
            layer, expert, kind = found.groups()
            experts.setdefault(layer, {})[kind.removesuffix("_proj"), int(expert)] = value
        else:
            out[name.replace(router, "mlp.gate")] = value
    for layer, values in experts.items():
        count = len(values) // 3
        by_name = {k: [values[k, e] for e in range(count)] for k in {kind for kind, _ in values}}
        w = {{"w1": "gate", "w3": "up", "w2": "down"}.get(k, k): v for k, v in by_name.items()}
        pairs = [np.concatenate(pair) for pair in zip(w["gate"], w["up"], strict=True)]
        out[f"{layer}.mlp.experts.gate_up_proj"] = np.stack(pairs)
        out[f"{layer}.mlp.experts.down_proj"] = np.stack(w["down"])
    return out


@pytest.mark.parametrize("case", ["mixtral", "qwen3_moe", "olmoe"])
def test_fused_experts_equal_the_records(case, golden, tmp_path):
    """What transformers 5 writes with save_original_format=False; one that lacks a tensor is
    refused by the names it has."""
    directory, ids, expected = golden(case)
    tensors = fused(load_file(directory / "model.safetensors"), "block_sparse_moe.gate")
    (tmp_path / "config.json").write_bytes((directory / "config.json").read_bytes())
    save_file(tensors, tmp_path / "model.safetensors")
    compare(tmp_path, ids, expected)
    lost = "model.layers.1.mlp.experts.down_proj"
    save_file({k: v for k, v in tensors.items() if k != lost}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=f"missing: {lost}$"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("case", ["gemma3", "gpt_oss", "phi"])
def test_layers_laid_out_equal_the_records(case, golden):
    """Windows, bases and sinks that differ by layer, which are data where layers are scanned."""
    directory, ids, expected = golden(case)
    model = load_checkpoint(directory)
    assert model.config.execution.scan_layers
    config = model.config.with_execution(scan_layers=False)
    laid_out = so.Model(config, unstack_blocks(model.params))
    logits, taps = so.apply(laid_out, jnp.asarray(ids), {"attn_weights": None})
    np.testing.assert_allclose(logits, expected["logits"], atol=TOLERANCE)
    np.testing.assert_allclose(taps["attn_weights"], expected["attention"], atol=TOLERANCE)


# ------------------------------------------------------------- with the reference itself


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The checkpoint of any case, made and run by the reference."""
    pytest.importorskip("torch", reason="needs requirements-reference.txt")
    pytest.importorskip("transformers", reason="needs requirements-reference.txt")

    @cache
    def of(case):
        directory = tmp_path_factory.mktemp("made")
        reference.make(case, directory)
        ids = reference.tokens(reference.CASES[case][2])
        return directory, ids, reference.run(directory, ids)

    return of


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.mark.slow
@pytest.mark.parametrize("case", reference.CASES)
def test_logits_and_taps_equal_the_reference(case, made):
    compare(*made(case))


@pytest.mark.slow
@pytest.mark.parametrize("case", ["mixtral", "qwen3_moe", "olmoe"])
def test_what_the_reference_saves_fused_is_read(case, made, tmp_path):
    import transformers

    directory, ids, expected = made(case)
    model = transformers.AutoModelForCausalLM.from_pretrained(directory)
    model.save_pretrained(tmp_path, save_original_format=False)
    assert any("gate_up_proj" in name for name in load_file(tmp_path / "model.safetensors"))
    compare(tmp_path, ids, expected)


@pytest.mark.slow
@pytest.mark.parametrize("case", reference.RECORDED)
def test_records_are_what_the_reference_computes(case, made, golden):
    _, _, expected = made(case)
    _, _, recorded = golden(case)
    assert set(recorded) == set(expected)
    for name, value in recorded.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-5, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", [name for name in reference.RECORDED if " " not in name])
def test_bfloat16_is_as_close_as_stated(case, made):
    directory, ids, exact = made(case)
    theirs = reference.run(directory, ids, "bfloat16")["logits"]
    ours, _ = so.apply(load_checkpoint(directory, "bfloat16"), jnp.asarray(ids))
    assert ours.dtype == jnp.bfloat16
    scale = np.abs(exact["logits"]).max()
    for found in (np.asarray(ours, np.float32), theirs):
        # A router's near tie may choose another expert: most tokens, not all, must agree there.
        error = np.abs(found - exact["logits"]).max(-1) / scale
        assert np.mean(error < BFLOAT16) >= (0.8 if case in MIXTURES else 1.0)


@pytest.mark.parametrize("case", ["llama", "gpt2", "mixtral"])
def test_float16_is_as_close_as_stated(case, golden):
    """Of the families, Mixtral is farthest off: a router weighs its rounded scores."""
    directory, ids, expected = golden(case)
    model = load_checkpoint(directory, "float16")
    assert {x.dtype for x in jax.tree.leaves(model.params)} == {jnp.dtype("float16")}
    ours, _ = so.apply(model, jnp.asarray(ids))
    error = np.abs(np.asarray(ours) - expected["logits"]).max() / np.abs(expected["logits"]).max()
    assert 0.0 < error < FLOAT16


# path of a parameter -> tap that its module reads, or writes
READS = {("attn", "out"): "attn_mix", ("mlp", "down"): "down_in", ("mlp", "up"): "mlp_norm"}
WRITES = {("attn", "value"): "value", ("mlp", "up"): "up_out", ("mlp", "gate"): "gate_out"}


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in reference.CASES if not c.startswith(MIXTURES)])
def test_taps_between_equal_the_reference(case, made):
    """The inputs and outputs of the reference's own linear maps, found by the tensor map."""
    directory, ids, _ = made(case)
    opened = open_checkpoint(directory)
    found = modules(directory, ids, opened)
    assert len(found) >= 3
    model = load_checkpoint(directory)
    _, taps = so.apply(model, jnp.asarray(ids), dict.fromkeys({name for name, _ in found}))
    for (name, layer), expected in found.items():
        if name == "value" and model.config.clip_qkv is not None:
            expected = np.clip(expected, -model.config.clip_qkv, model.config.clip_qkv)
        ours = np.asarray(taps[name][layer])
        np.testing.assert_allclose(
            ours, expected.reshape(ours.shape), rtol=TOLERANCE, atol=TOLERANCE
        )


def modules(directory, ids, opened: Checkpoint):
    """(tap, layer) -> what the reference's module of that place read or wrote."""
    import torch
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(directory).eval()
    # a decoder beside images is one module further in
    named = {name.replace("language_model.", ""): x for name, x in model.named_modules()}
    found = {}

    def watch(key, side):
        def hook(module, inputs, output):
            found[key] = (inputs[0] if side == "reads" else output).detach().numpy()

        return hook

    config = opened.config.with_execution(scan_layers=False)
    for stored in tensor_map.layout(opened.family, config):
        module, _, kind = stored.name.rpartition(".")
        for part in stored.parts if kind == "weight" and module in named else ():
            layer = int(part.path[0].rpartition("_")[2]) if "block" in part.path[0] else None
            if READS.get(part.path[1:]):
                key = (READS[part.path[1:]], layer)
                named[module].register_forward_hook(watch(key, "reads"))
            if WRITES.get(part.path[1:]) and len(stored.parts) == 1:
                key = (WRITES[part.path[1:]], layer)
                named[module].register_forward_hook(watch(key, "writes"))
    with torch.no_grad():
        model(torch.tensor(ids, dtype=torch.long), use_cache=False)
    return found
