"""The variants experiment as a user meets it: flags in; record, figures, models or one line out."""

import dataclasses
import json
import re
import shutil
import threading
import time
import weakref

import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

import sysout_jax as so
from experiments import variants
from experiments.cli import launch
from experiments.cli.presets import BACKCOPY, PRESETS
from experiments.reports.variants_report import findings, section
from sysout_jax.core.attention import VARIANTS
from sysout_jax.data import Backcopy, load_corpus
from sysout_jax.errors import InputError
from sysout_jax.model.rope import Dynamic, Linear, Llama3, LongRope, Rope, Yarn
from sysout_jax.results import RunDirectory
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.step import token_loss
from tests.images import ink
from tests.refusing import refusal
from tests.usage import fields

TINY = (
    "--width=8", "--heads=2", "--layers=2", "--steps=5", "--steps_per_call=2", "--measure_every=3",
    "--batch_size=3", "--val_batches=2", "--seq_len=7",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(run_variants, tmp_path_factory, text_file):
    """A complete tiny run on two corpora with two seeds."""
    workdir = tmp_path_factory.mktemp("runs")
    return run_variants(
        *TINY, "--seeds=0,3", f"--corpus=backcopy,{text_file}",
        "--variants=softmax,context_scale", f"--workdir={workdir}",
    )  # fmt: skip


def test_a_run_leaves_a_whole_record(finished, record, text_file):
    """Record, log, models and figures agree with each other, and nothing temporary is left."""
    directory = finished.directory
    assert record["status"] == "complete"
    assert record["provenance"]["libraries"]["jax"]
    assert [study["corpus"] for study in record["studies"]] == ["backcopy", str(text_file)]
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    for study in record["studies"]:
        assert list(study["variants"]) == ["softmax", "context_scale"]
        for name, entry in study["variants"].items():
            mine = [r for r in rows if (r["corpus"], r["variant"]) == (study["corpus"], name)]
            assert entry["curve"]["step"] == [2, 3, 5]
            assert entry["measured"]["step"] == [0, 3, 5]
            assert entry["curve"]["loss"] == [r["loss"] for r in mine if "loss" in r]
            for key, values in entry["measured"]["measures"].items():
                assert values == [r["measures"][key] for r in mine if "measures" in r]
    drawn = sorted((directory / "figures").iterdir())
    assert len(drawn) == 10
    assert all(path.suffix == ".png" and 0.02 < ink(path) < 0.8 for path in drawn)
    assert not [path for path in directory.rglob(".*")]
    assert "(e) context_scale" in finished.out


def test_saved_models_reproduce_the_recorded_loss(finished, record, text_file):
    """The validation loss of a loaded model is the last one of the record, for each seed."""
    study = record["studies"][1]
    corpus = load_corpus(str(text_file))
    batches = [jnp.asarray(corpus.batch("val", 0, n, 3, 7)) for n in range(2)]
    for at, seed in enumerate((0, 3)):
        model = so.load(finished.directory / "models" / "some-text-txt-context_scale", seed)
        loss = np.mean([token_loss(model.config, model.params, batch) for batch in batches])
        recorded = study["variants"]["context_scale"]["measured"]["val_loss"][-1][at]
        assert loss == pytest.approx(recorded, rel=1e-5)
        assert model.tokenizer.decode(model.tokenizer.encode("é")) == "é"


def test_redraw_needs_the_record_alone(finished, run_variants, tmp_path):
    """The same table and the same figures come from result.json without a run."""
    directory = finished.directory
    elsewhere = tmp_path / "copy"
    elsewhere.mkdir()
    shutil.copy(directory / "result.json", elsewhere)
    again = run_variants(f"--redraw={elsewhere}")
    assert again.status == 0
    table = [line for line in again.out.splitlines() if "softmax" in line and "±" in line]
    assert table
    assert all(line in finished.out for line in table)
    for path in (directory / "figures").iterdir():
        assert (elsewhere / "figures" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--variants=softmx"], ("--variants=", "softmx", "context_scale")),
        (["--variants=softmax,softmax"], ("--variants=", "twice")),
        (["--variants="], ("--variants=", "at least one")),
        (["--corpus=nowhere.txt"], ("--corpus=", "nowhere.txt", "stdlib")),
        (["--corpus="], ("--corpus=", "at least one")),
        (["--tokenizer=foo", "--corpus=stdlib"], ("--tokenizer=", "foo", "bytes")),
        (["--model=foo"], ("--model=", "foo", "llama-tiny")),
        (["--preset=foo"], ("--preset=", "foo", "fruitfly")),
        (["--preset=sinks", "--corpus=backcopy"], ("--preset=sinks: ", "backcopy", "text")),
        (["--steps=0"], ("--steps=0", "at least 1")),
        (["--heads=3"], ("--heads=3", "--width=64", "divisor")),
        (["--seeds=a,b"], ("--seeds=a,b", "integers")),
        (["--optimizer=adm"], ("--optimizer=", "adm", "muon")),
        (["--jobs=0"], ("--jobs=0", "at least 1")),
        (["--jobs=2", "--mesh=data=2"], ("--jobs=2: with --mesh=data=2", "accepted: 1")),
        (["--mesh=data=3"], ("--batch_size=16: not divided by data*fsdp=3", "a multiple of 3")),
        (["--mesh=data=2"], ("--mesh=data=2,fsdp=1", "2 devices, but there are 1")),
        (["--parallel=pmap", "--mesh=fsdp=2"], ("--parallel=pmap: --mesh=data=1,fsdp=2", "data=2")),
        (["--redraw=nowhere"], ("nowhere", "result.json")),
        (["extra"], ("extra", "--name=value")),
    ],
)
def test_bad_flags_are_one_line(run_variants, tmp_path, monkeypatch, arguments, told):
    """The line names the flag and what is accepted; nothing is written."""
    monkeypatch.chdir(tmp_path)
    said = run_variants(*arguments).refusal
    assert all(part in said for part in told), said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "told"),
    [(b"", "empty"), (b" \n", "empty"), (b"ab\xff\xfecd", "byte"), (b"abc", "--seq_len")],
)
def test_bad_text_is_one_line(run_variants, tmp_path, content, told):
    path = tmp_path / "text.txt"
    path.write_bytes(content)
    outcome = run_variants(f"--corpus={path}", f"--workdir={tmp_path / 'runs'}", "--smoke")
    assert told in outcome.refusal
    assert not (tmp_path / "runs").exists()


