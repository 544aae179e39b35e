"""The residual stream in another basis: the same logits from the same forward pass."""

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analysis.intervene.conversion import with_prefix
from sysout_jax.analysis.intervene.rotated_stream import check_rotates, rotate_stream
from sysout_jax.core.attention import VARIANTS
from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import forward, init, param_shapes, stack_blocks, unstack_blocks

BASE = ModelConfig(
    vocab=23, context=40, layers=3, width=20, heads=4, kv_heads=2, head_dim=6, mlp_width=11,
    mlp="swiglu", position="rope",
)  # fmt: skip
TOKENS = jax.random.randint(jax.random.key(3), (2, 9), 0, BASE.vocab)
SHAPES = {
    "rotary": {},
    "tied": {"tied": True, "embed_scale": 3.0},
    "gains from one": {"norm_plus_one": True, "tied": True, "final_softcap": 3.0},
    "no gains": {"norm_scale": False},
    "scaled": {"residual_scale": 0.4, "logit_scale": 3.0, "tied": True},
    "one gain": {"norm": "single_scale", "embed_width": 8, "tied": True},
    "a map of embeddings": {"embed_width": 8},
    "normed heads": {"query_key_norm": "head"},
    "normed whole": {"query_key_norm": "whole", "qkv_bias": True},
    "experts": {"experts": 3, "bias": True},
    "side by side": {"parallel_block": "separate"},
    "side by side, one norm": {"parallel_block": "shared", "norm": "layer", "bias": True},
    "gates of heads": {"variant": "head_gate"},
    "gates of channels": {"variant": "plain_element_gate"},
    "differential": {"variant": "differential"},
    "LayerNorm": {"norm": "layer", "bias": True, "position": "learned", "tied": True},
    "LayerNorm's bias alone": {"norm": "layer", "norm_bias": True, "mlp": "gelu"},
    "LayerNorm without": {"norm": "layer", "variant": "head_gate", "tied": True},
    "LayerNorm, experts": {"norm": "layer", "bias": True, "experts": 3},
    "LayerNorm, a head with a bias": {"norm": "layer", "bias": True, "head_bias": True},
}  # fmt: skip


def drawn(config):
    """Parameters none of which is as it is at first: gains, biases, gates."""
    leaves, tree = jax.tree.flatten(init(config, jax.random.key(0)))
    keys = jax.random.split(jax.random.key(1), len(leaves))
    noisy = [
        leaf + 0.3 * jax.random.normal(key, leaf.shape)
        for leaf, key in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(tree, noisy)


def orthogonal(size=BASE.width):
    return jnp.linalg.qr(jax.random.normal(jax.random.key(2), (size, size)))[0]


@pytest.mark.parametrize("name", SHAPES)
def test_the_function_stays(name):
    config = replace(BASE, **SHAPES[name])
    params, rotation = drawn(config), orthogonal()
    changed, turned = rotate_stream(config, params, rotation)
    assert jax.tree.map(jnp.shape, turned) == jax.tree.map(jnp.shape, param_shapes(changed))
    before, seen = forward(config, params, TOKENS, {"block_out": None})
    after, turned_seen = forward(changed, turned, TOKENS, {"block_out": None})
    np.testing.assert_allclose(after, before, rtol=2e-4, atol=2e-4)
    states = seen["block_out"]
    states = states - states.mean(axis=-1, keepdims=True) if config.norm == "layer" else states
    np.testing.assert_allclose(turned_seen["block_out"], states @ rotation, rtol=1e-3, atol=1e-3)


def test_gains_are_gone_and_nothing_else_is_turned():
    params = drawn(BASE)
    changed, turned = rotate_stream(BASE, params, jnp.eye(BASE.width))
    assert changed == BASE
    before, after = params["block_1"], turned["block_1"]
    gains = before["attn_norm"]["scale"]
    expected = before["attn"]["query"] * gains[:, None, None]
    np.testing.assert_allclose(after["attn"]["query"], expected, rtol=1e-6)
    assert (after["attn_norm"]["scale"] == 1.0).all()
    np.testing.assert_array_equal(after["mlp"]["down"], before["mlp"]["down"])


@pytest.mark.parametrize("name", ["rotary", "LayerNorm", "LayerNorm, experts"])
def test_stacked_layers(name):
    config, rotation = replace(BASE, **SHAPES[name]), orthogonal()
    params = drawn(config)
    changed, expected = rotate_stream(config, params, rotation)
    for given in (config, config.with_execution(scan_layers=True)):  # the parameters say how
        same, turned = rotate_stream(given, stack_blocks(params), rotation)
        assert same == replace(changed, execution=given.execution)
        jax.tree.map(
            partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5),
            unstack_blocks(turned),
            expected,
        )


def test_parameters_keep_their_dtype():
    """And are rounded once, gains that are stored from one included."""
    config = replace(BASE, norm_plus_one=True)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), drawn(config))
    whole = jax.tree.map(lambda x: x.astype(jnp.float32), half)
    rotation = orthogonal()
    turned, expected = (rotate_stream(config, of, rotation)[1] for of in (half, whole))
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16), expected)
    jax.tree.map(np.testing.assert_array_equal, turned, rounded)
    assert {leaf.dtype for leaf in jax.tree.leaves(turned)} == {jnp.dtype(jnp.bfloat16)}


@pytest.mark.parametrize("changes", [{}, {"norm": "layer", "bias": True}])
def test_a_converted_model(changes):
    given = replace(BASE, **changes)
    config, params = with_prefix(given, drawn(given), (5, 2))
    changed, turned = rotate_stream(config, params, orthogonal())
    assert changed.sink == config.sink
    before, after = (forward(c, p, TOKENS)[0] for c, p in ((config, params), (changed, turned)))
    np.testing.assert_allclose(after, before, rtol=2e-4, atol=2e-4)


@pytest.mark.usefixtures("own_variants")
def test_a_variant_that_sees_a_state_otherwise():
    @so.variant(formula="p", cite="none", weights=so.Param("D", 1.0))
    def weighed_states(heads, params):
        return VARIANTS["softmax"](heads, {})

    with pytest.raises(InputError, match=r"^variant=weighed_states: the stream cannot be rotated"):
        check_rotates(replace(BASE, variant="weighed_states"))


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"norm": "tanh"}, "norm"),
        ({"norm": "gated"}, "norm"),
        ({"norm": "pre_affine"}, "norm"),
        ({"embed_norm": True}, "embed_norm"),
        ({"norm_placement": "post"}, "norm_placement"),
        ({"norm_placement": "sandwich"}, "norm_placement"),
        ({"norm": "layer", "query_key_norm": "head"}, "query_key_norm"),
        ({"norm": "layer", "bias": True, "embed_width": 8}, "embed_width"),
        ({"norm": "layer", "bias": True, "variant": "head_gate"}, "variant"),
    ],
)
def test_what_cannot_be_rotated(changes, flag):
    config = replace(BASE, **changes)
    with pytest.raises(InputError, match=f"^{flag}=.*the stream cannot be rotated"):
        rotate_stream(config, init(config, jax.random.key(0)), orthogonal())
