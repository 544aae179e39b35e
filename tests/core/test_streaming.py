"""Attention in blocks of queries equals attention at once: outputs, statistics, refusals."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.streaming import (
    Blockwise,
    Partial,
    attention_received,
    join_queries,
    over_blocks,
    scaling_factor,
    split_queries,
)
from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import forward, stack_blocks
from tests.model.noise import noisy

B, T, N, K, H = 2, 13, 4, 2, 6
BASE = ModelConfig(
    vocab=17, context=T, layers=1, width=10, heads=N, kv_heads=K, head_dim=H, mlp_width=7,
    position="rope",
)  # fmt: skip
TOKENS = jnp.asarray(np.random.default_rng(3).integers(0, 17, (B, T)), jnp.int32)
OUTLIERS = jnp.arange(T) % 5 == 0


@cache
def run(config):
    normalised = VARIANTS[config.variant].normalised
    taps = {
        "attn_weights": attention_received(normalised),
        "value+attn_weights": scaling_factor(OUTLIERS, normalised),
    }
    logits, recorded = so.apply(so.Model(config, noisy(config)), TOKENS, taps)
    return np.asarray(logits), jax.tree.map(np.asarray, recorded)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_in_blocks_equals_the_variant_at_once(name):
    """Unnormalised and extra-key variants too: every row sees all keys in either case."""
    dense = dataclasses.replace(BASE, variant=name)
    logits, recorded = run(dense)
    in_blocks, recorded_in_blocks = run(dense.with_execution(query_block=5))
    np.testing.assert_allclose(in_blocks, logits, atol=1e-5 * np.abs(logits).max())
    for tap, statistics in recorded.items():
        for key, value in statistics.items():
            found = recorded_in_blocks[tap][key]
            assert found.shape == value.shape
            np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-5, err_msg=f"{tap} {key}")


@pytest.mark.parametrize("size", [1, 64])
@pytest.mark.parametrize("extra", [{}, {"window": 3, "scan_layers": True}])
def test_any_block_size(size, extra):
    if extra:
        dense = dataclasses.replace(BASE, window=3)
        params = noisy(dense)
        taps = {"attn_weights": attention_received(True)}
        expected = so.apply(so.Model(dense, params), TOKENS, taps)
        blocked = dense.with_execution(query_block=size, scan_layers=True)
        found = so.apply(so.Model(blocked, stack_blocks(params)), TOKENS, taps)
    else:
        expected, found = run(BASE), run(BASE.with_execution(query_block=size))
    for a, b in zip(jax.tree.leaves(expected), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_statistics_against_loops(name):
    """Each number from the raw map and the raw values, one query and one head at a time."""
    config = dataclasses.replace(BASE, variant=name)
    model = so.Model(config, noisy(config))
    _, raw = so.apply(model, TOKENS, {"attn_weights": None, "value": None})
    weights, values = (np.asarray(raw[key], np.float64) for key in ("attn_weights", "value"))
    recorded = run(config)[1]
    received, factor = recorded["attn_weights"], recorded["value+attn_weights"]
    for layer, b, n in np.ndindex(1, B, N):
        map_, v = weights[layer, b, n], values[layer, b, :, n // (N // K)]
        at = (layer, b, n)
        rows = map_ / map_.sum(-1, keepdims=True) if name == "sigmoid" else map_
        np.testing.assert_allclose(received["received"][at], rows.mean(0), atol=1e-6)
        np.testing.assert_allclose(received["first_own"][at], rows[0, 0], atol=1e-6)
        for q in range(T):
            rest = [j for j in range(T) if not OUTLIERS[j]]
            scale = sum(rows[q, j] for j in rest)
            whole = sum(rows[q, j] * v[j] for j in range(T))
            scaled = sum((rows[q, j] * v[j] for j in rest), np.zeros(H))
            error = np.linalg.norm(whole - scaled) / np.linalg.norm(whole)
            np.testing.assert_allclose(factor["scale"][*at, q], scale, atol=1e-6)
            np.testing.assert_allclose(factor["error"][*at, q], error, rtol=1e-4, atol=1e-6)


def test_memory_is_linear_in_the_length():
    """The compiled program's temporary memory: far below one T x T map of its heads, and 4 times
    as much for 4 times the tokens (sums of every block kept until the end would make it 10)."""
    taps = {"attn_weights": attention_received(True)}

    def temporary(length):
        config = dataclasses.replace(BASE, context=length).with_execution(query_block=16)
        compiled = jax.jit(lambda params, tokens: forward(config, params, tokens, taps)[1])
        tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
        analysis = compiled.lower(noisy(config), tokens).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    short, long = temporary(1024), temporary(4096)
    assert short < N * 1024**2 * 4 / 2
    assert long < 4.5 * short


def test_edits_reach_every_block():
    """Taking a key's attention away gives what it gives without blocks."""

    def remove(weights, layer):
        return weights.at[..., 0].set(0.0)

    outs = [
        so.apply(so.Model(c, noisy(c)), TOKENS, edits={"attn_weights": so.Edit(remove)})[0]
        for c in (BASE, BASE.with_execution(query_block=4))
    ]
    np.testing.assert_allclose(outs[0], outs[1], rtol=1e-4, atol=1e-5)
    assert np.abs(outs[0] - run(BASE)[0]).max() > 1e-2