def test_work_directory_that_cannot_be_written(run_variants, tmp_path):
    (tmp_path / "file").write_text("")
    outcome = run_variants("--smoke", "--corpus=backcopy", f"--workdir={tmp_path / 'file' / 'x'}")
    assert "--workdir=" in outcome.refusal


def test_disk_without_room_for_the_models(run_variants, tmp_path, monkeypatch):
    monkeypatch.setattr(variants.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(9, 9, 0))
    outcome = run_variants("--smoke", "--corpus=backcopy", f"--workdir={tmp_path}")
    assert "--workdir=" in outcome.refusal
    assert "0.0 MB free" in outcome.refusal
    assert not list(tmp_path.iterdir())


def test_disk_that_fills_up(run_variants, tmp_path, monkeypatch):
    """A model that cannot be written ends the run in one line, and leaves no part of itself."""

    def full(path, value):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr("sysout_jax.training.checkpoint.write_json", full)
    outcome = run_variants(
        *TINY, "--corpus=backcopy", "--variants=softmax", f"--workdir={tmp_path}"
    )
    assert outcome.status == 1
    directory = outcome.place
    model = directory / "models" / "backcopy-softmax"
    assert outcome.err == f"error: {model}: model not written: No space left on device\n"
    assert not list((directory / "models").iterdir())
    assert json.loads((directory / "result.json").read_text())["status"] == "failed"


