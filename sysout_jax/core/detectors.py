"""Detectors: which entries are outliers, one plain function per definition, listed at the foot.

Axes: T query position, S key position, D width or any features of a site, N query heads, L layers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from sysout_jax.core.layers import one_widened, widened
from sysout_jax.core.ordering import (
    discoveries,
    median_magnitude,
    quantile_magnitude,
    row_medians,
    shuffled_rows,
)

ACTIVATION_RATIO = 1000.0  # An et al. 2025: max|h[t]| against the mean magnitude of the site
WEIGHT_RATIO = 1000.0  # An et al. 2025: max|W| against the mean magnitude of the matrix
ATTENTION_SHARE = 0.1  # An et al. 2025: share of all queries' attention that a key receives
ATTENTION_EXCESS = 2.0  # this project: that share against the one of uniform causal attention
MASSIVE_VALUE, MASSIVE_RATIO = 100.0, 1000.0  # Sun et al. 2024: |h| and |h| / median|h|
FEATURE_VALUE = 6.0  # Dettmers et al. 2022: |x| of an outlier feature,
FEATURE_LAYERS, FEATURE_TOKENS = 0.25, 0.06  # in this share of layers, and of tokens
SIGMAS = 6.0  # Bondarenko et al. 2023: standard deviations from the tensor's mean
DIMENSION_QUANTILE = 0.99  # Macocco et al. 2025: of |h| after the final norm
EXPERT_QUANTILE, EXPERT_SHARE = 0.995, 0.1  # Su et al. 2025: of the experts' largest outputs
MASSIVE_DEVIATION = 1000.0  # |h - median h| over the median of those, as steering tools ask
MASSIVE_LAYERS = 0.25  # and the least share of layers
FALSE_DISCOVERIES = 0.01  # q of Benjamini & Hochberg
SHUFFLES = 200  # of a permutation null: at least 1/q, or no single feature could be flagged


class Detection(NamedTuple):
    """Which entries a detector flags, and the score of each in units of its threshold's rule."""

    flagged: Bool[Array, "..."]
    score: Float[Array, "..."]


def activation_outliers(h: Float[Array, "T D"], ratio: float = ACTIVATION_RATIO) -> Detection:
    """Tokens with an activation far above the site's mean magnitude.

    score[t] = max_j |h[t, j]| / mean |h|;  flagged where score > ratio.

    Args:
      h: [T, D], one site of one sequence: a block output or a down-projection input.
      ratio: the threshold.

    Returns:
      `Detection` over [T].

    Source: An et al. 2025 (arXiv:2502.06415), definition of activation outliers.
    """
    size = jnp.abs(one_widened(h, "T D"))
    score = _share(jnp.max(size, axis=-1), jnp.mean(size))
    return Detection(score > ratio, score)


def weight_outliers(w: Float[Array, "I O"], ratio: float = WEIGHT_RATIO) -> Detection:
    """Entries of a weight matrix far above its mean magnitude.

    score[i, o] = |W[i, o]| / mean |W|;  flagged where score > ratio.

    Args:
      w: [inputs, outputs].
      ratio: the threshold.

    Returns:
      `Detection` over [inputs, outputs].

    Source: An et al. 2025 (arXiv:2502.06415), definition of weight outliers.
    """
    size = jnp.abs(one_widened(w, "I O"))
    score = _share(size, jnp.mean(size))
    return Detection(score > ratio, score)


def attention_outliers(weights: Float[Array, "N T S"], share: float = ATTENTION_SHARE) -> Detection:
    """Keys that receive a large share of all queries' attention.

    score[k] = (1/T) sum_q mean_n A[n, q, k];  flagged where score >= share.

    Up to T = 43 a uniform causal row already exceeds a share of 0.1 on the first key (the harmonic
    number of T, over T): compare with the value at random initialisation.

    Args:
      weights: [N, T, S], rows that sum to at most one.
      share: the threshold, a fraction of the T queries.

    Returns:
      `Detection` over [S].

    Source: An et al. 2025 (arXiv:2502.06415), definition of attention outliers.
    """
    score = jnp.mean(one_widened(weights, "N T S"), axis=(0, 1))
    return Detection(score >= share, score)


