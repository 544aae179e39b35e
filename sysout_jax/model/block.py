"""The block: thin Linen modules that own a layer's parameters and call core.

Axes: B batch, T position, D width, N heads, K KV heads, H head dim, F MLP width, E experts.
"""

from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any, SupportsFloat, cast

import flax.linen as nn
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.experts import choose, expert_linear, gather, route, scatter
from sysout_jax.core.flash import Past
from sysout_jax.core.layers import MLPS, causal_mask, linear, scaled
from sysout_jax.core.norms import NORMS
from sysout_jax.core.positions import rotate
from sysout_jax.core.primitives import Heads, Mixed
from sysout_jax.core.streaming import (
    Partial,
    join_partials,
    join_queries,
    over_blocks,
    split_queries,
)
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.geometry import logit_bias, rotation, windowed
from sysout_jax.model.sink import Tap, within
from sysout_jax.model.taps import PER_QUERY, WITHIN_ATTENTION, LayerTap, Probe

LONG = 256  # tokens from which attention's maps no longer fit into a processor's caches
PARTS = 4  # of such a sequence's queries: 5/8 of the weights are computed


class BoxedParam(struct.PyTreeNode, nn.meta.AxisMetadata[Any]):
    """A parameter with the letters of its axes, e.g. "D -> N H"; scanning prepends "L".

    Modules only declare how it starts; `init` draws the values.
    """

    value: Any
    axes: str = struct.field(pytree_node=False)
    constant: float | None = struct.field(pytree_node=False)  # of the initial values; None: normal
    std: float = struct.field(pytree_node=False)  # of normal initial values

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> "BoxedParam":
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "BoxedParam":
        return self.replace(axes=f"L {self.axes}")

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "BoxedParam":
        return self.replace(axes=self.axes.removeprefix("L "))


class Owner(nn.Module):
    """A module that declares its parameters by axis letters."""

    config: ModelConfig

    def own(self, name: str, axes: str, init: SupportsFloat | str = "normal") -> Array:
        """A float32 parameter: `init` is a constant, "normal", or "residual" for projections into
        the residual stream."""
        c = self.config
        shape = tuple(c.sizes[letter] for letter in axes.replace("->", " ").split())
        constant = None if isinstance(init, str) else float(init)
        residual = init == "residual" and c.scaled_residual_init
        std = c.init_std / (2 * c.layers) ** 0.5 if residual else c.init_std
        # Linen unboxes: the module sees the array, its tree of variables holds the declaration.
        return cast(
            Array, self.param(name, lambda _: BoxedParam(jnp.zeros(shape), axes, constant, std))
        )

    def own_bias(self, part: str, name: str, axes: str) -> Array | None:
        """The bias of a part of the model (`ModelConfig.has_bias`), or None."""
        return self.own(name, axes, 0.0) if self.config.has_bias(part) else None

    def limited(self, tap: Tap) -> Tap:
        """The tap of an MLP, with `down_in` in the bounds that an explicit sink may have."""
        sink = self.config.sink
        bounded = sink is not None and sink.bounded
        return within(self.own("down_bound", "", inf), tap) if bounded else tap


class Norm(Owner):
    axes: str = "D"
    of_heads: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        c = self.config
        kind = NORMS[NORMS[c.norm].heads if self.of_heads else c.norm]
        scale = None
        if c.norm_scale and kind.scaled:
            scale = self.own("scale", self.axes, 0.0 if c.norm_plus_one else 1.0).reshape(-1)
        if scale is not None and c.norm_plus_one:
            scale = scale.astype(jnp.float32) + 1.0
        bias = self.own_bias("norm", "bias", self.axes) if kind.biased else None
        bias = None if bias is None else bias.reshape(-1)
        own = {name: self.own(name, p.axes, p.init) for name, p in kind.params.items()}
        return kind(x, scale, bias, c.norm_eps, **own)


