"""Published configs: read as what they say, refused where they say what is not known here."""

import dataclasses
import json
import re
import types
import typing
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sysout_jax.errors import InputError
from sysout_jax.families.config_map import (
    _KINDS,
    OURS_ALONE,
    ignored_fields,
    read_config,
    read_within,
    write_config,
)
from sysout_jax.families.family import Field, Group, Only
from sysout_jax.families.reference import HARMLESS, reference_of
from sysout_jax.families.table import FAMILIES, by_model_type
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.execution import Execution
from sysout_jax.model.rope import RULES, Linear, Rope
from sysout_jax.model.sink import ExplicitSink
from sysout_jax.model.stored import flat
from tests.families.reference import GOLDEN
from tests.refusing import refusal

LLAMA2_7B = {
    "architectures": ["LlamaForCausalLM"], "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "hidden_size": 4096, "initializer_range": 0.02,
    "intermediate_size": 11008, "max_position_embeddings": 4096, "model_type": "llama",
    "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
    "pretraining_tp": 1, "rms_norm_eps": 1e-05, "rope_scaling": None,
    "tie_word_embeddings": False, "torch_dtype": "float16", "transformers_version": "4.31.0.dev0",
    "use_cache": True, "vocab_size": 32000,
}  # fmt: skip
QWEN = LLAMA2_7B | {
    "max_window_layers": 28, "num_attention_heads": 28, "hidden_size": 3584,
    "num_hidden_layers": 28, "num_key_value_heads": 4, "rope_theta": 1000000.0,
    "sliding_window": 131072, "use_sliding_window": False, "pretraining_tp": None,
}  # fmt: skip
# As they are on the hub, to the best of what is published: name -> (config.json, what it says here)
PUBLISHED = {
    "Llama-2-7b": (LLAMA2_7B, {"norm_eps": 1e-5, "rope_rule": "plain", "context": 4096}),
    "Llama-3.1-8B": (
        LLAMA2_7B
        | {
            "rope_theta": 500000.0, "num_key_value_heads": 8, "attention_bias": False,
            "mlp_bias": False, "eos_token_id": [128001, 128008, 128009],
            "max_position_embeddings": 131072,
            "rope_scaling": {
                "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192, "rope_type": "llama3",
            },
        },
        {"rope_rule": "llama3", "rope_theta": 5e5, "rope_factor": 8.0, "rope_context": 8192},
    ),
    "Mistral-7B": (
        LLAMA2_7B
        | {
            "model_type": "mistral", "sliding_window": 4096, "num_key_value_heads": 8,
            "rope_theta": 10000.0, "pretraining_tp": None,
        },
        {"window": 4096, "kv_heads": 8},
    ),
    "Mixtral-8x7B": (
        LLAMA2_7B
        | {
            "model_type": "mixtral", "num_experts_per_tok": 2, "num_local_experts": 8,
            "output_router_logits": False, "router_aux_loss_coef": 0.02, "rope_theta": 1e6,
            "sliding_window": None, "pretraining_tp": None,
        },
        {"experts": 8, "experts_per_token": 2, "window": None, "rope_theta": 1e6},
    ),
    "Qwen3-30B-A3B": (
        {
            "model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"],
            "attention_bias": False, "attention_dropout": 0.0, "decoder_sparse_step": 1,
            "head_dim": 128, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
            "intermediate_size": 6144, "max_position_embeddings": 40960, "max_window_layers": 48,
            "mlp_only_layers": [], "moe_intermediate_size": 768, "norm_topk_prob": True,
            "num_attention_heads": 32, "num_experts": 128, "num_experts_per_tok": 8,
            "num_hidden_layers": 48, "num_key_value_heads": 4, "output_router_logits": False,
            "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 1000000.0,
            "router_aux_loss_coef": 0.001, "sliding_window": None, "tie_word_embeddings": False,
            "use_sliding_window": False, "vocab_size": 151936,
        },
        {"experts": 128, "experts_per_token": 8, "experts_sum_to_one": True, "mlp_width": 768,
         "head_dim": 128, "query_key_norm": "head", "window": None},
    ),
    "OLMoE-1B-7B": (
        {
            "model_type": "olmoe", "architectures": ["OlmoeForCausalLM"], "attention_bias": False,
            "clip_qkv": None, "hidden_act": "silu", "hidden_size": 2048,
            "initializer_range": 0.02, "intermediate_size": 1024, "max_position_embeddings": 4096,
            "norm_topk_prob": False, "num_attention_heads": 16, "num_experts": 64,
            "num_experts_per_tok": 8, "num_hidden_layers": 16, "num_key_value_heads": 16,
            "output_router_logits": False, "rms_norm_eps": 1e-5, "rope_scaling": None,
            "rope_theta": 10000.0, "router_aux_loss_coef": 0.01, "tie_word_embeddings": False,
            "vocab_size": 50304,
        },
        {"experts": 64, "experts_per_token": 8, "experts_sum_to_one": False, "mlp_width": 1024,
         "query_key_norm": "whole", "kv_heads": 16},
    ),
    "opt-350m": (
        {
            "_remove_final_layer_norm": False, "activation_dropout": 0.0,
            "activation_function": "relu", "do_layer_norm_before": False, "dropout": 0.1,
            "ffn_dim": 4096, "hidden_size": 1024, "init_std": 0.02, "layerdrop": 0.0,
            "max_position_embeddings": 2048, "model_type": "opt", "num_attention_heads": 16,
            "num_hidden_layers": 24, "prefix": "</s>", "torch_dtype": "float16",
            "vocab_size": 50272, "word_embed_proj_dim": 512,
        },
        {"embed_width": 512, "norm_placement": "post", "tied": True},
    ),
    "opt-6.7b": (
        {
            "_remove_final_layer_norm": False, "activation_dropout": 0.0,
            "activation_function": "relu", "attention_dropout": 0.0, "do_layer_norm_before": True,
            "dropout": 0.1, "ffn_dim": 16384, "hidden_size": 4096, "init_std": 0.02,
            "layerdrop": 0.0, "max_position_embeddings": 2048, "model_type": "opt",
            "num_attention_heads": 32, "num_hidden_layers": 32, "output_projection": True,
            "pad_token_id": 1, "prefix": "</s>", "vocab_size": 50272, "word_embed_proj_dim": 4096,
        },
        {"context": 2050, "position_offset": 2, "tied": True, "bias": True, "mlp": "relu"},
    ),
    "phi-2": (
        {
            "attention_dropout": 0.0, "embd_pdrop": 0.0, "hidden_act": "gelu_new",
            "hidden_size": 2560, "initializer_range": 0.02, "intermediate_size": 10240,
            "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "model_type": "phi",
            "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32,
            "partial_rotary_factor": 0.4, "qk_layernorm": False, "resid_pdrop": 0.1,
            "rope_scaling": None, "rope_theta": 10000.0, "vocab_size": 51200,
        },
        {"rope_fraction": 0.4, "head_bias": True, "parallel_block": "shared"},
    ),
    "mpt-7b": (
        {
            "attn_config": {
                "alibi": True, "alibi_bias_max": 8, "attn_impl": "torch", "attn_pdrop": 0,
                "attn_type": "multihead_attention", "attn_uses_sequence_id": False,
                "clip_qkv": None, "prefix_lm": False, "qk_ln": False, "softmax_scale": None,
            },
            "auto_map": {"AutoConfig": "configuration_mpt.MPTConfig"}, "d_model": 4096,
            "emb_pdrop": 0, "embedding_fraction": 1.0, "expansion_ratio": 4,
            "init_config": {"name": "kaiming_normal_"}, "init_device": "cpu",
            "learned_pos_emb": True, "logit_scale": None, "max_seq_len": 2048, "model_type": "mpt",
            "n_heads": 32, "n_layers": 32, "no_bias": True,
            "norm_type": "low_precision_layernorm", "resid_pdrop": 0,
            "tokenizer_name": "EleutherAI/gpt-neox-20b", "verbose": 0, "vocab_size": 50432,
        },
        {"position": "alibi", "mlp_width": 16384, "tied": True},
    ),
    "falcon-7b": (
        {
            "alibi": False, "apply_residual_connection_post_layernorm": False,
            "auto_map": {"AutoConfig": "configuration_falcon.FalconConfig"}, "bias": False,
            "hidden_dropout": 0.0, "hidden_size": 4544, "layer_norm_epsilon": 1e-05,
            "model_type": "falcon", "multi_query": True, "new_decoder_architecture": False,
            "num_attention_heads": 71, "num_hidden_layers": 32, "parallel_attn": True,
            "vocab_size": 65024,
        },
        {"kv_heads": 1, "parallel_block": "shared", "mlp_width": 4 * 4544, "norm_bias": True},
    ),
    "falcon-40b": (
        {
            "alibi": False, "bias": False, "hidden_size": 8192, "layer_norm_epsilon": 1e-05,
            "model_type": "falcon", "new_decoder_architecture": True, "num_attention_heads": 128,
            "num_hidden_layers": 60, "num_kv_heads": 8, "parallel_attn": True, "vocab_size": 65024,
        },
        {"kv_heads": 8, "parallel_block": "separate"},
    ),
    "gpt2": (
        {
            "activation_function": "gelu_new", "attn_pdrop": 0.1, "embd_pdrop": 0.1,
            "layer_norm_epsilon": 1e-05, "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768,
            "n_head": 12, "n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1,
            "summary_activation": None, "summary_first_dropout": 0.1, "summary_use_proj": True,
            "summary_proj_to_labels": True, "summary_type": "cls_index",
            "task_specific_params": {"text-generation": {"max_length": 50}}, "vocab_size": 50257,
        },
        {"mlp_width": 3072, "tied": True, "mlp": "gelu", "position": "learned"},
    ),
    "pythia-70m": (
        {
            "hidden_act": "gelu", "hidden_size": 512, "intermediate_size": 2048,
            "layer_norm_eps": 1e-05, "max_position_embeddings": 2048, "model_type": "gpt_neox",
            "num_attention_heads": 8, "num_hidden_layers": 6, "rotary_emb_base": 10000,
            "rotary_pct": 0.25, "tie_word_embeddings": False, "use_parallel_residual": True,
            "vocab_size": 50304,
        },
        {"rope_fraction": 0.25, "parallel_block": "separate", "mlp": "gelu_exact"},
    ),
    "Qwen2.5-7B": (
        QWEN | {"model_type": "qwen2", "use_mrope": False},
        {"window": None, "qkv_bias": True, "bias": False},
    ),
    "Qwen3-8B": (
        QWEN | {"model_type": "qwen3", "head_dim": 128, "attention_bias": False},
        {"query_key_norm": "head", "head_dim": 128},
    ),
    "gemma-2-2b": (
        {
            "attention_bias": False, "attn_logit_softcapping": 50.0,
            "cache_implementation": "hybrid", "final_logit_softcapping": 30.0, "head_dim": 256,
            "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh",
            "hidden_size": 2304, "intermediate_size": 9216, "max_position_embeddings": 8192,
            "model_type": "gemma2", "num_attention_heads": 8, "num_hidden_layers": 26,
            "num_key_value_heads": 4, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
            "rope_theta": 10000.0, "sliding_window": 4096, "vocab_size": 256000,
        },
        {
            "window_layers": tuple(range(0, 26, 2)), "query_scale": 1 / 16, "embed_scale": 48.0,
            "attn_softcap": 50.0, "final_softcap": 30.0, "mlp": "geglu", "tied": True,
        },
    ),
    "gemma-3-1b": (
        {
            "attention_bias": False, "attn_logit_softcapping": None, "eos_token_id": [1, 106],
            "cache_implementation": "hybrid", "final_logit_softcapping": None, "head_dim": 256,
            "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 1152,
            "intermediate_size": 6912, "max_position_embeddings": 32768,
            "model_type": "gemma3_text", "num_attention_heads": 4, "num_hidden_layers": 26,
            "num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-06,
            "rope_local_base_freq": 10000, "rope_scaling": None, "rope_theta": 1000000,
            "sliding_window": 512, "sliding_window_pattern": 6, "vocab_size": 262144,
        },
        {
            "window_layers": tuple(i for i in range(26) if i % 6 != 5), "local_rope_theta": 1e4,
            "rope_theta": 1e6, "attn_softcap": None, "query_key_norm": "head",
        },
    ),
    "OLMo-1B": (
        {
            "attention_bias": False, "clip_qkv": None, "hidden_act": "silu", "hidden_size": 2048,
            "intermediate_size": 8192, "max_position_embeddings": 2048, "model_type": "olmo",
            "num_attention_heads": 16, "num_hidden_layers": 16, "num_key_value_heads": 16,
            "rope_scaling": None, "rope_theta": 10000.0, "tie_word_embeddings": True,
            "vocab_size": 50304,
        },
        {"norm_scale": False, "norm": "layer", "norm_bias": None},
    ),
    "OLMo-2-7B": (
        LLAMA2_7B | {"model_type": "olmo2", "rms_norm_eps": 1e-6, "rope_theta": 500000,
                     "attention_bias": False, "pretraining_tp": None},
        {"norm_placement": "out", "query_key_norm": "whole", "rope_theta": 5e5},
    ),
    "gpt-oss-20b": (
        {
            "attention_bias": True, "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu",
            "hidden_size": 2880, "initial_context_length": 4096, "intermediate_size": 2880,
            "layer_types": ["sliding_attention", "full_attention"] * 12,
            "max_position_embeddings": 131072, "model_type": "gpt_oss", "num_attention_heads": 64,
            "num_experts_per_tok": 4, "num_hidden_layers": 24, "num_key_value_heads": 8,
            "num_local_experts": 32, "output_router_logits": False, "rms_norm_eps": 1e-05,
            "rope_scaling": {
                "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "rope_type": "yarn",
                "original_max_position_embeddings": 4096, "truncate": False,
            },
            "rope_theta": 150000, "router_aux_loss_coef": 0.9, "sliding_window": 128,
            "swiglu_limit": 7.0, "tie_word_embeddings": False, "vocab_size": 201088,
        },
        {"experts": 32, "experts_per_token": 4, "variant": "sink_logit", "rope_truncate": False},
    ),
    "Phi-3-mini-128k": (
        LLAMA2_7B
        | {
            "model_type": "phi3", "hidden_size": 3072, "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096, "rope_theta": 10000.0,
            "sliding_window": 262144, "attention_bias": False, "pretraining_tp": None,
            "rope_scaling": {
                "long_factor": [1.5] * 48, "short_factor": [1.0] * 48, "type": "longrope",
            },
        },
        {"rope_rule": "longrope", "rope_factor": 32.0, "rope_context": 4096},
    ),
    "stablelm-3b-4e1t of before transformers 4.38": (
        {
            "architectures": ["StableLMEpochForCausalLM"], "hidden_act": "silu",
            "hidden_size": 2560, "initializer_range": 0.02, "intermediate_size": 6912,
            "max_position_embeddings": 4096, "model_type": "stablelm_epoch", "norm_eps": 1e-6,
            "num_attention_heads": 32, "num_heads": 32, "num_hidden_layers": 32,
            "num_key_value_heads": 32, "rope_pct": 0.5, "rope_theta": 10000,
            "rotary_scaling_factor": 1.0, "tie_word_embeddings": False, "vocab_size": 50304,
        },
        {"norm_eps": 1e-6, "rope_fraction": 0.5, "kv_heads": 32},
    ),
    "stablelm-2-1_6b": (
        {
            "bos_token_id": 100257, "eos_token_id": 100257, "hidden_act": "silu",
            "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 5632,
            "layer_norm_eps": 1e-05, "max_position_embeddings": 4096, "model_type": "stablelm",
            "num_attention_heads": 32, "num_hidden_layers": 24, "num_key_value_heads": 32,
            "partial_rotary_factor": 0.25, "rope_theta": 10000, "tie_word_embeddings": False,
            "torch_dtype": "float16", "use_cache": True, "use_qkv_bias": True,
            "vocab_size": 100352,
        },
        {"rope_fraction": 0.25, "qkv_bias": True, "parallel_block": "none", "norm": "layer"},
    ),
    "gpt-neo-125m": (
        {
            "activation_function": "gelu_new", "attention_dropout": 0,
            "attention_layers": ["global", "local"] * 6,
            "attention_types": [[["global", "local"], 6]], "bos_token_id": 50256,
            "embed_dropout": 0, "eos_token_id": 50256, "hidden_size": 768,
            "initializer_range": 0.02, "intermediate_size": None, "layer_norm_epsilon": 1e-05,
            "max_position_embeddings": 2048, "model_type": "gpt_neo", "num_heads": 12,
            "num_layers": 12, "resid_dropout": 0, "use_cache": True, "vocab_size": 50257,
            "window_size": 256,
        },
        {"window": 256, "window_layers": tuple(range(1, 12, 2)), "query_scale": 1.0,
         "mlp_width": 3072, "tied": True},
    ),
    "gpt-j-6b": (
        {
            "activation_function": "gelu_new", "attn_pdrop": 0.0, "bos_token_id": 50256,
            "embd_pdrop": 0.0, "eos_token_id": 50256, "initializer_range": 0.02,
            "layer_norm_epsilon": 1e-05, "model_type": "gptj", "n_embd": 4096, "n_head": 16,
            "n_inner": None, "n_layer": 28, "n_positions": 2048, "resid_pdrop": 0.0,
            "rotary": True, "rotary_dim": 64, "scale_attn_weights": True,
            "tie_word_embeddings": False, "use_cache": True, "vocab_size": 50400,
        },
        {"rope_fraction": 0.25, "rope_interleaved": True, "parallel_block": "shared",
         "head_bias": True, "mlp_width": 16384},
    ),
    "bloom-560m": (
        {
            "apply_residual_connection_post_layernorm": False, "attention_dropout": 0.0,
            "attention_softmax_in_fp32": True, "bias_dropout_fusion": True, "bos_token_id": 1,
            "eos_token_id": 2, "pad_token_id": 3, "hidden_dropout": 0.0,
            "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "masked_softmax_fusion": True,
            "model_type": "bloom", "n_embed": 1024, "n_inner": None, "n_layer": 24,
            "num_attention_heads": 16, "offset_alibi": 100, "pretraining_tp": 4,
            "seq_length": 2048, "skip_bias_add": True, "skip_bias_add_qkv": False,
            "use_cache": True, "vocab_size": 250880,
        },
        {"width": 1024, "heads": 16, "embed_norm": True, "position": "alibi", "tied": True},
    ),
    "SmolLM3-3B": (
        {
            "attention_bias": False, "attention_dropout": 0.0, "eos_token_id": 128012,
            "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
            "intermediate_size": 11008, "layer_types": ["full_attention"] * 36,
            "max_position_embeddings": 65536, "max_window_layers": 28, "mlp_bias": False,
            "model_type": "smollm3", "no_rope_layer_interval": 4,
            "no_rope_layers": [1, 1, 1, 0] * 9, "num_attention_heads": 16,
            "num_hidden_layers": 36, "num_key_value_heads": 4, "pretraining_tp": 2,
            "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 5000000.0,
            "sliding_window": None, "use_cache": False, "use_sliding_window": False,
            "vocab_size": 128256,
        },
        {"rope_layers": tuple(i for i in range(36) if i % 4 != 3), "rope_theta": 5e6,
         "tied": True, "window": None},
    ),
    "gemma-2b": (
        {
            "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 2,
            "eos_token_id": 1, "head_dim": 256, "hidden_act": "gelu", "hidden_activation": None,
            "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 16384,
            "max_position_embeddings": 8192, "model_type": "gemma", "num_attention_heads": 8,
            "num_hidden_layers": 18, "num_key_value_heads": 1, "pad_token_id": 0,
            "rms_norm_eps": 1e-06, "rope_scaling": None, "rope_theta": 10000.0,
            "use_cache": True, "vocab_size": 256000,
        },
        {"embed_scale": 2048**0.5, "mlp": "geglu", "norm_plus_one": True, "tied": True,
         "norm_placement": "pre"},
    ),
    "granite-3.0-2b": (
        LLAMA2_7B
        | {
            "model_type": "granite", "attention_bias": False, "attention_multiplier": 0.015625,
            "embedding_multiplier": 12.0, "hidden_size": 2048, "intermediate_size": 8192,
            "logits_scaling": 8.0, "mlp_bias": False, "num_hidden_layers": 40,
            "num_key_value_heads": 8, "pretraining_tp": None, "residual_multiplier": 0.22,
            "rope_theta": 10000, "tie_word_embeddings": True, "vocab_size": 49155,
        },
        {"embed_scale": 12.0, "query_scale": 0.015625, "residual_scale": 0.22,
         "logit_scale": 0.125},
    ),
    "command-r-v01": (
        {
            "attention_bias": False, "attention_dropout": 0.0, "bos_token_id": 5,
            "eos_token_id": 255001, "hidden_act": "silu", "hidden_size": 8192,
            "initializer_range": 0.02, "intermediate_size": 22528, "layer_norm_eps": 1e-05,
            "logit_scale": 0.0625, "max_position_embeddings": 8192,
            "model_max_length": 131072, "model_type": "cohere", "num_attention_heads": 64,
            "num_hidden_layers": 40, "num_key_value_heads": 64, "pad_token_id": 0,
            "rope_theta": 8000000.0, "use_cache": True, "vocab_size": 256000,
        },
        {"logit_scale": 0.0625, "rope_interleaved": True, "parallel_block": "shared",
         "tied": True, "norm_bias": None, "rope_theta": 8e6},
    ),
    "Olmo-3-7B": (
        LLAMA2_7B
        | {
            "model_type": "olmo3", "rms_norm_eps": 1e-6, "rope_theta": 500000,
            "attention_bias": False, "pretraining_tp": None, "sliding_window": 4096,
            "max_position_embeddings": 65536, "vocab_size": 100278,
            "layer_types": [*["sliding_attention"] * 3, "full_attention"] * 8,
            "rope_scaling": {
                "attention_factor": 1.2079441541679836, "beta_fast": 32.0, "beta_slow": 1.0,
                "factor": 8.0, "original_max_position_embeddings": 8192, "rope_type": "yarn",
            },
        },
        {"window_layers": tuple(i for i in range(32) if i % 4 != 3), "rope_rule": "yarn",
         "local_rope_theta": 5e5, "rope_theta": 5e5, "norm_placement": "out"},
    ),
    "starcoder2-3b": (
        {
            "activation_function": "gelu_pytorch_tanh", "attention_dropout": 0.1,
            "residual_dropout": 0.1, "embedding_dropout": 0.1, "bos_token_id": 0,
            "eos_token_id": 0, "hidden_act": "gelu_pytorch_tanh", "hidden_size": 3072,
            "initializer_range": 0.018042, "intermediate_size": 12288,
            "layer_norm_epsilon": 1e-05, "max_position_embeddings": 16384, "mlp_type": "default",
            "model_type": "starcoder2", "norm_epsilon": 1e-05, "norm_type": "layer_norm",
            "num_attention_heads": 24, "num_hidden_layers": 30, "num_key_value_heads": 2,
            "rope_theta": 999999.4420358813, "sliding_window": 4096, "use_bias": True,
            "use_cache": True, "vocab_size": 49152,
        },
        {"norm": "layer", "window": 4096, "bias": True, "kv_heads": 2, "tied": True},
    ),
}  # fmt: skip


