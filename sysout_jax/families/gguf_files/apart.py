"""Architectures that are no relatives of LLaMA, as GGUF files call their sizes and tensors."""

from collections.abc import Iterator

from sysout_jax.families.gguf_files.config import BASE, LAYER, Metadata, Raw, llama_like
from sysout_jax.families.gguf_files.header import Tensor
from sysout_jax.families.gguf_files.names import (
    ATTENTION,
    LLAMA,
    Names,
    as_it_is,
    by_group,
    ends,
    key_rows,
    pairs,
    query_rows,
    reordered,
    split,
    transposed,
)
from sysout_jax.families.gguf_files.tensors import Undone, published


def phi2(meta: Metadata) -> Raw:
    """Phi-1, 1.5 and 2."""
    return llama_like(meta, LAYER, "partial_rotary_factor") | {"model_type": "phi"}


PHI2: Names = {
    **ends("model.embed_tokens", "model.final_layernorm"),
    **ATTENTION,
    **pairs(
        LLAMA,
        ("attn_norm", "input_layernorm"),
        ("attn_output", "self_attn.dense"),
        ("ffn_up", "mlp.fc1"),
        ("ffn_down", "mlp.fc2"),
        (
            "attn_qkv", "self_attn.{part}_proj",
            split(("q", query_rows), ("k", key_rows), ("v", key_rows)),
        ),
    ),
}  # fmt: skip


def gpt2(meta: Metadata) -> Raw:
    """GPT-2, with its own names for sizes."""
    heads, _, _ = meta.heads
    return {
        "model_type": "gpt2",
        "n_positions": meta.whole("context_length"),
        "n_embd": meta.whole("embedding_length"),
        "n_layer": meta.whole("block_count"),
        "n_head": heads,
        "n_inner": meta.whole("feed_forward_length"),
        "layer_norm_epsilon": meta.get(LAYER[0]),
    }


GPT2: Names = {
    **ends("transformer.wte", "transformer.ln_f"),
    "position_embd.weight": ("transformer.wpe.weight", as_it_is),
    **pairs(
        "transformer.h.{l}.",
        ("attn_norm", "ln_1"),
        ("ffn_norm", "ln_2"),
        ("attn_qkv", "attn.c_attn", transposed),
        ("attn_output", "attn.c_proj", transposed),
        ("ffn_up", "mlp.c_fc", transposed),
        ("ffn_down", "mlp.c_proj", transposed),
    ),
}


def gpt_neox(meta: Metadata) -> Raw:
    """GPT-NeoX and Pythia."""
    raw = llama_like(meta, LAYER, "rotary_pct")
    raw["rotary_emb_base"] = raw.pop("rope_theta")
    if raw.pop("num_key_value_heads") != raw["num_attention_heads"]:
        meta.refuse("attention.head_count_kv", "fewer than the heads", "as many")
    # The file does not say which GELU: the 20B model's is that of tanh, Pythia's the exact one.
    act = {"hidden_act": "gelu_fast"} if raw["num_hidden_layers"] == 44 else {}
    return (
        raw
        | act
        | {
            "model_type": "gpt_neox",
            "use_parallel_residual": meta.get("use_parallel_residual", True),
            "attention_bias": meta.has("attn_output.bias"),
        }
    )


GPT_NEOX: Names = {
    **ends("gpt_neox.embed_in", "gpt_neox.final_layer_norm", "embed_out"),
    **pairs(
        "gpt_neox.layers.{l}.",
        ("attn_norm", "input_layernorm"),
        ("ffn_norm", "post_attention_layernorm"),
        ("attn_qkv", "attention.query_key_value", reordered(by_group)),
        ("attn_output", "attention.dense"),
        ("ffn_up", "mlp.dense_h_to_4h"),
        ("ffn_down", "mlp.dense_4h_to_h"),
    ),
}


def bloom(meta: Metadata) -> Raw:
    """BLOOM: as many KV heads as heads, an MLP of four times the width, any length of text."""
    heads, kv, _ = meta.heads
    width = meta.whole("embedding_length")
    meta.get("context_length")
    for key, found, only in (
        ("attention.head_count_kv", kv, heads),
        ("feed_forward_length", meta.whole("feed_forward_length"), 4 * width),
    ):
        if found != only:
            meta.refuse(key, f"{found}", f"{only}")
    return {
        "model_type": "bloom",
        "hidden_size": width,
        "n_layer": meta.whole("block_count"),
        "n_head": heads,
        "layer_norm_epsilon": meta.get(LAYER[0]),
    }