class Attention(Owner):
    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], layer: Int[Array, ""], tap: LayerTap
    ) -> Float[Array, "B T D"]:
        c = self.config
        q = linear(x, self.own("query", "D -> N H"), self.own_bias("qkv", "query_bias", "N H"))
        k = linear(x, self.own("key", "D -> K H"), self.own_bias("qkv", "key_bias", "K H"))
        v = linear(x, self.own("value", "D -> K H"), self.own_bias("qkv", "value_bias", "K H"))
        q, k = self._normed("query_norm", "N H", q), self._normed("key_norm", "K H", k)
        if c.clip_qkv is not None:
            q, k, v = (jnp.clip(part, -c.clip_qkv, c.clip_qkv) for part in (q, k, v))
        length, before = x.shape[1], c.keys_before
        places = jnp.arange(length)  # in the text
        local = windowed(c, layer)

        def turn(x: Array, positions: Array) -> Array:
            if c.position != "rope":
                return x
            turned = rotation(c, before + length, layer)
            return rotate(x, positions, turned, c.rope.interleaved)

        q, k = _by_layer(c, layer, turn(q, before + places)), turn(k, before + places)
        q, k, v = tap("query", q), tap("key", k), tap("value", v)
        ahead, positions = 0 if c.sink is None else c.sink.keys, before + places
        if ahead:
            positions = jnp.concatenate([jnp.arange(ahead), positions])
            own = turn(self.own("sink_key", "C K H"), jnp.arange(ahead)).astype(k.dtype)
            k, v = _behind(own, k), _behind(self.own("sink_value", "C K H"), v)
        variant = VARIANTS[c.variant]
        params = {
            name: self.own(f"variant_{name}", p.axes, p.init) for name, p in variant.params.items()
        }

        fused = None if tap.probe.asks(*WITHIN_ATTENTION) else _fused(c, local)
        first_apart = tap.without_first if tap.probe.asks("attn_first") else None

        def attend(
            q: Array, x_q: Array, queries: Array, tap: Any, count: int = length
        ) -> Array:  # to the first `count` tokens
            keys, at = positions[: ahead + count], before + queries
            mask = causal_mask(at, keys, c.window)
            if c.window_layers is not None:
                mask = jnp.where(local, mask, causal_mask(at, keys))
            if c.sink is not None:
                mask = c.sink.seen(mask, queries, layer)
            heads = Heads(
                q, k[:, : ahead + count], v[:, : ahead + count], x_q, x[:, :count], mask, tap,
                c.query_scale, c.attn_softcap, logit_bias(c, at, keys), fused, before + length,
                ahead + queries, ahead,
            )  # fmt: skip
            return _mixed(partial(variant, params=params), heads, first_apart)

        if c.execution.query_block is not None:
            out = _in_blocks(attend, q, x, tap, c.execution.query_block)
        elif fused is not None or length < LONG or tap.probe.asks(*PER_QUERY):
            out = attend(q, x, places, tap)
        else:
            out = _to_the_past(attend, q, x, places, tap)
        out_bias = self.own_bias("out", "out_bias", "D")
        out = tap("attn_mix", out)
        return linear(out, self.own("out", "N H -> D", "residual"), out_bias, inputs=2)

    def _normed(self, name: str, axes: str, x: Array) -> Array:
        c = self.config
        if c.query_key_norm == "none":
            return x
        per_head = c.query_key_norm == "head"
        norm = Norm(c, "H" if per_head else axes, of_heads=True, name=name)
        # Norms take three axes and work on the last: one row per head, or one per position.
        rows = (-1, *x.shape[-2:]) if per_head else (*x.shape[:2], -1)
        return norm(x.reshape(rows)).reshape(x.shape)


def _by_layer(
    config: ModelConfig, layer: Int[Array, ""], q: Float[Array, "B T N H"]
) -> Float[Array, "B T N H"]:
    return q / (layer + 1).astype(q.dtype) if config.query_scale_by_layer else q


def _fused(config: ModelConfig, local: Bool[Array, ""]) -> Past | None:
    """What queries of a layer see, as a fused kernel is told it; None where there is none."""
    if not config.fused:
        return None
    return Past(config.window, None if config.window_layers is None else local)


