"""The benchmark: cells that are files, what each says, and what its table shows."""

import copy
from dataclasses import replace

import numpy as np
import pytest

from experiments import benchmark
from experiments.benchmark import RATES, Config
from experiments.cli.presets import NORMS, PRESETS, SETTINGS
from experiments.cli.tables import markdown
from experiments.records.benchmark import AXES
from experiments.reports.benchmark_report import COLUMNS, sections
from sysout_jax.analysis.compress import schemes
from sysout_jax.analysis.compress.compressed import Compressed, losses
from sysout_jax.analysis.compress.compression import Compressor
from sysout_jax.analysis.statistics import mean_interval
from sysout_jax.data import load_corpus
from sysout_jax.errors import Diverged
from sysout_jax.model.config import SHAPES
from sysout_jax.training.loop import train
from sysout_jax.training.optimizer import OPTIMIZERS

TINY = (
    "--tokenizer=bytes", "--seeds=0,3", "--steps=4", "--measure_every=2", "--steps_per_call=2",
    "--batch_size=3", "--val_batches=1", "--seq_len=11", "--width=8", "--heads=2", "--layers=1",
    "--variants=softmax,context_scale", "--optimizers=adamw,muon", "--norms=own",
    "--bases=softmax", "--methods=w4,w8a8", "--sequences=5", "--calibration=3", "--name=cells",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(run_benchmark, tmp_path_factory):
    """Three cells by two shards, one of which diverges; then the record of all of them."""
    place = tmp_path_factory.mktemp("runs")
    runs = []

    def watched(config, *rest):
        if config.optimizer.optimizer == "muon":
            raise Diverged(config.variant, 2, 3, float("nan"))
        runs.append(train(config, *rest))
        return runs[-1]

    arguments = (*TINY, f"--workdir={place}")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark, "train", watched)
        for shard in ("1/2", "0/2"):
            done = run_benchmark(*arguments, f"--shard={shard}")
            assert done.status == 0, done.err
        patch.setattr(benchmark, "train", None)
        whole = run_benchmark(*arguments)
    return whole, {run.config.variant: run for run in runs}


@pytest.fixture(scope="module")
def record(finished):
    return finished[0].record


def test_the_record_has_the_cells_of_all_shards(finished, record):
    assert record["status"] == "complete"
    assert [tuple(cell[name] for name in AXES) for cell in record["cells"]] == [
        ("softmax", "adamw", "own", "own"), ("context_scale", "adamw", "own", "own"),
        ("softmax", "muon", "own", "own"),
    ]  # fmt: skip
    assert record["cells"][2]["diverged"] == {"step": 2, "seed": 3}
    assert record["cells"][2]["lr"] == RATES["muon"] * PRESETS["small"].optimizer.lr
    assert not any("diverged" in cell for cell in record["cells"][:2])
    first = record["cells"][0]
    run = finished[1]["softmax"]
    np.testing.assert_allclose(first["val_loss"][-1], run.rows[-1]["val_loss"], rtol=1e-5)
    assert set(COLUMNS) <= set(first["measures"])
    assert (finished[0].directory / "figures" / "cells.png").exists()
    assert (finished[0].directory / "cells" / "softmax-adamw-own-own.json").exists()


def test_what_compression_costs_is_that_of_each_seeds_model(finished, record):
    run, cell = finished[1]["context_scale"], record["cells"][1]
    corpus = load_corpus("stdlib", "bytes", True)
    evaluation = corpus.distinct("val", 5, 11)
    model = run.model(3)
    before = losses(model.config, Compressed(model.params), evaluation)
    compressed = Compressor(model.config, model.params, evaluation).compress(schemes.scheme("w4"))
    rise = (losses(model.config, compressed, evaluation) - before).mean()
    assert cell["compressed"]["w4"][1] == pytest.approx(float(rise), rel=1e-4, abs=1e-6)
    assert cell["compressed"]["w4"][0] != cell["compressed"]["w4"][1]


