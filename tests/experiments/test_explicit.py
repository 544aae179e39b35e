"""Explicit forms as a user meets them: a run in; table, record and figure, or one line out."""

import csv
import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import explicit
from experiments.cli.tables import markdown
from experiments.explicit import MADE
from experiments.inputs.evaluation_text import Text
from experiments.reports.explicit_report import sections
from sysout_jax.analysis.compress import schemes
from sysout_jax.analysis.compress.compression import Compressor
from sysout_jax.analysis.intervene.explicit_factor import FORMS, Form
from sysout_jax.analysis.intervene.explicit_models import MODELS
from sysout_jax.analysis.statistics import mean_interval
from sysout_jax.core.layers import cross_entropy
from sysout_jax.data import load_corpus
from sysout_jax.model.decoder import forward, init
from sysout_jax.plots.explicit import figures
from sysout_jax.training.checkpoint import load, save
from tests.analysis import first_sink as planted
from tests.images import ink


@pytest.fixture(scope="module")
def finished(trained, run_explicit, tmp_path_factory):
    place = tmp_path_factory.mktemp("explicit")
    return run_explicit(
        f"--model={trained}", "--methods=w4", "--sequences=6", "--calibration=3", "--seq_len=13",
        "--finetune=3", "--finetune_lr=1e-2",
        f"--workdir={place}",
    )  # fmt: skip


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
        "--variant=softmax", "--seed=3", "--finetune=0", "--batch=4", f"--workdir={tmp_path}",
        drawn=False,
    )  # fmt: skip
    for each in (record, done.record):
        measures = each["models"][0]["forms"]["trained"]["measures"]
        assert measures["residual_peak@block_out"] == pytest.approx(expected, rel=1e-4)


def test_the_table_shows_the_record(record, finished):
    table = markdown(sections(record))["backcopy-softmax"]
    assert table.count("\n") == 1 + len(MADE)
    loss = np.mean([model["forms"]["gate"]["loss"] for model in record["models"]])
    row = next(line for line in table.splitlines() if line.startswith(f"| {FORMS['gate']} "))
    assert f"| {loss:.3f} |" in row
    assert FORMS["extra_key"][:13] in finished.out  # the first line of the cell
    assert 0.02 < ink(finished.directory / "figures" / "backcopy-softmax.png") < 0.8


def test_a_change_of_one_sequence_has_no_interval(record):
    one = json.loads(json.dumps({**record, "models": record["models"][:1]}))
    for form in one["models"][0]["forms"].values():
        form["change"] = [0.25, None, None]
    rows = markdown(sections(one))["backcopy-softmax"].splitlines()[2:]
    assert all(row.split("|")[3].strip() == "+0.250" for row in rows)
    assert "backcopy-softmax" in dict(figures(one))


def test_what_is_asked_for_goes_to_stdout(run_explicit, finished, record):
    """All else goes to stderr, so that another program can read it."""
    told = run_explicit(f"--redraw={finished.directory}", "--json")
    assert json.loads(told.out) == record
    assert "backcopy-softmax.png" in told.err
    told = run_explicit(f"--redraw={finished.directory}", "--csv")
    title, *rows = told.out.splitlines()
    assert title.startswith("# backcopy-softmax: nats per token")
    assert [row[0] for row in csv.reader(rows)] == ["form", *(FORMS[name] for name in MADE)]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--variant=context_scale"], "--variant=context_scale: accepted: a model of variant"),
        (["--finetune=-1"], "--finetune=-1: accepted: an integer of at least 0"),
        (["--finetune_lr=0"], "--finetune_lr=0.0: accepted: a finite number above 0"),
        (["--methods=w1"], "--methods=w1: "),
        (["--draws=2,2"], "--draws=2,2: accepted: at least one, none of them twice"),
        (["--json", "--csv"], "--json: accepted: without --csv"),
    ],
)
def test_wrong_flags_are_one_line(run_explicit, trained, tmp_path, arguments, line):
    done = run_explicit(f"--model={trained}", f"--workdir={tmp_path}", *arguments)
    assert done.refusal.startswith(line)
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def running(tmp_path_factory):
    """Two models of running text, with a planted sink and without one, and text of token files."""
    place = tmp_path_factory.mktemp("running")
    planted.write(place)
    untrained = init(planted.CONFIG, jax.random.key(0))
    save(place / "untrained", planted.CONFIG, jax.tree.map(lambda x: x[None], untrained), [3])
    return place


