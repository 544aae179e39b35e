"""Planted outliers are found at their layer, token, channel and neuron, and nothing else is."""

import dataclasses
import math
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analysis.intervene import editing
from sysout_jax.analysis.intervene.editing import Means, as_means, averages
from sysout_jax.analysis.intervene.interventions import _other_keys, _others, interventions
from sysout_jax.analysis.locate.existence import existence, flagged
from sysout_jax.analysis.locate.positions import positions
from sysout_jax.analysis.locate.relations import relations
from sysout_jax.analysis.locate.scan import QUERY_BLOCK, Scan, Thresholds, for_length, scan
from sysout_jax.analysis.measure.lifecycle import lifecycle
from sysout_jax.analysis.measure.roles import roles
from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.layers import cross_entropy
from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import forward, init
from sysout_jax.model.execution import Execution
from sysout_jax.model.stream import recorded
from sysout_jax.report.tables import _interventions
from tests.analysis import planted as p

ROWS = p.rows()
TOKENS = ROWS[:, :-1]
MEAN_TOKENS = 1.5  # outlier tokens in a sequence: one, and another in every other sequence


@cache
def scanned():
    return scan(p.CONFIG, p.params(), TOKENS, batch=4)


@cache
def prompt():
    return existence(p.CONFIG, p.params(), TOKENS[0])


# ------------------------------------------------------------------------------ existence


