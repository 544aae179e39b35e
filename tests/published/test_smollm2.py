"""A published language model as the suite's positive control: all three kinds of outliers stand in
SmolLM2-135M, at places that are known. Layers, channels and neurons count from 0."""

from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analysis.intervene.passes import passes
from sysout_jax.analysis.intervene.relocation import taps
from sysout_jax.analysis.intervene.sink_forms import sink_forms
from sysout_jax.analysis.locate.scan import scan
from sysout_jax.analysis.locate.sinks import first_token_sink
from sysout_jax.data.prompt import PROMPT
from sysout_jax.model.model import Model
from tests.published.reference import place_of

CHANNEL, WRITERS = 507, {1229, 1487}
EMERGES, REMOVERS = 11, (28, 29)


@pytest.fixture(scope="module")
def seen(smollm2):
    """The model, and one pass over the prompt of Sun et al. 2024."""

    @cache
    def run():
        model = so.load(smollm2)
        wanted = {
            "block_in": None, "block_out": None, "down_in": so.Tap(None, EMERGES),
            "attn_weights": lambda weights: weights[:, 1:, 0].mean(axis=1),
        }  # fmt: skip
        logits, taps = so.apply(model, PROMPT, wanted)
        return model, np.asarray(logits), {name: np.asarray(x)[:, 0] for name, x in taps.items()}

    return run()


def test_logits_are_the_references(seen):
    """transformers' own reading of the same file; the tokenizer's ids are equal too."""
    model, logits, taps = seen
    with np.load(place_of("smollm2-135m")) as record:
        ids, columns, expected, largest = (
            record[name] for name in ("ids", "columns", "logits", "largest")
        )
    np.testing.assert_array_equal(so.encode(model, PROMPT)[0], ids)
    np.testing.assert_allclose(logits[0][:, columns], expected, rtol=0, atol=2e-3)
    found = np.abs(taps["block_out"]).max(axis=(1, 2))[: len(largest)]
    np.testing.assert_allclose(found, largest, rtol=1e-4)


def test_a_massive_activation_of_the_first_token(seen):
    """23,147 after layer 11, and within 1% of it up to the input of layer 27, 2% after it."""
    _, _, taps = seen
    states = np.abs(taps["block_out"])
    peaks = states.max(axis=(1, 2))
    at = [np.unravel_index(h.argmax(), h.shape) for h in states]
    assert {tuple(map(int, place)) for place in at[EMERGES:]} == {(0, CHANNEL)}
    assert peaks[EMERGES] == pytest.approx(23_147, abs=1)
    assert np.abs(peaks[EMERGES:27] / peaks[EMERGES] - 1).max() < 0.01
    assert np.abs(peaks[27] / peaks[EMERGES] - 1) < 0.02
    assert peaks[EMERGES] > 10_000 * np.median(states[EMERGES])


def test_two_neurons_write_it(seen):
    """Their weights into the channel are the weight outliers: 73% come through one of them."""
    model, _, taps = seen
    column = np.asarray(model.params["blocks"]["mlp"]["down"][EMERGES, :, CHANNEL])
    written = taps["down_in"][0, 0] * column
    assert set(np.argsort(-np.abs(written))[:2].tolist()) == WRITERS
    assert written[1229] / written.sum() == pytest.approx(0.73, abs=0.02)


def test_most_heads_have_a_sink(seen):
    _, _, taps = seen
    assert (taps["attn_weights"] > 0.3).mean() > 0.5


def test_the_last_two_layers_remove_it(seen):
    """What they add to the first token points against its state. The cosine of layer 28 is -0.99;
    that of layer 29, which also writes what the output head reads, is -0.82. In the channel both
    take away more than half."""
    _, _, taps = seen
    for layer, most in zip(REMOVERS, (-0.98, -0.8), strict=True):
        before, after = taps["block_in"][layer, 0], taps["block_out"][layer, 0]
        write = after - before
        cosine = write @ before / np.linalg.norm(write) / np.linalg.norm(before)
        assert cosine < most
        assert abs(after[CHANNEL]) < 0.5 * abs(before[CHANNEL])


