"""Tokens beside the first sink whose state stands out for some of the layers: secondary sinks.

Axes: L layers, N heads, T tokens, D width.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

STANDS_OUT = 3.0  # ours: |h| over the median token's


@dataclass(frozen=True)
class SecondarySink:
    """A token whose state has `STANDS_OUT` times the median token's norm, and from when to when."""

    token: int  # its position
    born: int  # the first layer after which it stands out
    gone: int | None  # the layer that ends that for good; None: it stands out to the end
    over_median: float  # its norm over the median token's where that is largest
    cosine: float  # of its state there with the first sink's, where that one is largest
    received: float  # share of the attention of queries that see it, itself among them; mean over
    #   heads and layers that read it


def secondary_sinks(
    states: Float[np.ndarray, "L T D"], received: Float[np.ndarray, "L N T"], first: int
) -> tuple[SecondarySink, ...]:
    """Where secondary sinks are born, where they go, and how far they point as the first one does.

    Token t stands out after layer l where |h_t| > `STANDS_OUT` median_u |h_u|.

    Args:
      states: [L, T, D], the residual stream after each layer.
      received: [L, N, T], the share of attention that queries that see a token give it.
      first: the token that is no secondary one.

    Returns:
      The largest over the median first. They are the "secondary attention sinks" of arXiv
      2512.22213, whose threshold is of attention.
    """
    states = states.astype(np.float64)
    norms = np.linalg.norm(states, axis=-1)
    median = np.median(norms, axis=1, keepdims=True)
    over = np.divide(norms, median, out=np.zeros_like(norms), where=median > 0)
    top = np.argmax(norms[:, first])
    found = []
    for token in range(states.shape[1]):
        layers = np.flatnonzero(over[:, token] > STANDS_OUT)
        if token == first or not layers.size:
            continue
        born, end, peak = int(layers[0]), int(layers[-1]) + 1, int(np.argmax(over[:, token]))
        scale = norms[peak, token] * norms[top, first]
        reading = received[born + 1 : end + 1, :, token]
        found.append(
            SecondarySink(
                token, born, end if end < len(states) else None, float(over[peak, token]),
                float(states[peak, token] @ states[top, first] / scale) if scale else 0.0,
                float(reading.mean()) if reading.size else 0.0,
            )
        )  # fmt: skip
    return tuple(sorted(found, key=lambda sink: -sink.over_median))