def refused(raw):
    message = refusal(read_config, by_model_type(raw["model_type"], Path("config.json")), raw)
    assert "accepted" in message
    return message


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read(name):
    raw, expected = PUBLISHED[name]
    config = read_config(by_model_type(raw["model_type"], Path("config.json")), raw)
    assert {field: flat(config)[field] for field in expected} == expected


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_come_back(name):
    raw, _ = PUBLISHED[name]
    family = by_model_type(raw["model_type"], Path("config.json"))
    config = read_config(family, raw)
    again = read_config(family, json.loads(json.dumps(write_config(family, config))))
    differ = [
        field.name
        for field in dataclasses.fields(ModelConfig)
        if getattr(again, field.name) != getattr(config, field.name)
    ]
    # these two may spell their default out
    assert set(differ) <= {"kv_heads", "head_dim"}
    assert dict(again.sizes) == dict(config.sizes)


GEMMA_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"], "boi_token_index": 255999,
    "eoi_token_index": 256000, "eos_token_id": [1, 106], "image_token_index": 262144,
    "initializer_range": 0.02, "mm_tokens_per_image": 256, "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text",
        "num_hidden_layers": 34, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "torch_dtype": "bfloat16", "transformers_version": "4.50.0.dev0",
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}  # fmt: skip


