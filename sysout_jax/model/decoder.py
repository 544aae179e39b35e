"""The decoder: thin Linen modules that own parameters and call core.

Axes: B batch, T position, D width, N heads, K KV heads, H head dim, F MLP width, V vocabulary,
L layers.
"""

import zlib
from collections.abc import Callable, Mapping
from functools import lru_cache, partial
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Float, Int

from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.layers import MLPS, NORMS, causal_mask, linear, rope
from sysout_jax.core.primitives import Heads, Mixed
from sysout_jax.core.streaming import Partial, join_queries, split_queries
from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.taps import Edit, LayerTap, Probe, Reducer

Params = Mapping[str, Any]


class Axed(struct.PyTreeNode, nn.meta.AxisMetadata[Any]):
    """A parameter with the letters of its axes, e.g. "D -> N H"; scanning prepends "L".

    Modules only declare how it starts; `init` draws the values.
    """

    value: Any
    axes: str = struct.field(pytree_node=False)
    constant: float | None = struct.field(pytree_node=False)  # of the initial values; None: normal
    std: float = struct.field(pytree_node=False)  # of normal initial values

    def unbox(self) -> Any:
        return self.value

    def replace_boxed(self, val: Any) -> "Axed":
        return self.replace(value=val)

    def add_axis(self, index: int, params: dict[Any, Any]) -> "Axed":
        return self.replace(axes=f"L {self.axes}")

    def remove_axis(self, index: int, params: dict[Any, Any]) -> "Axed":
        return self.replace(axes=self.axes.removeprefix("L "))


class Owner(nn.Module):
    """A module that declares its parameters by axis letters."""

    config: ModelConfig

    def own(self, name: str, axes: str, init: float | str = "normal") -> Array:
        """A float32 parameter: `init` is a constant, "normal", or "residual" for projections into
        the residual stream."""
        c = self.config
        shape = tuple(c.sizes[letter] for letter in axes.replace("->", " ").split())
        constant = init if isinstance(init, float) else None
        residual = init == "residual" and c.scaled_residual_init
        std = c.init_std / (2 * c.layers) ** 0.5 if residual else c.init_std
        # Linen unboxes: the module sees the array, its tree of variables holds the declaration.
        return cast(Array, self.param(name, lambda _: Axed(jnp.zeros(shape), axes, constant, std)))

    def own_bias(self, name: str, axes: str) -> Array | None:
        return self.own(name, axes, 0.0) if self.config.bias else None


class Norm(Owner):
    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        c = self.config
        bias = self.own_bias("bias", "D") if c.norm == "layer" else None
        return NORMS[c.norm](x, self.own("scale", "D", 1.0), bias, eps=c.norm_eps)


class Attention(Owner):
    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], tap: Any) -> Float[Array, "B T D"]:
        c = self.config
        q = linear(x, self.own("query", "D -> N H"), self.own_bias("query_bias", "N H"))
        k = linear(x, self.own("key", "D -> K H"), self.own_bias("key_bias", "K H"))
        v = linear(x, self.own("value", "D -> K H"), self.own_bias("value_bias", "K H"))
        positions = jnp.arange(x.shape[1])
        if c.position == "rope":
            q, k = rope(q, positions, c.rope_theta), rope(k, positions, c.rope_theta)
        q, k, v = tap("query", q), tap("key", k), tap("value", v)
        variant = VARIANTS[c.variant]
        params = {
            name: self.own(f"variant_{name}", p.axes, p.init) for name, p in variant.params.items()
        }
        if c.query_block is None:
            mask = causal_mask(positions, positions, c.window)
            out = variant(Heads(q, k, v, x, x, mask, tap), params).out
        else:
            attend = partial(variant, params=params)
            out = attend_in_blocks(attend, q, k, v, x, tap, c.query_block, c.window)
        out = tap("attn_mix", out)
        out = linear(
            out, self.own("out", "N H -> D", "residual"), self.own_bias("out_bias", "D"), inputs=2
        )
        return out


