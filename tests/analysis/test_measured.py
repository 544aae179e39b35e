"""Measures, detectors and nulls on the planted model, and the gradient of a small one."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from sysout_jax.analysis.locate.nulls import UNTRAINED, calibrated, outlying_states, untrained
from sysout_jax.analysis.locate.scan import scan
from sysout_jax.analysis.locate.weights import weight_scan
from sysout_jax.analysis.measure.scorecard import MORE, _with_gradient
from sysout_jax.analysis.measure.summary import outlier_summary
from sysout_jax.core.detectors import DETECTORS
from sysout_jax.core.layers import cross_entropy
from sysout_jax.core.measures import first_token_argmax
from sysout_jax.core.recorded import MEASURES
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import forward, init
from sysout_jax.model.execution import Execution
from tests.analysis import planted as p

SUMMARY = jax.jit(partial(outlier_summary, p.CONFIG))


def found():
    return p.findings().measures


def row(rows, name):
    (one,) = [each for each in rows if name in (each.name if hasattr(each, "name") else each.what)]
    return one


@cache
def raw(tap):
    run = jax.jit(partial(forward, p.CONFIG, taps={tap: None}))
    return np.asarray(run(p.params(), jnp.asarray(p.rows()[:, :-1]))[1][tap], np.float64)


def test_scores_are_those_of_the_summary():
    """The mean over sequences comes before the extreme, which is that of a layer."""
    tokens = jnp.asarray(p.rows()[:, :-1])
    summary = SUMMARY(p.params(), tokens)
    for measure in MEASURES:
        score = row(found().scores, measure.name)
        # Tokens that come twice have equal keys; rounding says which of two has the larger weight.
        of_queries = 1.5 / tokens.size / 8 if measure.fn is first_token_argmax else 1e-6
        apart = {"rtol": 1e-4, "atol": of_queries}
        np.testing.assert_allclose(score.value.mean, summary[measure.name], **apart)
        picked = getattr(np, measure.over)(score.layers)
        np.testing.assert_allclose(picked, summary[measure.name], **apart)
        assert score.value.low <= score.value.mean <= score.value.high
    for detector in DETECTORS:
        count = row(found().detectors, detector.name).count.mean
        np.testing.assert_allclose(count, summary[detector.name], rtol=1e-6)
    assert [s.name for s in found().scores[len(MEASURES) :]] == [name for name, *_ in MORE]


def test_untrained_scores_are_those_of_initial_parameters():
    tokens = jnp.asarray(p.rows()[:, :-1])
    expected = [SUMMARY(init(p.CONFIG, jax.random.key(n)), tokens) for n in range(UNTRAINED)]
    for name in ("top1@block_out", "sink_strength@attn_weights"):
        mean = np.mean([each[name] for each in expected])
        np.testing.assert_allclose(row(found().scores, name).untrained.mean, mean, rtol=1e-4)


def test_entropy_and_sweep_against_numpy():
    entropies = []
    for h in raw("block_out").reshape(-1, p.T, p.CONFIG.width):
        shares = np.linalg.svd(h, compute_uv=False) ** 2
        shares = shares[shares > 0] / shares.sum()
        entropies.append(-np.sum(shares * np.log(shares)))
    by_layer = np.reshape(entropies, (p.CONFIG.layers, p.B)).mean(axis=1)
    score = row(found().scores, "matrix_entropy@block_out")
    np.testing.assert_allclose(score.layers, by_layer, rtol=1e-2, atol=1e-4)
    weights = raw("attn_weights")
    for key in range(4):
        strength = weights[:, :, :, key:, key].mean(axis=-1)
        rates = [np.mean(strength > eps) for eps in found().sweep.eps]
        np.testing.assert_allclose(found().sweep.value[key], rates, atol=1e-6)


def test_detectors_say_where():
    assert row(found().detectors, "massive_activations").places == ((p.CHANNEL, p.B),)
    for name in ("attention_outliers", "activation_outliers@down_in"):
        assert row(found().detectors, name).places == ((0, p.B), (p.AGAIN, p.B // 2))
    assert all(each.untrained.mean < 1 for each in found().detectors)


def test_nulls_find_what_is_planted():
    """Each null its own kind: tokens and keys, the channel that tokens share, single entries."""
    kept = found().calibrated
    for what in ("tokens of block_out", "tokens of down_in", "keys of attention"):
        assert row(kept, what).evidence <= row(kept, what).limit + 1e-6
    channels = row(kept, "channels of block_out")
    assert [place for place, _ in channels.places] == [p.CHANNEL]
    assert row(kept, "entries of block_out").sequences == p.B
    assert p.CHANNEL in [place for place, _ in row(kept, "entries of block_out").places]


def test_nothing_but_repeated_tokens_is_calibrated_in_an_untrained_model():
    """Its 606 tokens are 19 different ones: they agree on channels, as its control says."""
    params, tokens = untrained(p.CONFIG, 77), p.rows()[:, :-1]
    scanned = scan(p.CONFIG, params, tokens)
    others = [scan(p.CONFIG, untrained(p.CONFIG, which), tokens) for which in range(UNTRAINED)]
    states, control = (
        outlying_states(p.CONFIG, each, tokens, scanned, p.B)
        for each in (params, untrained(p.CONFIG, 0))
    )
    kept = calibrated(scanned, others, states, control, weight_scan(params))
    for what in ("tokens of down_in", "keys of attention"):
        assert row(kept, what).flagged == 0, what
    channels = row(kept, "channels of block_out")
    assert 0 < channels.flagged < 2 * channels.control
    assert kept[-1].flagged <= 1


def test_gradient_sinks_by_finite_differences():
    config = ModelConfig(
        vocab=11, context=5, layers=2, width=6, heads=2, mlp_width=7, init_std=0.5,
        execution=Execution(scan_layers=True),
    )  # fmt: skip
    params = init(config, jax.random.key(0))
    rows = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 6)), jnp.int32)
    sites = np.array(list(np.ndindex(2, 5, 6)))

    def loss(site, step, sequence):
        def add(value, layer):
            moved = value.at[0, site[1], site[2]].add(step)
            return jnp.where(layer == site[0], moved, value)

        logits, _ = forward(config, params, sequence[None, :-1], edits={"attn_norm": add})
        return jnp.mean(cross_entropy(logits, sequence[None, 1:]))

    at = jax.jit(jax.vmap(loss, (0, None, None)))
    expected = []
    for sequence in rows:
        up, down = (np.asarray(at(sites, h, sequence), np.float64) for h in (0.02, -0.02))
        norms = np.linalg.norm(((up - down) / 0.04).reshape(2, 5, 6), axis=-1)
        expected.append(norms[:, 0] / norms[:, 1:].mean(axis=1))
    found, _ = jax.jit(partial(_with_gradient, config, taps={}))(params, rows)
    np.testing.assert_allclose(found, np.transpose(expected), rtol=2e-2)
