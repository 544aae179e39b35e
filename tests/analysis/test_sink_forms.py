"""What takes a sink's place, query by query against NumPy; and a sink that comes back."""

import dataclasses
from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

from sysout_jax.analysis.intervene.explicit_factor import FORMS, Gates
from sysout_jax.analysis.intervene.interventions import interventions
from sysout_jax.analysis.intervene.passes import passes
from sysout_jax.analysis.intervene.relocation import Relocation, Tokens, relocated, taps
from sysout_jax.analysis.intervene.sink_constants import Constants, constants
from sysout_jax.analysis.intervene.sink_forms import all_forms, edits, sink_forms
from sysout_jax.analysis.locate.scan import scan
from sysout_jax.analysis.locate.sinks import Sink, first_token_sink, given_to_first, sees_first
from sysout_jax.core.attention import VARIANTS
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import forward, init
from tests.analysis import first_visible as v
from tests.analysis import planted as p

BASE = ModelConfig(
    vocab=23, context=13, layers=3, width=20, heads=4, kv_heads=2, head_dim=6, mlp_width=11,
    norm="rms", mlp="swiglu", position="rope",
)  # fmt: skip
CONFIGS = {
    "rope": BASE,
    "alibi": replace(BASE, position="alibi").with_execution(scan_layers=True),
    "learned, capped": replace(BASE, position="learned", attn_softcap=3.0, query_scale=0.9),
    "qk norm": replace(BASE, query_key_norm="head", norm_placement="sandwich").with_execution(
        scan_layers=True
    ),
    "windows": replace(BASE, window=4, window_layers=(0, 1)),
    "mixture": replace(BASE, experts=3, kv_heads=4).with_execution(scan_layers=True),
    "post norm": replace(BASE, norm_placement="post", bias=True),
}
T, FIRST = 10, 1
SINK = Sink(0, FIRST, 9.0, 0.5, 0.9, 0.7, 0.0)


def model(config, seed=0):
    """A random model, far from its initial values: sharp attention is the point."""
    params = init(config, jax.random.key(seed))
    return jax.tree.map(lambda x: 6.0 * x if x.ndim > 1 else x, params)


def tokens(config, rows=3, seed=1):
    return np.random.default_rng(seed).integers(0, config.vocab, (rows, T + 1)).astype(np.int32)


def some_constants(config):
    """Any will do: what the edits make of them is compared."""
    rng, size = np.random.default_rng(2), config.sizes
    kv, heads = (size["L"], size["K"], size["H"]), (size["L"], size["N"])
    gates = Gates(rng.normal(size=(size["L"], size["D"], size["N"])), rng.normal(size=heads))
    share = rng.uniform(0.1, 0.9, heads)
    spread = np.zeros(kv[:2])
    return Constants(
        rng.normal(size=kv), rng.normal(size=kv), rng.normal(size=heads), share, gates, spread,
        spread,
    )  # fmt: skip


WANTED = ("query", "key", "value", "attn_norm", "attn_logits", "attn_mix")


@cache
def seen(name):
    config = CONFIGS[name]
    ids = jnp.asarray(tokens(config)[:, :-1])
    found = forward(config, model(config), ids, dict.fromkeys(WANTED))[1]
    return {tap: np.asarray(value, np.float64) for tap, value in found.items()}


