"""The summary of a model against a recomputation from its raw taps, and planted outliers."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.analysis.measure.summary import (
    LEAST,
    SUMMARY_LABELS,
    Snapshot,
    losses_by_query,
    outlier_summary,
    snapshot,
    summary_in_batches,
    weight_ratio,
)
from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.recorded import MEASURES
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import forward, init, stack_blocks
from tests.core import test_measures as measures
from tests.core.test_detectors import activation_scores

B, T = 3, 67  # T * D > 1000: fewer numbers cannot be 1000 times their mean
CHANNEL, NEURON = 5, 23
BASE = ModelConfig(
    vocab=11, context=T, layers=2, width=16, heads=2, kv_heads=1, mlp="relu", init_std=0.3
)
COMPILED = (
    "softmax", "sigmoid", "attention_bias", "context_scale", "value_gate",
    "value_bias+context_scale", "differential",
)  # fmt: skip
TAPPED = ("attn_weights", "value", "attn_norm", "block_out", "down_in", "attn_first", "attn_mix")
every_compiled = pytest.mark.parametrize("name", COMPILED)

RNG = np.random.default_rng(7)
TOKENS = RNG.integers(1, 11, (B, T)).astype(np.int32)
TOKENS[:, 0] = 0  # a token that occurs first and only first
NOOP = RNG.random((B, T)) < 0.4


def config(name):
    return dataclasses.replace(BASE, variant=name)


@cache
def planted(name):
    """Random parameters under which token 0 has outliers of all kinds.

    Only token 0 has a value in CHANNEL, and NEURON of layer 0 reads nothing else; it writes to
    the other channels, so that the state of the first token differs between layers.
    """
    # Under these draws every variant gives the first token more than the detector's threshold.
    rng = np.random.default_rng(10 + COMPILED.index(name))

    def draw(path, leaf):
        return 0.3 * rng.standard_normal(leaf.shape) + (path[-1].key == "scale")

    shapes = jax.eval_shape(partial(init, config(name)), jax.random.key(0))
    params = jax.tree_util.tree_map_with_path(draw, shapes)
    params["embed"][:, CHANNEL] = 0.0
    params["embed"][0, CHANNEL] = 1e4
    params["positions"][:, CHANNEL] = 0.0
    for layer in ("block_0", "block_1"):
        params[layer]["attn"]["out"][..., CHANNEL] = 0.0
        params[layer]["mlp"]["down"][:, CHANNEL] = 0.0
    params["block_0"]["mlp"]["up"][:, NEURON] = 0.0
    params["block_0"]["mlp"]["up"][CHANNEL, NEURON] = 3e4
    params["block_0"]["mlp"]["down"][NEURON] *= 1e-3
    return jax.tree.map(lambda a: jnp.asarray(a, jnp.float32), params)


@cache
def compiled(name):
    """The summary, and the raw taps that it is made of."""

    def run(params, tokens, noop):
        taps = dict.fromkeys((*TAPPED, *(("attn_gate",) if has_gate(name) else ())))
        raw = forward(config(name), params, tokens, taps)[1]
        return outlier_summary(config(name), params, tokens, noop), raw

    return jax.jit(run)


@cache
def measured(name):
    """(summary, raw taps) of the planted model."""
    summary, raw = compiled(name)(planted(name), jnp.asarray(TOKENS), jnp.asarray(NOOP))
    return (
        {key: float(value) for key, value in summary.items()},
        {key: np.asarray(value, np.float64) for key, value in raw.items()},
    )


def has_gate(name):
    return any("gate" in key for key in VARIANTS[name].params)


# ------------------------------------------------------------------------- recomputation


# Of a measure: the loop over one sequence in one layer; how layers and heads are summarised.
LOOPS = {**measures.DEFINITIONS, **measures.APART, **measures.OF_VALUES, **measures.OF_WEIGHTS}
OVER = {
    "sink_rate@attn_weights": np.mean,
    "first_token_argmax@attn_weights": np.mean,
    "sink_strength@attn_weights": np.max,
    "value_drain@value": np.min,
    "top1_over_mean@down_in": np.max,
    **{f"{name}@block_out": np.max for name in (
        "residual_peak", "top1", "top1_over_median", "top1_over_mean", "max_median_ratio",
        "neuron_rms_kurtosis", "tensor_kurtosis", "first_token_kurtosis", "other_token_kurtosis",
        "spectral_dominance",
    )},
}  # fmt: skip
top_over_mean = LOOPS["top1_over_mean"][1]


def flagged(score, threshold):
    return np.sum(np.asarray(score) > threshold)


# Of a detector: the tap, and how many it flags in one sequence in one layer.
FLAGGED = {
    "six_sigma_outliers": ("block_out", lambda h: flagged(abs(h - h.mean()) / h.std(), 6)),
    "attention_outliers": ("attn_weights", lambda w: np.sum(w.mean((0, 1)) >= 0.1)),
    "activation_outliers@block_out": ("block_out", lambda h: flagged(activation_scores(h), 1000)),
    "activation_outliers@down_in": ("down_in", lambda h: flagged(activation_scores(h), 1000)),
    "massive_activations": (
        "block_out",
        lambda h: np.sum((np.abs(h) > 100) & (np.abs(h) > 1000 * np.median(np.abs(h)))),
    ),
}


def definitions():
    """name -> (tap, function of one sequence in one layer, how layers and heads are summarised)"""
    for name, over in OVER.items():
        fn, tap = name.split("@")
        yield name, (tap, LOOPS[fn][1], over)
    for name, found in FLAGGED.items():
        yield name, (*found, np.max)


def recomputed(name):
    """Each key of the summary, one layer and one sequence at a time."""
    raw = measured(name)[1]
    rows = sizes = np.abs(raw["attn_weights"])
    if not VARIANTS[name].normalised:
        total = rows.sum(-1, keepdims=True)
        rows = rows / np.where(total == 0, 1, total)
    taps = raw | {"attn_weights": rows}
    found = {}
    for key, (tap, of_sequence, over) in definitions():
        layers = [np.mean([of_sequence(x) for x in layer], axis=0) for layer in taps[tap]]
        found[key] = over(layers)
    large = np.abs(raw["attn_norm"]) >= 6
    some = large.any(2).mean(0) >= 0.25
    found["outlier_features"] = np.mean(np.sum(some & (large.mean((0, 2)) >= 0.06), axis=-1))
    kept = [weights[..., weights.mean((0, 1)) < 0.1].sum(-1) for layer in rows for weights in layer]
    found["implicit_scale"] = np.mean(kept)
    found["implicit_scale_sd"] = np.mean([np.std(head) for heads in kept for head in heads])
    found["first_token_attention"] = sizes[..., 0].mean()
    added, put_out = (
        np.linalg.norm(raw[tap][:, :, 1:], axis=-1) for tap in ("attn_first", "attn_mix")
    )
    usual = np.sqrt((put_out**2).mean((2, 3), keepdims=True))
    found["sink_effect"] = (added / usual).mean()
    found["noop_sink"] = of_queries(NOOP, sizes[..., 0])
    found["noop_mass"] = of_queries(NOOP, sizes.sum(-1))
    first, rest = sizes[..., 0], sizes[..., 1:].sum(-1)
    odds = np.log(np.maximum(first, LEAST) / np.maximum(rest, LEAST))
    later = NOOP & (np.arange(T) > 0)
    heads = [(layer, head) for layer in range(2) for head in range(2)]
    sinks = [of_queries(NOOP, first[layer : layer + 1, :, [head]]) for layer, head in heads]
    layer, head = heads[np.argmax(sinks)]
    found["noop_sink_best"] = max(sinks)
    found["sink_gap"] = of_queries(later, odds[layer : layer + 1, :, [head]])
    found["weight_ratio@down"] = max(
        top_over_mean(np.asarray(planted(name)[layer]["mlp"]["down"], np.float64))
        for layer in ("block_0", "block_1")
    )
    if has_gate(name):
        gate = np.swapaxes(raw["attn_gate"].mean(-1), -1, -2)
        found["gate"] = gate.mean()
        found["gate_noop"], found["gate_active"] = of_queries(NOOP, gate), of_queries(~NOOP, gate)
    return found


def of_queries(chosen, x):
    """The mean of x [L, B, N, T] over the chosen (sequence, query)."""
    return np.mean([x[:, b, :, t] for b, t in zip(*np.nonzero(chosen), strict=True)])


@every_compiled
def test_summary_equals_a_recomputation_from_raw_taps(name):
    summary, _ = measured(name)
    expected = recomputed(name)
    assert set(summary) == set(expected)
    assert set(summary) >= {measure.name for measure in MEASURES}
    for key, value in expected.items():
        np.testing.assert_allclose(summary[key], value, rtol=2e-4, atol=1e-6, err_msg=key)


def test_a_model_that_is_trained_in_blocks_of_queries_is_measured_whole():
    blocks = config("softmax").with_execution(query_block=5)
    found = summary_in_batches(blocks, planted("softmax"), TOKENS)
    for key, value in found.items():
        np.testing.assert_allclose(value, measured("softmax")[0][key], rtol=1e-5, err_msg=key)
    shown = snapshot(blocks, planted("softmax"), jnp.asarray(TOKENS[0]))
    whole = snapshot(config("softmax"), planted("softmax"), jnp.asarray(TOKENS[0]))
    np.testing.assert_array_equal(shown.attention, whole.attention)


@every_compiled
def test_planted_outliers_are_found(name):
    """In every sequence the first token, in each kind; the model has them nowhere else."""
    summary, raw = measured(name)
    assert summary["activation_outliers@down_in"] == 1
    flagged = np.argwhere(np.abs(raw["down_in"][0]) > 1000 * np.abs(raw["down_in"][0, 0]).mean())
    assert {(t, f) for _, t, f in flagged.tolist()} == {(0, NEURON)}
    assert summary["massive_activations"] >= 1
    assert summary["top1@block_out"] >= 1e4
    assert 0 < summary["implicit_scale"] < 1


@every_compiled
def test_the_test_can_tell_layers_and_sequences_apart(name):
    """Otherwise a summary over the wrong axis would pass."""
    raw = measured(name)[1]
    for tap in TAPPED:
        assert raw[tap].shape[:2] == (2, B)
        assert np.max(np.abs(raw[tap][0] - raw[tap][1])) > 1e-3
        assert np.max(np.abs(raw[tap][:, 0] - raw[tap][:, 1])) > 1e-3


def test_unnormalised_rows_are_brought_to_one():
    """Sinks are measured on rows of one, but the mass and the first key's weight are raw."""
    summary, raw = measured("sigmoid")
    assert abs(summary["noop_mass"] - 1) > 0.01
    strength = raw["attn_weights"][..., 0].mean((1, 3)).max()
    assert abs(summary["sink_strength@attn_weights"] - strength) > 0.01
    assert measured("softmax")[0]["noop_mass"] == pytest.approx(1, abs=1e-5)
    assert measured("attention_bias")[0]["noop_mass"] < 0.999


