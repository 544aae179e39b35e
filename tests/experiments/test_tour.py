"""The tour as a user meets it: a model in; three tables, a figure and a record out."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from experiments import tour
from experiments.cli.tables import markdown
from experiments.inputs import model_selection
from experiments.inputs.evaluation_text import Text
from experiments.inputs.model_selection import Chosen
from experiments.reports.tour_report import sections
from sysout_jax.errors import InputError
from sysout_jax.model.decoder import init
from sysout_jax.model.model import Model
from sysout_jax.plots.tour import figures
from tests.analysis import first_sink as planted


@pytest.fixture(scope="module")
def finished(place, run_tour):
    return run_tour(
        f"--model={place}/model", f"--corpus=tokens:{place}/text", "--calibration=5",
        "--sequences=4", "--seq_len=64", "--bos=no", f"--workdir={place}/runs",
    )  # fmt: skip


@pytest.fixture(scope="module")
def model(record):
    (model,) = record["models"]
    return model


def test_the_planted_sink_is_found_and_gone(model):
    assert model["massive"]["layer"] == planted.MADE
    assert model["massive"]["first"] == 1.0
    assert model["sink"]["first"] == planted.MADE + 1
    assert model["kind"] == "constants"
    trained, bound, _ = model["ways"]
    assert trained["over_median"] > 1000 > 100 > bound["over_median"]
    assert bound["loss"] == pytest.approx(trained["loss"], abs=0.02)
    names = [form["name"] for form in model["forms"]]
    assert names[:2] == ["dropped", "factor"]


def test_tables_and_figure_are_of_the_record(finished, record, model):
    tables = markdown(sections(record))
    assert set(tables) == {"model-outliers", "model-forms", "model-ways"}
    trained = model["ways"][0]
    rise = np.mean(np.subtract(trained["rounded"], trained["losses"]))
    assert f"{rise:+.3f}" in tables["model-ways"]
    assert f"{trained['over_median']:,.0f}" in finished.out
    assert [name for name, _ in figures(record)] == ["model"]
    before, after = model["drawn"].values()
    assert [p["layer"] for p in before["panels"]] == [p["layer"] for p in after["panels"]]
    peaks = [np.max(of["panels"][0]["values"]) for of in (before, after)]
    assert peaks[0] > 10 * peaks[1]


def test_a_model_that_reads_fewer_tokens_than_the_figure_has():
    config = replace(planted.CONFIG, context=32, layers=2)
    model = Model(config, init(config, jax.random.key(0)))
    rows = planted.texts(2, 32)
    text = Text(None, rows, rows)
    chosen = Chosen(model, Path("m"), "m", None, None, False)
    for drawn in tour._drawn(chosen, model, text, 0).values():
        assert drawn["pieces"] == list(map(str, rows[0, :32]))
        assert np.shape(drawn["panels"][-1]["values"]) == (32, 32)


def test_without_the_model_there_is_one_line(monkeypatch, run_tour, tmp_path):
    def refused(name, revision, file):
        assert revision == "v1"
        raise InputError("model", name, "a wheel", "no network")

    monkeypatch.setattr(model_selection.loading, "resolve", refused)
    given = ("--if_available", "--revision=v1", f"--workdir={tmp_path}")
    done = run_tour(*given)
    assert done.status == 0
    assert done.out == "left out: model=smollm2-135m: no network; accepted: a wheel\n"
    assert run_tour(*given, "--seq_len=16").refusal.startswith("--seq_len=16")
    assert not list(tmp_path.iterdir())
