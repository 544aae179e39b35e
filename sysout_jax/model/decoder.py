"""The decoder: token ids to logits, with everything in between as the config says.

Axes: B batch, T position, D width, V vocabulary, W width of embeddings, L layers; those of a block
are in model/block.py.
"""

import zlib
from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sysout_jax.core.layers import linear, lookup, scaled
from sysout_jax.core.primitives import soft_cap
from sysout_jax.core.variants import kept
from sysout_jax.errors import InputError
from sysout_jax.model.block import Block, BoxedParam, Norm, Owner
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.taps import PER_QUERY, TAPS, Edits, Probe, Reducer, Tap, check_layers

Params = Mapping[str, Any]
Own = Callable[[str, str], Array]  # (name, axes) -> the parameter of that name


def embed(config: ModelConfig, own: Own, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    """The residual stream before the first block and its `embed_norm`, in the config's dtype.

    Raises:
      InputError: T beyond the positions that are learned.
    """
    c, length = config, tokens.shape[1]
    table = own("embed", "V -> D" if c.embed_width is None else "V -> W")
    # Embeddings and positions are added at the greater precision of parameters and activations.
    wide = max(table.dtype, jnp.dtype(c.execution.dtype), key=lambda dtype: dtype.itemsize)
    x = lookup(table, tokens).astype(wide)
    if c.embed_width is not None:
        x = linear(x, own("embed_in", "W -> D"))
    if c.position == "learned":
        if c.longest is not None and length > c.longest:
            raise InputError(
                "seq_len", length, f"at most {c.longest}", f"learned positions end at {c.longest}"
            )
        first = c.position_offset + c.keys_before
        rows = own("positions", "T -> D")[first : first + length]
        x = x + jnp.broadcast_to(rows.astype(x.dtype), x.shape)
    return scaled(x.astype(c.execution.dtype), c.embed_scale)


def unembed(config: ModelConfig, own: Own, x: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
    """The logits of the final state, in its dtype."""
    width = "D"
    if config.embed_width is not None:
        x, width = linear(x, own("embed_out", "D -> W")), "W"
    head = own("embed", f"V -> {width}").T if config.tied else own("head", f"{width} -> V")
    logits = linear(x, head, own("head_bias", "V") if config.head_bias else None)
    logits = scaled(logits, config.logit_scale)
    return logits if config.final_softcap is None else soft_cap(logits, config.final_softcap)


def head_names(config: ModelConfig) -> tuple[str, ...]:
    """The parameters of the top level that `unembed` uses."""
    return (
        "embed" if config.tied else "head",
        *(["head_bias"] if config.head_bias else []),
        *(["embed_out"] if config.embed_width is not None else []),
    )


def logits_of(
    config: ModelConfig, params: Params, x: Float[Array, "B T D"]
) -> Float[Array, "B T V"]:
    """The logits of final states, in their dtype; of `params` those of `head_names` are used."""
    return unembed(config, lambda name, axes: params[name], x)


class Decoder(Owner):
    """Token ids to next-token logits, or what else is read of the final states, and the records of
    the probe."""

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        probe: Probe,
        read: Callable[[ModelConfig, Own, Array], Array] = unembed,
    ) -> tuple[Float[Array, "B T V"], dict[str, Any]]:
        c = self.config
        owned: dict[str, Array] = {}

        def own(name: str, axes: str) -> Array:
            if name not in owned:
                owned[name] = self.own(name, axes, 0.0 if name == "head_bias" else "normal")
            return owned[name]

        x = embed(c, own, tokens)
        if c.embed_norm:
            x = Norm(c, name="embed_norm")(x)
        x, recorded = self._blocks(x, probe)
        if c.norm_placement != "post":
            x = Norm(c, name="final_norm")(x)
        x = probe.at(jnp.asarray(c.layers), recorded)("final_norm", x)
        probe.check_reached()
        return read(c, own, x), recorded

    def _blocks(self, x: Array, probe: Probe) -> tuple[Array, dict[str, Any]]:
        c = self.config
        block = rematerialised(c)
        if c.execution.scan_layers:
            scanned = nn.scan(
                partial(_step, probe),
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=c.layers,
                metadata_params={},
                check_constancy_invariants=False,  # of which there are none: a second trace
            )
            carry = x, probe.room(partial(_shapes, c, probe, x))
            layers = jnp.arange(c.layers)
            (x, kept), every = scanned(block(c, probe, name="blocks"), carry, layers)
            return x, every | kept
        per_layer = []
        for layer in range(c.layers):
            x, recorded = block(c, probe, name=f"block_{layer}")(x, jnp.asarray(layer))
            per_layer.append(recorded)
        return x, probe.stacked(per_layer)


def _step(probe: Probe, block: Any, carry: tuple[Array, Any], layer: Array) -> Any:
    """One of the scanned layers: records of chosen layers go into the carry."""
    x, kept = carry
    x, recorded = block(x, layer)
    every, kept = probe.kept(recorded, kept, layer)
    return (x, kept), every


def _shapes(config: ModelConfig, probe: Probe, x: Array) -> Any:
    """What a block records, as shapes."""
    made = Block(config, probe, parent=None).init_with_output
    return jax.eval_shape(made, jax.random.key(0), x, jnp.asarray(0))[0][1]


def rematerialised(config: ModelConfig) -> Any:
    """The block as `Execution.remat` has it, the same in value.

    The backward pass needs what a block computed: with "block" it keeps the block's input and
    computes the rest again, with "dots" it keeps the products of matrices with weights too.
    """
    if config.execution.remat == "none":
        return Block
    keep = {"block": None, "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable}
    # Inside a scan nothing could merge the two computations, so nothing has to prevent it.
    how = config.execution
    return nn.remat(Block, policy=keep[how.remat], prevent_cse=not how.scan_layers)


def init(config: ModelConfig, key: Array) -> Params:
    """Initial parameters: float32, a tree of modules by name.

    Each parameter's values depend on the key and on its own path alone, so that variants trained
    from the same key start with the same values wherever they have the same parameters.

    Args:
      config: the architecture.
      key: a jax.random.key.
    """
    return cast(Params, jax.tree.map(lambda draw: draw(key), draws(config)))


def draws(config: ModelConfig) -> Any:
    """The tree of the parameters with a function from the key to each parameter in its place, for
    those who cannot hold all of them on one device."""

    # One generator per distinct shape is compiled when this runs eagerly, and shared by all
    # variants; inside Linen's init under jit there is one per parameter: 7 s instead of 1.
    def draw(path: Any, declared: BoxedParam, key: Array) -> Array:
        shape = declared.value.shape
        if declared.constant is not None:
            return jnp.full(shape, declared.constant, jnp.float32)
        own_key = jax.random.fold_in(key, zlib.crc32(jax.tree_util.keystr(path).encode()))
        return declared.std * jax.random.normal(own_key, shape, jnp.float32)

    return jax.tree_util.tree_map_with_path(
        lambda path, declared: partial(draw, path, declared), _declared(config), is_leaf=_is_axed
    )


def param_axes(config: ModelConfig) -> Params:
    """The tree of the parameters with the axis letters of each in its place, e.g. "D -> N H".

    Letters before the arrow are contracted with the input; vectors have no arrow; "L" comes first
    where layers are scanned. Sharding, weight decay and Muon's dimensions are derived from it.
    """
    return jax.tree.map(lambda declared: declared.axes, _declared(config), is_leaf=_is_axed)


def param_shapes(config: ModelConfig) -> Params:
    """The tree of the parameters with a `jax.ShapeDtypeStruct` for each in its place."""
    return jax.tree.map(lambda declared: declared.value, _declared(config), is_leaf=_is_axed)


def parameter_count(config: ModelConfig) -> int:
    """The number of parameters of a decoder."""
    return sum(prod(each.shape) for each in jax.tree.leaves(param_shapes(config)))


@kept
def _declared(config: ModelConfig) -> Params:
    """The tree of `BoxedParam` whose values are shapes."""
    if not config.execution.scan_layers:  # one layer is traced, whatever the depth
        scanned = _declared(config.with_execution(scan_layers=True))
        rest = {name: of for name, of in scanned.items() if name != "blocks"}
        one = jax.tree.map(_of_one_layer, scanned["blocks"], is_leaf=_is_axed)
        return dict(sorted({**rest, **{f"block_{i}": one for i in range(config.layers)}}.items()))

    def declare() -> Any:
        tokens = jnp.zeros((1, 1), jnp.int32)
        return Decoder(config).init(jax.random.key(0), tokens, Probe(None, None))

    return cast(Params, jax.eval_shape(declare)["params"])


def _of_one_layer(stacked: BoxedParam) -> BoxedParam:
    shape = stacked.value
    return stacked.remove_axis(0, {}).replace(
        value=jax.ShapeDtypeStruct(shape.shape[1:], shape.dtype)
    )


def _is_axed(x: Any) -> bool:
    return isinstance(x, BoxedParam)


def forward(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    taps: Mapping[str, Reducer | Tap | None] | None = None,
    edits: Edits | None = None,
) -> tuple[Float[Array, "B T V"], dict[str, Any]]:
    """Run the decoder.

    Args:
      config: the architecture.
      params: as `init` returns them.
      tokens: [B, T] ids, T at most `config.longest`.
      taps: name -> reducer of one sequence's value, None for the value itself, or a `Tap`.
      edits: name -> `Edit`, or what is called like one: with the values of the batch, then the
        layer index.

    Returns:
      Logits [B, T, V] in `config.execution.dtype`, and a dict name -> record, with leading axes
      [L, B] (only [B] for `final_norm`), or the layers of its `Tap` instead of all L.

    Raises:
      InputError: an unknown tap, a tap or layer that the architecture lacks, or T beyond the
        context.
    """
    return _run(config, params, tokens, taps, edits, unembed)


def final_states(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    taps: Mapping[str, Reducer | Tap | None] | None = None,
    edits: Edits | None = None,
) -> tuple[Float[Array, "B T D"], dict[str, Any]]:
    """Run the decoder up to its head, whose input is returned in place of the logits.

    Arguments, records and errors as of `forward`.
    """
    return _run(config, params, tokens, taps, edits, lambda config, own, x: x)


def _run(
    config: ModelConfig, params: Params, tokens: Array, taps: Any, edits: Any, read: Any
) -> tuple[Array, dict[str, Any]]:
    check_layers(config.layers, taps or {}, edits or {})
    return cast(Any, Decoder(config).apply({"params": params}, tokens, Probe(taps, edits), read))


def final_norm(config: ModelConfig, params: Params, x: Float[Array, "B T D"]) -> Array:
    """The head's input [B, T, D] from a state of the residual stream after the last block."""
    if config.norm_placement == "post":
        return x
    return cast(Array, Norm(config).apply({"params": params.get("final_norm", {})}, x))


def read_out(config: ModelConfig, params: Params, x: Float[Array, "B T D"]) -> Array:
    """The logits [B, T, V] of a state of the residual stream, as of that after the last block."""
    return logits_of(config, params, final_norm(config, params, x))


@kept
def taps_of(config: ModelConfig) -> tuple[str, ...]:
    """The taps that an architecture has, in the decoder's order; of attention that is computed in
    blocks of queries, those that exist whole."""
    # A fused kernel would have fewer, and what the first key adds is told apart where asked for.
    probe = Probe({"attn_weights": None, "attn_first": None}, None)
    shapes = jax.eval_shape(partial(init, config), jax.random.key(0))
    run = partial(Decoder(config.with_execution(query_block=None)).apply, probe=probe)
    jax.eval_shape(run, {"params": shapes}, jnp.zeros((1, 1), jnp.int32))
    missing = PER_QUERY if config.execution.query_block is not None else ()
    return tuple(name for name in TAPS if name in probe.reached and name not in missing)


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
