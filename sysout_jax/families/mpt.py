"""MPT: ALiBi, no biases anywhere, an MLP of four times the width."""

from typing import Any

from sysout_jax.families.family import Family, Field, Fixed, Group, Raw, tensor


def _read_mlp(raw: Raw) -> dict[str, Any]:
    return {"mlp_width": 4 * raw["d_model"]}


MPT = Family(
    name="mpt",
    model_types=("mpt",),
    architecture="MptForCausalLM",
    covers="MPT 7B and 30B, their instruct and chat models",
    cite="MosaicML 2023, Introducing MPT-7B",
    fixed={"norm": "layer", "position": "alibi", "mlp": "gelu_exact", "bias": False},
    config=(
        Field("vocab_size", "vocab"),
        Field("max_seq_len", "context"),
        Field("n_layers", "layers"),
        Field("d_model", "width"),
        Field("n_heads", "heads"),
        Field("layer_norm_epsilon", "norm_eps"),
        Field("initializer_range", "init_std"),
        Field("tie_word_embeddings", "tied"),
        Group((), ("mlp_width",), _read_mlp, lambda c: {}),
        Field("attn_config.clip_qkv", "clip_qkv"),
        Field("attn_config.softmax_scale", "query_scale"),
        # The reference computes as if these were at their defaults; MosaicML's own code reads them.
        Fixed("attn_config.alibi", True),
        Fixed("attn_config.alibi_bias_max", 8),
        Fixed("attn_config.attn_type", "multihead_attention"),
        Fixed("attn_config.qk_ln", False),
        Fixed("attn_config.prefix_lm", False),
        Fixed("attn_config.attn_uses_sequence_id", False),
        Fixed("expansion_ratio", 4),
        Fixed("no_bias", True),
        Fixed("logit_scale", None),
        Fixed("norm_type", "low_precision_layernorm"),
        Fixed("embedding_fraction", 1.0),
    ),
    tensors=(
        tensor("wte.weight", "V D", "embed"),
        tensor("/lm_head.weight", "V D", "head"),
        tensor("norm_f.weight", "D", "final_norm/scale"),
        tensor("blocks.{l}.norm_1.weight", "D", "block/attn_norm/scale"),
        tensor("blocks.{l}.norm_2.weight", "D", "block/mlp_norm/scale"),
        tensor(
            "blocks.{l}.attn.Wqkv.weight", "(+ K H) D",
            "block/attn/query=G", "block/attn/key=1", "block/attn/value=1",
        ),
        tensor("blocks.{l}.attn.out_proj.weight", "D (N H)", "block/attn/out"),
        tensor("blocks.{l}.ffn.up_proj.weight", "F D", "block/mlp/up"),
        tensor("blocks.{l}.ffn.down_proj.weight", "D F", "block/mlp/down"),
    ),
    prefix="transformer.",
    # learned_pos_emb is without effect beside ALiBi, in the reference too
)  # fmt: skip