def test_the_text_decoder_of_a_larger_model():
    """Fields that its text_config leaves out are the reference's defaults."""
    family = by_model_type("gemma3", Path("config.json"))
    config = read_config(family, read_within(family, GEMMA_4B))
    assert (config.layers, config.width, config.heads, config.kv_heads) == (34, 2560, 8, 4)
    assert (config.vocab, config.context, config.head_dim) == (262208, 131072, 256)
    assert (config.rope, config.window) == (Linear(factor=8.0, local_theta=1e4, theta=1e6), 1024)
    assert config.window_layers == tuple(i for i in range(34) if (i + 1) % 6)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"text_config": None}, "text_config is null; accepted: the config of a gemma3_text"),
        ({"text_config": {"model_type": "llama"}}, "accepted: the config of a gemma3_text"),
        (
            {"tie_word_embeddings": False, "text_config": {"tie_word_embeddings": True}},
            "tie_word_embeddings is false, and true in text_config; accepted: the same",
        ),
        (
            {"text_config": {"is_causal": False}},
            "is_causal=false, which is not read here (accepted",
        ),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised (bitsandbytes)"),
        ({"quantization": {"bits": 4}}, "stored quantised (4 bits)"),
        (
            {"architectures": ["Gemma3ForSequenceClassification"]},
            "no language model's head; accepted: the language model under it, as Gemma3ForCausalLM",
        ),
    ],
)
def test_what_a_larger_model_may_not_say(change, wanted):
    family = by_model_type("gemma3", Path("config.json"))
    said = refusal(lambda: read_config(family, read_within(family, GEMMA_4B | change)))
    assert wanted in said


