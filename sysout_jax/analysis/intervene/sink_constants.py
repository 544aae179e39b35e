"""What stands for a sink in the layers that read it: constants that calibration text gives.

Axes: L layers, l of them from the first changed one on, B sequences, T positions, D width, N heads,
K KV heads, H head dim.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from scipy import optimize, special

from sysout_jax.analysis.intervene.explicit_factor import Factors, Gates, fit_gates, inside
from sysout_jax.analysis.locate.scan import QUERIES_AT_ONCE, over_batches
from sysout_jax.analysis.locate.sinks import at_first, factor_of_first, sees_first
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params
from sysout_jax.model.stream import entering, through


@dataclass(frozen=True)
class Constants:
    """What stands for the first token in the layers that read it; zero in the layers before."""

    key: Float[np.ndarray, "L K H"]  # mean over texts, after norm and positions
    value: Float[np.ndarray, "L K H"]
    logit: Float[np.ndarray, "L N"]  # b with mean sigma(LSE_R - b) = mean S
    share: Float[np.ndarray, "L N"]  # mean S over queries that see the first token
    gates: Gates  # of S, linear in the attention input
    key_spread: Float[np.ndarray, "L K"]  # rms distance of the texts' keys from `key`, over |key|
    value_spread: Float[np.ndarray, "L K"]

    @property
    def bias(self) -> Float[np.ndarray, "L N H"]:
        """E[1 - S] v_0."""
        value = np.repeat(self.value, self.share.shape[1] // self.value.shape[1], axis=1)
        return (1.0 - self.share)[..., None] * value


def constants(
    config: ModelConfig, params: Params, tokens: Int[np.ndarray, "B T"], first: int, batch: int
) -> Constants:
    """Measure them on calibration text.

    Args:
      config: the architecture, of variant softmax.
      params: its parameters.
      tokens: [B, T], T at least 3; of long sequences the part whose maps fit.
      first: the first layer that is to be changed.
      batch: sequences that are run together.
    """
    tokens = tokens[:, :QUERIES_AT_ONCE]

    def run(params: Params, tokens: Array) -> Any:
        x, _ = through(config, params, entering(config, params, tokens), range(first))
        return through(config, params, x, range(first, config.layers), _MEASURED)[1]

    found = over_batches(run, params, tokens, batch)
    heads, seen = found["attn_logits+attn_weights"], sees_first(config, tokens.shape[1])[first:]
    key, key_spread = _mean_and_spread(found["key"], first)
    value, value_spread = _mean_and_spread(found["value"], first)
    logit, share = (np.zeros((config.layers, config.sizes["N"])) for _ in range(2))
    kernel = np.zeros((config.layers, config.width, config.sizes["N"]))
    offset = np.zeros_like(share)
    for layer, queries in enumerate(seen):
        rest, evidence = (heads[name][layer][..., queries] for name in ("rest", "evidence"))
        at = first + layer
        share[at] = rest.mean(axis=(0, 2), dtype=np.float64)
        if queries.any():
            logit[at] = _constant_logits(rest, evidence)
            x = found["attn_norm"][layer][None, :, queries]
            fitted = fit_gates(Factors(x, rest[None]))
            kernel[at], offset[at] = fitted.kernel[0], fitted.bias[0]
    gates = Gates(kernel, offset)
    return Constants(key, value, logit, share, gates, key_spread, value_spread)


_MEASURED: Mapping[str, Any] = {
    "attn_norm": lambda x: x.astype(jnp.float32),
    "key": at_first,
    "value": at_first,
    "attn_logits+attn_weights": factor_of_first,
}


def _mean_and_spread(
    found: Float[np.ndarray, "l B K H"], first: int
) -> tuple[Float[np.ndarray, "L K H"], Float[np.ndarray, "L K"]]:
    found = found.astype(np.float64)
    mean = found.mean(axis=1)
    distance = np.sqrt(np.mean(np.sum((found - mean[:, None]) ** 2, axis=-1), axis=1))
    norm = np.linalg.norm(mean, axis=-1)
    spread = distance / np.where(norm > 0.0, norm, 1.0)
    early = ((first, 0), (0, 0))
    return np.pad(mean, (*early, (0, 0))), np.pad(spread, early)


def _constant_logits(
    rest: Float[np.ndarray, "B N T"], evidence: Float[np.ndarray, "B N T"]
) -> Float[np.ndarray, "N"]:
    """Of each head the b with mean sigma(LSE_R - b) = mean S: what logistic regression gives."""
    evidence = np.moveaxis(evidence.astype(np.float64), 1, 0).reshape(rest.shape[1], -1)
    target = inside(rest.mean(axis=(0, 2), dtype=np.float64))

    def excess(b: float, head: int) -> float:
        return float(special.expit(evidence[head] - b).mean() - target[head])

    ends = evidence.min(axis=1) - 40.0, evidence.max(axis=1) + 40.0
    return np.array([
        optimize.brentq(excess, ends[0][head], ends[1][head], args=(head,))
        for head in range(len(target))
    ])  # fmt: skip
