"""Tiny random models of every family, and what the reference implementation computes of them.

Needs the extra `reference` (PyTorch and transformers). Run as a module, it renews the committed
records, from which the same comparison runs without either:

    python -m tests.families.reference

The records of GATED come from the code beside the weights of Qiu et al. 2025: modeling_qwen3.py and
configuration_qwen3.py of github.com/qiuzh20/gated_attention (49645df), as a package on the path,
under transformers 4.48, which that code needs:

    python -m tests.families.reference PACKAGE
"""

import importlib
import json
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

GOLDEN = Path(__file__).parent / "golden"
SMALL = {
    "vocab_size": 19, "hidden_size": 20, "intermediate_size": 29, "num_hidden_layers": 2,
    "num_attention_heads": 4, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "max_position_embeddings": 512,
}  # fmt: skip
GQA = SMALL | {"num_key_value_heads": 2, "head_dim": 6}
GQA_NATURAL = SMALL | {"hidden_size": 24, "num_key_value_heads": 2}
FACTORS = {
    "embedding_multiplier": 12.0, "logits_scaling": 2.0, "residual_multiplier": 0.22,
    "attention_multiplier": 0.3,
}  # fmt: skip
EXPERTS = GQA | {
    "hidden_size": 24,
    "intermediate_size": 32,
}  # the reference multiplies in units of 16 bytes
OPT = {k: v for k, v in SMALL.items() if k != "intermediate_size"} | {"ffn_dim": 29}
GPT2 = {
    "vocab_size": 19, "n_embd": 20, "n_layer": 2, "n_head": 4, "n_positions": 23,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
GPT_NEO = {
    "vocab_size": 19, "hidden_size": 20, "num_layers": 2, "num_heads": 4, "window_size": 3,
    "max_position_embeddings": 23, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
BLOOM = {"vocab_size": 19, "hidden_size": 24, "n_layer": 2, "n_head": 4}
MPT = {"vocab_size": 19, "d_model": 20, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}
FALCON = {k: v for k, v in SMALL.items() if k != "intermediate_size"} | {"hidden_size": 24}
GEMMA3 = GQA | {
    "sliding_window": 3, "num_hidden_layers": 3, "query_pre_attn_scalar": 7,
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 10.0, "factor": 4.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
LONG = {
    "rope_type": "longrope", "rope_theta": 100.0, "short_factor": [1.0, 1.5, 2.0],
    "long_factor": [2.0, 3.0, 5.0], "original_max_position_embeddings": 16,
    "partial_rotary_factor": 1.0,
}  # fmt: skip

# name: (class of the reference's config, its arguments, length of the sequence); the first of each
# family, and those marked so below, are committed as records
CASES = {
    "llama": ("LlamaConfig", GQA, 11),
    "llama mha, biases, tied": (
        "LlamaConfig",
        SMALL | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True,
                 "hidden_size": 24, "rms_norm_eps": 1e-3}, 11,
    ),
    "llama one kv head, llama3 rule, long": (
        "LlamaConfig", GQA | {"num_key_value_heads": 1, "rope_parameters": LLAMA3}, 211,
    ),
    "llama linear rule": (
        "LlamaConfig",
        GQA | {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 50.0}}, 11,
    ),
    "llama dynamic rule beyond its context": (
        "LlamaConfig",
        GQA | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 50.0},
               "max_position_embeddings": 16}, 29,
    ),
    "llama dynamic rule within its context": (
        "LlamaConfig",
        GQA | {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 50.0}}, 11,
    ),
    "llama relu": ("LlamaConfig", GQA | {"hidden_act": "relu"}, 11),
    "llama gelu": ("LlamaConfig", GQA | {"hidden_act": "gelu"}, 11),
    "mistral": ("MistralConfig", GQA | {"sliding_window": 3}, 11),
    "mistral no window": ("MistralConfig", GQA | {"sliding_window": None}, 11),
    "mixtral": (
        "MixtralConfig", EXPERTS | {"num_local_experts": 3, "num_experts_per_tok": 2}, 11,
    ),
    "mixtral one expert of five, window": (
        "MixtralConfig",
        EXPERTS | {"num_local_experts": 5, "num_experts_per_tok": 1, "sliding_window": 4}, 11,
    ),
    "qwen3_moe": (
        "Qwen3MoeConfig",
        EXPERTS | {"moe_intermediate_size": 16, "num_experts": 5, "num_experts_per_tok": 3,
                   "norm_topk_prob": True}, 11,
    ),
    "qwen3_moe shares of all, biases, window": (
        "Qwen3MoeConfig",
        EXPERTS | {"moe_intermediate_size": 16, "num_experts": 5, "num_experts_per_tok": 2,
                   "attention_bias": True, "use_sliding_window": True, "sliding_window": 4}, 11,
    ),
    "olmoe": (
        "OlmoeConfig",
        SMALL | {"hidden_size": 24, "intermediate_size": 16, "num_experts": 5,
                 "num_experts_per_tok": 3, "num_key_value_heads": 2}, 11,
    ),
    "olmoe clipped, sum to one": (
        "OlmoeConfig",
        SMALL | {"hidden_size": 24, "intermediate_size": 16, "num_experts": 4,
                 "num_experts_per_tok": 2, "clip_qkv": 0.4, "norm_topk_prob": True}, 11,
    ),
    "opt": ("OPTConfig", OPT, 11),
    "opt post": ("OPTConfig", OPT | {"do_layer_norm_before": False}, 11),
    "opt projected, post": (
        "OPTConfig", OPT | {"word_embed_proj_dim": 12, "do_layer_norm_before": False}, 11
    ),
    "opt projected, untied": (
        "OPTConfig", OPT | {"word_embed_proj_dim": 28, "tie_word_embeddings": False}, 11
    ),
    "opt bare": (
        "OPTConfig",
        OPT | {"enable_bias": False, "activation_function": "gelu", "tie_word_embeddings": False,
               "layer_norm_elementwise_affine": False}, 11,
    ),
    "phi": (
        "PhiConfig",
        SMALL | {"hidden_size": 40, "rope_parameters": {
            "rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 0.4}}, 11,
    ),
    "phi norms of queries, GQA": (
        "PhiConfig", SMALL | {"hidden_size": 32, "qk_layernorm": True, "num_key_value_heads": 2}, 11
    ),
    "mpt": ("MptConfig", MPT, 11),
    "mpt three heads, clipped": (
        "MptConfig",
        MPT | {"d_model": 21, "n_heads": 3, "attn_config": {
            "clip_qkv": 0.7, "softmax_scale": 0.5}}, 41,
    ),
    "mpt untied": ("MptConfig", MPT | {"tie_word_embeddings": False}, 7),
    "falcon": ("FalconConfig", FALCON, 11),
    "falcon new decoder": (
        "FalconConfig",
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2, "bias": True,
                  "ffn_hidden_size": 29}, 11,
    ),
    "falcon new decoder, one norm": (
        "FalconConfig",
        FALCON | {"new_decoder_architecture": True, "num_kv_heads": 2,
                  "num_ln_in_parallel_attn": 1, "tie_word_embeddings": False}, 11,
    ),
    "falcon alibi, sequential": (
        "FalconConfig",
        FALCON | {"alibi": True, "parallel_attn": False, "multi_query": False, "bias": True,
                  "num_attention_heads": 6}, 61,
    ),
    "gpt2": ("GPT2Config", GPT2, 11),
    "gpt2 untied, relu": (
        "GPT2Config",
        GPT2 | {"tie_word_embeddings": False, "activation_function": "relu", "n_inner": 29}, 23,
    ),
    "gpt2 queries scaled by layer": (
        "GPT2Config",
        GPT2 | {"scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True,
                "n_layer": 3}, 23,
    ),
    "gpt_neo": (
        "GPTNeoConfig", GPT_NEO | {"attention_types": [[["global", "local"], 1]]}, 11,
    ),
    "gpt_neo local alone, untied": (
        "GPTNeoConfig",
        GPT_NEO | {"attention_types": [[["local"], 2]], "intermediate_size": 29,
                   "tie_word_embeddings": False, "activation_function": "relu"}, 11,
    ),
    "gptj": ("GPTJConfig", GPT2 | {"n_embd": 24, "rotary_dim": 4}, 11),
    "gptj whole heads, n_inner": (
        "GPTJConfig", GPT2 | {"n_embd": 24, "rotary_dim": 6, "n_inner": 29,
                 "activation_function": "gelu"}, 11,
    ),
    "bloom": ("BloomConfig", BLOOM, 11),
    "bloom six heads, untied": (
        "BloomConfig",
        BLOOM | {"n_head": 6, "tie_word_embeddings": False, "layer_norm_epsilon": 1e-2}, 61,
    ),
    "gpt_neox": (
        "GPTNeoXConfig", SMALL | {"hidden_size": 32}, 11,
    ),
    "gpt_neox sequential, tied": (
        "GPTNeoXConfig",
        SMALL | {"hidden_size": 32, "use_parallel_residual": False, "attention_bias": False,
                 "tie_word_embeddings": True, "hidden_act": "gelu_new", "rope_parameters": {
                     "rope_type": "default", "rope_theta": 100.0, "partial_rotary_factor": 1.0}},
        11,
    ),
    "qwen2": ("Qwen2Config", SMALL | {"hidden_size": 24, "num_key_value_heads": 2}, 11),
    "qwen2 windows in later layers, yarn": (
        "Qwen2Config",
        SMALL | {"hidden_size": 24, "num_key_value_heads": 1, "use_sliding_window": True,
                 "sliding_window": 3, "max_window_layers": 1, "num_hidden_layers": 3,
                 "tie_word_embeddings": True, "rope_parameters": YARN}, 67,
    ),
    "qwen3": ("Qwen3Config", GQA, 11),
    "qwen3 biases, tied": (
        "Qwen3Config",
        GQA | {"attention_bias": True, "tie_word_embeddings": True, "num_key_value_heads": 4}, 11,
    ),
    "smollm3": ("SmolLM3Config", GQA_NATURAL | {"num_hidden_layers": 4}, 11),
    "smollm3 windows without positions": (
        "SmolLM3Config",
        GQA_NATURAL | {"no_rope_layers": [0, 1, 1], "num_hidden_layers": 3, "attention_bias": True,
                       "use_sliding_window": True, "sliding_window": 3, "mlp_bias": True,
                       "tie_word_embeddings": False, "rope_parameters": YARN}, 67,
    ),
    "granite": ("GraniteConfig", GQA_NATURAL | FACTORS, 11),
    "granite biases, tied": (
        "GraniteConfig",
        GQA_NATURAL | FACTORS | {"attention_bias": True, "mlp_bias": True,
                                 "tie_word_embeddings": True, "logits_scaling": 0.7}, 11,
    ),
    "cohere": ("CohereConfig", GQA_NATURAL | {"logit_scale": 0.5}, 11),
    "cohere biases, untied, yarn": (
        "CohereConfig",
        GQA_NATURAL | {"attention_bias": True, "tie_word_embeddings": False, "logit_scale": 2.0,
                       "rope_parameters": YARN}, 67,
    ),
    "gemma": ("GemmaConfig", GQA, 11),
    "gemma one kv head, first files' gelu": (
        "GemmaConfig",
        GQA | {"num_key_value_heads": 1, "hidden_act": "gelu", "attention_bias": True}, 11,
    ),
    "gemma2": ("Gemma2Config", GQA | {"sliding_window": 3, "query_pre_attn_scalar": 7}, 11),
    "gemma2 uncapped": (
        "Gemma2Config",
        GQA | {"sliding_window": 5, "attn_logit_softcapping": None, "attention_bias": True,
               "final_logit_softcapping": 2.0, "num_hidden_layers": 3}, 11,
    ),
    "gemma3": (
        "Gemma3TextConfig", GEMMA3, 11,
    ),
    "gemma3 with images": (
        "Gemma3Config",
        {"text_config": GEMMA3, "mm_tokens_per_image": 4, "vision_config": {
            "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1,
            "num_attention_heads": 2, "image_size": 8, "patch_size": 2}}, 11,
    ),
    "gemma3 scaled": (
        "Gemma3TextConfig",
        GQA | {"sliding_window": 4, "num_hidden_layers": 2, "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4},
            "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}},
            "layer_types": ["full_attention", "sliding_attention"], "num_key_value_heads": 1}, 31,
    ),
    "olmo": ("OlmoConfig", SMALL | {"hidden_size": 24, "num_key_value_heads": 2}, 11),
    "olmo clipped": ("OlmoConfig", SMALL | {"hidden_size": 24, "clip_qkv": 0.3}, 11),
    "olmo2": ("Olmo2Config", SMALL | {"hidden_size": 24, "num_key_value_heads": 2}, 11),
    "olmo2 biases": (
        "Olmo2Config", SMALL | {"hidden_size": 24, "attention_bias": True, "rms_norm_eps": 1e-2}, 11
    ),
    "olmo3": (
        "Olmo3Config",
        SMALL | {"hidden_size": 24, "num_key_value_heads": 2, "num_hidden_layers": 4,
                 "sliding_window": 3}, 11,
    ),
    "olmo3 yarn in layers without a window": (
        "Olmo3Config",
        SMALL | {"hidden_size": 24, "sliding_window": 5, "attention_bias": True,
                 "layer_types": ["full_attention", "sliding_attention"], "rope_parameters": {
                     "full_attention": YARN | {"attention_factor": 1.3},
                     "sliding_attention": {"rope_type": "default", "rope_theta": 100.0}}}, 67,
    ),
    "gpt_oss": (
        "GptOssConfig",
        EXPERTS | {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 3}, 11,
    ),
    "gpt_oss one window for all": (
        "GptOssConfig",
        EXPERTS | {"num_local_experts": 3, "num_experts_per_tok": 3, "sliding_window": 4,
               "swiglu_limit": 0.5, "layer_types": ["sliding_attention"] * 2, "rope_parameters": {
                   "rope_type": "yarn", "factor": 8.0, "beta_fast": 8.0, "beta_slow": 0.5,
                   "truncate": False, "original_max_position_embeddings": 32,
                   "rope_theta": 500.0}}, 43,
    ),
    "phi3": ("Phi3Config", SMALL | {"hidden_size": 24, "num_key_value_heads": 2}, 11),
    "phi3 long": (
        "Phi3Config",
        SMALL | {"hidden_size": 24, "num_key_value_heads": 1, "rope_parameters": LONG,
                 "original_max_position_embeddings": 16, "sliding_window": 9}, 23,
    ),
    "phi3 long, short sequence": (
        "Phi3Config",
        SMALL | {"hidden_size": 24, "rope_parameters": LONG,
                 "original_max_position_embeddings": 16}, 13,
    ),
    "stablelm": ("StableLmConfig", SMALL | {"hidden_size": 32, "num_key_value_heads": 4}, 11),
    "stablelm side by side, biases, GQA": (
        "StableLmConfig",
        SMALL | {"hidden_size": 24, "num_key_value_heads": 2, "use_parallel_residual": True,
                 "use_qkv_bias": True, "tie_word_embeddings": True, "layer_norm_eps": 1e-3,
                 "rope_parameters": {"rope_type": "default", "rope_theta": 100.0,
                                     "partial_rotary_factor": 1.0}}, 11,
    ),
    "starcoder2": ("Starcoder2Config", GQA_NATURAL, 11),
    "starcoder2 bare, window": (
        "Starcoder2Config",
        GQA_NATURAL | {"use_bias": False, "sliding_window": 4, "hidden_act": "gelu",
                       "tie_word_embeddings": False, "norm_epsilon": 1e-2}, 11,
    ),
}  # fmt: skip
RECORDED = [name for name in CASES if " " not in name] + [
    "falcon new decoder", "falcon alibi, sequential", "gpt_oss one window for all", "opt post",
    "opt projected, post", "gemma3 with images", "gpt2 queries scaled by layer", "llama relu",
    "llama gelu", "olmo3 yarn in layers without a window",
]  # fmt: skip


