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
from sysout_jax.families.family import Field, Fixed, Group
from sysout_jax.families.reference import HARMLESS, reference_of
from sysout_jax.families.table import FAMILIES, by_model_type
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.execution import Execution
from sysout_jax.model.rope import RULES, Linear, Rope
from sysout_jax.model.sink import ExplicitSink
from sysout_jax.model.stored import flat
from tests.families.reference import GOLDEN
from tests.refusing import refusal

# As they are on the hub, to the best of what is published, and fields of what each says here.
_SAVED = {
    path.stem: json.loads(path.read_text())
    for path in sorted((Path(__file__).parent / "configs").glob("*.json"))
}
PUBLISHED = {name: saved["config"] for name, saved in _SAVED.items()}
READ_AS = {name: saved["read_as"] for name, saved in _SAVED.items()}
LLAMA2_7B = PUBLISHED["Llama-2-7b"]


def refused(raw):
    message = refusal(read_config, by_model_type(raw["model_type"], Path("config.json")), raw)
    assert "accepted" in message
    return message


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_are_read(name):
    raw = PUBLISHED[name]
    says = flat(read_config(by_model_type(raw["model_type"], Path("config.json")), raw))
    assert json.loads(json.dumps({field: says[field] for field in READ_AS[name]})) == READ_AS[name]


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configs_come_back(name):
    raw = PUBLISHED[name]
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


@pytest.mark.parametrize("name", ["rope_scaling", "rope_parameters"])
def test_keys_of_a_rotary_rule_that_nothing_reads_are_listed(name):
    """DeepSeek-R1-0528-Qwen3-8B has the first, Gemma 3 kinds of layers."""
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
            "attn_factor": 0.878, "beta_fast": 32.0, "mscale": None}  # fmt: skip
    assert ignored_fields(FAMILIES["qwen3"], {name: yarn}) == (f"{name}.attn_factor",)
    linear = {"rope_type": "linear", "factor": 8.0}
    assert ignored_fields(FAMILIES["qwen3"], {name: linear}) == ()
    by_kind = {"full_attention": linear | {"colour": 1}, "sliding_attention": {"rope_theta": 1e4}}
    assert ignored_fields(FAMILIES["gemma3"], {name: by_kind}) == (f"{name}.colour",)


def test_a_base_that_a_second_rule_would_hide_is_refused():
    """As transformers 5 saves it, and a rule that is added by hand, as Qwen's page says."""
    saved = {"model_type": "qwen3", "rope_parameters": {"rope_type": "default", "rope_theta": 1e6}}
    yarn = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    message = refused(saved | {"rope_scaling": yarn})
    assert "rope_parameters.rope_theta=1000000.0" in message
    of = FAMILIES["qwen3"]
    inside = read_config(of, saved | {"rope_scaling": yarn | {"rope_theta": 1e6}})
    beside = read_config(of, saved | {"rope_scaling": yarn, "rope_theta": 1e6})
    assert inside == beside
    assert (inside.rope.rule, inside.rope.theta) == ("yarn", 1e6)
    assert read_config(of, saved).rope.theta == 1e6


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
    """As in the reference, where somebody has added the older spelling by hand. Of another base
    than the usual, which the reference loses there, see the test of what a rule would hide."""
    parameters = {"rope_type": "default", "rope_theta": 10000.0}
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
    raw = PUBLISHED["gpt-oss-20b"]
    scaling = {key: x for key, x in raw["rope_scaling"].items() if key != "truncate"} | said
    config = read_config(FAMILIES["gpt_oss"], raw | {"rope_scaling": scaling})
    assert config.rope.truncate is truncate


