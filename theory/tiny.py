"""A small transformer trained on Bigram-Backcopy, for statements about trained heads.

Axes: B batch, T positions, D width, N heads, H head dim, F MLP width, V vocabulary, L layers.
"""

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.backcopy import TEXT_TOKENS, chain
from sysout_jax.core.layers import causal_mask, cross_entropy, gelu, linear
from sysout_jax.core.norms import rms_norm
from sysout_jax.core.primitives import Heads
from theory.descent import descend

VOCAB = TEXT_TOKENS + 1
LAYERS, WIDTH, HEADS = 1, 64, 1
LENGTH, BATCH = 32, 16  # of the rows that are trained on
CHAIN = 0  # its seed
LOOKED_AT, SCORED = 64, 256  # rows
HELD_OUT = 2**31 - 2  # seed of the rows that trained models are looked at with
OUTER = ("embed", "positions", "head")  # what is not by layer
Params = dict[str, Array]


@dataclass(frozen=True)
class Setting:
    """What is trained: pre-norm blocks without norm gains, so that the residual stream has no basis
    of its own; learned positions; one chain."""

    variant: str = "softmax"  # one without parameters
    bos: bool = True  # rows begin with a token whose value nobody needs


class Seen(NamedTuple):
    """What a forward pass of one row leaves behind, by layer."""

    weights: Float[Array, "L N T T"]
    values: Float[Array, "L T N H"]
    states: Float[Array, "L T D"]  # that leave the block


