"""Intervals against SciPy, their laws and their coverage; laws of growth that were planted."""

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from sysout_jax.analysis.statistics import (
    LAWS,
    Interval,
    bootstrap_interval,
    fit_growth,
    mean_interval,
    over_seeds,
    ratio_interval,
    spread,
    statistic_interval,
)

numbers = st.lists(st.integers(-1000, 1000).map(float), min_size=2, max_size=6)


@pytest.mark.parametrize("n", [2, 3, 5, 50])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_equals_scipy(n, level):
    values = np.random.default_rng(n).normal(3.0, 2.0, n)
    interval = mean_interval(values, level)
    assert isinstance(interval, Interval)
    assert interval.mean == pytest.approx(np.mean(values))
    expected = stats.t.interval(level, n - 1, loc=np.mean(values), scale=stats.sem(values))
    np.testing.assert_allclose((interval.low, interval.high), expected, rtol=1e-12)


def test_three_values_by_hand():
    """Mean 2, s = 1, and t of two degrees of freedom is 4.302653 at 0.975."""
    half = 4.302652729696142 / math.sqrt(3)
    assert mean_interval([1.0, 2.0, 3.0]) == pytest.approx((2.0, 2 - half, 2 + half))


def test_what_is_not_known_gives_no_mean():
    for values in ([1.0, None, 3.0], [None], [1.0, math.nan]):
        assert all(map(math.isnan, mean_interval(values)))


def test_a_spread_by_hand():
    assert spread([1.0, 2.0, 3.0]) == (2.0, 1.0, 3.0)
    mean, *bounds = spread([2.0])
    assert mean == 2.0
    assert all(map(math.isnan, bounds))


def test_over_seeds_or_of_one():
    assert over_seeds([[0.5, 0.2, 0.7]]) == (0.5, 0.2, 0.7)
    assert math.isnan(over_seeds([[0.5, None, None]]).low)
    assert over_seeds([[1.0, 0.9, 1.1], [3.0, None, None]]) == mean_interval([1.0, 3.0])


@pytest.mark.parametrize(("n", "level"), [(2, 0.95), (3, 0.95), (3, 0.8)])
def test_covers_as_often_as_it_says(n, level):
    """Of 1000 intervals within 4 standard deviations; a bootstrap of three seeds would miss."""
    draws = np.random.default_rng(0).normal(-1.0, 5.0, (1000, n))
    covered = 0
    for values in draws:
        _, low, high = mean_interval(values, level)
        covered += low <= -1.0 <= high
    deviation = math.sqrt(level * (1 - level) / len(draws))
    assert abs(covered / len(draws) - level) < 4 * deviation


def test_one_value_has_no_interval():
    mean, low, high = mean_interval([4.5])
    assert mean == 4.5
    assert math.isnan(low)
    assert math.isnan(high)


def test_equal_values_have_an_interval_of_no_width():
    assert mean_interval([2.5] * 4) == (2.5, 2.5, 2.5)


def test_narrow_inputs_are_averaged_in_float64():
    values = np.array([1e4, 1e4 + 1, 1e4 + 2], np.float32)
    assert mean_interval(values) == pytest.approx(mean_interval([1e4, 1e4 + 1, 1e4 + 2]))


def test_bootstrap_covers_as_often_as_it_says():
    draws = np.random.default_rng(0).exponential(2.0, (400, 60))
    covered = 0
    for values in draws:
        mean, low, high = bootstrap_interval(values, draws=400)
        assert mean == pytest.approx(values.mean())
        covered += low <= 2.0 <= high
    assert abs(covered / len(draws) - 0.95) < 0.04  # 60 skewed values: some percent too few


def test_bootstrap_of_one_value_has_no_interval():
    mean, low, high = bootstrap_interval([3.0])
    assert mean == 3
    assert math.isnan(low)
    assert math.isnan(high)
    assert bootstrap_interval([3.0, 3.0]) == (3, 3, 3)


def test_bootstrap_is_deterministic_and_stays_in_range():
    values = [1.0, 4.0, 5.0]
    assert bootstrap_interval(values) == bootstrap_interval(values)
    assert bootstrap_interval(values) != bootstrap_interval(values, seed=1, draws=3)
    _, low, high = bootstrap_interval(values)
    assert 1 <= low < high <= 5
    assert all(math.isnan(x) for x in bootstrap_interval([]))


