"""T5. Removing a sink in all layers moves it to the next token; in later layers it does not.

Statement. Mask the first m keys of a causal decoder for all queries.

(i)   In all layers: the model on the rest is the model on the text without its first m tokens (with
      learned positions, the rest keeps those it had). So if a text that begins with token m has its
      sink there, the sink is now there.
(ii)  From layer l on: what enters layer l is what it was, and the weights of layer l are the old
      ones of the rest, renormalised. No other token's state has changed there; a key that was
      second gets what the sink had in proportion. In the model below nobody does.

For a model whose sink is the first visible token, masking all layers thus measures nothing but the
move. Here is one: with one-hot tokens c_i, its first block averages over what token i sees, o_i,
and has the neurons relu(c_ik + o_ik - 2 + t) for each k of the vocabulary, which write the size a
into one channel. In a text of different tokens they fire for the token that sees only itself. Later
blocks have keys that read that channel through RMSNorm, and the first visible token gets

    e^z/(e^z + n - 1), z = zeta sqrt(D) a/sqrt(a^2 + 2),

of the attention of a query that sees n keys, if it was the first in the first block, too.

Assumptions. (i) positions that act through differences alone, or are kept (T1). The model: no token
twice, 0 < t <= 1/2.

Proof. (i) The first m tokens are read by nobody else. (ii) The rest of each row is untouched by l -
1 layers, and softmax over a part of the keys is softmax renormalised. The model: o_ik = 1/n for the
token itself, at most 1/2 unless n = 1; the state at the first is a in its channel beside c_i, o_i.

Source: this package.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.layers import causal_mask
from sysout_jax.core.norms import rms_norm
from sysout_jax.core.primitives import Heads, Mixed
from theory import decoder
from theory.check import Part, Quantities, absolute, compare, relative, statement
from theory.decoder import LAYERS, WIDTH, Blocks, Kind, together

KINDS = {
    "no positions": Kind(),
    "learned": Kind(learned=1.0),
    "ALiBi": Kind(sloped=1.0),
    "RoPE": Kind(rotated=1.0, centred=1.0, qk_norm=1.0),
}
SHAPES = ((1, 3), (2, 5), (1, 11))  # (m, T)
INSTANCES = 200  # of each shape and kind
# As in T1: the rounding of logits of up to 150, once more multiplied by these.
SCALES, TOLERANCE = (1.0, 30.0), 1e-10


class Instance(NamedTuple):
    """A random decoder and its text; a text of different tokens, and the numbers of the model."""

    blocks: Blocks
    positions: Float[Array, "T D"]
    x: Float[Array, "T D"]
    hidden: Int[Array, "m"]  # keys
    tokens: Int[Array, "T"]
    a: Float[Array, ""]
    zeta: Float[Array, ""]
    t: Float[Array, ""]


def draw(key: Array, shape: tuple[int, int], scale: Array) -> Instance:
    """Logits of size `scale`; a between 1 and 1000; a sink of logit up to 2 sqrt(D)."""
    keys = jax.random.split(key, 7)
    count, length = shape

    def rows(key: Array) -> Array:
        return jax.random.normal(key, (length, WIDTH), jnp.float64)

    def uniform(key: Array, low: float, high: float) -> Array:
        return jax.random.uniform(key, (), jnp.float64, low, high)

    return Instance(
        decoder.draw(keys[0], 2, 1, 4, scale), rows(keys[1]), rows(keys[2]),
        jnp.arange(count), jax.random.permutation(keys[3], length),
        10.0 ** uniform(keys[4], 0.0, 3.0), uniform(keys[5], 0.5, 2.0), uniform(keys[6], 0.1, 0.5),
    )  # fmt: skip


def predict(case: Instance) -> Quantities:
    """The text without its first tokens; old weights renormalised; the model by hand."""
    count = len(case.hidden)

    def of_kind(kind: Kind) -> tuple[Array, Array]:
        x = case.x + kind.learned * case.positions
        weights = decoder.run(kind, case.blocks, x).weights[-1, :, count:, count:]
        alone = decoder.run(kind, case.blocks, x[count:]).states[-1]
        return alone, weights / jnp.sum(weights, axis=-1, keepdims=True)

    length = len(case.x) - count
    first = jnp.arange(length) == 0
    root = jnp.sqrt(jnp.asarray(2 * len(case.x) + 1, case.a.dtype))
    grown = jnp.exp(case.zeta * root * case.a / jnp.sqrt(jnp.square(case.a) + 2.0))
    n = jnp.arange(1, length + 1, dtype=grown.dtype)[:, None]
    sink = jnp.where(first[None], grown, 1.0) / (grown + n - 1.0)
    return _named(jax.vmap(of_kind)(together(KINDS))) | {
        "model: mark, all layers": jnp.where(first, 1.0, 0.0),
        "model: mark, later layers": jnp.zeros(length),
        "model: attention, all layers": jnp.tril(sink),
        "model: attention, later layers": jnp.tril(jnp.broadcast_to(1.0 / n, sink.shape)),
    }


def measure(case: Instance) -> Quantities:
    """Decoders with the first keys masked, in all layers and in the last."""
    every, later = jnp.full(LAYERS, True), jnp.arange(LAYERS) == LAYERS - 1
    return _masked(case, every, later)


def control(case: Instance) -> Quantities:
    """The two masks in each other's place."""
    every, later = jnp.full(LAYERS, True), jnp.arange(LAYERS) == LAYERS - 1
    return _masked(case, later, every)