@pytest.mark.parametrize(
    "change",
    [
        {"draft_model": None},
        {"architectures": ["LlamaModel"]},
        {"architectures": None},
        {"architectures": ["MyHeadCustom", "LlamaForCausalLM"]},
        {
            "quantization_config": {
                "quant_method": "bitsandbytes", "load_in_4bit": False, "load_in_8bit": False
            }
        },
    ],
)  # fmt: skip
def test_what_says_nothing_against_a_language_model(change):
    raw = recorded(FAMILIES["llama"])
    assert read_config(FAMILIES["llama"], raw | change) == read_config(FAMILIES["llama"], raw)


def recorded(family):
    """The config of the family's record, as the reference wrote it."""
    with np.load(GOLDEN / f"{family.name}.npz") as saved:
        return json.loads(str(saved["config"]))


def test_nulls_that_falcons_code_takes_for_no():
    """Of its activation and its epsilon a null fails there, and here."""
    raw = {"model_type": "falcon"}
    expected = read_config(FAMILIES["falcon"], raw | {"bias": False, "alibi": False})
    assert read_config(FAMILIES["falcon"], raw | {"bias": None, "alibi": None}) == expected
    for name in ("activation", "layer_norm_epsilon"):
        with pytest.raises(InputError, match=name):
            read_config(FAMILIES["falcon"], raw | {name: None})


