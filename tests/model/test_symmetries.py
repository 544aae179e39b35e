"""A decoder's function does not depend on the order of channels, heads, units or sequences."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.model.decoder import param_axes
from tests.model.test_decoder import GPT2, LLAMA, TOKENS, logits, noisy

CONFIGS = {
    "gpt2": GPT2,
    "llama": dataclasses.replace(LLAMA, variant="value_gate+attention_bias"),
    "experts": dataclasses.replace(LLAMA, experts=3, variant="context_scale+sink_value"),
}


def order(count):
    return np.roll(np.arange(count), 1)


def heads(config):
    """KV heads in another order, and those of queries with the group that they are of."""
    sizes = config.sizes
    shared = sizes["N"] // sizes["K"]
    kv = order(sizes["K"])
    return {"K": kv, "N": (kv[:, None] * shared + order(shared)).ravel()}


ORDERS = {
    "channels": lambda config: {"D": order(config.width)},
    "heads": heads,
    "units": lambda config: {"F": order(config.mlp_width)},
    "experts": lambda config: {"E": order(config.experts)},
}


def permuted(config, params, orders):
    def leaf(axes, x):
        for place, name in enumerate(axes.replace("->", " ").split()):
            x = jnp.take(x, orders[name], axis=place) if name in orders else x
        return x

    return jax.tree.map(leaf, param_axes(config), params)


CASES = [
    (name, what)
    for name, config in CONFIGS.items()
    for what in ORDERS
    if what != "experts" or config.experts
]


@pytest.mark.parametrize(("name", "what"), CASES)
def test_parameters_in_another_order_give_the_same_logits(name, what):
    config = CONFIGS[name]
    params = noisy(config)
    moved = permuted(config, params, ORDERS[what](config))
    assert any(map(np.any, jax.tree.leaves(jax.tree.map(lambda a, b: a != b, params, moved))))
    np.testing.assert_allclose(logits(config, moved), logits(config, params), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", CONFIGS)
def test_sequences_and_words_in_another_order(name):
    config = CONFIGS[name]
    params = noisy(config)
    plain = logits(config, params)
    np.testing.assert_allclose(logits(config, params, TOKENS[::-1]), plain[::-1], rtol=1e-5)
    words = order(config.vocab)
    moved = permuted(config, params, {"V": words})
    np.testing.assert_allclose(
        logits(config, moved, np.argsort(words)[TOKENS].astype(np.int32)), plain[..., words],
        rtol=1e-4, atol=1e-4,
    )  # fmt: skip
