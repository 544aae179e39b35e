"""`so.convert` as a user calls it: a planted sink is found and removed, or a line says why not."""

import inspect
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analysis.intervene.before_after import Reader, continued
from sysout_jax.analysis.intervene.conversion import with_prefix
from sysout_jax.analysis.intervene.weak_sinks import (
    Profile,
    bounded,
    carriers,
    profile,
    standing_rows,
)
from sysout_jax.converting import WEAK
from sysout_jax.core.layers import cross_entropy
from sysout_jax.data.tokenizer import ByteTokenizer
from sysout_jax.model.decoder import forward, init, unstack_blocks
from sysout_jax.model.stream import Layers
from tests.analysis import first_sink as planted

MODEL = so.Model(planted.CONFIG, planted.params())


@pytest.fixture(scope="module")
def converted():
    return so.convert(MODEL, planted.texts(), check=planted.texts(seed=6))


def test_a_planted_sink_is_found_and_removed(converted):
    assert converted.kind == "constants"
    sink = converted.model.config.sink
    assert sink.layers == tuple(range(planted.MADE + 1, planted.CONFIG.layers))
    assert sink.silent == (planted.MADE,)
    assert converted.first.state.max() > 0.5 * planted.MASSIVE
    before, after = converted.check.over_median
    assert before.max() > 1000
    assert after.max() < 100
    assert abs(converted.check.change.mean) < 0.03
    removed = so.apply(
        MODEL, planted.texts()[:, :-1],
        edits={"attn_weights": so.Edit(_without_first, layers=range(planted.MADE + 1, 6))},
    )[0]  # fmt: skip
    kept = so.apply(MODEL, planted.texts()[:, :-1])[0]
    now = so.apply(converted.model, planted.texts()[:, :-1])[0]
    off, cost = (float(jnp.abs(x - kept)[:, 1:].max()) for x in (now, removed))
    assert off < 0.1 * cost  # the sink does something, which the constants do too


def _without_first(weights, layer):
    rest = weights.at[..., 0].set(0.0)
    return rest / jnp.maximum(rest.sum(axis=-1, keepdims=True), 1e-9)


def test_unrolled_layers_are_converted_alike(converted):
    config = planted.CONFIG.with_execution(scan_layers=False)
    other = so.convert(so.Model(config, unstack_blocks(planted.params())), planted.texts())
    assert other.model.config.sink == converted.model.config.sink
    ids = planted.texts(seed=7)[:, :-1]
    np.testing.assert_allclose(
        so.apply(other.model, ids)[0], so.apply(converted.model, ids)[0], atol=1e-4
    )


def test_every_way_has_its_numbers(converted):
    by_name = {each.name: each for each in converted.treatments}
    assert set(by_name) <= {"as trained", *WEAK}
    assert {"as trained", "leave", "prefix"} <= set(by_name)
    assert by_name["as trained"].change == (0.0, 0.0, 0.0)
    assert by_name["as trained"].over_median > 1000 > 100 > by_name["leave"].over_median
    logits = so.apply(MODEL, planted.texts()[:, :-1])[0]
    loss = float(cross_entropy(logits, jnp.asarray(planted.texts()[:, 1:])).mean())
    assert by_name["as trained"].loss == pytest.approx(loss, rel=1e-5)


def test_a_sink_that_is_not_constant_is_left():
    model = so.Model(planted.CONFIG, planted.params(massive=20.0))
    found = so.convert(model, planted.texts())
    assert found.kind == "left"
    assert found.model is model
    assert "a sink whose key or value varies by" in found.said[0]


def test_a_model_without_a_sink_is_as_it_was():
    model = so.Model(planted.CONFIG, init(planted.CONFIG, jax.random.key(0)))
    found = so.convert(model, planted.texts())
    assert found.kind == "none"
    assert found.model is model
    assert "no sink" in repr(found)


def test_a_token_that_all_texts_begin_with_is_a_prefix():
    texts = planted.texts()
    texts[:, 0] = 4
    found = so.convert(MODEL, texts, weak="leave")
    assert (found.kind, found.prefix) == ("prefix", (4,))
    whole = so.apply(MODEL, texts)[0]
    rest = so.apply(found.model, texts[:, 1:])[0]
    np.testing.assert_allclose(rest, whole[:, 1:], atol=1e-3)
    assert found.model.config.longest == planted.CONFIG.longest - 1