def test_negative_weights_count_by_their_size():
    """So that a first token that is subtracted is no less of a sink."""
    summary, raw = measured("differential")
    first = raw["attn_weights"][..., 0]
    assert np.any(first < -0.1)
    assert summary["first_token_attention"] > first.mean() + 1e-3


def names(name, noop):
    small = dataclasses.replace(config(name), layers=1, context=5)
    params = jax.eval_shape(partial(init, small), jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((2, 5), jnp.int32)
    mask = jax.ShapeDtypeStruct((2, 5), jnp.bool_) if noop else None
    summary = jax.eval_shape(partial(outlier_summary, small), params, tokens, mask)
    assert all(value.shape == () for value in summary.values())
    return set(summary)


@pytest.mark.parametrize("name", VARIANTS)
def test_names_are_labelled(name):
    of_noop = {key for key in SUMMARY_LABELS if key.startswith("noop")} | {"sink_gap"}
    of_gates = {"gate", "gate_noop", "gate_active"}
    of_losses = {"loss_copy", "loss_bigram"}
    expected = set(SUMMARY_LABELS) - of_losses - (set() if has_gate(name) else of_gates)
    assert names(name, noop=True) == expected
    assert names(name, noop=False) == expected - of_noop - {"gate_noop", "gate_active"}


@pytest.mark.parametrize("everywhere", [True, False])
def test_no_query_at_all_is_zero_and_not_nan(everywhere):
    tokens, noop = jnp.asarray(TOKENS), jnp.full((B, T), everywhere)
    summary, _ = compiled("context_scale")(planted("context_scale"), tokens, noop)
    assert all(np.isfinite(value) for value in summary.values())
    some, none = ("gate_noop", "gate_active") if everywhere else ("gate_active", "gate_noop")
    np.testing.assert_allclose(summary[some], summary["gate"], rtol=1e-5)
    assert summary[none] == 0
    expected = summary["first_token_attention"] if everywhere else 0.0
    np.testing.assert_allclose(summary["noop_sink"], expected, rtol=1e-5)


def test_losses_are_split_by_what_the_query_has_to_do():
    losses = RNG.random((B, T))
    sums = losses_by_query(jnp.asarray(losses), jnp.asarray(NOOP))
    found = {name: total / count for name, (total, count) in sums.items()}
    copied = [losses[b, t] for b in range(B) for t in range(T) if not NOOP[b, t]]
    drawn = [losses[b, t] for b in range(B) for t in range(1, T) if NOOP[b, t]]
    assert found["loss_copy"] == pytest.approx(np.mean(copied), rel=1e-5)
    assert found["loss_bigram"] == pytest.approx(np.mean(drawn), rel=1e-5)
    assert set(found) < set(SUMMARY_LABELS)


# -------------------------------------------------------------------------------- weights

PROJECTIONS = ("query", "key", "value", "out", "up", "gate", "down")


def small_weights(projection, **fields):
    fields = {"mlp": "swiglu", "layers": 3, **fields}
    params = init(dataclasses.replace(BASE, **fields), jax.random.key(1))
    part = "mlp" if projection in ("up", "gate", "down") else "attn"
    return params, [params[f"block_{layer}"][part] for layer in range(3)]


@pytest.mark.parametrize("projection", PROJECTIONS)
def test_weight_ratio_is_of_the_whole_matrix(projection):
    """max|W| / mean|W| over the matrix of a layer, however its axes are split into heads."""
    params, layers = small_weights(projection)
    expected = max(top_over_mean(np.asarray(part[projection], np.float64)) for part in layers)
    np.testing.assert_allclose(weight_ratio(params, projection), expected, rtol=1e-5)


@pytest.mark.parametrize("layer", [0, 2])
def test_a_planted_weight_outlier_is_found(layer):
    params, layers = small_weights("down")
    before = float(weight_ratio(params, "down"))
    down = layers[layer]["down"]
    layers[layer]["down"] = down.at[3, 7].set(-1e4)
    mean = (np.abs(down).sum() - abs(down[3, 7]) + 1e4) / down.size
    assert before < 10
    np.testing.assert_allclose(weight_ratio(params, "down"), 1e4 / mean, rtol=1e-4)
    # It is in down and in no other matrix, and scanning the layers does not hide it.
    assert weight_ratio(params, "up") < 10
    stacked = stack_blocks(params)
    np.testing.assert_allclose(weight_ratio(stacked, "down"), 1e4 / mean, rtol=1e-4)


# ------------------------------------------------------------------------------- snapshot


@pytest.mark.parametrize("name", ["softmax", "sigmoid"])
def test_snapshot_shows_the_most_outlying_layers(name):
    raw = measured(name)[1]
    rows = raw["attn_weights"][:, 0]
    if name == "sigmoid":
        rows = rows / rows.sum(-1, keepdims=True)
    states = np.abs(raw["block_out"][:, 0])
    sink = int(np.argmax(rows[..., 0].mean(-1).max(-1)))
    peak = int(np.argmax([h.max() / np.median(h) for h in states]))

    shown = snapshot(config(name), planted(name), jnp.asarray(TOKENS[0]))
    assert isinstance(shown, Snapshot)
    np.testing.assert_array_equal(shown.tokens, TOKENS[0])
    assert (shown.attention_layer, shown.magnitude_layer) == (sink, peak)
    assert shown.attention.shape == (T, T)
    assert shown.magnitude.shape == (T, BASE.width)
    np.testing.assert_allclose(shown.attention, rows[sink].mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(shown.magnitude, states[peak], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", [0, 1])
def test_snapshot_follows_the_sink(layer):
    """Only the chosen layer looks at the first token: its queries and that key are one channel."""
    params = jax.tree.map(lambda a: a, planted("softmax"))
    for at in (0, 1):
        attention = dict(params[f"block_{at}"]["attn"])
        attention["query"] = jnp.zeros_like(attention["query"])
        params[f"block_{at}"] = {**params[f"block_{at}"], "attn": attention}
    # A constant channel of the state gives every query the same direction.
    params["embed"] = params["embed"].at[:, 0].set(10.0)
    attention = params[f"block_{layer}"]["attn"]
    attention["query"] = attention["query"].at[0].set(10.0)
    attention["key"] = jnp.zeros_like(attention["key"]).at[CHANNEL].set(10.0)
    shown = snapshot(config("softmax"), params, jnp.asarray(TOKENS[0]))
    assert shown.attention_layer == layer
    assert np.mean(shown.attention[:, 0]) > 0.9