def test_the_scan_equals_a_recomputation_from_raw_taps():
    taps = dict.fromkeys(("block_out", "down_in", "attn_weights"))
    raw = forward(p.CONFIG, p.params(), jnp.asarray(TOKENS), taps)[1]
    found = scanned()
    for name in ("block_out", "down_in"):
        size, site = np.abs(np.asarray(raw[name])), found.site(name)
        np.testing.assert_allclose(site.mean, size.mean((2, 3)), rtol=1e-5)
        np.testing.assert_allclose(site.median, np.median(size, axis=(2, 3)), rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(site.token_peak, size.max(3), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(site.feature_peak, size.max(2), rtol=1e-4, atol=1e-6)
        flat = np.sort(size.reshape(*size.shape[:2], -1), axis=-1)[..., -3:][..., ::-1]
        np.testing.assert_allclose(site.top, flat, rtol=1e-4, atol=1e-6)
    received = np.asarray(raw["attn_weights"]).mean(axis=3)
    np.testing.assert_allclose(found.received, received, rtol=1e-4, atol=1e-6)


def test_existence_finds_what_was_planted_and_nothing_else():
    found = {flagged.detector: flagged for flagged in prompt().found}
    tokens = (0, p.AGAIN)
    for name in ("an_block_out", "sun"):
        assert found[name].layers == (p.MADE, p.HEARD)
        assert found[name].tokens == tokens
        assert found[name].features == (p.CHANNEL,)
    assert found["an_down_in"].layers == (p.MADE, p.REMOVED)
    assert found["an_down_in"].tokens == tokens
    assert found["an_down_in"].features == (p.NEURON, p.REMOVER)
    assert found["an_attention"].layers == (p.HEARD,)
    assert found["an_attention"].tokens == tokens
    (weight,) = prompt().weights.outliers
    assert (weight.layer, weight.matrix) == (p.MADE, "down")
    assert (weight.input, weight.output, weight.value) == (p.NEURON, p.CHANNEL, 300.0)
    assert prompt().any


def test_existence_shows_the_layers_where_it_is():
    down_in, weights, block_out, attention = prompt().panels
    assert (down_in.layer, weights.layer) in ((p.MADE, p.MADE), (p.REMOVED, p.REMOVED))
    assert block_out.layer in (p.MADE, p.HEARD)
    assert block_out.marks[0][0] in (0, p.AGAIN)
    assert block_out.marks[0][1] == p.CHANNEL
    assert attention.layer == p.HEARD
    assert attention.marks[0][1] in (0, p.AGAIN)
    assert block_out.values.shape == (p.T, 32)
    assert weights.values.shape == (61, 32)


def test_an_untrained_model_has_none():
    found = existence(p.CONFIG, p.untrained(), TOKENS[0])
    assert not found.any
    assert [flagged.layers for flagged in found.found] == [()] * 4
    assert not scan(p.CONFIG, p.untrained(), TOKENS).outlier_tokens().any()


def test_uniform_attention_is_no_outlier_however_short_the_prompt():
    """The first of ten keys receives 0.29 of it, above An et al.'s 0.1."""
    rows = np.tril(np.ones((10, 10)))
    uniform = (rows / rows.sum(1, keepdims=True)).mean(0)
    short = dataclasses.replace(
        scanned(), received=uniform[None, None, None], uniform=uniform[None]
    )
    assert uniform[0] > 0.1
    assert not short.attention_flagged().any()
    sink = 0.3 * uniform + 0.7 * (np.arange(10) == 0)
    short = dataclasses.replace(short, received=sink[None, None, None])
    assert np.argwhere(short.attention_flagged()).tolist() == [[0, 0, 0]]


def test_uniform_attention_is_that_of_the_window_of_the_layer():
    """Layer 0 sees two keys and layer 1 all: where all weights are even, nothing is an outlier."""
    config = ModelConfig(
        vocab=7, context=13, layers=2, width=6, heads=1, position="none", window=2,
        window_layers=(0,),
    )  # fmt: skip
    params = jax.tree.map(lambda x: x, init(config, jax.random.key(0)))
    for layer in (0, 1):
        attention = params[f"block_{layer}"]["attn"]
        attention["query"] = jnp.zeros_like(attention["query"])
    found = scan(config, params, np.random.default_rng(0).integers(0, 7, (3, 13)))
    distance = np.subtract.outer(np.arange(13), np.arange(13))
    for layer, window in enumerate((2, 13)):
        rows = ((distance >= 0) & (distance < window)).astype(float)
        share = (rows / rows.sum(1, keepdims=True)).mean(0)
        np.testing.assert_allclose(found.uniform[layer], share, rtol=1e-5)
        even = np.broadcast_to(share, (3, 13))
        np.testing.assert_allclose(found.attention_score()[layer], even, rtol=1e-5)
    assert found.attention_score()[1, :, 0].min() > 2 * found.uniform[0, 0]
    assert not found.attention_flagged().any()
    for each in range(3):
        (attention,) = [f for f in flagged(found, each) if f.detector == "an_attention"]
        assert attention.layers == ()
        assert attention.largest < 1


def test_thresholds_decide():
    low = Thresholds(activation_ratio=2.0, massive_value=0.01, massive_ratio=2.0)
    found = existence(p.CONFIG, p.untrained(), TOKENS[0], low)
    assert found.any
    with pytest.raises(InputError, match=r"massive_value=0\.0: accepted: a finite number above 0"):
        Thresholds(massive_value=0.0)


def test_one_token_is_refused():
    with pytest.raises(InputError, match="1 token: accepted: at least 2"):
        existence(p.CONFIG, p.params(), TOKENS[0, :1])


# ------------------------------------------------------------------------------ positions


@cache
def located():
    return positions(p.CONFIG, p.params(), TOKENS, p.text, found=scanned())


def test_positions_by_sequence():
    """Classes: the first token in all sequences, a line break later in every other one."""
    found = located()
    classes = dict(zip(found.class_names, range(4), strict=True))
    for name in ("an_block_out", "an_down_in", "sun", "an_attention"):
        kind = found.kinds[name]
        assert (kind.flagged, kind.sequences) == (9, 6)
        assert kind.classes[classes["initial"]] == 6
        assert kind.classes[classes["strong delimiter"]] == 3
        assert kind.classes.sum() == 9
        assert kind.tokens == ((p.TRIGGER, 9),)
        assert kind.positions == ((0, 6), (p.AGAIN, 3))
    assert found.base_rate[classes["initial"]] == pytest.approx(1 / p.T)
    the = np.mean(TOKENS == 1)
    assert found.base_rate[classes["weak-semantic"]] == pytest.approx(the)
    np.testing.assert_allclose(found.kinds["sun"].layers, [0, MEAN_TOKENS, MEAN_TOKENS, 0])


def test_positions_by_layer_feature_and_head():
    found = located()
    for layer in (p.MADE, p.HEARD):
        assert found.sites["block_out"].features[layer, 0] == p.CHANNEL
        assert found.sites["block_out"].frequency[layer, 0] == 1
        assert found.sites["block_out"].over_median[layer, 0] > 1000
    assert found.sites["down_in"].features[p.MADE, 0] == p.NEURON
    assert np.argmax(found.attention["top1"]) == p.HEARD
    assert found.heads_of == "outlier tokens"
    assert np.unravel_index(np.argmax(found.heads), found.heads.shape) == (p.HEARD, 0)
    assert found.heads[p.HEARD, 0] > 0.99
    assert np.delete(found.heads.ravel(), 2 * p.HEARD).max() < 0.2
    shares = scanned().received * scanned().outlier_tokens()[None, :, None]
    np.testing.assert_allclose(found.heads, shares.sum(-1).mean(1), rtol=1e-6)
    down = list(found.weights.matrices).index("down")
    assert np.argmax(found.weights.ratio[:, down]) == p.MADE


def test_positions_of_a_model_without_outliers():
    found = positions(p.CONFIG, p.untrained(), TOKENS)
    assert all(kind.flagged == 0 for kind in found.kinds.values())
    assert found.heads_of == "the first token"
    np.testing.assert_allclose(found.heads, scanned().uniform[0, 0], rtol=0.05)


# ------------------------------------------------------------------------------ relations


def test_relations():
    rows = {(r.given, r.found): r for r in relations(p.CONFIG, p.params(), TOKENS).rows}
    for key in (
        ("weights", "activations"),
        ("down_in", "activations"),
        ("activations", "attention"),
    ):
        row = rows[key]
        assert row.precision == row.recall == row.jaccard == (1, 1, 1)
        assert row.sequences == p.B
        # Sequences share the channel, which chance finds once in as many places as there are.
        assert row.p_value < (1.3 / row.items if row.on == "channels" else 1e-3)
    neurons = rows["weights", "down_in"]
    assert neurons.precision.mean == 1
    assert neurons.recall.mean == 0.5
    assert neurons.items == 61
    assert rows["down_in", "activations"].mean_found == MEAN_TOKENS


def test_relations_of_nothing_are_not_defined():
    for row in relations(p.CONFIG, p.untrained(), TOKENS).rows:
        assert row.sequences == 0
        assert math.isnan(row.precision.mean)
        assert math.isnan(row.p_value)


# ------------------------------------------------------------------------------ life cycle


def test_life_cycle():
    life = lifecycle(p.CONFIG, p.params(), TOKENS[1])
    assert (life.token, life.channel, life.outlier) == (0, p.CHANNEL, True)
    up = life.emergence
    assert (up.layer, up.writer, up.neuron) == (p.MADE, "MLP", p.NEURON)
    assert up.neuron_weight == 300
    assert up.neuron_share == pytest.approx(1, abs=1e-3)
    assert up.rank_one_share > 0.999
    assert up.gained == pytest.approx(up.neuron_value * up.neuron_weight, rel=1e-2)
    assert (life.spread.layer, life.spread.head) == (p.HEARD, 0)
    assert life.spread.received[0] > 0.99
    assert life.spread.value_ratio[0] < 0.05
    assert life.spread.logit_gap > 10
    gone = life.disappearance
    assert (gone.layer, gone.writer) == (p.REMOVED, "MLP")
    assert gone.removed == pytest.approx(up.gained, rel=1e-2)
    assert gone.cosine < -0.999


def test_a_removal_is_judged_in_the_channel_that_it_removes():
    """Case U14: as others grow in the same layer, the write as a whole points with the state; that
    is said, and of what channel."""
    gone = lifecycle(p.CONFIG, p.params(), TOKENS[1]).disappearance
    assert (gone.grows, gone.share) == (None, pytest.approx(-1, abs=0.01))
    down = p.params()["blocks"]["mlp"]["down"]
    others = np.arange(9, 19)
    down = down.at[p.MADE, p.NEURON, others].set(200.0)

    def changed(down):
        blocks = p.params()["blocks"]
        return {**p.params(), "blocks": {**blocks, "mlp": {**blocks["mlp"], "down": down}}}

    taps = {"block_in": lambda h: h[0], "down_in": lambda h: h[0]}
    found = forward(p.CONFIG, changed(down), jnp.asarray(TOKENS[1:2]), taps)[1]
    state = found["block_in"][p.REMOVED, 0]
    unit = state / found["down_in"][p.REMOVED, 0, p.REMOVER]
    down = down.at[p.REMOVED, p.REMOVER, p.CHANNEL].set(-0.9 * unit[p.CHANNEL])
    down = down.at[p.REMOVED, p.REMOVER, others].set(0.3 * unit[others])
    down = down.at[p.REMOVED, p.REMOVER, 12].set(0.35 * unit[12])
    gone = lifecycle(p.CONFIG, changed(down), TOKENS[1]).disappearance
    assert gone.layer == p.REMOVED
    assert gone.share == pytest.approx(-0.9, abs=0.02)
    assert gone.cosine > 0.1
    assert gone.grows == 12
    assert gone.grown == pytest.approx(0.35 * abs(float(state[12])), rel=0.05)
    # without what grows the same write is one that takes away
    same = down.at[p.REMOVED, p.REMOVER, others].set(0.0)
    assert lifecycle(p.CONFIG, changed(same), TOKENS[1]).disappearance.cosine < -0.3


@pytest.mark.parametrize("window_layers", [None, (0,)])
def test_the_logit_gap_is_of_keys_that_the_layer_sees(window_layers):
    config = ModelConfig(
        vocab=11, context=13, layers=3, width=10, heads=2, window=5, window_layers=window_layers
    )
    params = jax.tree.map(lambda x: 10 * x, init(config, jax.random.key(1)))
    params["embed"] = params["embed"].at[10, 3].set(1e3)
    tokens = np.random.default_rng(2).integers(0, 10, 13)
    tokens[2] = 10
    life = lifecycle(config, params, tokens)
    assert life.token == 2
    layer, head, token = life.spread.layer, life.spread.head, life.token
    raw = forward(config, params, jnp.asarray(tokens)[None], {"attn_logits": None})[1]
    logits = np.asarray(raw["attn_logits"], np.float64)[layer, 0, head]
    seen = 5 if window_layers is None else 13
    own, rest = [], []
    for query in range(token + 1, min(token + seen, 13)):
        for key in range(max(0, query - seen + 1), query + 1):
            (own if key == token else rest).append(logits[query, key])
    assert len(own) == (4 if window_layers is None else 10)
    assert life.spread.logit_gap == pytest.approx(np.mean(own) - np.mean(rest), rel=1e-3)
    (shown,) = [panel for panel in life.spread.panels if panel.title.startswith("logits")]
    assert np.isfinite(shown.values).sum() == sum(min(query + 1, seen) for query in range(13))


@pytest.mark.parametrize("experts", [0, 3])
@pytest.mark.parametrize("placement", ["pre", "sandwich", "out"])
def test_the_share_of_a_neuron_is_of_what_the_mlp_gives_before_a_norm(placement, experts):
    config = ModelConfig(
        vocab=11, context=7, layers=2, width=10, heads=2, mlp="swiglu", mlp_width=13, bias=True,
        norm_placement=placement, experts=experts, experts_per_token=2,
    )  # fmt: skip
    rng = np.random.default_rng(5)
    shapes = init(config, jax.random.key(1))
    params = jax.tree.map(lambda x: jnp.asarray(rng.standard_normal(x.shape), jnp.float32), shapes)
    tokens = rng.integers(0, 11, 7)
    life = lifecycle(config, params, tokens)
    up = life.emergence
    names = ("down_in", "down_out", *(("experts", "routing") if experts else ()))
    raw = forward(config, params, jnp.asarray(tokens)[None], dict.fromkeys(names))[1]
    raw = {name: np.asarray(value)[up.layer, 0, life.token] for name, value in raw.items()}
    mlp = jax.tree.map(np.float64, params[f"block_{up.layer}"]["mlp"])
    if experts:
        hidden = raw["down_in"].reshape(2, 13)
        given, own = 0.0, 0.0
        for chosen, weight, values in zip(raw["experts"], raw["routing"], hidden, strict=True):
            given = given + weight * (values @ mlp["down"][chosen] + mlp["down_bias"][chosen])
            if chosen == up.neuron // 13:
                own = weight * values[up.neuron % 13] * up.neuron_weight
    else:
        given = raw["down_in"] @ mlp["down"] + mlp["down_bias"]
        own = raw["down_in"][up.neuron] * mlp["down"][up.neuron, life.channel]
    if placement == "pre":
        np.testing.assert_allclose(given, raw["down_out"], rtol=1e-3, atol=1e-3)
    else:
        assert not np.allclose(given, raw["down_out"], rtol=0.1)
    assert up.neuron_share == pytest.approx(own / given[life.channel], rel=1e-3)


def test_the_trace_adds_up():
    """block_out = block_in + attn_out + down_out at the outlier's place, in every layer."""
    trace = lifecycle(p.CONFIG, p.params(), TOKENS[1]).trace
    total = trace["block_in"] + trace["attn_out"] + trace["down_out"]
    np.testing.assert_allclose(trace["block_out"], total, rtol=1e-4, atol=1e-2)
    np.testing.assert_allclose(trace["block_in"][1:], trace["block_out"][:-1], rtol=1e-6)


# ------------------------------------------------------------------------------ roles


def test_roles():
    found = roles(p.CONFIG, p.params(), TOKENS, found=scanned())
    expected = np.zeros((4, 2), bool)
    expected[p.HEARD, 0] = True
    np.testing.assert_array_equal(found.sink, expected)
    # One KV head: both heads of the layer have the drained value, but only one attends to it.
    np.testing.assert_array_equal(found.no_op, expected)
    assert found.shares == {"sink": 1 / 8, "no_op": 1 / 8, "broadcast": 0}
    assert found.scale[p.HEARD, 0] < 1e-3
    np.testing.assert_allclose(found.scale + found.attention, 1, atol=1e-5)
    assert found.outliers == "outlier tokens"


@pytest.mark.parametrize("window", [8, 30])
def test_roles_are_of_queries_that_see_the_outlier_tokens(window):
    """Those behind the window cannot attend to it: they dilute no share, and have no factor."""
    found = roles(dataclasses.replace(p.CONFIG, window=window), p.params(), TOKENS)
    np.testing.assert_array_equal(found.sink, roles(p.CONFIG, p.params(), TOKENS).sink)
    assert found.scale[p.HEARD, 0] < 1e-3
    np.testing.assert_allclose(found.scale + found.attention, 1, atol=1e-5)


@pytest.mark.parametrize("trained", [True, False])
def test_stable_ranks_against_singular_values(trained):
    """Of every head's outputs, per sequence; power iteration comes from below, so ranks from
    above."""
    params = p.params() if trained else p.untrained()
    found = roles(p.CONFIG, params, TOKENS, found=scanned()).stable_rank
    taps = {"attn_mix": None}
    raw = np.asarray(forward(p.CONFIG, params, jnp.asarray(TOKENS), taps)[1]["attn_mix"])
    for layer, head in np.ndindex(4, 2):
        ranks = []
        for of in np.float64(raw[layer, :, :, head]):
            sigma = np.linalg.svd(of, compute_uv=False)
            ranks.append(np.sum(sigma**2) / sigma[0] ** 2)
        assert found[layer, head] == pytest.approx(np.mean(ranks), rel=0.02)
    assert found.min() >= 1.0 - 1e-5
    assert trained or found.max() > 1.5


def test_a_head_that_broadcasts_puts_out_one_direction():
    """With the sink's value kept, all queries of its head get that value."""
    blocks = p.params()["blocks"]
    value = blocks["attn"]["value"].at[p.HEARD, p.CHANNEL].set(1.0)
    kept = {**p.params(), "blocks": {**blocks, "attn": {**blocks["attn"], "value": value}}}
    found = roles(p.CONFIG, kept, TOKENS, found=scanned())
    assert found.broadcast[p.HEARD].tolist() == [True, False]
    assert found.stable_rank[p.HEARD, 0] == pytest.approx(1.0, abs=0.05)
    assert found.stable_rank[p.HEARD, 1] > 1.2


def test_a_sequence_whose_queries_see_no_outlier_token_does_not_count(monkeypatch):
    """Its only one is the last token, or out of the window in that layer: S would be 1."""
    outliers = np.zeros((2, p.T), bool)
    outliers[0, 0] = outliers[1, p.T - 1] = True

    def of(these):
        monkeypatch.setattr(Scan, "outlier_tokens", lambda scan: outliers[these])
        return roles(p.CONFIG, p.params(), TOKENS[1:3][these], found=scanned())

    found = of(slice(0, 2)), of(slice(0, 1))
    assert found[0].sequences == 2
    for name in ("attention", "scale", "scale_sd", "error"):
        np.testing.assert_allclose(*(getattr(each, name) for each in found), rtol=1e-4)
    none = of(slice(1, 2))
    assert (none.scale.min(), none.attention.max()) == (1.0, 0.0)


def test_roles_against_the_identity():
    """o - S o^R is what the outlier tokens add: from raw weights and values, query by query."""
    found = roles(p.CONFIG, p.params(), TOKENS, found=scanned())
    raw = forward(p.CONFIG, p.params(), jnp.asarray(TOKENS), {"attn_weights": None, "value": None})[
        1
    ]
    weights, values = (np.asarray(raw[n], np.float64) for n in ("attn_weights", "value"))
    outliers = scanned().outlier_tokens()
    for layer, head in ((0, 1), (p.HEARD, 1)):
        errors, scales = [], []
        for b in range(p.B):
            rest = ~outliers[b]
            a, v = weights[layer, b, head], values[layer, b, :, 0]
            scale, o = a[:, rest].sum(1), a @ v
            of_rest = (a[:, rest] / scale[:, None].clip(1e-30)) @ v[rest]
            error = np.linalg.norm(o - scale[:, None] * of_rest, axis=1)
            errors.append(np.mean((error / np.linalg.norm(o, axis=1))[rest]))
            scales.append((scale[rest].mean(), scale[rest].std()))
        np.testing.assert_allclose(found.error[layer, head], np.mean(errors), rtol=1e-3)
        mean, deviation = np.mean(scales, axis=0)
        np.testing.assert_allclose(found.scale[layer, head], mean, rtol=1e-4)
        np.testing.assert_allclose(found.scale_sd[layer, head], deviation, rtol=1e-3)


# ------------------------------------------------------------------------------ interventions


@cache
def intervened():
    found = interventions(p.CONFIG, p.params(), ROWS, found=scanned(), batch=4)
    effects = {(e.detector, e.treatment, e.control): e for e in found.effects}
    assert len(effects) == len(found.effects)
    return found, effects


def loss(edits=None, params=None):
    logits, _ = forward(p.CONFIG, params or p.params(), jnp.asarray(TOKENS), edits=edits)
    return np.asarray(cross_entropy(logits, jnp.asarray(ROWS[:, 1:]))).mean(1)


def test_every_kind_is_intervened_on():
    found, effects = intervened()
    assert found.nothing_found == ()
    assert found.loss.mean == pytest.approx(loss().mean(), rel=1e-5)
    assert found.perplexity == pytest.approx(math.exp(loss().mean()), rel=1e-4)
    for name in ("an_block_out", "sun"):
        effect = effects[name, "set to zero", False]
        assert (effect.layer, effect.edited) == (p.MADE, MEAN_TOKENS)
        assert effects[name, "set to zero", True].edited == MEAN_TOKENS
    assert effects["an_down_in", "set to zero", False].layer == p.MADE
    assert effects["an_attention", "removed, rows renormalised", False].edited == MEAN_TOKENS
    for name in ("an_weight", "super_weight", "largest"):
        assert effects[name, "weight set to zero", False].layer == p.MADE


def width(effect):
    """How far apart sequences are in the change of their loss."""
    return effect.change.high - effect.change.low


def test_the_sink_is_a_scaling_factor():
    """Without the sink but with S, every sequence's loss is what it was; without S it is not."""
    _, effects = intervened()
    rescaled = effects["an_attention", "removed, rescaled by S", False]
    renormalised = effects["an_attention", "removed, rows renormalised", False]
    assert abs(rescaled.change.low) + abs(rescaled.change.high) < 1e-3
    assert width(renormalised) > 10 * width(rescaled)


@pytest.mark.parametrize("treatment", ["zero", "mean"])
def test_activations_against_an_edit_by_hand(treatment):
    _, effects = intervened()
    raw = forward(p.CONFIG, p.params(), jnp.asarray(TOKENS), {"block_out": None})[1]
    states = np.asarray(raw["block_out"])[p.MADE]
    first = states[:, 0, p.CHANNEL].mean() * (treatment == "mean")
    others = states[:, 1:, p.CHANNEL].mean() * (treatment == "mean")

    def edit(h, layer):
        changed = h.at[:, 0, p.CHANNEL].set(first).at[::2, p.AGAIN, p.CHANNEL].set(others)
        return jnp.where(layer == p.MADE, changed, h)

    effect = effects["an_block_out", f"set to {treatment}", False]
    expected = loss({"block_out": edit})
    assert effect.loss == pytest.approx(expected.mean(), rel=1e-5)
    assert effect.change.mean == pytest.approx((expected - loss()).mean(), abs=1e-5)
    assert effect.change.low <= effect.change.mean <= effect.change.high


def test_the_control_of_activations_is_drawn_for_each_sequence():
    value = jnp.zeros((31, 23)).at[4, 7].set(9.0).at[4, 8].set(9.0)
    made = [
        editing.flags(value, jnp.float32(1), jnp.asarray(n), jnp.asarray(True)) for n in range(8)
    ]
    places = {tuple(np.argwhere(np.asarray(each)).ravel().tolist()) for each in made}
    assert len(places) == 8
    assert all(len(place) == 4 and place[0] == place[2] for place in places)  # in as many rows
    edit = editing.activation_edit(1, np.zeros(3), np.zeros((2, 5)), control=True)
    assert edit.arrays[1].tolist() == [0, 1, 2]


def test_means_are_of_other_text_where_there_is_some():
    """Of one sequence alone they are what is there, and setting to them would cost nothing."""
    one = interventions(p.CONFIG, p.params(), ROWS[:1], batch=1)
    treatments = {each.treatment for each in one.effects if each.kind == "activations"}
    assert treatments == {"set to zero"}
    other = np.roll(ROWS[1:4], 3, axis=1)[:, :60]
    found = interventions(p.CONFIG, p.params(), ROWS[:1], batch=1, calibration=other)
    raw = forward(p.CONFIG, p.params(), jnp.asarray(other[:, :-1]), {"block_out": None})[1]
    mean = np.asarray(raw["block_out"])[p.MADE][:, :1, p.CHANNEL].mean()
    again = np.asarray(raw["block_out"])[p.MADE][:, 1:, p.CHANNEL].mean()

    def edit(h, layer):
        changed = h.at[:, 0, p.CHANNEL].set(mean).at[:, p.AGAIN, p.CHANNEL].set(again)
        return jnp.where(layer == p.MADE, changed, h)

    logits, _ = forward(p.CONFIG, p.params(), jnp.asarray(TOKENS[:1]), edits={"block_out": edit})
    expected = cross_entropy(logits, jnp.asarray(ROWS[:1, 1:])).mean()
    (effect,) = (
        each for each in found.effects
        if (each.detector, each.treatment, each.control) == ("an_block_out", "set to mean", False)
    )  # fmt: skip
    assert effect.loss == pytest.approx(float(expected), rel=1e-5)


def test_weights_against_parameters_by_hand():
    _, effects = intervened()
    blocks = p.params()["blocks"]
    for treatment, at in (
        ("weight set to zero", (p.MADE, p.NEURON, p.CHANNEL)),
        ("neuron set to zero", (p.MADE, p.NEURON)),
    ):
        down = blocks["mlp"]["down"].at[at].set(0.0)
        params = {**p.params(), "blocks": {**blocks, "mlp": {**blocks["mlp"], "down": down}}}
        assert intervened()[0].super_weight == (p.MADE, p.NEURON, p.CHANNEL)
        effect = effects["super_weight", treatment, False]
        assert effect.loss == pytest.approx(loss(params=params).mean(), rel=1e-5)
    control = effects["an_weight", "weight set to zero", True]
    assert width(control) < width(effects["an_weight", "weight set to zero", False]) / 10


def test_two_weights_of_one_neuron_are_one_neuron():
    """Beside them the weight of another neuron is flagged."""
    blocks = p.params()["blocks"]
    down = blocks["mlp"]["down"]
    again = down.at[p.MADE, p.NEURON, 11].set(0.9 * down[p.MADE, p.NEURON, p.CHANNEL])
    params = {**p.params(), "blocks": {**blocks, "mlp": {**blocks["mlp"], "down": again}}}
    found = interventions(p.CONFIG, params, ROWS[:2], Thresholds(weight_ratio=400.0), batch=2)
    edited = {
        (each.treatment, each.control): each.edited
        for each in found.effects
        if each.detector == "an_weight"
    }
    assert edited == {
        ("weight set to zero", False): 3.0, ("weight set to zero", True): 3.0,
        ("neuron set to zero", False): 2.0, ("neuron set to zero", True): 2.0,
    }  # fmt: skip


@pytest.mark.parametrize("count", [7, 3])
def test_the_control_of_weights_has_other_rows_as_many_of_them(count):
    """Rows that have an entry are drawn where there are not enough others."""
    entries = [(2, 0, 5), (2, 0, 6), (2, 1, 5), (4, 3 % count, 0)]
    for seed in range(20):
        others = _others(np.random.default_rng(seed), entries, count, 11)
        assert len(set(others)) == 4
        rows = {(layer, neuron) for layer, neuron, _ in others}
        assert len(rows) == 3
        treated = {(layer, neuron) for layer, neuron, _ in entries}
        assert len(rows & treated) == (0 if count == 7 else 1)
        assert [layer for layer, _, _ in others] == [2, 2, 2, 4]
        assert others[0][1] == others[1][1]
        assert others[0][2] == others[2][2]


@pytest.mark.parametrize("placement", ["out", "sandwich"])
def test_a_super_weight_is_found_before_a_norm_of_the_output(placement):
    """Behind that norm no channel of 32 is above sqrt(32), whatever the product is."""
    config = dataclasses.replace(p.CONFIG, norm_placement=placement)
    ones = {"scale": jnp.ones((p.CONFIG.layers, p.CONFIG.width))}
    blocks = p.params()["blocks"] | {"attn_out_norm": ones, "mlp_out_norm": ones}
    if placement == "out":
        blocks = {name: of for name, of in blocks.items() if name not in ("attn_norm", "mlp_norm")}
    params, tokens = {**p.params(), "blocks": blocks}, jnp.asarray(TOKENS[:2])
    means = as_means(config, jax.device_get(recorded(config, params, tokens, averages(config))))
    assert means.super_weight(20.0) == (p.MADE, p.NEURON, p.CHANNEL)


def test_both_sides_of_a_super_weight_are_of_one_sequence():
    spikes = {"down_in": np.array([[60.0, 100.0]]), "mlp_out": np.array([[70.0, 1.0]])}
    places = {"down_in": np.array([[3, 4]]), "mlp_out": np.array([[5, 6]])}
    assert Means({}, spikes, places).super_weight(50.0) == (0, 3, 5)


def test_without_outliers_only_the_largest_is_taken():
    found = interventions(p.CONFIG, p.untrained(), ROWS, batch=4)
    assert {effect.detector for effect in found.effects} == {"largest"}
    assert found.super_weight is None
    assert set(found.nothing_found) == {
        "an_block_out", "an_down_in", "sun", "an_attention", "an_weight", "super_weight",
    }  # fmt: skip


def test_the_control_of_attention_keeps_the_sink_in_no_layer():
    """A key that another layer loses is no other key: it is drawn where none is left."""
    removed = np.zeros((3, 2, 7), bool)
    removed[0, :, 0] = removed[1, :, 2] = removed[2, 0, [0, 2, 3]] = removed[2, 1, 1:7] = True
    for seed in range(20):
        others = _other_keys(np.random.default_rng(seed), removed)
        np.testing.assert_array_equal(others.sum(-1), removed.sum(-1))
        assert not (others[:, 0] & removed[:, 0].any(axis=0)).any()


def test_a_detector_of_attention_before_the_sink_alone_has_not_flagged_nothing():
    found = dataclasses.replace(scanned(), received=np.zeros_like(scanned().received))
    found.received[0, :, :, 0] = 0.5  # in the first layer, which does not read it
    found.received[-1, :, :, 3] = 0.09
    made = interventions(p.CONFIG, p.params(), ROWS, found=found, batch=6)
    assert made.sink.first > 0
    assert made.nothing_found == (f"an_attention in layers from {made.sink.first} on",)
    part = {
        "effects": [dataclasses.asdict(each) for each in made.effects],
        "loss": [1.0],
        "perplexity": 1.0,
    }
    rows = _interventions(
        part | {"sink": {"first": 2}, "forms": {"forms": [], "peaks": {}, "attention": {}}}, {}
    )[""].rows
    assert {row[2] for row in rows if row[0].startswith("attention")} == {"2 on"}
    rows = _interventions(part, {})[""].rows
    assert {row[2] for row in rows if row[0].startswith("attention")} == {"all"}


# ------------------------------------------------------------------------------ any model


def test_long_sequences_give_the_same_in_blocks(monkeypatch):
    """With blocks of 16 queries the scan and the roles are what they are with all at once."""
    monkeypatch.setattr("sysout_jax.analysis.locate.scan.QUERIES_AT_ONCE", 64)
    monkeypatch.setattr("sysout_jax.analysis.locate.scan.QUERY_BLOCK_CPU", 16)
    assert for_length(p.CONFIG, 64) == p.CONFIG
    assert for_length(p.CONFIG, p.T).execution.query_block == 16
    assert for_length(p.CONFIG, 65, platform="tpu").execution.query_block == QUERY_BLOCK
    monkeypatch.setattr("sysout_jax.analysis.locate.scan.MAPS_AT_ONCE_CPU", 32)
    assert for_length(p.CONFIG, 33) == for_length(p.CONFIG, 33, True, "gpu") == p.CONFIG
    assert for_length(p.CONFIG, 33, maps=True).execution.query_block == 16
    found = scan(p.CONFIG, p.params(), TOKENS)
    np.testing.assert_allclose(found.received, scanned().received, rtol=1e-5, atol=1e-6)
    in_blocks = roles(p.CONFIG, p.params(), TOKENS, found=found)
    dense = roles(p.CONFIG, p.params(), TOKENS, found=scanned())
    for name in ("scale", "scale_sd", "attention", "drain"):
        np.testing.assert_allclose(getattr(in_blocks, name), getattr(dense, name), atol=1e-5)


def test_a_model_that_diverged_is_refused():
    params = p.untrained()
    broken = {**params, "embed": params["embed"].at[3, 2].set(jnp.nan)}
    with pytest.raises(InputError, match="block_out of layer 0: not finite"):
        scan(p.CONFIG, broken, TOKENS, batch=4)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_part_runs_on_every_variant(name, dtype):
    """And its record can be drawn and written."""
    config = ModelConfig(
        vocab=19, context=37, layers=2, width=12, heads=2, kv_heads=1, variant=name, mlp="gelu",
        norm="layer", bias=True, execution=Execution(dtype=dtype),
    )  # fmt: skip
    model = so.Model(config, init(config, jax.random.key(0)))
    findings = so.analyze(model, TOKENS[0, :9], rows=ROWS[:3, :38])
    assert findings.record["status"] == "complete"
    assert not findings.existence.any
