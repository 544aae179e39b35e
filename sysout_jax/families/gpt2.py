"""GPT-2: learned positions, matrices stored input first."""

from typing import Any

from sysout_jax.families.family import Family, Field, Group, Only, Raw, tensor
from sysout_jax.families.rows import PLAIN
from sysout_jax.model.config import ModelConfig


def _read_mlp(raw: Raw) -> dict[str, Any]:
    return {"mlp_width": raw.get("n_inner") or 4 * raw["n_embd"]}


def _write_mlp(c: ModelConfig) -> dict[str, Any]:
    return {"n_inner": c.sizes["F"]}


_FUSED = ("block/attn/query{}=G", "block/attn/key{}=1", "block/attn/value{}=1")
GPT2 = Family(
    name="gpt2",
    model_types=("gpt2",),
    architecture="GPT2LMHeadModel",
    covers="GPT-2 small to XL, DistilGPT2",
    cite="Radford et al. 2019, Language Models are Unsupervised Multitask Learners",
    fixed={"norm": "layer", "position": "learned", "bias": True},
    config=(
        Field("vocab_size", "vocab", 50257),
        Field("n_positions", "context", 1024),
        Field("n_layer", "layers", 12),
        Field("n_embd", "width"),
        Field("n_head", "heads", 12),
        Group(("n_inner",), ("mlp_width",), _read_mlp, _write_mlp),
        Field("layer_norm_epsilon", "norm_eps", 1e-5),
        Field("initializer_range", "init_std", 0.02),
        Field("tie_word_embeddings", "tied", True),
        Field("activation_function", "mlp", "gelu_new", PLAIN),
        Only("scale_attn_weights", True),
        Only("scale_attn_by_inverse_layer_idx", False),
        Only("add_cross_attention", False),
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
        tensor("h.{l}.attn.c_attn.weight", "D (+ K H)", *(name.format("") for name in _FUSED)),
        tensor("h.{l}.attn.c_attn.bias", "(+ K H)", *(name.format("_bias") for name in _FUSED)),
        tensor("h.{l}.attn.c_proj.weight", "(N H) D", "block/attn/out"),
        tensor("h.{l}.attn.c_proj.bias", "D", "block/attn/out_bias"),
        tensor("h.{l}.mlp.c_fc.weight", "D F", "block/mlp/up"),
        tensor("h.{l}.mlp.c_fc.bias", "F", "block/mlp/up_bias"),
        tensor("h.{l}.mlp.c_proj.weight", "F D", "block/mlp/down"),
        tensor("h.{l}.mlp.c_proj.bias", "D", "block/mlp/down_bias"),
    ),
    prefix="transformer.",
    ignored=(
        "n_ctx", "attn_pdrop", "embd_pdrop", "resid_pdrop", "reorder_and_upcast_attn",
        "summary_activation", "summary_first_dropout", "summary_proj_to_labels", "summary_type",
        "summary_use_proj",
    ),
    buffers=(r".*\.attn\.bias", r".*\.attn\.masked_bias"),
)  # fmt: skip
