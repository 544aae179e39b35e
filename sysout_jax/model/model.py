"""A model as users hold it: config, parameters, tokenizer."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import numpy as np
from flax import struct
from jaxtyping import Array, Float

from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, forward
from sysout_jax.model.taps import Edit, Reducer


@struct.dataclass
class Model:
    """A decoder with its parameters: a pytree whose leaves are the parameters."""

    config: ModelConfig = struct.field(pytree_node=False)
    params: Params
    tokenizer: Any = struct.field(pytree_node=False, default=None)
    weights: str | None = struct.field(pytree_node=False, default=None)  # what they were read from


def apply(
    model: Model,
    tokens: Array | np.ndarray | Sequence[Sequence[int]],
    taps: Mapping[str, Reducer | None] | None = None,
    edits: Mapping[str, Edit] | None = None,
) -> tuple[Float[Array, "B T V"], dict[str, Any]]:
    """Run a model, compiled: logits, and what the taps recorded.

    Functions in `taps` and `edits` are part of the compiled program's identity: pass the same
    objects again to reuse it. Arguments, returns and errors are those of `decoder.forward`, and
    tokens that are no ids of the vocabulary are an InputError.
    """
    tokens = token_ids("tokens", tokens, "B T", model.config.vocab)
    taps, edits = taps or {}, edits or {}
    return _apply(model.config, tuple(taps.items()), tuple(edits.items()), model.params, tokens)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _apply(config: ModelConfig, taps: Any, edits: Any, params: Params, tokens: Array) -> Any:
    return forward(config, params, tokens, dict(taps), dict(edits))


def token_ids(name: str, ids: Any, axes: str, vocab: int) -> Any:
    """Ids as an int32 array that a model can read: what it would do with others has no meaning.

    Args:
      name: of the argument.
      ids: an array or nested sequences; of a tracer, whose values are not known, and of an array
        of which other hosts hold a part, only shape and dtype are looked at.
      axes: one letter for each axis of `ids`.
      vocab: V of the model.

    Raises:
      InputError: no integers, other axes, nothing at all, or an id outside of 0 to V - 1.
    """
    accepted = f"accepted: integer ids [{', '.join(axes.split())}], at least one"
    if not isinstance(ids, jax.Array):
        try:
            ids = np.asarray(ids)
        except ValueError as error:
            raise InputError(f"{name}: rows of different lengths; {accepted}") from error
    if ids.ndim != len(axes.split()) or ids.dtype.kind not in "iu" or not ids.size:
        raise InputError(f"{name}: {ids.dtype} of shape {list(ids.shape)}; {accepted}")
    if isinstance(ids, jax.core.Tracer) or not getattr(ids, "is_fully_addressable", True):
        return ids.astype(np.int32)
    known = np.asarray(ids)
    for found in (known.min(), known.max()):
        if not 0 <= found < vocab:
            raise InputError(
                f"{name}: token id {found}; accepted: 0 to {vocab - 1}, the ids of the model's own "
                "tokenizer"
            )
    return ids.astype(np.int32)
