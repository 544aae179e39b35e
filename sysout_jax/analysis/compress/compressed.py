"""A model under a compression scheme: its parameters, the edits of its taps, and its loss."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from sysout_jax.analysis.locate.scan import for_length, over_batches
from sysout_jax.model.compiling import precisely
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, final_states
from sysout_jax.model.loss import token_losses
from sysout_jax.model.taps import Edit


@dataclass(frozen=True)
class Compressed:
    """A model under a scheme.

    params: with the changed weights, in the dtype they had: bfloat16 rounds them once more.
    edits: of the taps whose values are rounded.
    zeros: projection -> [L], the share of its weights that is zero.
    bits: a weight, where it depends on the model: some inputs' weights stay in 16.
    """

    params: Params
    edits: Mapping[str, Edit] = field(default_factory=dict)
    zeros: Mapping[str, np.ndarray] = field(default_factory=dict)
    bits: float | None = None


def losses_by_token(
    config: ModelConfig,
    found: Compressed,
    rows: Int[np.ndarray, "B S"],
    batch: int = 8,
    skip: int = 0,
) -> Float[np.ndarray, "B T"]:
    """The loss of every next token under a scheme, in nats.

    Args:
      config: the architecture.
      found: what `Compressor.compress` returned.
      rows: [B, S], S = T + skip + 1.
      batch: sequences that are run together.
      skip: of the next tokens, how many at the start do not count.
    """
    if "attn_logits" not in found.edits:  # which see no block of queries
        config = for_length(config, rows.shape[1] - 1)

    def run(params: Params, rows: Array) -> Array:
        return _losses(config, skip, params, dict(found.edits), rows)[None]

    lost: np.ndarray = over_batches(run, found.params, rows, batch)[0]
    return lost


def losses(
    config: ModelConfig,
    found: Compressed,
    rows: Int[np.ndarray, "B S"],
    batch: int = 8,
    skip: int = 0,
) -> Float[np.ndarray, "B"]:
    """The mean of `losses_by_token` over each sequence's tokens, of the same arguments."""
    return losses_by_token(config, found, rows, batch, skip).mean(axis=1)


@precisely
@partial(jax.jit, static_argnums=(0, 1))
def _losses(
    config: ModelConfig, skip: int, params: Params, edits: Any, rows: Array
) -> Float[Array, "B T"]:
    states, _ = final_states(config, params, rows[:, :-1], edits=edits)
    return token_losses(config, params, states, rows[:, 1:])[:, skip:]