def test_divergence_names_step_and_seed_and_keeps_the_record(run_variants, tmp_path):
    outcome = run_variants(
        *TINY, "--corpus=backcopy", "--seeds=4,2", "--variants=softmax", "--optimizer=sgd",
        "--lr=1e30", "--clip=0", "--warmup=0", f"--workdir={tmp_path}",
    )  # fmt: skip
    assert outcome.status == 1
    found = r"(loss|gradient's norm) is (nan|inf) at step [2345] of seed 4, variant softmax"
    assert re.search(found, outcome.err)
    directory = outcome.place
    record = json.loads((directory / "result.json").read_text())
    assert record["status"] == "failed"
    assert "seed 4" in record["reason"]
    rows = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] in ([0, 2], [0, 2, 3], [0, 2, 3, 5])
    assert None in (rows[-1]["loss"][0], rows[-1]["grad_norm"][0])


def test_interruption_keeps_what_was_finished(run_variants, tmp_path, monkeypatch):
    real = variants.train

    def interrupted(config, corpus, log, keep, states):
        if config.variant == "sigmoid":
            raise KeyboardInterrupt
        return real(config, corpus, log, keep, states)

    monkeypatch.setattr(variants, "train", interrupted)
    outcome = run_variants(
        *TINY,
        "--corpus=backcopy",
        "--variants=softmax,sigmoid",
        "--jobs=1",
        f"--workdir={tmp_path}",
    )
    assert outcome.status == 130
    assert outcome.err == "error: interrupted\n"
    record = json.loads((outcome.place / "result.json").read_text())
    assert record["status"] == "interrupted"
    assert list(record["studies"][0]["variants"]) == ["softmax"]


@pytest.mark.parametrize(
    ("corpora", "studies"),
    [((), ["stdlib"]), (("--corpus=backcopy,stdlib",), ["backcopy", "stdlib"])],
)
def test_a_preset_is_of_text(run_variants, monkeypatch, corpora, studies):
    asked = []
    monkeypatch.setattr(variants, "run", lambda config, console: asked.append(config))
    assert run_variants("--preset=sinks", "--seeds=7", *corpora).status == 0
    (config,) = asked
    assert [study.corpus for study in config.studies] == studies
    preset = dataclasses.replace(PRESETS["sinks"], seeds=(7,), corpus="stdlib")
    assert config.studies[-1] == preset


def test_a_preset_says_again_what_a_run_was_trained_with(run_variants, monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(variants, "run", lambda config, console: asked.append(config))
    flags = (f"--workdir={tmp_path}", "--name=a", "--preset=small")
    assert run_variants(*flags).status == 0
    place = tmp_path / "variants" / "a"
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(dataclasses.asdict(asked[0])))
    assert run_variants(*flags).status == 0
    assert asked[0] == asked[1]
    assert "was trained with" in run_variants(*flags[:-1], "--preset=sinks").refusal


def test_going_on_by_name_keeps_what_the_run_began_with(run_variants, monkeypatch, tmp_path):
    """Where parameters are from, and what is kept: the name alone is enough to go on."""
    asked = []
    monkeypatch.setattr(variants, "run", lambda config, console: asked.append(config))
    here = (f"--workdir={tmp_path}", "--name=a")
    assert (
        run_variants(*here, "--corpus=backcopy", "--init_from=m/b", "--keep_every=20").status == 0
    )
    place = tmp_path / "variants" / "a"
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(dataclasses.asdict(asked[0])))
    assert run_variants(*here).status == 0
    assert run_variants(*here, "--init_from=m/b", "--keep_every=10").status == 0
    assert asked[0].init_from == "m/b"
    assert asked[1] == asked[0]
    assert asked[2] == dataclasses.replace(
        asked[0], saving=dataclasses.replace(asked[0].saving, keep_every=10)
    )
    said = run_variants(*here, "--init_from=m/c").refusal
    why = f"{place} was trained with m/b; accepted: that, or another --name"
    assert said == f"--init_from=m/c: {why}"
    assert run_variants(*here, f"--init_from={place}/models/softmax").status == 0  # once `latest`
    assert asked[3] == asked[0]
    said = run_variants(*here, "--resume_from=runs/c").refusal
    assert said.endswith("was begun without --resume_from; accepted: that, or another --name")
    config = dataclasses.asdict(asked[0]) | {"resume_from": f"{tmp_path}/gone"}
    (place / "config.json").write_text(json.dumps(config))
    assert "no training states in it" in run_variants(*here).refusal