def test_a_default_that_the_reference_declares_under_an_alias():
    """Qwen3's mixtures declare num_experts, which their code calls num_local_experts."""
    assert read_config(FAMILIES["qwen3_moe"], {"model_type": "qwen3_moe"}).experts == 128


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_what_the_reference_does_not_read_is_ignored_and_listed(family):
    raw = recorded(family)
    more = raw | {"attention_temperature": 2.0, "sink_tokens": 4, "colour": None, "top_k": 9}
    before = ignored_fields(family, raw)
    assert ignored_fields(family, more) == tuple(
        sorted({*before, "attention_temperature", "sink_tokens"})
    )
    assert read_config(family, more) == read_config(family, raw)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_what_the_reference_reads_and_no_row_does_is_refused(family):
    raw = recorded(family)
    message = refused(raw | {"is_causal": False, "per_layer_config": {"0": {"hidden_size": 3}}})
    assert "is_causal=false, which is not read here (accepted: true)" in message
    assert 'per_layer_config={"0": {"hidden_size": 3}}, which is not read here' in message
    assert read_config(family, raw | {"is_causal": True}) == read_config(family, raw)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_everything_the_reference_reads_is_read_harmless_or_refused(family):
    """No field of the reference falls through: in a row, without a part in inference, or refused
    at another value than its default."""
    raw = recorded(family)
    theirs = reference_of(family.model_types[0])
    named = (row.names if isinstance(row, Group) else (row.name,) for row in family.config)
    rows = {name for names in named for name in names}
    for name in sorted(theirs.reads - rows - HARMLESS - {"attn_config", "n_embed"}):
        assert f"{name}=" in refused(raw | {name: "another value"}), name


def test_a_field_by_two_names_is_read_as_the_reference_does():
    """The reference sets the other spelling last: 5 of `hidden_size` is `n_embd`."""
    raw = recorded(FAMILIES["gpt2"])
    both = read_config(FAMILIES["gpt2"], raw | {"n_layer": 9, "num_hidden_layers": 5})
    assert both.layers == 5
    falcon = {"num_attention_heads": 4, "num_hidden_layers": 3, "hidden_size": 64}
    assert read_config(FAMILIES["falcon"], falcon | {"n_head": 2, "n_layer": 1}).heads == 4


FIRST_FALCON = {
    "alibi": False, "bias": False, "hidden_size": 64, "model_type": "RefinedWebModel",
    "multi_query": True, "n_head": 4, "n_layer": 3, "parallel_attn": True, "vocab_size": 97,
    "apply_residual_connection_post_layernorm": False,
}  # fmt: skip


def test_the_first_falcons():
    """7B has one KV head and one norm; 40B groups and two norms, which its file does not say."""
    small = read_config(FAMILIES["falcon"], FIRST_FALCON)
    assert (small.heads, small.layers, small.kv_heads, small.parallel_block) == (4, 3, 1, "shared")
    large = FIRST_FALCON | {"model_type": "RefinedWeb", "n_head_kv": 2}
    config = read_config(FAMILIES["falcon"], large)
    assert (config.kv_heads, config.parallel_block) == (2, "separate")


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (
            {"elementwise_attn_output_gate": True},
            "elementwise_attn_output_gate: both are true; accepted: one",
        ),
        ({"qkv_bias": True}, "qkv_bias=True: gates with a bias are not read; accepted: false"),
        ({"use_qk_norm": "no"}, "use_qk_norm='no': accepted: true or false"),
    ],
)
def test_gates_of_qwen3_that_are_refused(change, wanted):
    raw = recorded(FAMILIES["qwen3"]) | {"headwise_attn_output_gate": True}
    assert read_config(FAMILIES["qwen3"], raw).variant == "plain_head_gate"
    assert wanted in refused(raw | change)


def test_a_null_fraction_is_none_where_the_code_turns_whole_heads():
    raw = LLAMA2_7B | {"partial_rotary_factor": None}
    assert read_config(FAMILIES["llama"], raw) == read_config(FAMILIES["llama"], LLAMA2_7B)
    partly = recorded(FAMILIES["stablelm"])
    partly["rope_parameters"]["partial_rotary_factor"] = None
    assert "fraction" in refused(partly)


def test_rope_scaling_wins_over_rope_parameters():
    """As in the reference, where somebody has added the older spelling by hand."""
    parameters = {"rope_type": "default", "rope_theta": 500000.0}
    scaling = {"type": "linear", "factor": 4.0}
    raw = LLAMA2_7B | {"rope_parameters": parameters, "rope_scaling": scaling}
    config = read_config(FAMILIES["llama"], raw)
    assert config.rope == Linear(factor=4.0)
    gemma = recorded(FAMILIES["gemma3"]) | {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}
    assert read_config(FAMILIES["gemma3"], gemma).rope.factor == 8.0


@pytest.mark.parametrize(
    ("said", "truncate"), [({}, True), ({"truncate": None}, False), ({"truncate": False}, False)]
)
def test_yarns_truncation_where_it_is_null(said, truncate):
    raw = PUBLISHED["gpt-oss-20b"][0]
    scaling = {key: x for key, x in raw["rope_scaling"].items() if key != "truncate"} | said
    config = read_config(FAMILIES["gpt_oss"], raw | {"rope_scaling": scaling})
    assert config.rope.truncate is truncate


def test_olmo3s_plain_positions_of_all_layers():
    """As transformers 5 saves them; of a rule or another base its versions disagree."""
    raw = PUBLISHED["Olmo-3-7B"][0] | {"rope_scaling": None, "rope_parameters": None}
    flat = {"rope_type": "default", "rope_theta": 500_000}
    found = read_config(FAMILIES["olmo3"], raw | {"rope_parameters": flat})
    assert found == read_config(FAMILIES["olmo3"], raw)
    said = refused(raw | {"rope_parameters": flat | {"rope_theta": 1e4}})
    assert "disagree on rope_theta, rope_type" in said


def test_gemma3s_rule_by_its_older_name_is_refused():
    """Code of rotary positions reads it, the config of transformers 5.24 then says "default"."""
    raw = PUBLISHED["gemma-3-1b"][0] | {"rope_scaling": {"type": "linear", "factor": 8.0}}
    assert "rope_scaling: versions of the published code disagree" in refused(raw)
    raw["rope_scaling"]["rope_type"] = "linear"
    assert read_config(FAMILIES["gemma3"], raw).rope.factor == 8.0