def _mixed(
    variant: Callable[[Heads], Mixed], heads: Heads, without_first: Any
) -> Float[Array, "B T N H"]:
    """What the variant returns; where a tap asks for it, what the first key adds to it apart."""
    out = variant(heads).out
    if without_first is None:
        return out
    first = out - variant(heads._replace(tap=without_first)).out
    return out + (heads.tap("attn_first", first) - first)


def _behind(own: Float[Array, "C K H"], x: Float[Array, "B T K H"]) -> Float[Array, "B C+T K H"]:
    """Keys or values of tokens behind those of none, which all sequences share."""
    shared = jnp.broadcast_to(own.astype(x.dtype), (len(x), *own.shape))
    return jnp.concatenate([shared, x], axis=1)


def _to_the_past(
    attend: Callable[[Array, Array, Array, Any, int], Array],
    q: Float[Array, "B T N H"],
    x: Float[Array, "B T D"],
    positions: Int[Array, "T"],
    tap: LayerTap,
) -> Float[Array, "B T N H"]:
    """Attention with its queries in a few parts, each of which sees the keys up to its end: the
    same numbers without most of the weights that a mask would set to zero."""
    size = -(-q.shape[1] // PARTS)
    parts = []
    for first in range(0, q.shape[1], size):
        rows = slice(first, min(first + size, q.shape[1]))
        parts.append(attend(q[:, rows], x[:, rows], positions[rows], tap, rows.stop))
    return jnp.concatenate(parts, axis=1)


def _in_blocks(
    attend: Callable[[Array, Array, Array, Any, int], Array],
    q: Float[Array, "B T N H"],
    x: Float[Array, "B T D"],
    tap: LayerTap,
    size: int,
) -> Float[Array, "B T N H"]:
    """Attention with its queries in blocks of `size`, one after the other: the same numbers, but
    never more than size x T weights of a head at a time. Blocks are in a few parts, each of which
    sees the keys up to its end; where logits are read or weights replaced, in one of all keys."""
    queries = x.shape[1]
    blocks = split_queries(q, size)
    # The last block is filled up with queries before the start, which see nothing.
    positions = jnp.arange(blocks.shape[0] * size)
    positions = jnp.where(positions < queries, positions, -1).reshape(-1, size)
    each = (blocks, split_queries(x[:, :, None], size), positions)
    in_part = len(blocks) if tap.needs_all_keys else -(-len(blocks) // PARTS)

    def of_block(keys: int, block: tuple[Array, Array, Array]) -> tuple[Array, dict[str, Partial]]:
        q, x_q, positions = block
        partials: dict[str, Partial] = {}
        part = tap.of_block(positions, partials, queries - keys)
        return attend(q, x_q[:, :, 0], positions, part, keys), partials

    outs, parts = [], []
    for first in range(0, len(blocks), in_part):
        begin, end = first * size, min((first + in_part) * size, queries)
        chosen = tuple(of[first : first + in_part] for of in each)
        out, partials = over_blocks(partial(of_block, end), chosen, end - begin)
        outs.append(out)
        parts.append(partials)
    tap.finish(join_partials(parts))
    return join_queries(jnp.concatenate(outs), queries)


class Mlp(Owner):
    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], tap: Tap) -> Float[Array, "B T D"]:
        tap = self.limited(tap)
        up = linear(x, self.own("up", "D -> F"), self.own_bias("mlp", "up_bias", "F"))
        gate = None
        if MLPS[self.config.mlp].gated:
            gate = linear(x, self.own("gate", "D -> F"), self.own_bias("mlp", "gate_bias", "F"))
        hidden = _activate(self.config, up, gate, tap)
        down_bias = self.own_bias("mlp", "down_bias", "D")
        return tap("mlp_out", linear(hidden, self.own("down", "F -> D", "residual"), down_bias))