def test_list_shows_the_whole_table(run_variants):
    outcome = run_variants("--list")
    assert outcome.status == 0
    for variant in VARIANTS.values():
        assert variant.name in outcome.out


OTHER = {
    "tokenizer": "bpe:300", "token_dtype": "uint32", "bos": False,
    "variant": "sigmoid", "norm": "layer", "mlp": "swiglu",
    "norm_placement": "post", "position": "rope", "dtype": "bfloat16", "optimizer": "lion",
    "schedule": "wsd", "seeds": (7, 8), "kv_heads": 1, "head_dim": 6, "mlp_width": 5, "window": 3,
    "accumulate": 2, "train_tokens": 5, "measure_seq_len": 5, "heads": 8, "width": 68,
    "batch_size": 4, "lr_floor": 0.5,
    "cooldown": 0.5, "beta1": 0.5, "beta2": 0.5, "momentum": 0.5, "query_block": 5, "loss_block": 5,
    "parallel_block": "shared", "rope_fraction": 0.5, "local_rope_theta": 0.5, "mlp_limit": 0.5,
    "experts": 3, "norm_bias": True, "qkv_bias": True, "out_bias": True, "mlp_bias": True,
    "query_key_norm": "head", "query_scale": 0.5, "clip_qkv": 0.5, "attn_softcap": 0.5,
    "final_softcap": 0.5, "window_layers": (1,), "rope_layers": (1,), "embed_width": 5,
    "param_dtype": "bfloat16", "moment_dtype": "bfloat16", "remat": "dots",
    "mesh": "fsdp=4", "parallel": "shard_map", "penalties": ("tweo=0.5",),
}  # fmt: skip
NEEDED = {
    "flash": {"dtype": "bfloat16"},
    "window_layers": {"window": 3},
    "rope_layers": {"position": "rope"},
    "context": {"position": "rope"},
    "norm_rank": {"norm": "gated"},
    **{f"rope_{name}": {"position": "rope"} for name in ("theta", "fraction", "interleaved")},
    "local_rope_theta": {"position": "rope"},
}  # for the value above to be accepted


@pytest.mark.parametrize(
    "name", [n for n, _ in fields(TrainConfig()) if n not in ("corpus", "rope_rule", "sink")]
)
@pytest.mark.usefixtures("run_variants")
def test_every_field_has_a_flag_that_sets_it(name, run_variants):
    """`override` reaches every field at any depth, and a flag of that name exists."""
    run_variants("--list")  # defines them
    config = launch.override(TrainConfig(), NEEDED.get(name, {}))
    before = dict(fields(config))
    value = OTHER.get(name)
    if value is None:
        value = (not before[name]) if isinstance(before[name], bool) else before[name] + 1
    given = list(map(str, value)) if isinstance(value, tuple) else value
    after = dict(fields(launch.override(config, {name: given})))
    assert after == {**before, name: value}
    assert (name in variants.FLAGS) != (name in ("variant", "vocab", "context"))


