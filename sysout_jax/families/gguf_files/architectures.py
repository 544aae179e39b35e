"""The architectures of GGUF files: what each calls its sizes and tensors, by which published family
it is read."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sysout_jax.families.gguf_files import apart
from sysout_jax.families.gguf_files.config import (
    BASE,
    LAYER,
    RMS,
    Metadata,
    Raw,
    experts,
    llama_like,
    window,
)
from sysout_jax.families.gguf_files.names import (
    ATTENTION,
    HEAD_NORMS,
    LLAMA,
    LLAMA_ENDS,
    MLP,
    NORMS,
    PERMUTED,
    Names,
    alternating,
    as_it_is,
    each_expert,
    ends,
    pairs,
    plus_one,
    taken_with,
    transposed,
)

_LOG = logging.getLogger("sysout_jax")


@dataclass(frozen=True)
class Architecture:
    """One value of "general.architecture".

    Attributes:
      config: metadata to the published config.json, "model_type" with it.
      names: stored names to published ones.
    """

    config: Callable[[Metadata], Raw]
    names: Names


def _llama(meta: Metadata) -> Raw:
    """LLaMA, Mistral and Mixtral share an architecture; Mistral's window is not in every file."""
    raw = llama_like(meta) | {"head_dim": meta.heads[2]}
    if meta.get("expert_count", 0):
        return raw | experts(meta) | {"model_type": "mixtral"}
    span = meta.get("attention.sliding_window", 0)
    if span:
        return raw | {"model_type": "mistral", "sliding_window": span}
    bias = {"attention_bias": meta.has("attn_q.bias"), "mlp_bias": meta.has("ffn_up.bias")}
    return raw | bias | {"model_type": "llama"}


_SPARSE = "model.layers.{l}.block_sparse_moe."
_EXPERTS: Names = {
    "blk.{l}.ffn_gate_inp.weight": (f"{_SPARSE}gate.weight", as_it_is),
    **{
        f"blk.{{l}}.ffn_{stored}{rest}.weight": (f"{_SPARSE}experts.{{e}}.{name}.weight", undo)
        for stored, name in (("gate", "w1"), ("up", "w3"), ("down", "w2"))
        for rest, undo in ((".{e}", as_it_is), ("_exps", each_expert))
    },
}


def _qwen2(meta: Metadata) -> Raw:
    return llama_like(meta, rotary_name="partial_rotary_factor") | {"model_type": "qwen2"}


def _qwen3(meta: Metadata) -> Raw:
    bias = {"attention_bias": meta.has("attn_q.bias"), "head_dim": meta.heads[2]}
    return llama_like(meta, rotary_name="partial_rotary_factor") | bias | {"model_type": "qwen3"}


def _smollm3(meta: Metadata) -> Raw:
    """Every fourth layer has no positions, which no key says."""
    bias = {"attention_bias": meta.has("attn_q.bias"), "mlp_bias": meta.has("ffn_up.bias")}
    return llama_like(meta) | bias | {"model_type": "smollm3"}


def _granite(meta: Metadata) -> Raw:
    """Factors that are absent are 1, and attention's the usual one. Files of Granite 4 say how wide
    state spaces and experts would be, where there are none."""
    if not any(".ssm_" in name for name in meta.tensors):
        for key in ("conv_kernel", "state_size", "group_count", "inner_size", "time_step_rank"):
            meta.get(f"ssm.{key}")
    wide = meta.whole("feed_forward_length")
    if meta.get("expert_shared_feed_forward_length", wide) != wide:
        meta.refuse("expert_shared_feed_forward_length", "of another width", f"{wide}")
    if meta.get("rope.scaling.finetuned", True) is False:
        meta.refuse("rope.scaling.finetuned", "false: no positions", "true")
    bias = {"attention_bias": meta.has("attn_q.bias"), "mlp_bias": meta.has("ffn_up.bias")}
    factors = {
        "embedding_multiplier": meta.number("embedding_scale", 1.0),
        "residual_multiplier": meta.number("residual_scale", 1.0),
        "logits_scaling": meta.number("logit_scale", 1.0),
        "attention_multiplier": meta.number("attention.scale", meta.heads[2] ** -0.5),
    }
    return llama_like(meta) | bias | factors | {"model_type": "granite"}