def test_without_a_bos_there_has_to_be_a_sink(run_explicit, running, tmp_path):
    given = f"--corpus=tokens:{running}/text", "--bos=no", "--seq_len=40", f"--workdir={tmp_path}"
    done = run_explicit(f"--model={running}/untrained", *given)
    assert "no head of untrained gives its first token more than 0.3 of its" in done.refusal


def test_a_mixture_is_compressed_too():
    mixture = replace(planted.CONFIG, experts=2)
    form = Form(mixture, init(mixture, jax.random.key(0)), reads_first=True)
    text = Text(None, planted.texts(seed=1), planted.texts(seed=2))
    before = explicit._profile(explicit.Config(), form, text).losses
    judged = explicit._judged(explicit.Config(), form, text, before)
    assert judged["change"].mean == 0.0
    np.testing.assert_allclose(form.losses(text.evaluation), before, rtol=1e-6)
    assert len(judged["largest"]) == len(text.evaluation)
    small = Compressor(mixture, form.params, text.calibration).compress(schemes.scheme("w4a4"))
    after = replace(form, params=small.params, edits=small.edits).losses(text.evaluation, 8)
    np.testing.assert_allclose(judged["methods"]["w4a4"]["losses"], after, rtol=1e-6)
    assert np.abs(after - before).max() > 1e-3


@pytest.fixture(scope="module")
def on_text(run_explicit, running, tmp_path_factory):
    """The forms of the model with the sink."""
    place = tmp_path_factory.mktemp("forms")
    return run_explicit(
        f"--model={running}/model", f"--corpus=tokens:{running}/text", "--bos=no",
        "--methods=", "--sequences=4", "--calibration=6", "--seq_len=48",
        "--distil=4", "--finetune=2", "--finetune_batch=2", "--finetune_lr=1e-2", "--draws=1,2",
        f"--workdir={place}", drawn=False,
    )  # fmt: skip


def test_rows_of_a_token_file_have_no_bos_whatever_is_said(run_explicit, running, tmp_path):
    """They begin anywhere in the file, so there is no first token that all of them have."""
    done = run_explicit(
        f"--model={running}/model", f"--corpus=tokens:{running}/text", "--bos=yes", "--methods=",
        "--sequences=4", "--calibration=6", "--seq_len=48", "--finetune=0",
        f"--workdir={tmp_path}", drawn=False,
    )  # fmt: skip
    (found,) = done.record["models"]
    assert found["sink"]["first"] == planted.MADE + 1
    assert list(found["forms"]) == list(FORMS)


def test_forms_of_texts_that_begin_differently(on_text):
    """Models where the first token's part can be left out, else edits (case U13)."""
    record = on_text.record
    (found,) = record["models"]
    assert found["sink"]["first"] == planted.MADE + 1
    assert found["models"] == list(MODELS)
    assert list(found["forms"]) == list(FORMS)
    peak = "top1_over_median@block_out"
    trained = found["forms"]["trained"]
    for name, form in found["forms"].items():
        assert ("measures" in form) == (name in {"trained", *MODELS})
        assert ("distilled" in form) == (name in MODELS)
        if name in MODELS:
            assert form["measures"][peak] < 0.1 * trained["measures"][peak]
            assert len(form["distilled"]["divergence"]) == 4
            assert form["distilled"]["loss"] != form["finetuned"]["loss"]
    assert trained["change"] == [0.0, 0.0, 0.0]
    assert abs(found["forms"]["extra_key"]["change"][0]) < 1e-2
    assert set(dict(figures(record))) == {found["name"]}
    (section,) = sections(record)
    assert len(section.table.rows) == len(FORMS)
    assert section.lines[0].startswith("texts begin with different tokens: from layer 3 on")
    for name, form in found["forms"].items():  # each draw of text trains it anew, from the same
        assert ("draws" in form) == (name in {"trained", *MODELS})
        for other in form.get("draws", {}).values():
            assert other.keys() == form.keys() & {"distilled", "finetuned"}
            for kind, after in other.items():
                assert after["losses"] != form[kind]["losses"]
    assert found["forms"]["gate"]["draws"]["2"]["distilled"]["divergence"][0] != pytest.approx(
        found["forms"]["gate"]["distilled"]["divergence"][0], rel=1e-6
    )
    gate = section.table.rows[list(FORMS).index("gate")]
    both = [found["forms"]["gate"], *found["forms"]["gate"]["draws"].values()]
    mean = np.mean([draw["distilled"]["change"][0] for draw in both])
    assert gate[3].startswith(f"{mean:+.3f} ±")
    assert "4 steps of what the form adds" in markdown(sections(record))[found["name"]]
    assert "nats from the trained model" not in on_text.err


