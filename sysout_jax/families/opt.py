"""OPT: GPT-3's layout, with learned positions that start two rows in."""

from typing import Any

from sysout_jax.families.family import Family, Field, Group, Raw, biased, norm, tensor
from sysout_jax.families.rows import PLAIN
from sysout_jax.model.config import ModelConfig

_OFFSET = 2


def _read_positions(raw: Raw) -> dict[str, Any]:
    return {"context": raw.get("max_position_embeddings", 2048) + _OFFSET}


def _write_positions(c: ModelConfig) -> dict[str, Any]:
    return {"max_position_embeddings": c.context - _OFFSET}


def _read_projection(raw: Raw) -> dict[str, Any]:
    projected = raw.get("word_embed_proj_dim")
    return {"embed_width": None if projected == raw["hidden_size"] else projected}


def _write_projection(c: ModelConfig) -> dict[str, Any]:
    return {} if c.embed_width is None else {"word_embed_proj_dim": c.embed_width}


def _plain(c: ModelConfig) -> bool:
    return c.embed_width is None


def _projected(c: ModelConfig) -> bool:
    return c.embed_width is not None


_AT = "layers.{l}.self_attn."
OPT = Family(
    name="opt",
    model_types=("opt",),
    architecture="OPTForCausalLM",
    covers="OPT 125M to 66B",
    cite="Zhang et al. 2022 (arXiv:2205.01068)",
    fixed={"norm": "layer", "norm_eps": 1e-5, "position": "learned", "position_offset": _OFFSET},
    config=(
        Field("vocab_size", "vocab"),
        Field("num_hidden_layers", "layers"),
        Field("hidden_size", "width"),
        Field("num_attention_heads", "heads"),
        Field("ffn_dim", "mlp_width"),
        Field("init_std", "init_std"),
        Group(("max_position_embeddings",), ("context",), _read_positions, _write_positions),
        Group(("word_embed_proj_dim",), ("embed_width",), _read_projection, _write_projection),
        Field("do_layer_norm_before", "norm_placement", {True: "pre", False: "post"}),
        Field("activation_function", "mlp", PLAIN),
        Field("enable_bias", "bias"),
        Field("tie_word_embeddings", "tied"),
        Field("layer_norm_elementwise_affine", "norm_scale"),
        Field("layer_norm_elementwise_affine", "norm_bias"),
    ),
    tensors=(
        tensor("embed_tokens.weight", "V D", "embed", when=_plain),
        tensor("/lm_head.weight", "V D", "head", when=_plain),
        tensor("embed_tokens.weight", "V W", "embed", when=_projected),
        tensor("/lm_head.weight", "V W", "head", when=_projected),
        tensor("project_in.weight", "D W", "embed_in"),
        tensor("project_out.weight", "W D", "embed_out"),
        tensor("embed_positions.weight", "T D", "positions"),
        *norm("final_layer_norm", "final_norm"),
        *norm("layers.{l}.self_attn_layer_norm", "block/attn_norm"),
        *norm("layers.{l}.final_layer_norm", "block/mlp_norm"),
        *biased(_AT + "q_proj", "(N H) D", "(N H)", "block/attn/query"),
        *biased(_AT + "k_proj", "(K H) D", "(K H)", "block/attn/key"),
        *biased(_AT + "v_proj", "(K H) D", "(K H)", "block/attn/value"),
        *biased(_AT + "out_proj", "D (N H)", "D", "block/attn/out"),
        *biased("layers.{l}.fc1", "F D", "F", "block/mlp/up"),
        *biased("layers.{l}.fc2", "D F", "D", "block/mlp/down"),
    ),
    prefix="model.decoder.",
)