def by_hand(name, form, layer, row, head, query):
    """The output of one head for one query of the first changed layer, from raw values."""
    config, c = CONFIGS[name], some_constants(CONFIGS[name])
    raw = {tap: value[layer, row] for tap, value in seen(name).items()}
    kv = head // (config.heads // config.sizes["K"])
    window = config.window_of(layer) or T
    keys = [key for key in range(query + 1) if query - key < window]
    logits, values = raw["attn_logits"][head, query].copy(), raw["value"][:, kv].copy()
    if form == "logit":
        logits[0] = c.logit[layer, head]
    if form == "extra_key":
        scale = config.query_scale or config.sizes["H"] ** -0.5
        q, own = raw["query"][query, head], raw["key"][0, kv]
        # what positions add to the logit stays
        added = 0.0 if config.attn_softcap else logits[0] - scale * q @ own
        logits[0] = scale * q @ c.key[layer, kv] + added
        if config.attn_softcap:
            logits[0] = config.attn_softcap * np.tanh(logits[0] / config.attn_softcap)
    if form in ("logit", "extra_key"):
        values[0] = c.value[layer, kv]
        return special.softmax(logits[keys]) @ values[keys]
    rest = [key for key in keys if key]
    if 0 not in keys or not rest:
        return special.softmax(logits[keys]) @ values[keys]
    of_rest = special.softmax(logits[rest]) @ values[rest]
    share = special.softmax(logits[keys])[1:].sum()
    gate = special.expit(
        raw["attn_norm"][query] @ c.gates.kernel[layer, :, head] + c.gates.bias[layer, head]
    )
    factor = {"f": share, "c": c.share[layer, head], "g": gate}.get(form[0], 1.0)
    bias = (1.0 - c.share[layer, head]) * c.value[layer, kv]
    return factor * of_rest + (bias if form.endswith("bias") else 0.0)


FITTED = tuple(name for name in FORMS if name != "trained")


@pytest.mark.parametrize("name", CONFIGS)
def test_every_form_against_numpy(name):
    config = CONFIGS[name]
    made = all_forms(config, T, SINK, some_constants(config))
    assert set(made) == set(FITTED)
    ids = jnp.asarray(tokens(config)[:, :-1])
    run = jax.jit(lambda edits: forward(config, model(config), ids, {"attn_mix": None}, edits)[1])
    for form, of in made.items():
        mixed = np.asarray(run(of)["attn_mix"], np.float64)
        np.testing.assert_allclose(mixed[0], seen(name)["attn_mix"][0], atol=1e-4)
        for row, query, head in np.ndindex(2, T, config.heads):
            expected = by_hand(name, form, FIRST, row, head, query)
            np.testing.assert_allclose(
                mixed[FIRST, row, query, head], expected, atol=2e-4 * (1 + np.abs(expected).max()),
                err_msg=f"{form}, query {query}, head {head}",
            )  # fmt: skip


def test_queries_that_do_not_see_the_sink_are_left_alone():
    """Of a window of 4 that is query 0, which sees nothing else, and those from 4 on."""
    found = sees_first(CONFIGS["windows"], T)
    assert found[0].tolist() == [False, True, True, True] + [False] * (T - 4)
    assert found[2].tolist() == [False] + [True] * (T - 1)


@pytest.mark.parametrize("variant", ["softmax", "sink_logit", "key_bias", "softpick", "relu"])
def test_attention_that_later_queries_give_the_first_token(variant):
    """Against the raw map: the first query's own weight is less than 1 beside keys of no token."""
    config = replace(CONFIGS["windows"], variant=variant)
    params, ids = model(config), tokens(config)[:, :-1]
    raw = np.asarray(forward(config, params, jnp.asarray(ids), {"attn_weights": None})[1][
        "attn_weights"
    ], np.float64)  # fmt: skip
    if not VARIANTS[variant].normalised:
        raw = np.divide(raw, raw.sum(-1, keepdims=True), out=0 * raw, where=raw > 0)
    found = given_to_first(config, scan(config, params, ids))
    for layer, queries in enumerate(sees_first(config, T)):
        expected = raw[layer][:, :, queries, 0].mean(axis=(0, 2))
        np.testing.assert_allclose(found[layer], expected, atol=1e-5)


