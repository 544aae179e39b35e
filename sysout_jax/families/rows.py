"""Rows that many families share: sizes, windows by layer, the tensors of LLaMA's kind."""

from collections.abc import Callable, Sequence
from typing import Any

from sysout_jax.errors import InputError
from sysout_jax.families.family import Field, Group, Raw, Row, Tensor, biased, tensor
from sysout_jax.model.config import ModelConfig

GATED = {
    "silu": "swiglu",
    "swish": "swiglu",
    "gelu_pytorch_tanh": "geglu",
    "gelu_new": "geglu",
    "gelu": "geglu_exact",
    "relu": "reglu",
}
PLAIN = {
    "gelu_new": "gelu",
    "gelu_fast": "gelu",
    "gelu_pytorch_tanh": "gelu",
    "gelu": "gelu_exact",
    "relu": "relu",
}


# Everything that counts something, under the names most families use.
SIZES: tuple[Row, ...] = (
    Field("vocab_size", "vocab"),
    Field("max_position_embeddings", "context"),
    Field("num_hidden_layers", "layers"),
    Field("hidden_size", "width"),
    Field("num_attention_heads", "heads"),
    Field("num_key_value_heads", "kv_heads"),
    Field("head_dim", "head_dim"),
    Field("intermediate_size", "mlp_width"),
    Field("initializer_range", "init_std"),
)


EXPERTS: tuple[Row, ...] = (  # of models that choose among many small ones
    Field("num_experts_per_tok", "experts_per_token"),
    Field("norm_topk_prob", "experts_sum_to_one"),
)


def expert_tensors() -> tuple[Tensor, ...]:
    """A router, and gate, up and down of each expert."""
    inside = "layers.{l}.mlp."
    return (
        tensor(f"{inside}gate.weight", "E D", "block/mlp/router"),
        *(
            tensor(f"{inside}experts.{{e}}.{name}_proj.weight", axes, f"block/mlp/{name}")
            for name, axes in (("gate", "F D"), ("up", "F D"), ("down", "D F"))
        ),
    )


FUSED_EXPERTS = (  # as transformers 5 saves mixtures with save_original_format=False
    tensor("layers.{l}.mlp.gate.weight", "E D", "block/mlp/router"),
    tensor("layers.{l}.mlp.experts.gate_up_proj", "E + D", "block/mlp/gate=F", "block/mlp/up=F"),
    tensor("layers.{l}.mlp.experts.down_proj", "E D F", "block/mlp/down"),
)


def _natural_head_dim(raw: Raw) -> dict[str, Any]:
    natural = raw["hidden_size"] // raw["num_attention_heads"]
    if raw.get("head_dim") not in (None, natural):
        raise InputError("head_dim", raw["head_dim"], f"{natural}, hidden size over heads")
    return {}


# of a family whose rotary positions alone read it
NATURAL_HEAD_DIM = Group(("head_dim",), (), _natural_head_dim, lambda c: {})


# ------------------------------------------------------------------------- windows by layer


def windowed(size: int | None, layers: Sequence[bool]) -> dict[str, Any]:
    """The window's fields, of a size and of which layers have it."""
    chosen = tuple(layer for layer, has in enumerate(layers) if has)
    if size is None or not chosen:
        return {"window": None, "window_layers": None}
    return {"window": size, "window_layers": None if all(layers) else chosen}


def windows(
    local: Callable[[int, Raw], bool],
    switch: bool = False,
    others: tuple[str, ...] = (),
    least: int | None = None,
    named: bool = True,
) -> Group:
    """Windows of some layers: "layer_types", or the pattern that its absence means.

    Args:
      local: whether a layer (from 0) has the window, where "layer_types" does not say.
      switch: whether "use_sliding_window" turns windows on.
      others: fields that `local` reads.
      least: what is written as the window where no layer has one; None where null is accepted.
      named: whether "layer_types" is written where all layers are alike.
    """
    names = ("sliding_window", "layer_types", *others)
    names += ("use_sliding_window",) if switch else ()

    def read(raw: Raw) -> dict[str, Any]:
        layers, size = raw["num_hidden_layers"], raw.get("sliding_window")
        if switch and not raw["use_sliding_window"]:
            size = None
        kinds = raw.get("layer_types") or [
            "sliding_attention" if size and local(i, raw) else "full_attention"
            for i in range(layers)
        ]
        unknown = {str(kind) for kind in kinds} - {"sliding_attention", "full_attention"}
        if unknown or len(kinds) != layers:
            raise InputError(
                "layer_types",
                None,
                "sliding_attention or full_attention for each layer",
                f"{len(kinds)} of {layers} layers, {', '.join(sorted(unknown))}",
            )
        return windowed(size, [kind == "sliding_attention" for kind in kinds])

    def write(c: ModelConfig) -> dict[str, Any]:
        chosen = c.layers_with_window
        kinds = ["sliding_attention" if i in chosen else "full_attention" for i in range(c.layers)]
        out: dict[str, Any] = {"sliding_window": c.window or least}
        out |= {"layer_types": kinds} if named or len(set(kinds)) > 1 else {}
        return out | ({"use_sliding_window": c.window is not None} if switch else {})

    return Group(names, ("window", "window_layers"), read, write)


# ------------------------------------------------------------------------- tensors


def llama_attention(norms: bool = True) -> tuple[Tensor, ...]:
    """LLaMA's names of the embedding, the head, attention and, unless not, the two norms."""
    at = "layers.{l}.self_attn."
    norm_rows = (
        tensor("layers.{l}.input_layernorm.weight", "D", "block/attn_norm/scale"),
        tensor("layers.{l}.post_attention_layernorm.weight", "D", "block/mlp_norm/scale"),
    )
    return (
        tensor("embed_tokens.weight", "V D", "embed"),
        tensor("/lm_head.weight", "V D", "head"),
        tensor("norm.weight", "D", "final_norm/scale"),
        *biased(at + "q_proj", "(N H) D", "(N H)", "block/attn/query"),
        *biased(at + "k_proj", "(K H) D", "(K H)", "block/attn/key"),
        *biased(at + "v_proj", "(K H) D", "(K H)", "block/attn/value"),
        *biased(at + "o_proj", "D (N H)", "D", "block/attn/out"),
        *(norm_rows if norms else ()),
    )


LLAMA_MLP = (
    *biased("layers.{l}.mlp.gate_proj", "F D", "F", "block/mlp/gate"),
    *biased("layers.{l}.mlp.up_proj", "F D", "F", "block/mlp/up"),
    *biased("layers.{l}.mlp.down_proj", "D F", "D", "block/mlp/down"),
)
# Queries, keys and values of each KV head in one tensor; in the braces "_bias", or nothing.
FUSED = ("block/attn/query{}=G", "block/attn/key{}=1", "block/attn/value{}=1")
ROTARY_BUFFER = r".*rotary_emb\.inv_freq"
LLAMA_LIKE = {"norm": "rms", "position": "rope", "bias": False}
EPS = Field("rms_norm_eps", "norm_eps")
ATTENTION_BIASES = (Field("attention_bias", "qkv_bias"), Field("attention_bias", "out_bias"))
TIED = Field("tie_word_embeddings", "tied")
ACT = Field("hidden_act", "mlp", GATED)
LLAMA_ROWS: tuple[Row, ...] = (*SIZES, EPS, TIED, ACT, *ATTENTION_BIASES)
