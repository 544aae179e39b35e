"""Means with intervals over a few seeds, and laws of growth fitted to curves."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats

from sysout_jax.showing import Interval

LAWS: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "linear": np.positive,  # under Adam while gradients are large (theory C2)
    "logarithmic": np.log,  # under gradient flow (theory C2)
    "square root": np.sqrt,
}
MODULATED = "modulated logarithm"  # of the massive activation (arXiv:2508.03616)


def modulated(
    t: Float[np.ndarray, "n"], A: float, decay: float, speed: float, t0: float, K: float
) -> Float[np.ndarray, "n"]:
    """A exp(-decay x) log x + K,  x = speed t + t0."""
    x = speed * t + t0
    return A * np.exp(-decay * x) * np.log(x) + K


def mean_interval(values: Sequence[float | None] | np.ndarray, level: float = 0.95) -> Interval:
    """The mean over seeds with Student's interval: mean -+ t_{n-1} s / sqrt(n).

    Not a bootstrap: resampling three seeds cannot leave their range and covers far less than it
    says, while Student's interval is exact for normal values at any n >= 2. Use a bootstrap over
    sequences, where there are hundreds.

    Args:
      values: [n], one number per seed; None and NaN are not known, and then nor is the mean.
      level: the coverage.
    """
    x = np.asarray(values, np.float64)
    mean = float(np.mean(x))
    if x.size < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = float(stats.t.ppf(0.5 + level / 2, x.size - 1) * np.std(x, ddof=1) / np.sqrt(x.size))
    return Interval(mean, mean - half, mean + half)


def spread(values: Sequence[float | None] | np.ndarray) -> Interval:
    """The mean over seeds and one standard deviation on either side: mean -+ s.

    Args:
      values: [n], one number per seed.
    """
    x = np.asarray(values, np.float64)
    mean = float(np.mean(x))
    deviation = float(np.std(x, ddof=1)) if x.size > 1 else float("nan")
    return Interval(mean, mean - deviation, mean + deviation)


def over_seeds(found: Sequence[Sequence[float | None]]) -> Interval:
    """The mean over seeds with Student's interval or, of one seed, the interval that it has itself.

    Args:
      found: (mean, low, high) of each seed; None is not known.
    """
    return mean_interval([mean for mean, *_ in found]) if len(found) > 1 else Interval.of(found[0])


def bootstrap_interval(
    values: Sequence[float] | np.ndarray, level: float = 0.95, draws: int = 2000, seed: int = 0
) -> Interval:
    """The mean over sequences with a percentile bootstrap interval (Efron 1979).

    Args:
      values: [n], one number per sequence; NaN for none at all.
      level: the coverage.
      draws: resamples.
      seed: of the resampling.
    """
    x = np.asarray(values, np.float64)
    if x.size < 2:  # one value drawn again and again says nothing of others
        return Interval(float(x[0]) if x.size else float("nan"), float("nan"), float("nan"))
    picked = np.random.default_rng(seed).integers(0, x.size, (draws, x.size))
    low, high = np.quantile(x[picked].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(np.mean(x)), float(low), float(high))


def statistic_interval(
    statistic: Callable[[np.ndarray], float], count: int, level: float = 0.95, draws: int = 2000,
    seed: int = 0,
) -> Interval:  # fmt: skip
    """A statistic of sequences with a percentile bootstrap interval.

    Args:
      statistic: gives it of the sequences with these numbers, [n], some more than once.
      count: sequences.
      level: the coverage.
      draws: resamples.
      seed: of the resampling.
    """
    whole = statistic(np.arange(count))
    if count < 2:
        return Interval(whole, float("nan"), float("nan"))
    picked = np.random.default_rng(seed).integers(0, count, (draws, count))
    low, high = np.quantile(
        [statistic(each) for each in picked], [(1 - level) / 2, (1 + level) / 2]
    )
    return Interval(whole, float(low), float(high))


def ratio_interval(
    above: Sequence[float] | np.ndarray, below: Sequence[float] | np.ndarray, level: float = 0.95,
    draws: int = 2000, seed: int = 0,
) -> Interval | None:  # fmt: skip
    """The ratio of two means over the same sequences with a percentile bootstrap interval.

    Args:
      above, below: [n], one number per sequence.
      level: the coverage.
      draws: resamples of sequences, the same for both.
      seed: of the resampling.

    Returns:
      None where `bootstrap_interval` of what is below does not lie above zero: a share of nothing.
    """
    a, b = np.asarray(above, np.float64), np.asarray(below, np.float64)
    if not bootstrap_interval(b, level, draws, seed).low > 0.0:
        return None
    picked = np.random.default_rng(seed).integers(0, b.size, (draws, b.size))
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample may have nothing below
        ratios = a[picked].mean(axis=1) / b[picked].mean(axis=1)
    low, high = np.nanquantile(ratios, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(a.mean() / b.mean()), float(low), float(high))


@dataclass(frozen=True)
class Fit:
    """value = intercept + slope * f(step), by least squares over steps above 0."""

    law: str
    intercept: float
    slope: float
    residual: float  # root mean square
    r_squared: float


def fit_growth(steps: np.ndarray, values: np.ndarray) -> tuple[Fit, ...]:
    """Fit each of `LAWS` to the values after step 0; the smallest residual comes first.

    Args:
      steps: [n], ascending.
      values: [n].

    Returns:
      One fit per law; none where fewer than three steps are above 0.
    """
    after = steps > 0
    t, y = steps[after].astype(np.float64), values[after].astype(np.float64)
    if len(t) < 3:
        return ()
    fits = []
    for law, transform in LAWS.items():
        design = np.stack([np.ones_like(t), transform(t)], axis=1)
        (intercept, slope), *_ = np.linalg.lstsq(design, y, rcond=None)
        left = y - design @ (intercept, slope)
        spread = float(np.sum((y - y.mean()) ** 2))
        explained = 1.0 - float(np.sum(left**2)) / spread if spread > 0 else 0.0
        residual = float(np.sqrt(np.mean(left**2)))
        fits.append(Fit(law, float(intercept), float(slope), residual, explained))
    return tuple(sorted(fits, key=lambda fit: fit.residual))