class Experts(Owner):
    """The MLP of a mixture: taps see the chosen experts' channels side by side, best first."""

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], tap: Tap) -> Float[Array, "B T D"]:
        c, tap = self.config, self.limited(tap)
        tokens = x.reshape(-1, x.shape[-1])
        router = linear(
            tokens, self.own("router", "D -> E"), self.own_bias("mlp", "router_bias", "E")
        )
        experts, weights = (
            tap(name, of.reshape(*x.shape[:2], -1)).reshape(of.shape)
            for name, of in zip(
                ("experts", "routing"),
                choose(router, c.experts_per_token, c.experts_sum_to_one),
                strict=True,
            )
        )
        routing = route(experts, weights, c.experts)
        rows = gather(tokens, routing)

        def through(name: str, axes: str, rows: Array, init: str = "normal") -> Array:
            _, _, out = axes.partition("-> ")
            bias = self.own_bias("mlp", f"{name}_bias", f"E {out}")
            return expert_linear(rows, self.own(name, axes, init), bias, routing)

        def side_by_side(name: str, rows: Array) -> Array:
            by_token = scatter(rows, routing)
            tapped = tap(name, by_token.reshape(*x.shape[:2], -1)).reshape(by_token.shape)
            return tapped.reshape(-1, tapped.shape[-1])[routing.order]

        up = through("up", "E D -> F", rows)
        gate = through("gate", "E D -> F", rows) if MLPS[c.mlp].gated else None
        hidden = _activate(c, up, gate, side_by_side)
        out = scatter(through("down", "E F -> D", hidden, "residual"), routing)
        out = tap("expert_out", out.reshape(*x.shape[:2], *out.shape[1:])).reshape(out.shape)
        mixed = jnp.einsum("AJD,AJ->AD", out, routing.weights.astype(out.dtype))
        return tap("mlp_out", mixed.reshape(x.shape))


def _activate(c: ModelConfig, up: Array, gate: Array | None, tap: Tap) -> Array:
    """What the down projection reads: act(gate) * (up + shift), or act(up)."""
    kind = MLPS[c.mlp]
    up = tap("up_out", up)
    if gate is None:
        return tap("down_in", tap("act_out", kind.act(up)))
    gate = tap("gate_out", gate)
    if c.mlp_limit is not None:
        up, gate = jnp.clip(up, -c.mlp_limit, c.mlp_limit), jnp.minimum(gate, c.mlp_limit)
    return tap("down_in", tap("act_out", kind.act(gate)) * (up + kind.shift))


class Block(Owner):
    """Attention and MLP around the residual stream; returns it, and what the taps recorded."""

    probe: Probe

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], layer: Int[Array, ""]
    ) -> tuple[Float[Array, "B T D"], dict[str, Any]]:
        c = self.config
        recorded: dict[str, Any] = {}
        tap = self.probe.at(layer, recorded)
        attn = partial(Attention(c, name="attn"), layer=layer, tap=tap)
        of_mlp = tap if c.sink is None else c.sink.silenced(layer, tap)
        mlp = partial((Experts if c.experts else Mlp)(c, name="mlp"), tap=of_mlp)
        x = tap("block_in", x)
        if c.parallel_block == "none":
            x = self._sublayer(x, "attn", attn, tap)
            x = self._sublayer(x, "mlp", mlp, of_mlp)
        else:
            attn_norm = Norm(c, name="attn_norm")(x)
            mlp_norm = attn_norm if c.parallel_block == "shared" else Norm(c, name="mlp_norm")(x)
            attn_out = scaled(attn(tap("attn_norm", attn_norm)), c.residual_scale)
            down_out = scaled(mlp(of_mlp("mlp_norm", mlp_norm)), c.residual_scale)
            x = x + tap("attn_out", attn_out) + of_mlp("down_out", down_out)
        return tap("block_out", x), recorded

    def _sublayer(self, x: Array, name: str, layer: Any, tap: Tap) -> Array:
        place = self.config.norm_placement
        out = Norm(self.config, name=f"{name}_norm")(x) if place in ("pre", "sandwich") else x
        out = layer(tap(f"{name}_norm", out))
        if place in ("out", "sandwich"):
            out = Norm(self.config, name=f"{name}_out_norm")(out)
        out = scaled(out, self.config.residual_scale)
        x = x + tap("attn_out" if name == "attn" else "down_out", out)
        return Norm(self.config, name=f"{name}_norm")(x) if place == "post" else x