def test_a_prefix_needs_room_before_the_text():
    """Texts take all positions: other ways are as ever, and this one says why it is not."""
    texts = planted.texts(6, 80)
    found = so.convert(MODEL, texts, weak="leave")
    assert found.kind == "constants"
    for way in ("prefix", "prefix+bound"):
        left = so.convert(MODEL, texts, weak=way)
        assert (left.kind, left.model) == ("left", MODEL)
        assert "before texts of 80: learned positions end at 80" in left.said[0]


def test_a_prefix_that_texts_do_not_begin_with_is_added():
    """The model reads the text behind the prefix; before, it read the text alone."""
    texts = planted.texts()
    found = so.convert(MODEL, texts[:, :60], prefix=[4, 9], weak="leave", check=texts[:, :60])
    assert found.prefix == (4, 9)
    both = np.concatenate([np.full((len(texts), 2), (4, 9)), texts[:, :60]], axis=1)
    whole = so.apply(MODEL, both)[0]
    np.testing.assert_allclose(
        so.apply(found.model, texts[:, :60])[0], whole[:, 2:], rtol=0, atol=1e-3
    )
    logits = so.apply(MODEL, texts[:, :59])[0]
    loss = float(cross_entropy(logits, jnp.asarray(texts[:, 1:60])).mean())
    assert found.check.loss[0] == pytest.approx(loss, rel=1e-5)


def test_text_and_bos():
    config = replace(planted.CONFIG, vocab=258, context=300)
    params = init(config, jax.random.key(2))
    model = so.Model(config, params, ByteTokenizer())
    found = so.convert(model, prefix=[257])
    assert found.kind == "prefix"
    assert not found.model.tokenizer.adds_bos
    text = "Winter is cold."
    whole, rest = so.apply(model, text)[0], so.apply(found.model, text)[0]
    np.testing.assert_allclose(rest, whole[:, 1:], atol=1e-4)
    long = "Summer is warm. " * 40
    assert so.convert(model, long).kind == "none"
    again = so.convert(model, long, prefix=[257], weak="leave", check=long)
    assert again.kind == "prefix"
    assert again.check.change.mean == pytest.approx(0.0, abs=1e-5)
    assert again.check.generated[0] == again.check.generated[1]


def test_greedy_text_is_the_argmax_again_and_again():
    reader = Reader(planted.CONFIG, planted.params(), (3,))
    prompt = np.array([1, 2, 5])
    written = continued(reader, prompt, count=3)
    ids = [3, *prompt.tolist()]
    for _ in range(3):
        logits, _ = forward(reader.config, reader.params, jnp.asarray([ids]))
        ids.append(int(logits[0, -1].argmax()))
    assert written == tuple(ids[1:])


def test_prefixquants_rule_on_a_case_by_hand():
    """Three texts, 5 outliers: 2 a text, the first token one of them."""
    peak = np.ones((2, 3, 8))
    peak[0, :, 0] = 1000.0
    peak[1, 0, 3] = peak[1, 2, 5] = 65.0
    rows = np.arange(27).reshape(3, 9)
    rows[0, 3] = rows[2, 5] = 7
    found = Profile(np.zeros(3), np.zeros((2, 3)), np.ones((2, 3)), peak)
    assert carriers(found, rows, (9,)) == (9, 7)
    peak[1, 0, 3] = peak[1, 2, 5] = 63.0
    assert carriers(found, rows, (9,)) == (9,)


@pytest.mark.parametrize(
    ("rises", "k"), [((0.0, 0.001, 0.03, 0.0), 100.0), ((0.03,), None), ((0.0,) * 5, 12.0)]
)
def test_the_bound_is_the_tightest_before_the_loss_moves(rises, k):
    """Bounds of 200, 100, 50, ... RMS are tried until the loss rises by more than 0.02 nats."""
    config, params = with_prefix(planted.CONFIG, planted.params(), [1])
    losses = np.array([3.0, 4.0, 5.0])
    square = np.array([[1.0, 3.0, 5.0]] * 6)
    free = Profile(losses, np.zeros((6, 3)), square, np.ones((6, 3, 4)))
    tried = []

    def run(config, params):
        tried.append(np.asarray(params["blocks"]["mlp"]["down_bound"]))
        return replace(free, losses=losses + rises[len(tried) - 1])

    best = bounded(config, params, free, run)
    assert (best and best.bound) == k
    assert len(tried) == (3 if k == 100.0 else len(rises))
    for found, of in zip(tried, (200, 100, 50, 25, 12), strict=False):
        np.testing.assert_allclose(found, of * 3.0**0.5, rtol=1e-6)


