"""Benchmarks of ours alone: rows beside goals, kinds of variants, and what is made of seconds."""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import goals, seeds, startup, variants
from benchmarks.goals import Row
from sysout_jax.core.attention import VARIANTS
from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig


@pytest.mark.parametrize(
    ("row", "met", "shown"),
    [
        (Row("a", [2.0, 1.5, 2.5], " s", most=2.0), True, ["2 (1.5 to 2.5) s", "<= 2 s", "yes"]),
        (Row("a", [2.1, 1.5, 2.5], " s", most=2.0), False, ["2.1 (1.5 to 2.5) s", "<= 2 s", "no"]),
        (Row("a", [2.1, 2.1, 2.1], least=2.0), True, ["2.1", ">= 2", "yes"]),
        (Row("a", [1.9, 1.9, 1.9], least=2.0), False, ["1.9", ">= 2", "no"]),
        (Row("a", [0.12345, 0.1, 0.2]), None, ["0.123 (0.1 to 0.2)", "", ""]),
    ],
)
def test_a_row_says_whether_its_goal_is_met(row, met, shown):
    assert row.met is met
    assert goals.texts([dataclasses.asdict(row)]) == [["a", *shown]]
    assert (
        f"| a | {' | '.join(shown)} |" in goals.table("", [dataclasses.asdict(row)]).to_markdown()
    )


def test_quartiles_by_hand():
    assert goals.quartiles(np.array([5.0, 1.0, 3.0, 2.0, 4.0])) == [3.0, 2.0, 4.0]


def test_kinds_of_variants_come_from_what_they_do():
    found = {name: variants.kind(name) for name in VARIANTS}
    of = {kind: {n for n, k in found.items() if k == kind} for kind in set(found.values())}
    assert {"context_scale", "head_gate", "static_gate"} <= of["gate per head"]
    extra = {"attention_bias", "softmax_off_by_one", "sink_logit", "sink_value", "key_bias"}
    assert of["extra key"] == extra
    assert of["unnormalised"] == {name for name, v in VARIANTS.items() if not v.normalised}
    assert {"softmax", "value_bias", "element_gate"} <= of[""]


def test_times_are_compared_within_rounds():
    times = {"softmax": np.array([1.0, 2.0, 4.0]), "sigmoid": np.array([1.1, 2.2, 4.4])}
    softmax, sigmoid = variants.rows(times)
    assert softmax.found == [2000.0, 1500.0, 3000.0]
    assert sigmoid.found == pytest.approx([1.1] * 3)
    assert sigmoid.most == variants.GOALS["unnormalised"]


def test_seeds_are_compared_with_as_many_runs():
    timed = {
        1: [seeds.Timed(2.0, 100.0), seeds.Timed(2.0, 50.0)],
        4: [seeds.Timed(4.0, 100.0), seeds.Timed(4.0, 100.0)],
        8: [seeds.Timed(8.0, 200.0), seeds.Timed(16.0, 200.0)],
    }
    one, four, eight, speed, four_faster, eight_faster = seeds.rows(timed, throughput=3.0)
    assert one.found[0] == 2.0
    assert (four.found[0], four.met) == (0.5, None)
    assert (eight.found, eight.met) == ([0.75, 0.625, 0.875], False)
    assert speed.found[0] == 75.0
    assert (four_faster.found[0], four_faster.met) == (1.5, None)
    assert (eight_faster.found, eight_faster.met) == ([3.0, 2.5, 3.5], True)


@pytest.mark.parametrize("size", list(seeds.RUNS))
def test_seeds_of_every_size_are_timed_from_nothing(size, monkeypatch):
    small = {
        "seq_len": 5, "batch_size": 2, "steps_per_call": 1,
        "model": ModelConfig(layers=1, width=8, heads=2),
    }  # fmt: skip
    runs = {name: replace(run, **small) for name, run in seeds.RUNS.items()}
    monkeypatch.setattr(seeds, "RUNS", runs)
    found = seeds.whole_run(size, steps=3, count=2)
    assert found.seconds > 0
    assert found.tokens_per_second * found.seconds > 2 * 2 * 5


def test_loading_is_timed_beside_reading(tmp_path):
    shape = ModelConfig(
        layers=1, width=8, heads=2, vocab=11, context=7, norm="layer", bias=True, tied=True
    )
    load, read, ratio = startup.loaded(tmp_path, shape, rounds=2)
    assert load.found[0] > 0
    assert read.found[0] > 0
    assert ratio.met is None
    assert (tmp_path / "gpt2" / "config.json").exists()


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: variants.Config(variants=("soft",)), "variants='soft': unknown"),
        (lambda: variants.Config(rounds=1), "rounds=1"),
        (lambda: seeds.Config(steps=49), "steps=49"),
        (lambda: seeds.Config(counts=(2, 4)), "counts=2,4"),
        (lambda: seeds.Config(size="1m"), "size='1m': unknown"),
        (lambda: startup.Config(layers=0), "layers=0"),
    ],
)
def test_out_of_range(make, told):
    with pytest.raises(InputError, match=told):
        make()
