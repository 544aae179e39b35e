"""Where outliers sit over many sequences: by layer, by token, by feature, by head."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, Int

from sysout_jax.analysis.locate.scan import DETECTORS, SITES, Progress, Scan, Thresholds, scan
from sysout_jax.analysis.locate.super_experts import SuperExperts, super_experts
from sysout_jax.analysis.locate.tokens import NAMES, token_classes
from sysout_jax.analysis.locate.weights import WeightScan, weight_scan
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params

LISTED = 5  # features by layer, and outlier tokens


@dataclass(frozen=True)
class SiteByLayer:
    """Magnitudes at one site, averaged over sequences."""

    top: np.ndarray  # [L, 3], the three largest |h|
    median: np.ndarray  # [L], median |h|
    features: np.ndarray  # [L, k], the features with the largest peaks, in order
    over_median: (
        np.ndarray
    )  # [L, k], their mean peak over the median magnitude; NaN where that is 0
    frequency: np.ndarray  # [L, k], share of sequences in which the feature has the largest peak


@dataclass(frozen=True)
class Kind:
    """The tokens that one kind of detector flags, over all sequences."""

    flagged: int
    sequences: int  # in which anything is flagged
    classes: np.ndarray  # [class], of the flagged tokens
    layers: np.ndarray  # [L], mean number of flagged tokens in a sequence
    tokens: tuple[tuple[int, int], ...]  # (id, how often it is flagged), most frequent first
    positions: tuple[tuple[int, int], ...]  # (position, how often), most frequent first


@dataclass(frozen=True)
class Positions:
    """Where the outliers of many sequences sit."""

    sequences: int
    length: int
    sites: dict[str, SiteByLayer]  # block_out, down_in
    attention: dict[str, np.ndarray]  # [L]: top1, top2, median share that a key receives
    weights: WeightScan
    class_names: tuple[str, ...]
    base_rate: np.ndarray  # [class], of all tokens
    kinds: dict[str, Kind]  # the detectors of activations, and attention
    heads: np.ndarray  # [L, N], share of attention on `heads_of`, mean over queries and sequences
    heads_of: str  # "outlier tokens", or "the first token" where no sequence has any
    experts: SuperExperts | None  # of mixtures


def positions(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array | np.ndarray, "B T"],
    text: Callable[[list[int]], str] | None = None,
    thresholds: Thresholds | None = None,
    found: Scan | None = None,
    weights: WeightScan | None = None,
    batch: int = 8,
    progress: Progress | None = None,
) -> Positions:
    """Locate the outliers of many sequences.

    Args:
      config: the architecture.
      params: its parameters.
      tokens: [B, T].
      text: decodes ids, for the classes of tokens; None where ids stand for no text.
      thresholds: of the detectors; None for those of their papers.
      found: the scan of the same tokens, if there is one.
      weights: the scan of the parameters, if there is one.
      batch: sequences that are run together.
      progress: called with the sequences done and the sequences in all.
    """
    tokens = np.asarray(tokens)
    found = found or scan(config, params, tokens, thresholds, batch, progress)
    classes = token_classes(tokens, text)
    kinds = {detector.name: found.tokens_above(detector) for detector in DETECTORS}
    kinds["an_attention"] = found.attention_flagged()
    score = np.sort(found.attention_score(), axis=-1)
    outliers = found.outlier_tokens()
    some = outliers.any(axis=1)
    chosen = outliers if some.any() else np.arange(tokens.shape[1])[None] == np.zeros_like(tokens)
    rows = some if some.any() else np.ones_like(some)
    on_outliers = np.sum(found.received * chosen[None, :, None, :], axis=-1)  # [L, B, N]
    return Positions(
        tokens.shape[0],
        tokens.shape[1],
        {name: _by_layer(found, name) for name in SITES},
        {
            "top1": score[..., -1].mean(axis=1),
            "top2": score[..., -2].mean(axis=1),
            "median": np.median(score, axis=-1).mean(axis=1),
        },
        weights or weight_scan(params, found.thresholds.weight_ratio),
        NAMES,
        np.bincount(classes.ravel(), minlength=len(NAMES)) / classes.size,
        {name: _kind(flags, tokens, classes) for name, flags in kinds.items()},
        on_outliers[:, rows].mean(axis=1),
        "outlier tokens" if some.any() else "the first token",
        None if found.expert_peak is None else super_experts(found.expert_peak, found.thresholds),
    )


def _by_layer(found: Scan, name: str) -> SiteByLayer:
    site = found.site(name)
    peaks = site.feature_peak.mean(axis=1)  # [L, C]
    k = min(LISTED, peaks.shape[1])
    features = np.argsort(-peaks, axis=1, kind="stable")[:, :k]
    median = site.median.mean(axis=1)
    largest = np.argmax(site.feature_peak, axis=-1)  # [L, B]
    return SiteByLayer(
        site.top.mean(axis=1),
        median,
        features,
        # of nothing where more than half of the site is zero, as after a ReLU
        np.take_along_axis(peaks, features, axis=1)
        / np.where(median == 0.0, np.nan, median)[:, None],
        np.mean(largest[:, None, :] == features[:, :, None], axis=-1),
    )


def _kind(flags: np.ndarray, tokens: np.ndarray, classes: np.ndarray) -> Kind:
    """What a detector flags: flags [L, B, T]."""
    anywhere: Any = flags.any(axis=0)
    return Kind(
        int(anywhere.sum()),
        int(anywhere.any(axis=1).sum()),
        np.bincount(classes[anywhere], minlength=len(NAMES)),
        flags.sum(axis=-1).mean(axis=-1),
        _most_frequent(tokens[anywhere]),
        _most_frequent(np.nonzero(anywhere)[1]),
    )


def _most_frequent(values: np.ndarray) -> tuple[tuple[int, int], ...]:
    found, counts = np.unique(values, return_counts=True)
    order = np.argsort(-counts, kind="stable")[:LISTED]
    return tuple((int(found[i]), int(counts[i])) for i in order)