def test_olmo3s_plain_positions_of_all_layers():
    """As transformers 5 saves them; of a rule or another base its versions disagree."""
    raw = PUBLISHED["Olmo-3-7B"] | {"rope_scaling": None, "rope_parameters": None}
    flat = {"rope_type": "default", "rope_theta": 500_000}
    found = read_config(FAMILIES["olmo3"], raw | {"rope_parameters": flat})
    assert found == read_config(FAMILIES["olmo3"], raw)
    said = refused(raw | {"rope_parameters": flat | {"rope_theta": 1e4}})
    assert "disagree on rope_theta, rope_type" in said


def test_gemma3s_rule_by_its_older_name_is_refused():
    """Code of rotary positions reads it, the config of transformers 5.24 then says "default"."""
    raw = PUBLISHED["gemma-3-1b"] | {"rope_scaling": {"type": "linear", "factor": 8.0}}
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
    known = [raw for raw in PUBLISHED.values() if raw["model_type"] in family.model_types]
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
    if isinstance(row, Fixed):
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
    for raw in with_each_number(PUBLISHED[name], 10**400):
        with suppress(InputError):
            read_config(by_model_type(raw["model_type"], Path("config.json")), raw)


@pytest.mark.parametrize("name", ["num_hidden_layers", "num_local_experts"])
def test_a_damaged_count_is_refused_before_it_is_counted_up_to(name):
    said = refused(PUBLISHED["Mixtral-8x7B"] | {name: 1 << 31})
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
    config = read_config(FAMILIES["mistral"], PUBLISHED["Mistral-7B"])
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
    raw = dict(PUBLISHED["gpt-neo-125m"])
    if name == "neo":  # without the list by layer, which counts before the other
        del raw["attention_layers"]
    assert told in refused((raw if name == "neo" else PUBLISHED[name]) | change)


def test_gpt_neos_layers_count_before_its_types():
    """As in the reference, where both are given."""
    raw = PUBLISHED["gpt-neo-125m"] | {"attention_layers": ["local"] * 12}
    assert read_config(FAMILIES["gpt_neo"], raw).window_layers is None


def test_olmo_3_with_bases_of_its_own_comes_back():
    kinds = {
        "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 7e4},
        "sliding_attention": {"rope_type": "default", "rope_theta": 3e3},
    }
    raw = {k: v for k, v in PUBLISHED["Olmo-3-7B"].items() if not k.startswith("rope")}
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
    raw = PUBLISHED["granite-3.0-2b"] | {"logits_scaling": divisor}
    config = replace(read_config(FAMILIES["granite"], raw), query_scale=None)
    out = write_config(FAMILIES["granite"], config)
    assert out["logits_scaling"] == pytest.approx(divisor)
    assert out["attention_multiplier"] == 64**-0.5  # of heads of 64 channels
    again = read_config(FAMILIES["granite"], out)
    assert (again.logit_scale, again.query_scale) == (config.logit_scale, 64**-0.5)
    assert "attention_multiplier" in refused(raw | {"attention_multiplier": None})


def test_all_layers_with_positions_are_written_as_such():
    config = read_config(FAMILIES["smollm3"], PUBLISHED["SmolLM3-3B"])
    every = replace(config, rope_layers=tuple(range(36)))
    assert write_config(FAMILIES["smollm3"], every)["no_rope_layers"] == [1] * 36


def test_ministral_is_a_mistral_with_windows_by_layer():
    raw = PUBLISHED["Mistral-7B"] | {"num_hidden_layers": 3}
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
    raw = PUBLISHED["gpt-oss-20b"] | {"layer_types": ["full_attention"] * 24}
    raw |= {"rope_scaling": {"rope_type": "default"}}
    config = read_config(FAMILIES["gpt_oss"], raw)
    written = write_config(FAMILIES["gpt_oss"], config)
    assert written["sliding_window"] == 128  # its code asks for one
    assert read_config(FAMILIES["gpt_oss"], written) == config


def test_phi3_has_no_rule_but_its_own():
    raw = PUBLISHED["Phi-3-mini-128k"] | {"rope_scaling": {"type": "linear", "factor": 4.0}}
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