def test_what_is_absent_is_the_references_default():
    config = read_config(FAMILIES["llama"], {"model_type": "llama", "max_sequence_length": 1024})
    assert (config.context, config.width, config.vocab, config.norm_eps) == (
        2048,
        4096,
        32000,
        1e-6,
    )


def test_parameters_of_a_rule_that_the_reference_does_not_read():
    rule = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024}
    raw = LLAMA2_7B | {"rope_scaling": rule}
    more = LLAMA2_7B | {"rope_scaling": rule | {"finetuned": True, "beta_fast": None}}
    assert read_config(FAMILIES["llama"], more) == read_config(FAMILIES["llama"], raw)
    exponents = rule | {"mscale": 0.5, "mscale_all_dim": 2.0}
    scale = read_config(FAMILIES["llama"], LLAMA2_7B | {"rope_scaling": exponents}).rope.scale
    assert scale == pytest.approx((1 + 0.05 * np.log(4)) / (1 + 0.2 * np.log(4)))


REAL = Path(__file__).parents[3] / "shared" / "cases" / "configs"


@pytest.mark.skipif(not REAL.is_dir(), reason="no shared/cases/configs beside this checkout")
def test_real_config_files_are_read_or_refused_rightly():
    """26 of public repositories, each with what is right of it (README.md beside them)."""
    table = re.findall(r"\| (\S+\.json) \| (\w+) \|", (REAL / "README.md").read_text())
    assert len(table) == 26
    wrong = []
    for name, right in table:
        raw = json.loads((REAL / name).read_text())
        try:
            family = by_model_type(raw.get("model_type"), REAL / name)
            read_config(family, read_within(family, raw))
            found = "accepted"
        except InputError:
            found = "refused"
        wrong += [] if found == right else [name]
    assert wrong == []


OTHERS = {str: "nosuch", bool: None, int: 7, float: 0.37}


# What must be on for other fields to have a part in it.
ACTIVE = {
    "rope_scaling": {"rope_type": "yarn", "factor": 2.0}, "use_sliding_window": True,
    "max_window_layers": 5, "sliding_window": 4096, "no_rope_layers": None,
    "attention_layers": None, "layer_types": None,
}  # fmt: skip
# Fields that only say over again what another of the family's fields says.
REPEATED = {"n_head_kv", "sliding_window_pattern"}
DENSE = {("qwen3_moe", "intermediate_size")}  # of an MLP that no layer has


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_field_of_a_config_map_matters(family):
    """Each field changed, in the record or in a published config, gives another config here, whose
    every field matters to the logits (tests/model/test_decoder.py), or a refusal."""
    rows = [(row, row.names if isinstance(row, Group) else (row.name,)) for row in family.config]
    named = {name for _, names in rows for name in names}
    known = [raw for raw, _ in PUBLISHED.values() if raw["model_type"] in family.model_types]
    active = {k: v for k, v in ACTIVE.items() if k in named}
    if family.name == "phi3":  # whose one rule is another
        del active["rope_scaling"]
    bases = [recorded(family), *known, known[0] | active]
    for row, names in rows:
        for name in names:
            if name not in REPEATED and (family.name, name) not in DENSE:
                assert any([_matters(family, raw, name, row) for raw in bases]), name


def _matters(family, raw, name, row):
    base = read_config(family, raw)
    outer, _, inner = name.partition(".")
    for value in _others(raw.get(outer, {}).get(inner) if inner else raw.get(name), row):
        try:
            if (
                read_config(family, raw | {outer: raw[outer] | {inner: value} if inner else value})
                != base
            ):
                return True
        except InputError:
            return True
    return False