@pytest.mark.parametrize("interval", [mean_interval, spread, partial(bootstrap_interval, draws=50)])
@settings(deadline=None, max_examples=30)
@given(values=numbers, shift=st.integers(-99, 99), scale=st.sampled_from([0.5, 2.0, 64.0]))
def test_intervals_move_and_stretch_with_the_values(interval, values, shift, scale):
    plain = np.array(interval(values))
    moved = interval([scale * value + shift for value in values])
    np.testing.assert_allclose(moved, scale * plain + shift, rtol=1e-9, atol=1e-9)
    mean, low, high = plain
    assert low - 1e-9 <= mean <= high + 1e-9


@settings(deadline=None, max_examples=30)
@given(values=numbers, data=st.data())
def test_intervals_see_no_order_and_grow_with_the_level(values, data):
    order = data.draw(st.permutations(values))
    for interval in (mean_interval, spread):
        np.testing.assert_allclose(interval(order), interval(values), rtol=1e-12, atol=1e-9)
    for interval in (mean_interval, partial(bootstrap_interval, draws=50)):
        inner, outer = interval(values, 0.5), interval(values, 0.9)
        assert outer.low <= inner.low <= inner.high <= outer.high


def test_bootstrap_by_hand():
    """Every mean of two draws from 0 and 1: a quarter 0, a half 1/2, a quarter 1."""
    assert bootstrap_interval([0.0, 1.0], level=0.4) == (0.5, 0.5, 0.5)
    assert bootstrap_interval([0.0, 1.0], level=0.6) == (0.5, 0.0, 1.0)


def test_a_statistic_of_sequences_is_drawn_with_repeats():
    values = np.random.default_rng(1).normal(2.0, 1.0, 30)
    found = statistic_interval(lambda chosen: float(values[chosen].mean()), 30, draws=300, seed=3)
    np.testing.assert_allclose(found, bootstrap_interval(values, draws=300, seed=3), rtol=1e-12)
    assert statistic_interval(lambda chosen: float(len(chosen)), 5) == (5, 5, 5)
    whole, *bounds = statistic_interval(lambda chosen: 7.0, 1)
    assert whole == 7
    assert all(map(math.isnan, bounds))


def test_a_ratio_of_means_over_the_same_sequences():
    below = np.random.default_rng(2).uniform(1.0, 3.0, 40)
    np.testing.assert_allclose(ratio_interval(3 * below, below), (3, 3, 3), rtol=1e-12)
    assert ratio_interval([2.0, 3.0], [1.0, 4.0]).mean == 1.0
    above = below + np.random.default_rng(3).normal(0.0, 0.5, 40)
    ratio, low, high = ratio_interval(above, below)
    # to first order the interval of the mean of what is left, over the mean of what is below
    left = np.array(bootstrap_interval(above - ratio * below)) / below.mean()
    np.testing.assert_allclose((low - ratio, high - ratio), left[1:], atol=0.01)


@pytest.mark.parametrize("below", [[0.0, 0.0], [-1.0, 5.0, 1.0], [-2.0, -3.0], [1.0]])
def test_no_share_of_nothing(below):
    assert ratio_interval([1.0] * len(below), below) is None


@pytest.mark.parametrize("law", LAWS)
def test_a_planted_law_is_found(law):
    steps = np.arange(0, 60, 3)
    values = np.append(99.0, 2.0 + 0.7 * LAWS[law](steps[1:]))  # at step 0: of no law
    best, *others = fit_growth(steps, values)
    assert best.law == law
    np.testing.assert_allclose((best.intercept, best.slope), (2.0, 0.7), rtol=1e-9)
    assert best.residual < 1e-9
    assert best.r_squared == pytest.approx(1.0)
    assert [each.residual for each in others] == sorted(each.residual for each in others)


def test_a_fit_by_hand():
    """Least squares through (1, 0), (2, 3), (3, 0): the mean 1, and residuals 1, 2, 1."""
    fit = next(
        fit for fit in fit_growth(np.arange(1, 4), np.array([0, 3, 0])) if fit.law == "linear"
    )
    np.testing.assert_allclose((fit.intercept, fit.slope), (1.0, 0.0), atol=1e-12)
    assert fit.residual == pytest.approx(math.sqrt(2.0))
    assert fit.r_squared == pytest.approx(0.0)
    assert LAWS["logarithmic"](math.e) == pytest.approx(1.0)


def test_two_points_are_of_any_law():
    assert fit_growth(np.array([0, 1, 2]), np.array([0.0, 1.0, 2.0])) == ()
