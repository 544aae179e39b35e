"""What outlier tokens do for a head: an implicit scaling factor, a no-op, or a broadcast."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from sysout_jax.analysis.locate.scan import (
    Progress,
    Scan,
    Thresholds,
    for_length,
    over_batches,
    scan,
)
from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.detectors import ratio_or_zero
from sysout_jax.core.layers import causal_mask
from sysout_jax.core.measures import (
    SINK_EPS,
    VALUE_DRAINED,
    VALUE_KEPT,
    norm_over_rest,
    spectral_dominance,
)
from sysout_jax.core.streaming import scaling_factor
from sysout_jax.model.compiling import jit_quickly
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, forward

JOINED = "value+attn_weights"
BY_QUERY = ("attention", "scale", "scale_sd", "error")


@dataclass(frozen=True)
class Roles:
    """The heads of every layer: averages over queries that see O, not in it, and over sequences
    that have such queries in that layer; where none has, S is 1 and the rest 0."""

    outliers: str  # what O is: "outlier tokens", or "the first token" where no sequence has any
    sequences: int  # that have a token in O
    attention: np.ndarray  # [L, N], share of attention on O
    scale: np.ndarray  # [L, N], S_i, mean over queries
    scale_sd: np.ndarray  # [L, N], its standard deviation over queries
    error: np.ndarray  # [L, N], |o_i - S_i o^R_i| / |o_i|
    drain: np.ndarray  # [L, N], norm of O's values over that of the rest, of the head's KV head
    sink: np.ndarray  # [L, N] bool, attention on O above Gu et al.'s 0.3
    no_op: np.ndarray  # [L, N] bool, a sink whose value is drained to at most 0.2
    broadcast: np.ndarray  # [L, N] bool, a sink whose value is at least 0.8 of the rest's
    stable_rank: np.ndarray  # [L, N], |O|_F^2 / sigma_1^2 of a head's outputs: 1, all point one way

    @property
    def shares(self) -> dict[str, float]:
        """What share of all heads are sinks, no-op sinks and broadcast sinks."""
        named = {"sink": self.sink, "no_op": self.no_op, "broadcast": self.broadcast}
        return {name: float(np.mean(flags)) for name, flags in named.items()}


def roles(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array | np.ndarray, "B T"],
    thresholds: Thresholds | None = None,
    found: Scan | None = None,
    batch: int = 8,
    progress: Progress | None = None,
) -> Roles:
    """Measure the implicit scaling factor S_i of every head, with O the outlier tokens.

    The identity (theory A1) is o_i = S_i o^R_i + sum_{j in O} p_ij v_j, so the error of S_i o^R_i
    is what the outlier tokens' values add. Rows of unnormalised variants are brought to one; where
    a variant gates values, they are measured before the gate. A sink whose value is not drained
    broadcasts it: then the head's outputs are nearly one vector (Fesser 2026, arXiv:2606.08105).
    Means are over the queries outside O that see a token of O, before them and within the window.

    Args:
      config: the architecture.
      params: its parameters.
      tokens: [B, T].
      thresholds: of the detectors; None for those of their papers.
      found: the scan of the same tokens, if there is one.
      batch: sequences that are run together.
      progress: called with the sequences done and the sequences in all.
    """
    tokens = np.asarray(tokens)
    found = found or scan(config, params, tokens, thresholds, batch)
    outliers, what = found.outlier_tokens(), "outlier tokens"
    if not outliers.any():
        outliers, what = np.zeros_like(outliers), "the first token"
        outliers[:, 0] = True
    some = outliers.any(axis=1)
    run = partial(_run, for_length(config, tokens.shape[1], maps=True))
    per_sequence = over_batches(run, params, tokens[some], batch, progress, outliers[some])
    seen = per_sequence.pop("seen")
    counted = (seen | ~seen.any(axis=1, keepdims=True))[..., None]  # all where none sees any
    mean = {
        name: value.mean(axis=1, where=counted if name in BY_QUERY else True)
        for name, value in per_sequence.items()
    }
    heads = mean["scale"].shape[1]
    drain = np.repeat(mean["drain"], heads // mean["drain"].shape[1], axis=1)
    sink = mean["attention"] > SINK_EPS
    return Roles(
        what, int(some.sum()), mean["attention"], mean["scale"], mean["scale_sd"], mean["error"],
        drain, sink, sink & (drain <= VALUE_DRAINED), sink & (drain >= VALUE_KEPT),
        mean["stable_rank"],
    )  # fmt: skip


@jit_quickly(0)
def _run(config: ModelConfig, params: Params, tokens: Array, outliers: Array) -> dict[str, Any]:
    """[L, B, ...] of each sequence and its own set O."""
    normalised = VARIANTS[config.variant].normalised
    at = jnp.arange(tokens.shape[1])
    masks = jnp.stack([causal_mask(at, at, config.window_of(i)) for i in range(config.layers)])

    def one(sequence: tuple[Array, Array]) -> dict[str, Array]:
        ids, of = sequence
        taps: Any = {
            "value": lambda v: norm_over_rest(v.astype(jnp.float32), of),
            JOINED: scaling_factor(of, normalised),
            "attn_mix": jax.vmap(spectral_dominance, 1),
        }
        recorded = forward(config, params, ids[None], taps)[1]
        first = recorded["attn_mix"][:, 0]  # [L, N], sigma_1^2 / |O|_F^2
        scale, error = (recorded[JOINED][name][:, 0] for name in ("scale", "error"))  # [L, N, T]
        see = jnp.any(masks & of[None, None], axis=-1) & ~of[None]  # [L, T]
        queries = jnp.broadcast_to(see[:, None], scale.shape)
        count = jnp.maximum(jnp.sum(queries, axis=-1, dtype=jnp.float32), 1.0)
        mean = 1.0 - jnp.sum(jnp.where(queries, 1.0 - scale, 0.0), axis=-1) / count
        spread = jnp.where(queries, jnp.square(scale - mean[..., None]), 0.0)
        received = recorded[JOINED]["received"][:, 0]
        return {
            "seen": jnp.any(see, axis=-1),
            "scale": mean,
            "scale_sd": jnp.sqrt(jnp.sum(spread, axis=-1) / count),
            "error": jnp.sum(jnp.where(queries, error, 0.0), axis=-1) / count,
            "attention": jnp.sum(jnp.where(queries, received, 0.0), axis=-1) / count,
            "drain": recorded["value"][:, 0],
            "stable_rank": ratio_or_zero(jnp.ones_like(first), first),
        }

    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), jax.lax.map(one, (tokens, outliers)))