@pytest.mark.parametrize("name", ["rope", "windows", "qk norm"])
def test_constants_against_numpy(name):
    config = CONFIGS[name]
    found = constants(config, model(config), tokens(config)[:, :-1], FIRST, batch=2)
    raw = seen(name)
    for layer in range(FIRST, config.layers):
        for tap, mean, spread in (
            ("key", found.key, found.key_spread), ("value", found.value, found.value_spread),
        ):  # fmt: skip
            first = raw[tap][layer][:, 0]
            np.testing.assert_allclose(mean[layer], first.mean(axis=0), atol=1e-4)
            far = np.sqrt(np.mean(np.sum((first - first.mean(axis=0)) ** 2, axis=-1), axis=0))
            norm = np.linalg.norm(first.mean(axis=0), axis=-1)
            np.testing.assert_allclose(spread[layer], far / norm, rtol=1e-3)
        queries = np.flatnonzero(sees_first(config, T)[layer])
        for head in range(config.heads):
            logits = raw["attn_logits"][layer, :, head]
            evidence = np.array(
                [special.logsumexp(one[i, 1 : i + 1]) for one in logits for i in queries]
            )
            own = np.array([one[i, 0] for one in logits for i in queries])
            share = special.expit(evidence - own).mean()
            assert found.share[layer, head] == pytest.approx(share, rel=1e-3)
            at_constant = special.expit(evidence - found.logit[layer, head]).mean()
            assert at_constant == pytest.approx(share, abs=2e-3)
    assert not found.key[:FIRST].any()


def measured(config, params, rows, sink, calibration=None):
    of_model = passes(config, params, rows, [sink.first], 2, taps(config), {})
    return sink_forms(of_model, of_model.taps, sink, calibration)


@pytest.mark.parametrize("name", ["rope", "alibi", "qk norm"])
def test_a_first_token_that_all_texts_share_is_an_extra_key(name):
    """Its key and value are the same in all of them: as parameters they cost nothing."""
    config, rows = CONFIGS[name], tokens(CONFIGS[name], rows=4)
    rows[:, 0] = 5
    found = measured(config, model(config), rows[:2], SINK, rows[2:])
    costs = {form.name: form for form in found.forms}
    assert set(costs) == {*FITTED, "everywhere"}
    least, most = costs["extra_key"].change.low, costs["extra_key"].change.high
    assert -1e-4 < least <= most < 1e-4
    assert costs["dropped"].change.high - costs["dropped"].change.low > 1e-2
    assert found.key_spread < 1e-5


def test_without_other_text_only_what_needs_none():
    config, rows = CONFIGS["rope"], tokens(CONFIGS["rope"])
    found = measured(config, model(config), rows, SINK)
    assert [form.name for form in found.forms] == ["dropped", "factor", "everywhere"]
    assert found.missing.startswith("those with constants: no other text")
    other = measured(replace(config, variant="sigmoid"), model(config), rows, SINK)
    assert (other.missing, other.forms) == (
        "all: they are forms of softmax attention, and this is sigmoid", (),
    )  # fmt: skip


def test_a_model_without_a_sink_says_so():
    found = interventions(p.CONFIG, p.untrained(), p.rows(), batch=4)
    assert not found.sink.present
    assert found.sink.emergence is None
    assert found.forms.missing == "all: no sink is there to be replaced"


def test_the_layer_that_writes_the_sink_is_found():
    found = first_token_sink(p.CONFIG, scan(p.CONFIG, p.params(), p.rows()[:, :-1]))
    assert (found.emergence, found.first) == (p.MADE, p.HEARD)
    assert found.most > 0.7
    assert found.heads == pytest.approx(1 / 4)  # one of two heads, in one of the two layers


# ------------------------------------------------------------------- a sink that comes back


def test_a_sink_taken_away_everywhere_comes_back_at_the_next_token():
    rows = v.rows(0)
    sink = first_token_sink(v.CONFIG, scan(v.CONFIG, v.params(), rows[:, :-1]))
    assert (sink.emergence, sink.first) == (0, 1)
    assert sink.attention > 0.8
    found = measured(v.CONFIG, v.params(), rows, sink)
    moved = {form.name: form.relocation for form in found.forms}
    assert moved["everywhere"].relocated
    assert moved["everywhere"].token == 1
    assert moved["everywhere"].peak > 0.9 * moved["everywhere"].sink_peak
    assert moved["everywhere"].attention > 0.5 * moved["everywhere"].sink_attention
    assert not moved["dropped"].relocated
    assert moved["dropped"].peak < 0.1 * moved["dropped"].sink_peak
    assert found.peaks["trained"].argmax() == 0
    assert found.peaks["everywhere"][1:].argmax() == 0
    assert found.attention["everywhere"].argmax() == 1


