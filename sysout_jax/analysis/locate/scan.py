"""One pass over the sequences that finds outliers of all kinds; every analysis starts from it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from sysout_jax.analysis.locate import expert_neurons
from sysout_jax.core import detectors as d
from sysout_jax.core import measures as m
from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.ordering import first_largest, median_magnitude
from sysout_jax.core.streaming import attention_received
from sysout_jax.core.variants import kept
from sysout_jax.errors import InputError, finite
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params
from sysout_jax.model.stream import recorded
from sysout_jax.model.taps import Reducer

SITES = ("block_out", "down_in")
EXPERT_OUT = "experts+expert_out"  # of mixtures
TOP = 3  # the largest values that are kept of a site
QUERIES_AT_ONCE = 1024  # longer sequences are attended in blocks
QUERY_BLOCK = 128
QUERY_BLOCK_CPU = 32  # 0.6 of the time of 128: its maps are still in a cache when they are read
MAPS_AT_ONCE_CPU = 256  # from 512 on blocks take 0.8 of the time, where maps are read
Progress = Callable[[int, int], None]  # (sequences done, sequences in all)


@dataclass(frozen=True)
class Thresholds:
    """When a detector flags.

    Raises:
      InputError: a threshold is not above zero, or not finite; a quantile is not below 1.
    """

    activation_ratio: float = d.ACTIVATION_RATIO  # max|h[t]| over mean|h| (An et al. 2025)
    massive_value: float = d.MASSIVE_VALUE  # |h| (Sun et al. 2024)
    massive_ratio: float = d.MASSIVE_RATIO  # |h| over median|h| (Sun et al. 2024)
    attention_share: float = d.ATTENTION_SHARE  # of all attention, to a key (An et al. 2025)
    attention_excess: float = d.ATTENTION_EXCESS  # that share over uniform attention's
    weight_ratio: float = d.WEIGHT_RATIO  # |W| over mean|W| (An et al. 2025)
    dimension_quantile: float = d.DIMENSION_QUANTILE  # of |x| after the final norm (Macocco 2025)
    expert_quantile: float = d.EXPERT_QUANTILE  # of all experts' max|output| (Su et al. 2025)
    expert_share: float = d.EXPERT_SHARE  # of the largest expert's max|output| (Su et al. 2025)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            finite(name, value)
        for name in ("dimension_quantile", "expert_quantile"):
            if getattr(self, name) >= 1:
                raise InputError(name, getattr(self, name), "a number above 0, below 1")


@dataclass(frozen=True)
class Site:
    """Magnitudes at one place of the decoder: L layers, B sequences, T tokens, C features.

    Features of down_in are the neurons of all experts; means and medians are over the values that
    are there, those of the experts that tokens go to.
    """

    mean: np.ndarray  # [L, B], mean |h|
    median: np.ndarray  # [L, B], median |h|
    top: np.ndarray  # [L, B, 3], the three largest |h|
    token_peak: np.ndarray  # [L, B, T], max_j |h[t, j]|
    token_feature: np.ndarray  # [L, B, T], its argmax
    feature_peak: np.ndarray  # [L, B, C], max_t |h[t, j]|

    def over_mean(self, size: np.ndarray) -> np.ndarray:
        """Magnitudes [L, B, ...] over `mean`; 0 where that is 0: a layer of zeros is no peak."""
        mean = self.mean.reshape(*self.mean.shape, *(1,) * (size.ndim - 2))
        return np.divide(size, mean, out=np.zeros_like(size), where=mean > 0)


@dataclass(frozen=True)
class Scan:
    """What all sequences show: activations at two sites, and attention."""

    block_out: Site  # C = D channels of the residual stream
    down_in: Site  # C neurons, numbered as in analysis/locate/expert_neurons.py
    received: np.ndarray  # [L, B, N, S], share of all queries' attention that each key receives
    first_own: np.ndarray  # [L, B, N], attention that the first query gives its own key
    thresholds: Thresholds
    uniform: np.ndarray  # [L, S], what uniform attention would give, in the layer's window
    expert_peak: np.ndarray | None = None  # [L, B, E], of mixtures: max |output| of each expert

    def site(self, name: str) -> Site:
        """The site of that tap."""
        return {"block_out": self.block_out, "down_in": self.down_in}[name]

    def attention_score(self) -> np.ndarray:
        """[L, B, S]: the share of attention that each key receives, mean over heads."""
        return self.received.mean(axis=2)

    def attention_flagged(self) -> np.ndarray:
        """[L, B, S]: keys that receive the share of An et al. 2025, and more than uniformly."""
        score, limits = self.attention_score(), self.thresholds
        enough = score >= limits.attention_share
        return enough & (score > limits.attention_excess * self.uniform[:, None])

    def tokens_above(self, detector: "Detector") -> np.ndarray:
        """[L, B, T]: tokens with an entry that a detector of activations flags."""
        return self.site(detector.site).token_peak > detector.threshold(self)[..., None]

    def outlier_tokens(self) -> np.ndarray:
        """[B, T]: the union over layers of what any detector of activations or attention flags."""
        activations = [self.tokens_above(detector).any(axis=0) for detector in DETECTORS]
        return np.any([*activations, self.attention_flagged().any(axis=0)], axis=0)


@dataclass(frozen=True)
class Detector:
    """A detector of activations: entries above a threshold that each sequence sets itself."""

    name: str
    site: str
    threshold: Callable[[Scan], np.ndarray]  # -> [L, B]; entries with |h| above it are flagged


def _an(site: str, scan: Scan) -> np.ndarray:
    return scan.thresholds.activation_ratio * scan.site(site).mean


def _sun(scan: Scan) -> np.ndarray:
    limits = scan.thresholds
    return np.maximum(limits.massive_value, limits.massive_ratio * scan.block_out.median)


DETECTORS: tuple[Detector, ...] = (
    Detector("an_block_out", "block_out", partial(_an, "block_out")),  # An et al. 2025
    Detector("an_down_in", "down_in", partial(_an, "down_in")),
    Detector("sun", "block_out", _sun),  # Sun et al. 2024
)


def for_length(
    config: ModelConfig, length: int, maps: bool = False, platform: str | None = None
) -> ModelConfig:
    """The config that runs a sequence of that length in bounded memory.

    Args:
      config: the architecture.
      length: T.
      maps: whether attention's maps are read: on a CPU it pays sooner to compute them in blocks.
      platform: what runs it, "cpu" or another; None for this process's devices.
    """
    cpu = (platform or jax.default_backend()) == "cpu"
    at_once = min(QUERIES_AT_ONCE, MAPS_AT_ONCE_CPU if cpu and maps else QUERIES_AT_ONCE)
    if length <= at_once or config.execution.query_block is not None:
        return config
    block = QUERY_BLOCK_CPU if cpu else QUERY_BLOCK
    return config.with_execution(query_block=block, flash=False)


def whole_maps(length: int) -> None:
    """Refuse sequences too long for attention's maps to be held whole.

    Raises:
      InputError: more than `QUERIES_AT_ONCE` tokens.
    """
    if length > QUERIES_AT_ONCE:
        raise InputError("seq_len", length, f"at most {QUERIES_AT_ONCE}")


def default_batch_size(length: int) -> int:
    """How many sequences of a length are run together, if nothing is said.

    On a CPU as many as make 512 tokens, so that one layer's values stay in its caches: 1 sequence
    of 512 takes less time than 8 at once and an eighth of the memory. Elsewhere 8.
    """
    if length > QUERIES_AT_ONCE:
        return 1
    return max(1, min(8, 512 // length)) if jax.default_backend() == "cpu" else 8


def scan(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array | np.ndarray, "B T"],
    thresholds: Thresholds | None = None,
    batch: int = 8,
    progress: Progress | None = None,
) -> Scan:
    """Measure magnitudes and attention of every layer and sequence.

    Args:
      config: the architecture.
      params: its parameters.
      tokens: [B, T]; from T = 1025 on, attention is computed in blocks of queries.
      thresholds: of the detectors; None for those of their papers.
      batch: sequences that are run together.
      progress: called with the sequences done and the sequences in all.

    Raises:
      InputError: T is below 2, so there is no rest to compare a token with; or activations are
        not finite.
    """
    length = tokens.shape[1]
    if length < 2:
        raise InputError(f"sequences of {length} token", accepted="at least 2 tokens")
    run = partial(one_pass, for_length(config, length, maps=True))
    return as_scan(config, over_batches(run, params, tokens, batch, progress), thresholds)


def as_scan(
    config: ModelConfig, taps: Mapping[str, Any], thresholds: Thresholds | None = None
) -> Scan:
    """The scan of what `one_pass` returned, of all sequences.

    Raises:
      InputError: activations are not finite.
    """
    for name in SITES:
        broken = ~np.isfinite(taps[name]["mean"]).all(axis=1)
        if broken.any():
            raise InputError(
                f"{name} of layer {int(np.argmax(broken))}",
                None,
                "a model whose activations are finite (training may have diverged)",
                "not finite",
            )
    received = taps["attn_weights"]["received"]
    windows = [config.window_of(layer) for layer in range(config.layers)]
    uniform = {window: m.uniform_share(received.shape[-1], window) for window in set(windows)}
    return Scan(
        Site(**taps["block_out"]),
        Site(**taps["down_in"]),
        received,
        taps["attn_weights"]["first_own"],
        thresholds or Thresholds(),
        np.stack([uniform[window] for window in windows]),
        taps[EXPERT_OUT]["peak"] if EXPERT_OUT in taps else None,
    )


def over_batches(
    run: Callable[..., Any],
    params: Params,
    tokens: Array | np.ndarray,
    batch: int,
    progress: Progress | None = None,
    *others: np.ndarray,
) -> Any:
    """Run `run(params, tokens, *others)` on a few sequences at a time; join its [L, B, ...] trees.

    Args:
      others: more arrays with an entry for each sequence.
    """
    parts = []
    for first in range(0, len(tokens), batch):
        rows = slice(first, first + batch)
        parts.append(
            jax.device_get(run(params, *(jnp.asarray(x[rows]) for x in (tokens, *others))))
        )
        if progress:
            progress(min(first + batch, len(tokens)), len(tokens))
    return jax.tree.map(lambda *x: np.concatenate(x, axis=1), *parts)


def one_pass(config: ModelConfig, params: Params, tokens: Array) -> dict[str, Any]:
    """What a batch of sequences shows, as arrays: the fields of a `Scan` by tap."""
    records = recorded(config, params, tokens, reducers(config))
    return expert_neurons.by_tap(config, records)


@kept
def reducers(config: ModelConfig) -> Mapping[str, Reducer]:
    """The taps of a scan."""
    taps: dict[str, Reducer] = {
        "attn_weights": attention_received(VARIANTS[config.variant].normalised),
        "block_out": _magnitudes,
        expert_neurons.key(config, "down_in"): _of_experts(config.experts),
    }
    if config.experts:
        taps[EXPERT_OUT] = lambda of, out: {"peak": m.expert_peaks(of, out, config.experts)}
    return taps


def _magnitudes(h: Array) -> dict[str, Array]:
    """The fields of a Site, of one sequence."""
    h = h.astype(jnp.float32)
    size = jnp.abs(h)
    token_peak = jnp.max(size, axis=-1)
    return {
        "mean": jnp.mean(size),
        "median": median_magnitude(h),
        "top": _top(size, token_peak),
        "token_peak": token_peak,
        "token_feature": first_largest(size),
        "feature_peak": jnp.max(size, axis=0),
    }


@cache  # as what is `kept`
def _of_experts(count: int) -> Callable[..., dict[str, Array]]:
    """The reducer of down_in, with the neurons of that many experts apart."""

    def reduce(experts: Array, h: Array) -> dict[str, Array]:
        found, width = _magnitudes(h), h.shape[1] // experts.shape[1]
        return found | {
            "token_feature": expert_neurons.neuron_at(experts, found["token_feature"], width),
            "feature_peak": expert_neurons.peaks(experts, jnp.abs(h.astype(jnp.float32)), count),
        }

    return reduce if count else _magnitudes


def _top(size: Array, token_peak: Array) -> Array:
    """The three largest entries, which are in the tokens with the largest peaks."""
    few = min(TOP, len(token_peak))
    rows = size[jax.lax.top_k(token_peak, few)[1]]
    found = jax.lax.top_k(rows.ravel(), min(TOP, rows.size))[0]
    return jnp.pad(found, (0, TOP - found.size))
