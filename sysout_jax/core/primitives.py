"""What attention variants are composed of: scores, normalisers, an extra key, the mix, gates.

Every function takes any number of leading batch axes. Axes: T query position, S key position,
D model width, N query heads, K KV heads, G = N/K, H head dim.
"""

from collections.abc import Callable
from math import sqrt
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sysout_jax.core.flash import Past, flash_attention
from sysout_jax.core.layers import at_least_float32

Tap = Callable[[str, Array], Array]


def no_tap(name: str, value: Array) -> Array:
    """The tap that neither records nor edits."""
    del name
    return value


class Heads(NamedTuple):
    """What attention sees: queries, keys, values, the inputs they came from, and who sees whom."""

    q: Float[Array, "*B T N H"]
    k: Float[Array, "*B S K H"]
    v: Float[Array, "*B S K H"]
    x_q: Float[Array, "*B T D"]
    x_k: Float[Array, "*B S D"]
    mask: Bool[Array, "T S"]
    tap: Tap = no_tap
    scale: float | None = None  # of q.k; None: 1/sqrt(H)
    softcap: float | None = None  # c: logits s become c tanh(s/c)
    bias: Float[Array, "N #T S"] | None = None  # added to the logits last
    fused: Past | None = None  # the mask's meaning, where nobody asks for logits or weights
    sequence: int | None = None  # keys of the whole sequence, where k holds its beginning only
    queries: Int[Array, "T"] | None = None  # places of the queries among keys; None: the last
    ahead: int = 0  # of the first keys, which are of no token: taps see the others

    @property
    def length(self) -> int:
        """S of the whole sequence."""
        return self.k.shape[-3] if self.sequence is None else self.sequence

    @property
    def own_value(self) -> Float[Array, "*B T N H"]:
        """The value at each query's own position, for each of its heads."""
        queries, count = self.q.shape[-3:-1]
        if self.queries is None:
            own = self.v[..., self.v.shape[-3] - queries :, :, :]
        else:
            own = jnp.take(self.v, self.queries, axis=-3)
        return jnp.repeat(own, count // own.shape[-2], axis=-2)


class Mixed(NamedTuple):
    """What attention returns: the output of each head, the weights of the S real keys, and beside
    them the mass on extra keys (zero where a variant has none)."""

    out: Float[Array, "*B T N H"]
    weights: Any  # [*B, N, T, S]; None where a fused kernel did not make them
    extra: Float[Array, "*B N T"]


def scores(heads: Heads) -> Float[Array, "*B N T S"]:
    """The logits of every query and key, in float32 or wider, masked keys included.

    q.k/sqrt(H), or with the scale, cap and bias of `heads` where they are given.
    """
    return tapped_scores(heads, plain_scores(heads))


def plain_scores(heads: Heads) -> Float[Array, "*B N T S"]:
    """`scores` that no tap has seen."""
    kv_heads, head_dim = heads.k.shape[-2:]
    q = heads.q.reshape(*heads.q.shape[:-2], kv_heads, -1, head_dim)
    wide = at_least_float32(q.dtype)
    logits = jnp.einsum("...TKGH,...SKH->...KGTS", q, heads.k, preferred_element_type=wide)
    logits = _scaled(logits.reshape(*logits.shape[:-4], -1, *logits.shape[-2:]), heads)
    if heads.bias is not None:
        logits = logits + jnp.broadcast_to(heads.bias.astype(wide), logits.shape)
    return logits


def tapped_scores(heads: Heads, logits: Float[Array, "*B N T S"]) -> Float[Array, "*B N T S"]:
    """What the tap makes of the logits; keys of no token are kept from it."""
    if not heads.ahead:
        return heads.tap("attn_logits", logits)
    ahead, own = logits[..., : heads.ahead], logits[..., heads.ahead :]
    return jnp.concatenate([ahead, heads.tap("attn_logits", own)], axis=-1)


def per_query(heads: Heads) -> tuple[int, ...]:
    """The shape [..., N, T] of what belongs to a head and a query."""
    *batch, queries, count, _ = heads.q.shape
    return (*batch, count, queries)


def _scaled(logits: Array, heads: Heads) -> Array:
    logits = logits / sqrt(heads.k.shape[-1]) if heads.scale is None else logits * heads.scale
    return logits if heads.softcap is None else soft_cap(logits, heads.softcap)


def soft_cap(x: Float[Array, "..."], cap: float) -> Float[Array, "..."]:
    """c tanh(x/c): the identity near 0, never beyond c (Gemma 2, arXiv:2408.00118, section 2)."""
    return cap * jnp.tanh(x / cap)


def extra_scores(heads: Heads, key: Float[Array, "K H"]) -> Float[Array, "*B N T"]:
    """The logit q.k'/sqrt(H) of one extra key per KV head that every query sees; scaled and capped
    like those of `scores`."""
    key = _per_query_head(key, heads).astype(heads.q.dtype)
    wide = at_least_float32(key.dtype)
    logits = jnp.einsum("...TNH,NH->...NT", heads.q, key, preferred_element_type=wide)
    return _scaled(logits, heads)


def _per_query_head(x: Float[Array, "K H"], heads: Heads) -> Float[Array, "N H"]:
    return jnp.repeat(x, heads.q.shape[-2] // x.shape[0], axis=0)


def softmax_weights(
    logits: Float[Array, "*B N T S"],
    mask: Bool[Array, "T S"],
    extra: Float[Array, "*B N T"] | None = None,
) -> tuple[Float[Array, "*B N T S"], Float[Array, "*B N T"]]:
    """Softmax over the visible keys and, where given, one extra logit.

    p_j = exp(s_j) / (exp(s') + sum_visible exp(s_k)); the extra key takes exp(s') / (same).

    Args:
      logits: [..., N, T, S], in float32 or wider.
      mask: [T, S], True where visible.
      extra: [..., N, T], the extra key's logit s', or None for no extra key.

    Returns:
      The weights [..., N, T, S] and the extra key's mass [..., N, T]. A row that sees no key at all
      is zero.
    """
    seen = jnp.broadcast_to(mask, logits.shape)
    shift = jnp.max(logits, axis=-1, where=seen, initial=-jnp.inf)
    if extra is not None:
        shift = jnp.maximum(shift, extra)
    # The shift only guards against overflow: it must carry no gradient, and be finite.
    shift = jax.lax.stop_gradient(jnp.where(jnp.isfinite(shift), shift, 0.0))
    weights = jnp.exp(jnp.where(seen, logits - shift[..., None], -jnp.inf))
    mass = jnp.zeros_like(shift) if extra is None else jnp.exp(extra - shift)
    total = jnp.sum(weights, axis=-1) + mass
    total = jnp.where(total == 0.0, 1.0, total)
    return weights / total[..., None], mass / total


def softmax_mix(heads: Heads, extra: Float[Array, "*B N T"] | None = None) -> Mixed:
    """Mix values by the softmax of the logits and, where given, of one extra logit of no value.

    The one place where a kernel that fuses the two steps may stand for them, if `heads.fused`.
    """
    if heads.fused is not None:
        q, k = (x.astype(heads.v.dtype) for x in heads[:2])  # kernels take one dtype
        out, mass = flash_attention(q, k, heads.v, extra, heads.scale, heads.fused)
        return Mixed(out, None, mass)
    return mix(heads, *softmax_weights(scores(heads), heads.mask, extra))


def softpick_weights(
    logits: Float[Array, "*B N T S"], mask: Bool[Array, "T S"], eps: float = 1e-6
) -> Float[Array, "*B N T S"]:
    """Softpick: weights that can all be zero, since negative logits only enter the denominator.

    p_j = relu(e^{s_j} - 1) / (sum_visible |e^{s_k} - 1| + eps); numerator and denominator are
    multiplied by e^{-m}, m = max(0, max_j s_j), so that neither e^{s-m} nor e^{-m} overflows.

    Args:
      logits: [..., N, T, S].
      mask: [T, S], True where visible.
      eps: added to the denominator at the scale e^m.

    Returns:
      [..., N, T, S]; rows sum to at most one.

    Source: Zuhri et al. 2025 (arXiv:2504.20966).
    """
    # An edit takes a key away by a logit of -inf.
    seen = jnp.broadcast_to(mask, logits.shape) & (logits > -jnp.inf)
    shift = jnp.max(logits, axis=-1, where=seen, initial=0.0, keepdims=True)
    shift = jax.lax.stop_gradient(shift)
    picked = jnp.exp(jnp.where(seen, logits - shift, -jnp.inf)) - jnp.exp(-shift)
    picked = jnp.where(seen, picked, 0.0)
    return jax.nn.relu(picked) / (jnp.sum(jnp.abs(picked), axis=-1, keepdims=True) + eps)


def visible(weights: Float[Array, "*B N T S"], mask: Bool[Array, "T S"]) -> Array:
    """Set the weights of masked keys to zero."""
    return jnp.where(jnp.broadcast_to(mask, weights.shape), weights, 0.0)


def mix(
    heads: Heads, weights: Float[Array, "*B N T S"], extra: Float[Array, "*B N T"] | None = None
) -> Mixed:
    """Sum the values by their weights: o = sum_j p_j v_j.

    Args:
      heads: the values [..., S, K, H] are read from here.
      weights: [..., N, T, S].
      extra: [..., N, T], the mass on an extra key, or None for zero; it is passed on, its value is
        for the variant to add.

    Returns:
      `Mixed`, its output in the dtype of the values.
    """
    ahead, weights = weights[..., : heads.ahead], weights[..., heads.ahead :]
    weights = heads.tap("attn_weights", weights)
    extra = jnp.zeros_like(weights[..., 0]) if extra is None else extra
    if not heads.ahead:
        extra = heads.tap("attn_extra", extra)
        return Mixed(_mixed(weights, heads.v), weights, extra)
    mass = extra + jnp.sum(ahead, axis=-1)
    # An edit of the mass on keys of no token leaves its division among them as it is.
    share = heads.tap("attn_extra", mass) / jnp.where(mass == 0.0, 1.0, mass)
    ahead = ahead * jnp.broadcast_to(share[..., None], ahead.shape)
    v = heads.v[..., heads.ahead :, :, :]
    out = _mixed(weights, v) + _mixed(ahead, heads.v[..., : heads.ahead, :, :])
    return Mixed(out, weights, extra * share)


def _mixed(weights: Float[Array, "*B N T S"], v: Float[Array, "*B S K H"]) -> Array:
    grouped = weights.reshape(*weights.shape[:-3], v.shape[-2], -1, *weights.shape[-2:])
    out = jnp.einsum("...KGTS,...SKH->...TKGH", grouped.astype(v.dtype), v)
    return out.reshape(*out.shape[:-3], -1, out.shape[-1])


def extra_output(
    heads: Heads, mass: Float[Array, "*B N T"], value: Float[Array, "K H"]
) -> Float[Array, "*B T N H"]:
    """The extra key's part of the output, p' v'."""
    return jnp.einsum("...NT,NH->...TNH", mass, _per_query_head(value, heads).astype(mass.dtype))


def scale(heads: Heads, mixed: Mixed, gate: Float[Array, "*B T N #H"]) -> Mixed:
    """Multiply the output by a gate, per token and head or per token, head and channel."""
    gate = heads.tap("attn_gate", gate)
    return mixed._replace(out=mixed.out * gate.astype(mixed.out.dtype))


def shift(mixed: Mixed, value: Float[Array, "*B T N H"]) -> Mixed:
    """Add to the output."""
    return mixed._replace(out=mixed.out + value.astype(mixed.out.dtype))


def open_sigmoid(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """2 sigmoid(z): a gate that is exactly open, 1, at z = 0, and can also amplify."""
    return 2.0 * jax.nn.sigmoid(z)