def _cohere(meta: Metadata) -> Raw:
    bias = {
        "attention_bias": meta.has("attn_q.bias"),
        "use_qk_norm": meta.has("attn_q_norm.weight"),
    }
    scale = {"logit_scale": meta.number("logit_scale", 1.0)}
    return llama_like(meta, LAYER) | bias | scale | {"model_type": "cohere"}


def _starcoder2(meta: Metadata) -> Raw:
    bias = {"use_bias": meta.has("attn_q.bias")}
    return llama_like(meta, (LAYER[0], "norm_epsilon")) | bias | {"model_type": "starcoder2"}


_STARCODER2: Names = {
    **LLAMA_ENDS,
    **ATTENTION,
    **NORMS,
    **pairs(LLAMA, ("ffn_up", "mlp.c_fc"), ("ffn_down", "mlp.c_proj")),
}


def _gemma1(meta: Metadata) -> Raw:
    bias = {"attention_bias": meta.has("attn_q.bias"), "head_dim": meta.heads[2]}
    return llama_like(meta) | bias | {"model_type": "gemma"}


_GEMMA1: Names = {
    **ends("model.embed_tokens", "model.norm", undo=plus_one),
    **ATTENTION,
    **MLP,
    **pairs(
        LLAMA,
        ("attn_norm", "input_layernorm", plus_one),
        ("ffn_norm", "post_attention_layernorm", plus_one),
    ),
}


def _gemma(meta: Metadata, largest: int, span: int) -> Raw:
    """What Gemma 2 and 3 share; only the largest model scales queries by the width of its heads in
    the residual stream, which no key says. Of a file without a window llama.cpp takes `span`."""
    heads, _, size = meta.heads
    layers, width = meta.whole("block_count"), meta.whole("embedding_length")
    scale = meta.number("attention.scale") or None
    own = width // heads if layers == largest else size
    softcap = meta.get("final_logit_softcapping")
    return (
        llama_like(meta)
        | window(meta, span)
        | {
            "head_dim": size,
            "query_pre_attn_scalar": own if scale is None else scale**-2,
            "attention_bias": meta.has("attn_q.bias"),
        }
        | ({} if softcap is None else {"final_logit_softcapping": softcap})
    )


def _gemma2(meta: Metadata) -> Raw:
    softcap = meta.get("attn_logit_softcapping")
    more = {} if softcap is None else {"attn_logit_softcapping": softcap}
    return _gemma(meta, 46, 4096) | more | {"model_type": "gemma2"}


_LONG = 131_072  # context of Gemma 3 4B, 12B and 27B, whose positions are scaled


def _gemma3(meta: Metadata) -> Raw:
    """Ollama has names of its own for the two bases; beside the name of the first it wrote a soft
    cap, which no Gemma 3 has, and of the long ones' scaling nothing (convert/convert_gemma3.go and
    llama/compat of github.com/ollama/ollama)."""
    everywhere, local = (meta.get(f"rope.{kind}.freq_base") for kind in ("global", "local"))
    raw = _gemma(meta, 62, 0) | {
        "model_type": "gemma3_text",
        "rms_norm_eps": meta.get(RMS[0], 1e-6),
        "rope_theta": meta.get("rope.freq_base", everywhere or 1e6),
        "rope_local_base_freq": meta.get("rope.freq_base_swa", local or 1e4),
    }
    if everywhere and raw.pop("final_logit_softcapping", None):
        _LOG.warning("%s: no soft cap of logits: Ollama wrote one no Gemma 3 has", meta.header.file)
    unsaid = (everywhere or local) and meta.get("rope.scaling.type") is None
    if unsaid and raw["max_position_embeddings"] >= _LONG:
        raw["rope_scaling"] = {"rope_type": "linear", "factor": 8.0}
    return raw


