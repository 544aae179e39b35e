"""Rounding the two sides of a matrix product: its input, as an edit of a tap, and its weights.

A basis changes the coordinates in which both are rounded, x W = (x B) (B^-1 W). The product is made
in the given coordinates all the same: the input comes back as round(x B) B^-1 and the weights as
B round(B^-1 W), whose product is round(x B) round(B^-1 W). So a model keeps its architecture.

Axes: L layers, B sequences, T tokens, I inputs, O outputs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from sysout_jax.analysis.compress.schemes import Rounding
from sysout_jax.core import compensate, quantise
from sysout_jax.errors import InputError
from sysout_jax.model.compiling import precisely


@struct.dataclass
class Basis:
    """The coordinates in which the input of a product is rounded; nothing means the given ones."""

    scales: Float[Array, "... I"] | None = (
        None  # what inputs are divided by; [L, I], [I] of a layer
    )
    rotation: Float[Array, "I I"] | None = None  # the same in every layer

    def at(self, layer: Int[Array, ""] | int) -> "Basis":
        """The basis of one layer."""
        return Basis(None if self.scales is None else self.scales[layer], self.rotation)

    def into(self, x: Float[Array, "*B I"]) -> Float[Array, "*B I"]:
        """x B."""
        if self.scales is not None:
            x = x / jnp.broadcast_to(self.scales, x.shape)
        return x if self.rotation is None else x @ self.rotation

    def back(self, x: Float[Array, "*B I"]) -> Float[Array, "*B I"]:
        """x B^-1."""
        if self.rotation is not None:
            x = x @ self.rotation.T
        return x if self.scales is None else x * jnp.broadcast_to(self.scales, x.shape)

    def weights_into(self, w: Float[Array, "I O"]) -> Float[Array, "I O"]:
        """B^-1 W."""
        if self.scales is not None:
            w = w * self.scales[:, None]
        return w if self.rotation is None else self.rotation.T @ w

    def weights_back(self, w: Float[Array, "I O"]) -> Float[Array, "I O"]:
        """B W."""
        if self.rotation is not None:
            w = self.rotation @ w
        return w if self.scales is None else w / self.scales[:, None]

    def gram_into(self, gram: Float[Array, "I I"]) -> Float[Array, "I I"]:
        """B^T G B, the Gram matrix of inputs x B."""
        return self.into(self.into(gram).T)


# ----------------------------------------------------------------------------- inputs


@dataclass(frozen=True)
class RoundInputs:
    """The function of an edit that rounds what goes into a matrix product, or into the KV cache.

    A scale is shared by a position, or by each of its equal `parts`: the heads of a cache, the
    inputs of the experts that a token goes to; by a sequence if per is "tensor"; by everything
    where there are limits, a static range; by a channel over `quantise.RUN` tokens if by_channel.
    The first `keep` tokens stay as they are, and so do the inputs that `exact` names: no range
    counts them.
    """

    fmt: str
    per: str
    zero_point: bool
    parts: int = 1
    keep: int = 0
    by_channel: bool = False

    def __call__(
        self, value: Float[Array, "T ..."], layer: Int[Array, ""], basis: Basis,
        limits: Float[Array, "L 2"] | None = None, exact: Bool[Array, "L I"] | None = None,
    ) -> Array:  # fmt: skip
        """The rounded value; `limits` are the lowest and highest value of each layer."""
        rows = value[self.keep :]
        if not len(rows):
            return value
        basis = basis.at(layer)
        given = basis.into(rows.reshape(len(rows), self.parts, -1).astype(jnp.float32))
        stays = jnp.zeros(given.shape, bool)
        if exact is not None:
            stays = jnp.broadcast_to(exact[layer], given.shape)
        x = jnp.where(stays, 0.0, given)
        x = self._by_channel(x) if self.by_channel else self._rounded(limits, layer, x)
        found = basis.back(jnp.where(stays, given, x)).reshape(rows.shape).astype(value.dtype)
        return jnp.concatenate([value[: self.keep], found])

    def _by_channel(self, x: Float[Array, "T K H"]) -> Float[Array, "T K H"]:
        along = jnp.moveaxis(x, 0, -1)
        if self.zero_point:
            found = quantise.quantise_zero_point(along, self._format.bits, "group", quantise.RUN)
        else:
            found = quantise.quantise(along, self._format, "group", quantise.RUN)
        return jnp.moveaxis(found, -1, 0)

    @property
    def _format(self) -> quantise.Format:
        return quantise.FORMATS[self.fmt]

    def _rounded(self, limits: Array | None, layer: Array, x: Array) -> Array:
        if limits is not None:
            shared = quantise.grouped(x, "tensor")
            low, high = (limit.reshape(1, 1) for limit in limits[layer])
            if self.zero_point:
                found = quantise.zero_point(shared, self._format.bits, low, high)
            else:
                found = quantise.symmetric(shared, self._format, jnp.maximum(-low, high))
            return quantise.ungrouped(found, x.shape, "tensor")
        if self.zero_point:
            return quantise.quantise_zero_point(x, self._format.bits, self.per)
        return quantise.quantise(x, self._format, self.per)


@dataclass(frozen=True)
class Evict:
    """The function of an edit of attn_logits after which queries see the last `window` keys, and
    the first `keep`; positions are those in the text.

    Source: Xiao et al. 2024 (arXiv:2309.17453), section 3.2, whose positions are in the cache.
    """

    keep: int
    window: int

    def __call__(self, logits: Float[Array, "N T S"], layer: Int[Array, ""]) -> Array:
        """The logits, -inf where a key is gone."""
        _, queries, keys = logits.shape
        if queries != keys:
            raise InputError("query_block", None, "attention at once, where keys are evicted")
        at = jnp.arange(keys)
        stays = (at[:, None] - at[None, :] < self.window) | (at < self.keep)[None, :]
        return jnp.where(jnp.broadcast_to(stays, logits.shape), logits, -jnp.inf)


# ---------------------------------------------------------------------------- weights


@precisely
@partial(jax.jit, static_argnames="how")
def round_weights(
    how: Rounding,
    w: Float[Array, "I O"],
    basis: Basis,
    gram: Float[Array, "I I"] | None = None,
    magnitude: Float[Array, "I"] | None = None,
    exact: Bool[Array, "I"] | None = None,
) -> Float[Array, "I O"]:
    """The weights of a product after rounding, in the given coordinates.

    Args:
      how: the format, what shares a scale, and the method; with no format of weights they come
        back as they are.
      w: [I, O].
      basis: of this layer.
      gram: X^T X of the given inputs, for gptq and awq.
      magnitude: the mean |x_i| of each given input, for the same.
      exact: the inputs whose weights stay as they are, and count for no scale.

    Raises:
      ValueError: a method that takes them, without them.
    """
    if how.weights is None:
        return w
    if exact is not None:
        stays = jnp.broadcast_to(exact[:, None], w.shape)
        return jnp.where(stays, w, round_weights(how, jnp.where(stays, 0.0, w), basis))
    fmt, moved = quantise.FORMATS[how.weights], basis.weights_into(w.astype(jnp.float32))
    nearest = partial(_nearest, how, fmt)
    if how.by == "nearest":
        rounded = nearest(moved)
    elif how.by == "hqq":
        rounded = _half_quadratic(how, fmt, moved)
    elif gram is None or magnitude is None:
        raise ValueError(f"{how.by}: takes the Gram matrix and magnitudes of the inputs")
    elif how.by == "gptq":
        begin, block = _gptq_ranges(how, fmt, moved)
        rounded = compensate.gptq(moved, basis.gram_into(gram), begin, block, how.largest_first)
    else:
        rounded = compensate.awq(moved, gram, magnitude, nearest)
    return basis.weights_back(rounded).astype(w.dtype)


def _half_quadratic(
    how: Rounding, fmt: quantise.Format, w: Float[Array, "I O"]
) -> Float[Array, "I O"]:
    """A last group that is shorter is rounded by itself: zeros in it would move its zero point."""
    whole = len(w) - len(w) % how.group if how.per == "group" else len(w)

    def rounded(part: Float[Array, "i O"], per: str) -> Float[Array, "i O"]:
        shared = quantise.grouped(part.T, per, how.group)
        found = quantise.half_quadratic(shared, fmt.bits)
        return quantise.ungrouped(found, part.T.shape, per).T

    parts = ((w[:whole], how.per), (w[whole:], "vector"))
    return jnp.concatenate([rounded(*part) for part in parts if len(part[0])])


def _nearest(how: Rounding, fmt: quantise.Format, w: Float[Array, "I O"]) -> Float[Array, "I O"]:
    if how.zero_point:
        return quantise.quantise_zero_point(w.T, fmt.bits, how.per, how.group).T
    return quantise.quantise(w.T, fmt, how.per, how.group).T


def _gptq_ranges(
    how: Rounding, fmt: quantise.Format, w: Float[Array, "I O"]
) -> tuple[Callable[[Array, int], compensate.Change], int]:
    """What starts a block of inputs, and its size: by groups, ranges are those of the weights as
    they are when their turn comes; else those of the matrix as it was."""
    by_group = how.per == "group" or fmt.block is not None
    block = fmt.block or (how.group if by_group else compensate.BLOCK)
    whole = w.reshape(-1, 1) if how.per == "tensor" else w

    def begin(rows: Float[Array, "b O"], start: int) -> compensate.Change:
        of = rows if by_group else whole
        low, high = (
            jnp.broadcast_to(f(of, axis=0), rows.shape[1:])[:, None] for f in (jnp.min, jnp.max)
        )

        def change(row: Float[Array, "O"], i: Array) -> Float[Array, "O"]:
            if how.zero_point:
                return quantise.zero_point(row[:, None], fmt.bits, low, high)[:, 0]
            return quantise.symmetric(row[:, None], fmt, jnp.maximum(-low, high))[:, 0]

        return change

    return begin, block