def test_a_profile_is_what_the_taps_say():
    rows = planted.texts()
    found = profile(planted.CONFIG, planted.params(), rows, 2, batch=4)
    logits, taps = forward(
        planted.CONFIG, planted.params(), jnp.asarray(rows[:, :-1]),
        {"down_in": None, "block_out": None},
    )  # fmt: skip
    down, states = (np.asarray(taps[name], np.float64) for name in ("down_in", "block_out"))
    loss = np.asarray(cross_entropy(logits, jnp.asarray(rows[:, 1:])))
    np.testing.assert_allclose(found.losses, loss[:, 2:].mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(found.rms, np.sqrt((down[:, :, 1:] ** 2).mean((1, 2, 3))), rtol=1e-4)
    np.testing.assert_allclose(found.token_peak, np.abs(down).max(axis=3), rtol=1e-5)
    over = np.abs(states).max((2, 3)) / np.median(np.abs(states), axis=(2, 3))
    np.testing.assert_allclose(found.over_median, over, rtol=1e-3)


def test_the_row_that_stands_out_is_found():
    ratios, standing = standing_rows(planted.params())
    assert standing == (planted.MADE,)
    assert ratios[planted.MADE] == pytest.approx(planted.CONFIG.width, rel=1e-3)  # one entry only


@pytest.mark.parametrize(
    ("model", "given", "line"),
    [
        (MODEL, {}, "text: neither is given; accepted: text to calibrate on, or a prefix"),
        (MODEL, {"text": planted.texts(3)}, "text: 3 of 64 tokens is too short; accepted: at "),
        (MODEL, {"text": planted.texts(6, 20)}, "text: 6 of 20 tokens is too short"),
        (MODEL, {"text": planted.texts(3, 1)}, "text: 3 of 1 tokens is too short"),
        (MODEL, {"text": planted.texts(6, 0)}, "text: "),
        (MODEL, {"text": "some words"}, "text: text, and the model has no tokenizer"),
        (MODEL, {"text": planted.texts() + 19}, "text: token id "),
        (MODEL, {"text": planted.texts(6, 90)}, "text: 90 in a text, and learned .* at most 80"),
        (MODEL, {"text": planted.texts(), "weak": "strong"}, "weak='strong': .* accepted: bound, "),
        (MODEL, {"prefix": 1}, "prefix=1: accepted: ids of tokens, such as "),
        (MODEL, {"prefix": "<s>"}, "prefix=<s>: accepted: ids of tokens, such as "),
        (MODEL, {"prefix": [19]}, "prefix=19: accepted: ids from 0 to 18"),
        (
            so.Model(planted.CONFIG, Layers(lambda name: None, ())), {"prefix": [1]},
            "model: it is read layer by layer; accepted: a model in memory",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_converted_is_one_line(model, given, line):
    unchecked = inspect.unwrap(so.convert)  # as it is without the tests' check of types
    with pytest.raises(so.InputError, match=line) as caught:
        unchecked(model, **given)
    assert "\n" not in str(caught.value)


def test_a_prefix_may_be_an_array_and_its_token_zero():
    unchecked = inspect.unwrap(so.convert)
    for ids in ([0], [1, 2]):
        found, expected = (unchecked(MODEL, prefix=given) for given in (np.array(ids), ids))
        assert found.prefix == expected.prefix == tuple(ids)
        jax.tree.map(np.testing.assert_array_equal, found.model.params, expected.model.params)


def test_a_converted_model_is_not_converted_again(converted):
    with pytest.raises(so.InputError, match="model: its sink is explicit"):
        so.convert(converted.model, planted.texts())
