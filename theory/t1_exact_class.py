"""T1. Tokens that every text begins with are parameters: extra keys and values of each layer.

Statement. Let the first c tokens be the same in every text. Then the model equals, on the rest of
each text, the model without these tokens in which every layer has c extra keys and values per KV
head. With k_j the key of token j before rotation (after QK norm, if there is one), R_t the
rotation by position t, and the rest at the positions i' = i - c:

    RoPE                k'_j = R_{j-c} k_j,  v'_j = v_j,                   j = 0 .. c - 1
    no positions        k'_j = k_j
    learned             k'_j = k_j, and the rest keeps the positions it had
    ALiBi               k'_j = k_j with the bias -slope (i' + c - j)
    window w            k'_j is visible to i' where i' + c - j < w.

So a sink that is the first token of every text can be made a parameter exactly, whatever its key,
its value and the magnitude of its state. With c = 1, and without ALiBi and windows, the model is
`attention_bias` in every layer: there the extra key has no bias and every query sees it.

Assumptions. Causal attention whose weights depend on the visible logits alone, as softmax's do, and
not on how many keys or positions there are, as those divided by T. The first c tokens are the same
in every text, a BOS for one. Blocks that act on each token alone beside attention: any norm, any
MLP, grouped KV heads.

Proof. The first c tokens see nothing but themselves, so their states, k_j and v_j are constants,
layer by layer. The rest reads them through keys and values alone. (R_i q).(R_j k) depends on i - j
= i' - (j - c) alone, as do ALiBi's bias and the window.

Source: this package. Near it: a prefix found by search or kept in a cache, CushionCache
(arXiv:2406.12016) and PrefixQuant (arXiv:2410.05265).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.positions import alibi_slopes
from sysout_jax.core.primitives import Heads, Mixed
from theory import decoder
from theory.check import Part, Quantities, compare, statement
from theory.decoder import WIDTH, Blocks, Kind, together

KINDS = {
    "no positions, LayerNorm": Kind(centred=1.0),
    "learned": Kind(learned=1.0),
    "ALiBi": Kind(sloped=1.0),
    "RoPE": Kind(rotated=1.0),
    "RoPE, LayerNorm, QK norm": Kind(rotated=1.0, centred=1.0, qk_norm=1.0),
    "RoPE, window": Kind(rotated=1.0, window=4.0),
}
VARIANT = "RoPE, one token: attention_bias"
SHAPES = ((1, 2, 1, 1, 2), (2, 5, 3, 1, 4), (3, 11, 4, 2, 4))  # (c, T, N, K, H)
INSTANCES = 200  # of each shape and kind
# Logits of up to 5 times the scale. Their rounding, 1.1e-16 * 150, is an error of the first layer's
# weights; the second layer's logits multiply it by 150; and 40 times that is allowed.
SCALES = (1.0, 30.0)
TOLERANCE = 1e-10


class Instance(NamedTuple):
    """A decoder, learned positions, a text, and other first tokens."""

    blocks: Blocks
    positions: Float[Array, "T D"]
    x: Float[Array, "T D"]
    others: Float[Array, "c D"]


class Extra(NamedTuple):
    """The c extra keys of every layer, as rotated queries meet them."""

    keys: Float[Array, "L c K H"]
    values: Float[Array, "L c K H"]
    bias: Float[Array, "L N T c"]
    mask: Bool[Array, "L T c"]


def draw(key: Array, shape: tuple[int, int, int, int, int], scale: Array) -> Instance:
    """Logits of size `scale`; normal embeddings and positions."""
    count, length, *heads = shape
    keys = jax.random.split(key, 4)

    def rows(key: Array, rows: int) -> Array:
        return jax.random.normal(key, (rows, WIDTH), jnp.float64)

    blocks = decoder.draw(keys[0], heads[0], heads[1], heads[2], scale)
    return Instance(blocks, rows(keys[1], length), rows(keys[2], length), rows(keys[3], count))


def embedded(kind: Kind, case: Instance) -> Float[Array, "T D"]:
    """The rows that enter the first block."""
    return case.x + kind.learned * case.positions


def places(count: int) -> Int[Array, "c"]:
    """j - c: where the first tokens are if the rest begins at 0."""
    return jnp.arange(-count, 0, dtype=jnp.int32)


def constants(kind: Kind, blocks: Blocks, first: Float[Array, "c D"], length: int) -> Extra:
    """The extra keys that stand for the first tokens before `length` others."""
    alone, layers = decoder.run(kind, blocks, first), len(blocks.query)
    before = places(len(first))
    distance = jnp.arange(length, dtype=jnp.int32)[:, None] - before[None, :]  # i' + c - j
    slopes = jnp.asarray(alibi_slopes(blocks.query.shape[2])) * kind.sloped
    bias = -slopes[:, None, None] * distance[None].astype(slopes.dtype)
    return Extra(
        decoder.turn(kind, alone.keys, before),
        alone.values,
        jnp.broadcast_to(bias[None], (layers, *bias.shape)),
        jnp.broadcast_to(decoder.reached(kind, distance)[None], (layers, *distance.shape)),
    )


def appended(heads: Heads, extra: Extra) -> Mixed:
    """Attention over a layer's extra keys and the text's own."""
    count = extra.mask.shape[1]
    own = jnp.asarray(heads.bias, extra.bias.dtype)
    longer = heads._replace(
        k=jnp.concatenate([extra.keys, heads.k]),
        v=jnp.concatenate([extra.values, heads.v]),
        x_k=jnp.concatenate([jnp.zeros((count, WIDTH)), heads.x_k]),
        mask=jnp.concatenate([extra.mask, heads.mask], axis=1),
        bias=jnp.concatenate([extra.bias, own], axis=2),
    )
    return VARIANTS["softmax"](longer, {})


def as_parameters(heads: Heads, extra: Extra) -> Mixed:
    """The library's variant with one extra key as its parameters."""
    params = {"bias_key": extra.keys[0], "bias_value": extra.values[0]}
    return VARIANTS["attention_bias"](heads, params)


def predict(case: Instance) -> Quantities:
    """The rest of the text alone, with the extra keys of its first tokens."""

    def rest(kind: Kind, count: int, attend: decoder.Attend) -> Array:
        x = embedded(kind, case)
        extra = constants(kind, case.blocks, x[:count], len(x) - count)
        return decoder.run(kind, case.blocks, x[count:], attend, extra).states[-1]

    each = jax.vmap(lambda kind: rest(kind, len(case.others), appended))(together(KINDS))
    of_one = rest(KINDS["RoPE"], 1, as_parameters)
    return {**dict(zip(KINDS, each, strict=True)), VARIANT: of_one}


def measure(case: Instance) -> Quantities:
    """The model on the whole text."""

    def whole(kind: Kind) -> Array:
        return decoder.run(kind, case.blocks, embedded(kind, case)).states[-1]

    each = dict(zip(KINDS, jax.vmap(whole)(together(KINDS)), strict=True))
    rest = {name: states[len(case.others) :] for name, states in each.items()}
    return {**rest, VARIANT: each["RoPE"][1:]}


def control(case: Instance) -> Quantities:
    """The whole of a text that begins otherwise."""
    return measure(case._replace(x=case.x.at[: len(case.others)].set(case.others)))


@statement("T1", "First tokens common to all texts are extra keys R_{j-c} k_j and values, exactly")
def verify(key: Array, quick: bool) -> list[Part]:
    return compare(
        draw, predict, measure, control, key, shapes=SHAPES, scales=SCALES,
        instances=INSTANCES, tolerance=TOLERANCE, quick=quick,
    )  # fmt: skip
