"""The part dimensions as record, sentences, tables, figure and Markdown."""

import copy
import json
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analysis.locate.scan import Thresholds
from sysout_jax.errors import InputError
from sysout_jax.report.findings import publish
from sysout_jax.report.page import page
from sysout_jax.report.tables import tables as tables_of
from sysout_jax.report.words import headline
from tests.analysis import planted as p
from tests.images import ink

STAGE = {
    "step": 50, "dimensions": [4], "largest": 1.5, "kurtosis": 7.25, "shared": 0.5,
    "kl": [0.25, 0.125, 0.375],
}  # fmt: skip
EMPTY = {"step": 0, "dimensions": [], "largest": 0.3, "kurtosis": 1, "shared": None, "kl": None}


@cache
def found():
    """Of a model whose final norm makes dimensions 4 and 9 large."""
    drawn = jax.tree.map(np.array, p.params())
    drawn["final_norm"]["scale"][[4, 9]] = 20.0
    model = so.Model(p.CONFIG, jax.tree.map(jnp.asarray, drawn))
    return so.analyze(
        model, p.rows()[0, :-1], rows=p.rows(), parts="dimensions",
        thresholds=Thresholds(dimension_quantile=0.9), dimension_positions=(40, 99),
    )  # fmt: skip


def with_stages():
    record = copy.deepcopy(found().record)
    record["parts"]["dimensions"]["stages"] = [EMPTY, STAGE]
    return record


def test_the_record_holds_what_was_asked_for():
    record = found().record
    part = record["parts"]["dimensions"]
    assert json.loads(json.dumps(record, allow_nan=False)) == record
    assert part["positions"] == [40, 99]
    assert part["quantile"] == record["thresholds"]["dimension_quantile"] == 0.9
    assert {4, 9} <= {each["index"] for each in part["dimensions"]}
    assert len(part["scores"]) == len(part["peaks"]) == 32
    assert found().dimensions.positions == (40, 99)


def test_sentences():
    said = "\n".join(headline(with_stages(), "dimensions"))
    count = len(found().dimensions.dimensions)
    assert "of 32 (Macocco et al. 2025; 6 texts, quantile 0.9), with" in said
    assert f"0 of {count} are among 1 channels of massive activations" in said
    assert "predictions without them: KL" in said
    assert "predictions from them alone: KL" in said
    assert "the predicted token's logit over the mean: " in said
    assert "over 2 checkpoints the first are at step 50" in said


def test_where_most_dimensions_are_outliers_none_are_left_to_draw():
    record = with_stages()
    part = record["parts"]["dimensions"]
    part["ablations"] = [each for each in part["ablations"] if each["draw"] is None]
    said = "\n".join(headline(record, "dimensions"))
    assert "nats, surprisal" in said
    assert "random dimensions" not in said


def test_sentences_where_there_are_none():
    (said,) = headline(p.findings().record, "dimensions")
    assert said.startswith("none of 32 dimensions is an outlier dimension (Macocco et al. 2025) in")
    assert said.endswith("of the threshold, and 0 could be")


def test_tables():
    whats = ("", "-list", "-overlaps", "-vectors")
    tables = {f"dimensions{what}": found().table(f"dimensions{what}") for what in whats}
    rows = [row[0] for row in tables["dimensions"].rows]
    assert rows[:3] == [
        "all dimensions", "all but outlier dimensions", "outlier dimensions alone"
    ]  # fmt: skip
    kls = [
        each["values"]["kl"][0]
        for each in found().record["parts"]["dimensions"]["ablations"]
        if each["draw"] is not None and not each["kept"]
    ]
    (random,) = (row for row in tables["dimensions"].rows if row[0].startswith("all but random"))
    assert random[0] == f"all but random dimensions, {len(kls)} sets"
    ends = [f"{end:.2f}" for end in (min(kls), max(kls))]
    assert random[2] == (ends[0] if ends[0] == ends[1] else " to ".join(ends))
    listed = {row[0]: row for row in tables["dimensions-list"].rows}
    assert listed[4][-1] == "no"
    assert len(tables["dimensions-overlaps"].rows) == 3
    with pytest.raises(InputError, match="dimensions-steps"):
        found().table("dimensions-steps")
    steps = tables_of(with_stages())["dimensions-steps"].to_markdown().splitlines()
    assert len(steps) == 4


def test_the_figure_and_the_page(tmp_path):
    record = with_stages()
    path = publish(record, tmp_path)
    assert 0.02 < ink(tmp_path / "figures" / "dimensions.png") < 0.8
    text = path.read_text()
    assert '<section id="dimensions"><h2>Outlier dimensions</h2>' in text
    assert "Over checkpoints" in text
    assert text == page(record, tmp_path / "figures")


@pytest.mark.parametrize("given", [(101,), ()])
def test_positions_are_refused_before_anything_is_run(given):
    model = so.Model(p.CONFIG, p.params())
    with pytest.raises(InputError, match="dimension_positions"):
        so.analyze(model, p.rows()[0, :-1], rows=p.rows(), dimension_positions=given)
