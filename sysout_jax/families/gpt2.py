"""GPT-2: learned positions, matrices stored input first."""

from typing import Any

from sysout_jax.families.family import Family, Field, Group, Raw, biased, norm, tensor
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
        *norm("ln_f", "final_norm"),
        *norm("h.{l}.ln_1", "block/attn_norm"),
        *norm("h.{l}.ln_2", "block/mlp_norm"),
        tensor("h.{l}.attn.c_attn.weight", "D (+ K H)", *(name.format("") for name in FUSED)),
        tensor("h.{l}.attn.c_attn.bias", "(+ K H)", *(name.format("_bias") for name in FUSED)),
        *biased("h.{l}.attn.c_proj", "(N H) D", "D", "block/attn/out"),
        *biased("h.{l}.mlp.c_fc", "D F", "F", "block/mlp/up"),
        *biased("h.{l}.mlp.c_proj", "F D", "D", "block/mlp/down"),
    ),
    prefix="transformer.",
    buffers=(r".*\.attn\.bias", r".*\.attn\.masked_bias"),
)  # fmt: skip
