"""Comparisons of curves whose answer is known, and against a plain loop over resamples."""

import math

import numpy as np
import pytest
from scipy import stats

from sysout_jax.analysis.measure.convergence import (
    FASTER,
    SLOWER,
    UNDECIDED,
    Curve,
    best_rate,
    compare,
    order_since,
    reach,
)

STEPS = np.arange(0, 1001, 50)


def falling(rate, offset=(0.0,), seconds=(1.0,), floor=0.0):
    """Loss floor + exp(-rate step / 1000) + offset of each seed."""
    curve = floor + np.exp(-rate * STEPS / 1000)
    return Curve(STEPS, curve[:, None] + np.array(offset), np.array(seconds))


def reach_by_loop(steps, curve, target):
    for i, loss in enumerate(curve):
        if loss <= target:
            if i == 0:
                return steps[0]
            share = (curve[i - 1] - target) / (curve[i - 1] - loss)
            return steps[i - 1] + share * (steps[i] - steps[i - 1])
    return math.inf


def test_reach_is_the_first_crossing_of_each_curve():
    random = np.random.default_rng(0)
    curves = 3 - np.linspace(0, 1, 21) + random.normal(0, 0.2, (5, 7, 21))
    targets = random.uniform(1.5, 3.5, (5, 7))
    found = reach(STEPS, curves, targets)
    expected = [
        [reach_by_loop(STEPS, c, t) for c, t in zip(cs, ts, strict=True)]
        for cs, ts in zip(curves, targets, strict=True)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert np.isinf(found).any()
    assert (found == 0).any()


@pytest.mark.parametrize(
    ("curve", "target", "expected"),
    [
        ([4.0, 2.0, 1.0], 3.0, 5.0),
        ([4.0, 2.0, 1.0], 2.0, 10.0),
        ([4.0, 2.0, 1.0], 4.0, 0.0),
        ([4.0, 2.0, 1.0], 0.5, math.inf),
        ([4.0, 2.0, 3.0], 2.5, 7.5),  # the first time, whatever comes after
        ([2.0, 2.0, 2.0], 2.0, 0.0),
    ],
)
def test_reach_by_hand(curve, target, expected):
    steps = np.array([0.0, 10.0, 20.0])
    assert reach(steps, np.array(curve), np.array(target)) == expected


@pytest.mark.parametrize("factor", [1.25, 2.0])
def test_twice_as_fast_is_twice_as_fast(factor):
    """exp(-f r t) comes to exp(-r T) at T / f, up to the chord between measured steps."""
    base = falling(2.0, (0.0, 0.3, -0.2))
    found = compare(base, falling(2.0 * factor, (0.0, 0.3, -0.2)))
    for each in found.speedup:
        assert each == pytest.approx(factor, rel=2e-3)
    assert found.steps.mean == pytest.approx(1000 / factor, rel=2e-3)
    assert found.verdict == FASTER
    # each of its steps takes as much longer: the same loss at the same time
    slow = falling(2.0 * factor, (0.0, 0.3, -0.2), (factor,))
    found = compare(base, slow)
    assert found.step_seconds == (factor, factor, factor)
    assert found.speedup_seconds.mean == pytest.approx(1, rel=2e-3)
    assert found.seconds.mean == pytest.approx(1000, rel=2e-3)
    assert found.difference_at_equal_time.mean == pytest.approx(0, abs=1e-3)
    assert compare(slow, base).difference_at_equal_time.mean == pytest.approx(0, abs=1e-3)
    back = compare(falling(2.0 * factor), falling(2.0))
    assert back.steps == (math.inf, math.inf, math.inf)
    assert back.speedup == (0, 0, 0)


def test_against_itself_nothing_is_decided():
    base = falling(2.0, (0.0, 0.3, -0.2))
    found = compare(base, base)
    assert found.speedup == (1, 1, 1)
    assert found.difference == (0, 0, 0)
    assert (found.verdict, found.verdict_at_equal_time) == (UNDECIDED, UNDECIDED)
    assert found.since == 0


def noisy(seed, shift=0.0):
    """Five seeds that differ by far more than a variant does, and noise of its own."""
    random = np.random.default_rng(seed)
    shared = np.random.default_rng(99).normal(0, 0.5, 5)
    noise = random.normal(0, 0.01, (STEPS.size, 5))
    losses = 2 + np.exp(-2 * STEPS / 1000)[:, None] + shared + noise + shift
    return Curve(STEPS, losses, random.uniform(0.9, 1.1, 7))


@pytest.mark.parametrize(("shift", "expected"), [(-0.06, FASTER), (0.06, SLOWER), (0.0, UNDECIDED)])
def test_seeds_are_compared_in_pairs(shift, expected):
    """The seeds are 0.5 apart and the variants 0.06: only their pairs show it."""
    base, other = noisy(1), noisy(2, shift)
    found = compare(base, other)
    assert found.verdict == expected
    expected_interval = stats.t.interval(
        0.95, 4, *(f(other.losses[-1] - base.losses[-1]) for f in (np.mean, stats.sem))
    )
    np.testing.assert_allclose(found.difference[1:], expected_interval, rtol=1e-9)
    assert stats.ttest_ind(base.losses[-1], other.losses[-1]).pvalue > 0.05


def test_bootstrap_draws_pairs_of_seeds_and_rounds():
    """The same resamples in a plain loop."""
    base, other = noisy(3), noisy(4, -0.02)
    found = compare(base, other, draws=50, seed=7)
    random = np.random.default_rng(7)
    seeds, times = random.integers(0, 5, (50, 5)), random.integers(0, 7, (50, 7))
    rows = []
    for picked, rounds in zip(seeds, times, strict=True):
        own, its = base.losses[:, picked].mean(1), other.losses[:, picked].mean(1)
        own_steps, its_steps = (reach_by_loop(STEPS, c, own[-1]) for c in (own, its))
        ratio = np.median(other.seconds[rounds] / base.seconds[rounds])
        pace = np.median(other.seconds[rounds])
        rows.append((its_steps, its_steps * pace, own_steps / its_steps,
                     own_steps / its_steps / ratio, ratio))  # fmt: skip
    for name, values in zip(
        ("steps", "seconds", "speedup", "speedup_seconds", "step_seconds"),
        np.sort(np.array(rows), axis=0).T,
        strict=True,
    ):
        # of 50 sorted values, the 2nd is the first with 2.5% at or below, the 49th with 97.5%
        np.testing.assert_allclose(getattr(found, name)[1:], values[[1, 48]], rtol=1e-9)


def test_uncertain_timing_widens_the_difference_at_equal_time():
    base = falling(2.0, (0.0, 0.01, 0.02), (1.0,) * 9)
    faster = falling(2.05, (0.0, 0.011, 0.019), (1.0,) * 9)
    assert compare(base, faster).verdict_at_equal_time == FASTER
    uneven = falling(2.05, (0.0, 0.011, 0.019), (0.8, 1.2, 0.9, 1.1, 1.0, 0.7, 1.3, 0.85, 1.15))
    found = compare(base, uneven)
    assert found.verdict == FASTER
    assert found.step_seconds.low < 1 < found.step_seconds.high
    assert found.verdict_at_equal_time == UNDECIDED


def test_one_seed_decides_nothing():
    found = compare(falling(2.0), falling(4.0))
    assert found.verdict == UNDECIDED
    assert found.speedup.mean == pytest.approx(2, rel=2e-3)


def test_three_seeds_rarely_decide_what_is_no_difference():
    """Student's interval is wrong in 5% of 400 null comparisons, within 4 standard deviations."""
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        base, other = (
            Curve(np.array([0, 1]), np.vstack([np.full(3, 9.0), random.normal(2, 0.1, 3)]),
                  np.ones(1)) for _ in range(2)
        )  # fmt: skip
        wrong += compare(base, other, draws=1).verdict != UNDECIDED
    assert abs(wrong / 400 - 0.05) < 4 * math.sqrt(0.05 * 0.95 / 400)


@pytest.mark.parametrize(
    ("means", "expected"),
    [
        ([[3, 2, 1, 0], [4, 3, 2, 1]], 0),
        ([[3, 2, 1, 0], [2, 1, 2, 1]], 20),
        ([[3, 2, 1, 2], [4, 3, 2, 1]], 30),
        ([[3, 2, 1, 0], [4, 3, 2, 1], [5, 2.5, 3, 2]], 20),
        ([[1, 1, 1, 1]], 0),
    ],
)
def test_order_since(means, expected):
    steps = np.array([0, 10, 20, 30])
    assert order_since(steps, [np.array(m, float) for m in means]) == expected


@pytest.mark.parametrize(
    ("final", "lr", "edge"),
    [
        ({1.0: [3.0, 3.0], 2.0: [1.0, 2.0], 4.0: [2.0, 2.0]}, 2.0, None),
        ({1.0: [1.0, 1.0], 2.0: [1.0, 2.0]}, 1.0, "lowest"),
        ({2.0: [1.0, 1.0], 1.0: [1.0, 2.0]}, 2.0, "highest"),
        ({1.0: [3.0, 3.0], 2.0: [1.0, 2.0], 4.0: None}, 2.0, None),  # beyond it, it diverged
        ({4.0: [1.0]}, 4.0, "highest"),
    ],
)
def test_best_rate(final, lr, edge):
    found = best_rate(final)
    assert (found.lr, found.edge) == (lr, edge)


def test_no_best_rate_where_all_diverged():
    assert best_rate({1.0: None, 2.0: None}) is None