def _others(value, row):
    """Values that differ from the one in the config."""
    if isinstance(row, Field) and row.values is not None:
        return [other for other in row.values if other != value] + ["nosuch"]
    if isinstance(row, Only):
        return ["nosuch"]
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [2 * value, value / 2]
    return [True, 4, 3, 0.37, ["full_attention"], {"rope_type": "linear", "factor": 3.0}]


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_groups_say_which_fields_they_read(family):
    raw = recorded(family)
    for row in family.config:
        if isinstance(row, Group):
            assert set(row.read(raw)) <= set(row.ours)


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"hidden_act": "gelu_10"}, "hidden_act='gelu_10' (accepted: 'silu'"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "stored quantised (mxfp4); accepted"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "quantised (gptq, 4 bits)"),
        ({"quantization_config": {"load_in_8bit": True}}, "stored quantised (quantised)"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, "(compressed-tensors)"),
        ({"quantization": {"group_size": 64, "bits": 4}}, "stored quantised (4 bits)"),
        ({"architectures": ["LlamaForCausalLMEagle3"]}, "LlamaForCausalLMEagle3: a draft head"),
        ({"draft_vocab_size": 32000}, "draft_vocab_size: a draft head for speculative decoding"),
        (
            {"architectures": ["LlamaForSequenceClassification"]},
            "LlamaForSequenceClassification: no language model's head; accepted: the language",
        ),
        ({"architectures": ["GPT2LMHeadCustomModel"]}, "GPT2LMHeadCustomModel: no language model"),
        ({"rope_scaling": {"rope_type": "spiral"}}, "rope_type='spiral': accepted: default, lin"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rule linear without factor"),
        ({"rope_parameters": {"full_attention": {"factor": 2.0}}}, "of full_attention: accepted"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rule yarn without factor and original_max"),
        ({"rope_scaling": "linear"}, "rope_scaling='linear': accepted: an object or null"),
        ({"rope_scaling": 0}, "rope_scaling=0: accepted: an object or null"),
        ({"rope_parameters": 3}, "rope_parameters=3: accepted: an object or null"),
        ({"num_attention_heads": "32"}, 'num_attention_heads is "32"; accepted: an integer'),
        ({"num_attention_heads": 32.0}, "num_attention_heads is 32.0; accepted: an integer"),
        ({"num_key_value_heads": "2"}, 'value_heads is "2"; accepted: an integer or null'),
        ({"num_hidden_layers": "2"}, 'num_hidden_layers="2" (accepted: an integer of at most 1'),
        ({"num_hidden_layers": 1.5}, "num_hidden_layers=1.5 (accepted: an integer of at most 1"),
        ({"num_hidden_layers": None}, "num_hidden_layers=null (accepted: an integer of at most"),
        ({"num_hidden_layers": True}, "num_hidden_layers=true (accepted: an integer of at most"),
        ({"vocab_size": True}, "vocab_size is true; accepted: an integer"),
        ({"rms_norm_eps": "1e-5"}, 'rms_norm_eps is "1e-5"; accepted: a number'),
        ({"tie_word_embeddings": 1}, "tie_word_embeddings is 1; accepted: true or false"),
        ({"num_key_value_heads": 31}, "kv_heads=31: does not divide heads=32"),
        ({"hidden_size": -1}, "width=-1: accepted: an integer of at least 1"),
        ({"rms_norm_eps": float("nan")}, "norm_eps=nan: accepted"),
        ({"hidden_act": ["silu"]}, "hidden_act=['silu'] (accepted"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor=0.5: accepted: 1.0"),
        (
            {
                "rope_parameters": {
                    "rope_type": "default",
                    "rope_theta": 1e4,
                    "partial_rotary_factor": 0.5,
                }
            },
            "partial_rotary_factor=0.5: acc",
        ),
        (
            {
                "rope_scaling": {
                    "rope_type": "longrope",
                    "factor": 2.0,
                    "short_factor": ["a", 1.0],
                    "long_factor": [1.0, 1.0],
                }
            },
            "accepted: a list of numbers",
        ),
    ],
)
def test_values_that_are_refused(change, wanted):
    assert wanted in refused(LLAMA2_7B | change)


def with_each_number(raw, value):
    """A config with another value in the place of each of its numbers, nested ones too."""
    for name, held in raw.items():
        if isinstance(held, dict):
            yield from (raw | {name: inner} for inner in with_each_number(held, value))
        elif type(held) in (int, float):
            yield raw | {name: value}


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_number_beyond_every_float_is_read_or_refused(name):
    """JSON has integers of any size; what raises anything but InputError here is a traceback."""
    for raw in with_each_number(PUBLISHED[name][0], 10**400):
        with suppress(InputError):
            read_config(by_model_type(raw["model_type"], Path("config.json")), raw)


@pytest.mark.parametrize("name", ["num_hidden_layers", "num_local_experts"])
def test_a_damaged_count_is_refused_before_it_is_counted_up_to(name):
    said = refused(PUBLISHED["Mixtral-8x7B"][0] | {name: 1 << 31})
    assert f"{name}=2147483648 (accepted: an integer of at most 10000)" in said


def test_all_faults_are_named_at_once():
    change = {"hidden_act": "x", "is_causal": False, "quantization_config": {"bits": 4}}
    message = refused(LLAMA2_7B | change | {"rope_scaling": {"type": "spiral"}})
    for part in ("'x'", "is_causal=false", "4 bits", "spiral"):
        assert part in message


def test_an_unknown_family():
    with pytest.raises(InputError, match="model_type 'bert'; accepted: llama, mistral"):
        by_model_type("bert", Path("config.json"))


def test_what_a_family_cannot_say():
    """Exporting to a family that lacks a field of this architecture is refused, the field named."""
    config = read_config(FAMILIES["mistral"], PUBLISHED["Mistral-7B"][0])
    with pytest.raises(InputError, match=r"the llama family has no window=4096 \(accepted: None\)"):
        write_config(FAMILIES["llama"], config)
    message = refusal(write_config, FAMILIES["gpt2"], config)
    for said in (
        "the gpt2 family has no mlp='swiglu' (accepted: 'gelu', 'gelu_exact', 'relu'), ",
        "norm='rms' (accepted: 'layer'), position='rope' (accepted: 'learned'), ",
        "kv_heads=8 (accepted: 32)",
    ):
        assert said in message
    with pytest.raises(InputError, match=r"no variant='sigmoid' \(accepted: 'softmax'\)"):
        write_config(FAMILIES["llama"], ModelConfig(
            norm="rms", position="rope", mlp="swiglu", variant="sigmoid"))  # fmt: skip
    assert set(OURS_ALONE) < set(flat(ModelConfig()))


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("neo", {"attention_types": [[["global"], 10**12]]}, "more of 12 layers, global"),
        ("neo", {"attention_types": [[[], 10**12]]}, "0 of 12 layers, ; accepted"),
        ("neo", {"attention_types": [[["global"], 11]]}, "11 of 12 layers, global"),
        ("neo", {"attention_types": [[["flash"], 12]]}, "12 of 12 layers, flash"),
        ("neo", {"attention_types": 3}, "attention_types"),
        ("neo", {"attention_layers": ["local"] * 3}, "3 of 12 layers, local"),
        ("gpt-j-6b", {"rotary_dim": None}, "rotary_dim"),
        ("gpt-j-6b", {"rotary_dim": 512}, "rope_fraction"),
        ("gpt-j-6b", {"rotary_dim": 3}, "rotates channels in pairs"),
        ("SmolLM3-3B", {"no_rope_layers": [1, 0]}, "2 for 36 layers"),
        ("SmolLM3-3B", {"no_rope_layers": [2] * 36}, "0 or 1 for each layer"),
        ("SmolLM3-3B", {"layer_types": ["sliding_attention"] * 36}, "with use_sliding_window"),
        ("SmolLM3-3B", {"no_rope_layers": None, "no_rope_layer_interval": 0}, "no_rope_layer_int"),
        ("bloom-560m", {"slow_but_exact": True}, "slow_but_exact=True"),
        ("bloom-560m", {"apply_residual_connection_post_layernorm": True}, "apply_residual"),
        ("Olmo-3-7B", {"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope_type in place of"),
        ("Olmo-3-7B", {"rope_parameters": {"rope_theta": 5e5}}, "disagree on rope_theta"),
        ("Olmo-3-7B", {"rope_theta": 1e6}, "rope_theta"),
        ("gemma-3-1b", {"rope_parameters": {"rope_type": "yarn"}}, "disagree on rope_type"),
    ],
)
def test_what_is_not_said_or_said_in_two_ways(name, change, told):
    raw = dict(PUBLISHED["gpt-neo-125m"][0])
    if name == "neo":  # without the list by layer, which counts before the other
        del raw["attention_layers"]
    assert told in refused((raw if name == "neo" else PUBLISHED[name][0]) | change)


def test_gpt_neos_layers_count_before_its_types():
    """As in the reference, where both are given."""
    raw = PUBLISHED["gpt-neo-125m"][0] | {"attention_layers": ["local"] * 12}
    assert read_config(FAMILIES["gpt_neo"], raw).window_layers is None


def test_olmo_3_with_bases_of_its_own_comes_back():
    kinds = {
        "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7e4},
        "sliding_attention": {"rope_type": "default", "rope_theta": 3e3},
    }
    raw = {k: v for k, v in PUBLISHED["Olmo-3-7B"][0].items() if not k.startswith("rope")}
    config = read_config(FAMILIES["olmo3"], raw | {"rope_parameters": kinds})
    assert (config.rope.theta, config.rope.local_theta, config.rope.rule) == (7e4, 3e3, "linear")
    out = write_config(FAMILIES["olmo3"], config)
    assert read_config(FAMILIES["olmo3"], out) == replace(config, kv_heads=32)
    told = {name: out["rope_parameters"][name]["rope_theta"] for name in kinds}
    assert told == {"full_attention": 7e4, "sliding_attention": 3e3}
    assert "rope_theta" not in out


