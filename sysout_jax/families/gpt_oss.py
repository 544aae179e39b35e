"""gpt-oss: a learned sink logit per head, experts with biases, windows in every second layer."""

from typing import Any

from sysout_jax.errors import InputError
from sysout_jax.families.family import Family, Field, Group, Only, Raw, tensor
from sysout_jax.families.rows import TIED, llama_attention, rotary, sizes, windows


def _read_quantisation(raw: Raw) -> dict[str, Any]:
    """Stored as MXFP4 or not: families/tensors.py sees which. Other formats are refused."""
    method = (raw.get("quantization_config") or {}).get("quant_method", "mxfp4")
    if method != "mxfp4":
        raise InputError(f"quantization_config of method {method!r}", accepted="mxfp4")
    return {}


_EXPERTS = "layers.{l}.mlp.experts."
_YARN = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip
GPT_OSS = Family(
    name="gpt_oss",
    model_types=("gpt_oss",),
    architecture="GptOssForCausalLM",
    covers="gpt-oss 20B and 120B, as published (experts in MXFP4) or in bfloat16",
    cite="OpenAI 2025 (arXiv:2508.10925)",
    fixed={
        "norm": "rms", "position": "rope", "variant": "sink_logit", "mlp": "shifted_glu",
        "mlp_bias": True,
    },
    config=(
        *sizes(kv_default=8),
        Field("head_dim", "head_dim", 64),
        Field("rms_norm_eps", "norm_eps", 1e-5),
        TIED,
        Field("attention_bias", "qkv_bias", True),
        Field("attention_bias", "out_bias", True),
        Field("num_local_experts", "experts", 128),
        Field("num_experts_per_tok", "experts_per_token", 4),
        Field("swiglu_limit", "mlp_limit", 7.0),
        Only("hidden_act", "silu"),
        Only("swiglu_alpha", 1.702),
        Group(("quantization_config",), (), _read_quantisation, lambda c: {}),
        windows(lambda i, raw: i % 2 == 0, 128),
        rotary(theta=150_000.0, default=_YARN),
    ),
    tensors=(
        *llama_attention(),
        tensor("layers.{l}.self_attn.sinks", "N", "block/attn/variant_sink_logit"),
        tensor("layers.{l}.mlp.router.weight", "E D", "block/mlp/router"),
        tensor("layers.{l}.mlp.router.bias", "E", "block/mlp/router_bias"),
        tensor(_EXPERTS + "gate_up_proj", "E D (F +)", "block/mlp/gate=1", "block/mlp/up=1"),
        tensor(
            _EXPERTS + "gate_up_proj_bias", "E (F +)",
            "block/mlp/gate_bias=1", "block/mlp/up_bias=1",
        ),
        tensor(_EXPERTS + "down_proj", "E F D", "block/mlp/down"),
        tensor(_EXPERTS + "down_proj_bias", "E D", "block/mlp/down_bias"),
    ),
    # initial_context_length and experts_per_token repeat other fields in the published files
    ignored=(
        "output_router_logits", "router_aux_loss_coef", "initial_context_length",
        "experts_per_token",
    ),
)  # fmt: skip
