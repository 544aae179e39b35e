"""Configs as records have them: of this version, and of those whose configs had one level."""

import contextlib
import json
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.layers import MLPS
from sysout_jax.core.norms import NORMS
from sysout_jax.errors import InputError
from sysout_jax.model.config import (
    PARALLEL_BLOCKS,
    PLACEMENTS,
    POSITIONS,
    QUERY_KEY_NORMS,
    SHAPES,
    ModelConfig,
)
from sysout_jax.model.execution import Execution
from sysout_jax.model.rope import RULES, LongRope, Rope, Yarn
from sysout_jax.model.sink import ExplicitSink
from sysout_jax.model.stored import flat, from_record

RESULTS = Path(__file__).parents[2] / "results"
CHOICES = {
    "variant": VARIANTS,
    "norm": NORMS,
    "norm_placement": PLACEMENTS,
    "parallel_block": PARALLEL_BLOCKS,
    "position": POSITIONS,
    "mlp": MLPS,
    "query_key_norm": QUERY_KEY_NORMS,
    "remat": ("none", "block", "dots"),
    "dtype": ("float32", "bfloat16"),
}
CONFIGS = {
    "plain": ModelConfig(),
    "rotary": replace(SHAPES["llama-tiny"], rope=Rope(theta=5.0, local_theta=3.0), window=3),
    "yarn": replace(SHAPES["llama-tiny"], rope=Yarn(factor=3.0, truncate=False)),
    "longrope": replace(
        SHAPES["llama-tiny"], head_dim=4, rope=LongRope(short=(1.0, 2.0), long=(3.0, 4.0))
    ),
    "layers": ModelConfig(window=3, window_layers=(1,)),
    "converted": ModelConfig(sink=ExplicitSink(replaces_first=True, layers=(0, 1), silent=(1,))),
    "run": ModelConfig(
        execution=Execution(scan_layers=True, remat="dots", flash=True, dtype="bfloat16")
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_comes_back_from_its_record(name):
    assert from_record(json.loads(json.dumps(asdict(CONFIGS[name])))) == CONFIGS[name]


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_comes_back_from_one_level(name):
    """As versions before wrote it, but for the numbers of other rules."""
    assert from_record(json.loads(json.dumps(flat(CONFIGS[name])))) == CONFIGS[name]


FIELDS = {
    "int": st.integers(1, 3),
    "float": st.floats(0.125, 1.0),
    "bool": st.booleans(),
    "tuple[int, ...]": st.lists(st.integers(0, 1), unique=True).map(sorted).map(tuple),
    "tuple[float, ...]": st.lists(st.floats(0.5, 9.0), max_size=3).map(tuple),
    "None": st.none(),
}


def changes(kind):
    """Other values of some fields, each of a kind that the field has."""

    def values(each):
        types = str(getattr(each.type, "__name__", each.type)).split(" | ")
        choices = CHOICES.get(each.name)
        own = [FIELDS[one] for one in types if one in FIELDS]
        return st.sampled_from(sorted(choices)) if choices else st.one_of(own)

    pairs = [st.tuples(st.just(each.name), values(each)) for each in fields(kind) if each.init]
    return st.lists(st.one_of([pair for pair in pairs if not pair.is_empty]), max_size=6)


def changed(found, pairs):
    """A config with those of the values that it accepts, one by one."""
    for name, value in pairs:
        with contextlib.suppress(InputError):
            found = replace(found, **{name: value})
    return found


@settings(deadline=None, max_examples=100)
@given(
    changes(ModelConfig), st.sampled_from(list(RULES.values())), st.data(),
    changes(Execution), changes(ExplicitSink),
)  # fmt: skip
def test_any_config_comes_back_from_its_record(own, rule, data, run, sink):
    parts = {
        "rope": changed(rule(), data.draw(changes(rule))),
        "execution": changed(Execution(), run),
        "sink": changed(ExplicitSink(), sink) if sink else None,
    }
    config = changed(changed(ModelConfig(), own), parts.items())
    assert from_record(json.loads(json.dumps(asdict(config)))) == config


def models(tree):
    """Every config of a model in a record."""
    if isinstance(tree, dict):
        if {"kv_heads", "variant", "rope_theta"} <= set(tree):
            yield tree
        for value in tree.values():
            yield from models(value)
    if isinstance(tree, list):
        for value in tree:
            yield from models(value)


@pytest.mark.parametrize("path", ["variants/demo", "analyze/fruitfly-h100", "benchmark/sinks"])
def test_a_committed_record_of_an_earlier_version_is_read(path):
    found = list(models(json.loads((RESULTS / path / "result.json").read_text())))
    assert found
    for stored in found:
        kept = json.loads(json.dumps(flat(from_record(stored))))
        assert {name: value for name, value in stored.items() if name in kept} == {
            name: value for name, value in kept.items() if name in stored
        }
        # what is gone are numbers of rules that the model does not have
        assert {name for name in set(stored) - set(kept) if not name.startswith("rope_")} == set()


def test_numbers_of_an_earlier_version_without_effect_are_left_out():
    numbers = {"rope_rule": "llama3", "rope_low": 2.0, "rope_fast": 7.0, "rope_short": [1.0]}
    assert from_record({"position": "alibi", **numbers}) == ModelConfig(position="alibi")
    rope = from_record({"position": "rope", **numbers}).rope
    assert (rope.rule, rope.low, rope.high) == ("llama3", 2.0, 4.0)


def test_a_fused_kernel_of_an_earlier_version_is_kept_where_it_had_an_effect():
    flash = {"flash": True, "dtype": "bfloat16"}
    assert from_record(flash).execution == Execution(flash=True, dtype="bfloat16")
    for other in ({"dtype": "float32"}, {"window": 3}, {"query_block": 5}, {"head_dim": 6}):
        assert not from_record(flash | other).execution.flash


@pytest.mark.parametrize(
    ("stored", "said"),
    [
        ({"colour": 1, "depth": 2}, "unknown fields colour, depth"),
        ({"rope": {"rule": "plain", "factor": 2.0}}, "unknown fields factor"),
        ({"position": "rope", "rope": {"rule": "spiral"}}, "rope_rule='spiral'"),
        ({"position": "rope", "rope_rule": "spiral"}, "rope_rule='spiral'"),
        ({"width": 0}, "width=0"),
    ],
)
def test_what_is_no_config_is_refused(stored, said):
    with pytest.raises(InputError, match=said):
        from_record(stored)
