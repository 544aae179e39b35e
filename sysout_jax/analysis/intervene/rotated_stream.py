"""The same function with its residual stream in another basis, written into the parameters.

Of states h and an orthogonal Q, h' = h Q has the size of h. So RMSNorm without gains commutes with
Q, and with the gains g of a norm, what reads it and what writes into the stream become

    n(h) W = (h' / rms(h')) (Q^T diag(g) W),        h + a W_o -> h' + a (W_o Q).

LayerNorm is RMSNorm of h C, C = I - 1 1^T / D: what is written is centred first, W_o C Q. Its bias
b adds b W behind the product.

Axes: D width.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Array, Float

from sysout_jax.core.attention import VARIANTS
from sysout_jax.errors import InputError
from sysout_jax.model.compiling import precisely
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, param_axes, param_shapes

COMMUTES = ("rms", "layer", "single_scale")  # with a rotation, once their gains are elsewhere
Path = tuple[str, ...]


@precisely
def rotate_stream(
    config: ModelConfig, params: Params, rotation: Float[Array, "D D"]
) -> tuple[ModelConfig, Params]:
    """The model whose residual stream is h Q, and whose logits are those of the given one.

    Its norms have no gains, LayerNorm is RMSNorm, and a head that was tied has weights of its own.
    Products are made in float32 and stored in each parameter's dtype.

    Args:
      config: the architecture.
      params: its parameters, layers stacked or not.
      rotation: Q [D, D], orthogonal.

    Raises:
      InputError: norms that do not commute with Q or do not stand before attention and MLP, a
        variant that sees states through more than maps of them, a bias of LayerNorm that nothing
        behind it takes up, or a norm of embeddings.

    Source: Ashkboos et al. 2024 (arXiv:2401.15024), section 3, and (arXiv:2404.00456), stage 1a.
    """
    given = config.with_execution(scan_layers="blocks" in params)
    check_rotates(given)
    changed = _without_gains(given)
    axes, shapes = flatten_dict(param_axes(changed)), flatten_dict(param_shapes(changed))
    own = flatten_dict(params)
    if given.tied and not changed.tied:
        own["head",] = own["embed",].T
    for path in axes.keys() - own.keys():  # biases that LayerNorm's go to
        own[path] = jnp.zeros(shapes[path].shape, own["embed",].dtype)
    made = {path: own[path] for path in axes}
    for path, letters in axes.items():
        if "D" not in letters:
            continue
        if path[-1] == "scale":
            made[path] = jnp.full_like(own[path], 0.0 if given.norm_plus_one else 1.0)
            continue
        at = letters.replace("->", " ").split().index("D")
        x = jnp.moveaxis(own[path].astype(jnp.float32), at, -1)
        if _reads(letters):
            gains, bias = _norm_before(given, own, path)
            if bias is not None:
                behind = (*path[:-1], f"{path[-1]}_bias")
                more = (x * _beside(x, bias)).sum(axis=-1)
                made[behind] = (own[behind] + more).astype(own[behind].dtype)
            x = x if gains is None else x * _beside(x, gains)
        elif given.norm == "layer":
            x = x - x.mean(axis=-1, keepdims=True)
        made[path] = jnp.moveaxis(x @ rotation, -1, at).astype(own[path].dtype)
    return replace(changed, execution=config.execution), unflatten_dict(made)


def check_rotates(config: ModelConfig) -> None:
    """Refuse a model whose residual stream cannot be rotated in the weights.

    Raises:
      InputError: as of `rotate_stream`.
    """

    def refuse(name: str, accepted: str) -> None:
        raise InputError(name, getattr(config, name), accepted, "the stream cannot be rotated")

    if config.norm not in COMMUTES:
        refuse("norm", ", ".join(COMMUTES))
    if config.norm_placement != "pre":
        refuse("norm_placement", "pre")
    if config.embed_norm:
        refuse("embed_norm", "no norm of embeddings")
    of_variant = [param.axes for param in VARIANTS[config.variant].params.values()]
    if any("D" in axes and not _reads(axes) for axes in of_variant):
        refuse("variant", "one that sees states through maps D -> ...")
    if config.norm == "layer" and config.query_key_norm != "none":
        refuse("query_key_norm", "none beside LayerNorm, which becomes RMSNorm")
    if config.norm == "layer" and config.has_bias("norm"):
        if config.embed_width is not None:
            refuse("embed_width", "none where LayerNorm has a bias, which a bias has to take up")
        if any(_reads(axes) for axes in of_variant):
            refuse("variant", "one that reads no states where LayerNorm has a bias")


def _without_gains(config: ModelConfig) -> ModelConfig:
    """The architecture of the rotated model; its norms keep scales, which are 1."""
    changes: dict[str, Any] = {"tied": config.tied and config.embed_width is not None}
    if config.norm == "layer":
        changes |= {"norm": "rms", "norm_bias": None}
        if config.has_bias("norm"):
            changes |= dict.fromkeys(("qkv_bias", "mlp_bias", "head_bias"), True)
    return replace(config, **changes)


def _norm_before(
    config: ModelConfig, own: Mapping[Path, Array], path: Path
) -> tuple[Array | None, Array | None]:
    """The gains and the bias of the norm that a parameter reads, or None where it has none."""
    norm: Path = ("final_norm",)
    if len(path) > 1:
        module = "attn" if config.parallel_block == "shared" else path[-2]
        norm = (*path[:-2], f"{module}_norm")
    gains, bias = (own.get((*norm, name)) for name in ("scale", "bias"))
    if gains is not None and config.norm_plus_one:
        gains = gains.astype(jnp.float32) + 1.0
    return gains, bias


def _reads(letters: str) -> bool:
    inputs, arrow, _ = letters.partition("->")
    return bool(arrow) and "D" in inputs


def _beside(x: Float[Array, "... D"], of_norm: Float[Array, "*L D"]) -> Float[Array, "... D"]:
    """What a norm has, of each layer where x is of all layers, for every row of x."""
    lead = of_norm.shape[:-1]
    ones = (1,) * (x.ndim - len(lead) - 1)
    return jnp.broadcast_to(
        of_norm.astype(x.dtype).reshape(*lead, *ones, of_norm.shape[-1]), x.shape
    )
