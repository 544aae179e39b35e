"""Doses as a user meets them: a run in; table, record and figure, or one line out."""

import copy

import numpy as np
import pytest

from experiments.cli.tables import markdown
from experiments.records.causal import response, specific
from experiments.reports.causal_report import REPORT, sections
from sysout_jax.analysis.statistics import mean_interval
from tests.images import ink


@pytest.fixture(scope="module")
def finished(deep, run_causal, tmp_path_factory):
    place = tmp_path_factory.mktemp("causal")
    return run_causal(
        f"--model={deep}", "--sequences=5", "--controls=2", "--factors=0,1,2", "--seq_len=13",
        f"--workdir={place}",
    )  # fmt: skip


def test_every_dose_of_every_seed(record):
    assert [(m["name"], m["seed"]) for m in record["models"]] == [
        ("backcopy-softmax", 3), ("backcopy-softmax", 5),
    ]  # fmt: skip
    for model in record["models"]:
        assert len(model["responses"]) == 2 * 3 * 2
        assert model["place"]["layer"] == 0
        assert model["place"]["head"][0] == 1


def test_effects_are_against_the_same_model(record):
    made = copy.deepcopy(record)["models"]
    for at, model in enumerate(made):
        for each in model["responses"]:
            each["attention"] = (0.2 if each["control"] else 0.3 + at) * each["factor"]
    found = specific(made, "activation", 0.0, "attention")
    assert found == pytest.approx(mean_interval([-0.1, -1.1]))
    assert response(made[1], "weight", 2.0, False)["attention"] == pytest.approx(2.6)
    with pytest.raises(KeyError, match=r"no weight dose of 3\.0"):
        response(made[0], "weight", 3.0, False)


def test_of_one_model_its_texts_decide_and_not_its_seed(record):
    """Attention is recorded text by text; the loss of one model is beyond nothing, nor within."""
    made = copy.deepcopy(record)
    made["models"] = made["models"][:1]
    for each in made["models"][0]["responses"]:
        slope = np.zeros(5) if each["control"] else np.array([0.2, 0.3, 0.2, 0.4, 0.3])
        each["by_sequence"] = (slope * each["factor"]).tolist()
        each["attention"] = each["factor"] * slope.mean()
    found = specific(made["models"], "weight", 0.0, "attention")
    assert found.mean == pytest.approx(-0.28)
    assert -0.4 <= found.low < found.mean < found.high <= -0.2
    assert np.isnan(specific(made["models"], "weight", 0.0, "loss").low)
    assert REPORT.verdict(made, None).but == "one model decides nothing over seeds"
    for each in made["models"][0]["responses"]:
        each["by_sequence"] = [0.1, -0.1, 0.1, -0.1, each["factor"] * 0.001]
    assert REPORT.verdict(made, None).but.startswith("not beyond as much elsewhere: attention")
    for each in made["models"][0]["responses"]:
        del each["by_sequence"]  # as older records are
    assert REPORT.verdict(made, None).but == "one model decides nothing over seeds"


def test_the_table_shows_the_record(record, finished):
    table = markdown(sections(record))["backcopy-softmax"].splitlines()
    assert len(table) == 2 + 2 * 3
    losses = [response(m, "activation", 2.0, True)["loss"] for m in record["models"]]
    assert f"| {np.mean(losses):.2f} ±" in table[-1]
    assert "taken away, against as much elsewhere" in finished.out
    assert 0.02 < ink(finished.directory / "figures" / "backcopy-softmax.png") < 0.8


def test_a_model_of_one_layer_is_refused(run_causal, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    refused = run_causal(f"--model={trained}").refusal
    assert "--model: of 1 layer, with no attention after its MLP" in refused
    assert not list(tmp_path.iterdir())


def test_a_verdict_is_of_the_seeds_of_one_model(record):
    made = copy.deepcopy(record)
    whole = REPORT.verdict(made, None)
    other = copy.deepcopy(made["models"])
    for model in other:
        model["name"] = "text-softmax"
        for each in model["responses"]:
            each["attention"] += each["factor"]
    made["models"] += other
    said = REPORT.verdict(made, None)
    assert said[:2] == whole[:2]
    assert said.but == "of backcopy-softmax; text-softmax: see the tables"
