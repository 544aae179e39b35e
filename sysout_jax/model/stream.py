"""The decoder one layer at a time: models larger than memory, their activations carried."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sysout_jax.errors import InputError
from sysout_jax.model.block import Block, Norm
from sysout_jax.model.compiling import jit_quickly
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, embed, forward, head_names, init, logits_of
from sysout_jax.model.taps import Edits, Probe, Reducer, Tap, check_asked


@dataclass(frozen=True)
class Layers(Mapping[str, Any]):
    """Parameters that are read when they are asked for, and held by nobody.

    read: "embed", "block_3", "final_norm", ... to those parameters.
    names: what there is to read.
    """

    read: Callable[[str], Any]
    names: tuple[str, ...]

    def __getitem__(self, name: str) -> Any:
        if name not in self.names:
            raise KeyError(name)
        return self.read(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


def check_in_memory(params: Params) -> None:
    """Refuse parameters that are read layer by layer.

    Raises:
      InputError: they are.
    """
    if isinstance(params, Layers):
        raise InputError("model", None, "a model in memory", "it is read layer by layer")


def recorded(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    taps: Mapping[str, Reducer | Tap | None],
) -> dict[str, Any]:
    """What taps record, compiled; of `Layers` with one of them in memory at a time.

    Functions in `taps` are part of the compiled program's identity: pass the same objects again to
    reuse it. Arguments and errors are those of `decoder.forward`.
    """
    if isinstance(params, Layers):
        return _pass(config, params.read, tokens, taps, None)[1]
    return _whole(config, tuple(taps.items()), params, tokens)


@jit_quickly(0, 1)
def _whole(config: ModelConfig, taps: Any, params: Params, tokens: Array) -> Any:
    return forward(config, params, tokens, dict(taps))[1]


def streamed(
    config: ModelConfig,
    read: Callable[[str], Any],
    tokens: Int[Array, "B T"],
    taps: Mapping[str, Reducer | Tap | None] | None = None,
    edits: Edits | None = None,
) -> tuple[Float[Array, "B T V"], dict[str, Any]]:
    """`forward`, with the parameters of one layer in memory at a time.

    The block is compiled once. What the taps record goes to the host after every layer: reduce it
    in the taps, or it grows with the depth.

    Args:
      config: the architecture, `scan_layers` without effect.
      read: gives the parameters below a name of the top level of the tree; called once for each,
        in the order of the computation (again for the embedding where the head is tied to it).
      tokens, taps, edits: as for `forward`.

    Returns:
      As `forward`.

    Raises:
      InputError: as `forward`, before anything is read.
    """
    x, records = _pass(config, read, tokens, taps, edits)
    return _unembed(config, {name: read(name) for name in head_names(config)}, x), records


def _pass(
    config: ModelConfig, read: Callable[[str], Any], tokens: Array, taps: Any, edits: Any
) -> tuple[Float[Array, "B T D"], dict[str, Any]]:
    """The final states and what the taps record; the head is not read."""
    _check(config.with_execution(scan_layers=True), tokens, taps, edits)
    config = config.with_execution(scan_layers=False)
    check_asked(taps or {}, edits or {})
    probe = Probe(taps, edits)
    asked, edits = tuple(probe.taps.items()), probe.edits
    x = _embed(config, {name: read(name) for name in _read_first(config)}, tokens)
    per_layer = []
    for layer in range(config.layers):
        here = tuple((name, tap) for name, tap in asked if not tap.chosen or layer in tap.chosen)
        x, record = _block(config, here, read(f"block_{layer}"), x, jnp.asarray(layer), edits)
        per_layer.append(jax.device_get(record))
    norm = {} if config.norm_placement == "post" else read("final_norm")
    x, last = _final(config, asked, norm, x, edits)
    return x, probe.stacked(per_layer) | last


def _read_first(config: ModelConfig) -> tuple[str, ...]:
    """The parameters that the state before the first block is made of."""
    return (
        "embed",
        *(["positions"] if config.position == "learned" else []),
        *(["embed_in"] if config.embed_width is not None else []),
        *(["embed_norm"] if config.embed_norm else []),
    )


def entering(
    config: ModelConfig, params: Params, tokens: Int[Array, "B T"]
) -> Float[Array, "B T D"]:
    """The residual stream that enters the first block, compiled."""
    return _embed(config, {name: params.get(name, {}) for name in _read_first(config)}, tokens)


def through(
    config: ModelConfig,
    params: Params,
    x: Float[Array, "B T D"],
    layers: range,
    taps: Mapping[str, Reducer | None] | None = None,
    edits: Edits | None = None,
) -> tuple[Float[Array, "B T D"], dict[str, Any]]:
    """Some layers of a decoder in memory: x_{l+1} = Block_l(x_l), l of `layers`.

    A pass under edits is that without them up to the first edited layer, so it can begin there. The
    block is compiled once, whatever the layers.

    Args:
      config: the architecture.
      params: its parameters, layers stacked or not.
      x: [B, T, D], the residual stream that enters the first of the layers.
      layers: which, one after the other.
      taps: name -> reducer of one sequence's value, the same objects again for the same program.
      edits: as for `forward`; their layers are those of the whole decoder.

    Returns:
      The residual stream that leaves the last of the layers, and name -> record, with leading axes
      [len(layers), B].
    """
    of, asked, per_layer = edits or {}, tuple((taps or {}).items()), []
    for layer in layers:
        if "blocks" in params:
            x, record = _stacked_block(config, asked, params["blocks"], x, jnp.asarray(layer), of)
        else:
            block = params[f"block_{layer}"]
            x, record = _block(config, asked, block, x, jnp.asarray(layer), of)
        per_layer.append(record)
    if not per_layer:
        return x, {}
    return x, jax.tree.map(lambda *each: np.stack(each), *jax.device_get(per_layer))


def _check(config: ModelConfig, tokens: Array, taps: Any, edits: Any) -> None:
    """Trace the whole once, on shapes alone: `forward` refuses what cannot be run."""
    shapes = jax.eval_shape(partial(init, config), jax.random.key(0))
    jax.eval_shape(partial(forward, config, taps=taps, edits=edits), shapes, tokens)


@jit_quickly(0)
def _embed(config: ModelConfig, params: Params, tokens: Array) -> Array:
    x = embed(config, lambda name, axes: params[name], tokens)
    if config.embed_norm:
        x = Norm(config).apply({"params": params["embed_norm"]}, x)  # type: ignore[assignment]
    return x


@jit_quickly(0, 1)
def _block(
    config: ModelConfig, taps: Any, params: Params, x: Array, layer: Array, edits: Any
) -> Any:
    return Block(config, Probe(dict(taps), edits)).apply({"params": params}, x, layer)


@jit_quickly(0, 1)
def _stacked_block(
    config: ModelConfig, taps: Any, blocks: Params, x: Array, layer: Array, edits: Any
) -> Any:
    return _block(config, taps, jax.tree.map(lambda each: each[layer], blocks), x, layer, edits)


@jit_quickly(0, 1)
def _final(config: ModelConfig, taps: Any, params: Params, x: Array, edits: Any) -> Any:
    recorded: dict[str, Any] = {}
    if config.norm_placement != "post":
        x = Norm(config).apply({"params": params}, x)  # type: ignore[assignment]
    tap = Probe(dict(taps), edits).at(jnp.asarray(config.layers), recorded)
    return tap("final_norm", x), recorded


@jit_quickly(0)
def _unembed(config: ModelConfig, params: Params, x: Array) -> Array:
    return logits_of(config, params, x)
