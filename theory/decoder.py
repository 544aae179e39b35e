"""A small random decoder in float64, with any kind of positions and norms, and any attention.

Axes: L layers, T positions, S keys, D width, N query heads, K KV heads, H head dim, F MLP width.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.layers import causal_mask, gelu, linear
from sysout_jax.core.norms import layer_norm, rms_norm
from sysout_jax.core.positions import Rotation, alibi, alibi_slopes, inverse_frequencies, rotate
from sysout_jax.core.primitives import Heads, Mixed

WIDTH, LAYERS = 8, 2
THETA = 10_000.0
Attend = Callable[[Heads, Any], Mixed]  # from the heads of a layer and what was given for it


class Kind(NamedTuple):
    """How a decoder tells positions, and its norms; numbers, so that one program runs them all.

    Learned positions are added to the rows before `run`, which sees no difference to none.
    """

    learned: Array | float = 0.0  # 1 for yes
    rotated: Array | float = 0.0  # RoPE
    sloped: Array | float = 0.0  # ALiBi
    centred: Array | float = 0.0  # LayerNorm; RMSNorm otherwise
    qk_norm: Array | float = 0.0
    window: Array | float = math.inf  # keys visible to a query


def together(kinds: Mapping[str, Kind]) -> Kind:
    """The kinds as one, with a leading axis."""
    return jax.tree.map(lambda *each: jnp.asarray(each, jnp.float64), *kinds.values())


class Blocks(NamedTuple):
    """The parameters of L pre-norm blocks."""

    query: Float[Array, "L D N H"]
    key: Float[Array, "L D K H"]
    value: Float[Array, "L D K H"]
    out: Float[Array, "L N H D"]
    up: Float[Array, "L D F"]
    down: Float[Array, "L F D"]
    gain: Float[Array, "L 2 D"]  # of the norms before attention and MLP
    qk_gain: Float[Array, "L 2 H"]


class Seen(NamedTuple):
    """What a forward pass leaves behind; keys are as they were before rotation."""

    states: Float[Array, "M T D"]  # entering each block, and leaving the last: M = L + 1
    keys: Float[Array, "L T K H"]
    values: Float[Array, "L T K H"]
    weights: Float[Array, "L N T S"]


def draw(key: Array, heads: int, kv_heads: int, dim: int, scale: Array) -> Blocks:
    """Normal weights that keep sizes, with queries `scale` times as large; gains about 1."""
    keys = jax.random.split(key, 8)

    def normal(key: Array, inputs: int, *shape: int) -> Array:
        x = jax.random.normal(key, (LAYERS, *shape), jnp.float64)
        return x / jnp.sqrt(jnp.asarray(inputs, jnp.float64))

    return Blocks(
        scale * normal(keys[0], WIDTH, WIDTH, heads, dim),
        normal(keys[1], WIDTH, WIDTH, kv_heads, dim),
        normal(keys[2], WIDTH, WIDTH, kv_heads, dim),
        normal(keys[3], heads * dim, heads, dim, WIDTH),
        normal(keys[4], WIDTH, WIDTH, 2 * WIDTH),
        normal(keys[5], 2 * WIDTH, 2 * WIDTH, WIDTH),
        1.0 + 0.3 * normal(keys[6], 1, 2, WIDTH),
        1.0 + 0.3 * normal(keys[7], 1, 2, dim),
    )


def softmax(heads: Heads, given: Any) -> Mixed:
    """Plain attention in every layer."""
    del given
    return VARIANTS["softmax"](heads, {})


def turn(kind: Kind, x: Float[Array, "*B T N H"], at: Int[Array, "T"]) -> Array:
    """Queries or keys as RoPE turns them to their positions; as they are without it."""
    frequencies = inverse_frequencies(THETA, x.shape[-1]) * kind.rotated
    return rotate(x, at, Rotation(frequencies))


def reached(kind: Kind, distance: Int[Array, "T S"]) -> Bool[Array, "T S"]:
    """Whether a key at this distance is within the window."""
    return distance.astype(jnp.float64) < kind.window


def run(
    kind: Kind, blocks: Blocks, x: Float[Array, "T D"], attend: Attend = softmax, given: Any = None
) -> Seen:
    """The decoder on rows at the positions 0 .. T - 1.

    Args:
      kind: positions and norms.
      blocks: the parameters.
      x: [T, D], what enters the first block.
      attend: attention in each layer.
      given: a pytree of arrays [L, ...], of which `attend` gets each layer's part.

    Returns:
      `Seen`.
    """
    at = jnp.arange(len(x), dtype=jnp.int32)
    slopes = alibi_slopes(blocks.query.shape[2])
    bias = alibi(at, at, slopes) * jnp.asarray(kind.sloped, jnp.float32)
    mask = causal_mask(at, at) & reached(kind, at[:, None] - at[None, :])

    def norm(x: Array, gain: Array) -> Array:
        return jnp.where(kind.centred, layer_norm(x, gain), rms_norm(x, gain))

    def step(x: Array, layer: tuple[Blocks, Any]) -> tuple[Array, Seen]:
        block, given = layer
        n = norm(x, block.gain[0])
        q, k, v = (linear(n, w) for w in (block.query, block.key, block.value))
        q, k = (
            jnp.where(kind.qk_norm, rms_norm(each, gain), each)
            for each, gain in ((q, block.qk_gain[0]), (k, block.qk_gain[1]))
        )
        turned = Heads(turn(kind, q, at), turn(kind, k, at), v, n, n, mask, bias=bias)
        mixed = attend(turned, given)
        after = x + linear(mixed.out, block.out, inputs=2)
        hidden = gelu(linear(norm(after, block.gain[1]), block.up))
        return after + linear(hidden, block.down), Seen(x, k, v, mixed.weights)

    last, seen = jax.lax.scan(step, x, (blocks, given))
    return seen._replace(states=jnp.concatenate([seen.states, last[None]]))
