"""What the theory assumes of a sink, measured: against loops, and on models of every kind."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from sysout_jax.analysis.measure import assumptions as module
from sysout_jax.analysis.measure.assumptions import ALLOWED, assumptions
from sysout_jax.analysis.measure.sink_layer import SinkLayer, hull_sizes
from sysout_jax.analysis.measure.sink_state import (
    asked_magnitude,
    centred,
    common_direction,
    split,
    value_gain,
)
from sysout_jax.analysis.statistics import bootstrap_interval
from sysout_jax.core.norms import NORMS
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import forward, init
from sysout_jax.model.sink import ExplicitSink
from tests.analysis import first_sink as planted
from tests.refusing import refusal

TEXTS, FIT = planted.texts(5, 40, seed=2), planted.texts(8, 40, seed=1)
LAYERS = (3, 4, 5)  # that read the planted state


@pytest.fixture(scope="module")
def found():
    return assumptions(planted.CONFIG, planted.params(), FIT, TEXTS, 3)


@pytest.fixture(scope="module")
def seen():
    """What the decoder computes of the texts, in float64."""
    names = ("block_in", "query", "key", "value", "attn_weights", "attn_mix")
    taps = forward(
        planted.CONFIG, planted.params(), jnp.asarray(TEXTS[:, :-1]), dict.fromkeys(names)
    )[1]
    return {name: np.float64(of) for name, of in taps.items()}


def hull(vectors):
    """The distance of their hull from zero, by another solver."""
    v = vectors / np.abs(vectors).max()
    found = optimize.minimize(
        lambda p: ((p @ v) @ (p @ v), 2 * v @ (p @ v)), np.full(len(v), 1 / len(v)), jac=True,
        method="SLSQP", bounds=[(0, 1)] * len(v), options={"ftol": 1e-14, "maxiter": 500},
        constraints={"type": "eq", "fun": lambda p: p.sum() - 1, "jac": np.ones_like},
    )  # fmt: skip
    return np.linalg.norm(found.x @ vectors)


def test_the_planted_heads_are_found(found, seen):
    given = seen["attn_weights"][:, :, :, 1:, 0].mean(axis=(1, 3))
    expected = {(layer, head) for layer, head in np.argwhere(given > 0.3)}
    assert {(head.layer, head.head) for head in found.heads} == expected
    assert {layer for layer, _ in expected} == set(LAYERS)
    for head in found.heads:
        assert head.given == pytest.approx(given[head.layer, head.head], rel=1e-5)
    assert found.sink.emergence == planted.MADE
    assert found.kinds == 5


def test_hulls_are_those_of_a_loop(found, seen):
    assert [each.keys for each in found.hulls] == [15, 31]
    for each in found.hulls:
        far, key = [], []
        for text in range(5):
            for layer in LAYERS:
                v, k = (seen[name][layer, text, :, 0] for name in ("value", "key"))
                rest = v[1 : each.keys + 1]
                far.append(hull(rest) / np.linalg.norm(rest, axis=1).mean())
                away = k[1 : each.keys + 1] - k[0]
                key.append(hull(away) / np.linalg.norm(away, axis=1).mean())
        assert each.distance.mean == pytest.approx(np.mean(far), rel=1e-4)
        assert each.least == pytest.approx(min(far), rel=1e-4)
        assert each.sink_key.mean == pytest.approx(np.mean(key), rel=1e-4)
        by_text = np.reshape(far, (5, 3)).mean(axis=1)
        assert each.distance.low == pytest.approx(bootstrap_interval(by_text).low, rel=1e-4)
        assert each.met.mean == 1.0


def test_drain_and_cosines_are_those_of_a_loop(found, seen):
    for head in found.heads:
        drain, cosine, others = [], [], []
        for text in range(5):
            v, k = (seen[name][head.layer, text, :, 0] for name in ("value", "key"))
            size = np.linalg.norm(v, axis=1)
            drain.append(size[0] / size[1:].mean())
            mean = seen["query"][head.layer, text, 1:, head.head].mean(axis=0)
            of = k @ mean / np.linalg.norm(mean) / np.linalg.norm(k, axis=1)
            cosine.append(of[0])
            others.append(of[1:].mean())
        assert head.drain == pytest.approx(np.mean(drain), rel=1e-4)
        assert head.cosine == pytest.approx(np.mean(cosine), rel=1e-4)
        assert head.cosine_others == pytest.approx(np.mean(others), abs=1e-4)


def test_constancy_is_that_of_a_loop(found, seen):
    for layer in found.layers:
        for name, of in (("key", layer.key_spread), ("value", layer.value_spread)):
            first = seen[name][layer.layer, :, 0, 0]
            mean = first.mean(axis=0)
            off = np.sqrt(np.mean(np.sum((first - mean) ** 2, axis=1)) / np.sum(mean**2))
            assert of.mean == pytest.approx(off, rel=1e-3)
            assert of.low <= of.mean <= of.high


def test_constancy_over_ids_is_that_of_texts_that_begin_with_each(found):
    rows = jnp.tile(jnp.arange(19)[:, None], (1, 3))
    taps = forward(planted.CONFIG, planted.params(), rows, {"value": lambda v: v[0, 0]})[1]
    for layer in found.layers:
        first = np.float64(taps["value"][layer.layer])
        off = first - first.mean(axis=0)
        spread = np.sqrt(np.mean(np.sum(off**2, axis=1))) / np.linalg.norm(first.mean(axis=0))
        assert layer.value_kinds == pytest.approx(spread, rel=1e-3)


def test_the_state_and_what_is_asked_are_those_of_a_loop(found, seen):
    states = {layer: seen["block_in"][layer, :, 0] for layer in LAYERS}
    shared = common_direction(np.array(list(states.values())))
    block = planted.params()["blocks"]
    for layer in found.layers:
        x, massive = states[layer.layer], layer.massive
        mean = np.mean(x / np.linalg.norm(x, axis=1, keepdims=True), axis=0)
        u = mean / np.linalg.norm(mean)
        a = x @ u
        r = np.sqrt(np.sum(x**2, axis=1) - a**2)
        assert massive.along.mean == pytest.approx(np.abs(a).mean())
        assert massive.across == pytest.approx(r.max(), rel=1e-3)
        assert massive.tangent.mean == pytest.approx(np.mean(r / np.abs(a)), rel=1e-3)
        cosine = x @ shared / np.linalg.norm(x, axis=1)
        tangent = np.tan(np.arccos(np.abs(cosine))).mean()
        assert massive.tangent_shared.mean == pytest.approx(tangent, rel=1e-3)
        w = np.diag(np.float64(block["attn_norm"]["scale"][layer.layer])) @ np.float64(
            block["attn"]["value"][layer.layer, :, 0]
        )
        beta = np.linalg.svd((np.eye(64) - np.outer(u, u)) @ w)[1][0]
        assert massive.beta == pytest.approx(beta)
        value = np.linalg.norm(seen["value"][layer.layer, :, 0, 0], axis=1).mean()
        asked = np.sqrt(64) * beta * r / (ALLOWED * value)
        assert massive.asked.mean == pytest.approx(asked.mean(), rel=1e-3)
        assert massive.asked_most == pytest.approx(asked.max(), rel=1e-3)


@pytest.mark.parametrize("norm", ["rms", "layer"])
def test_the_value_stays_within_what_was_asked_for(norm):
    """The norm itself, at the magnitude asked for: the worst y moves W_V n(x) by nu, to first
    order, and no y by more."""
    rng, width = np.random.default_rng(5), 24
    config = ModelConfig(width=width, heads=2, kv_heads=1, layers=1, norm=norm, norm_plus_one=True)
    params = jax.tree.map(np.array, init(config, jax.random.key(1)))
    block = params["block_0"]
    scale, w = rng.normal(size=width), rng.normal(size=(width, 1, 12))
    block["attn_norm"]["scale"], block["attn"]["value"] = scale, w
    u = common_direction(centred(config, rng.normal(size=(1, 1, width))))
    beta = value_gain(config, jax.tree.map(jnp.asarray, params), 0, u)
    nu, r = 0.02 * beta, np.array([3.0])
    a = asked_magnitude(beta, r, nu, width)

    def value(x):
        normed = NORMS[norm](jnp.asarray(x), jnp.asarray(scale + 1.0), None, eps=0.0)
        return np.asarray(normed) @ w[:, 0]

    y = centred(config, rng.normal(size=(3000, width)))
    gained = (scale + 1.0)[:, None] * w[:, 0]
    gained = centred(config, gained.T).T
    gained -= np.outer(u, u @ gained)
    y[0] = np.linalg.svd(gained)[0][:, 0]
    y -= np.outer(y @ u, u)
    y *= r / np.linalg.norm(y, axis=1, keepdims=True)
    with jax.enable_x64(True):
        off = np.linalg.norm(value(a * u + y) - value(1e12 * u), axis=1)
    assert off[0] == pytest.approx(nu[0], rel=0.02)
    assert off.max() <= off[0] * 1.01


def test_split_about_a_direction_and_a_channel():
    x = np.array([[3.0, 4.0, 0.0], [3.0, 4.0, 1.0]])
    found = split(x, np.array([0.6, 0.8, 0.0]))
    np.testing.assert_allclose(found.along, 5.0)
    np.testing.assert_allclose(found.across, [0.0, 1.0], atol=1e-12)
    np.testing.assert_allclose(found.axis, [0.75, np.sqrt(10) / 4])


def test_hulls_of_as_many_keys_as_a_query_sees():
    assert hull_sizes(np.arange(1, 64)) == (15, 31, 63)
    assert hull_sizes(np.arange(1, 63)) == (15, 31)
    assert hull_sizes(np.arange(1, 6)) == (5,)


SMALL = ModelConfig(vocab=19, context=80, layers=2, width=32, heads=4, kv_heads=2, head_dim=8)
KINDS = {
    "rope": replace(SMALL, position="rope", mlp="swiglu", query_key_norm="head"),
    "learned": replace(SMALL, norm="layer", bias=True),
    "alibi": replace(SMALL, position="alibi", norm="layer", parallel_block="shared"),
    "window": replace(SMALL, position="rope", window=16, window_layers=(1,), attn_softcap=5.0),
    "post": replace(SMALL, norm_placement="post", experts=3, mlp="swiglu"),
    "none": replace(SMALL, position="none", kv_heads=1, norm_placement="sandwich"),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_the_bound_is_never_violated(kind, monkeypatch):
    """B2 is a theorem: of every head of every model, here with values on one side of zero."""
    monkeypatch.setattr(module, "SINK_EPS", -1.0)
    config = KINDS[kind]
    params = jax.tree.map(
        np.array, init(config.with_execution(scan_layers=False), jax.random.key(0))
    )
    params["embed"][:, 0] = 1.0  # which all values share
    for layer in range(2):
        attention = params[f"block_{layer}"]["attn"]
        attention["value"][0] += 0.3
        attention["query"] *= 20
    config = config.with_execution(scan_layers=False)
    found = assumptions(config, params, FIT[:4], TEXTS[:4], 4)
    assert len(found.heads) == 8
    pairs = 4 * 4 * (2 + (1 if kind == "window" else 2))
    assert found.range.pairs == pairs
    assert found.range.violated == 0
    assert all(0.0 <= each.met.mean <= 1.0 for each in found.hulls)
    finite = [of.mean for of in found.explained.values()]
    finite += [
        x for head in found.heads for x in (head.drain, head.cosine, *head.explained.values())
    ]
    assert np.isfinite(finite).all()
    assert all(value <= 1.0 for value in finite[: len(found.explained)])


def test_what_tells_the_factor_is_of_each_text_too(found):
    rng = np.random.default_rng(3)
    layers = [object.__new__(SinkLayer) for _ in range(2)]
    for heads, layer in enumerate(layers, 2):
        vars(layer).update(errors={"x": rng.random((4, heads))}, spread=1 + rng.random((4, heads)))
    whole, by_text = module._explained(layers)

    def median(texts):
        return np.median([
            1 - sum(layer.errors["x"][b, n] for b in texts) / sum(layer.spread[b, n] for b in texts)
            for layer in layers for n in range(layer.spread.shape[1])
        ])  # fmt: skip

    assert whole["x"].mean == pytest.approx(median(range(4)))
    assert by_text["x"] == pytest.approx([median([b]) for b in range(4)])
    assert set(found.explained_by_text) == set(found.explained)
    assert {len(of) for of in found.explained_by_text.values()} == {5}


def test_texts_that_begin_alike_have_one_key_and_value(monkeypatch):
    rows, fit = TEXTS.copy(), FIT.copy()
    rows[:, 0] = fit[:, 0] = 3
    found = assumptions(planted.CONFIG, planted.params(), fit, rows, 3)
    assert found.kinds == 1
    assert max(layer.value_spread.high for layer in found.layers) < 1e-5


def test_a_model_without_a_sink_has_none():
    params = init(planted.CONFIG, jax.random.key(0))
    found = assumptions(planted.CONFIG, params, FIT, TEXTS, 3)
    assert found.heads == found.layers == found.hulls == ()
    assert found.range is None
    assert found.sink.most < 0.3


@pytest.mark.parametrize(
    ("config", "texts", "line"),
    [
        ({"variant": "sigmoid"}, {}, "variant=sigmoid: accepted: a model of variant softmax"),
        ({"sink": ExplicitSink(keys=1)}, {}, "model: its sink is explicit; accepted: "),
        ({}, {"count": 3}, "text: 3 of 40 tokens is too short; accepted: at least 4"),
        ({}, {"fit": 3}, "calibration=3: accepted: at least 4"),
        ({}, {"length": 20}, "text: 5 of 20 tokens is too short; "),
        ({}, {"length": 1025}, "seq_len=1025: accepted: at most 1024"),
    ],
)
def test_what_cannot_be_measured_is_one_line(config, texts, line):
    length = texts.get("length", 40)
    rows, fit = (
        planted.texts(texts.get("count", 5), length),
        planted.texts(texts.get("fit", 4), length),
    )
    of_model = replace(planted.CONFIG, **config), planted.params()
    assert refusal(assumptions, *of_model, fit, rows, 3).startswith(line)
