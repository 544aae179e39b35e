"""Which of two trainings is ahead: steps and time to a loss, differences, what is decided.

Curves are validation losses at measured steps, one column per seed. The same seed of two variants
has the same data order and the same initial values wherever both have that parameter, so seeds are
compared in pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Num

from sysout_jax.analysis.statistics import Interval, mean_interval

LEVEL = 0.95
DRAWS = 2000  # resamples of seeds and of timing rounds
FASTER, SLOWER, UNDECIDED = "faster", "slower", "not decided"


@dataclass(frozen=True)
class Curve:
    """One variant at one learning rate.

    steps: [n], ascending, where the loss was measured.
    losses: [n, S], nats per token, a column per seed.
    seconds: [R], time per step in each round of an interleaved timing (training/timing.py).
    """

    steps: Num[np.ndarray, "n"]
    losses: Float[np.ndarray, "n S"]
    seconds: Float[np.ndarray, "R"]


@dataclass(frozen=True)
class Comparison:
    """A variant against the baseline.

    Steps and speed-ups have paired bootstrap intervals, differences Student's. A loss that is not
    reached within the run takes infinitely many steps, at a speed-up of 0.
    """

    steps: Interval  # to the baseline's final loss
    seconds: Interval  # the same in time
    speedup: Interval  # the baseline's steps to its own final loss over this variant's
    speedup_seconds: Interval  # the same in time
    step_seconds: Interval  # time per step over the baseline's
    difference: Interval  # of the final loss, this variant's minus the baseline's
    difference_at_equal_time: Interval  # of the losses when the quicker of the two has finished
    verdict: str  # of `difference`
    verdict_at_equal_time: str
    since: float  # step from which on the sign of the mean difference stays the same


def reach(
    steps: Num[np.ndarray, "n"], curves: Float[np.ndarray, "*B n"], targets: Float[np.ndarray, "*B"]
) -> Float[np.ndarray, "*B"]:
    """The step at which each curve first comes down to its target, infinite where it never does.

    Between two measured steps the loss is taken as linear.
    """
    below = curves <= targets[..., None]
    first = below.argmax(axis=-1)
    before = np.maximum(first - 1, 0)
    high = np.take_along_axis(curves, before[..., None], axis=-1)[..., 0]
    low = np.take_along_axis(curves, first[..., None], axis=-1)[..., 0]
    drop = np.where(high > low, high - low, 1.0)
    share = np.where(first > before, (high - targets) / drop, 0.0)
    found = steps[before] + share * (steps[first] - steps[before])
    return np.where(below.any(axis=-1), found, np.inf)


def compare(baseline: Curve, other: Curve, draws: int = DRAWS, seed: int = 0) -> Comparison:
    """How a variant stands to the baseline.

    Each resample draws seeds, the same for both, averages either's curves over them, takes the
    baseline's last loss as the target, and asks when either first comes down to it; timing rounds
    are drawn along. Verdicts are not taken from these intervals: with S seeds they cover at most
    1 - 2^(1 - S), 75% for three, while Student's interval of the paired differences covers 95%.

    Args:
      baseline, other: measured at the same steps, with the same seeds and rounds.
      draws: resamples.
      seed: of the resampling.
    """
    random = np.random.default_rng(seed)
    count, rounds = baseline.losses.shape[1], baseline.seconds.size
    # The first is no resample: every seed and round once, for the estimates themselves.
    seeds = np.vstack([np.arange(count), random.integers(0, count, (draws, count))])
    times = np.vstack([np.arange(rounds), random.integers(0, rounds, (draws, rounds))])
    own = baseline.losses[:, seeds].mean(axis=2).T
    its = other.losses[:, seeds].mean(axis=2).T
    targets = own[:, -1]
    own_steps, its_steps = (reach(baseline.steps, curves, targets) for curves in (own, its))
    ratio = np.median((other.seconds / baseline.seconds)[times], axis=1)
    pace = np.median(other.seconds[times], axis=1)
    speedup = own_steps / np.maximum(its_steps, np.finfo(float).tiny)
    step_seconds = _percentiles(ratio)
    difference = mean_interval(other.losses[-1] - baseline.losses[-1], LEVEL)
    difference_at_equal_time = _at_equal_time(baseline, other, step_seconds)
    return Comparison(
        steps=_percentiles(its_steps),
        seconds=_percentiles(its_steps * pace),
        speedup=_percentiles(speedup),
        speedup_seconds=_percentiles(speedup / ratio),
        step_seconds=step_seconds,
        difference=difference,
        difference_at_equal_time=difference_at_equal_time,
        verdict=verdict(difference),
        verdict_at_equal_time=verdict(difference_at_equal_time),
        since=order_since(
            baseline.steps, [baseline.losses.mean(axis=1), other.losses.mean(axis=1)]
        ),
    )


def _percentiles(values: np.ndarray) -> Interval:
    """The first value as the estimate, within the percentiles of the others."""
    # Never between two resamples: halfway to infinity is no number of steps.
    edges = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    low, high = np.quantile(values[1:], edges, method="inverted_cdf")
    return Interval(float(values[0]), float(low), float(high))


def _at_equal_time(baseline: Curve, other: Curve, ratio: Interval) -> Interval:
    """The difference of the losses when the quicker of the two has finished.

    The interval holds Student's at either end of the ratio's, so that it covers both unknowns.
    """

    def ahead(ratio: float) -> Interval:
        end = baseline.steps[-1] * min(1.0, ratio)  # in the baseline's steps
        return mean_interval(at(other, end / ratio) - at(baseline, end), LEVEL)

    found = [ahead(each) for each in ratio]
    return Interval(found[0].mean, min(x.low for x in found), max(x.high for x in found))


def at(curve: Curve, step: float) -> Float[np.ndarray, "S"]:
    """The losses of all seeds at a step, linear between measured ones."""
    return np.array([np.interp(step, curve.steps, losses) for losses in curve.losses.T])


def verdict(difference: Interval) -> str:
    """Faster where the whole interval of the loss's difference is below zero, slower where above.

    A lower loss after equal tokens or time means that the loss of the other was passed before.
    """
    if difference.high < 0:
        return FASTER
    return SLOWER if difference.low > 0 else UNDECIDED


def order_since(steps: Num[np.ndarray, "n"], means: Sequence[np.ndarray]) -> float:
    """The step from which on the order of the mean losses is that of the last step.

    Args:
      steps: [n].
      means: a curve [n] for each variant.
    """
    order = np.argsort(np.stack(means), axis=0, kind="stable")
    same = (order == order[:, -1:]).all(axis=0)
    return float(steps[np.flatnonzero(~same)[-1] + 1]) if not same.all() else float(steps[0])


@dataclass(frozen=True)
class Best:
    """A variant's best learning rate: lowest mean of the last loss over seeds."""

    lr: float
    edge: str | None  # "lowest" or "highest" of the rates that were tried; None: neither


def best_rate(final: Mapping[float, Sequence[float] | None]) -> Best | None:
    """The best of several learning rates.

    Args:
      final: rate -> the last loss of each seed, None for one that diverged.

    Returns:
      None if all diverged.
    """
    means = {lr: np.mean(losses) for lr, losses in final.items() if losses is not None}
    if not means:
        return None
    lr = min(means, key=means.__getitem__)
    edge = {min(final): "lowest", max(final): "highest"}.get(lr)
    return Best(lr, edge)