def test_the_table_shows_the_record(finished, record):
    made = copy.deepcopy(record)
    made["cells"][1]["measures"]["first_token_attention"] = [0.25, 0.75]
    made["cells"][0]["val_loss"][-1], made["cells"][1]["val_loss"][-1] = [3.0, 4.0], [2.5, 3.4]
    headings, untrained, softmax, factor, diverged = next(iter(sections(made))).table.texts
    assert all(len(row) == len(headings) for row in (untrained, softmax, factor, diverged))
    assert untrained[0] == "before training"
    shown = dict(zip(headings, factor, strict=True))
    _, low, high = mean_interval([-0.5, -0.6])
    assert shown["minus softmax's"] == f"-0.550 ±{(high - low) / 2:.3f}"
    assert shown["attention to first token"].startswith("0.50 ±")
    assert dict(zip(headings, softmax, strict=True))["minus softmax's"] == ""
    assert diverged[4] == "diverged at step 2"
    assert markdown(sections(made))["cells"].count("\n") == 5
    assert "(e) context_scale" in finished[0].out


def test_which_kinds_a_cell_has_less_of(record):
    """Over pairs of seeds, of two here: t is 12.7."""
    made = copy.deepcopy(record)
    softmax, factor = (cell["measures"] for cell in made["cells"][:2])
    begun = made["cells"][0]["begun"]
    for name, before, plain, other in (
        ("sink_rate@attn_weights", [0.0, 0.0], [0.5, 0.6], [0.1, 0.18]),
        ("top1_over_median@block_out", [5.0, 6.0], [25.0, 26.5], [25.0, 16.5]),
        ("neuron_rms_kurtosis@block_out", [1.0, 1.0], [2.0, 2.0], [2.5, 2.5]),
        ("weight_ratio@down", [6.0, 6.0], [6.0, 6.0], [6.0, 6.0]),
    ):
        begun[name], softmax[name], factor[name] = before, plain, other
    _, kinds = sections(made)
    headings, formed, changed = kinds.table.texts
    assert headings[4:] == ["attention", "massive activations", "channels", "weights"]
    assert formed[0] == "(a) softmax"
    assert [text.split()[-1] for text in formed[4:]] == ["±0.64", "more", "more", "±0.00"]
    assert changed[0] == "(e) context_scale"  # and none for the cell that diverged
    texts = ["-0.41 ±0.13 less", "-5.00 ±63.53", "+0.50 ±0.00 more", "+0.00 ±0.00"]
    assert changed[4:] == texts
    made["cells"] = made["cells"][1:]
    assert [section.name for section in sections(made)] == ["cells"]


@pytest.mark.parametrize("name", NORMS)
def test_every_norm_is_a_model(name):
    config = Config()
    changed, same = (
        config.training(dict(zip(AXES, ("softmax", "adamw", norm, "own"), strict=True)))
        for norm in (name, "own")
    )
    own = {"own", PRESETS["small"].model.norm}
    assert (changed.architecture(7) == same.architecture(7)) == (name in own)


