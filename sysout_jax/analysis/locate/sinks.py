"""The sink at the first token: the layer that makes its state, and what it is without it.

Axes: L layers, B sequences, T tokens, S keys, N heads.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sysout_jax.analysis.locate.scan import Scan
from sysout_jax.core.measures import SINK_EPS
from sysout_jax.model.config import ModelConfig

STANDS_OUT = 4.0  # the first token's largest |h| over the mean of all tokens' in that layer


@dataclass(frozen=True)
class Sink:
    """The first token as a sink."""

    emergence: int | None  # the layer that writes its state; None: no state of it stands out
    first: int  # the first layer that reads that state; 0 where none stands out
    size: float  # its largest |h| from the emergence on, mean over sequences
    attention: float  # of queries that see it, in layers from `first` on, mean over heads
    most: float  # the same of the head that gives it most
    heads: float  # share of the heads of those layers that give it more than 0.3 (Gu et al. 2025),
    #   and more than `attention_excess` times what even attention gives
    heads_elsewhere: float  # the same share in the layers before

    @property
    def present(self) -> bool:
        """Whether a head of those layers gives it so much."""
        return self.heads > 0.0


def first_token_sink(config: ModelConfig, found: Scan) -> Sink:
    """Find the layer from which on the first token is a sink for what it carries.

    Emergence is the layer with the largest step up of the first token's largest |h|, among those
    after which it is `STANDS_OUT` times the mean over tokens of theirs. The last layer is left out:
    no attention reads what it writes.

    Args:
      config: the architecture.
      found: the scan of the sequences.
    """
    peaks = found.block_out.token_peak
    size = peaks[:, :, 0].mean(axis=1)  # [L]
    rises = np.diff(size, prepend=0.0)
    outstanding = (size > STANDS_OUT * peaks.mean(axis=(1, 2)))[:-1]
    emergence = (
        int(np.argmax(np.where(outstanding, rises[:-1], -np.inf))) if any(outstanding) else None
    )
    first = 0 if emergence is None else emergence + 1
    given = given_to_first(config, found)
    above = given > np.maximum(SINK_EPS, found.thresholds.attention_excess * _even(config, found))
    return Sink(
        emergence, first, float(peaks[max(first - 1, 0) :, :, 0].max(axis=0).mean()),
        float(given[first:].mean()), float(given[first:].max()), float(above[first:].mean()),
        float(above[:first].mean()) if first else 0.0,
    )  # fmt: skip


def at_first(x: Array) -> Array:
    """A tap's reducer: what is at the first token, as float32."""
    return x[0].astype(jnp.float32)


def sees_first(config: ModelConfig, length: int) -> Bool[np.ndarray, "L T"]:
    """Which queries after the first see the first token: not those that a window ends before."""
    queries = np.arange(length)
    return (queries > 0) & (queries < _windows(config, length)[:, None])


def _windows(config: ModelConfig, length: int) -> Int[np.ndarray, "L"]:
    """The keys that a query of each layer sees at most."""
    return np.array([config.window_of(layer) or length for layer in range(config.layers)])


def given_to_first(config: ModelConfig, found: Scan) -> Float[np.ndarray, "L N"]:
    """The attention that queries after the first that see the first token give it, mean over them
    and over sequences.

    Args:
      config: the architecture.
      found: the scan of the sequences.
    """
    length = found.received.shape[-1]
    count = sees_first(config, length).sum(axis=1)[:, None]
    total = found.received[..., 0].mean(axis=1) * length - found.first_own.mean(axis=1)
    return np.clip(total / np.maximum(count, 1), 0.0, 1.0)


def _even(config: ModelConfig, found: Scan) -> Float[np.ndarray, "L 1"]:
    """What `given_to_first` would be of even attention: above 0.15 for up to 17 keys."""
    length = found.received.shape[-1]
    sees = sees_first(config, length)
    shares = np.where(sees, 1.0 / (1.0 + np.arange(length)), 0.0).sum(axis=1)
    return (shares / np.maximum(sees.sum(axis=1), 1))[:, None]


def given_by_seeing(
    config: ModelConfig, received: Float[np.ndarray, "L B N S"]
) -> Float[np.ndarray, "L B N S"]:
    """The attention that the queries that see a key give it, its own among them: mean over them.

    Args:
      config: the architecture.
      received: the share of all queries' attention, of a scan.
    """
    length = received.shape[-1]
    see = np.minimum(length - np.arange(length), _windows(config, length)[:, None])
    return received * length / see[:, None, None]


def factor_of_first(
    logits: Float[Array, "N T S"], weights: Float[Array, "N T S"]
) -> dict[str, Float[Array, "N T"]]:
    """What the first key leaves to the others, S, and LSE_R, the evidence that they hold (A1).

    S = sum_{j >= 1} p_j;  LSE_R = log sum_{j >= 1} e^{s_j}, over the keys that are seen, which
    those of no weight are not.

    Args:
      logits: before mask and normaliser, in nats.
      weights: of softmax.

    Returns:
      "rest", S, and "evidence", LSE_R in nats.
    """
    others, seen = weights[:, :, 1:], weights[:, :, 1:] > 0.0
    evidence = jax.nn.logsumexp(logits[:, :, 1:], axis=-1, where=seen)
    nothing = logits[:, :, 0] + jnp.log(jnp.finfo(weights.dtype).tiny)  # S is less than that
    return {
        "rest": jnp.sum(others, axis=-1),
        "evidence": jnp.where(jnp.any(seen, axis=-1), evidence, nothing),
    }