def test_it_passes_its_check(seen):
    model, _, _ = seen
    found = so.check(model)
    assert found.passed, str(found)


def test_a_broken_weight_is_seen(seen):
    """The control of this control: without the two neurons there is no massive activation."""
    model, _, _ = seen
    blocks = model.params["blocks"]
    down = blocks["mlp"]["down"].at[EMERGES, jnp.array(sorted(WRITERS))].set(0.0)
    params = {**model.params, "blocks": {**blocks, "mlp": {**blocks["mlp"], "down": down}}}
    broken = Model(model.config, params, model.tokenizer)
    _, taps = so.apply(broken, PROMPT, {"block_out": so.Tap(None, EMERGES)})
    assert float(jnp.abs(taps["block_out"][0, 0, 0, CHANNEL])) < 5_000


@pytest.mark.slow
def test_its_sink_becomes_parameters(smollm2, shared_data):
    """On books: from layer 12 on key and value are constants, layer 11 writes nothing at the first
    token, the loss stays, and the largest state falls from 15,000 medians."""
    model = so.load(smollm2)
    text = (shared_data / "text" / "books_val.txt").read_text()
    found = so.convert(model, text[:400_000], weak="leave", check=text[-400_000:])
    sink = found.model.config.sink
    assert (sink.layers[0], sink.silent) == (EMERGES + 1, (EMERGES,))
    before, after = found.check.over_median
    assert before.max() > 10_000
    assert after.max() < 1_500
    assert abs(found.check.change.mean) < 0.03


@pytest.mark.slow
def test_a_first_token_of_its_is_parameters_exactly(smollm2):
    model = so.load(smollm2)
    ids = so.encode(model, PROMPT)
    found = so.convert(model, prefix=ids[0, :2].tolist())
    whole, rest = so.apply(model, ids)[0], so.apply(found.model, ids[:, 2:])[0]
    np.testing.assert_allclose(rest, whole[:, 2:], rtol=0, atol=1e-3)


@pytest.mark.slow
def test_what_can_take_the_sinks_place(seen, shared_data):
    """Theory T4 and T5 on text that no pilot read: books; constants from WikiText-2. The sink that
    is taken away in every layer comes back at the next token, and costs next to nothing."""
    model, _, _ = seen

    def rows(name, count, length=128):
        text = (shared_data / "text" / name).read_text()[100_000:]
        ids = np.asarray(so.encode(model, text[: count * length * 8]))[0]
        return ids[: count * (length + 1)].reshape(count, -1).astype(np.int32)

    judged, calibration = rows("books_val.txt", 6), rows("wikitext2_valid.txt", 12)
    sink = first_token_sink(model.config, scan(model.config, model.params, judged[:, :-1]))
    assert (sink.emergence, sink.first) == (EMERGES, EMERGES + 1)
    watched = taps(model.config)
    of_model = passes(model.config, model.params, judged, [sink.first], 3, watched, {})
    found = sink_forms(of_model, of_model.taps, sink, calibration)
    costs = {form.name: form for form in found.forms}
    assert costs["dropped"].change.low > 0.5
    assert costs["factor"].change.low > 0.3
    assert costs["factor_bias"].change.high < 0.1
    assert costs["logit"].change.high < 0.1
    assert abs(costs["extra_key"].change.mean) < 0.001
    assert costs["factor_bias"].share.high < 0.2
    assert not costs["dropped"].relocation.relocated
    moved = costs["everywhere"].relocation
    assert (moved.relocated, moved.token) == (True, 1)
    assert moved.peak > 0.9 * moved.sink_peak
    assert costs["everywhere"].change.high < 0.2
    assert found.value_spread < 0.05
