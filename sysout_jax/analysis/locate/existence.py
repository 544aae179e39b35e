"""Where the outliers of one prompt are: layers, tokens, channels and neurons, found and drawn."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sysout_jax.analysis.locate import expert_neurons
from sysout_jax.analysis.locate.scan import DETECTORS, Scan, Thresholds, scan
from sysout_jax.analysis.locate.weights import WeightScan, layer_params, projection, weight_scan
from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.measures import rows_to_one
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params
from sysout_jax.model.stream import recorded

BINS = 128  # a figure's columns; more features are drawn as the largest of neighbours


@dataclass(frozen=True)
class Panel:
    """Magnitudes as a figure shows them."""

    title: str
    layer: int
    values: np.ndarray  # [rows, columns], magnitudes
    axes: tuple[str, str]  # what rows and columns are
    features: int  # columns before neighbours were joined
    rows: int  # rows before neighbours were joined
    marks: tuple[tuple[int, int], ...] = ()  # (row, feature) of outliers, to be labelled
    experts: int = 0  # whose neurons are shown one after the other; 0: there are none


@dataclass(frozen=True)
class Flagged:
    """What one detector finds."""

    detector: str
    layers: tuple[int, ...]
    tokens: tuple[int, ...]  # positions
    features: tuple[int, ...]  # channels or neurons; empty for attention
    largest: float  # the largest value over the detector's threshold, flagged or not


@dataclass(frozen=True)
class Existence:
    """The outliers of one prompt."""

    tokens: np.ndarray  # [T] ids
    panels: tuple[Panel, ...]  # down_in, W_down, block_out, attention: the paper's Figure 1
    found: tuple[Flagged, ...]
    weights: WeightScan

    @property
    def any(self) -> bool:
        """Whether a detector of activations, attention or weights found anything."""
        return bool(self.weights.outliers) or any(flagged.layers for flagged in self.found)


def existence(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array | np.ndarray, "T"],
    thresholds: Thresholds | None = None,
    weights: WeightScan | None = None,
) -> Existence:
    """Find the outliers of a prompt, and the layer that shows each kind best.

    The layer of an activation panel is the one with the largest max/mean magnitude, that of W_down
    is the one of down_in (whose output it writes), that of attention the one whose strongest key
    receives most.

    Args:
      config: the architecture.
      params: its parameters.
      tokens: [T], T at least 2.
      thresholds: of the detectors; None for those of their papers.
      weights: the scan of the parameters, if there is one.
    """
    tokens = np.asarray(tokens)
    found = scan(config, params, tokens[None], thresholds)
    weights = weights or weight_scan(params, found.thresholds.weight_ratio)
    peaks = {
        name: int(np.argmax(site.over_mean(site.top[..., 0])[:, 0]))
        for name, site in (("down_in", found.down_in), ("block_out", found.block_out))
    }
    strongest = int(np.argmax(found.attention_score()[:, 0].max(axis=-1)))
    shown = jax.device_get(maps(config, params, jnp.asarray(tokens)))
    down = projection(layer_params(params, peaks["down_in"]), "mlp", "down")
    heaviest = weights.largest[peaks["down_in"]]

    def activations(name: str, feature: str) -> Panel:
        layer, site = peaks[name], found.site(name)
        values, features = shown[name][layer, 0], site.feature_peak.shape[-1]
        token = int(np.argmax(site.token_peak[layer, 0]))
        mark = ((token, int(site.token_feature[layer, 0, token])),)
        axes = ("token", feature)
        experts = config.experts if feature == "neuron" else 0
        return Panel(f"|{name}|", layer, values, axes, features, len(tokens), mark, experts)

    keys = int(np.argmax(found.attention_score()[strongest, 0]))
    return Existence(
        tokens,
        (
            activations("down_in", "neuron"),
            Panel(
                "|W_down|", peaks["down_in"], np.asarray(pool(pool(jnp.abs(down)).T).T),
                ("neuron", "channel"), down.shape[1], down.shape[0],
                ((heaviest.input, heaviest.output),), config.experts,
            ),
            activations("block_out", "channel"),
            Panel(
                "attention", strongest, shown["attn_weights"][strongest, 0], ("query", "key"),
                len(tokens), len(tokens), ((len(tokens) - 1, keys),),
            ),
        ),
        flagged(found, 0),
        weights,
    )  # fmt: skip


def flagged(found: Scan, sequence: int) -> tuple[Flagged, ...]:
    """What each detector finds in one sequence of a scan."""
    results = []
    for detector in DETECTORS:
        site, threshold = found.site(detector.site), detector.threshold(found)[:, sequence, None]
        tokens = found.tokens_above(detector)[:, sequence]
        features = site.feature_peak[:, sequence] > threshold
        score = site.top[:, sequence, 0] / np.maximum(threshold[:, 0], 1e-30)
        results.append(
            Flagged(
                detector.name, _where(tokens.any(1)), _where(tokens.any(0)),
                _where(features.any(0)), float(score.max()),
            )
        )  # fmt: skip
    keys = found.attention_flagged()[:, sequence]
    limits = found.thresholds
    needed = np.maximum(limits.attention_share, limits.attention_excess * found.uniform)  # [L, S]
    score = found.attention_score()[:, sequence] / needed
    results.append(
        Flagged("an_attention", _where(keys.any(1)), _where(keys.any(0)), (), float(score.max()))
    )
    return tuple(results)


def _where(flags: Any) -> tuple[int, ...]:
    return tuple(int(i) for i in np.flatnonzero(flags))


def pool(x: Float[Array, "R C"], bins: int = BINS) -> Float[Array, "R bins"]:
    """The columns of a matrix in at most `bins` runs of neighbours, the largest of each."""
    run = -(-x.shape[1] // bins)
    columns = -(-x.shape[1] // run)
    padded = jnp.pad(x, [(0, 0), (0, columns * run - x.shape[1])])
    return jnp.max(padded.reshape(len(x), columns, run), axis=-1)


def magnitudes(value: Float[Array, "T *C"]) -> Float[Array, "T bins"]:
    """A tap's reducer: magnitudes by token and feature, as a figure shows them."""
    return pool(jnp.abs(value.astype(jnp.float32)).reshape(len(value), -1))


def maps(config: ModelConfig, params: Params, tokens: Int[Array, "T"]) -> dict[str, Any]:
    """Of every layer the magnitudes and the attention of a prompt, as a figure shows them.

    Args:
      config: the architecture.
      params: its parameters.
      tokens: [T].

    Returns:
      down_in and block_out: [L, 1, T, bins]; attn_weights: [L, 1, T, S], mean over heads.
    """
    normalised = VARIANTS[config.variant].normalised

    def attention(weights: Array) -> Array:
        return jnp.mean(weights if normalised else rows_to_one(weights), axis=0)

    taps = {"down_in": magnitudes, "block_out": magnitudes, "attn_weights": attention}
    found = recorded(config, params, tokens[None], expert_neurons.told_apart(config, taps))
    return expert_neurons.by_tap(config, found)
