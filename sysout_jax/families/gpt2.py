"""GPT-2: learned positions, matrices stored input first."""

from typing import Any

from sysout_jax.families.family import Family, Field, Group, Raw, tensor
from sysout_jax.families.rows import FUSED, PLAIN
from sysout_jax.model.config import ModelConfig


def _read_mlp(raw: Raw) -> dict[str, Any]:
    return {"mlp_width": raw.get("n_inner") or 4 * raw["n_embd"]}


def _write_mlp(c: ModelConfig) -> dict[str, Any]:
    return {"n_inner": c.sizes["F"]}


GPT2 = Family(
    name="gpt2",
    model_types=("gpt2",),
    architecture="GPT2LMHeadModel",
    covers="GPT-2 small to XL, DistilGPT2, the five seeds of Mistral (Stanford CRFM)",
    cite="Radford et al. 2019, Language Models are Unsupervised Multitask Learners",
    fixed={"norm": "layer", "position": "learned", "bias": True},
    config=(
        Field("vocab_size", "vocab"),
        Field("n_positions", "context"),
        Field("n_layer", "layers"),
        Field("n_embd", "width"),
        Field("n_head", "heads"),
        Group(("n_inner",), ("mlp_width",), _read_mlp, _write_mlp),
        Field("layer_norm_epsilon", "norm_eps"),
        Field("initializer_range", "init_std"),
        Field("tie_word_embeddings", "tied"),
        Field("activation_function", "mlp", PLAIN),
        Field("scale_attn_by_inverse_layer_idx", "query_scale_by_layer"),
    ),
    tensors=(
        tensor("wte.weight", "V D", "embed"),
        tensor("/lm_head.weight", "V D", "head"),
        tensor("wpe.weight", "T D", "positions"),
        tensor("ln_f.weight", "D", "final_norm/scale"),
        tensor("ln_f.bias", "D", "final_norm/bias"),
        tensor("h.{l}.ln_1.weight", "D", "block/attn_norm/scale"),
        tensor("h.{l}.ln_1.bias", "D", "block/attn_norm/bias"),
        tensor("h.{l}.ln_2.weight", "D", "block/mlp_norm/scale"),
        tensor("h.{l}.ln_2.bias", "D", "block/mlp_norm/bias"),
        tensor("h.{l}.attn.c_attn.weight", "D (+ K H)", *(name.format("") for name in FUSED)),
        tensor("h.{l}.attn.c_attn.bias", "(+ K H)", *(name.format("_bias") for name in FUSED)),
        tensor("h.{l}.attn.c_proj.weight", "(N H) D", "block/attn/out"),
        tensor("h.{l}.attn.c_proj.bias", "D", "block/attn/out_bias"),
        tensor("h.{l}.mlp.c_fc.weight", "D F", "block/mlp/up"),
        tensor("h.{l}.mlp.c_fc.bias", "F", "block/mlp/up_bias"),
        tensor("h.{l}.mlp.c_proj.weight", "F D", "block/mlp/down"),
        tensor("h.{l}.mlp.c_proj.bias", "D", "block/mlp/down_bias"),
    ),
    prefix="transformer.",
    buffers=(r".*\.attn\.bias", r".*\.attn\.masked_bias"),
)  # fmt: skip
