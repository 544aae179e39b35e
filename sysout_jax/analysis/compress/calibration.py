"""What methods learn from calibration text: the inputs of the matrix products of every layer.

Axes: L layers, B sequences, T tokens, I inputs.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sysout_jax.analysis.compress.schemes import Rounding
from sysout_jax.analysis.locate.scan import for_length, over_batches
from sysout_jax.core import quantise
from sysout_jax.core.compensate import hadamard
from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params
from sysout_jax.model.stream import recorded, through

# What goes into the matrix products of a layer -> the projections that it goes into.
PRODUCTS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "attn_norm": (("attn", "query"), ("attn", "key"), ("attn", "value")),
    "attn_mix": (("attn", "out"),),
    "mlp_norm": (("mlp", "gate"), ("mlp", "up")),
    "down_in": (("mlp", "down"),),
}
CACHE = ("key", "value")
SHARED = 32  # tokens in a row that calibration and evaluation text must not have in common


@dataclass(frozen=True)
class Inputs:
    """The inputs of one tap's products over all calibration tokens."""

    gram: np.ndarray | None  # [L, I, I], X^T X, where it was asked for
    square: np.ndarray  # [L, I], sum of x^2, the diagonal of the Gram matrix
    mean: np.ndarray  # [L, I], mean |x|
    low: np.ndarray  # [L, I], the lowest value, of tokens that are rounded
    high: np.ndarray  # [L, I], the highest

    @property
    def peak(self) -> np.ndarray:
        """[L, I]: max |x|."""
        return np.maximum(-self.low, self.high)

    def of(self, layer: int) -> "Inputs":
        """Those of one layer, without the axis L."""
        rest = (each[layer] for each in (self.square, self.mean, self.low, self.high))
        return Inputs(None if self.gram is None else self.gram[layer], *rest)


def inputs(
    config: ModelConfig,
    params: Params,
    tokens: np.ndarray,
    taps: Sequence[str] = tuple(PRODUCTS),
    gram: bool = True,
    keep: int = 0,
) -> dict[str, Inputs]:
    """Measure the inputs of the matrix products of all layers, one sequence after the other.

    Args:
      config: the architecture.
      params: its parameters.
      tokens: [B, T] of calibration text.
      taps: keys of `PRODUCTS`.
      gram: whether Gram matrices are measured, which take 8 L I^2 bytes of the host's memory.
      keep: tokens at the start that the lowest and highest values leave out.

    Raises:
      InputError: the inputs are not finite.
    """
    config = for_length(config, tokens.shape[1])
    reducers = dict.fromkeys(taps, _reducer(gram, keep))
    records = (recorded(config, params, jnp.asarray(row[None]), reducers) for row in tokens)
    return _over(records, len(tokens))


def inputs_of_layer(
    config: ModelConfig,
    params: Params,
    layer: int,
    states: Sequence[Float[Array, "1 T D"]],
    taps: Sequence[str],
    gram: bool,
) -> dict[str, Inputs]:
    """`inputs` of one layer, L = 1, from the residual stream of each sequence that enters it."""
    reducers = dict.fromkeys(taps, _reducer(gram, 0))
    only = range(layer, layer + 1)
    return _over((through(config, params, x, only, reducers)[1] for x in states), len(states))


def _over(records: Iterable[Any], count: int) -> dict[str, Inputs]:
    """What the records of so many sequences say together."""
    total: dict[str, Any] = {}
    for record in records:
        one = jax.tree.map(lambda x: np.asarray(x[:, 0], np.float64), jax.device_get(record))
        total = jax.tree_util.tree_map_with_path(_join, total, one) if total else one
    found = {
        tap: Inputs(of.get("gram"), of["square"], of["mean"] / count, of["low"], of["high"])
        for tap, of in total.items()
    }
    for tap, of in found.items():
        if not np.isfinite(of.square).all():
            raise InputError(
                f"{tap} of the calibration text is not finite",
                accepted="a model whose activations are",
            )
    return found