def test_blocks_leave_out_the_keys_behind_their_part():
    """A value that is no number reaches only queries whose part has it: a weight of 0 passes it on.

    Where weights are replaced every query has every key.
    """

    def broken(value, layer):
        return value.at[T - 1].set(jnp.nan)

    def same(weights, layer):
        return weights

    config = BASE.with_execution(query_block=2)  # seven blocks: parts of 4, 4, 4 and 1 queries
    model = so.Model(config, noisy(config))
    edits = {"value": so.Edit(broken)}
    finite = [
        np.isfinite(np.asarray(so.apply(model, TOKENS, edits=chosen)[0])).all(axis=(0, 2))
        for chosen in (edits, {**edits, "attn_weights": so.Edit(same)})
    ]
    assert finite[0].tolist() == [True] * 12 + [False]
    assert not finite[1].any()


def test_logits_are_read_of_all_keys():
    """Logits behind a query are there before the mask, in blocks as without."""

    def each(logits, positions):
        return Partial(total=jnp.sum(jnp.abs(logits), axis=1), queries=jnp.sum(logits, axis=-1))

    taps = {"attn_logits": Blockwise(each, lambda whole: whole)}
    found = [
        so.apply(so.Model(c, noisy(c)), TOKENS, taps)[1]["attn_logits"]
        for c in (BASE, BASE.with_execution(query_block=2))
    ]
    assert found[0].queries.shape == (1, B, N, T)
    for a, b in zip(jax.tree.leaves(found[0]), jax.tree.leaves(found[1]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_reducer_of_whole_maps_is_refused_in_blocks():
    config = BASE.with_execution(query_block=4)
    model = so.Model(config, noisy(config))
    for reducer in (None, so.measures.sink_strength):
        with pytest.raises(InputError, match="'attn_weights': does not exist whole under query"):
            so.apply(model, TOKENS, {"attn_weights": reducer})


def test_split_and_join_are_inverse():
    x = jnp.asarray(np.random.default_rng(0).standard_normal((2, 13, 3, 5)), jnp.float32)
    blocks = split_queries(x, 4)
    assert blocks.shape == (4, 2, 4, 3, 5)
    assert not blocks[-1, :, 1:].any()
    np.testing.assert_array_equal(join_queries(blocks, 13), x)


def test_blocks_add_up():
    parts = {
        "a": Partial(
            total=jnp.asarray([[1.0, 2.0], [3.0, 4.0]]),
            queries=jnp.asarray([[[1.0, 2.0]], [[3.0, 0.0]]]),
        )
    }
    out, whole = over_blocks(lambda block: (block["a"].total[0], block), parts, 3)
    np.testing.assert_array_equal(out, [1, 3])
    np.testing.assert_array_equal(whole["a"].total, [4, 6])
    np.testing.assert_array_equal(whole["a"].queries, [[1, 2, 3]])


def test_reducers_are_the_same_object_each_time():
    """They are part of a compiled program's identity."""
    assert attention_received(True) is attention_received(True)
    assert isinstance(attention_received(False), Blockwise)