# Setting -> what it changes of the small preset, beside the model.
CHANGED = {
    "own": {},
    "llama": {},
    "repeated": {"train_tokens": 600 * 16 * 64 // 32},
    "quarter_context": {"seq_len": 16, "batch_size": 64},
    "four_contexts": {"seq_len": 256, "batch_size": 4},
    "no_bos": {"bos": False},
    "decay_0": {"optimizer": replace(PRESETS["small"].optimizer, decay=0.0)},
    "decay_1": {"optimizer": replace(PRESETS["small"].optimizer, decay=1.0)},
    "eps_1e-4": {"optimizer": replace(PRESETS["small"].optimizer, eps=1e-4)},
    "tweo": {"penalties": ("tweo=0.01",)},
}


def test_every_setting_changes_what_it_says():
    assert set(CHANGED) == set(SETTINGS)
    base = PRESETS["small"]
    for name, changes in CHANGED.items():
        made = SETTINGS[name](base)
        assert replace(made, model=base.model) == replace(base, **changes)
        assert (made.model == base.model) == (name != "llama")
    style = SETTINGS["llama"](base).model
    assert replace(style, layers=4, width=128, kv_heads=2, mlp_width=344) == SHAPES["llama-tiny"]


def test_a_cell_trains_on_the_text_of_its_setting(monkeypatch):
    """It has only the first tokens of the training part, or rows without BOS."""
    seen = {}

    def stopped(training, corpus, log):
        seen[training.train_tokens, training.bos] = corpus
        raise Diverged(training.variant, 1, 0, float("nan"))

    monkeypatch.setattr(benchmark, "train", stopped)
    config = Config(replace(PRESETS["small"], tokenizer="bytes"))
    for name in ("own", "repeated", "no_bos"):
        cell = dict(variant="softmax", optimizer="adamw", norm="own", setting=name)
        benchmark._found(config, cell, benchmark._read(config, cell), None)
    few = 600 * 16 * 64 // 32
    own, repeated, bare = seen[None, True], seen[few, True], seen[None, False]
    np.testing.assert_array_equal(repeated.train, own.train[:few])
    np.testing.assert_array_equal(repeated.val, own.val)
    assert (own.bos is None, bare.bos is None) == (False, True)


def test_every_optimizer_has_a_rate():
    assert set(RATES) == set(OPTIMIZERS)


def test_one_factor_at_a_time_or_all():
    names = {"variants": ("softmax", "sigmoid"), "norms": ("own", "qk"), "bases": ("softmax",)}
    names |= {"settings": ("own", "llama")}
    few = Config(**names, optimizers=("adamw", "sgd"))
    assert [tuple(cell.values()) for cell in few.cells] == [
        ("softmax", "adamw", "own", "own"), ("sigmoid", "adamw", "own", "own"),
        ("softmax", "adamw", "own", "llama"), ("softmax", "adamw", "qk", "own"),
        ("softmax", "sgd", "own", "own"),
    ]  # fmt: skip
    assert len(Config(**names, optimizers=("adamw", "sgd"), full=True).cells) == 16


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--preset=big"], "--preset='big': unknown"),
        (["--norms=own,own"], "--norms=own,own: accepted: at least one, none of them twice"),
        (["--optimizers=adam"], "--optimizers='adam': unknown"),
        (["--methods=w99"], "w99"),
        (["--methods=wanda-3:7"], "3:7"),
        (["--calibration=0"], "--calibration=0: accepted: an integer of at least 1"),
        (["--settings=lama"], "--settings='lama': unknown; accepted: own, llama"),
        (
            ["--settings=own,four_contexts", "--batch_size=6", "--tokenizer=bytes"],
            "accepted with these --settings",
        ),
        (["--settings=own,repeated", "--tokenizer=bytes", "--steps=1"], "the train part of corpus"),
    ],
)
def test_bad_flags_are_one_line(run_benchmark, tmp_path, flags, told):
    assert told in run_benchmark(*flags, f"--workdir={tmp_path}").refusal
    assert not list(tmp_path.iterdir())


def test_other_settings_do_not_join_cells_that_are_there(finished, run_benchmark):
    done = run_benchmark(*TINY, "--calibration=4", f"--workdir={finished[0].directory.parents[1]}")
    assert done.refusal.startswith("--calibration=4: the cells in ")


def test_settings_that_train_the_same_are_one_cell():
    of = {"variants": ("softmax",), "norms": ("own",)}
    some = Config(**of, optimizers=("adamw", "lion"), settings=("own", "eps_1e-4"), full=True)
    assert [tuple(cell.values())[1::2] for cell in some.cells] == [
        ("adamw", "own"), ("adamw", "eps_1e-4"), ("lion", "own"),
    ]  # fmt: skip
    trained = [some.training(cell) for cell in some.cells]
    assert len(set(trained)) == len(trained)
    every = Config(**of, optimizers=tuple(RATES), settings=tuple(SETTINGS), full=True)
    assert len(every.cells) == 4 * len(SETTINGS) - 2  # sgd's and lion's