def test_interventions_on_attention_begin_after_the_emergence():
    """Keys that are flagged before are kept: case U11."""
    found = interventions(v.CONFIG, v.params(), v.rows(0), batch=2)
    of_attention = [each for each in found.effects if each.kind == "attention"]
    assert of_attention
    for each in of_attention:
        assert each.edited <= (v.CONFIG.layers - found.sink.first) * v.WORDS
        assert each.relocation is not None
        assert not each.relocation.relocated


def test_few_keys_make_no_sink_of_even_attention():
    """Of five tokens the first gets a third of even attention, and is no sink."""
    config = BASE
    even = jax.tree.map(lambda x: 0.0 * x, model(config))
    for length in (5, 4):
        ids = tokens(config)[:, :length]
        found = scan(config, even, ids)
        given = given_to_first(config, found)
        np.testing.assert_allclose(given, np.mean(1 / np.arange(2, length + 1)), rtol=1e-5)
        assert given.min() > 0.3
        assert first_token_sink(config, found).heads == 0.0
    received = np.zeros_like(found.received)
    received[..., 0] = 1.0
    whole = replace(found, received=received, first_own=np.ones_like(found.first_own))
    assert first_token_sink(config, whole).heads == 1.0


def test_shares_of_rows_that_do_not_sum_to_one():
    """Sigmoid attention: a key's share is of what its row has, as a scan shows it."""
    config = replace(BASE, variant="sigmoid")
    params, ids = init(config, jax.random.key(0)), jnp.asarray(tokens(config)[:, :-1])
    found = Tokens.of(jax.device_get(forward(config, params, ids, taps(config))[1]), 2)
    raw = np.asarray(forward(config, params, ids, {"attn_weights": None})[1]["attn_weights"])
    shares = (raw / raw.sum(axis=-1, keepdims=True))[-2:]
    np.testing.assert_allclose(found.attention, shares.mean(axis=(0, 2, 3)), rtol=1e-4)
    np.testing.assert_allclose(found.attention.sum(axis=1), 1.0, rtol=1e-4)


def test_edits_that_change_nothing():
    config = CONFIGS["qk norm"]
    ids = jnp.asarray(tokens(config)[:, :-1])
    whole, _ = forward(config, model(config), ids)
    same, _ = forward(config, model(config), ids, edits=edits(config, T, 0))
    np.testing.assert_allclose(same, whole, atol=1e-5)


@pytest.mark.parametrize(
    ("peaks", "shares", "expected"),
    [
        ((1000.0, 10.0, 990.0), (0.5, 0.01, 0.02), True),  # |h| as the sink's
        ((1000.0, 10.0, 20.0), (0.5, 0.01, 0.4), True),  # attention
        ((1000.0, 10.0, 504.0), (0.5, 0.01, 0.25), False),  # not half of the way
        ((1000.0, 470.0, 570.0), (0.5, 0.02, 0.06), False),  # large as trained: Gemma 3's others
        ((1000.0, 470.0, 740.0), (0.5, 0.02, 0.06), True),
        ((1000.0, 1200.0, 1300.0), (0.0, 0.0, 0.0), False),  # no sink by either
    ],
)
def test_a_sink_relocates_where_another_token_goes_half_of_the_way(peaks, shares, expected):
    numbers = (peaks[0], shares[0], *peaks[1:], *shares[1:])
    found = Relocation(*numbers, token=1)
    assert found.relocated == expected == relocated(dataclasses.asdict(found))
