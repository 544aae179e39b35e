"""Calibrated outliers: what is too large for a stated null, at a false discovery rate."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sysout_jax.analysis.locate.scan import SITES, Scan, for_length, over_batches
from sysout_jax.analysis.locate.weights import WeightScan
from sysout_jax.core import detectors as d
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, init
from sysout_jax.model.stream import entering, through

UNTRAINED = 4  # initialisations that are the null; each beside the others is its control
# Sequences that each of them reads: 8 leave the mean of a measure uncertain by a tenth at most
# (SmolLM2's architecture, 64 tokens: its sequences differ, its initialisations do not). Those of a
# shallow model read more, so that single keys can be told from the null: 4 x 64 T scores.
LEAST_READ, SCORES_READ = 8, 64
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
    control: float | None  # flagged in a sequence of an untrained model; None: of weights
    places: tuple[tuple[int, int], ...]  # (index, of a channel for entries; sequences)


def untrained(config: ModelConfig, which: int) -> Params:
    """Initial parameters of an architecture: the model at step 0, as far as is known."""
    return init(config, jax.random.key(which))


def read_by(rows: Int[np.ndarray, "B S"], layers: int, which: int) -> Int[np.ndarray, "b S"]:
    """The sequences that untrained model `which` reads: each its own part, all of a few.

    Args:
      rows: [B, S], all sequences.
      layers: L of the architecture.
      which: of the untrained models, from 0.
    """
    count = min(len(rows), max(LEAST_READ, SCORES_READ // layers))
    return np.take(rows, np.arange(which * count, (which + 1) * count), axis=0, mode="wrap")


def calibrated(
    found: Scan,
    untrained_scans: Sequence[Scan],
    states: Float[np.ndarray, "B T D"],
    untrained_states: Float[np.ndarray, "B T D"],
    weights: WeightScan,
) -> tuple[Calibrated, ...]:
    """Beside three nulls: untrained models, shuffled channels, a normal distribution.

    Args:
      found: the scan of the sequences.
      untrained_scans: those of `untrained` models 0 to UNTRAINED - 1, on what they read.
      states: the `outlying_states` of the model.
      untrained_states: those of an untrained one.
      weights: the scan of the parameters.
    """
    null, own = [_scores(each) for each in untrained_scans], _scores(found)
    step0 = tuple(
        _beside_untrained(what, score, [each[what] for each in null]) for what, score in own.items()
    )
    return (*step0, *_of_layer(found, states, untrained_states), _of_weights(weights))


def outlying_states(
    config: ModelConfig, params: Params, tokens: Int[np.ndarray, "B T"], found: Scan, batch: int
) -> Float[np.ndarray, "B T D"]:
    """block_out of the layer whose largest value is most above its mean.

    Args:
      config: the architecture.
      params: its parameters, or those of an untrained model.
      tokens: [B, T], `SHUFFLED` at most.
      found: the scan of the model, which says what layer.
      batch: sequences that are run together.
    """
    layers = range(_outlying(found) + 1)
    config = for_length(config, tokens.shape[1])

    def run(params: Params, tokens: Array) -> Array:
        return through(config, params, entering(config, params, tokens), layers)[0][None]

    states: np.ndarray = over_batches(run, params, tokens, batch)[0]
    return states


def _outlying(found: Scan) -> int:
    site = found.block_out
    return int(np.argmax(site.over_mean(site.top[..., 0]).mean(axis=1)))


def _of_layer(
    found: Scan, states: np.ndarray, untrained_states: np.ndarray
) -> tuple[Calibrated, ...]:
    """Channels beside shuffled ones, and entries beside a normal, in the most outlying layer."""
    count, _, width = states.shape
    flagged, score = jax.device_get(_of_states(jnp.asarray(states)))
    control = jax.device_get(_of_states(jnp.asarray(untrained_states)))[0]
    return tuple(
        _row(
            what, null, _outlying(found), flagged[of], score[of], limit,
            float(control[of].sum() / among),
        )
        for of, what, null, limit, among in (
            (
                "channels",
                f"channels of block_out, {count} sequences together",
                "entries of each token shuffled over its channels",
                float(np.log10(1 + d.SHUFFLES * width)),
                1,
            ),
            ("entries", "entries of block_out", "independent normal entries", None, count),
        )
    )  # fmt: skip


def _scores(found: Scan) -> dict[str, Float[np.ndarray, "L B T"]]:
    """The score of An et al.'s detectors for every token and key."""
    scores = {
        f"tokens of {name}": found.site(name).over_mean(found.site(name).token_peak)
        for name in SITES
    }
    return scores | {"keys of attention": found.attention_score()}


def _beside_untrained(what: str, score: np.ndarray, null: list[np.ndarray]) -> Calibrated:
    # Of all layers together: few sequences of one layer are too few for single discoveries.
    pooled = np.concatenate([each.ravel() for each in null])
    flagged, evidence = jax.device_get(_beside(jnp.asarray(score), jnp.asarray(pooled)))
    false = [
        jax.device_get(_beside(jnp.asarray(each), jnp.asarray(_others(null, which))))[0]
        for which, each in enumerate(null)
    ]
    most, largest = flagged.sum(axis=(1, 2)), evidence.max(axis=2).mean(axis=1)
    layer = int(np.lexsort((largest, most))[-1])  # of ties the one with the largest score
    return _row(
        what, f"the same scores in {len(null)} untrained models", layer, flagged[layer],
        evidence[layer], float(np.log10(1 + pooled.size)),
        float(np.sum(false, axis=-1).mean(axis=(0, 2)).max()),
    )  # fmt: skip


def _others(null: list[np.ndarray], which: int) -> np.ndarray:
    return np.concatenate([each.ravel() for i, each in enumerate(null) if i != which])


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
