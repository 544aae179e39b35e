"""GGUF files from checkpoint directories, as llama.cpp's converter makes them: names by the gguf
package's own map, layouts by hand, nothing of the reader."""

import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import load_file, save_file

ARCHITECTURES = {
    "llama": "llama", "mistral": "llama", "mixtral": "llama", "qwen2": "qwen2", "qwen3": "qwen3",
    "gemma2": "gemma2", "gemma3_text": "gemma3", "phi": "phi2", "phi3": "phi3", "gpt2": "gpt2",
    "gpt_neox": "gptneox", "falcon": "falcon", "mpt": "mpt", "olmo": "olmo", "olmo2": "olmo2",
    "olmo3": "olmo2",
    "gpt_oss": "gpt-oss", "stablelm": "stablelm", "gemma": "gemma", "smollm3": "smollm3",
    "starcoder2": "starcoder2", "bloom": "bloom", "granite": "granite", "cohere": "command-r",
}  # fmt: skip
PERMUTED = ("llama", "olmo", "smollm3", "granite")
LABELS = {
    Kind.F32: "ALL_F32", Kind.Q3_K: "MOSTLY_Q3_K_M", Kind.Q4_K: "MOSTLY_Q4_K_M",
    Kind.Q5_K: "MOSTLY_Q5_K_M", Kind.MXFP4: "MOSTLY_MXFP4_MOE",
}  # fmt: skip
TURNED = ("c_attn.weight", "c_proj.weight", "c_fc.weight")


