"""Quantised GGUF files of every architecture equal models of the weights that their blocks hold."""

import jax.numpy as jnp
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

import sysout_jax as so
from tests.families import gguf_writing, reference

TOLERANCE = 1e-4  # of the largest logit: sums over 512 channels round differently
NAMED = (
    "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "MXFP4",
)  # fmt: skip
OF_ALL = ("Q8_0", "Q4_K", "IQ3_S", "MXFP4")  # of every architecture: one of each way to pack

WIDE = {
    "vocab_size": 19, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GQA = WIDE | {"num_key_value_heads": 2}
HEADS = GQA | {"head_dim": 64}
HALF = {"rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.5}
GEMMA3 = HEADS | {"query_pre_attn_scalar": 64, "sliding_window": 3,
                  "layer_types": ["sliding_attention", "full_attention"]}  # fmt: skip
EXPERTS = {"num_local_experts": 3, "num_experts_per_tok": 2}
MODELS = {  # Mixtral's files are of the architecture llama, with experts
    "llama": ("LlamaConfig", GQA),
    "mixtral": ("MixtralConfig", GQA | EXPERTS),
    "qwen2": ("Qwen2Config", GQA),
    "qwen3": ("Qwen3Config", GQA | {"head_dim": 128}),
    "gemma2": ("Gemma2Config", HEADS | {"query_pre_attn_scalar": 64}),
    "gemma3": ("Gemma3TextConfig", GEMMA3),
    "phi2": ("PhiConfig", WIDE | {"rope_parameters": HALF}),
    "phi3": ("Phi3Config", GQA),
    "gpt2": ("GPT2Config", {"vocab_size": 19, "n_embd": 256, "n_layer": 2, "n_head": 4,
                            "n_positions": 64, "bos_token_id": 1, "eos_token_id": 2}),
    "gptneox": ("GPTNeoXConfig", WIDE),
    "falcon": ("FalconConfig", {k: v for k, v in WIDE.items() if k != "intermediate_size"}),
    "mpt": ("MptConfig", {"vocab_size": 19, "d_model": 256, "n_layers": 2, "n_heads": 4,
                          "max_seq_len": 64}),
    "olmo": ("OlmoConfig", GQA),
    "olmo2": ("Olmo2Config", GQA),
    "gpt-oss": ("GptOssConfig", HEADS | EXPERTS | {"sliding_window": 3}),
    "stablelm": ("StableLmConfig", GQA | {"use_qkv_bias": True}),
    "gemma": ("GemmaConfig", HEADS),
    "smollm3": ("SmolLM3Config", GQA | {"num_hidden_layers": 4}),
    "starcoder2": ("Starcoder2Config", GQA),
    "granite": ("GraniteConfig", GQA | {"residual_multiplier": 0.5, "logits_scaling": 0.5}),
    "command-r": ("CohereConfig", GQA | {"logit_scale": 0.5}),
    "bloom": ("BloomConfig", {"vocab_size": 19, "hidden_size": 256, "n_layer": 2, "n_head": 4}),
}  # fmt: skip
# What the reference reads of GGUF itself, and where that leaves a field at its default, or a size
# that no key says.
NOT_READ = {
    "llama": {}, "qwen2": {}, "qwen3": {}, "stablelm": {}, "gemma2": {"query_pre_attn_scalar": 64},
    "gpt2": {"n_positions": 64, "vocab_size": 19}, "phi3": {"pad_token_id": 0},
}  # fmt: skip
IDS = reference.tokens(11)


@pytest.fixture
def made(monkeypatch, tmp_path):
    """Makes the checkpoint of one of `MODELS`, its names and config as the reference has them."""
    pytest.importorskip("torch", reason="needs requirements-reference.txt")
    pytest.importorskip("transformers", reason="needs requirements-reference.txt")

    def make(name):
        monkeypatch.setitem(reference.CASES, name, (*MODELS[name], 11))
        reference.make(name, tmp_path / "made")
        return tmp_path / "made"

    return make


def of_blocks(directory, tmp_path, kind):
    """The file of that type, and the checkpoint of what its blocks hold."""
    file = gguf_writing.write_gguf(directory, tmp_path / "model.gguf", Kind[kind])
    return file, gguf_writing.dequantised(directory, tmp_path / "dequantised", Kind[kind])


def compare(file, kind, expected):
    model = so.load(file)
    assert f"GGUF {kind}" in model.origin.weights
    logits, _ = so.apply(model, jnp.asarray(IDS))
    scale = np.abs(expected).max()
    assert scale > 0.5
    np.testing.assert_allclose(logits / scale, expected / scale, rtol=0, atol=TOLERANCE)


def test_every_architecture_is_compared():
    assert set(MODELS) - {"mixtral"} == set(gguf_writing.ARCHITECTURES.values())


@pytest.mark.parametrize(
    ("case", "kind"),
    [("mixtral", "Q8_0"), ("gpt_oss", "MXFP4"), ("gpt_neox", "IQ4_NL"), ("stablelm", "Q4_0")],
)
def test_small_files_equal_the_checkpoint_of_their_blocks(case, kind, golden, tmp_path):
    """Of the recorded models those with rows of whole blocks: the others have none."""
    directory, _, recorded = golden(case)
    file, unpacked = of_blocks(directory, tmp_path, kind)
    expected = np.asarray(so.apply(so.load(unpacked), jnp.asarray(IDS))[0])
    assert np.abs(expected - recorded["logits"]).max() > 1e-3 * np.abs(expected).max()
    compare(file, kind, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [("llama", kind) for kind in NAMED]
    + [(name, kind) for name in MODELS if name != "llama" for kind in OF_ALL],
)
def test_files_equal_the_reference_with_the_weights_of_their_blocks(name, kind, made, tmp_path):
    file, unpacked = of_blocks(made(name), tmp_path, kind)
    compare(file, kind, reference.run(unpacked, IDS)["logits"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind"),
    [("llama", kind) for kind in ("F32", *NAMED)]
    + [(name, kind) for name in NOT_READ if name != "llama" for kind in ("F32", *OF_ALL)],
)
def test_files_equal_the_references_own_reading(name, kind, made, tmp_path):
    import torch
    import transformers

    pytest.importorskip("accelerate", reason="needs requirements-reference.txt")
    file = gguf_writing.write_gguf(made(name), tmp_path / "model.gguf", Kind[kind])
    config = transformers.AutoConfig.from_pretrained(tmp_path, gguf_file=file.name)
    for field, value in NOT_READ[name].items():
        setattr(config, field, value)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, config=config, dtype=torch.float32,
        attn_implementation="eager",
    ).eval()  # fmt: skip
    with torch.no_grad():
        expected = theirs(torch.tensor(IDS, dtype=torch.long)).logits.numpy()
    compare(file, kind, expected)


pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