_GEMMA: Names = {
    **ends("model.embed_tokens", "model.norm", undo=plus_one),
    **ATTENTION,
    **MLP,
    **pairs(
        LLAMA,
        ("attn_norm", "input_layernorm", plus_one),
        ("post_attention_norm", "post_attention_layernorm", plus_one),
        ("ffn_norm", "pre_feedforward_layernorm", plus_one),
        ("post_ffw_norm", "post_feedforward_layernorm", plus_one),
        ("attn_q_norm", "self_attn.q_norm", plus_one),
        ("attn_k_norm", "self_attn.k_norm", plus_one),
    ),
}


def _phi3(meta: Metadata) -> Raw:
    raw = llama_like(meta, rotary_name="partial_rotary_factor") | window(meta)
    short, long = (meta.vector(f"rope_factors_{kind}.weight") for kind in ("short", "long"))
    original = meta.get("rope.scaling.original_context_length", raw["max_position_embeddings"])
    scale = meta.get("rope.scaling.attn_factor")
    if short is not None and long is not None:
        raw["original_max_position_embeddings"] = original
        raw["rope_scaling"] = {
            "rope_type": "longrope", "short_factor": short, "long_factor": long,
        } | ({} if scale is None else {"attention_factor": scale})  # fmt: skip
    return raw | {"model_type": "phi3"}


_PHI3: Names = {
    **LLAMA_ENDS,
    **NORMS,
    **pairs(
        LLAMA,
        ("attn_qkv", "self_attn.qkv_proj"),
        ("attn_output", "self_attn.o_proj"),
        ("ffn_up", "mlp.gate_up_proj"),
        ("ffn_down", "mlp.down_proj"),
    ),
    "rope_factors_short.weight": None,
    "rope_factors_long.weight": None,
}


def _olmo(meta: Metadata) -> Raw:
    raw = llama_like(meta, LAYER)
    if raw.pop(LAYER[1]) != 1e-5:
        meta.refuse(LAYER[0], f"{meta.get(LAYER[0])}", "1e-05, that of every OLMo 1")
    clip = meta.get("attention.clamp_kqv") or None
    return raw | {
        "model_type": "olmo", "clip_qkv": clip, "attention_bias": meta.has("attn_q.bias"),
    }  # fmt: skip


def _olmo2(meta: Metadata) -> Raw:
    """OLMo 2, or 3 where there is a window."""
    raw = llama_like(meta) | {"attention_bias": meta.has("attn_q.bias")}
    local = window(meta)
    if local["sliding_window"] is None:
        return raw | {"model_type": "olmo2"}
    base = meta.get("rope.freq_base_swa", raw["rope_theta"])
    kinds = {"sliding_attention": {"rope_type": "default", "rope_theta": base}}
    return raw | local | {"model_type": "olmo3", "rope_parameters": kinds}


_OLMO2: Names = {
    **LLAMA_ENDS,
    **ATTENTION,
    **HEAD_NORMS,
    **MLP,
    **pairs(
        LLAMA,
        ("post_attention_norm", "post_attention_layernorm"),
        ("post_ffw_norm", "post_feedforward_layernorm"),
    ),
}


def _gpt_oss(meta: Metadata) -> Raw:
    raw = llama_like(meta, rotary_name="partial_rotary_factor") | experts(meta) | window(meta)
    # The published ramp of its frequencies is not rounded to whole pairs, which no key says.
    rule: Any = raw.get("rope_scaling", {"rope_type": "default"})
    raw["rope_scaling"] = rule | ({"truncate": False} if rule["rope_type"] == "yarn" else {})
    return raw | {
        "model_type": "gpt_oss",
        "head_dim": meta.heads[2],
        "attention_bias": meta.has("attn_q.bias"),
    }


