"""Experts of a mixture whose outputs stand far above those of all others.

Axes: L layers, B sequences, E experts.
"""

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from sysout_jax.analysis.locate.scan import Thresholds
from sysout_jax.core import detectors


@dataclass(frozen=True)
class SuperExpert:
    """An expert that `core.detectors.super_experts` flags."""

    layer: int
    expert: int
    peak: float  # max |output|
    over_median: float  # that over the median of all experts that any token goes to
    sequences: int  # in which its output is above expert_share of the largest of all


@dataclass(frozen=True)
class SuperExperts:
    """The largest outputs of all experts, and which are super experts."""

    peak: np.ndarray  # [L, E], max |output| over all tokens that go to the expert; 0 if none does
    bound: float  # what a super expert is above
    unvisited: int  # experts that no token goes to
    found: tuple[SuperExpert, ...]  # the largest first


def super_experts(
    peaks: Float[np.ndarray, "L B E"], thresholds: Thresholds | None = None
) -> SuperExperts:
    """Which experts are super experts, over all sequences together.

    a[l, e] = max_b peaks[l, b, e];  flagged above max(Q_expert_quantile(a), expert_share max a).
    Su et al. also ask that massive activations form in the expert's layer; that is left out.

    Args:
      peaks: [L, B, E], the largest |output| of each expert in each sequence, before the router's
        weight.
      thresholds: of the detector; None for those of its paper.

    Source: Su et al. 2025 (arXiv:2507.23279).
    """
    limits = thresholds or Thresholds()
    peak = peaks.max(axis=1)
    found = detectors.super_experts(jnp.asarray(peak), limits.expert_quantile, limits.expert_share)
    top = float(np.asarray(found.score).max())
    large = limits.expert_share * peak.max()
    visited = peak[peak > 0.0]
    median = float(np.median(visited)) if visited.size else 0.0
    flagged = [
        SuperExpert(
            int(layer), int(expert), float(peak[layer, expert]),
            float(peak[layer, expert]) / median, int((peaks[layer, :, expert] > large).sum()),
        )
        for layer, expert in np.argwhere(np.asarray(found.flagged))
    ]  # fmt: skip
    ordered = tuple(sorted(flagged, key=lambda each: -each.peak))
    bound = float(peak.max()) / top if top else 0.0
    return SuperExperts(peak, bound, int((peak == 0.0).sum()), ordered)
