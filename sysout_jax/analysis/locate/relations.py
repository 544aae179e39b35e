"""How the three kinds of outliers coincide: the paper's Table 1, with intervals and a null."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Array, Int

from sysout_jax.analysis.locate.scan import DETECTORS, Progress, Scan, Thresholds, scan
from sysout_jax.analysis.locate.weights import WeightScan, down_outliers, weight_scan
from sysout_jax.analysis.statistics import Interval, bootstrap_interval
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params

DRAWS = 2000  # of the permutation null


@dataclass(frozen=True)
class Relation:
    """Do outliers of kind A sit where those of kind B sit?

    Averages are over the sequences in which they are defined: precision |A and B|/|A| where A is
    not empty, recall |A and B|/|B| where B is not, Jaccard |A and B|/|A or B| where either is not.
    """

    given: str  # A
    found: str  # B
    on: str  # what is compared: tokens, channels or neurons, of `items`
    items: int
    sequences: int  # in which both are found
    mean_given: float  # |A|
    mean_found: float  # |B|
    precision: Interval
    recall: Interval
    jaccard: Interval
    null_precision: float  # the same set sizes at shuffled positions, mean
    null_jaccard: float
    p_value: float  # share of shuffles with as many coincidences; NaN where no sequence has both


@dataclass(frozen=True)
class Relations:
    """The relations of the paper's Table 1, and the one of neurons."""

    rows: tuple[Relation, ...]


def relations(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array | np.ndarray, "B T"],
    thresholds: Thresholds | None = None,
    found: Scan | None = None,
    weights: WeightScan | None = None,
    batch: int = 8,
    progress: Progress | None = None,
) -> Relations:
    """Compare where weight, activation and attention outliers are, sequence by sequence.

    A set is the union over layers of what An et al.'s detectors flag; channels and neurons with a
    weight outlier are the same in every sequence.

    Args:
      config: the architecture.
      params: its parameters.
      tokens: [B, T].
      thresholds: of the detectors; None for those of their papers.
      found: the scan of the same tokens, if there is one.
      weights: the scan of the parameters, if there is one.
      batch: sequences that are run together.
      progress: called with the sequences done and the sequences in all.
    """
    found = found or scan(config, params, tokens, thresholds, batch, progress)
    flags: dict[tuple[str, str], Any] = {}
    for detector in DETECTORS:
        if detector.name.startswith("an_"):
            site, limit = found.site(detector.site), detector.threshold(found)[..., None]
            flags[detector.site, "tokens"] = found.tokens_above(detector).any(axis=0)
            flags[detector.site, "features"] = (site.feature_peak > limit).any(axis=0)
    weights = weights or weight_scan(params, found.thresholds.weight_ratio)
    places = down_outliers(params, weights, found.thresholds.weight_ratio)
    of_neurons, of_channels = ([place[axis] for place in places] for axis in (1, 2))
    channels, neurons = (flags[name, "features"] for name in ("block_out", "down_in"))
    attention: Any = found.attention_flagged().any(axis=0)
    down_in, block_out = (flags[name, "tokens"] for name in ("down_in", "block_out"))
    return Relations(
        (
            relate(
                ("weights", "activations", "channels"), _at(of_channels, channels.shape), channels
            ),
            relate(("weights", "down_in", "neurons"), _at(of_neurons, neurons.shape), neurons),
            relate(("down_in", "activations", "tokens"), down_in, block_out),
            relate(("activations", "attention", "tokens"), block_out, attention),
        )
    )  # fmt: skip


def _at(items: list[int], shape: tuple[int, ...]) -> np.ndarray:
    """The same items of every sequence."""
    flags = np.zeros(shape, bool)
    flags[:, items] = True
    return flags


def relate(names: tuple[str, str, str], given: np.ndarray, found: np.ndarray) -> Relation:
    """Precision, recall and Jaccard of two families of sets, beside a permutation null.

    Under the null the places of A are other places, drawn at random: of one sequence a subset of
    the same size, so that the number in B is hypergeometric. Sequences share their places (the
    first token, a channel of the weights), so that for the p-value one draw moves those of all
    sequences together: a place that is the same in each is one observation, not B of them.

    Args:
      names: of A, of B, and of what the items are.
      given: bool [B, items], A of each sequence.
      found: bool [B, items], B of each sequence.
    """
    a, b, both = (x.sum(axis=1) for x in (given, found, given & found))
    either, items = a + b - both, given.shape[1]
    rng = np.random.default_rng(0)
    shuffled = rng.hypergeometric(b, items - b, a, (DRAWS, len(a)))
    defined = bool(((a > 0) & (b > 0)).any())
    used, hit = (np.flatnonzero(x.any(axis=0)) for x in (given, found))
    together = np.zeros((len(used), items), np.int64)
    together[:, hit] = given[:, used].astype(np.int64).T @ found[:, hit]
    moved = (together[range(len(used)), rng.permutation(items)[: len(used)]] for _ in range(DRAWS))
    # One is added on both sides: the observed arrangement is one of those that could be drawn.
    p = (1 + sum(one.sum() >= both.sum() for one in moved)) / (1 + DRAWS)
    with np.errstate(invalid="ignore"):
        null_precision = np.nanmean(shuffled[:, a > 0] / a[a > 0]) if (a > 0).any() else np.nan
        null_either = a + b - shuffled
        null = shuffled[:, either > 0] / null_either[:, either > 0]
    return Relation(
        *names, items, int(((a > 0) & (b > 0)).sum()), float(a.mean()), float(b.mean()),
        bootstrap_interval(both[a > 0] / a[a > 0]),
        bootstrap_interval(both[b > 0] / b[b > 0]),
        bootstrap_interval(both[either > 0] / either[either > 0]),
        float(null_precision),
        float(null.mean()) if null.size else float("nan"),
        float(p) if defined else float("nan"),
    )  # fmt: skip