_GPT_OSS: Names = {
    **LLAMA_ENDS,
    **ATTENTION,
    **pairs(
        LLAMA,
        ("attn_norm", "input_layernorm"),
        ("post_attention_norm", "post_attention_layernorm"),
        ("ffn_gate_inp", "mlp.router"),
    ),
    "blk.{l}.attn_sinks.weight": ("model.layers.{l}.self_attn.sinks", as_it_is),
    **{
        f"blk.{{l}}.ffn_{stored}_exps.{kind}": (f"model.layers.{{l}}.mlp.experts.{name}", undo)
        for kind, end in (("weight", ""), ("bias", "_bias"))
        for stored, name, undo in (
            ("gate", f"gate_up_proj{end}", alternating(f"blk.{{l}}.ffn_up_exps.{kind}")),
            ("up", f"gate_up_proj{end}", taken_with(f"blk.{{l}}.ffn_gate_exps.{kind}")),
            ("down", f"down_proj{end}", as_it_is if end else transposed),
        )
    },
}


def _stablelm(meta: Metadata) -> Raw:
    meta.get("use_parallel_residual")  # some files have it wrong: a second norm says it
    # llama.cpp's converter writes no base. Of the published models one has such a context, Stable
    # Code 3B, and one such a base.
    base = 1e6 if meta.whole("context_length") == 16_384 else BASE
    return llama_like(meta, LAYER, "partial_rotary_factor", base) | {
        "model_type": "stablelm",
        "use_qkv_bias": meta.has("attn_q.bias"),
        "use_parallel_residual": not meta.has("ffn_norm.weight"),
        "qk_layernorm": meta.has("attn_q_norm.weight"),
    }


ARCHITECTURES: Mapping[str, Architecture] = MappingProxyType(
    {
        "llama": Architecture(
            _llama,
            {**LLAMA_ENDS, **PERMUTED, **NORMS, **MLP, **_EXPERTS, "rope_freqs.weight": None},
        ),
        "qwen2": Architecture(_qwen2, {**LLAMA_ENDS, **ATTENTION, **NORMS, **MLP}),
        "qwen3": Architecture(_qwen3, {**LLAMA_ENDS, **ATTENTION, **HEAD_NORMS, **NORMS, **MLP}),
        "smollm3": Architecture(_smollm3, {**LLAMA_ENDS, **PERMUTED, **NORMS, **MLP}),
        "granite": Architecture(_granite, {**LLAMA_ENDS, **PERMUTED, **NORMS, **MLP}),
        "command-r": Architecture(_cohere, {**LLAMA_ENDS, **ATTENTION, **NORMS, **MLP}),
        "starcoder2": Architecture(_starcoder2, _STARCODER2),
        "gemma": Architecture(_gemma1, _GEMMA1),
        "gemma2": Architecture(_gemma2, _GEMMA),
        "gemma3": Architecture(_gemma3, _GEMMA),
        "phi2": Architecture(apart.phi2, apart.PHI2),
        "phi3": Architecture(_phi3, _PHI3),
        "gpt2": Architecture(apart.gpt2, apart.GPT2),
        "gptneox": Architecture(apart.gpt_neox, apart.GPT_NEOX),
        "falcon": Architecture(apart.falcon, apart.FALCON),
        "mpt": Architecture(apart.mpt, apart.MPT),
        "bloom": Architecture(apart.bloom, apart.BLOOM),
        "olmo": Architecture(_olmo, {**LLAMA_ENDS, **PERMUTED, **MLP}),
        "olmo2": Architecture(_olmo2, _OLMO2),
        "gpt-oss": Architecture(_gpt_oss, _GPT_OSS),
        "stablelm": Architecture(
            _stablelm, {**LLAMA_ENDS, **ATTENTION, **HEAD_NORMS, **NORMS, **MLP}
        ),
    }
)
