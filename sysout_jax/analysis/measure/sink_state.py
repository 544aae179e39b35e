"""The state of a sink's token beside what its value needs: direction, size and T3's magnitude.

Axes: B texts, D width, H head dim, l layers.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from sysout_jax.analysis.locate.weights import layer_params, projection
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params

NORMED = ("pre", "sandwich")  # placements of a norm before attention, which T3 is about


class Split(NamedTuple):
    """States x = a u + y, y orthogonal to u."""

    along: Float[np.ndarray, "B"]  # a
    across: Float[np.ndarray, "B"]  # |y|
    axis: Float[np.ndarray, "B"]  # |x - x_c e_c| / |x_c|, c the largest channel of their mean


def centred(config: ModelConfig, x: Float[np.ndarray, "... D"]) -> Float[np.ndarray, "... D"]:
    """States as the direction of the norm's output sees them: LayerNorm takes the mean away."""
    x = np.asarray(x, np.float64)
    return x - x.mean(axis=-1, keepdims=True) if config.norm == "layer" else x


def common_direction(states: Float[np.ndarray, "l B D"]) -> Float[np.ndarray, "D"]:
    """The unit vector u that the states of all layers and texts are nearest to, each as a unit."""
    units = states / np.maximum(np.linalg.norm(states, axis=-1, keepdims=True), 1e-30)
    mean: np.ndarray = units.mean(axis=(0, 1))
    return np.asarray(mean / np.maximum(np.linalg.norm(mean), 1e-30))


def split(states: Float[np.ndarray, "B D"], u: Float[np.ndarray, "D"]) -> Split:
    """The parts of states along a direction and across it, and across their largest channel."""
    along = states @ u
    channel = int(np.argmax(np.abs(states.mean(axis=0))))
    largest = np.abs(states[:, channel])
    rest = np.linalg.norm(np.delete(states, channel, axis=1), axis=1)
    across = np.linalg.norm(states - along[:, None] * u, axis=1)
    return Split(along, across, rest / np.maximum(largest, 1e-30))


def value_gain(
    config: ModelConfig, params: Params, layer: int, u: Float[np.ndarray, "D"]
) -> Float[np.ndarray, "K"] | None:
    """beta of each KV head: the norm of its value matrix, with the gains of the norm before it, on
    the complement of u.

    Args:
      config: the architecture.
      params: its parameters.
      layer: which.
      u: a unit vector; of LayerNorm one whose entries sum to zero.

    Returns:
      None where no norm stands before attention.
    """
    if config.parallel_block == "none" and config.norm_placement not in NORMED:
        return None
    block = layer_params(params, layer)
    w = np.asarray(projection(block, "attn", "value"), np.float64)
    if config.channel_scales:
        scale = np.asarray(block["attn_norm"]["scale"], np.float64)
        w = (scale + config.norm_plus_one)[:, None] * w
    w = centred(config, w.T).T
    w = w - np.outer(u, u @ w)
    heads = w.reshape(len(w), config.sizes["K"], -1)
    return np.array([np.linalg.norm(heads[:, k], 2) for k in range(heads.shape[1])])


def asked_magnitude(
    beta: Float[np.ndarray, "..."], across: Float[np.ndarray, "..."], nu: Float[np.ndarray, "..."],
    width: int,
) -> Float[np.ndarray, "..."]:  # fmt: skip
    """The state along u at which a value stays within nu of its limit whatever y (theory T3).

    a = sqrt(D) beta r / nu, to first order in nu.

    Args:
      beta: the norm of W_V, with gains, across u.
      across: r, the largest |y|.
      nu: the deviation that is allowed, in units of the value.
      width: D.
    """
    return np.asarray(np.sqrt(width) * beta * across / nu)
