"""Benchmarks of ours alone: rows beside goals, kinds of variants, and what is made of seconds."""

import dataclasses
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import analysis, first_result, goals, long_context, seeds, startup, train, variants
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
    assert {"attention_bias", "sink_logit"} <= of["extra key"]
    assert of["extra key"] == {name for name, v in VARIANTS.items() if v.extra_key}
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
    ("benchmark", "changes", "told"),
    [
        (analysis, {"rounds": 1}, "rounds=1: accepted: an integer of at least 2"),
        (analysis, {"width": 100}, "width=100: accepted: a multiple of 64"),
        (analysis, {"sequences": 0}, "sequences=0"),
        (analysis, {"seq_len": 1}, "seq_len=1"),
        (
            analysis,
            {"model": "smollm2-135m", "layers": 2},
            "layers=2: no effect; accepted: without model",
        ),
        (first_result, {"rounds": 1}, "rounds=1"),
        (first_result, {"sequences": 0}, "sequences=0"),
        (first_result, {"seq_len": 1}, "seq_len=1"),
        (long_context, {"shared": 1024}, "shared=1024: accepted: an integer of at least 1025"),
        (long_context, {"shared": 2000}, "shared=2000: accepted: a multiple of 64"),
        (long_context, {"step": 0}, "step=0: accepted: a multiple of 64"),
        (long_context, {"width": 100}, "width=100: accepted: a multiple of 16"),
        (long_context, {"gib": 0.0}, "gib=0.0: accepted: a number above 0"),
        (long_context, {"minutes": -1.0}, "minutes=-1.0"),
        (long_context, {"rounds": 0}, "rounds=0"),
        (train, {"sizes": ("60k", "2b")}, "sizes='2b': unknown; accepted: 60k, 1m, 10m, 124m"),
        (train, {"styles": ("gpt3",)}, "styles='gpt3': unknown; accepted: gpt2-tiny, llama-tiny"),
        (train, {"styles": ()}, "styles=: accepted: some of gpt2-tiny"),
        (train, {"dtype": "float16"}, "dtype='float16': unknown; accepted: float32, bfloat16"),
        (train, {"flash": True}, "flash: dtype=float32; accepted: dtype=bfloat16"),
        (train, {"batch_size": 0}, "batch_size=0: accepted: an integer of at least 1"),
        (train, {"rounds": 1}, "rounds=1"),
        (variants, {"variants": ("soft",)}, "variants='soft': unknown"),
        (variants, {"rounds": 1}, "rounds=1"),
        (seeds, {"steps": 49}, "steps=49"),
        (seeds, {"counts": (2, 4)}, "counts=2,4"),
        (seeds, {"counts": (1, 8, 8)}, "counts=1,8,8"),
        (seeds, {"size": "1m"}, "size='1m': unknown"),
        (startup, {"layers": 0}, "layers=0"),
    ],
)
def test_what_is_out_of_range_is_refused(benchmark, changes, told):
    with pytest.raises(InputError, match=told):
        benchmark.Config(**changes)