def init(setting: Setting, key: Array) -> Params:
    """Normal float32 parameters of standard deviation 0.02."""
    shapes = {
        "embed": (VOCAB, WIDTH),
        "positions": (LENGTH, WIDTH),
        "head": (WIDTH, VOCAB),
        **{name: (LAYERS, WIDTH, WIDTH) for name in ("query", "key", "value", "out")},
        "up": (LAYERS, WIDTH, 4 * WIDTH),
        "down": (LAYERS, 4 * WIDTH, WIDTH),
    }
    if VARIANTS[setting.variant].params:
        raise ValueError(f"{setting.variant}: accepted: a variant without parameters")
    keys = jax.random.split(key, len(shapes))
    return {
        name: 0.02 * jax.random.normal(k, shape, jnp.float32)
        for k, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def apply(
    setting: Setting, params: Params, tokens: Int[Array, "T"]
) -> tuple[Float[Array, "T V"], Seen]:
    """Next-token logits of one row, and what was seen on the way."""
    at = jnp.arange(len(tokens), dtype=jnp.int32)
    mask = causal_mask(at, at)
    x = params["embed"][tokens] + params["positions"][: len(tokens)]
    seen = []
    for layer in range(LAYERS):
        p = {name: value[layer] for name, value in params.items() if name not in OUTER}
        n = rms_norm(x)
        q, k, v = (
            linear(n, p[name]).reshape(len(tokens), HEADS, -1) for name in ("query", "key", "value")
        )
        mixed = VARIANTS[setting.variant](Heads(q, k, v, n, n, mask), {})
        x = x + linear(mixed.out.reshape(x.shape), p["out"])
        x = x + linear(gelu(linear(rms_norm(x), p["up"])), p["down"])
        seen.append(Seen(mixed.weights, v, x))
    return linear(rms_norm(x), params["head"]), jax.tree.map(lambda *s: jnp.stack(s), *seen)


def rows(setting: Setting, seed: int, count: int) -> np.ndarray:
    """int32 [count, T + 1] rows of the task; without a BOS they begin within the chain."""
    extra = 0 if setting.bos else 1
    uniform = np.random.default_rng(seed).random((LENGTH + extra, count))
    return chain(CHAIN).rows(uniform)[:, extra:]


def noops(tokens: Int[Array, "... T"]) -> Bool[Array, "... T"]:
    """True for the queries that have nothing to copy; the first position, which sees one key, is
    none of them."""
    idle = ~jnp.asarray(chain(CHAIN).is_trigger)[tokens]
    return idle.at[..., 0].set(False)


def train(
    setting: Setting, optimizer: optax.GradientTransformation, steps: int, seeds: tuple[int, ...]
) -> Params:
    """Parameters after training, with a leading axis over seeds; every seed has its own rows."""
    batches = np.stack([rows(setting, seed, steps * BATCH) for seed in seeds])
    batches = batches.reshape(len(seeds), steps, BATCH, -1)

    def one(key: Array, batches: Array) -> Params:
        def loss(params: Params, step: Array) -> Array:
            batch = batches[step]
            logits, _ = jax.vmap(partial(apply, setting, params))(batch[:, :-1])
            return jnp.mean(cross_entropy(logits, batch[:, 1:]))

        return descend(loss, init(setting, key), optimizer, steps)[0]

    return jax.jit(jax.vmap(one))(_keys(seeds), jnp.asarray(batches))


def starts(setting: Setting, seeds: tuple[int, ...]) -> Params:
    """What `train` begins with."""
    return jax.vmap(partial(init, setting))(_keys(seeds))


def _keys(seeds: tuple[int, ...]) -> Array:
    return jnp.stack([jax.random.key(seed) for seed in seeds])


def excess_loss(setting: Setting, params: Params) -> Float[Array, "S"]:
    """Loss per seed on new rows less that of the task itself, in nats; the first prediction, which
    differs with and without a BOS, is left out."""
    task, drawn = chain(CHAIN), rows(setting, HELD_OUT, SCORED)
    now, following = drawn[:, 1:-1], drawn[:, 2:]
    with np.errstate(divide="ignore"):
        surprise = -np.log(task.transition[now, np.minimum(following, TEXT_TOKENS - 1)])
    least = np.where(task.is_trigger[now], 0.0, surprise).mean()

    def of_seed(params: Params) -> Array:
        logits, _ = jax.vmap(partial(apply, setting, params))(jnp.asarray(drawn[:, :-1]))
        return jnp.mean(cross_entropy(logits, jnp.asarray(drawn[:, 1:]))[:, 1:])

    return jax.jit(jax.vmap(of_seed))(params) - jnp.asarray(least, jnp.float32)


class Habits(NamedTuple):
    """What the heads of trained models do where there is nothing to do; means over new rows.

    The shares are of the attention of idle queries: on the first token, on their own, on the rest.
    """

    first: Float[Array, "S L N"]
    own: Float[Array, "S L N"]
    others: Float[Array, "S L N"]
    drain: Float[Array, "S L N"]  # |v_0| over the mean |v| of the others
    peak: Float[Array, "S L"]  # |h_0| over the mean |h| of the others, of the block's output


def habits(setting: Setting, params: Params) -> tuple[Habits, Seen]:
    """Look at the models of all seeds S on the same new rows; `Seen` is by seed and row."""
    tokens = jnp.asarray(rows(setting, HELD_OUT, LOOKED_AT)[:, :-1])
    look = jax.vmap(lambda p: jax.vmap(lambda row: apply(setting, p, row)[1])(tokens))
    seen = jax.jit(look)(params)  # [S, C, L, ...]
    idle = noops(tokens)[None, :, None, None]

    def of_idle(share: Float[Array, "S C L N T"]) -> Float[Array, "S L N"]:
        where = jnp.broadcast_to(idle, share.shape)
        return jnp.mean(share, axis=(1, 4), where=where)

    def first_over_rest(norms: Float[Array, "S C L T *N"]) -> Float[Array, "S L *N"]:
        return jnp.mean(norms[:, :, :, 0] / jnp.mean(norms[:, :, :, 1:], axis=3), axis=1)

    first = of_idle(seen.weights[..., 0])
    own = of_idle(jnp.diagonal(seen.weights, axis1=-2, axis2=-1))
    others = of_idle(jnp.sum(seen.weights, axis=-1)) - first - own
    drain = first_over_rest(jnp.linalg.norm(seen.values, axis=-1))
    peak = first_over_rest(jnp.linalg.norm(seen.states, axis=-1))
    return Habits(first, own, others, drain, peak), seen


def draw_seeds(key: Array, count: int) -> tuple[int, ...]:
    """Seeds below those of the rows that are looked at."""
    return tuple(jax.random.randint(key, (count,), 0, HELD_OUT).tolist())


ADAM_RATE, WARMUP = 5e-3, 50


def rate(peak: float, steps: int) -> optax.Schedule:
    """Linear warm-up, then a cosine to a tenth."""
    return optax.warmup_cosine_decay_schedule(0.0, peak, WARMUP, steps, peak / 10.0)


def adam(steps: int) -> optax.GradientTransformation:
    """The Adam of all trainings on this task, whose settings are those of the demo."""
    return optax.adam(rate(ADAM_RATE, steps), b2=0.95)


def sgd(steps: int) -> optax.GradientTransformation:
    """Clipped SGD with momentum at the largest rate, of 0.1, 0.3 and 1, that trains."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(rate(1.0, steps), 0.9))