def massive_activations(
    h: Float[Array, "T D"], value: float = MASSIVE_VALUE, ratio: float = MASSIVE_RATIO
) -> Detection:
    """Activations that are large in themselves and against the median.

    score[t, j] = |h[t, j]| / median |h|;  flagged where |h| > value and |h| > ratio * median |h|.

    Args:
      h: [T, D], a block output of one sequence.
      value: the threshold on |h|.
      ratio: the threshold on the score.

    Returns:
      `Detection` over [T, D].

    Source: Sun et al. 2024 (arXiv:2402.17762), section 2.
    """
    size = jnp.abs(one_widened(h, "T D"))
    median = median_magnitude(size)
    return Detection((size > value) & (size > ratio * median), ratio_or_infinity(size, median))


def six_sigma_outliers(x: Float[Array, "..."], sigmas: float = SIGMAS) -> Detection:
    """Entries far from the mean of their tensor.

    score = |x - mean x| / std x;  flagged where score > sigmas.

    Args:
      x: any shape, an activation of one sequence.
      sigmas: the threshold.

    Returns:
      `Detection` in the shape of `x`.

    Source: Bondarenko et al. 2023 (arXiv:2306.12929), section 3.
    """
    x = widened(x)
    size = jnp.abs(x - jnp.mean(x))
    score = ratio_or_zero(size, jnp.sqrt(jnp.mean(jnp.square(size))))
    score = jnp.where(jnp.isinf(x), jnp.inf, score)
    return Detection(score > sigmas, score)


def feature_reach(x: Float[Array, "T D"], value: float = FEATURE_VALUE) -> Float[Array, "D"]:
    """The share of tokens at which a feature is large: mean_t 1[|x_tj| >= value]."""
    size = jnp.abs(one_widened(x, "T D"))
    large = jnp.where(jnp.isnan(size), size, (size >= value).astype(size.dtype))
    return jnp.mean(large, axis=0, dtype=jnp.float32)


def outlier_features(
    reach: Float[Array, "L D"], layers: float = FEATURE_LAYERS, tokens: float = FEATURE_TOKENS
) -> Detection:
    """Features that are large in many layers and at many tokens.

    score_j = min(mean_l 1[reach_lj > 0] / layers, mean_l reach_lj / tokens);  flagged from 1 on.

    Args:
      reach: [L, D], `feature_reach` of every layer's input of the attention projections.
      layers: the least share of layers in which some token has the feature large.
      tokens: the least share of tokens, of all layers together.

    Returns:
      `Detection` over [D].

    Source: Dettmers et al. 2022 (arXiv:2208.07339), section 4.1.
    """
    deep = jnp.mean(reach > 0.0, axis=0, dtype=reach.dtype) / layers
    score = jnp.minimum(deep, jnp.mean(reach, axis=0) / tokens)
    # Devices round means differently: a share that is exactly the least one counts on each.
    return Detection(score >= 1.0 - 4 * jnp.finfo(score.dtype).eps, score)


def outlier_dimensions(x: Float[Array, "P D"], quantile: float = DIMENSION_QUANTILE) -> Detection:
    """Dimensions whose usual magnitude is among the largest of all entries.

    score[d] = median_p |x[p, d]| / Q_quantile(|x|), Q over all P D entries;  flagged above 1.

    Half of a flagged dimension's entries are above Q, and only a share 1 - quantile of all entries
    is: at most 2 (1 - quantile) D dimensions are flagged, none where that is below 1. Entries of
    one normal distribution score 0.26 with the quantile 0.99.

    Args:
      x: [P, D], the states after the final norm at P positions: one of each text in the paper.
      quantile: above 0, below 1.

    Returns:
      `Detection` over [D].

    Source: Macocco et al. 2025 (arXiv:2503.21718).
    """
    x = one_widened(x, "P D")
    score = ratio_or_infinity(row_medians(x.T), quantile_magnitude(x, quantile))
    score = jnp.where(jnp.any(jnp.isnan(x)), jnp.nan, score)  # which sorting puts last
    return Detection(score > 1.0, score)


