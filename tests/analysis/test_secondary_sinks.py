"""Secondary sinks: by hand, against loops, and those of a published model."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import sysout_jax as so
from sysout_jax.analysis.locate.sinks import given_by_seeing
from sysout_jax.analysis.measure.lifecycle import lifecycle
from sysout_jax.analysis.measure.secondary_sinks import STANDS_OUT, secondary_sinks
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import forward
from sysout_jax.report.words import headline
from tests.analysis import planted as p


def made(layers=6, tokens=9, width=4):
    """States of norm 1, and attention that tells layer and token."""
    states = np.zeros((layers, tokens, width), np.float32)
    states[..., 0] = 1.0
    received = np.arange(layers)[:, None, None] + np.arange(tokens)[None, None] / 100
    return states, np.broadcast_to(received, (layers, 2, tokens)).astype(np.float32)


def test_birth_end_direction_and_attention():
    states, received = made()
    states[2:, 0] = [0.0, 500.0, 0.0, 0.0]  # the first sink
    states[1:4, 3] = [0.0, 8.0, 0.0, 0.0]
    states[2, 3] = [0.0, 9.0, 9.0, 0.0]
    states[4:, 5] = [0.0, -4.0, 0.0, 0.0]
    large, small = secondary_sinks(states, received, 0)
    assert (large.token, large.born, large.gone) == (3, 1, 4)
    assert large.over_median == pytest.approx(9 * math.sqrt(2))
    assert large.cosine == pytest.approx(math.sqrt(0.5))
    assert large.received == pytest.approx(3.03)  # layers 2 to 4 read what 1 to 3 write
    assert (small.token, small.born, small.gone) == (5, 4, None)
    assert small.cosine == pytest.approx(-1.0)
    assert small.received == pytest.approx(5.05)


@pytest.mark.parametrize("window", [None, 3])
def test_the_share_is_of_the_queries_that_see_the_token(window):
    """Token 60 of 64 has all the attention of every query that sees it: that is 1, not 4/64."""
    config = ModelConfig(vocab=5, context=64, layers=1, window=window)
    weights = np.zeros((64, 64))
    weights[60 : None if window is None else 60 + window, 60] = 1.0
    received = weights.mean(axis=0)[None, None, None]
    assert given_by_seeing(config, received)[0, 0, 0, 60] == pytest.approx(1.0)


def test_a_life_cycle_has_that_share():
    """Two triggers, neither at token 0: the share of either is of the queries behind it."""
    tokens = p.rows()[0, :-1]
    tokens[[0, 3]] = 1, p.TRIGGER
    life = lifecycle(p.CONFIG, p.params(), tokens)
    (other,) = life.others
    taps = {"attn_weights": None}
    weights = forward(p.CONFIG, p.params(), jnp.asarray(tokens)[None], taps)[1]["attn_weights"]
    gone = p.CONFIG.layers if other.gone is None else other.gone + 1
    later = np.asarray(weights, np.float64)[other.born + 1 : gone, 0, :, other.token :, other.token]
    assert other.token in (3, p.AGAIN)
    assert other.received == pytest.approx(later.mean(), rel=1e-4)


def test_none_where_nothing_stands_out_or_all_is_zero():
    states, received = made()
    assert secondary_sinks(states, received, 0) == ()
    assert secondary_sinks(0 * states, received, 0) == ()
    states[5, 4] = [0.0, STANDS_OUT, 0.0, 0.0]  # not above the threshold
    assert secondary_sinks(states, received, 0) == ()
    states[5, 4] *= 1.01  # born in the last layer: no later one reads it
    (found,) = secondary_sinks(states, received, 0)
    assert (found.born, found.gone, found.received) == (5, None, 0.0)


@given(st.integers(0, 2**32 - 1))
def test_against_loops(seed):
    rng = np.random.default_rng(seed)
    states = rng.standard_normal((4, 7, 3)).astype(np.float32)
    states *= rng.choice([1.0, 20.0], (4, 7, 1), p=[0.8, 0.2]).astype(np.float32)
    received = rng.random((4, 2, 7)).astype(np.float32)
    found = {each.token: each for each in secondary_sinks(states, received, 2)}
    for token in range(7):
        norms = [[math.hypot(*map(float, state)) for state in layer] for layer in states]
        out = [n for n, row in enumerate(norms) if row[token] > 3 * sorted(row)[3]]
        assert (token in found) == bool(out and token != 2)
        if token in found:
            gone = None if out[-1] == 3 else out[-1] + 1
            assert (found[token].born, found[token].gone) == (out[0], gone)


def test_of_a_published_model(smollm2):
    """The token " the" stands out in layers 2 to 8, in the direction of the first token's state."""
    text = "The cat sat on the mat. In the house the dog was warm."
    findings = so.analyze(so.load(smollm2), text, parts="lifecycle")
    sinks = findings.record["parts"]["lifecycle"]["others"]
    pieces = findings.record["prompt"]
    assert {pieces[each["token"]] for each in sinks} == {"␣the"}
    assert all((each["born"], each["gone"]) == (2, 9) for each in sinks)
    assert all(each["cosine"] > 0.9 for each in sinks)
    assert findings.table("lifecycle-others").rows[0][0] == "␣the"
    assert "stands out from layer 2 to layer 9" in headline(findings.record, "lifecycle")[-1]
