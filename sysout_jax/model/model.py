"""A model as users hold it: config, parameters, tokenizer."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
from flax import struct
from jaxtyping import Array, Float, Int

from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, forward
from sysout_jax.model.taps import Edit, Reducer


@struct.dataclass
class Model:
    """A decoder with its parameters: a pytree whose leaves are the parameters."""

    config: ModelConfig = struct.field(pytree_node=False)
    params: Params
    tokenizer: Any = struct.field(pytree_node=False, default=None)


def apply(
    model: Model,
    tokens: Int[Array, "B T"],
    taps: Mapping[str, Reducer | None] | None = None,
    edits: Mapping[str, Edit] | None = None,
) -> tuple[Float[Array, "B T V"], dict[str, Any]]:
    """Run a model, compiled: logits, and what the taps recorded.

    Functions in `taps` and `edits` are part of the compiled program's identity: pass the same
    objects again to reuse it. Arguments, returns and errors are those of `decoder.forward`.
    """
    taps, edits = taps or {}, edits or {}
    return _apply(model.config, tuple(taps.items()), tuple(edits.items()), model.params, tokens)


@partial(jax.jit, static_argnums=(0, 1, 2))
def _apply(config: ModelConfig, taps: Any, edits: Any, params: Params, tokens: Array) -> Any:
    return forward(config, params, tokens, dict(taps), dict(edits))