def attend_in_blocks(
    attend: Callable[[Heads], Mixed],
    q: Float[Array, "B T N H"],
    k: Float[Array, "B T K H"],
    v: Float[Array, "B T K H"],
    x: Float[Array, "B T D"],
    tap: LayerTap,
    size: int,
    window: int | None,
) -> Float[Array, "B T N H"]:
    """The output of attention, its queries in blocks of `size` that see all keys one after the
    other: the same numbers, but never more than size x T weights of a head at a time."""
    queries = x.shape[1]
    keys = jnp.arange(queries)

    def of_block(block: tuple[Array, Array, Array]) -> tuple[Array, dict[str, Partial]]:
        q, x_q, positions = block
        # The last block is filled up with queries beyond the end: they see nothing.
        mask = causal_mask(positions, keys, window) & (positions < queries)[:, None]
        partials: dict[str, Partial] = {}
        heads = Heads(q, k, v, x_q[:, :, 0], x, mask, tap.of_block(positions, partials))
        return attend(heads).out, partials

    blocks = split_queries(q, size)
    positions = jnp.arange(blocks.shape[0] * size).reshape(-1, size)
    out, partials = jax.lax.map(of_block, (blocks, split_queries(x[:, :, None], size), positions))
    tap.merge(partials, queries)
    return join_queries(out, queries)


class Mlp(Owner):
    @nn.compact
    def __call__(self, x: Float[Array, "B T D"], tap: Any) -> Float[Array, "B T D"]:
        act, gated = MLPS[self.config.mlp]
        up = linear(x, self.own("up", "D -> F"), self.own_bias("up_bias", "F"))
        up = tap("up_out", up)
        if gated:
            gate = linear(x, self.own("gate", "D -> F"), self.own_bias("gate_bias", "F"))
            hidden = tap("act_out", act(tap("gate_out", gate))) * up
        else:
            hidden = tap("act_out", act(up))
        hidden = tap("down_in", hidden)
        return linear(
            hidden, self.own("down", "F -> D", "residual"), self.own_bias("down_bias", "D")
        )


class Block(Owner):
    """Attention and MLP around the residual stream; returns it, and what the taps recorded."""

    probe: Probe

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T D"], layer: Int[Array, ""]
    ) -> tuple[Float[Array, "B T D"], dict[str, Any]]:
        recorded: dict[str, Any] = {}
        tap = self.probe.at(layer, recorded)
        x = tap("block_in", x)
        x = self._sublayer(x, "attn", partial(Attention(self.config, name="attn"), tap=tap), tap)
        x = self._sublayer(x, "mlp", partial(Mlp(self.config, name="mlp"), tap=tap), tap)
        return tap("block_out", x), recorded

    def _sublayer(self, x: Array, name: str, layer: Any, tap: Any) -> Array:
        place = self.config.norm_placement
        out = x if place == "post" else Norm(self.config, name=f"{name}_norm")(x)
        out = layer(tap(f"{name}_norm", out))
        if place == "sandwich":
            out = Norm(self.config, name=f"{name}_out_norm")(out)
        x = x + tap("attn_out" if name == "attn" else "down_out", out)
        return Norm(self.config, name=f"{name}_norm")(x) if place == "post" else x


class Decoder(Owner):
    """Token ids to next-token logits, and the records of the probe."""

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "B T"], probe: Probe
    ) -> tuple[Float[Array, "B T V"], dict[str, Any]]:
        c = self.config
        embed = self.own("embed", "V -> D")
        x = jnp.take(embed, tokens, axis=0)
        if c.position == "learned":
            x = x + jnp.broadcast_to(self.own("positions", "T -> D")[: tokens.shape[1]], x.shape)
        x = x.astype(c.dtype)
        x, recorded = self._blocks(x, probe)
        if c.norm_placement != "post":
            x = Norm(c, name="final_norm")(x)
        x = probe.at(jnp.asarray(c.layers), recorded)("final_norm", x)
        probe.check_reached()
        return linear(x, embed.T if c.tied else self.own("head", "D -> V")), recorded

    def _blocks(self, x: Array, probe: Probe) -> tuple[Array, dict[str, Any]]:
        c = self.config
        if c.scan_layers:
            scanned = nn.scan(
                Block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=c.layers,
                metadata_params={},
            )
            return scanned(c, probe, name="blocks")(x, jnp.arange(c.layers))
        per_layer = []
        for layer in range(c.layers):
            x, recorded = Block(c, probe, name=f"block_{layer}")(x, jnp.asarray(layer))
            per_layer.append(recorded)
        return x, jax.tree.map(lambda *values: jnp.stack(values), *per_layer)


