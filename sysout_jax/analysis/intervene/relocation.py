"""Does a sink that is taken away come back at another token?

A model whose sink is the first token that its queries see has another one as soon as that is
hidden: the next token sees only itself, and becomes what the first was (theory T5). What an
intervention on a sink costs says something of sinks only where that does not happen, so every
intervention is looked at for the largest |h| and the attention of all other tokens.
Axes: L layers, B sequences, T tokens, S keys, N heads.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.streaming import attention_received
from sysout_jax.model.config import ModelConfig

RELOCATED = 0.5  # of the way from the other tokens to the sink, |h| or attention


def _peaks(h: Float[Array, "T D"]) -> Float[Array, "T"]:
    return jnp.max(jnp.abs(h.astype(jnp.float32)), axis=-1)


def taps(config: ModelConfig) -> Mapping[str, Any]:
    """The largest |h| of each token, and the share of attention that each key receives by head."""
    received = attention_received(VARIANTS[config.variant].normalised)
    return {"block_out": _peaks, "attn_weights": received}


@dataclass(frozen=True)
class Tokens:
    """What every token of every sequence has in the layers from the intervention on."""

    peak: Float[np.ndarray, "B T"]  # largest |h|, over layers
    attention: Float[np.ndarray, "B T"]  # share of all attention, mean over layers and heads

    @classmethod
    def of(cls, records: Mapping[str, Any], layers: int) -> "Tokens":
        """Of what `taps` recorded, whose last entry is that of the last layer.

        Args:
          records: "block_out" [layers, B, T], "attn_weights" by name.
          layers: how many there are from the intervention on.
        """
        peak, received = records["block_out"], records["attn_weights"]["received"]
        return cls(peak[-layers:].max(axis=0), received[-layers:].mean(axis=(0, 2)))


@dataclass(frozen=True)
class Relocation:
    """The other tokens after an intervention, beside the sink as it was; means over sequences."""

    sink_peak: float  # largest |h| of the sink's tokens, as trained
    sink_attention: float  # largest share of a sink's token, as trained
    peak_before: float  # largest |h| of another token, as trained
    peak: float  # after the intervention
    attention_before: float  # largest share of another token
    attention: float
    token: int  # the one that most often has the largest |h| of the others afterwards

    @property
    def relocated(self) -> bool:
        """As `relocated` says of it."""
        return relocated(asdict(self))


def relocated(found: Mapping[str, Any]) -> bool:
    """Whether another token has become a sink: it has gone `RELOCATED` of the way to what the sink
    had, in |h| or attention. Where other tokens are large as trained, half of the sink's |h| alone
    would say nothing.

    Args:
      found: what a record has of a `Relocation`.
    """
    return any(
        0.0
        < RELOCATED * (found[f"sink_{what}"] - found[f"{what}_before"])
        <= found[what] - found[f"{what}_before"]
        for what in ("peak", "attention")
    )


def relocation(before: Tokens, after: Tokens, sink: Bool[np.ndarray, "B T"]) -> Relocation:
    """Compare the tokens that are no sink with the sink, before and after.

    Args:
      before: as trained.
      after: under the intervention.
      sink: [B, T], True for tokens whose attention is taken away; sequences without one do not
        count.
    """
    some = sink.any(axis=1)
    sink = sink[some]

    def largest(values: np.ndarray, of: np.ndarray) -> float:
        return float(np.where(of, values[some], 0.0).max(axis=1).mean())

    peaks = largest(before.peak, sink), largest(before.peak, ~sink), largest(after.peak, ~sink)
    shares = (
        largest(before.attention, sink), largest(before.attention, ~sink),
        largest(after.attention, ~sink),
    )  # fmt: skip
    places = np.where(sink, -np.inf, after.peak[some]).argmax(axis=1)
    return Relocation(
        peaks[0], shares[0], *peaks[1:], *shares[1:], int(np.bincount(places).argmax())
    )
