"""Data made by each law of growth is best fitted by that law."""

import math

import numpy as np
import pytest

from sysout_jax.analysis.measure import growth as g
from sysout_jax.analysis.statistics import MODULATED, modulated

STEPS = np.array([0, *np.geomspace(16, 143000, 24).round().astype(int)])
MADE = {
    "linear": lambda t: 3.0 + 2e-3 * t,
    "logarithmic": lambda t: 5.0 + 40.0 * np.log(t),
    "square root": lambda t: 10.0 + 2.0 * np.sqrt(t),
    MODULATED: lambda t: 800.0 * np.exp(-0.12 * (1e-4 * t + 1.1)) * np.log(1e-4 * t + 1.1) + 20.0,
}


def made(law, seed, noise):
    t = STEPS[1:].astype(np.float64)
    values = MADE[law](t)
    drawn = np.random.default_rng(seed).standard_normal(len(t))
    return np.concatenate([[1.0], values + noise * np.ptp(values) * drawn])


@pytest.mark.parametrize("law", MADE)
@pytest.mark.parametrize(("seed", "noise"), [(0, 0.0), (1, 0.003), (2, 0.01), (3, 0.01), (4, 0.03)])
def test_data_of_a_law_are_best_fitted_by_it(law, seed, noise):
    found = g.growth("measure", STEPS, made(law, seed, noise))
    assert found.missing is None
    assert {each.law for each in found.laws} == set(MADE)
    assert found.laws[0].law == law
    assert [each.aicc for each in found.laws] == sorted(each.aicc for each in found.laws)
    assert found.laws[0].weight > 0.8
    assert sum(each.weight for each in found.laws) == pytest.approx(1)
    assert found.laws[0].r_squared > 0.98


def test_a_longer_law_fits_noise_better_and_loses():
    """The modulated logarithm without decay and t0 is the logarithm: it leaves no more, and AICc
    counts what it takes for that."""
    values = made("logarithmic", 5, 0.02)
    of = {each.law: each for each in g.growth("measure", STEPS, values).laws}
    assert of[MODULATED].residual <= 1.001 * of["logarithmic"].residual
    assert of[MODULATED].aicc > of["logarithmic"].aicc


def test_the_criterion_against_its_formula():
    values = made(MODULATED, 1, 0.01)
    n, y = len(STEPS) - 1, values[1:]
    best = min(each.aicc for each in g.growth("measure", STEPS, values).laws)
    odds = 0.0
    for each in g.growth("measure", STEPS, values).laws:
        k = 6 if each.law == MODULATED else 3
        curve = []
        for t in STEPS[1:].tolist():
            p = each.parameters
            if each.law == MODULATED:
                x = p["speed"] * t + p["t0"]
                curve.append(p["A"] * math.exp(-p["decay"] * x) * math.log(x) + p["K"])
            else:
                f = {"linear": float, "logarithmic": math.log, "square root": math.sqrt}[each.law]
                curve.append(p["a"] + p["b"] * f(t))
        rss = math.fsum((a - b) ** 2 for a, b in zip(y.tolist(), curve, strict=True))
        expected = n * math.log(rss / n) + 2 * k + 2 * k * (k + 1) / (n - k - 1)
        assert each.aicc == pytest.approx(expected, rel=1e-9)
        assert each.residual == pytest.approx(math.sqrt(rss / n), rel=1e-9)
        spread = math.fsum((a - y.mean()) ** 2 for a in y.tolist())
        assert each.r_squared == pytest.approx(1 - rss / spread)
        odds += math.exp((best - each.aicc) / 2)
    assert g.growth("measure", STEPS, values).laws[0].weight == pytest.approx(1 / odds)


def test_parameters_are_found_again():
    best, *_ = g.growth("measure", STEPS, made(MODULATED, 0, 0.0)).laws
    expected = {"A": 800.0, "decay": 0.12, "speed": 1e-4, "t0": 1.1, "K": 20.0}
    assert best.parameters == pytest.approx(expected, rel=1e-3)
    other = g.growth("measure", STEPS, 7.0 * made(MODULATED, 0, 0.0)).laws[0]  # another unit
    assert other.parameters == pytest.approx(expected | {"A": 5600.0, "K": 140.0}, rel=1e-3)


@pytest.mark.parametrize("decay", [0.02, 0.12, 1.5])
def test_it_turns_where_no_neighbour_is_larger(decay):
    parameters = {"A": 3.0, "decay": decay, "speed": 1e-3, "t0": 0.1, "K": 0.0}
    turns = g.turning(parameters)
    t = np.arange(0.0, 4 * turns, turns / 2000)
    assert t[np.argmax(modulated(t, **parameters))] == pytest.approx(turns, abs=turns / 1000)


def test_what_never_turns():
    assert g.turning({"A": 3.0, "decay": 0.0, "speed": 1e-3, "t0": 0.1, "K": 0.0}) is None
    assert (
        g.turning({"A": 3.0, "decay": 10.0, "speed": 1e-3, "t0": 9.0, "K": 0.0}) is None
    )  # before 0


@pytest.mark.parametrize("count", [0, 2, g.NEEDED - 1])
def test_too_few_checkpoints_are_said(count):
    steps = np.arange(count + 1)
    found = g.growth("measure", steps, np.sqrt(steps))
    assert found.laws == ()
    assert found.missing == f"{count} checkpoints after step 0, and it takes 8"
    assert g.growth("measure", np.arange(9), np.sqrt(np.arange(9))).missing is None


def test_what_does_not_change_has_no_law():
    found = g.growth("measure", STEPS, np.where(STEPS > 0, 5.0, 1.0))
    assert (found.laws, found.missing) == ((), "it is the same at all checkpoints")
