"""GPT-J: attention and MLP side by side behind one norm, adjacent channels turned."""

from typing import Any

from sysout_jax.errors import InputError
from sysout_jax.families.family import Family, Field, Group, Raw, biased, norm, tensor
from sysout_jax.families.rows import PLAIN
from sysout_jax.model.config import ModelConfig


def _read_shape(raw: Raw) -> dict[str, Any]:
    channels, turned = raw["n_embd"] // raw["n_head"], raw["rotary_dim"]
    if not turned:  # the reference's code fails on it
        raise InputError("rotary_dim", turned, f"an even number up to {channels}")
    rope = {"rule": "plain", "fraction": turned / channels, "interleaved": True}
    return {"mlp_width": raw.get("n_inner") or 4 * raw["n_embd"], "rope": rope}


def _write_shape(c: ModelConfig) -> dict[str, Any]:
    return {"n_inner": c.sizes["F"], "rotary_dim": c.rope.channels(c.sizes["H"])}


_AT = "h.{l}.attn."
GPTJ = Family(
    name="gptj",
    model_types=("gptj",),
    architecture="GPTJForCausalLM",
    covers="GPT-J 6B and models of the same layout",
    cite="Wang and Komatsuzaki 2021 (github.com/kingoflolz/mesh-transformer-jax)",
    fixed={
        "norm": "layer", "position": "rope", "parallel_block": "shared", "bias": True,
        "qkv_bias": False, "out_bias": False, "head_bias": True,
    },
    config=(
        Field("vocab_size", "vocab"),
        Field("n_positions", "context"),
        Field("n_layer", "layers"),
        Field("n_embd", "width"),
        Field("n_head", "heads"),
        Group(("n_inner", "rotary_dim"), ("mlp_width", "rope"), _read_shape, _write_shape),
        Field("layer_norm_epsilon", "norm_eps"),
        Field("initializer_range", "init_std"),
        Field("tie_word_embeddings", "tied"),
        Field("activation_function", "mlp", PLAIN),
    ),
    tensors=(
        tensor("wte.weight", "V D", "embed"),
        *biased("/lm_head", "V D", "V", "head"),
        *norm("ln_f", "final_norm"),
        *norm("h.{l}.ln_1", "block/attn_norm"),
        tensor(_AT + "q_proj.weight", "(N H) D", "block/attn/query"),
        tensor(_AT + "k_proj.weight", "(K H) D", "block/attn/key"),
        tensor(_AT + "v_proj.weight", "(K H) D", "block/attn/value"),
        tensor(_AT + "out_proj.weight", "D (N H)", "block/attn/out"),
        *biased("h.{l}.mlp.fc_in", "F D", "F", "block/mlp/up"),
        *biased("h.{l}.mlp.fc_out", "D F", "D", "block/mlp/down"),
    ),
    prefix="transformer.",
    buffers=(r".*\.attn\.bias", r".*\.attn\.masked_bias"),
)  # fmt: skip