@lru_cache(maxsize=16)
def _reducer(gram: bool, keep: int) -> Any:
    """The same object for the same question, which compiles once."""

    def moments(x: Float[Array, "T ..."]) -> dict[str, Array]:
        rows = x.reshape(x.shape[0], -1).astype(jnp.float32)
        found = {
            "square": jnp.sum(jnp.square(rows), axis=0),
            "mean": jnp.mean(jnp.abs(rows), axis=0),
            "low": jnp.min(rows[keep:], axis=0),
            "high": jnp.max(rows[keep:], axis=0),
        }
        return {**found, "gram": rows.T @ rows} if gram else found

    return moments


def _join(path: Any, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    joins = {"low": np.minimum, "high": np.maximum}
    joined: np.ndarray = joins.get(path[-1].key, np.add)(a, b)
    return joined


@lru_cache(maxsize=8)
def rotation(tap: str, size: int) -> Float[Array, "I I"]:
    """The random rotation of a tap's inputs, the same in every layer and every run; of keys and
    values, that of their heads' channels."""
    return hadamard(size, jax.random.key([*PRODUCTS, *CACHE].index(tap)))


def limits(
    config: ModelConfig,
    params: Params,
    tokens: np.ndarray,
    how: Rounding,
    taps: Sequence[str],
    batch: int = 8,
) -> dict[str, Float[np.ndarray, "L 2"]]:
    """The static range of each tap's inputs in each layer, rotated if they are rotated before
    rounding: the lowest and the highest value.

    minmax is over all calibration tokens; percentile and mse are means over sequences of what each
    sequence gives, since no step sees all tokens at once.
    """
    reducers = {tap: _range(how, tap) for tap in taps}
    run = partial(recorded, for_length(config, tokens.shape[1]), taps=reducers)
    found = {}
    for tap, of in over_batches(run, params, tokens, batch).items():
        ends = np.asarray(of, np.float64)  # [L, B, 2]
        if how.ranges == "minmax":
            found[tap] = np.stack([ends[..., 0].min(axis=1), ends[..., 1].max(axis=1)], axis=-1)
        else:
            found[tap] = ends.mean(axis=1)
    return found


@lru_cache(maxsize=64)
def _range(how: Rounding, tap: str) -> Any:
    """The reducer of one sequence; the same object for the same question, which compiles once."""

    def reduce(x: Float[Array, "T ..."]) -> Float[Array, "2"]:
        rows = x.reshape(x.shape[0], -1).astype(jnp.float32)[how.keep :]
        rotated = rows @ rotation(tap, rows.shape[-1]) if how.basis == "rotate" else rows
        shared = rotated.reshape(1, -1)
        if how.ranges == "minmax":
            return jnp.stack([jnp.min(shared), jnp.max(shared)])
        if how.ranges == "mse":
            fmt = quantise.FORMATS[cast(str, how.activations)]  # ranges are of a format's
            top = quantise.least_error_magnitude(shared, fmt)[0, 0]
            return jnp.stack([-top, top])
        if how.zero_point:
            ends = jnp.asarray([100.0 - quantise.PERCENTILE, quantise.PERCENTILE])
            return jnp.percentile(shared, ends)
        top = quantise.percentile_magnitude(shared)[0, 0]
        return jnp.stack([-top, top])

    return reduce


def disjoint_rows(
    calibration: np.ndarray, evaluation: np.ndarray, wanted: int, shared: int = SHARED
) -> np.ndarray:
    """The first calibration rows that have no text in common with the evaluation.

    Text is in common where `shared` tokens in a row, or half of a row where that is less, stand in
    both.

    Args:
      calibration, evaluation: [B, S] token rows; more of calibration than wanted, to choose from.
      wanted: rows to return.
      shared: see above.

    Raises:
      InputError: there are fewer such rows.
    """
    width = min(shared, max(1, calibration.shape[1] // 2))
    seen = {piece for row in evaluation for piece in _pieces(row, width)}
    kept = [row for row in calibration if not any(p in seen for p in _pieces(row, width))]
    if len(kept) < wanted:
        raise InputError(
            "calibration",
            wanted,
            "a corpus whose parts differ",
            (
                f"only {len(kept)} of {len(calibration)} sequences of the training part "
                f"have no {width} tokens in a row in common with the validation part"
            ),
        )
    return np.stack(kept[:wanted])


def _pieces(row: np.ndarray, width: int) -> Any:
    row = np.ascontiguousarray(row)
    return (row[i : i + width].tobytes() for i in range(len(row) - width + 1))
