"""gpt-oss as it is published: experts of 4 bits, unpacked to what the format says."""

import json

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from sysout_jax.errors import InputError
from sysout_jax.families import mxfp4, tensor_map
from sysout_jax.families.checkpoint import load_checkpoint, open_checkpoint
from sysout_jax.families.config_map import read_config
from sysout_jax.families.gpt_oss import GPT_OSS
from sysout_jax.families.tensors import SINGLE

RNG = np.random.default_rng(0)
BLOCKS = RNG.integers(0, 256, (3, 5, 2, 16), dtype=np.uint8)
SCALES = RNG.integers(118, 130, (3, 5, 2), dtype=np.uint8)
CONFIG = {
    "model_type": "gpt_oss", "vocab_size": 19, "hidden_size": 32, "intermediate_size": 64,
    "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6,
    "num_local_experts": 3, "num_experts_per_tok": 2, "max_position_embeddings": 512,
    "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
}  # fmt: skip


def number(nibble):
    """Sign, two bits of exponent, one of mantissa: E2M1, without infinity or NaN."""
    sign, exponent, mantissa = nibble >> 3, (nibble >> 1) & 3, nibble & 1
    magnitude = mantissa / 2 if exponent == 0 else (1 + mantissa / 2) * 2.0 ** (exponent - 1)
    return -magnitude if sign else magnitude


def test_every_number_is_what_its_bits_say():
    found = mxfp4.unpack(BLOCKS, SCALES)
    assert found.dtype == ml_dtypes.bfloat16
    assert found.shape == mxfp4.unpacked_shape(BLOCKS.shape) == (3, 64, 5)
    for e, o, g, b in np.ndindex(*BLOCKS.shape):
        byte, scale = int(BLOCKS[e, o, g, b]), 2.0 ** (int(SCALES[e, o, g]) - 127)
        at = 32 * g + 2 * b
        assert float(found[e, at, o]) == number(byte & 15) * scale
        assert float(found[e, at + 1, o]) == number(byte >> 4) * scale


def test_it_is_the_references():
    torch = pytest.importorskip("torch", reason="needs requirements-reference.txt")
    theirs = pytest.importorskip("transformers.integrations.mxfp4")
    expected = theirs.convert_moe_packed_tensors(torch.tensor(BLOCKS), torch.tensor(SCALES))
    np.testing.assert_array_equal(
        mxfp4.unpack(BLOCKS, SCALES).astype(np.float32), expected.float().numpy()
    )


@pytest.fixture
def published(tmp_path):
    """A checkpoint with packed experts, and its tensors unpacked."""
    layout = tensor_map.layout(GPT_OSS, read_config(GPT_OSS, CONFIG))
    packed, plain = {}, {}
    for stored in layout:
        if stored.name.endswith("_proj"):  # experts: the other projections end in .weight
            experts, inputs, outputs = stored.shape
            blocks = RNG.integers(0, 256, (experts, outputs, inputs // 32, 16), dtype=np.uint8)
            scales = RNG.integers(120, 126, blocks.shape[:-1], dtype=np.uint8)
            packed |= {f"{stored.name}_blocks": blocks, f"{stored.name}_scales": scales}
            plain[stored.name] = mxfp4.unpack(blocks, scales)
        else:
            value = RNG.standard_normal(stored.shape).astype(ml_dtypes.bfloat16)
            packed[stored.name] = plain[stored.name] = value
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(packed, tmp_path / SINGLE)
    return tmp_path, plain


def test_a_packed_checkpoint_is_the_unpacked_one(published):
    place, plain = published
    packed = load_checkpoint(place).params
    save_file(plain, place / SINGLE)
    (place / "config.json").write_text(json.dumps(CONFIG | {"quantization_config": None}))
    for a, b in zip(
        *(jax.tree.leaves(p) for p in (packed, load_checkpoint(place).params)), strict=True
    ):
        assert a.dtype == b.dtype == np.dtype(ml_dtypes.bfloat16)
        np.testing.assert_array_equal(a, b)


def test_a_pair_that_is_none(published):
    place, _ = published
    tensors = load_file(place / SINGLE)
    name = next(name for name in tensors if name.endswith("_scales"))
    save_file(tensors | {name: tensors[name][..., :1]}, place / SINGLE)
    with pytest.raises(InputError, match=r"left over: .*_blocks, .*_scales"):
        open_checkpoint(place)
    del tensors[name]
    save_file(tensors, place / SINGLE)
    with pytest.raises(InputError, match=r"left over: .*_blocks"):
        open_checkpoint(place)


def test_other_formats_are_refused(published):
    place, _ = published
    changed = CONFIG | {"quantization_config": {"quant_method": "gptq"}}
    (place / "config.json").write_text(json.dumps(changed))
    with pytest.raises(InputError, match="stored quantised \\(gptq\\); accepted"):
        open_checkpoint(place)
