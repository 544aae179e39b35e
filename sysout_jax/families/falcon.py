"""Falcon: the old decoder (one KV head, or ALiBi) and the new one (groups, two norms)."""

from typing import Any

from sysout_jax.errors import InputError
from sysout_jax.families.family import Family, Field, Group, Raw, biased, norm, tensor
from sysout_jax.families.rotary import rotary
from sysout_jax.families.rows import PLAIN, ROTARY_BUFFER
from sysout_jax.model.config import ModelConfig

_FIRST = ("RefinedWeb", "RefinedWebModel")  # what the first files called their model_type
_SHAPE = (
    "num_kv_heads", "multi_query", "new_decoder_architecture", "parallel_attn",
    "num_ln_in_parallel_attn", "ffn_hidden_size", "n_head_kv",
)  # fmt: skip


def _read_shape(raw: Raw) -> dict[str, Any]:
    heads, first = raw["num_attention_heads"], raw.get("model_type") in _FIRST
    # The first files with groups of heads were all of the new decoder, and did not say so.
    of_groups = raw.get("n_head_kv") if first else None
    new = bool(raw["new_decoder_architecture"] or of_groups)
    norms = raw.get("num_ln_in_parallel_attn") or (2 if new else 1)
    side_by_side = raw.get("parallel_attn", True)
    if (new and not side_by_side) or (not new and norms != 1):
        raise InputError(
            "new_decoder_architecture",
            f"{new}, parallel_attn={side_by_side}, num_ln_in_parallel_attn={norms}",
            "a new decoder in parallel, an old one with one norm",
        )
    if new:
        kv = raw.get("num_kv_heads") or of_groups or heads
    else:
        kv = 1 if raw.get("multi_query", True) else heads
    return {
        "kv_heads": kv,
        "parallel_block": ("separate" if norms == 2 else "shared") if side_by_side else "none",
        "mlp_width": raw.get("ffn_hidden_size") or 4 * raw["hidden_size"],
    }


def _write_shape(c: ModelConfig) -> dict[str, Any]:
    kv, new = c.sizes["K"], _is_new(c)
    return {
        "num_kv_heads": kv,
        "multi_query": kv == 1,
        "new_decoder_architecture": new,
        "parallel_attn": c.parallel_block != "none",
        "num_ln_in_parallel_attn": {"separate": 2, "shared": 1}.get(c.parallel_block)
        if new
        else None,
        "ffn_hidden_size": c.sizes["F"],
    }


def _is_new(c: ModelConfig) -> bool:
    return c.parallel_block == "separate" or c.sizes["K"] not in (1, c.heads)


def _one_kv_head(c: ModelConfig) -> bool:
    return c.sizes["K"] == 1 and not _is_new(c)


_QKV = "h.{l}.self_attention.query_key_value."
_GROUPED = ("=G", "=1", "=1")
_APART = ("=N", "=K", "=K")


def _owners(shares: tuple[str, str, str], suffix: str = "") -> tuple[str, ...]:
    names = ("query", "key", "value")
    return tuple(
        f"block/attn/{name}{suffix}{share}" for name, share in zip(names, shares, strict=True)
    )


FALCON = Family(
    name="falcon",
    model_types=("falcon", *_FIRST),
    architecture="FalconForCausalLM",
    covers="Falcon 7B, 40B, 180B, Falcon 2 11B, Falcon-RW 1B and 7B, and their instruct models",
    cite="Almazrouei et al. 2023 (arXiv:2311.16867)",
    fixed={"norm": "layer", "norm_bias": True, "alibi_falcon": True},
    config=(
        Field("vocab_size", "vocab"),
        Field("max_position_embeddings", "context"),
        Field("num_hidden_layers", "layers"),
        Field("hidden_size", "width"),
        Field("num_attention_heads", "heads"),
        Field("layer_norm_epsilon", "norm_eps"),
        Field("initializer_range", "init_std"),
        Field("tie_word_embeddings", "tied"),
        Field("activation", "mlp", PLAIN),
        Field("bias", "bias", {False: False, True: True, None: False}),
        Field("alibi", "position", {False: "rope", True: "alibi", None: "rope"}),
        Group(_SHAPE, ("kv_heads", "parallel_block", "mlp_width"), _read_shape, _write_shape),
        rotary(),
    ),
    tensors=(
        tensor("word_embeddings.weight", "V D", "embed"),
        tensor("/lm_head.weight", "V D", "head"),
        *norm("ln_f", "final_norm"),
        *(
            tensor(f"h.{{l}}.{stored}.{kind}", "D", f"block/{ours}/{own}", when=when)
            for kind, own in (("weight", "scale"), ("bias", "bias"))
            for stored, ours, when in (
                ("input_layernorm", "attn_norm", lambda c: c.parallel_block != "separate"),
                ("post_attention_layernorm", "mlp_norm", lambda c: c.parallel_block == "none"),
                ("ln_attn", "attn_norm", lambda c: c.parallel_block == "separate"),
                ("ln_mlp", "mlp_norm", lambda c: c.parallel_block == "separate"),
            )
        ),
        tensor(_QKV + "weight", "(+ H) D", *_owners(_APART), when=_one_kv_head),
        tensor(_QKV + "bias", "(+ H)", *_owners(_APART, "_bias"), when=_one_kv_head),
        tensor(
            _QKV + "weight", "(K + H) D", *_owners(_GROUPED), when=lambda c: not _one_kv_head(c)
        ),
        tensor(
            _QKV + "bias", "(K + H)", *_owners(_GROUPED, "_bias"),
            when=lambda c: not _one_kv_head(c),
        ),
        *biased("h.{l}.self_attention.dense", "D (N H)", "D", "block/attn/out"),
        *biased("h.{l}.mlp.dense_h_to_4h", "F D", "F", "block/mlp/up"),
        *biased("h.{l}.mlp.dense_4h_to_h", "D F", "D", "block/mlp/down"),
    ),
    prefix="transformer.",
    aliases={
        "n_embed": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
    },
    buffers=(r".*rotary\.inv_freq", ROTARY_BUFFER),
)  # fmt: skip