def massive_dimensions(
    h: Float[Array, "T D"],
    value: float = MASSIVE_VALUE,
    ratio: float = MASSIVE_RATIO,
    deviation: float = MASSIVE_DEVIATION,
) -> Detection:
    """Dimensions with an activation that is massive by magnitude, median and deviation.

    score[d] = max_t |h[t, d]| / median |h|;  flagged where one of its entries is a massive
    activation with |h - m| > deviation * median |h - m|, m = median h, medians over all entries.

    Args:
      h: [T, D], a block output of one sequence.
      value, ratio: the thresholds of `massive_activations`.
      deviation: the threshold in median absolute deviations.

    Returns:
      `Detection` over [D].

    Source: Sun et al. 2024 (arXiv:2402.17762), section 2, for the first two.
    """
    massive = massive_activations(h, value, ratio)
    away = jnp.abs(widened(h) - jnp.median(widened(h)))
    flagged = massive.flagged & (away > deviation * median_magnitude(away))
    return Detection(jnp.any(flagged, axis=0), jnp.max(massive.score, axis=0))


def super_experts(
    peak: Float[Array, "L E"], quantile: float = EXPERT_QUANTILE, share: float = EXPERT_SHARE
) -> Detection:
    """Experts of a mixture whose outputs reach further than almost all others' do.

    score[l, e] = a[l, e] / max(Q_quantile(a), share max a), Q over all L E experts;  flagged above
    1. The larger of two different largest experts is above both bounds in any model, so what makes
    it an outlier is how far it stands above the others. Su et al. also ask that massive activations
    form in layer l; that is left out.

    Args:
      peak: [L, E], a: max |output| of each expert over the tokens that go to it; 0 if none does.
      quantile: above 0, below 1.
      share: of the largest output of all.

    Returns:
      `Detection` over [L, E].

    Source: Su et al. 2025 (arXiv:2507.23279).
    """
    size = jnp.abs(one_widened(peak, "L E"))
    bound = jnp.maximum(quantile_magnitude(size, quantile), share * jnp.max(size))
    score = _share(size, bound)
    return Detection(score > 1.0, score)


# ------------------------------------------------- calibrated: a p-value, a null, a rate q


def calibrated_outliers(x: Float[Array, "..."], q: float = FALSE_DISCOVERIES) -> Detection:
    """Entries too large for a normal tensor, with a false discovery rate of q over the tensor.

    p = 2 Phi(-|x|/s), s = median|x| / Phi^-1(3/4);  flagged by `discoveries`;  score = -log10 p.

    Args:
      x: any shape, centred at zero: weights, or activations without a mean.
      q: the expected share of false ones among the flagged, where entries are i.i.d. normal.

    Returns:
      `Detection` in the shape of `x`; nothing is flagged where more than half of `x` is zero.

    Source: the null and its check are E2 of theory/.
    """
    size = jnp.abs(widened(x))
    unit = median_magnitude(size) / jax.scipy.special.ndtri(jnp.asarray(0.75, size.dtype))
    log_p = jnp.log(2.0) + jax.scipy.special.log_ndtr(-ratio_or_zero(size, unit))
    return Detection(discoveries(log_p, q), -log_p / jnp.log(10.0))


def outliers_beside(
    score: Float[Array, "..."], null: Float[Array, "M"], q: float = FALSE_DISCOVERIES
) -> Detection:
    """Scores too large for an empirical null, e.g. the same scores before training.

    p = (1 + #{null >= score}) / (1 + M);  flagged by `discoveries`;  score = -log10 p.

    One of n scores can be flagged only where M >= n/q - 1.

    Args:
      score: any shape, one number for each thing that may be an outlier.
      null: [M], scores of the same kind where there are none.
      q: the false discovery rate.

    Returns:
      `Detection` in the shape of `score`.

    Source: the p-value is that of a Monte Carlo test (Davison & Hinkley 1997, section 4.2).
    """
    score, null = widened(score), widened(null)
    as_large = null.size - jnp.searchsorted(jnp.sort(null), score, side="left")
    log_p = jnp.log1p(as_large.astype(score.dtype)) - jnp.log1p(float(null.size))
    log_p = jnp.where(jnp.isnan(score), score, log_p)  # which is beyond all of the null
    return Detection(discoveries(log_p, q), -log_p / jnp.log(10.0))


