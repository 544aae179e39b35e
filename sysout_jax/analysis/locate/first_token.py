"""The state of the first token over texts: how large, who writes it, and whether it is constant.

Axes: L layers, B texts, T tokens, K KV heads, H head dim.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sysout_jax.analysis.locate import expert_neurons
from sysout_jax.analysis.locate.scan import as_scan, for_length, over_batches, reducers
from sysout_jax.analysis.locate.sinks import Sink, at_first, first_token_sink, given_to_first
from sysout_jax.core.measures import top1
from sysout_jax.core.variants import kept
from sysout_jax.errors import InputError
from sysout_jax.model.compiling import jit_quickly
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, final_states
from sysout_jax.model.loss import token_losses

LEAST_TEXTS, LEAST_TOKENS = 4, 32  # that constants can be taken over, and a sink be found in
CONSTANT = 0.2  # relative spread over texts up to which keys and values count as constant
WRITES = 0.1  # share of the largest state from which on a layer writes it, or reads it


@dataclass(frozen=True)
class FirstToken:
    """What texts show of their first tokens."""

    sink: Sink
    given: np.ndarray  # [L, N], attention that queries that see it give it, mean over texts
    losses: np.ndarray  # [B], mean over next tokens, in nats
    constants: Mapping[str, np.ndarray]  # "key", as it is at position 0, "value": [L, K, H] means
    spread: Mapping[str, np.ndarray]  # of each [L], the largest over KV heads
    state: np.ndarray  # [L], largest |h| after each layer, mean over texts
    written: np.ndarray  # [L], the same of what its MLP writes

    @property
    def reads(self) -> tuple[int, ...]:
        """The layers from the emergence on that read a share of its state; none without one."""
        if self.sink.emergence is None:
            return ()
        state = self.state[self.sink.emergence : -1]
        return tuple((np.flatnonzero(state >= WRITES * state.max()) + self.sink.first).tolist())

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers after the emergence in which key and value are the same in every text; none
        where they vary in one that reads its state."""
        constant = np.all([of <= CONSTANT for of in self.spread.values()], axis=0)
        if not self.reads or not constant[list(self.reads)].all():
            return ()
        return tuple((np.flatnonzero(constant[self.sink.first :]) + self.sink.first).tolist())

    @property
    def writers(self) -> tuple[int, ...]:
        """The layers, from the emergence on, whose MLP makes the state grow by a share of it; none
        where the emergence is no MLP's."""
        begin = self.sink.emergence
        if begin is None:
            return ()
        grows = np.diff(self.state, prepend=0.0) > 0.0
        writes = grows & (self.written >= WRITES * self.state[begin:].max())
        found = tuple((np.flatnonzero(writes[begin:]) + begin).tolist())
        return found if found[:1] == (begin,) else ()


def first_token(
    config: ModelConfig, params: Params, rows: Int[np.ndarray, "B S"], batch: int = 8
) -> FirstToken:
    """Measure the first token of texts.

    The spread of keys is sqrt(mean_b |k_b - k|^2) / |k|, k their mean over texts; that of values is
    over the mean length of the other tokens' values, beside which they are mixed.

    Args:
      config: the architecture.
      params: its parameters.
      rows: [B, S], S = T + 1: inputs and next tokens.
      batch: texts that are run together.

    Raises:
      InputError: too few or too short texts, or activations that are not finite.
    """
    enough(rows)
    run = partial(_pass, for_length(config, rows.shape[1] - 1, maps=True))
    found = over_batches(run, params, rows, batch)
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
    scan = as_scan(config, {name: found[name] for name in ("attn_weights", "block_out", "down_in")})
    return FirstToken(
        first_token_sink(config, scan), given_to_first(config, scan), found["loss"][0], mean,
        spread, scan.block_out.token_peak[..., 0].mean(axis=1), found["down_out"].mean(axis=1),
    )  # fmt: skip


def enough(rows: Int[np.ndarray, "B S"]) -> None:
    """Refuse texts in which no sink is found, or over which none can be constant.

    Raises:
      InputError: too few or too short texts.
    """
    texts, length = rows.shape[0], rows.shape[1] - 1
    if texts < LEAST_TEXTS or length < LEAST_TOKENS:
        accepted = f"at least {LEAST_TEXTS} texts of {LEAST_TOKENS} tokens"
        raise InputError("text", None, accepted, f"{texts} of {length} tokens is too short")


def _deviation(of: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """[L, K]: the root mean square distance of vectors [L, B, K, H] from their mean."""
    distance: np.ndarray = np.linalg.norm(of - mean[:, None], axis=-1)
    return np.asarray(np.sqrt(np.mean(distance**2, axis=1)))


def _largest(x: Array) -> Array:
    return top1(x[:1])


def _values(v: Float[Array, "T K H"]) -> dict[str, Array]:
    v = v.astype(jnp.float32)
    return {"first": v[0], "others": jnp.mean(jnp.linalg.norm(v[1:], axis=-1), axis=0)}


@kept
def _taps(config: ModelConfig) -> Mapping[str, Any]:
    own = {"key": at_first, "value": _values, "down_out": _largest}
    return {**reducers(config), **own}


@jit_quickly(0)
def _pass(config: ModelConfig, params: Params, rows: Array) -> dict[str, Any]:
    states, found = final_states(config, params, rows[:, :-1], _taps(config))
    loss = jnp.mean(token_losses(config, params, states, rows[:, 1:]), axis=1)
    return expert_neurons.by_tap(config, found) | {"loss": loss[None]}