GATED = {
    "qwen3 gates by head": ("Qwen3Config", GQA | {
        "headwise_attn_output_gate": True, "qkv_bias": False}, 11),
    "qwen3 gates by channel": ("Qwen3Config", GQA | {
        "elementwise_attn_output_gate": True, "qkv_bias": False}, 11),
    "qwen3 without gates and norms": ("Qwen3Config", GQA | {
        "use_qk_norm": False, "qkv_bias": True}, 11),
}  # fmt: skip


def place_of(case: str) -> Path:
    """Where the record of a case is kept."""
    return GOLDEN / f"{case.replace(',', '').replace(' ', '-')}.npz"


def tokens(length: int) -> np.ndarray:
    """[2, length] ids of the vocabulary of 19."""
    return np.random.default_rng(length).integers(0, 19, (2, length)).astype(np.int32)


def draw(name: str, shape: tuple[int, ...], plus_one: bool) -> np.ndarray:
    """The values of a stored tensor, a function of its name and shape alone."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    norm = "norm" in name or "ln_" in name
    centre = 1.0 if norm and name.endswith("weight") and not plus_one else 0.0
    return (centre + 0.3 * rng.standard_normal(shape)).astype(np.float32)


def write(directory: Path, config: dict, shapes: dict) -> None:
    """A checkpoint directory with that config.json and values drawn by name."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config))
    plus_one = config["model_type"].startswith("gemma")
    values = {name: draw(name, tuple(shape), plus_one) for name, shape in shapes.items()}
    save_file(values, directory / "model.safetensors", metadata={"format": "pt"})