@pytest.mark.parametrize(("explained", "told"), [(0.42, "42%"), (-2.35, "nothing")])
def test_a_gate_worse_than_the_mean_explains_nothing(record, explained, told):
    record = json.loads(json.dumps(record))
    for model in record["models"]:
        model["factors"]["explained"] = [[explained]]
    said = f"a gate linear in the attention's input explains {told} of S's variance"
    assert explicit.REPORT.verdict(record, None).means == said


def _after(losses, **others):
    """What training made of a form whose own loss was 1 for every text."""
    change = [float(np.mean(losses)) - 1.0, float(np.min(losses)) - 1.0, float(np.max(losses)) - 1]
    return {"loss": float(np.mean(losses)), "losses": list(losses), "change": change, **others}


def test_draws_of_a_model_are_one_number_beside_other_seeds():
    """Two seeds of two draws each are two numbers and not four."""

    def form(*changes):
        one, other = ({"finetuned": {"loss": 1.0, "change": [c, c, c]}} for c in changes)
        return {"loss": 1.0, "change": [0.0] * 3, **one, "draws": {"2": other}}

    models = [
        {"name": "m", "seed": n, "forms": {"constant": form(*of)}, "sink": {"first": 2}}
        for n, of in enumerate(((0.1, 0.3), (0.5, 0.7)))
    ]
    record = {"config": {"finetune": 9}, "models": models, "methods": []}
    (section,) = sections(record)
    assert f"{mean_interval([0.2, 0.6]):±+.3f}" in str(section.table.texts)
    record["provenance"] = {"command": "python -m experiments.explicit"}
    alone = explicit.REPORT.verdict(record, None)
    other = {"name": "n", "seed": 0, "forms": {"constant": form(-9.0, -9.0)}, "sink": {"first": 0}}
    record["models"] = [*models, other]
    said = explicit.REPORT.verdict(record, None)
    assert (said[:2], said.but) == (alone[:2], "of m; n: see the tables")


@pytest.mark.parametrize(
    ("kept", "says"),
    [
        (("losses",), "training does not regain: factor per head +0.050"),
        ((), "trained on, no form is told from the trained model"),  # one model, means alone
    ],
)
def test_what_was_trained_on_is_beside_the_trained_model_trained_on(kept, says):
    """Both gain 0.3 to 0.6 by training; text by text and draw by draw one stays 0.05 behind."""
    texts = {"1": np.linspace(0.4, 0.7, 8), "2": np.linspace(0.5, 0.6, 8)}
    forms = {}
    for name, behind in (("trained", 0.0), ("constant", 0.05)):
        tuned = {draw: {"finetuned": _after(of + behind)} for draw, of in texts.items()}
        for each in tuned.values():
            each["finetuned"] = {
                k: v for k, v in each["finetuned"].items() if k in (*kept, "loss", "change")
            }
        forms[name] = {
            "loss": 1.0,
            "change": [0.0, 0.0, 0.0],
            **tuned["1"],
            "draws": {"2": tuned["2"]},
        }
    model = {"name": "m", "seed": 1, "forms": forms, "sink": {"first": 2}}
    record = {
        "config": {"finetune": 9}, "models": [model], "methods": [],
        "provenance": {"command": "python -m experiments.explicit"},
    }  # fmt: skip
    if not kept:
        for form in forms.values():
            form.pop("draws", None)
    assert explicit.REPORT.verdict(record, None).but == says
