"""Every architecture of GGUF files equals the reference's record of the model it was made from."""

import json
import shutil

import gguf
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.errors import InputError
from sysout_jax.families.gguf_files.architectures import ARCHITECTURES
from sysout_jax.families.gguf_files.header import Tensor, packings
from sysout_jax.families.gguf_files.tensors import published
from tests.families import gguf_writing, reference

CASES = [
    "llama", "mistral", "mixtral", "qwen2", "qwen3", "gemma2", "gemma3", "phi", "phi3", "gpt2",
    "gpt_neox", "falcon", "falcon new decoder", "mpt", "olmo", "olmo2", "gpt_oss", "stablelm",
    "gemma", "smollm3", "starcoder2", "bloom", "granite", "cohere",
    "olmo3", "olmo3 yarn in layers without a window",
]  # fmt: skip
TOLERANCE = 1e-4


def test_every_architecture_is_compared():
    compared = {reference.CASES[case][0] for case in CASES}
    assert len(compared) == 24
    assert set(gguf_writing.ARCHITECTURES.values()) == set(ARCHITECTURES)


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_the_records(case, golden, tmp_path):
    directory, ids, expected = golden(case)
    model = so.load(gguf_writing.write_gguf(directory, tmp_path / "model.gguf"))
    logits, _ = so.apply(model, jnp.asarray(ids))
    np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=TOLERANCE)


def test_parts_are_one_model(golden, tmp_path):
    directory, ids, expected = golden("llama")
    first = gguf_writing.write_gguf(directory, tmp_path / "model.gguf", parts=3)
    files = sorted(tmp_path.glob("*.gguf"))
    assert len(files) == 3
    for file in (first, files[2], tmp_path):
        logits, _ = so.apply(so.load(file), jnp.asarray(ids))
        np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=TOLERANCE)
    files[1].unlink()
    with pytest.raises(InputError, match=r"00002-of-00003\.gguf: No such file"):
        so.load(first)
    shutil.copy(files[2], files[1])
    with pytest.raises(InputError, match=r"part 2 of 3 of a split model"):
        so.load(first)


def test_a_head_that_repeats_the_embedding_is_tied(golden, tmp_path):
    """As older converters wrote GPT-2 and MPT."""
    directory, ids, expected = golden("gpt2")

    def repeat(tensors):
        return tensors | {"output.weight": tensors["token_embd.weight"]}

    file = gguf_writing.write_gguf(directory, tmp_path / "model.gguf", change=repeat)
    model = so.load(file)
    assert model.config.tied
    np.testing.assert_allclose(
        so.apply(model, jnp.asarray(ids))[0], expected["logits"], rtol=0, atol=TOLERANCE
    )


def test_older_layouts(golden, tmp_path):
    """Mixtral's experts one by one, and Phi 2's queries, keys and values in one tensor."""

    def one_by_one(tensors):
        found = {}
        for name, array in tensors.items():
            if "_exps." in name:
                found |= {name.replace("_exps.", f".{e}."): part for e, part in enumerate(array)}
            else:
                found[name] = array
        return found

    def fused(tensors):
        found = {k: v for k, v in tensors.items() if not k.split(".")[-2].startswith("attn_q")
                 and k.split(".")[-2] not in ("attn_k", "attn_v")}  # fmt: skip
        for layer in range(2):
            for kind in ("weight", "bias"):
                parts = [tensors[f"blk.{layer}.attn_{x}.{kind}"] for x in "qkv"]
                found[f"blk.{layer}.attn_qkv.{kind}"] = np.concatenate(parts)
        return found

    for case, change in (("mixtral", one_by_one), ("phi", fused)):
        directory, ids, expected = golden(case)
        file = gguf_writing.write_gguf(directory, tmp_path / f"{case}.gguf", change=change)
        logits, _ = so.apply(so.load(file), jnp.asarray(ids))
        np.testing.assert_allclose(logits, expected["logits"], rtol=0, atol=TOLERANCE)