def make(case: str, directory: Path) -> None:
    """The checkpoint of a case, its names, shapes and config as the reference writes them."""
    import transformers

    kind, arguments, _ = (CASES | GATED)[case]
    config = getattr(transformers, kind)(**arguments)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory / "names")
    with safe_open(directory / "names" / "model.safetensors", "numpy") as opened:
        shapes = {name: opened.get_slice(name).get_shape() for name in opened.offset_keys()}
    write(directory, json.loads((directory / "names" / "config.json").read_text()), shapes)


def run(directory: Path, ids: np.ndarray, dtype: str = "float32") -> dict[str, np.ndarray]:
    """What the reference computes: logits, hidden states [L + 1, B, T, D], attention maps.

    Hidden states are [L, ...] where the last is that of OPT's projected embeddings.

    No attention maps of Falcon with ALiBi: the reference can give them only in its eager mode, in
    which it adds ALiBi twice (transformers 5.24, in the mask and in the layer).
    """
    import torch
    import transformers

    twice = json.loads((directory / "config.json").read_text()).get("alibi", False)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        directory,
        attn_implementation="sdpa" if twice else "eager",
        torch_dtype=getattr(torch, dtype),
    ).eval()
    with torch.no_grad():
        out = model(
            torch.tensor(ids, dtype=torch.long),
            output_hidden_states=True, output_attentions=not twice, use_cache=False,
        )  # fmt: skip
    states = [h.float().numpy() for h in out.hidden_states]
    found = {
        "logits": out.logits.float().numpy(),
        "hidden": np.stack([h for h in states if h.shape == states[0].shape]),
    }
    if not twice:
        found["attention"] = np.stack([a.float().numpy() for a in out.attentions])
    return found


