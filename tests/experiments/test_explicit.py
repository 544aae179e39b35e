"""Explicit forms as a user meets them: a run in; table, record and figure, or one line out."""

import json
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.cli.tables import markdown
from experiments.explicit import MADE, Config, _ByEdits
from experiments.inputs.evaluation_text import Text
from experiments.reports.explicit_report import sections
from sysout_jax.analysis.intervene.explicit_factor import FORMS
from sysout_jax.core.layers import cross_entropy
from sysout_jax.data import load_corpus
from sysout_jax.model.decoder import forward
from sysout_jax.plots.explicit import figures
from sysout_jax.results import plain
from sysout_jax.training.checkpoint import load
from tests.analysis import first_visible as v


@pytest.fixture(scope="module")
def finished(trained, run_explicit, tmp_path_factory):
    place = tmp_path_factory.mktemp("explicit")
    done = run_explicit(
        f"--model={trained}", "--methods=w4", "--sequences=6", "--calibration=3", "--seq_len=13",
        "--finetune=3", "--finetune_lr=1e-2", f"--workdir={place}",
    )  # fmt: skip
    assert done.status == 0, done.err
    return done, (place / "explicit" / "latest").resolve()


@pytest.fixture(scope="module")
def record(finished):
    return json.loads((finished[1] / "result.json").read_text())


def test_every_form_of_every_softmax_model(record):
    found = [(model["name"], model["seed"]) for model in record["models"]]
    assert found == [("backcopy-softmax", 3), ("backcopy-softmax", 5)]
    for model in record["models"]:
        forms = model["forms"]
        assert list(forms) == list(MADE)
        assert forms["trained"]["change"] == [0.0, 0.0, 0.0]
        assert forms["extra_key"]["loss"] == pytest.approx(forms["trained"]["loss"], abs=1e-5)
        assert abs(forms["dropped"]["change"][0]) > 1e-4
        for name, form in forms.items():
            tuned = form.get("finetuned")
            assert (tuned is None) == (name == "factor")
            assert tuned is None or tuned["loss"] != form["loss"]


def test_losses_are_those_of_tokens_both_kinds_predict(record, trained):
    rows = load_corpus("backcopy", "bytes", True).batch("val", 0, 0, 6, 13)
    model = load(trained / "models" / "backcopy-softmax", 5)
    logits, _ = forward(model.config, model.params, jnp.asarray(rows[:, :-1]))
    expected = np.asarray(cross_entropy(logits, jnp.asarray(rows[:, 1:])))[:, 1:].mean()
    assert record["models"][1]["forms"]["trained"]["loss"] == pytest.approx(expected, rel=1e-5)


def test_measures_are_of_all_sequences(record, trained, run_explicit, tmp_path):
    """Of raw values of all six rows, however many are run together."""
    rows = load_corpus("backcopy", "bytes", True).batch("val", 0, 0, 6, 13)
    model = load(trained / "models" / "backcopy-softmax", 3)
    taps = {"block_out": None}
    raw = forward(model.config, model.params, jnp.asarray(rows[:, :-1]), taps)[1]["block_out"]
    norms = np.linalg.norm(np.asarray(raw, np.float64), axis=-1)
    expected = (norms[..., 0] / norms[..., 1:].mean(axis=-1)).mean(axis=1).max()
    done = run_explicit(
        f"--model={trained}", "--methods=", "--sequences=6", "--calibration=3", "--seq_len=13",
        "--finetune=0", "--batch=4", f"--workdir={tmp_path}",
    )  # fmt: skip
    assert done.status == 0, done.err
    again = json.loads(next(tmp_path.glob("explicit/*/result.json")).read_text())
    for each in (record, again):
        measures = each["models"][0]["forms"]["trained"]["measures"]
        assert measures["residual_peak@block_out"] == pytest.approx(expected, rel=1e-4)


def test_the_table_shows_the_record(record, finished):
    table = markdown(sections(record))["backcopy-softmax"]
    assert table.count("\n") == 1 + len(MADE)
    loss = np.mean([model["forms"]["gate"]["loss"] for model in record["models"]])
    row = next(line for line in table.splitlines() if line.startswith(f"| {FORMS['gate']} "))
    assert f"| {loss:.3f} |" in row
    assert FORMS["extra_key"][:13] in finished[0].out  # the first line of the cell
    assert (finished[1] / "figures" / "backcopy-softmax.png").stat().st_size > 10_000


def test_a_change_of_one_sequence_has_no_interval(record):
    one = json.loads(json.dumps({**record, "models": record["models"][:1]}))
    for form in one["models"][0]["forms"].values():
        form["change"] = [0.25, None, None]
    rows = markdown(sections(one))["backcopy-softmax"].splitlines()[2:]
    assert all(row.split("|")[3].strip() == "+0.250" for row in rows)
    assert "backcopy-softmax" in dict(figures(one))


def test_a_record_is_drawn_again(run_explicit, finished):
    figure = finished[1] / "figures" / "backcopy-softmax.pdf"
    before = figure.read_bytes()
    figure.unlink()
    assert run_explicit(f"--redraw={finished[1]}").status == 0
    assert figure.read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--variant=context_scale"], "--variant=context_scale: accepted: a model of variant"),
        (["--finetune=-1"], "--finetune=-1: accepted: an integer of at least 0"),
        (["--finetune_lr=0"], "--finetune_lr=0.0: accepted: a finite number above 0"),
        (["--methods=w1"], "--methods=w1: "),
        (["--stream"], "--stream: accepted: without it"),
    ],
)
def test_wrong_flags_are_one_line(run_explicit, trained, tmp_path, arguments, line):
    done = run_explicit(f"--model={trained}", f"--workdir={tmp_path}", *arguments)
    assert done.status == 2
    assert done.err.startswith(f"error: {line}")
    assert done.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_without_a_bos_there_has_to_be_a_sink(run_explicit, trained, tmp_path):
    done = run_explicit(f"--model={trained}", f"--workdir={tmp_path}", "--bos=no")
    assert done.status == 2
    assert "no head of backcopy-softmax gives its first token more than 0.3 of its" in done.err
    assert done.err.count("\n") == 1


def test_forms_of_texts_that_begin_differently_are_edits():
    """Case U13: key and value are taken from the layer on that reads what makes the sink."""
    model = SimpleNamespace(config=v.CONFIG, params=v.params())
    chosen = SimpleNamespace(name="planted", seed=None, corpus=None, model=model)
    text = Text(None, v.rows(1, 6), v.rows(2))
    judge = _ByEdits(Config(batch=2), chosen, text)
    assert judge.found(None)["sink"]["first"] == 1
    found = {name: judge.found(name)["found"] for name in FORMS}
    assert found["trained"]["change"] == (0.0, 0.0, 0.0)
    assert abs(found["extra_key"]["change"].mean) < 1e-3
    record = {
        "config": {"finetune": 0}, "methods": [],
        "models": [judge.found(None) | {"forms": found}],
    }  # fmt: skip
    record = json.loads(json.dumps(plain(record)))
    assert set(dict(figures(record))) == {"planted"}
    (section,) = sections(record)
    assert len(section.table.rows) == len(FORMS)
    assert section.lines[0].startswith("texts begin with different tokens: edits from layer 1 on")