def init(config: ModelConfig, key: Array) -> Params:
    """Initial parameters: float32, a tree of modules by name.

    Each parameter's values depend on the key and on its own path alone, so that variants trained
    from the same key start with the same values wherever they have the same parameters.

    Args:
      config: the architecture.
      key: a jax.random.key.
    """

    # One generator per distinct shape is compiled when this runs eagerly, and shared by all
    # variants; inside Linen's init under jit there is one per parameter: 7 s instead of 1.
    def draw(path: Any, declared: Axed) -> Array:
        shape = declared.value.shape
        if declared.constant is not None:
            return jnp.full(shape, declared.constant, jnp.float32)
        own_key = jax.random.fold_in(key, zlib.crc32(jax.tree_util.keystr(path).encode()))
        return declared.std * jax.random.normal(own_key, shape, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, _declared(config), is_leaf=_is_axed)


def param_axes(config: ModelConfig) -> Params:
    """The tree of the parameters with the axis letters of each in its place, e.g. "D -> N H".

    Letters before the arrow are contracted with the input; vectors have no arrow; "L" comes first
    where layers are scanned. Sharding, weight decay and Muon's dimensions are derived from it.
    """
    return jax.tree.map(lambda declared: declared.axes, _declared(config), is_leaf=_is_axed)


@lru_cache(maxsize=64)
def _declared(config: ModelConfig) -> Params:
    """The tree of `Axed` whose values are shapes."""
    tokens = jnp.zeros((1, 1), jnp.int32)
    declare = partial(Decoder(config).init, jax.random.key(0), tokens, Probe(None, None))
    return jax.eval_shape(declare)["params"]


def _is_axed(x: Any) -> bool:
    return isinstance(x, Axed)


def forward(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    taps: Mapping[str, Reducer | None] | None = None,
    edits: Mapping[str, Edit] | None = None,
) -> tuple[Float[Array, "B T V"], dict[str, Any]]:
    """Run the decoder.

    Args:
      config: the architecture.
      params: as `init` returns them.
      tokens: [B, T] ids, T at most `config.context` where positions are learned.
      taps: name -> reducer of one sequence's value, or None for the value itself.
      edits: name -> function of the batch's value and the layer index that replaces the value.

    Returns:
      Logits [B, T, V] in `config.dtype`, and a dict name -> record, with leading axes [L, B] (only
      [B] for `final_norm`).

    Raises:
      InputError: an unknown tap, a tap that the architecture lacks, or T beyond the context.
    """
    if config.position == "learned" and tokens.shape[1] > config.context:
        raise InputError(
            f"--seq_len={tokens.shape[1]}: learned positions end at {config.context}; "
            f"accepted: at most {config.context}"
        )
    return cast(Any, Decoder(config).apply({"params": params}, tokens, Probe(taps, edits)))


def stack_blocks(params: Params) -> Params:
    """Parameters of unrolled layers as those of scanned layers: block_0, ... -> blocks [L, ...]."""
    names = [f"block_{i}" for i in range(sum(name.startswith("block_") for name in params))]
    rest = {name: value for name, value in params.items() if name not in names}
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *(params[name] for name in names))
    return {**rest, "blocks": stacked}


def unstack_blocks(params: Params) -> Params:
    """The inverse of `stack_blocks`."""
    rest = {name: value for name, value in params.items() if name != "blocks"}
    layers = jax.tree.leaves(params["blocks"])[0].shape[0]
    blocks = {
        f"block_{i}": jax.tree.map(lambda x, i=i: x[i], params["blocks"]) for i in range(layers)
    }
    return {**rest, **blocks}
