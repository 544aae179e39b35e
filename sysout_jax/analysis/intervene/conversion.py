"""A model that reads the same tokens without its sink's massive state.

Tokens that begin every text see nothing but themselves, so that their keys and values are the same
in every text. They can be parameters, and the tokens left out (T1): with k_j before rotation, the
text at positions c, c + 1, ...,

    o_i = sum_{j < c} p_ij v_j + sum_{j >= c} p_ij v_j,  p_ij = softmax(q_i . R_{j-i} k_j / sqrt(H))

is what the model with c extra keys computes, whatever the positions, norms, groups of heads and
windows. Axes: L layers, B sequences, T positions, K KV heads, H head dim, C extra keys.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sysout_jax.analysis.locate.weights import layer_count
from sysout_jax.core.positions import rotate
from sysout_jax.errors import InputError
from sysout_jax.model.compiling import jit_quickly
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, forward
from sysout_jax.model.geometry import rotation
from sysout_jax.model.sink import ExplicitSink


def with_prefix(
    config: ModelConfig, params: Params, prefix: Sequence[int]
) -> tuple[ModelConfig, Params]:
    """The model in which tokens that every text begins with are keys and values (T1): exact.

    It reads text without them, and computes for the rest what the model with them does; windows
    leave the keys as they leave the tokens. Of several tokens, under a rotation that depends on the
    length (dynamic, longrope), that holds for texts up to `rope_context`.

    Args:
      config: the architecture.
      params: its parameters, layers stacked or not.
      prefix: C token ids.

    Raises:
      InputError: no token, more than learned positions leave room for, a model that has such keys,
        or a variant that can have none.
    """
    ids = np.asarray(prefix, np.int32)
    _unconverted(config)
    if ids.ndim != 1 or not ids.size or not 0 <= ids.min() <= ids.max() < config.vocab:
        accepted = f"ids from 0 to {config.vocab - 1}, at least one"
        raise InputError("prefix", ",".join(map(str, ids.ravel())), accepted)
    if config.longest is not None and ids.size >= config.longest:
        raise InputError("prefix", f"{ids.size} tokens", f"fewer than {config.longest}")
    found = _prefix(config, params, jnp.asarray(ids)[None])
    changed = replace(_unfused(config), sink=ExplicitSink(keys=ids.size))
    own = {f"sink_{name}": found[name][:, 0] for name in ("key", "value")}
    return changed, with_own(params, "attn", own)


@jit_quickly(0)
def _prefix(config: ModelConfig, params: Params, tokens: Array) -> Mapping[str, Array]:
    taps = forward(config, params, tokens, {"key": None, "value": None})[1]
    return {"key": unrotated(config, taps["key"]), "value": taps["value"]}


def unrotated(
    config: ModelConfig, keys: Float[Array | np.ndarray, "L B T K H"]
) -> Float[Array, "L B T K H"]:
    """The keys of the first T positions before they were turned: R_{-t} k_t."""
    if config.position != "rope":
        return jnp.asarray(keys)
    length = keys.shape[2]
    layers = []
    for layer in range(config.layers):
        turned = rotation(config, length, layer)
        inverse = turned._replace(scale=1.0 / jnp.asarray(turned.scale, jnp.float32))
        one = jnp.asarray(keys[layer], jnp.float32)
        layers.append(rotate(one, -jnp.arange(length), inverse, config.rope.interleaved))
    return jnp.stack(layers)


def with_constants(
    config: ModelConfig,
    params: Params,
    constants: Mapping[str, Float[Array | np.ndarray, "L K H"]],
    layers: Sequence[int],
    silent: Sequence[int],
) -> tuple[ModelConfig, Params]:
    """The model of running text whose first token has constants for its key and value.

    In the layers that are named, one key of no token stands at position 0 and no query sees token 0
    itself; positions stay as they are. What the first token would write in the silent layers is
    left out, so that its state stays as small as that of others.

    Args:
      config: the architecture.
      params: its parameters, layers stacked or not.
      constants: "key", before its rotation, and "value".
      layers: in which the constants stand.
      silent: whose MLP writes nothing at token 0.

    Raises:
      InputError: layers that are not there, or a model that has such keys or can have none.
    """
    _unconverted(config)
    sink = ExplicitSink(replaces_first=True, layers=tuple(layers), silent=tuple(silent))
    own = {f"sink_{name}": constants[name][:, None] for name in ("key", "value")}
    return replace(_unfused(config), sink=sink), with_own(params, "attn", own)


def with_bounds(
    config: ModelConfig, params: Params, bounds: Float[np.ndarray, "L"]
) -> tuple[ModelConfig, Params]:
    """The converted model whose inputs of the down projection are within -b..b, b of each layer."""
    assert config.sink is not None
    changed = replace(config, sink=replace(config.sink, bounded=True))
    return changed, with_own(params, "mlp", {"down_bound": bounds})


def _unfused(config: ModelConfig) -> ModelConfig:
    return config.with_execution(flash=False)  # whose kernel has no keys of no token


def _unconverted(config: ModelConfig) -> None:
    if config.sink is not None:
        raise InputError("model", None, "one that was not converted", "its sink is explicit")


def with_own(params: Params, module: str, own: Mapping[str, Any]) -> Params:
    """The parameters with more of them in a module of each layer: name -> [L, ...]."""
    more = {name: jnp.asarray(value, jnp.float32) for name, value in own.items()}

    def within(block: Params, layer: int | None) -> Params:
        mine = more if layer is None else {name: value[layer] for name, value in more.items()}
        return {**block, module: {**block[module], **mine}}

    if "blocks" in params:
        return {**params, "blocks": within(params["blocks"], None)}
    layers = {f"block_{layer}": layer for layer in range(layer_count(params))}
    return {**params, **{name: within(params[name], layer) for name, layer in layers.items()}}
