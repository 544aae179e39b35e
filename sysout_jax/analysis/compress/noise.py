"""What AbsMax rounding costs each tensor of a model, beside its outlier measures and theory E1.

Axes: L layers, B sequences, T tokens, I inputs, O outputs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy import stats

from sysout_jax.analysis.compress.calibration import PRODUCTS
from sysout_jax.analysis.locate import expert_neurons
from sysout_jax.analysis.locate.scan import for_length, over_batches
from sysout_jax.analysis.locate.weights import PROJECTIONS, layer_params, projection
from sysout_jax.core import detectors, measures, quantise
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params
from sysout_jax.model.stream import recorded

BITS = (8, 6, 4)
FLUSHING = ("nvfp4", "mxfp4")  # formats with blocks, whose small entries may become zero


@dataclass(frozen=True)
class Noise:
    """One kind of tensor: an input of the products, or a projection. Means over sequences."""

    kind: str  # activation, weight
    name: str  # of the tap or of the projection
    peak_over_rms: np.ndarray  # [L], max|x| / RMS(x)
    max_median_ratio: np.ndarray  # [L]
    kurtosis: np.ndarray  # [L], of all entries
    measured: dict[int, np.ndarray]  # bits -> [L], SQNR of one scale for the tensor, dB
    predicted: dict[int, np.ndarray]  # bits -> [L], by theory E1 from peak_over_rms alone
    flushed: dict[str, np.ndarray]  # format -> [L], share of nonzero entries that become zero
    flushed_rest: dict[str, np.ndarray]  # the same of inputs without an entry beyond 6 sigma,
    flushed_without: dict[str, np.ndarray]  # and of these when the others are set to zero first
    outlier_inputs: np.ndarray  # [L], how many the others are: of a product's I, of all experts


@dataclass(frozen=True)
class Agreement:
    """How two numbers go together over tensors: n of them with both finite."""

    n: int
    pearson: float
    spearman: float
    difference: float  # mean of the second less the first


def noise(
    config: ModelConfig,
    params: Params,
    tokens: Int[np.ndarray, "B T"],
    bits: Sequence[int] = BITS,
    sites: Sequence[str] = tuple(PRODUCTS),
    batch: int = 8,
) -> tuple[Noise, ...]:
    """Round every input of a matrix product, and every projection, with one scale each.

    Beside it, what the formats of `FLUSHING` set to zero, whose blocks run along the contracted
    axis: of all entries, and of the inputs beside those that have an outlier
    (`detectors.six_sigma_outliers`, Bondarenko et al. 2023), with these and without. Of a mixture
    each expert that a token goes to has a row of its own, and inputs of its own.

    Args:
      config: the architecture.
      params: its parameters.
      tokens: [B, T].
      bits: of the integer grids.
      sites: keys of `calibration.PRODUCTS`.
      batch: sequences that are run together.
    """
    reducer = _reducer(tuple(bits), config.experts)
    taps = {expert_neurons.key(config, site): reducer for site in sites}
    run = partial(recorded, for_length(config, tokens.shape[1]), taps=taps)
    found = expert_neurons.by_tap(config, over_batches(run, params, np.asarray(tokens), batch))
    rows = [
        _noise("activation", tap, {k: v.mean(axis=1) for k, v in found[tap].items()}, bits)
        for tap in sites
    ]
    blocks = [layer_params(params, layer) for layer in range(config.layers)]
    for module, name in PROJECTIONS:
        if name in blocks[0][module]:
            of = [
                jax.device_get(_of_matrix(tuple(bits), projection(b, module, name))) for b in blocks
            ]
            stacked = {key: np.stack([each[key] for each in of]) for key in of[0]}
            rows.append(_noise("weight", name, stacked, bits))
    return tuple(rows)


def _noise(kind: str, name: str, of: dict[str, np.ndarray], bits: Sequence[int]) -> Noise:
    measured, predicted = (
        {b: of[key][..., i] for i, b in enumerate(bits)} for key in ("measured", "predicted")
    )
    ratios = (of["peak_over_rms"], of["max_median_ratio"], of["kurtosis"])
    lost, rest, without = (
        {format_: of[key][..., i] for i, format_ in enumerate(FLUSHING)}
        for key in ("flushed", "flushed_rest", "flushed_without")
    )
    return Noise(
        kind, name, *ratios, measured, predicted, lost, rest, without, of["outlier_inputs"]
    )


@lru_cache(maxsize=8)
def _reducer(bits: tuple[int, ...], count: int) -> Any:
    """The same object for the same bits, which compiles once; of down_in beside one of `count`
    experts for each row."""

    def reduce(*given: Array) -> dict[str, Array]:
        *experts, x = given
        rows = x.reshape(experts[0].size if experts else x.shape[0], -1).astype(jnp.float32)
        if not experts:
            return _of_tensor(bits, rows) | _flushed(rows, _outlier_inputs(rows))
        flagged = detectors.six_sigma_outliers(rows).flagged.reshape(x.shape).astype(jnp.float32)
        of = expert_neurons.peaks(experts[0], flagged, count).reshape(count, -1)
        found = _of_tensor(bits, rows) | _flushed(rows, of[experts[0].ravel()] > 0.0)
        return found | {"outlier_inputs": jnp.sum(of)}

    return reduce


def _of_tensor(bits: tuple[int, ...], rows: Float[Array, "T I"]) -> dict[str, Array]:
    ratio = jnp.max(jnp.abs(rows)) / jnp.sqrt(jnp.mean(jnp.square(rows)))
    rounded = [
        quantise.sqnr(rows, quantise.quantise(rows, quantise.FORMATS[f"int{b}"])) for b in bits
    ]
    levels = [jnp.asarray(quantise.FORMATS[f"int{b}"].largest, jnp.float32) for b in bits]
    return {
        "peak_over_rms": ratio,
        "max_median_ratio": measures.max_median_ratio(rows),
        "kurtosis": measures.tensor_kurtosis(rows),
        "measured": jnp.stack(rounded),
        "predicted": jnp.stack([quantise.predicted_sqnr(ratio, n, rows.size) for n in levels]),
    }


def _outlier_inputs(rows: Float[Array, "T I"]) -> Bool[Array, "I"]:
    return jnp.any(detectors.six_sigma_outliers(rows).flagged, axis=0)


def _flushed(rows: Float[Array, "T I"], outlier: Bool[Array, "*T I"]) -> dict[str, Array]:
    rest = jnp.where(outlier, 0.0, rows)  # zeros are in no share, and set no block's scale
    found: dict[str, list[Array]] = {"flushed": [], "flushed_rest": [], "flushed_without": []}
    for name in FLUSHING:
        rounded = quantise.quantise(rows, quantise.FORMATS[name])
        alone = quantise.quantise(rest, quantise.FORMATS[name])
        found["flushed"].append(quantise.flushed(rows, rounded))
        found["flushed_rest"].append(quantise.flushed(rest, rounded))
        found["flushed_without"].append(quantise.flushed(rest, alone))
    stacked = {key: jnp.stack(shares) for key, shares in found.items()}
    return stacked | {"outlier_inputs": jnp.sum(outlier, dtype=jnp.float32)}


@partial(jax.jit, static_argnums=0)
def _of_matrix(bits: tuple[int, ...], w: Float[Array, "I O"]) -> dict[str, Array]:
    wide = w.astype(jnp.float32)
    return _of_tensor(bits, wide) | _flushed(wide.T, _outlier_inputs(wide.T))  # blocks: along I


def agreement(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> Agreement:
    """Correlation of two numbers over tensors, those with both finite; NaN below three of them."""
    x, y = (np.ravel(np.asarray(each, np.float64)) for each in (a, b))
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if x.size < 3 or np.ptp(x) == 0.0 or np.ptp(y) == 0.0:
        difference = float(np.mean(y - x)) if x.size else float("nan")
        return Agreement(int(x.size), float("nan"), float("nan"), difference)
    pearson, spearman = stats.pearsonr(x, y)[0], stats.spearmanr(x, y)[0]
    return Agreement(int(x.size), float(pearson), float(spearman), float(np.mean(y - x)))