@pytest.mark.parametrize(
    ("rule", "given"),
    [
        (Linear(factor=0.5), {"rope_factor": 0.5}),
        (Dynamic(theta=5.0, context=7), {"rope_theta": 5.0, "rope_context": 7}),
        (Llama3(low=0.5, high=3.0), {"rope_low": 0.5, "rope_high": 3.0}),
        (
            Yarn(fast=3.0, slow=2.0, truncate=False, scale=2.0),
            {"rope_fast": 3.0, "rope_slow": 2.0, "rope_truncate": False, "rope_scale": 2.0},
        ),
        (LongRope(short=(1.5,) * 8, long=(2.0,) * 8), {
            "rope_short": ["1.5"] * 8, "rope_long": ["2.0"] * 8}),
    ],
)  # fmt: skip
def test_every_rotary_rule_has_flags(run_variants, rule, given):
    run_variants("--list")
    config = launch.override(TrainConfig(), {"position": "rope", "rope_rule": rule.rule, **given})
    assert config.model.rope == rule
    assert set(given) <= set(variants.FLAGS)
    shorter = launch.override(config, {"rope_rule": "plain"})
    assert shorter.model.rope == Rope(theta=rule.theta)


def test_a_fused_kernel_that_is_not_here_is_refused():
    """On this CPU: before a run has a directory, and by who trains without one."""
    model = variants.TEXT.model.with_execution(flash=True, dtype="bfloat16")
    study = dataclasses.replace(variants.TEXT, model=model)
    for begin in (lambda: variants.Config(studies=(study,)), lambda: so.train(study)):
        with pytest.raises(InputError, match="flash=True: no effect on a CPU"):
            begin()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"position": "rope", "rope_low": 2.0}, "rope_low=2.0: no effect; accepted: with rope_rul"),
        ({"rope_rule": "linear", "rope_short": ["1", "2"]}, "rope_short=1,2: no effect"),
        ({"rope_theta": 2.0}, "rope_theta=2.0: no effect; accepted: with position=rope"),
        ({"rope_rule": "spiral"}, "rope_rule='spiral': unknown; accepted: plain,"),
    ],
)
def test_a_rotary_flag_without_effect_is_refused(given, said):
    assert refusal(launch.override, TrainConfig(), given).startswith(said)


def _study(sink, drain, measure="noop_sink"):
    """A study of made-up numbers: [variant][seed]."""
    entries = {}
    for at, (name, label) in enumerate((("softmax", "(a) softmax"), ("sigmoid", "(f) sigmoid"))):
        measures = {
            measure: [sink[at]],
            "value_drain@value": [drain[at]],
            "massive_activations": [[0.0] * 3],
            "top1_over_median@block_out": [[41.0] * 3],
            "weight_ratio@down": [[12.0] * 3],
        }
        entries[name] = {
            "label": label,
            "normalised": name == "softmax",
            "measured": {"val_loss": [[2.0, 2.0, 2.0]], "measures": measures},
        }
    config = {"steps": 10, "seeds": [0, 1, 2]}
    return {
        "name": "noop", "corpus": "noop", "config": config, "tokens_per_seed": 1e6,
        "variants": entries,
    }  # fmt: skip


def test_findings_say_what_the_numbers_say():
    study = _study(sink=[[0.9, 0.8, 0.31], [0.1, 0.2, 0.29]], drain=[[0.1, 0.1, 0.3], [0.9] * 3])
    sink, drain, massive, weight, undecided, rows = findings(study)
    assert sink.endswith("> 0.3) in every seed: (a) softmax; in none: (f) sigmoid")
    assert drain.endswith("< 0.2) in none: (f) sigmoid; in some: (a) softmax")
    assert massive.endswith("none; the largest max/median is 41")
    assert weight.endswith("none; the largest ratio is 12")
    assert "larger" in undecided
    assert rows.startswith("†")
    study["variants"]["softmax"]["measured"]["measures"]["massive_activations"] = [[1.0, 2.0, 0.0]]
    assert findings(study)[2].endswith("(a) softmax")


def test_sinks_of_a_language_model_are_a_share_of_its_heads():
    rates = [[0.11, 0.2, 0.3], [0.0, 0.01, 0.0]]
    study = _study(sink=rates, drain=[[0.1] * 3, [0.9] * 3], measure="sink_rate@attn_weights")
    said = "attention sink (sink_rate@attn_weights > 0.1) in every seed: (a) softmax; in none: "
    assert findings(study)[0].startswith(said)


