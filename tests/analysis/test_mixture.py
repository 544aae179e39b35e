"""Experts are told apart: neurons planted in one expert each are found there and nowhere else."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analysis.intervene.interventions import interventions
from sysout_jax.analysis.locate import expert_neurons as m
from sysout_jax.analysis.locate.existence import existence
from sysout_jax.analysis.locate.positions import positions
from sysout_jax.analysis.locate.relations import relations
from sysout_jax.analysis.locate.scan import Thresholds, scan
from sysout_jax.analysis.locate.super_experts import super_experts
from sysout_jax.analysis.measure.lifecycle import lifecycle
from sysout_jax.core.layers import cross_entropy
from sysout_jax.errors import InputError
from sysout_jax.model.decoder import forward
from sysout_jax.report.experts import expert_table
from sysout_jax.report.words import headline
from tests.analysis import planted as p

C = p.MIXTURE
ROWS = p.rows()
TOKENS = ROWS[:, :-1]
E, J, F = C.experts, C.experts_per_token, C.sizes["F"]
NEURON = p.neuron(C, p.MAKER, p.NEURON)
REMOVER = p.neuron(C, p.REMOVING, p.REMOVER)


@cache
def scanned():
    return scan(C, p.params(C), TOKENS, batch=6)


@cache
def raw():
    taps = dict.fromkeys(("experts", "routing", "down_in", "block_out"))
    return jax.tree.map(np.asarray, forward(C, p.params(C), jnp.asarray(TOKENS), taps)[1])


def spread(experts, h):
    """[..., E F] with a loop over tokens."""
    out = np.zeros((*h.shape[:-1], E * F), h.dtype)
    for at in np.ndindex(h.shape[:-1]):
        for j, e in enumerate(experts[at]):
            out[at][e * F : (e + 1) * F] = h[at][j * F : (j + 1) * F]
    return out


# ------------------------------------------------------------------------- the pieces

RNG = np.random.default_rng(0)
CHOSEN = np.stack([RNG.permutation(5)[:3] for _ in range(7)])
H = RNG.standard_normal((7, 3 * 2)).astype(np.float32)


def test_neurons_are_numbered_expert_by_expert():
    found = np.asarray(m.spread(jnp.asarray(CHOSEN), jnp.asarray(H), 5))
    for t in range(7):
        for e in range(5):
            (slot,) = np.flatnonzero(CHOSEN[t] == e) if e in CHOSEN[t] else (None,)
            own = np.zeros(2) if slot is None else H[t, 2 * slot : 2 * slot + 2]
            np.testing.assert_array_equal(found[t, 2 * e : 2 * e + 2], own)
    size = np.abs(found)
    top = m.peaks(jnp.asarray(CHOSEN), jnp.abs(jnp.asarray(H)), 5)
    np.testing.assert_array_equal(top, size.max(0))
    slot = np.abs(H).argmax(1)
    numbers = m.neuron_at(jnp.asarray(CHOSEN), jnp.asarray(slot), 2)
    np.testing.assert_array_equal(numbers, size.argmax(1))
    row = np.arange(10.0, dtype=np.float32)
    shown = np.asarray(m.side_by_side(jnp.asarray(row), jnp.asarray(CHOSEN), 2))
    assert shown.tolist() == [[x for e in of for x in (2 * e, 2 * e + 1)] for of in CHOSEN]


def test_totals_are_over_the_tokens_that_go_there():
    whole = np.asarray(m.spread(jnp.asarray(CHOSEN), jnp.asarray(H), 5))
    there = np.stack([np.isin(np.arange(10) // 2, of) for of in CHOSEN])
    found = m.totals(jnp.asarray(H), jnp.asarray(CHOSEN), 5)
    for name, of in (("total", whole), ("count", there)):
        expected = [of[0], of[1:].sum(0)]
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)
    plain = m.totals(jnp.asarray(H))
    np.testing.assert_allclose(plain["total"], [H[0], H[1:].sum(0)], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(plain["count"], [[1] * 6, [6] * 6])


# ------------------------------------------------------------------------- what was planted


def test_the_scan_equals_a_recomputation_from_raw_taps():
    site, values = scanned().down_in, np.abs(raw()["down_in"])
    every = np.abs(spread(raw()["experts"], raw()["down_in"]))
    np.testing.assert_allclose(site.mean, values.mean((2, 3)), rtol=1e-4)
    np.testing.assert_allclose(site.median, np.median(values, axis=(2, 3)), rtol=1e-3, atol=1e-7)
    np.testing.assert_allclose(site.feature_peak, every.max(2), rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(site.token_peak, every.max(3), rtol=1e-3, atol=1e-5)
    at_peak = np.take_along_axis(every, site.token_feature[..., None], axis=-1)[..., 0]
    np.testing.assert_allclose(at_peak, every.max(3), rtol=1e-3, atol=1e-5)


def test_super_experts_are_those_that_write_and_remove_the_outlier():
    found = positions(C, p.params(C), TOKENS, found=scanned()).experts
    assert [(each.layer, each.expert) for each in found.found] == [(p.MADE, p.MAKER)]
    taps = dict.fromkeys(("experts", "expert_out"))
    raw_out = jax.tree.map(np.asarray, forward(C, p.params(C), jnp.asarray(TOKENS), taps)[1])
    size = np.abs(np.float64(raw_out["expert_out"])).max(-1)  # [L, B, T, J]
    peak = np.zeros((C.layers, p.B, E))
    for layer, b, t, j in np.ndindex(size.shape):
        at = (layer, b, raw_out["experts"][layer, b, t, j])
        peak[at] = max(peak[at], size[layer, b, t, j])
    np.testing.assert_allclose(found.peak, peak.max(1), rtol=1e-5)
    whole = peak.max(1)
    bound = max(np.quantile(whole, 0.995), 0.1 * whole.max())
    assert found.bound == pytest.approx(bound, rel=1e-5)
    assert found.unvisited == (whole == 0).sum()
    (expert,) = found.found
    assert expert.over_median == pytest.approx(whole.max() / np.median(whole[whole > 0]), rel=1e-5)
    large = peak[p.MADE, :, p.MAKER] > 0.1 * whole.max()
    assert expert.sequences == large.sum() == p.B
    low = Thresholds(expert_quantile=0.5, expert_share=0.1)
    both = super_experts(scanned().expert_peak, low).found
    assert [(x.layer, x.expert) for x in both] == [(p.MADE, p.MAKER), (p.REMOVED, p.REMOVING)]
    assert positions(p.CONFIG, p.params(), TOKENS[:2]).experts is None


def test_experts_that_no_token_goes_to_are_counted():
    peaks = np.zeros((2, 3, 4))
    assert super_experts(peaks).found == ()
    assert super_experts(peaks).unvisited == 8
    peaks[1, 2, 3] = 5.0
    peaks[0, 0, 0] = 1.0
    (expert,) = super_experts(peaks).found
    assert (expert.layer, expert.expert, expert.sequences) == (1, 3, 1)
    assert expert.over_median == pytest.approx(5 / 3)


@pytest.mark.parametrize(
    ("name", "bad"), [("expert_quantile", 1.0), ("expert_quantile", 0.0), ("expert_share", -0.1)]
)
def test_bounds_of_super_experts_that_are_none(name, bad):
    with pytest.raises(InputError, match=name):
        Thresholds(**{name: bad})


def test_existence_finds_the_expert_and_nothing_else():
    found = existence(C, p.params(C), TOKENS[0])
    kinds = {flagged.detector: flagged for flagged in found.found}
    assert kinds["an_block_out"].layers == (p.MADE, p.HEARD)
    assert kinds["an_block_out"].features == (p.CHANNEL,)
    assert kinds["an_down_in"].layers == (p.MADE, p.REMOVED)
    assert kinds["an_down_in"].tokens == (0, p.AGAIN)
    assert kinds["an_down_in"].features == tuple(sorted((NEURON, REMOVER)))
    (weight,) = found.weights.outliers
    assert (weight.layer, weight.input, weight.output) == (p.MADE, NEURON, p.CHANNEL)
    down_in, down, *_ = found.panels
    assert down_in.experts == down.experts == E
    assert down_in.features == down.rows == E * F
    run = -(-E * F // down_in.values.shape[1])
    (mark,) = down_in.marks
    assert down_in.values[mark[0], mark[1] // run] == down_in.values.max()
    assert not existence(C, p.untrained(C), TOKENS[0]).any


def test_relations_of_neurons():
    rows = {(r.given, r.found): r for r in relations(C, p.params(C), TOKENS, found=scanned()).rows}
    neurons = rows["weights", "down_in"]
    assert (neurons.items, neurons.precision.mean, neurons.recall.mean) == (E * F, 1, 0.5)
    for row in rows.values():
        assert row.precision.mean == 1
        assert row.sequences == p.B


def test_life_cycle():
    life = lifecycle(C, p.params(C), TOKENS[1])
    up = life.emergence
    assert (life.token, life.channel, up.layer, up.writer) == (0, p.CHANNEL, p.MADE, "MLP")
    assert m.place(C, up.neuron) == (p.MAKER, p.NEURON)
    assert up.neuron_weight == 300
    assert up.neuron_share == pytest.approx(1, abs=1e-3)
    assert up.rank_one_share > 0.999
    assert (life.disappearance.layer, life.disappearance.writer) == (p.REMOVED, "MLP")
    assert life.disappearance.cosine < -0.999
    shown = {panel.title: panel for panel in (*up.panels, *life.disappearance.panels)}
    assert shown["|down_in|"].experts == shown["|W_down|"].experts == E
    assert shown["|down_out|"].experts == 0


def test_what_a_neuron_writes_is_weighted_by_the_router():
    """In an untrained mixture no expert has all the weight: all parts add up to down_out."""
    params, tokens = p.untrained(C), jnp.asarray(TOKENS[1])
    taps = dict.fromkeys(("experts", "routing", "down_in", "down_out"))
    found = jax.tree.map(np.asarray, forward(C, params, tokens[None], taps)[1])
    life = lifecycle(C, params, TOKENS[1])
    layer, at = life.emergence.layer, (life.emergence.layer, 0, life.token)
    weights = np.zeros(E)
    weights[found["experts"][at]] = found["routing"][at]
    assert 0.05 < weights.max() < 0.95
    down = np.asarray(params["blocks"]["mlp"]["down"][layer]).reshape(E * F, -1)[:, life.channel]
    hidden = spread(found["experts"], found["down_in"])[at]
    parts = hidden * down * np.repeat(weights, F)
    written = found["down_out"][at][life.channel]
    assert parts.sum() == pytest.approx(written, rel=1e-4)
    assert life.emergence.neuron == np.argmax(np.abs(parts))
    assert life.emergence.neuron_share == pytest.approx(
        np.abs(parts).max() / abs(written), rel=1e-3
    )


# ------------------------------------------------------------------------- interventions


@cache
def intervened():
    found = interventions(C, p.params(C), ROWS, found=scanned(), batch=6)
    return {(e.detector, e.treatment, e.control): e for e in found.effects}


def loss(params=None, edits=None):
    logits, _ = forward(C, params or p.params(C), jnp.asarray(TOKENS), edits=edits)
    return float(cross_entropy(logits, jnp.asarray(ROWS[:, 1:])).mean())


def test_weights_against_parameters_by_hand():
    blocks = p.params(C)["blocks"]
    for treatment, at in (
        ("weight set to zero", (p.MADE, p.MAKER, p.NEURON, p.CHANNEL)),
        ("neuron set to zero", (p.MADE, p.MAKER, p.NEURON)),
    ):
        down = blocks["mlp"]["down"].at[at].set(0.0)
        params = {**p.params(C), "blocks": {**blocks, "mlp": {**blocks["mlp"], "down": down}}}
        for detector in ("an_weight", "super_weight", "largest"):
            effect = intervened()[detector, treatment, False]
            assert effect.loss == pytest.approx(loss(params), rel=1e-5)
            assert abs(effect.change.mean) > 1e-3


@pytest.mark.parametrize("treatment", ["zero", "mean"])
def test_activations_against_an_edit_by_hand(treatment):
    """The mean of a neuron is over the tokens that go to its expert."""
    effect = intervened()["an_down_in", f"set to {treatment}", False]
    layer, experts = effect.layer, raw()["experts"]
    expert, own = (p.MAKER, p.NEURON) if layer == p.MADE else (p.REMOVING, p.REMOVER)
    values = spread(experts, raw()["down_in"])[layer, ..., expert * F + own]
    there = (experts[layer] == expert).any(-1)
    first, others = (values[:, at][there[:, at]].mean() for at in (slice(0, 1), slice(1, None)))
    assert there[:, 1:].mean() < 0.99

    def edit(value, index):
        new = value
        for b, t in np.argwhere(ROWS[:, :-1] == p.TRIGGER):
            slot = list(experts[layer, b, t]).index(expert) * F + own
            new = new.at[b, t, slot].set((first if t == 0 else others) * (treatment == "mean"))
        return jnp.where(index == layer, new, value)

    assert effect.edited == 1.5
    assert effect.loss == pytest.approx(loss(edits={"down_in": edit}), rel=1e-5)


# ------------------------------------------------------------------------- what is shown


def test_sentences_and_figures_name_the_expert():
    model = so.Model(C, p.params(C))
    findings = so.analyze(model, TOKENS[0], parts=("existence", "positions", "lifecycle"))
    said = "\n".join(headline(findings.record, "existence"))
    assert f"{p.REMOVER} of expert {p.REMOVING}, {p.NEURON} of expert {p.MAKER}" in said
    assert f"down[{p.NEURON} of expert {p.MAKER}, {p.CHANNEL}] of layer {p.MADE}" in said
    (up,) = [x for x in headline(findings.record, "lifecycle") if x.startswith("emergence")]
    assert f"neuron {p.NEURON} of expert {p.MAKER} writes 100%" in up
    (said,) = [x for x in headline(findings.record, "positions") if x.startswith("super experts")]
    assert "x the median of all that tokens go to, in" in said
    assert (
        expert_table(findings.record["parts"]["positions"]["experts"])
        .headings[3]
        .endswith("layer's")
    )
    assert f"0.1 of the largest): expert {p.MAKER} of layer {p.MADE} (|output| " in said
    assert "in 1 of 1 sequences)" in said
    rows = findings.table("positions-experts").rows
    assert [row[-1] for row in rows] == ["", str(p.MAKER), "", ""]
    assert [row[0] for row in rows] == list(range(C.layers))
    figures = findings.figures()
    marked = [t.get_text() for axes in figures["existence"].axes for t in axes.texts]
    assert f"neuron {p.REMOVER} of expert {p.REMOVING}, channel {p.CHANNEL}" in " ".join(marked)
