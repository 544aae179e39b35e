"""Calibrated outliers: what is too large for a stated null, at a false discovery rate."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sysout_jax.analysis.locate.scan import SITES, Scan, over_batches, scan
from sysout_jax.analysis.locate.weights import WeightScan
from sysout_jax.core import detectors as d
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, init
from sysout_jax.model.stream import recorded

UNTRAINED = 4  # initialisations that are the null; another one is its control
SHUFFLED = 8  # sequences whose channels are shuffled together: sorting is slow
LISTED = 5


@dataclass(frozen=True)
class Calibrated:
    """What is flagged beside one null at q = 0.01, in the layer where most is."""

    what: str  # of which site, and what may be flagged in it
    null: str
    layer: int
    flagged: float  # in a sequence, mean; in the matrix
    sequences: int  # in which anything is flagged; of weights, matrices
    of: int  # sequences, or matrices, in all
    evidence: float  # -log10 p of the largest, median over sequences
    limit: float | None  # the largest value that the null can give; None: no end
    control: float | None  # flagged in a sequence of another untrained model; None: of weights
    places: tuple[tuple[int, int], ...]  # (index, of a channel for entries; sequences)


def untrained(config: ModelConfig, which: int) -> Params:
    """Initial parameters of an architecture: the model at step 0, as far as is known."""
    return init(config, jax.random.key(which))


def calibrated(
    config: ModelConfig,
    params: Params,
    tokens: np.ndarray,
    found: Scan,
    untrained_scans: Sequence[Scan],
    weights: WeightScan,
    batch: int,
) -> tuple[Calibrated, ...]:
    """Beside three nulls: untrained models, shuffled channels, a normal distribution.

    Args:
      config: the architecture.
      params: its parameters.
      tokens: [B, T].
      found: the scan of the same tokens.
      untrained_scans: those of `untrained` models 0 to UNTRAINED - 1.
      weights: the scan of the parameters.
      batch: sequences that are run together.
    """
    other = untrained(config, UNTRAINED)
    null = [_scores(each) for each in untrained_scans]
    own, control = _scores(found), _scores(scan(config, other, tokens, found.thresholds, batch))
    step0 = tuple(
        _beside_untrained(what, own[what], [each[what] for each in null], control[what])
        for what in own
    )
    of_layer = _of_layer(config, params, other, tokens, found, batch)
    return (*step0, *of_layer, _of_weights(weights))


def _of_layer(
    config: ModelConfig, params: Params, other: Params, tokens: np.ndarray, found: Scan, batch: int
) -> tuple[Calibrated, ...]:
    """Channels beside shuffled ones, and entries beside a normal, in the most outlying layer."""
    site = found.block_out
    layer = int(np.argmax(site.over_mean(site.top[..., 0]).mean(axis=1)))
    some = tokens[:SHUFFLED]

    def run(params: Params) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        states = over_batches(partial(_states, config), params, some, batch)["block_out"]
        return jax.device_get(_of_states(jnp.asarray(states[layer])))

    flagged, score = run(params)
    control = run(other)[0]
    return tuple(
        _row(what, null, layer, flagged[of], score[of], limit, float(control[of].sum() / among))
        for of, what, null, limit, among in (
            (
                "channels",
                f"channels of block_out, {len(some)} sequences together",
                "entries of each token shuffled over its channels",
                float(np.log10(1 + d.SHUFFLES * config.width)),
                1,
            ),
            ("entries", "entries of block_out", "independent normal entries", None, len(some)),
        )
    )


def _scores(found: Scan) -> dict[str, Float[np.ndarray, "L B T"]]:
    """The score of An et al.'s detectors for every token and key."""
    scores = {
        f"tokens of {name}": found.site(name).over_mean(found.site(name).token_peak)
        for name in SITES
    }
    return scores | {"keys of attention": found.attention_score()}


def _beside_untrained(
    what: str, score: np.ndarray, null: list[np.ndarray], control: np.ndarray
) -> Calibrated:
    # Of all layers together: few sequences of one layer are too few for single discoveries.
    pooled = np.concatenate([each.ravel() for each in null])
    flagged, evidence = jax.device_get(_beside(jnp.asarray(score), jnp.asarray(pooled)))
    false, _ = jax.device_get(_beside(jnp.asarray(control), jnp.asarray(pooled)))
    most, largest = flagged.sum(axis=(1, 2)), evidence.max(axis=2).mean(axis=1)
    layer = int(np.lexsort((largest, most))[-1])  # of ties the one with the largest score
    return _row(
        what, f"the same scores in {len(null)} untrained models", layer, flagged[layer],
        evidence[layer], float(np.log10(1 + pooled.size)),
        float(false.sum(axis=-1).mean(axis=1).max()),
    )  # fmt: skip


def _row(
    what: str, null: str, layer: int, flagged: np.ndarray, score: np.ndarray,
    limit: float | None, control: float | None,
) -> Calibrated:  # fmt: skip
    sequences = (flagged.any(axis=1) if flagged.ndim == 3 else flagged).sum(axis=0)
    flagged, score = (x.reshape(len(x), -1) for x in (flagged, score))
    order = np.argsort(-sequences, kind="stable")[:LISTED]
    return Calibrated(
        what, null, layer, float(flagged.sum(axis=1).mean()), int(flagged.any(axis=1).sum()),
        len(flagged), float(np.median(score.max(axis=1))), limit, control,
        tuple((int(i), int(sequences[i])) for i in order if sequences[i]),
    )  # fmt: skip


def _of_weights(weights: WeightScan) -> Calibrated:
    layer, at = np.unravel_index(np.argmax(weights.calibrated), weights.calibrated.shape)
    return Calibrated(
        f"entries of {weights.matrices[at]}", "independent normal entries", int(layer),
        float(weights.calibrated[layer, at]), int((weights.calibrated > 0).sum()),
        weights.calibrated.size, float(weights.evidence[layer, at]), None, None, (),
    )  # fmt: skip


@jax.jit
def _beside(score: Float[Array, "L B T"], null: Float[Array, "M"]) -> d.Detection:
    """Each sequence of each layer by itself against one null."""
    return jax.vmap(jax.vmap(lambda x: d.outliers_beside(x, null)))(score)


def _states(config: ModelConfig, params: Params, tokens: Array) -> dict[str, Array]:
    return recorded(config, params, tokens, {"block_out": None})


@jax.jit
def _of_states(h: Float[Array, "B T D"]) -> tuple[dict[str, Array], dict[str, Array]]:
    """Flags and scores: [1, D] channels by permutation, [B, T, D] entries beside a normal."""
    h = h.astype(jnp.float32)
    channels = d.permutation_outliers(h.reshape(-1, h.shape[-1]), jax.random.key(0))
    entries = jax.vmap(d.calibrated_outliers)(h)
    return (
        {"channels": channels.flagged[None], "entries": entries.flagged},
        {"channels": channels.score[None], "entries": entries.score},
    )
