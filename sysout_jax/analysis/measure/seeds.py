"""Whether models that differ in their seed alone have their outliers at the same places."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from jaxtyping import Array, Bool, Int

from sysout_jax.analysis.locate.relations import Relation, relate
from sysout_jax.analysis.locate.scan import DETECTORS, SITES, Progress, Scan, Thresholds, scan
from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params

LARGEST = 5  # channels and neurons that count as the largest, flagged or not
FEATURES = {"block_out": "channels", "down_in": "neurons"}


@dataclass(frozen=True)
class Seeds:
    """Every pair of seeds compared: rows whose "sequences" are pairs.

    A pair is compared once, in the order of the seeds: Jaccard does not depend on it. Pairs share
    seeds, so their interval and p-value are no more than a guide.
    """

    seeds: tuple[int, ...]
    rows: tuple[Relation, ...]


def across_seeds(
    config: ModelConfig,
    models: Iterable[tuple[int, Params]],
    tokens: Int[Array | np.ndarray, "B T"],
    thresholds: Thresholds | None = None,
    batch: int = 8,
    progress: Progress | None = None,
    total: int = 0,
) -> Seeds:
    """Compare the coordinates of outliers between the seeds of one run.

    Args:
      config: the architecture.
      models: (seed, parameters); read one at a time.
      tokens: [B, T], the same for every seed.
      thresholds: of the detectors; None for those of their papers.
      batch: sequences that are run together.
      progress: called with the seeds done and their number.
      total: the number of seeds, for `progress`.

    Raises:
      InputError: there are fewer than two seeds.
    """
    seeds, sets = [], []
    for seed, params in models:
        sets.append(coordinates(scan(config, params, np.asarray(tokens), thresholds, batch)))
        seeds.append(seed)
        if progress:
            progress(len(seeds), max(total, len(seeds)))
    if len(seeds) < 2:
        raise InputError("seeds", None, "a run with at least 2", f"{len(seeds)} of them")
    pairs = list(combinations(sets, 2))
    rows = []
    for what, on in sets[0]:
        one, other = (np.stack([pair[side][what, on] for pair in pairs]) for side in (0, 1))
        rows.append(relate((what, "another seed", on), one, other))
    return Seeds(tuple(seeds), tuple(rows))


def coordinates(found: Scan) -> dict[tuple[str, str], Bool[np.ndarray, "items"]]:
    """The places of outliers in a scan: (flagged or largest, what the items are) -> which.

    Flagged is what any detector of activations or attention flags, anywhere; the largest are the
    token with the largest activation of each sequence, the five channels and neurons with the
    largest peaks, and the layer, each where the site's max/mean is largest.
    """
    ratio = {name: found.site(name).over_mean(found.site(name).top[..., 0]) for name in SITES}
    layers = {name: int(np.argmax(ratio[name].mean(axis=1))) for name in SITES}
    peaks = found.block_out.token_peak[layers["block_out"]]
    heaviest = peaks == peaks.max(axis=1, keepdims=True)
    flagged_layers: Any = found.attention_flagged().any(axis=(1, 2))
    features = {name: np.zeros(found.site(name).feature_peak.shape[-1], bool) for name in SITES}
    for detector in DETECTORS:
        limit = detector.threshold(found)[..., None]
        above = found.site(detector.site).feature_peak > limit
        features[detector.site] |= above.any(axis=(0, 1))
        flagged_layers |= above.any(axis=(1, 2))
    sets = {
        ("flagged", "tokens"): found.outlier_tokens().ravel(),
        ("flagged", "layers"): flagged_layers,
        ("largest", "tokens"): heaviest.ravel(),
        ("largest", "layers"): np.arange(len(flagged_layers)) == layers["block_out"],
    }
    for name, items in FEATURES.items():
        sets["flagged", items] = features[name]
        peak = found.site(name).feature_peak[layers[name]].mean(axis=0)
        largest = np.zeros(len(peak), bool)
        largest[np.argsort(-peak, kind="stable")[:LARGEST]] = True
        sets["largest", items] = largest
    return sets