def write_gguf(
    directory: Path,
    file: Path,
    kind: Kind = Kind.F32,
    parts: int = 1,
    change: Callable[[dict], dict] = dict,
    more: Callable[[gguf.GGUFWriter], None] = lambda writer: None,
) -> Path:
    """Write one file, or the first of several.

    Args:
      directory: with config.json and model.safetensors.
      file: to write.
      kind: of matrices whose rows fit it; norms and biases are in float32 as always.
      parts: how many files.
      change: of the tensors as they are stored.
      more: writes further keys.
    """
    config = json.loads((directory / "config.json").read_text())
    name = ARCHITECTURES[config["model_type"]]
    size = -(-len(load_file(directory / "model.safetensors")) // parts)
    writer = gguf.GGUFWriter(
        file, name, split_max_tensors=size if parts > 1 else 0, small_first_shard=False
    )
    writer.add_file_type(int(gguf.LlamaFileType[LABELS.get(kind, f"MOSTLY_{kind.name}")]))
    add_keys(writer, name, config)
    more(writer)
    for stored, array in sorted(change(converted(directory, name, config)).items()):
        blocks = kind != Kind.F32 and in_blocks(stored, array, kind)
        data = packed(array, kind) if blocks else array.astype(np.float32)
        writer.add_tensor(stored, data, raw_dtype=kind if blocks else Kind.F32)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file.with_name(f"{file.stem}-00001-of-{parts:05d}.gguf") if parts > 1 else file


# Where blocks of a type that the package reads and cannot make have their scales, in float16.
SCALES = {
    Kind.Q2_K: (80, 82), Kind.Q3_K: (108,), Kind.Q4_K: (0, 2), Kind.Q5_K: (0, 2),
    Kind.Q6_K: (208,), Kind.IQ2_XXS: (0,), Kind.IQ2_XS: (0,), Kind.IQ2_S: (0,),
    Kind.IQ3_XXS: (0,), Kind.IQ3_S: (0,), Kind.IQ1_S: (0,), Kind.IQ4_NL: (0,), Kind.IQ4_XS: (0,),
}  # fmt: skip
IQ1_M_SCALES = 48  # four uint16, of whose highest four bits its float16 is put together


def packed(array: np.ndarray, kind: Kind) -> np.ndarray:
    """A matrix as blocks of a type; of those that the package cannot make, any blocks of its
    size."""
    try:
        return gguf.quantize(array, kind)
    except NotImplementedError:
        block, size = gguf.GGML_QUANT_SIZES[kind]
        rng = np.random.default_rng(array.size)
        blocks = rng.integers(0, 256, (array.size // block, size), np.uint8)
        with_scale(blocks, kind, 1.0)
        with_scale(blocks, kind, array.std() / gguf.dequantize(blocks, kind).std())
        return blocks.reshape(*array.shape[:-1], -1)


def with_scale(blocks: np.ndarray, kind: Kind, scale: float) -> None:
    """Write the scale of every block."""
    half = np.float16(scale)
    for at in SCALES.get(kind, ()):
        blocks[:, at : at + 2] = np.frombuffer(half.tobytes(), np.uint8)
    if kind == Kind.IQ1_M:
        for part in range(4):
            high = blocks[:, IQ1_M_SCALES + 2 * part + 1]
            high[:] = (high & 0x0F) | (int(half.view(np.uint16)) >> 4 * part & 0x0F) << 4


def dequantised(directory: Path, place: Path, kind: Kind) -> Path:
    """The checkpoint of the weights that `write_gguf` leaves of another, as the package unpacks
    them.

    Where an entry of a published tensor goes in the file is found by sending its number there.
    """
    source, numbers, first = load_file(directory / "model.safetensors"), {}, 0
    for name, array in source.items():
        numbers[name] = np.arange(first, first + array.size, dtype=np.float32).reshape(array.shape)
        first += array.size
    assert first < 2**24  # whole numbers in float32
    place.mkdir()
    save_file(numbers, place / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config))
    name = ARCHITECTURES[config["model_type"]]
    values = np.concatenate([array.ravel() for array in source.values()])
    entries = converted(place, name, config)
    for stored, array in converted(directory, name, config).items():
        if in_blocks(stored, array, kind):
            values[entries[stored].astype(int)] = gguf.dequantize(packed(array, kind), kind)
    parts = np.split(values, np.cumsum([array.size for array in source.values()])[:-1])
    weights = {
        name: part.reshape(array.shape)
        for part, (name, array) in zip(parts, source.items(), strict=True)
    }
    save_file(weights, place / "model.safetensors", metadata={"format": "pt"})
    return place


def in_blocks(stored: str, array: np.ndarray, kind: Kind) -> bool:
    """Whether that is a matrix of weights whose rows are whole blocks."""
    rows = array.shape[-1] % gguf.GGML_QUANT_SIZES[kind][0] == 0
    return stored.endswith("weight") and array.ndim > 1 and rows


def sizes(config: dict) -> tuple[int, int, int, int, int]:
    """Layers, width, heads, KV heads, size of a head."""
    layers = next(config[x] for x in ("num_hidden_layers", "n_layer", "n_layers") if x in config)
    width = next(config[x] for x in ("hidden_size", "n_embd", "d_model") if x in config)
    heads = next(config[x] for x in ("num_attention_heads", "n_head", "n_heads") if x in config)
    kv = config.get("num_key_value_heads") or config.get("num_kv_heads") or heads
    if config["model_type"] == "falcon" and not config["new_decoder_architecture"]:
        kv = 1
    return layers, width, heads, kv, config.get("head_dim") or width // heads


def add_keys(writer: gguf.GGUFWriter, name: str, config: dict) -> None:
    """What the converter writes of a config."""
    layers, width, heads, kv, size = sizes(config)
    mlp = config.get("intermediate_size") or config.get("ffn_hidden_size") or 4 * width
    writer.add_block_count(layers)
    writer.add_embedding_length(width)
    writer.add_head_count(heads)
    writer.add_feed_forward_length(mlp)
    context = ("max_position_embeddings", "n_positions", "max_seq_len")
    writer.add_context_length(next((config[x] for x in context if x in config), 64))
    if kv != heads or name == "falcon":
        writer.add_head_count_kv(kv)
    if size != width // heads or name in ("gemma", "gemma2", "gemma3", "gpt-oss"):
        writer.add_key_length(size)
        writer.add_value_length(size)
    for field in ("layer_norm_eps", "layer_norm_epsilon", "norm_epsilon"):
        if field in config:
            writer.add_layer_norm_eps(config[field])
    if name == "olmo":
        writer.add_layer_norm_eps(1e-5)
    if "rms_norm_eps" in config:
        writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(config["vocab_size"])
    add_positions(writer, name, config, size)
    if config.get("sliding_window"):
        writer.add_sliding_window(config["sliding_window"])
    if config.get("layer_types") and name in ("gemma3", "olmo2"):
        writer.add_array(
            f"{name}.attention.sliding_window_pattern",
            [x == "sliding_attention" for x in config["layer_types"]],
        )
    if config.get("query_pre_attn_scalar"):
        writer.add_attention_scale(config["query_pre_attn_scalar"] ** -0.5)
    if config.get("attn_logit_softcapping"):
        writer.add_attn_logit_softcapping(config["attn_logit_softcapping"])
    if config.get("final_logit_softcapping"):
        writer.add_final_logit_softcapping(config["final_logit_softcapping"])
    if config.get("num_local_experts"):
        writer.add_expert_count(config["num_local_experts"])
        writer.add_expert_used_count(config["num_experts_per_tok"])
    if name == "gpt-oss":
        writer.add_expert_feed_forward_length(mlp)
    if name == "mpt":
        writer.add_max_alibi_bias(8.0)
    if name == "granite":
        writer.add_attention_scale(config["attention_multiplier"])
        writer.add_embedding_scale(config["embedding_multiplier"])
        writer.add_residual_scale(config["residual_multiplier"])
        writer.add_logit_scale(config["logits_scaling"])
    if name == "command-r":
        writer.add_logit_scale(config["logit_scale"])
    if config.get("clip_qkv"):
        writer.add_clamp_kqv(config["clip_qkv"])
    if name in ("gptneox", "stablelm"):
        writer.add_parallel_residual(config["use_parallel_residual"])


def add_positions(writer: gguf.GGUFWriter, name: str, config: dict, size: int) -> None:
    """Base, share and rule of rotary positions, local ones apart."""
    rotary = config.get("rope_parameters")
    if name in ("gpt2", "mpt") or rotary is None:
        return
    if "full_attention" in rotary:  # by kind of layer
        writer.add_rope_freq_base_swa(rotary["sliding_attention"]["rope_theta"])
        rotary = rotary["full_attention"]
    writer.add_rope_freq_base(rotary["rope_theta"])
    writer.add_rope_dimension_count(int(rotary.get("partial_rotary_factor", 1.0) * size))
    if rotary["rope_type"] == "yarn":
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(rotary["factor"])
        if rotary.get("attention_factor") is not None:
            writer.add_rope_scaling_yarn_attn_factor(rotary["attention_factor"])
        writer.add_rope_scaling_orig_ctx_len(rotary["original_max_position_embeddings"])
        writer.add_rope_scaling_yarn_beta_fast(rotary.get("beta_fast", 32.0))
        writer.add_rope_scaling_yarn_beta_slow(rotary.get("beta_slow", 1.0))


def converted(directory: Path, name: str, config: dict) -> dict[str, np.ndarray]:
    """The tensors under llama.cpp's names, in its layouts."""
    layers, _, heads, kv, size = sizes(config)
    number = {value: key for key, value in gguf.MODEL_ARCH_NAMES.items()}[name]
    names = gguf.get_tensor_name_map(number, layers)
    found, experts = {}, defaultdict(dict)
    for published, array in load_file(directory / "model.safetensors").items():
        array = array.astype(np.float32)
        if ".experts." in published:
            keep_expert(published, array, experts)
            continue
        known = published.removeprefix("transformer.") if name == "bloom" else published
        stored = names.get_name(known, try_suffixes=(".weight", ".bias"))
        if stored is None and published.endswith(("self_attn.sinks", "mlp.router.weight")):
            stored = names.get_name(published)
        assert stored is not None, published
        if name in PERMUTED and ("q_proj" in published or "k_proj" in published):
            array = permuted(array, heads if "q_proj" in published else kv)
        elif name.startswith("gemma") and "norm" in published:
            array = array + 1
        elif name == "gpt2" and published.endswith(TURNED):
            array = array.T
        elif "query_key_value.weight" in published or (
            name in ("gptneox", "bloom") and "query_key_value" in published
        ):
            array = apart(array, kv, heads // kv, size)
        if stored.endswith("attn_sinks"):
            stored += ".weight"
        found[stored] = np.ascontiguousarray(array)
    for stored, by_expert in experts.items():
        found[stored] = np.stack([by_expert[i] for i in range(len(by_expert))])
    return found


def permuted(array: np.ndarray, heads: int) -> np.ndarray:
    """Halves of a head to adjacent channels."""
    rest = array.shape[1:]
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *rest)
    return halves.swapaxes(1, 2).reshape(array.shape)


def apart(array: np.ndarray, kv: int, group: int, size: int) -> np.ndarray:
    """Queries, keys and values of each KV head to all queries, all keys, all values."""
    rest = array.shape[1:]
    by_group = array.reshape(kv, group + 2, size, *rest)
    parts = (by_group[:, :group], by_group[:, group], by_group[:, group + 1])
    return np.concatenate([part.reshape(-1, *rest) for part in parts])


def keep_expert(published: str, array: np.ndarray, experts: dict) -> None:
    """Mixtral's experts, one tensor each; gpt-oss', stacked, gate and up one row in turn."""
    words = published.split(".")
    block = f"blk.{words[2]}."
    if words[3] == "block_sparse_moe":
        kind = {"w1": "gate", "w3": "up", "w2": "down"}[words[6]]
        experts[f"{block}ffn_{kind}_exps.weight"][int(words[5])] = array
        return
    end = "bias" if words[5].endswith("_bias") else "weight"
    array = array if end == "bias" else array.swapaxes(1, 2)  # [E, out, in]
    if words[5].startswith("down"):
        experts[f"{block}ffn_down_exps.{end}"] = dict(enumerate(array))
    else:
        experts[f"{block}ffn_gate_exps.{end}"] = dict(enumerate(array[:, ::2]))
        experts[f"{block}ffn_up_exps.{end}"] = dict(enumerate(array[:, 1::2]))
