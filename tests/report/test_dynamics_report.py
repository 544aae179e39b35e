"""What a record of dynamics says: sentences, tables and the figure."""

import copy

import numpy as np
import pytest

from sysout_jax.analysis.measure.dynamics import KINDS, MASSIVE, Dynamics, emergence
from sysout_jax.analysis.measure.growth import growth
from sysout_jax.analysis.statistics import MODULATED, modulated
from sysout_jax.model.model import Model
from sysout_jax.plots import analysis
from sysout_jax.report.findings import AnalysisInputs, describe
from sysout_jax.report.tables import tables
from sysout_jax.report.words import headline
from sysout_jax.results import plain
from tests.analysis import planted as p

MATERIAL = AnalysisInputs(Model(p.CONFIG, p.untrained()), p.rows()[0, :5], p.rows())
STEPS = np.array([0, *np.geomspace(16, 143000, 20).round().astype(int)])
PARAMETERS = {"A": 800.0, "decay": 0.12, "speed": 1e-4, "t0": 1.1, "K": 20.0}


def record(values, steps=STEPS):
    measures = {name: np.linspace(1.0, 9.0, len(steps)) for name in KINDS.values()}
    measures[MASSIVE] = values
    rows = tuple(emergence(kind, name, steps, measures[name]) for kind, name in KINDS.items())
    order = tuple(row.kind for row in rows if row.step is not None)
    law = growth(MASSIVE, steps, values)
    found = Dynamics(tuple(map(int, steps)), 8, measures, rows, order, law)
    return plain({"parts": {"dynamics": describe(MATERIAL, found)}})


def test_the_law_of_the_massive_activation_is_said_and_drawn():
    noise = np.random.default_rng(0).standard_normal(len(STEPS))
    made = record(modulated(STEPS.astype(float), **PARAMETERS) + noise)
    *_, order, law = headline(made, "dynamics")
    assert order.startswith("order of emergence: ")
    assert law.startswith(f"growth of {MASSIVE} (four laws by AICc, arXiv:2508.03616): {MODULATED}")
    turns = made["parts"]["dynamics"]["growth"]["laws"][0]["turns"]
    assert f", which turns at step {turns:,.0f}, R² 1.000, 100% of the weight; next " in law
    rows = tables(made)["dynamics-growth"].rows
    assert rows[0][:2] == (MODULATED, 0.0)
    assert all(row[1] > 0.0 for row in rows[1:])
    (drawn,) = (figure for name, figure in analysis.figures(made) if name == "dynamics")
    labels = [line.get_label() for axes in drawn.axes for line in axes.lines]
    assert labels.count(MODULATED) == 1
    line = next(x for axes in drawn.axes for x in axes.lines if x.get_label() == MODULATED)
    of_law = modulated(STEPS[1:].astype(float), **PARAMETERS)
    np.testing.assert_allclose(line.get_ydata(), of_law, rtol=0.05)


def test_another_law_is_named_and_not_drawn_as_the_modulated_one():
    made = record(5.0 + 40.0 * np.log(np.maximum(STEPS, 1.0)))
    assert "arXiv:2508.03616): logarithmic, R² 1.000" in headline(made, "dynamics")[-1]
    (drawn,) = (figure for _, figure in analysis.figures(made))
    labels = [line.get_label() for axes in drawn.axes for line in axes.lines]
    assert MODULATED not in labels


@pytest.mark.parametrize(
    ("values", "steps", "said"),
    [
        (np.arange(5.0), np.arange(5), "4 checkpoints after step 0, and it takes 8"),
        (np.ones(len(STEPS)), STEPS, "it is the same at all checkpoints"),
    ],
)
def test_laws_that_cannot_be_compared(values, steps, said):
    made = record(values, steps)
    assert headline(made, "dynamics")[-1].endswith(f"arXiv:2508.03616): not compared, {said}")
    assert "dynamics-growth" not in tables(made)
    assert len(list(analysis.figures(made))) == 1


def test_a_record_from_before_has_no_law():
    old = copy.deepcopy(record(np.arange(1.0, 6.0), np.arange(5)))
    del old["parts"]["dynamics"]["growth"]
    assert "AICc" not in "".join(headline(old, "dynamics"))
    assert "dynamics-growth" not in tables(old)
    assert len(list(analysis.figures(old))) == 1