def _named(found: tuple[Array, Array]) -> dict[str, Array]:
    names = ("states, all layers", "weights, last layer")
    return {
        f"{kind}: {name}": value
        for name, values in zip(names, found, strict=True)
        for kind, value in zip(KINDS, values, strict=True)
    }


def _masked(case: Instance, every: Bool[Array, "L"], later: Bool[Array, "L"]) -> Quantities:
    count = len(case.hidden)
    seen = jnp.full(len(case.x), True).at[case.hidden].set(False)

    def attend(heads: Heads, visible: Bool[Array, "T"]) -> Mixed:
        return VARIANTS["softmax"](heads._replace(mask=heads.mask & visible[None]), {})

    def of_kind(kind: Kind) -> tuple[Array, Array]:
        x = case.x + kind.learned * case.positions
        one, other = (
            decoder.run(kind, case.blocks, x, attend, seen[None] | ~layers[:, None])
            for layers in (every, later)
        )
        return one.states[-1, count:], other.weights[-1, :, count:, count:]

    found = _named(jax.vmap(of_kind)(together(KINDS)))
    for name, layers in (("all layers", every), ("later layers", later)):
        mark, weights = by_hand(case, seen[None] | ~layers[:, None])
        found |= {
            f"model: mark, {name}": mark[count:] / case.a,
            f"model: attention, {name}": weights[count:, count:],
        }
    return found


def by_hand(
    case: Instance, visible: Bool[Array, "L T"]
) -> tuple[Float[Array, "T"], Float[Array, "T T"]]:
    """The model whose sink is the first visible token: the channel of size a after the first block,
    and the weights of the last."""
    length = len(case.tokens)
    at = jnp.arange(length, dtype=jnp.int32)
    c = jax.nn.one_hot(case.tokens, length, dtype=jnp.float64)

    def attend(q: Array, k: Array, v: Array, visible: Array) -> Mixed:
        mask = causal_mask(at, at) & visible[None]
        return VARIANTS["softmax"](Heads(q[:, None], k[:, None], v[:, None], q, k, mask), {})

    o = attend(jnp.zeros_like(c), c, c, visible[0]).out[:, 0]
    fired = jax.nn.relu(c + o - 2.0 + case.t) / case.t
    mark = case.a * jnp.sum(fired, axis=1)
    n = rms_norm(jnp.concatenate([c, o, mark[:, None]], axis=1), eps=0.0)
    key, one = case.zeta * n[:, -1:], jnp.ones((length, 1))
    return mark, attend(one, key, one, visible[-1]).weights[0]


@statement("T5", "A sink that is the first visible token moves when masked everywhere")
def verify(key: Array, quick: bool) -> list[Part]:
    kinds = ("states, all layers", "weights, last layer")
    errors = {f"{kind}: {name}": relative for kind in KINDS for name in kinds}
    model = [
        f"{what}, {when} layers" for what in ("mark", "attention") for when in ("all", "later")
    ]
    return compare(
        draw, predict, measure, control, key, shapes=SHAPES, scales=SCALES, instances=INSTANCES,
        tolerance=TOLERANCE, error={**errors, **{f"model: {x}": absolute for x in model}},
        quick=quick,
    )  # fmt: skip