@pytest.mark.parametrize("name", ["olmo3", "gemma3"])
def test_one_base_for_all_layers_is_written_for_both_kinds(name):
    """In models trained here layers with a window have no base of their own."""
    said = read_config(FAMILIES[name], recorded(FAMILIES[name]))
    config = replace(said, rope=replace(said.rope, theta=7e4, local_theta=None))
    again = read_config(FAMILIES[name], write_config(FAMILIES[name], config))
    assert (again.rope.theta, again.rope.local_theta) == (7e4, 7e4)


@pytest.mark.parametrize("divisor", [0.5, 2.0, 8.0, 0.3])
def test_granites_factors_come_back(divisor):
    raw = PUBLISHED["granite-3.0-2b"][0] | {"logits_scaling": divisor}
    config = replace(read_config(FAMILIES["granite"], raw), query_scale=None)
    out = write_config(FAMILIES["granite"], config)
    assert out["logits_scaling"] == pytest.approx(divisor)
    assert out["attention_multiplier"] == 64**-0.5  # of heads of 64 channels
    again = read_config(FAMILIES["granite"], out)
    assert (again.logit_scale, again.query_scale) == (config.logit_scale, 64**-0.5)
    assert "attention_multiplier" in refused(raw | {"attention_multiplier": None})


def test_all_layers_with_positions_are_written_as_such():
    config = read_config(FAMILIES["smollm3"], PUBLISHED["SmolLM3-3B"][0])
    every = replace(config, rope_layers=tuple(range(36)))
    assert write_config(FAMILIES["smollm3"], every)["no_rope_layers"] == [1] * 36


def test_ministral_is_a_mistral_with_windows_by_layer():
    raw = PUBLISHED["Mistral-7B"][0] | {"num_hidden_layers": 3}
    kinds = ["full_attention", "sliding_attention", "full_attention"]
    config = read_config(FAMILIES["mistral"], raw | {"layer_types": kinds})
    assert (config.window, config.window_layers) == (4096, (1,))
    assert write_config(FAMILIES["mistral"], config)["layer_types"] == kinds
    assert ignored_fields(FAMILIES["mistral"], raw | {"layer_types": kinds}) == ignored_fields(
        FAMILIES["mistral"], raw
    )
    everywhere = read_config(FAMILIES["mistral"], raw)
    assert (everywhere.window, everywhere.window_layers) == (4096, None)
    assert "layer_types" not in write_config(FAMILIES["mistral"], everywhere)


def test_gpt_oss_without_windows_and_with_the_plain_rule_comes_back():
    raw = PUBLISHED["gpt-oss-20b"][0] | {"layer_types": ["full_attention"] * 24}
    raw |= {"rope_scaling": {"rope_type": "default"}}
    config = read_config(FAMILIES["gpt_oss"], raw)
    written = write_config(FAMILIES["gpt_oss"], config)
    assert written["sliding_window"] == 128  # its code asks for one
    assert read_config(FAMILIES["gpt_oss"], written) == config


def test_phi3_has_no_rule_but_its_own():
    raw = PUBLISHED["Phi-3-mini-128k"][0] | {"rope_scaling": {"type": "linear", "factor": 4.0}}
    assert "rope_type='linear': accepted: default, longrope" in refused(raw)


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe", "olmoe"])
def test_a_mixture_without_experts_is_not_written(name):
    mixture = read_config(FAMILIES[name], recorded(FAMILIES[name]))
    with pytest.raises(InputError, match=r"has no experts=0 \(accepted: 1 or more\)"):
        write_config(FAMILIES[name], replace(mixture, experts=0))


def test_what_the_published_code_does_not_do_is_not_written():
    """Partly turned heads of LLaMA, and soft caps of Gemma 3's attention: its code ignores both."""
    llama = read_config(FAMILIES["llama"], LLAMA2_7B)
    with pytest.raises(InputError, match=r"partial_rotary_factor|rope_fraction"):
        write_config(FAMILIES["llama"], replace(llama, rope=replace(llama.rope, fraction=0.5)))
    raw = {"model_type": "gemma3_text", "attn_logit_softcapping": 50.0}
    with pytest.raises(InputError, match="attn_logit_softcapping"):
        read_config(FAMILIES["gemma3"], raw)
    capped = replace(read_config(FAMILIES["gemma3"], raw | {"attn_logit_softcapping": None}),
                     attn_softcap=50.0)  # fmt: skip
    with pytest.raises(InputError, match="the gemma3 family has no attn_softcap"):
        write_config(FAMILIES["gemma3"], capped)


@pytest.mark.parametrize("name", ["gemma2", "gemma3"])
def test_a_gemma_without_windows_is_written_with_a_width(name):
    """Its code makes the mask of a window whether a layer has one or not."""
    config = read_config(FAMILIES[name], {"model_type": FAMILIES[name].model_types[0]})
    out = write_config(FAMILIES[name], replace(config, window=None, window_layers=None))
    assert out["sliding_window"] == 4096
    assert set(out["layer_types"]) == {"full_attention"}
    assert read_config(FAMILIES[name], out).window is None


def test_phi3s_context_before_it_was_made_longer():
    """Where the published code looks for it, beside the rule and not in it alone."""
    longer = {
        "model_type": "phi3", "hidden_size": 96, "num_attention_heads": 8, "vocab_size": 50,
        "intermediate_size": 96, "num_hidden_layers": 2, "num_key_value_heads": 8,
        "max_position_embeddings": 64, "original_max_position_embeddings": 16,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 6, "long_factor": [2.0] * 6},
    }  # fmt: skip
    config = read_config(FAMILIES["phi3"], longer)
    assert config.rope.context == 16
    out = write_config(FAMILIES["phi3"], config)
    assert out["original_max_position_embeddings"] == 16
    assert read_config(FAMILIES["phi3"], out) == config


def test_every_type_of_a_field_has_words():
    hints = [
        each
        for kind in (ModelConfig, *RULES.values())
        for each in typing.get_type_hints(kind).values()
    ]
    others = (Rope, Execution, ExplicitSink | None)
    for hint in (each for each in hints if each not in others):
        assert set(typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)) <= set(
            _KINDS
        )


def test_an_id_beyond_a_small_vocabulary_is_not_left_to_the_default():
    """Phi-3's pad token is 32000 there, which transformers refuses in a vocabulary of 97."""
    small = LLAMA2_7B | {"vocab_size": 97, "model_type": "phi3", "rope_scaling": None}
    out = write_config(FAMILIES["phi3"], read_config(FAMILIES["phi3"], small))
    assert out["pad_token_id"] is out["eos_token_id"] is None
    assert "bos_token_id" not in out
    assert "pad_token_id" not in write_config(
        FAMILIES["phi3"], read_config(FAMILIES["phi3"], small | {"vocab_size": 32064})
    )
