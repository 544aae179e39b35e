"""Outliers in the projection matrices of every layer."""

from dataclasses import dataclass
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sysout_jax.core.detectors import (
    WEIGHT_RATIO,
    calibrated_outliers,
    ratio_or_zero,
    weight_outliers,
)
from sysout_jax.model.compiling import jit_quickly
from sysout_jax.model.decoder import Params

# The projections of a layer: (module, name).
PROJECTIONS: tuple[tuple[str, str], ...] = (
    ("attn", "query"),
    ("attn", "key"),
    ("attn", "value"),
    ("attn", "out"),
    ("mlp", "gate"),
    ("mlp", "up"),
    ("mlp", "down"),
)
LISTED = 16  # flagged entries of a matrix that are listed, the largest ones


@dataclass(frozen=True)
class WeightOutlier:
    """A flagged entry of a matrix [inputs, outputs]; of `down`: neuron and channel.

    Inputs of a mixture's matrices are counted through all experts, as in expert_neurons.py.
    """

    layer: int
    matrix: str
    input: int
    output: int
    value: float
    ratio: float  # |W[input, output]| over the matrix's mean magnitude


@dataclass(frozen=True)
class WeightScan:
    """Every projection of every layer: L layers, P projections."""

    matrices: tuple[str, ...]  # [P]
    ratio: np.ndarray  # [L, P], max |W| / mean |W| (An et al. 2025)
    row_ratio: np.ndarray  # [L, P], the largest over rows (inputs) of max/mean in the row
    column_ratio: np.ndarray  # [L, P], the same over columns (outputs); those of `gate` and `up` of
    #   a mixture have the neurons of the same number of all experts
    calibrated: np.ndarray  # [L, P], entries beyond a normal null at false discovery rate 0.01
    evidence: np.ndarray  # [L, P], -log10 p of the largest entry beside that null
    largest: tuple[WeightOutlier, ...]  # of `down` in each layer, flagged or not
    outliers: tuple[WeightOutlier, ...]  # above the threshold, at most `LISTED` of a matrix


def layer_params(params: Params, layer: int) -> Params:
    """The parameters of one block, whether layers were scanned or not."""
    if "blocks" in params:
        return jax.tree.map(lambda x: x[layer], params["blocks"])
    return params[f"block_{layer}"]


def layer_count(params: Params) -> int:
    """L, whether layers were scanned or not."""
    if "blocks" in params:
        return len(jax.tree.leaves(params["blocks"])[0])
    return sum(name.startswith("block_") for name in params)


def projection(block: Params, module: str, name: str) -> Float[Array, "I O"]:
    """A projection of a block as a matrix [inputs, outputs]; experts are stacked by input."""
    weight = block[module][name]
    inputs = 2 if name == "out" or (module == "mlp" and weight.ndim == 3) else 1
    return weight.reshape(prod(weight.shape[:inputs]), -1)


def weight_scan(params: Params, ratio: float = WEIGHT_RATIO) -> WeightScan:
    """Find outliers in all projection matrices of a model.

    Args:
      params: the parameters of a decoder, held or read layer by layer.
      ratio: the threshold on |W| / mean |W|.
    """
    present: list[tuple[str, str]] = []
    found: list[list[dict[str, np.ndarray]]] = []
    for layer in range(layer_count(params)):
        block = layer_params(params, layer)
        present = present or [p for p in PROJECTIONS if p[1] in block[p[0]]]
        found.append([jax.device_get(_measure(projection(block, *p))) for p in present])

    def table(key: str) -> np.ndarray:
        return np.array([[matrix[key] for matrix in row] for row in found])

    def entries(layer: int, column: int, count: int) -> list[WeightOutlier]:
        matrix, name = found[layer][column], present[column][1]
        columns = matrix["columns"]
        return [
            WeightOutlier(layer, name, int(i // columns), int(i % columns), float(v), float(s))
            for i, v, s in zip(*(matrix[k][:count] for k in ("at", "value", "score")), strict=True)
        ]

    down = [name for _, name in present].index("down")
    return WeightScan(
        tuple(name for _, name in present),
        table("ratio"), table("row_ratio"), table("column_ratio"), table("calibrated"),
        table("evidence"),
        tuple(entries(layer, down, 1)[0] for layer in range(len(found))),
        tuple(
            entry
            for layer in range(len(found))
            for column in range(len(present))
            for entry in entries(layer, column, LISTED)
            if entry.ratio > ratio
        ),
    )  # fmt: skip


def down_outliers(params: Params, found: WeightScan, ratio: float) -> list[tuple[int, int, int]]:
    """(layer, neuron, channel) of every outlier of a down projection, listed or not.

    Args:
      params: those that were scanned.
      found: their scan.
      ratio: its threshold.
    """
    places: list[tuple[int, int, int]] = []
    for layer in range(layer_count(params)):
        of = [w for w in found.outliers if (w.layer, w.matrix) == (layer, "down")]
        at: Any = [(w.input, w.output) for w in of]
        if len(of) == LISTED:
            down = projection(layer_params(params, layer), "mlp", "down")
            at = np.argwhere(np.asarray(weight_outliers(down, ratio).flagged)).tolist()
        places += [(layer, neuron, channel) for neuron, channel in at]
    return places


@jit_quickly()
def _measure(w: Float[Array, "I O"]) -> dict[str, Any]:
    w = w.astype(jnp.float32)  # means of many narrow numbers are not
    size = jnp.abs(w)
    score, calibrated = weight_outliers(w).score, calibrated_outliers(w)
    # The largest entries are in the rows with the largest maxima; to look for them everywhere is
    # to sort everything, half a minute of a matrix of 7B parameters' size.
    rows = jax.lax.top_k(jnp.max(score, axis=1), min(LISTED, len(score)))[1]
    top, among = jax.lax.top_k(score[rows].ravel(), min(LISTED, score.size))
    at = rows[among // w.shape[1]] * w.shape[1] + among % w.shape[1]

    def ratio(axis: int) -> Array:
        return jnp.max(ratio_or_zero(jnp.max(size, axis=axis), jnp.mean(size, axis=axis)))

    return {
        "ratio": top[0],
        "row_ratio": ratio(1),
        "column_ratio": ratio(0),
        "calibrated": jnp.sum(calibrated.flagged, dtype=jnp.int32),
        "evidence": jnp.max(calibrated.score),
        "at": at,
        "value": w.ravel()[at],
        "score": top,
        "columns": w.shape[1],
    }
