"""Outliers in the projection matrices of every layer."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sysout_jax.core.measures import WEIGHT_RATIO, calibrated_outliers, weight_outliers
from sysout_jax.model.decoder import Params, unstack_blocks

# The projections of a layer: (module, name, axes that are inputs).
PROJECTIONS: tuple[tuple[str, str, int], ...] = (
    ("attn", "query", 1),
    ("attn", "key", 1),
    ("attn", "value", 1),
    ("attn", "out", 2),
    ("mlp", "gate", 1),
    ("mlp", "up", 1),
    ("mlp", "down", 1),
)
LISTED = 16  # flagged entries of a matrix that are listed, the largest ones


@dataclass(frozen=True)
class WeightOutlier:
    """A flagged entry of a matrix [inputs, outputs]; of `down`: neuron and channel."""

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
    column_ratio: np.ndarray  # [L, P], the same over columns (outputs)
    calibrated: np.ndarray  # [L, P], entries beyond a normal null at false discovery rate 0.01
    largest: tuple[WeightOutlier, ...]  # of `down` in each layer, flagged or not
    outliers: tuple[WeightOutlier, ...]  # above the threshold, at most `LISTED` of a matrix


def layer_params(params: Params) -> list[Params]:
    """The parameters of each block, in order, whether layers were scanned or not."""
    unrolled = unstack_blocks(params) if "blocks" in params else params
    count = sum(name.startswith("block_") for name in unrolled)
    return [unrolled[f"block_{layer}"] for layer in range(count)]


def weight_scan(params: Params, ratio: float = WEIGHT_RATIO) -> WeightScan:
    """Find outliers in all projection matrices of a model.

    Args:
      params: the parameters of a decoder.
      ratio: the threshold on |W| / mean |W|.
    """
    layers = layer_params(params)
    present = [p for p in PROJECTIONS if p[1] in layers[0][p[0]]]
    found: list[list[dict[str, np.ndarray]]] = [
        [
            jax.device_get(_measure(as_matrix(layer[module][name], inputs)))
            for module, name, inputs in present
        ]
        for layer in layers
    ]

    def table(key: str) -> np.ndarray:
        return np.array([[matrix[key] for matrix in row] for row in found])

    def entries(layer: int, column: int, count: int) -> list[WeightOutlier]:
        matrix, name = found[layer][column], present[column][1]
        columns = matrix["columns"]
        return [
            WeightOutlier(layer, name, int(i // columns), int(i % columns), float(v), float(s))
            for i, v, s in zip(*(matrix[k][:count] for k in ("at", "value", "score")), strict=True)
        ]

    down = [name for _, name, _ in present].index("down")
    return WeightScan(
        tuple(name for _, name, _ in present),
        table("ratio"), table("row_ratio"), table("column_ratio"), table("calibrated"),
        tuple(entries(layer, down, 1)[0] for layer in range(len(layers))),
        tuple(
            entry
            for layer in range(len(layers))
            for column in range(len(present))
            for entry in entries(layer, column, LISTED)
            if entry.ratio > ratio
        ),
    )  # fmt: skip


def as_matrix(weight: Array, inputs: int) -> Float[Array, "I O"]:
    """A parameter of any number of axes as [inputs, outputs]."""
    rows = int(np.prod(weight.shape[:inputs]))
    return weight.reshape(rows, -1)


@jax.jit
def _measure(w: Float[Array, "I O"]) -> dict[str, Any]:
    size = jnp.abs(w)
    score = weight_outliers(w).score
    top, at = jax.lax.top_k(score.ravel(), min(LISTED, score.size))

    def ratio(axis: int) -> Array:
        mean = jnp.mean(size, axis=axis)
        return jnp.max(jnp.max(size, axis=axis) / jnp.where(mean == 0.0, 1.0, mean))

    return {
        "ratio": top[0],
        "row_ratio": ratio(1),
        "column_ratio": ratio(0),
        "calibrated": jnp.sum(calibrated_outliers(w).flagged, dtype=jnp.int32),
        "at": at,
        "value": w.ravel()[at],
        "score": top,
        "columns": w.shape[1],
    }