def test_table_in_markdown():
    study = _study(sink=[[0.9, 0.8, 0.7], [0.1, 0.2, 0.3]], drain=[[0.1] * 3, [0.9] * 3])
    lines = section(study).table.to_markdown().splitlines()
    assert len({line.count(" | ") for line in lines}) == 1
    assert lines[3].startswith("| (a) softmax | 2.000 ±0.000 | 0.80 ±0.25 | 0.10 ±0.00 |")


@pytest.mark.parametrize(
    ("variant", "sink"), [("softmax", True), ("attention_bias", False), ("sigmoid", False)]
)
def test_the_papers_pattern_forms(variant, sink):
    """A sink forms with softmax and not with the others (one seed, 800 of the demo's steps).

    The numbers of the whole demo are in results/variants/demo.
    """
    study = dataclasses.replace(
        variants.BACKCOPY, variant=variant, steps=800, seeds=(0,), measure_every=800
    )
    last = so.train(study).rows[-1]["measures"]
    assert (last["noop_sink"][0] > 0.6) == sink
    assert (last["noop_sink"][0] < 0.2) == (not sink)
    assert (last["value_drain@value"][0] < 0.4) == sink


# ------------------------------------------------------------------------- one after the other

THREE = ("softmax", "sigmoid", "context_scale")


def stand_in(monkeypatch, train, jobs, tmp_path):
    """A study of three variants that `train` stands for; what they are described as and saved."""
    monkeypatch.setattr(variants, "train", train)
    monkeypatch.setattr(variants, "entry", lambda trained, corpus: {"curve": trained.variant})
    saved = []
    monkeypatch.setattr(variants, "_save", lambda place, *model: saved.append(place.name))
    described = {"name": "study", "variants": {}}
    study = dataclasses.replace(BACKCOPY, steps=1)
    config = variants.Config((study,), THREE, jobs)
    directory = RunDirectory(tmp_path, "variants", "mine")
    console = Console(quiet=True)
    try:
        variants._train_all(config, study, Backcopy(), directory, console, described, None)
    finally:
        directory._metrics.close()
    return list(described["variants"]), saved


class Trained:
    """A run that can be missed."""

    architecture = params = tokenizer = None

    def __init__(self, variant):
        self.variant = variant


def test_a_variant_that_is_saved_leaves_the_devices(monkeypatch, tmp_path):
    """Of all that are trained, one set of parameters at a time."""
    before = []

    def train(config, *_):
        for _ in range(500):
            if not before or before[-1]() is None:
                break
            time.sleep(0.01)
        else:
            raise AssertionError(f"{config.variant}: the one before is still held")
        made = Trained(config.variant)
        before.append(weakref.ref(made))
        return made

    expected = list(THREE), [f"study-{name}" for name in THREE]
    assert stand_in(monkeypatch, train, 1, tmp_path) == expected


def test_a_failure_is_heard_of_before_longer_variants_end(monkeypatch, tmp_path):
    rows = []

    def train(config, corpus, log, *_):
        if config.variant == "sigmoid":
            raise ArithmeticError("diverged")
        for step in range(500):
            time.sleep(0.01)
            row = {"variant": config.variant, "seeds": [0], "step": 1, "tokens_per_second": 1.0}
            log(row | {"loss": np.ones(1)})
            rows.append(step)
        return Trained(config.variant)

    with pytest.raises(ArithmeticError, match="diverged"):
        stand_in(monkeypatch, train, 2, tmp_path)
    assert len(rows) < 400


def test_variants_that_end_in_another_order_are_described_in_that_asked(monkeypatch, tmp_path):
    second = threading.Event()

    def train(config, *_):
        if config.variant == "softmax":
            assert second.wait(10)
        else:
            second.set()
        return Trained(config.variant)

    order, _ = stand_in(monkeypatch, train, 2, tmp_path)
    assert order == list(THREE)