BLOOM: Names = {
    **ends("transformer.word_embeddings", "transformer.ln_f"),
    **{
        f"token_embd_norm.{kind}": (f"transformer.word_embeddings_layernorm.{kind}", as_it_is)
        for kind in ("weight", "bias")
    },
    **pairs(
        "transformer.h.{l}.",
        ("attn_norm", "input_layernorm"),
        ("ffn_norm", "post_attention_layernorm"),
        ("attn_qkv", "self_attention.query_key_value", reordered(by_group)),
        ("attn_output", "self_attention.dense"),
        ("ffn_up", "mlp.dense_h_to_4h"),
        ("ffn_down", "mlp.dense_4h_to_h"),
    ),
}


def falcon(meta: Metadata) -> Raw:
    """The new decoder has two norms, or several KV heads; what the file cannot say is as in every
    published model that can be converted: rotary positions, MLP and attention side by side. Of
    Falcon 2, one norm and several KV heads, llama.cpp's converter writes another context and no
    base."""
    two = meta.has("attn_norm_2.weight")
    second = meta.heads[1] > 1 and not two
    eps = ("attention.layer_norm_epsilon", "layer_norm_epsilon")
    raw = llama_like(meta, eps, base=500_042.0 if second else BASE)
    kv, wide = raw.pop("num_key_value_heads"), raw.pop("intermediate_size")
    new = two or kv > 1
    more = {"num_kv_heads": kv, "num_ln_in_parallel_attn": 2 if two else 1} if new else {}
    return {
        **raw,
        **more,
        "model_type": "falcon",
        "new_decoder_architecture": new,
        "multi_query": True,
        "bias": meta.has("attn_output.bias"),
        "parallel_attn": True,
        "ffn_hidden_size": wide,
    }


def _first_norm(meta: Metadata, tensor: Tensor, name: str) -> Iterator[Undone]:
    """The norm of the MLP where there are two."""
    other = name.replace("input_layernorm", "ln_mlp") if meta.has("attn_norm_2.weight") else name
    yield published(other, (tensor,))


FALCON: Names = {
    **ends("transformer.word_embeddings", "transformer.ln_f"),
    **pairs(
        "transformer.h.{l}.",
        ("attn_norm", "input_layernorm", _first_norm),
        ("attn_norm_2", "ln_attn"),
        ("attn_qkv", "self_attention.query_key_value", reordered(by_group)),
        ("attn_output", "self_attention.dense"),
        ("ffn_up", "mlp.dense_h_to_4h"),
        ("ffn_down", "mlp.dense_4h_to_h"),
    ),
    # The converter moves the rows of the matrix alone.
    "blk.{l}.attn_qkv.bias": ("transformer.h.{l}.self_attention.query_key_value.bias", as_it_is),
}


def mpt(meta: Metadata) -> Raw:
    """MPT, with its own names for sizes."""
    heads, kv, _ = meta.heads
    width = meta.whole("embedding_length")
    clip, bias = meta.get("attention.clamp_kqv"), meta.number("attention.max_alibi_bias", 0.0)
    return {
        "model_type": "mpt",
        "max_seq_len": meta.whole("context_length"),
        "d_model": width,
        "n_layers": meta.whole("block_count"),
        "n_heads": heads,
        "layer_norm_epsilon": meta.get(LAYER[0]),
        "expansion_ratio": meta.whole("feed_forward_length") / width,
        "attn_config": {
            "alibi": bias > 0,
            **({"alibi_bias_max": bias} if bias else {}),
            **({"clip_qkv": clip} if clip else {}),
            **({"kv_n_heads": kv} if kv != heads else {}),
        },
    }


MPT: Names = {
    **ends("transformer.wte", "transformer.norm_f"),
    **pairs(
        "transformer.blocks.{l}.",
        ("attn_norm", "norm_1"),
        ("ffn_norm", "norm_2"),
        ("attn_qkv", "attn.Wqkv"),
        ("attn_output", "attn.out_proj"),
        ("ffn_up", "ffn.up_proj"),
        ("ffn_down", "ffn.down_proj"),
    ),
}
