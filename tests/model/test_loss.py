"""The loss in blocks of positions is the plain one, its gradients too, and holds fewer logits."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.core.layers import cross_entropy
from sysout_jax.errors import InputError
from sysout_jax.model.config import SHAPES, ModelConfig
from sysout_jax.model.decoder import final_states, forward, head_names, init, logits_of
from sysout_jax.model.execution import Execution
from sysout_jax.model.loss import LOGITS, block_of, mean_loss, token_losses
from tests.model.noise import noisy

CONFIG = ModelConfig(vocab=37, context=9, layers=1, width=12, heads=2, mlp_width=19, mlp="relu")
HEADS = {
    "untied": {},
    "tied": {"tied": True},
    "bias": {"head_bias": True},
    "soft cap": {"final_softcap": 2.0},
    "narrow embedding": {"embed_width": 5},
    "all": {"tied": True, "head_bias": True, "final_softcap": 2.0, "embed_width": 5},
}


def given_head(config, sequences=3, length=10, seed=0):
    """Parameters far from zero, states and targets."""
    rng, params = np.random.default_rng(seed + 9), noisy(config, seed, 0.5)
    head = {name: params[name] for name in head_names(config)}
    states = rng.standard_normal((sequences, length, config.width))
    targets = rng.integers(0, config.vocab, (sequences, length))
    dtype = config.execution.dtype
    return head, jnp.asarray(states, dtype), jnp.asarray(targets, jnp.int32)


def plain(config, head, states, targets):
    return jnp.mean(cross_entropy(logits_of(config, head, states), targets))


def in_float64(config, head, states, targets):
    """The mean loss and its gradient by the states, position by position."""
    own = {name: np.asarray(x, np.float64) for name, x in head.items()}
    into = own["embed"].T if config.tied else own["head"]
    into = own["embed_out"] @ into if config.embed_width else into
    total, gradient = 0.0, np.zeros(states.shape)
    for b, t in np.ndindex(targets.shape):
        raw = np.asarray(states[b, t], np.float64) @ into + own.get("head_bias", 0.0)
        cap = config.final_softcap
        logits = raw if cap is None else cap * np.tanh(raw / cap)
        p = np.exp(logits) / np.exp(logits).sum()
        total -= np.log(p[targets[b, t]])
        p[targets[b, t]] -= 1
        gradient[b, t] = into @ (p if cap is None else p * (1 - (logits / cap) ** 2))
    return total / targets.size, gradient / targets.size


def relative_error(found, expected):
    """The largest difference, as a share of the largest entry of its array."""
    wide = partial(jax.tree.map, lambda x: np.asarray(x, np.float32))
    pairs = zip(jax.tree.leaves(wide(found)), jax.tree.leaves(wide(expected)), strict=True)
    return max(float(np.abs(a - b).max() / np.abs(b).max()) for a, b in pairs)


@pytest.mark.parametrize("block", [1, 4])
@pytest.mark.parametrize("name", HEADS)
def test_loss_and_gradients_of_every_head(name, block):
    config = replace(CONFIG, **HEADS[name])
    arguments = given_head(config)
    cut = config.with_execution(loss_block=block)
    gradient = partial(jax.value_and_grad, argnums=(0, 1))
    expected = gradient(partial(plain, config))(*arguments)
    found = jax.jit(gradient(partial(mean_loss, cut)))(*arguments)
    assert relative_error(found, expected) < 1e-6
    loss, of_states = in_float64(config, *arguments)
    assert float(found[0]) == pytest.approx(loss, rel=1e-6)
    assert np.abs(found[1][1] - of_states).max() < 1e-6 * np.abs(of_states).max() + 1e-8
    losses = token_losses(config, *arguments)
    np.testing.assert_allclose(token_losses(cut, *arguments), losses, rtol=1e-6)


@pytest.mark.parametrize(
    ("devices", "each", "length", "block", "vocab"),
    [(1, 2, 1, 7, 2), (2, 1, 6, 4, 5), (3, 3, 5, 2, 7), (2, 3, 6, 6, 3), (1, 1, 1, 1, 4)],
)
def test_any_shape_in_any_block(devices, each, length, block, vocab):
    """Of however many devices, each with its own sequences; blocks that are filled and longer."""
    config = replace(CONFIG, vocab=vocab, tied=True)
    arguments = given_head(config, devices * each, length, 7)
    cut = partial(mean_loss, config.with_execution(loss_block=block), devices=devices)
    found = jax.value_and_grad(cut, argnums=(0, 1))(*arguments)
    expected = jax.value_and_grad(partial(plain, config), argnums=(0, 1))(*arguments)
    assert relative_error(found, expected) < 2e-6


def test_bfloat16():
    """Losses are those of the same logits; gradients differ by the rounding of each block."""
    config = CONFIG.with_execution(dtype="bfloat16")
    arguments = given_head(config)
    assert arguments[1].dtype == jnp.bfloat16
    cut = config.with_execution(loss_block=2)
    loss, found = jax.value_and_grad(partial(mean_loss, cut), argnums=(0, 1))(*arguments)
    same, expected = jax.value_and_grad(partial(plain, config), argnums=(0, 1))(*arguments)
    assert float(loss) == pytest.approx(float(same), rel=1e-6)
    assert [x.dtype for x in jax.tree.leaves(found)] == [x.dtype for x in jax.tree.leaves(expected)]
    assert 0 < relative_error(found, expected) < 2.0**-7


def test_parameters_in_bfloat16_have_gradients_like_them():
    head, states, targets = given_head(CONFIG)
    head = jax.tree.map(lambda x: x.astype(jnp.bfloat16), head)
    cut = partial(mean_loss, CONFIG.with_execution(loss_block=4))
    gradient = jax.grad(cut)(head, states, targets)
    assert (
        relative_error(gradient, jax.grad(partial(plain, CONFIG))(head, states, targets)) < 2.0**-7
    )
    assert gradient["head"].dtype == jnp.bfloat16


def test_final_states_are_what_logits_are_made_of():
    config = replace(CONFIG, tied=True, head_bias=True, final_softcap=2.0)
    params, tokens = init(config, jax.random.key(1)), jnp.asarray([[1, 2, 3], [4, 5, 6]])
    states, _ = final_states(config, params, tokens)
    assert states.shape == (2, 3, 12)
    logits, _ = forward(config, params, tokens)
    np.testing.assert_array_equal(logits_of(config, params, states), logits)


@pytest.mark.parametrize("vocab", [64, 32_000, 50_257, 10**9])
@pytest.mark.parametrize("sequences", [1, 8, 512])
@pytest.mark.parametrize("length", [1, 1000, 4096, 2**20])
def test_the_rule_holds_few_logits_and_fills_its_blocks(vocab, sequences, length):
    block = block_of(replace(CONFIG, vocab=vocab), sequences, length)
    assert 1 <= block <= length
    assert block == 1 or sequences * block * vocab <= LOGITS
    blocks = -(-length // block)
    assert blocks * block - length < blocks  # less than one position of each is fill
    assert block == length or 4.1 * sequences * block * vocab > LOGITS or block == 1


def test_a_small_vocabulary_is_taken_whole():
    assert block_of(CONFIG, 16, 256) == 256
    assert block_of(replace(CONFIG, vocab=50_257), 8, 1024) == 128


def temporaries(config, sequences=2, length=64):
    head = {"embed": jax.ShapeDtypeStruct((config.vocab, config.width), jnp.float32)}
    states = jax.ShapeDtypeStruct((sequences, length, config.width), jnp.float32)
    targets = jax.ShapeDtypeStruct((sequences, length), jnp.int32)
    gradient = jax.jit(jax.value_and_grad(partial(mean_loss, config), argnums=(0, 1)))
    return gradient.lower(head, states, targets).compile().memory_analysis().temp_size_in_bytes


def test_no_logits_of_all_positions_are_held():
    config = replace(SHAPES["gpt2-tiny"], vocab=50_257, width=8, heads=1)
    every = 4 * 2 * 64 * 50_257  # bytes of all logits
    assert temporaries(config.with_execution(loss_block=64)) > every
    assert temporaries(config.with_execution(loss_block=4)) < 0.4 * every


def test_a_block_is_at_least_one_position():
    with pytest.raises(InputError, match="loss_block"):
        Execution(loss_block=0)