def test_llama3_rule_and_short_and_long_divisors(golden, tmp_path):
    """Divisors of the frequencies are tensors: LLaMA 3's rule equals itself so, and LongRoPE."""
    directory, ids, _ = golden("llama")
    ids = np.tile(ids, (1, 20))
    config = json.loads((directory / "config.json").read_text())
    rule = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64, "rope_theta": 10.0}  # fmt: skip
    place = tmp_path / "llama3"
    shutil.copytree(directory, place)
    (place / "config.json").write_text(json.dumps(config | {"rope_parameters": rule}))
    expected, _ = so.apply(so.load(place), jnp.asarray(ids))
    plain = 10.0 ** (-np.arange(3) / 3)
    kept = np.clip((64 * plain / (2 * np.pi) - 1.0) / 3.0, 0.0, 1.0)
    divisors = 1 / ((1 - kept) / 4.0 + kept)
    file = gguf_writing.write_gguf(
        place, tmp_path / "model.gguf",
        change=lambda tensors: tensors | {"rope_freqs.weight": divisors},
    )  # fmt: skip
    found, _ = so.apply(so.load(file), jnp.asarray(ids))
    np.testing.assert_allclose(found, expected, rtol=0, atol=TOLERANCE)


KINDS = {
    "Q4_0": 32, "Q4_1": 32, "Q5_0": 32, "Q5_1": 32, "Q8_0": 32, "Q2_K": 256, "Q3_K": 256,
    "Q4_K": 256, "Q5_K": 256, "Q6_K": 256, "IQ2_XXS": 256, "IQ2_XS": 256, "IQ2_S": 256,
    "IQ3_XXS": 256, "IQ3_S": 256, "IQ1_S": 256, "IQ1_M": 256, "IQ4_NL": 32, "IQ4_XS": 256,
    "TQ1_0": 256, "TQ2_0": 256, "MXFP4": 32, "NVFP4": 64, "F16": 1, "BF16": 1, "F64": 1,
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_every_type_is_unpacked_as_the_package_does(kind, tmp_path):
    """A matrix of random finite blocks, its rows in another order, beside the package's own
    unpacking of the whole."""
    number = gguf.GGMLQuantizationType[kind]
    rng = np.random.default_rng(int(number))
    raw = finite_blocks(rng, number, (12, 2 * KINDS[kind]))
    file = tmp_path / "x"
    file.write_bytes(b"\0" * 7 + raw.tobytes())
    tensor = Tensor(file, "x", kind, (12, 2 * KINDS[kind]), 7, raw.shape[1])
    order = np.array([3, 1, 11])
    found = published("y", (tensor,), order).read()
    whole = raw.view(np.float64) if kind == "F64" else gguf.dequantize(raw, number)
    assert np.abs(whole).max() > 0
    np.testing.assert_array_equal(found.astype(np.float32), whole[order].astype(np.float32))
    assert set(packings()) >= {int(number)}


def finite_blocks(rng, number, shape):
    """Rows of random bytes without NaN and infinity, as float16 scales may be among them."""
    block, size = gguf.GGML_QUANT_SIZES[number]
    rows = []
    while len(rows) < shape[0]:
        row = rng.integers(0, 256, (1, shape[1] // block * size), np.uint8)
        floats = {"F64": np.float64, "F16": np.float16}.get(number.name)
        if floats is not None:
            row = rng.normal(size=shape[1]).astype(floats).view(np.uint8)[None]
        elif number.name == "BF16":
            row = rng.normal(size=shape[1]).astype(ml_dtypes.bfloat16).view(np.uint8)[None]
        with np.errstate(all="ignore"):
            fine = number.name == "F64" or np.isfinite(gguf.dequantize(row, number)).all()
        if fine:
            rows.append(row)
    return np.concatenate(rows)


def test_types_that_are_no_weights_are_named(golden, tmp_path):
    directory, _, _ = golden("llama")
    file = gguf_writing.write_gguf(directory, tmp_path / "model.gguf")
    raw = bytearray(file.read_bytes())
    at = raw.index(b"blk.0.ffn_norm.weight") + len(b"blk.0.ffn_norm.weight") + 4 + 8
    for number, said in ((26, "I32"), (9, "Q8_1"), (99, "99")):
        raw[at : at + 4] = number.to_bytes(4, "little")
        file.write_bytes(raw)
        with pytest.raises(InputError, match=f"blk.0.ffn_norm.weight is of type {said}; accepted"):
            so.load(file)
