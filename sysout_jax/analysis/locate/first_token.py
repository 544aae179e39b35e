"""The state of the first token over texts: how large, who writes it, and whether it is constant.

Axes: L layers, B texts, T tokens, K KV heads, H head dim.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sysout_jax.analysis.locate.scan import (
    DETECTORS,
    Progress,
    Scan,
    as_scan,
    fields,
    for_length,
    over_batches,
    reducers,
)
from sysout_jax.core.layers import cross_entropy
from sysout_jax.core.measures import top1
from sysout_jax.errors import InputError
from sysout_jax.model.compiling import jit_quickly
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, forward

LEAST_TEXTS, LEAST_TOKENS = 4, 32  # that constants can be taken over, and detectors look at
TEXTS = 0.5  # share of texts in which a detector flags the first token
CONSTANT = 0.2  # relative spread over texts up to which keys and values count as constant
WRITES = 0.1  # share of the largest state that is a write of it


@dataclass(frozen=True)
class FirstToken:
    """What texts show of their first tokens."""

    scan: Scan
    losses: np.ndarray  # [B], mean over next tokens, in nats
    constants: Mapping[str, np.ndarray]  # "key", as it is at position 0, "value": [L, K, H] means
    spread: Mapping[str, np.ndarray]  # of each [L], the largest over KV heads
    written: np.ndarray  # [L], mean of max |down_out|

    @property
    def state(self) -> np.ndarray:
        """[L]: max |h| of the first token after each layer, mean over texts."""
        return self.scan.block_out.token_peak[..., 0].mean(axis=1)

    @property
    def massive(self) -> np.ndarray:
        """[L]: whether a detector flags its state in most texts."""
        peak = self.scan.block_out.token_peak[..., 0]
        flags = [
            (peak > each.threshold(self.scan)).mean(axis=1) >= TEXTS
            for each in DETECTORS
            if each.site == "block_out"
        ]
        return np.any(flags, axis=0)

    @property
    def attended(self) -> bool:
        """Whether it is an attention outlier of some layer in most texts."""
        return bool((self.scan.attention_flagged()[..., 0].mean(axis=1) >= TEXTS).any())

    @property
    def constant(self) -> np.ndarray:
        """[L]: whether its key and its value are the same in every text."""
        spreads = [self.spread[name] <= CONSTANT for name in ("key", "value")]
        return np.all(spreads, axis=0)

    @property
    def stages(self) -> tuple["Stage", ...]:
        """The runs of layers that read a massive state and have a constant key and value."""
        reads = np.concatenate([[False], self.massive[:-1]])
        found = []
        for run in _runs(self.constant):
            begin = max(run[0] - 1, 0)
            state, size = (of[begin : run[-1] + 1] for of in (self.state, self.written))
            grows = np.diff(state, prepend=self.state[begin - 1] if begin else 0.0) > 0.0
            writes = np.flatnonzero(grows & (size >= WRITES * state.max())) + begin
            if writes.size and reads[list(run)].any():
                found.append(Stage(run, tuple(writes.tolist())))
        return tuple(found)


def _runs(marked: np.ndarray) -> list[tuple[int, ...]]:
    """The runs of neighbours among marked layers."""
    layers = np.flatnonzero(marked)
    parts = np.split(layers, np.flatnonzero(np.diff(layers) > 1) + 1)
    return [tuple(part.tolist()) for part in parts if part.size]


@dataclass(frozen=True)
class Stage:
    """Layers in which the first token is a sink that a constant can stand for."""

    layers: tuple[int, ...]  # whose queries may see the constant
    writers: tuple[int, ...]  # whose MLP makes its state massive


def first_token(
    config: ModelConfig,
    params: Params,
    rows: Int[np.ndarray, "B S"],
    batch: int = 8,
    progress: Progress | None = None,
) -> FirstToken:
    """Measure the first token of texts.

    The spread of keys is sqrt(mean_b |k_b - k|^2) / |k|, k their mean over texts; that of values is
    over the mean length of the other tokens' values, beside which they are mixed.

    Args:
      config: the architecture.
      params: its parameters.
      rows: [B, S], S = T + 1: inputs and next tokens.
      batch: texts that are run together.
      progress: called with the texts done and the texts in all.

    Raises:
      InputError: too few or too short texts, or activations that are not finite.
    """
    texts, length = rows.shape[0], rows.shape[1] - 1
    if texts < LEAST_TEXTS or length < LEAST_TOKENS:
        accepted = f"at least {LEAST_TEXTS} texts of {LEAST_TOKENS} tokens"
        raise InputError("text", None, accepted, f"{texts} of {length} tokens is too short")
    run = partial(_pass, for_length(config, length, maps=True))
    found = over_batches(run, params, rows, batch, progress)
    key, value = found["key"], found["value"]["first"]
    mean = {"key": key.mean(axis=1), "value": value.mean(axis=1)}
    beside = {
        "key": np.linalg.norm(mean["key"], axis=-1),
        "value": found["value"]["others"].mean(axis=1),
    }
    spread = {
        name: np.max(_deviation(of, mean[name]) / np.maximum(beside[name], 1e-30), axis=1)
        for name, of in (("key", key), ("value", value))
    }
    written = found["down_out"].mean(axis=1)
    scan = as_scan(config, {name: found[name] for name in ("attn_weights", "block_out", "down_in")})
    return FirstToken(scan, found["loss"][0], mean, spread, written)


def _deviation(of: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """[L, K]: the root mean square distance of vectors [L, B, K, H] from their mean."""
    distance: np.ndarray = np.linalg.norm(of - mean[:, None], axis=-1)
    return np.asarray(np.sqrt(np.mean(distance**2, axis=1)))


def _first(x: Array) -> Array:
    return x[0].astype(jnp.float32)


def _largest(x: Array) -> Array:
    return top1(x[:1])


def _values(v: Float[Array, "T K H"]) -> dict[str, Array]:
    v = v.astype(jnp.float32)
    return {"first": v[0], "others": jnp.mean(jnp.linalg.norm(v[1:], axis=-1), axis=0)}


@cache
def _taps(config: ModelConfig) -> Mapping[str, Any]:
    own = {"key": _first, "value": _values, "down_out": _largest}
    return {**reducers(config), **own}


@jit_quickly(0)
def _pass(config: ModelConfig, params: Params, rows: Array) -> dict[str, Any]:
    logits, found = forward(config, params, rows[:, :-1], _taps(config))
    loss = jnp.mean(cross_entropy(logits, rows[:, 1:]), axis=1)
    return fields(config, found) | {"loss": loss[None]}