def record(case: str, directory: Path) -> None:
    """Write the record of a case: config, shapes, and what the reference computes."""
    make(case, directory)
    config = json.loads((directory / "config.json").read_text())
    with safe_open(directory / "model.safetensors", "numpy") as opened:
        shapes = {name: opened.get_slice(name).get_shape() for name in opened.offset_keys()}
    length = (CASES | GATED)[case][2]
    GOLDEN.mkdir(exist_ok=True)
    np.savez_compressed(
        place_of(case),
        config=json.dumps(config), shapes=json.dumps(shapes), length=length,
        **run(directory, tokens(length)),
    )  # fmt: skip


def use_code_beside_the_weights(package: str) -> None:
    """Have transformers make models of qwen3 by that package's code."""
    import transformers

    config = importlib.import_module(f"{package}.configuration_qwen3").Qwen3Config
    model = importlib.import_module(f"{package}.modeling_qwen3").Qwen3ForCausalLM
    transformers.Qwen3Config = config
    transformers.AutoConfig.register("qwen3", config)
    transformers.AutoModelForCausalLM.register(config, model)


if __name__ == "__main__":
    if sys.argv[1:]:
        use_code_beside_the_weights(sys.argv[1])
    for case in GATED if sys.argv[1:] else RECORDED:
        with tempfile.TemporaryDirectory() as place:
            record(case, Path(place))
