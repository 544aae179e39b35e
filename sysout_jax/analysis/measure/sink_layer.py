"""The sink heads of one layer over texts: values, keys, outputs and the factor's logit.

Axes: B texts, C texts, these and those to fit on, T tokens, D width, N heads, K KV heads, H head
dim; n sink heads, k KV heads that serve them, P numbers of keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sysout_jax.analysis.locate.sinks import at_first, factor_of_first
from sysout_jax.analysis.measure.factor_features import Queries, errors
from sysout_jax.analysis.measure.half_space import required_mass, side

FEWEST_KEYS = 15  # of a hull; the next has twice as many and one


def _wide(x: Array) -> Array:
    return x.astype(jnp.float32)


def _of_sink(logits: Float[Array, "N T S"], weights: Float[Array, "N T S"]) -> dict[str, Array]:
    return {**factor_of_first(logits, weights), "sink": _wide(logits[:, :, 0])}


TAPS: Mapping[str, Any] = {
    "block_in": at_first, "attn_norm": _wide, "query": _wide, "key": _wide, "value": _wide,
    "attn_mix": _wide, "attn_logits+attn_weights": _of_sink,
}  # fmt: skip
AT_FIRST: Mapping[str, Any] = {"key": at_first, "value": at_first}


@dataclass(frozen=True)
class SinkLayer:
    """What texts show of them."""

    layer: int
    heads: Int[np.ndarray, "n"]
    served: Int[np.ndarray, "k"]
    keys: tuple[int, ...]  # numbers of keys that hulls are of: tokens 1 to that
    distance: Float[np.ndarray, "P B k"]  # dist(0, conv V_R) over mean |v|
    sink_key: Float[np.ndarray, "P B k"]  # dist(k_0, conv K_R) over mean |k_j - k_0|
    required: Float[np.ndarray, "P B n"]  # of the query that sees these keys; NaN: nothing is
    actual: Float[np.ndarray, "P B n"]  # its attention to the sink
    drain: Float[np.ndarray, "B n"]  # |v_0| over the mean |v| of the others
    cosine: Float[np.ndarray, "B n"]  # of the mean query and the sink's key
    cosine_others: Float[np.ndarray, "B n"]  # mean over the other keys
    key_off: Float[np.ndarray, "B k"]  # |k_0 - its mean over texts|^2 over the mean's
    value_off: Float[np.ndarray, "B k"]
    value: Float[np.ndarray, "k"]  # |v_0|, mean over texts
    state: Float[np.ndarray, "B D"]  # that enters the layer at the first token
    errors: Mapping[str, Float[np.ndarray, "B n"]]  # of what tells logit S, on these texts
    spread: Float[np.ndarray, "B n"]  # that they are of


def sink_layer(
    layer: int,
    heads: Int[np.ndarray, "n"],
    tokens: Int[np.ndarray, "C T"],
    queries: Int[np.ndarray, "q"],
    seen: Mapping[str, Any],
    texts: int,
) -> SinkLayer:
    """Measure them.

    Args:
      layer: its number.
      heads: its sink heads.
      tokens: B texts to measure, and then b of them to fit on.
      queries: those after the first that see the first token.
      seen: what `TAPS` recorded of these.
      texts: B.
    """
    group = seen["query"].shape[2] // seen["key"].shape[2]
    served = np.unique(heads // group)
    of_kv = np.searchsorted(served, heads // group)
    key, value = (_float64(seen[name][:texts][:, :, served]) for name in ("key", "value"))
    output = np.linalg.norm(_float64(seen["attn_mix"][:texts][:, :, heads]), axis=-1)
    given = 1.0 - _float64(seen["attn_logits+attn_weights"]["rest"][:texts][:, heads])
    norms = np.linalg.norm(value, axis=-1)
    counts = hull_sizes(queries)
    margin = np.array([_each(value[:, 1 : count + 1]) for count in counts])
    mean = np.array([norms[:, 1 : count + 1].mean(axis=1) for count in counts])
    apart = key[:, 1:] - key[:, :1]
    far = np.linalg.norm(apart, axis=-1)
    at = list(counts)
    cosine, others = cosines(seen["query"][:texts][:, queries][:, :, heads], key[:, :, of_kv])
    mistakes, spread = _told(heads, tokens, queries, seen, texts)
    return SinkLayer(
        layer, heads, served, counts, _over(margin, mean),
        _over(
            np.array([_each(apart[:, :count]) for count in counts]),
            np.array([far[:, :count].mean(axis=1) for count in counts]),
        ),
        required_mass(
            margin[:, :, of_kv], norms[None, :, 0][..., of_kv], np.moveaxis(output[:, at], 1, 0)
        ),
        np.moveaxis(given[:, :, at], 2, 0),
        _over(norms[:, 0], norms[:, 1:].mean(axis=1))[:, of_kv], cosine, others,
        deviations(key[:, 0]), deviations(value[:, 0]), norms[:, 0].mean(axis=0),
        _float64(seen["block_in"][:texts]), mistakes, spread,
    )  # fmt: skip


def hull_sizes(queries: Int[np.ndarray, "q"]) -> tuple[int, ...]:
    """15, 31, 63, ...: the numbers of keys after the sink that some of the queries see beside it;
    the one number that there is of shorter texts."""
    most = int(queries.max())
    found, count = [], FEWEST_KEYS
    while count <= most:
        found.append(count)
        count = 2 * count + 1
    return tuple(found) or (most,)


def deviations(of: Float[np.ndarray, "B k H"]) -> Float[np.ndarray, "B k"]:
    """Squared distances from the mean over B, over its squared length."""
    of = _float64(of)
    mean = of.mean(axis=0)
    return _over(np.sum((of - mean) ** 2, axis=-1), np.sum(mean**2, axis=-1))


def cosines(
    query: Float[np.ndarray, "B q n H"], key: Float[np.ndarray, "B T n H"]
) -> tuple[Float[np.ndarray, "B n"], Float[np.ndarray, "B n"]]:
    """Of the mean query with the first key, and with the others, mean over them."""
    mean = _float64(query).mean(axis=1)
    size = np.linalg.norm(mean, axis=-1)[:, None] * np.linalg.norm(key, axis=-1)
    found = _over(np.einsum("BnH,BTnH->BTn", mean, key), size)
    return found[:, 0], found[:, 1:].mean(axis=1)


def _float64(x: np.ndarray) -> np.ndarray:
    return np.asarray(x, np.float64)


def _over(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.asarray(above / np.maximum(below, 1e-30))


def _each(vectors: Float[np.ndarray, "B S k H"]) -> Float[np.ndarray, "B k"]:
    """Their distance from zero."""
    texts, _, heads, _ = vectors.shape
    return np.array([
        [side(vectors[text, :, head]).margin for head in range(heads)] for text in range(texts)
    ])  # fmt: skip


def _told(
    heads: np.ndarray, tokens: np.ndarray, queries: np.ndarray, seen: Mapping[str, Any], texts: int
) -> tuple[Mapping[str, np.ndarray], np.ndarray]:
    """How well each set of features tells logit S on the texts, fitted to the others."""

    def of(which: slice) -> Queries:
        shares = {
            name: np.moveaxis(seen["attn_logits+attn_weights"][name][which], 1, 2)
            for name in ("sink", "evidence")
        }
        return Queries(
            tokens[which][:, queries], queries, seen["attn_norm"][which][:, queries],
            seen["query"][which][:, queries][:, :, heads],
            shares["sink"][:, queries][:, :, heads], shares["evidence"][:, queries][:, :, heads],
        )  # fmt: skip

    return errors(of(slice(texts, None)), of(slice(texts)))
