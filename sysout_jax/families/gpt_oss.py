"""gpt-oss: a learned sink logit per head, experts with biases, windows in every second layer."""

from sysout_jax.families.family import Family, Field, biased, tensor
from sysout_jax.families.rotary import rotary
from sysout_jax.families.rows import EPS, SIZES, TIED, llama_attention, windows

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
        *SIZES,
        EPS,
        TIED,
        Field("attention_bias", "qkv_bias"),
        Field("attention_bias", "out_bias"),
        Field("num_local_experts", "experts"),
        Field("num_experts_per_tok", "experts_per_token"),
        Field("swiglu_limit", "mlp_limit"),
        windows(lambda i, raw: i % 2 == 0, least=128),
        rotary(theta=150_000.0, default=_YARN),
    ),
    quantised=("mxfp4",),
    tensors=(
        *llama_attention(),
        tensor("layers.{l}.self_attn.sinks", "N", "block/attn/variant_sink_logit"),
        *biased("layers.{l}.mlp.router", "E D", "E", "block/mlp/router"),
        tensor(_EXPERTS + "gate_up_proj", "E D (F +)", "block/mlp/gate=1", "block/mlp/up=1"),
        tensor(
            _EXPERTS + "gate_up_proj_bias", "E (F +)",
            "block/mlp/gate_bias=1", "block/mlp/up_bias=1",
        ),
        tensor(_EXPERTS + "down_proj", "E F D", "block/mlp/down"),
        tensor(_EXPERTS + "down_proj_bias", "E D", "block/mlp/down_bias"),
    ),
    # initial_context_length and experts_per_token repeat other fields in the published files
)  # fmt: skip