def permutation_outliers(
    x: Float[Array, "T D"], key: Array, shuffles: int = SHUFFLES, q: float = FALSE_DISCOVERIES
) -> Detection:
    """Features with more energy than tokens would give them that each chose its own features.

    s_j = mean_t x_tj^2;  null: s_j with the entries of every token shuffled over its features, in
    all features of all shuffles;  `outliers_beside`.

    Large tokens, and a spike in one token, are in the null too: what is flagged is that tokens
    agree on the feature.

    Args:
      x: [T, D], one site of one sequence, or of several one after the other.
      key: of the shuffles.
      shuffles: how many; M = shuffles * D.
      q: the false discovery rate over features.

    Returns:
      `Detection` over [D].
    """
    x = one_widened(x, "T D")
    largest = jnp.max(jnp.abs(x))
    energy = jnp.square(x / jnp.where(largest == 0.0, 1.0, largest))

    def shuffled(key: Array) -> Array:
        rows, columns = energy.shape
        order = shuffled_rows(key, (rows, columns))
        return jnp.mean(jnp.take_along_axis(energy, order, axis=1), axis=0)

    null = jax.lax.map(shuffled, jax.random.split(key, shuffles))
    return outliers_beside(jnp.mean(energy, axis=0), null.ravel(), q)


def ratio_or_zero(numerator: Array, denominator: Array) -> Array:
    """numerator / denominator, and 0 where the denominator is 0: a tensor of zeros has none."""
    denominator = jnp.broadcast_to(denominator, numerator.shape)
    safe = jnp.where(denominator == 0.0, 1.0, denominator)
    return jnp.where(denominator == 0.0, 0.0, numerator / safe)


def _share(size: Array, usual: Array) -> Array:
    """`ratio_or_zero` of a magnitude; infinite where that is."""
    return jnp.where(jnp.isinf(size), jnp.inf, ratio_or_zero(size, usual))


def ratio_or_infinity(numerator: Array, denominator: Array) -> Array:
    """The ratio of two magnitudes: infinite over 0, as a median may be, and 0 of 0 over 0."""
    infinite = (denominator == 0.0) & (numerator > 0.0)
    return jnp.where(infinite, jnp.inf, ratio_or_zero(numerator, denominator))


# --------------------------------------------------------------------------- the list


@dataclass(frozen=True)
class Detector:
    """A detector of activations or attention as a study reports it.

    `fn` sees the value of one tap, layer by layer; with `reduce` it sees that of all layers: what
    `reduce` makes of each, stacked. It flags single things, or entries of which `of` names the
    last axis.
    """

    name: str  # the key in records
    fn: Callable[[Array], Detection]
    tap: str
    of: str  # tokens, keys, channels
    label: str
    reduce: Callable[[Array], Array] | None = None


DETECTORS: tuple[Detector, ...] = (
    Detector(
        "attention_outliers", attention_outliers, "attn_weights", "keys",
        "outlier keys per sequence (An)",
    ),
    Detector(
        "activation_outliers@block_out", activation_outliers, "block_out", "tokens",
        "outlier tokens per sequence, block_out (An)",
    ),
    Detector(
        "activation_outliers@down_in", activation_outliers, "down_in", "tokens",
        "outlier tokens per sequence, down_in (An)",
    ),
    Detector(
        "massive_activations", massive_activations, "block_out", "channels",
        "massive activations per sequence (Sun)",
    ),
    Detector(
        "six_sigma_outliers", six_sigma_outliers, "block_out", "channels",
        "entries beyond 6 sigma per sequence (Bondarenko)",
    ),
    Detector(
        "outlier_features", outlier_features, "attn_norm", "channels",
        "outlier features per sequence (Dettmers)", feature_reach,
    ),
)  # fmt: skip
