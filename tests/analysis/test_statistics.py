"""Student's interval against SciPy, and its coverage by simulation."""

import math

import numpy as np
import pytest
from scipy import stats

from sysout_jax.analysis.statistics import (
    Interval,
    bootstrap_interval,
    mean_interval,
    over_seeds,
    spread,
)


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
    """Of 4000 intervals within 4 standard deviations; a bootstrap of three seeds would miss."""
    draws = np.random.default_rng(0).normal(-1.0, 5.0, (4000, n))
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
