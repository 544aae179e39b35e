"""GPT-Neo: GPT-2 with windows in every second layer, and logits that are not scaled."""

from itertools import islice
from typing import Any

from sysout_jax.errors import InputError
from sysout_jax.families.family import Family, Field, Group, Raw, biased, norm, tensor
from sysout_jax.families.rows import PLAIN, windowed
from sysout_jax.model.config import ModelConfig

_KINDS = ("global", "local")
_AT = "h.{l}.attn.attention."


def _read_windows(raw: Raw) -> dict[str, Any]:
    layers, spelled = raw["num_layers"], raw.get("attention_types") or [[["global", "local"], 12]]
    kinds = raw.get("attention_layers")  # which counts where both are given
    if kinds is None:
        most = layers + 1  # of a repetition, which a damaged number must not be counted up to
        listed = (
            kind for pattern, times in spelled for _ in range(min(times, most)) for kind in pattern
        )
        kinds = list(islice(listed, most))
    if len(kinds) != layers or not {*kinds} <= {*_KINDS}:
        said = ", ".join(sorted(map(str, {*kinds})))
        why = f"{len(kinds) if len(kinds) <= layers else 'more'} of {layers} layers, {said}"
        raise InputError("attention_types", None, "global or local for each layer", why)
    return windowed(raw["window_size"], [kind == "local" for kind in kinds])


def _write_windows(c: ModelConfig) -> dict[str, Any]:
    kinds = [_KINDS[layer in c.layers_with_window] for layer in range(c.layers)]
    spelled = {"attention_types": [[[kind], 1] for kind in kinds]}
    return spelled if c.window is None else spelled | {"window_size": c.window}


def _read_mlp(raw: Raw) -> dict[str, Any]:
    return {"mlp_width": raw.get("intermediate_size") or 4 * raw["hidden_size"]}


def _write_mlp(c: ModelConfig) -> dict[str, Any]:
    return {"intermediate_size": c.sizes["F"]}


GPT_NEO = Family(
    name="gpt_neo",
    model_types=("gpt_neo",),
    architecture="GPTNeoForCausalLM",
    covers="GPT-Neo 125M, 1.3B and 2.7B, TinyStories",
    cite="Black et al. 2021 (doi:10.5281/zenodo.5297715)",
    fixed={
        "norm": "layer", "position": "learned", "bias": True, "qkv_bias": False,
        "query_scale": 1.0,
    },
    config=(
        Field("vocab_size", "vocab"),
        Field("max_position_embeddings", "context"),
        Field("num_layers", "layers"),
        Field("hidden_size", "width"),
        Field("num_heads", "heads"),
        Group(("intermediate_size",), ("mlp_width",), _read_mlp, _write_mlp),
        Field("layer_norm_epsilon", "norm_eps"),
        Field("initializer_range", "init_std"),
        Field("tie_word_embeddings", "tied"),
        Field("activation_function", "mlp", PLAIN),
        Group(
            ("attention_types", "attention_layers", "window_size"), ("window", "window_layers"),
            _read_windows, _write_windows,
        ),
    ),
    tensors=(
        tensor("wte.weight", "V D", "embed"),
        tensor("/lm_head.weight", "V D", "head"),
        tensor("wpe.weight", "T D", "positions"),
        *norm("ln_f", "final_norm"),
        *norm("h.{l}.ln_1", "block/attn_norm"),
        *norm("h.{l}.ln_2", "block/mlp_norm"),
        tensor(_AT + "q_proj.weight", "(N H) D", "block/attn/query"),
        tensor(_AT + "k_proj.weight", "(K H) D", "block/attn/key"),
        tensor(_AT + "v_proj.weight", "(K H) D", "block/attn/value"),
        *biased(_AT + "out_proj", "D (N H)", "D", "block/attn/out"),
        *biased("h.{l}.mlp.c_fc", "F D", "F", "block/mlp/up"),
        *biased("h.{l}.mlp.c_proj", "D F", "D", "block/mlp/down"),
    ),
    prefix="transformer.",
    buffers=(r".*\.attn\.attention\.bias", r".*\.attn\.attention\.masked_bias"),
)  # fmt: skip
