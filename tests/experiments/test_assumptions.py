"""The theory's assumptions as a user measures them: tables, a record and a figure, or one line."""

import json

import jax
import numpy as np
import pytest

from experiments.cli.tables import markdown
from experiments.records.units import Unmeasured, values
from experiments.reports.assumptions_report import sections
from sysout_jax.model.decoder import init
from sysout_jax.training.checkpoint import save
from tests.analysis import first_sink as planted

LENGTH = 40
USUAL = ("--sequences=5", "--calibration=6", f"--seq_len={LENGTH}", "--bos=no")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The planted model and an untrained one as a training run writes them, and text of ids."""
    place = tmp_path_factory.mktemp("planted")
    of = {"planted": planted.params(), "untrained": init(planted.CONFIG, jax.random.key(0))}
    for name, params in of.items():
        save(place / name, planted.CONFIG, jax.tree.map(lambda x: x[None], params), [3])
    text = place / "text"
    text.mkdir()
    for name, seed in (("train", 1), ("val", 2)):
        ids = np.random.default_rng(seed).integers(0, 19, 40 * (LENGTH + 1)).astype(np.uint16)
        ids.tofile(text / f"{name}.bin")
    return place


@pytest.fixture(scope="module")
def finished(place, run_assumptions):
    return run_assumptions(
        f"--model={place}/planted", f"--corpus=tokens:{place}/text", *USUAL,
        f"--workdir={place}/runs",
    )  # fmt: skip


def test_the_record_says_what_was_found(record):
    (model,) = record["models"]
    assert (model["texts"], model["tokens"], model["calibration"]) == (5, LENGTH, 6)
    assert {layer["layer"] for layer in model["layers"]} == {3, 4, 5}
    assert [hull["keys"] for hull in model["hulls"]] == [15, 31]
    assert model["range"]["violated"] == 0
    assert model["layers"][0]["massive"]["along"][0] > 0.9 * planted.MASSIVE


def test_a_claim_reads_what_a_gate_tells_of_the_factor(finished):
    record = finished.record
    (model,) = record["models"]
    trained = values(record, "gate", "explained")
    assert trained == pytest.approx([model["explained"]["x"][0]])
    model["seed"] = None  # a published one: its units are texts
    by_text = values(record, "gate", "explained")
    assert by_text == pytest.approx(model["explained_by_text"]["x"])
    assert by_text.shape == (5,)
    with pytest.raises(Unmeasured, match="explained of factor"):
        values(record, "factor", "explained")


def test_the_tables_show_the_record(finished, record):
    (model,) = record["models"]
    tables = markdown(sections(record))
    assert set(tables) == {f"planted-3-{part}" for part in ("statements", "layers", "factor")}
    assert f"| {model['hulls'][1]['distance'][0]:.2f} [" in tables["planted-3-statements"]
    assert f"| {model['drain'][0]:.2f} [" in tables["planted-3-statements"]
    assert tables["planted-3-layers"].count("\n") == 1 + len(model["layers"])
    assert tables["planted-3-factor"].count("\n") == 1 + len(model["explained"])
    assert "layer 2 makes its state" in finished.out


def test_pairs_that_have_less_are_of_those_that_the_bound_applies_to(record):
    (model,) = json.loads(json.dumps(record))["models"]
    model["range"] |= {
        "pairs": 400, "applies": [0.25, 0.2, 0.3], "violated": 3,
        "required": [0.2, 0.1, 0.3], "actual": [0.4, 0.3, 0.5],
    }  # fmt: skip
    table = markdown(sections({**record, "models": [model]}))["planted-3-statements"]
    assert "| pairs that have less | 3 of 100 |" in table


def test_a_model_without_a_sink_is_one_line(place, run_assumptions, tmp_path):
    done = run_assumptions(
        f"--model={place}/untrained", f"--corpus=tokens:{place}/text", "--smoke", "--bos=no",
        f"--workdir={tmp_path}",
    )  # fmt: skip
    assert done.status == 0, done.err
    said = [line for line in done.out.splitlines() if "no sink on" in line]
    assert len(said) == 1
    assert "untrained-3: no sink on 4 texts of 32 tokens" in said[0]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--sequences=2"], "text: 2 of 40 tokens is too short; accepted: at least 4 texts"),
        (["--calibration=3"], "--calibration=3: accepted: at least 4"),
        (["--seq_len=20"], "text: 5 of 20 tokens is too short; "),
        (["--seq_len=90"], "--seq_len=90: learned positions end at 80; accepted: "),
        (["--batch=0"], "--batch=0: accepted: an integer of at least 1"),
        (["--variant=softmax"], "--variant=softmax: accepted: with a run directory"),
    ],
)
def test_wrong_flags_are_one_line(place, run_assumptions, tmp_path, arguments, line):
    done = run_assumptions(
        f"--model={place}/planted", f"--corpus=tokens:{place}/text", *USUAL,
        f"--workdir={tmp_path}", *arguments,
    )  # fmt: skip
    assert line in done.refusal
    assert not list(tmp_path.iterdir())


def test_another_variant_is_refused_before_any_work(trained, run_assumptions, tmp_path):
    done = run_assumptions(
        f"--model={trained}", "--variant=context_scale", f"--workdir={tmp_path}", "--seq_len=16",
    )  # fmt: skip
    assert "variant=context_scale: accepted: a model of variant softmax" in done.refusal
    assert not list(tmp_path.iterdir())
