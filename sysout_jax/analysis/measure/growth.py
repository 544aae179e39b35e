"""By which law the massive activation grows over checkpoints: the one of four with the least AICc.

Axes: n checkpoints after step 0, P candidates of a grid.
"""

from dataclasses import dataclass
from itertools import product

import numpy as np
from scipy.optimize import least_squares
from scipy.special import lambertw

from sysout_jax.analysis.statistics import MODULATED, fit_growth, modulated

LINE, CURVE = 3, 6  # parameters that are fitted, with the variance of what is left
NEEDED = CURVE + 2  # checkpoints from which AICc is defined for all laws
# (decay, speed T, t0), T the last step: x from 0.001, as log x must be finite, and exp(decay t0).
LOWEST, HIGHEST = (0.0, 1e-2, 1e-3), (10.0, 1e4, 20.0)
STARTS = tuple(product((0.0, 0.03, 0.3, 1.0), np.geomspace(0.1, 1e3, 9), np.geomspace(1e-2, 10, 7)))
REFINED = 8  # of the starts, the best
EXACT = 2.0**-23  # of the largest value: what float32 measurements cannot tell apart


@dataclass(frozen=True)
class GrowthLaw:
    """A law at its least squares."""

    law: str
    parameters: dict[str, float]  # of the formula, steps in optimiser steps
    residual: float  # root mean square
    r_squared: float
    aicc: float
    weight: float  # exp(-(AICc - least AICc)/2) as a share of all laws': how much speaks for it
    turns: float | None  # the step at which the modulated logarithm is largest or smallest


@dataclass(frozen=True)
class Growth:
    """The laws beside each other."""

    measure: str
    laws: tuple[GrowthLaw, ...]  # the least AICc first; empty where they cannot be compared
    missing: str | None  # why they cannot


def growth(measure: str, steps: np.ndarray, values: np.ndarray) -> Growth:
    """Compare four laws of growth by a criterion that counts their parameters.

    linear  a + b t;  logarithmic  a + b log t;  square root  a + b sqrt t;
    modulated logarithm  A exp(-decay x) log x + K,  x = speed t + t0.
    AICc = n log(RSS/n) + 2k + 2k (k + 1)/(n - k - 1), with k = 3, and 6 of the last.

    Args:
      measure: its name.
      steps: [n], ascending; those after step 0 are fitted, as log 0 is not finite.
      values: [n], max |h| over median |h| in the paper.

    Returns:
      `Growth`; no laws below `NEEDED` checkpoints after step 0, where AICc is not defined, or
      where the values are all equal.

    Source: the modulated logarithm, "Hidden Dynamics of Massive Activations in Transformer
    Training" 2025 (arXiv:2508.03616); AICc, Hurvich and Tsai 1989.
    """
    after = steps > 0
    t, y = steps[after].astype(np.float64), values[after].astype(np.float64)
    if len(t) < NEEDED:
        return Growth(measure, (), f"{len(t)} checkpoints after step 0, and it takes {NEEDED}")
    if np.ptp(y) == 0.0:
        return Growth(measure, (), "it is the same at all checkpoints")
    spread = float(np.sum((y - y.mean()) ** 2))
    found: list[tuple[str, dict[str, float], float, int, float | None]] = [
        (fit.law, {"a": fit.intercept, "b": fit.slope}, fit.residual, LINE, None)
        for fit in fit_growth(t, y)
    ]
    parameters = _fitted(t, y)
    residual = float(np.sqrt(np.mean((y - modulated(t, **parameters)) ** 2)))
    found.append((MODULATED, parameters, residual, CURVE, turning(parameters)))
    least = EXACT * float(np.abs(y).max())
    criteria = [aicc(max(left, least), k, len(t)) for *_, left, k, _ in found]
    weights = np.exp((min(criteria) - np.array(criteria)) / 2)
    laws = [
        GrowthLaw(law, at, left, 1.0 - left**2 * len(t) / spread, criterion, float(weight), turns)
        for (law, at, left, _, turns), criterion, weight in zip(
            found, criteria, weights / weights.sum(), strict=True
        )
    ]
    return Growth(measure, tuple(sorted(laws, key=lambda law: law.aicc)), None)


def aicc(residual: float, k: int, n: int) -> float:
    """n log(residual^2) + 2k + 2k (k + 1)/(n - k - 1), for n values and k parameters."""
    return 2.0 * n * float(np.log(residual)) + 2.0 * k + 2.0 * k * (k + 1) / (n - k - 1)


def turning(parameters: dict[str, float]) -> float | None:
    """The step after 0 at which `modulated` turns, or None: x = exp(W(1/decay)) there."""
    if parameters["decay"] == 0.0:
        return None
    x = float(np.exp(lambertw(1.0 / parameters["decay"]).real))
    step = (x - parameters["t0"]) / parameters["speed"]
    return step if step > 0.0 else None


def _fitted(t: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """The parameters of `modulated` at its least squares.

    A and K follow from the others by linear least squares (Golub and Pereyra 1973), so three are
    searched: from the best of a grid, as there are several minima.
    """
    last = t[-1]

    def left(point: np.ndarray) -> np.ndarray:
        slope, intercept = _line(shape(point), y)
        return y - slope * shape(point) - intercept

    def shape(point: np.ndarray) -> np.ndarray:
        return modulated(t / last, 1.0, point[0], point[1], point[2], 0.0)

    ordered = sorted(STARTS, key=lambda point: float(np.sum(left(np.array(point)) ** 2)))
    best = min(
        (
            least_squares(left, start, bounds=(LOWEST, HIGHEST), x_scale=(0.1, start[1], start[2]))
            for start in ordered[:REFINED]
        ),
        key=lambda found: float(found.cost),
    )
    slope, intercept = _line(shape(best.x), y)
    decay, speed, t0 = map(float, best.x)
    return {"A": slope, "decay": decay, "speed": speed / float(last), "t0": t0, "K": intercept}


def _line(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope and intercept of y over x by least squares; a slope of 0 over a constant."""
    away = x - x.mean()
    square = float(away @ away)
    slope = float(away @ y) / square if square > 0.0 else 0.0
    return slope, float(y.mean() - slope * x.mean())
