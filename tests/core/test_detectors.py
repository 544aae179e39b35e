"""Every detector against a loop written from its definition, on planted truth and on noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from sysout_jax.core import detectors as d
from sysout_jax.model.taps import TAPS
from tests.core.test_measures import (
    DEGENERATE,
    D,
    H,
    K,
    N,
    T,
    attention,
    draw,
    entries,
    mean,
    median,
    narrow,
)


def activation_scores(h):
    return [max(entries(row)) / mean(entries(h)) for row in h]


def key_scores(weights):
    """sum over queries of the mean over heads, as a share of the T queries."""
    n, t, s = weights.shape
    received = [
        mean([weights[head, q, key] for head in range(n)]) for key in range(s) for q in range(t)
    ]
    return [sum(received[key * t : (key + 1) * t]) / t for key in range(s)]


def test_activation_outliers():
    h = draw(T, 3 * D)
    h[2, 5] = 1e4
    found = d.activation_outliers(narrow(h), ratio=50.0)
    np.testing.assert_allclose(found.score, activation_scores(h), rtol=1e-5)
    assert np.flatnonzero(found.flagged).tolist() == [2]
    assert not np.any(d.activation_outliers(narrow(draw(T, 3 * D)), ratio=50.0).flagged)


def test_activation_outliers_default_is_a_thousand_times_the_mean():
    """One entry a among 4999 ones scores a / ((a + 4999) / 5000)."""
    for wanted, flagged in ((990.0, False), (1010.0, True)):
        h = np.ones((50, 100))
        h[7, 3] = wanted * 4999 / (5000 - wanted)
        found = d.activation_outliers(narrow(-h))
        np.testing.assert_allclose(np.max(found.score), wanted, rtol=1e-4)
        assert np.flatnonzero(found.flagged).tolist() == ([7] if flagged else [])


def test_weight_outliers():
    for wanted, flagged in ((990.0, False), (1010.0, True)):
        w = np.ones((50, 100))
        w[7, 3] = -wanted * 4999 / (5000 - wanted)
        found = d.weight_outliers(narrow(w))
        np.testing.assert_allclose(found.score, np.abs(w) / np.mean(np.abs(w)), rtol=1e-4)
        assert np.argwhere(found.flagged).tolist() == ([[7, 3]] if flagged else [])
    assert not np.any(d.weight_outliers(narrow(draw(40, 60)), ratio=6.0).flagged)


def test_attention_outliers():
    weights = attention()
    found = d.attention_outliers(narrow(weights))
    expected = key_scores(weights)
    np.testing.assert_allclose(found.score, expected, rtol=1e-5)
    assert found.flagged.tolist() == [score >= 0.1 for score in expected]
    assert 0 < sum(found.flagged.tolist()) < T


def test_attention_outliers_of_a_planted_sink():
    """Diagonal attention gives each of 41 keys 1/41; a sink takes 0.9 of it from key 5 on."""
    weights = np.eye(41)
    weights[6:] *= 0.1
    weights[6:, 5] = 0.9
    found = d.attention_outliers(narrow(np.stack([weights, weights])))
    assert np.flatnonzero(found.flagged).tolist() == [5]
    np.testing.assert_allclose(found.score[5], (1 + 35 * 0.9) / 41, rtol=1e-5)
    # The threshold itself counts; a quarter is exact in binary.
    uniform = narrow(np.full((1, 4, 4), 0.25))
    assert d.attention_outliers(uniform, share=0.25).flagged.all()
    assert not d.attention_outliers(uniform, share=0.2501).flagged.any()


def test_massive_activations_need_the_value_and_the_ratio():
    h = draw(T, D)
    h[3, 4], h[5, 1] = -2e3, 900.0
    found = d.massive_activations(narrow(h))
    np.testing.assert_allclose(found.score, np.abs(h) / median(entries(h)), rtol=1e-5)
    expected = (np.abs(h) > 100) & (np.abs(h) > 1000 * median(entries(h)))
    np.testing.assert_array_equal(found.flagged, expected)
    assert [3, 4] in np.argwhere(found.flagged).tolist()
    # Each condition alone is not enough.
    assert not np.any(d.massive_activations(narrow(h / 50)).flagged)
    assert not np.any(d.massive_activations(narrow(200 * draw(T, D))).flagged)
    # The thresholds are arguments.
    assert np.argwhere(d.massive_activations(narrow(h / 50), value=39.0).flagged).tolist() == [
        [3, 4]
    ]


@pytest.mark.parametrize(("size", "flagged"), [(990.0, False), (1010.0, True)])
def test_massive_activations_default_is_a_thousand_times_the_median(size, flagged):
    h = np.ones((T, D))
    h[3, 4] = -size
    found = d.massive_activations(narrow(h)).flagged
    assert np.argwhere(found).tolist() == ([[3, 4]] if flagged else [])


@pytest.mark.parametrize(("size", "flagged"), [(99.0, False), (101.0, True)])
def test_massive_activations_default_is_a_hundred(size, flagged):
    h = np.full((T, D), 0.01)
    h[3, 4] = -size
    found = d.massive_activations(narrow(h)).flagged
    assert np.argwhere(found).tolist() == ([[3, 4]] if flagged else [])


def test_massive_activation_among_zeros():
    """Sun et al.: |h| > 100 and |h| > 1000 median |h|, which holds where the median is zero."""
    h = np.zeros((T, D))
    h[3, 4] = 200.0
    found = d.massive_activations(narrow(h))
    assert np.argwhere(found.flagged).tolist() == [[3, 4]]
    assert found.score[3, 4] == np.inf
    assert np.sum(found.score == 0.0) == T * D - 1
    assert np.isfinite(d.massive_activations(jnp.zeros((T, D))).score).all()


@pytest.mark.parametrize("q", [0.01, 0.2])
def test_calibrated_outliers(q):
    """Benjamini and Hochberg's procedure written as a loop over scipy's normal."""
    x = draw(40, 30)
    x[3, 4], x[20, 7], x[39, 29] = 8.0, -5.0, 4.0
    unit = np.median(np.abs(x)) / scipy.stats.norm.ppf(0.75)
    p = 2 * scipy.stats.norm.sf(np.abs(x) / unit)
    ranked, limit = np.sort(p.ravel()), 0.0
    for k, value in enumerate(ranked, 1):
        if value <= q * k / p.size:
            limit = value
    found = d.calibrated_outliers(narrow(x), q)
    np.testing.assert_array_equal(found.flagged, p <= limit)
    assert found.flagged[3, 4]
    np.testing.assert_allclose(found.score, -np.log10(p), rtol=1e-4, atol=1e-5)


def test_calibrated_outliers_follow_no_unit_and_find_nothing_in_constants():
    x = narrow(draw(40, 30))
    np.testing.assert_array_equal(
        d.calibrated_outliers(x, 0.3).flagged, d.calibrated_outliers(1024.0 * x, 0.3).flagged
    )
    for empty in (jnp.zeros((3, 4)), jnp.ones((3, 4)), jnp.ones((1, 1))):
        assert not np.any(d.calibrated_outliers(empty).flagged)


def test_nothing_is_found_in_noise():
    noise, w = narrow(draw(64, 64)), narrow(draw(128, 128))
    assert not np.any(d.activation_outliers(noise).flagged)
    assert not np.any(d.massive_activations(noise).flagged)
    assert not np.any(d.weight_outliers(w).flagged)
    uniform = np.tri(64) / np.arange(1, 65)[:, None]
    assert not np.any(d.attention_outliers(narrow(uniform[None])).flagged)


@pytest.mark.parametrize(
    "detect", [d.activation_outliers, d.weight_outliers, d.massive_activations]
)
@pytest.mark.parametrize("case", DEGENERATE)
def test_nothing_is_found_in_degenerate_tensors(detect, case):
    found = detect(narrow(DEGENERATE[case](T, D)))
    assert not np.any(found.flagged)
    assert np.all(np.isfinite(found.score))


# ------------------------------------------------------------- features and tensors


def test_six_sigma_outliers():
    """Off centre, so that the mean matters: 6 of its own standard deviations, not of the bulk's."""
    x = draw(40, 30) + 2.0
    x[3, 4], x[20, 7] = 12.0, -6.5
    found = d.six_sigma_outliers(narrow(x))
    np.testing.assert_allclose(found.score, np.abs(x - x.mean()) / x.std(), rtol=1e-4, atol=1e-4)
    assert np.argwhere(found.flagged).tolist() == [[3, 4], [20, 7]]
    assert np.argwhere(d.six_sigma_outliers(narrow(x), 9.0).flagged).tolist() == [[3, 4]]
    for constant in (jnp.zeros((3, 4)), jnp.full((3, 4), 2.5)):
        assert not d.six_sigma_outliers(constant).flagged.any()


def reaches(x):
    """x [L, T, D]: the share of layers with |x| >= 6, and the share of tokens, by channel."""
    layers, tokens, width = x.shape
    large = [[[abs(x[i, t, j]) >= 6.0 for t in range(tokens)] for i in range(layers)]
             for j in range(width)]  # fmt: skip
    deep = [mean([float(any(layer)) for layer in channel]) for channel in large]
    wide = [mean([float(each) for layer in channel for each in layer]) for channel in large]
    return deep, wide


def found_features(x):
    return d.outlier_features(jnp.stack([d.feature_reach(narrow(layer)) for layer in x]))


def test_outlier_features():
    """Dettmers et al.: a quarter of the layers, and 6 % of the tokens, both at once."""
    x = draw(8, 50, D)
    x[:2, ::2, 3] = -7.0  # 2 of 8 layers, 50 of 400 tokens
    x[0, :, 5] = 7.0  # enough tokens, one layer
    x[:, 0, 7] = 7.0  # every layer, 8 of 400 tokens: 2 %
    x[:3, :8, 9] = 6.0  # 3 layers, 24 of 400 tokens: exactly 6 %
    deep, wide = reaches(x)
    found = found_features(x)
    expected = [min(a / 0.25, b / 0.06) for a, b in zip(deep, wide, strict=True)]
    np.testing.assert_allclose(found.score, expected, rtol=1e-5)
    assert np.flatnonzero(found.flagged).tolist() == [3, 9]
    assert not np.any(found_features(0.85 * x).flagged)
    np.testing.assert_array_equal(d.feature_reach(narrow(x[0]), 7.0)[5], 1.0)


# ------------------------------------------------------------------ calibrated: nulls


def hochberg(p, q):
    """The procedure as a loop over ranks."""
    limit = 0.0
    for k, value in enumerate(sorted(p), 1):
        if value <= q * k / len(p):
            limit = value
    return [value <= limit for value in p]


@pytest.mark.parametrize("q", [0.01, 0.3])
def test_outliers_beside_a_null_that_was_seen(q):
    null = np.abs(draw(997, seed=3))
    score = np.concatenate([np.abs(draw(13)), [7.0, 9.0, null[5]]])
    p = [(1 + sum(other >= each for other in null)) / 998 for each in score]
    found = d.outliers_beside(narrow(score), narrow(null), q)
    np.testing.assert_allclose(found.score, -np.log10(p), rtol=1e-4, atol=1e-6)
    assert found.flagged.tolist() == hochberg(p, q)
    assert found.flagged[13]


def test_a_null_that_is_too_small_flags_nothing():
    """One of 16 scores at rate 0.01 needs 1599 numbers of the null."""
    score = np.zeros(16)
    score[3] = 9.0
    for size, flagged in ((1598, False), (1600, True)):
        null = np.linspace(0, 1, size)
        assert bool(d.outliers_beside(narrow(score), narrow(null)).flagged[3]) == flagged


def test_permutation_outliers_are_features_that_tokens_agree_on():
    key = jax.random.key(0)
    x = draw(17, D)
    assert not np.any(d.permutation_outliers(narrow(x), key).flagged)
    x[:, 4] *= 4.0  # in every token
    x[6] *= 40.0  # a large token is large in every feature
    x[6, 4] /= 160.0
    found = d.permutation_outliers(narrow(x / np.abs(x).max(-1, keepdims=True)), key)
    assert np.flatnonzero(found.flagged).tolist() == [4]
    assert not np.any(d.permutation_outliers(narrow(x), key).flagged)


def test_permutation_p_values_are_those_of_all_shuffles():
    """Two tokens with one large entry each: both in one feature of 5 has probability 1/5."""
    x = np.full((2, 5), 0.1)
    x[:, 2] = 1.0
    found = d.permutation_outliers(narrow(x), jax.random.key(1), shuffles=4000)
    # Of 5 features of a shuffle, one holds both with probability 1/5.
    np.testing.assert_allclose(10 ** -found.score[2], 1 / 25, rtol=0.15)


def test_permutations_are_of_energies():
    """9 + 0 is reached with the 3 alone, with probability 1/5; 3 + 0 would be by 2 + 2 too."""
    x = np.array([[3.0, 2.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0, 0.0]])
    found = d.permutation_outliers(narrow(x), jax.random.key(2), shuffles=4000)
    np.testing.assert_allclose(10 ** -found.score[0], 1 / 5, rtol=0.08)


def test_permutation_false_discoveries_are_rare():
    """20 tensors of noise of 13 features each at q = 0.05: one in 20 may have any."""
    detect = jax.jit(jax.vmap(lambda x, key: d.permutation_outliers(x, key, 200, 0.05).flagged))
    x = narrow(draw(60, 17, D, seed=5))
    found = np.asarray(detect(x, jax.random.split(jax.random.key(0), 60)))
    assert found.any(axis=1).sum() <= scipy.stats.binom.isf(1e-3, 60, 0.05)


# ----------------------------------------------------------------------------- experts


@pytest.mark.parametrize(("quantile", "share"), [(0.5, 0.1), (0.9, 0.4), (0.995, 0.1), (0.1, 0.9)])
def test_super_experts_against_a_loop(quantile, share):
    peak = np.abs(draw(4, 60, seed=3)) ** 3
    peak[1, 17] = 900.0
    peak[2, 5] = 80.0
    peak[3, 9] = 400.0
    found = d.super_experts(narrow(peak), quantile, share)
    ordered = sorted(entries(peak))
    at = quantile * (len(ordered) - 1)
    low, part = int(at), at - int(at)
    limit = ordered[low] + part * (ordered[low + 1] - ordered[low])
    for layer in range(4):
        for expert in range(60):
            value = peak[layer, expert]
            flagged = value > limit and value > share * ordered[-1]
            assert bool(found.flagged[layer, expert]) == flagged
            score = min(value / limit, value / (share * ordered[-1]))
            np.testing.assert_allclose(found.score[layer, expert], score, rtol=1e-5)


def test_a_super_expert_has_to_pass_both_bounds():
    """240 experts: two are above the 99.5% quantile, and one of them below a tenth of the other."""
    peak = np.ones((4, 60))
    peak[1, 17], peak[2, 5] = 900.0, 80.0
    assert np.argwhere(d.super_experts(narrow(peak)).flagged).tolist() == [[1, 17]]
    peak[2, 5] = 91.0
    assert np.argwhere(d.super_experts(narrow(-peak)).flagged).tolist() == [[1, 17], [2, 5]]
    assert (d.EXPERT_QUANTILE, d.EXPERT_SHARE) == (0.995, 0.1)
    scaled = d.super_experts(narrow(1e3 * peak))
    np.testing.assert_allclose(scaled.score, d.super_experts(narrow(peak)).score, rtol=1e-5)
    for even in (np.zeros((2, 3)), np.ones((2, 3))):
        assert not d.super_experts(narrow(even)).flagged.any()


# -------------------------------------------------------------------------------- the list


def test_a_name_with_a_tap_is_of_that_tap():
    taps = {each.name: each.tap for each in d.DETECTORS if "@" in each.name}
    assert len(taps) >= 2
    assert all(name.endswith(f"@{tap}") for name, tap in taps.items())


@pytest.mark.parametrize("detector", d.DETECTORS, ids=lambda detector: detector.name)
def test_detectors_accept_what_their_tap_gives(detector):
    sizes = {"T": T, "S": T, "N": N, "K": K, "H": H, "D": D, "F": 11}
    letters = TAPS[detector.tap].split(",")[0].split()
    value = narrow(np.abs(draw(*(sizes[letter] for letter in letters))))
    value = value if detector.reduce is None else jnp.stack([detector.reduce(value)] * 3)
    found = detector.fn(value)
    assert found.flagged.shape[-1] == {"tokens": T, "keys": T, "channels": D}[detector.of]
    assert found.score.shape == found.flagged.shape


@pytest.mark.parametrize("detector", d.DETECTORS, ids=lambda each: each.name)
def test_detectors_follow_the_order_of_channels_and_heads(detector):
    """Heads of attention in another order are the same keys; channels are flagged where they go."""
    weights = detector.tap == "attn_weights"
    value = attention() if weights else draw(T, D) * np.logspace(0, 4, D)
    moved = narrow(value[::-1] if weights else value[:, ::-1])
    plain, moved = (
        detector.fn(x if detector.reduce is None else detector.reduce(x)[None])
        for x in (narrow(value), moved)
    )
    back = slice(None, None, -1 if detector.of == "channels" else 1)
    assert np.any(plain.score > 0)
    np.testing.assert_array_equal(moved.flagged[..., back], plain.flagged)
    np.testing.assert_allclose(moved.score[..., back], plain.score, rtol=1e-5, atol=1e-6)


def test_detectors_have_names_and_labels_of_their_own():
    for each in ("name", "label"):
        assert len({getattr(detector, each) for detector in d.DETECTORS}) == len(d.DETECTORS)


@pytest.mark.parametrize("detector", d.DETECTORS, ids=lambda each: each.name)
def test_a_detector_of_narrow_numbers_is_that_of_their_values(detector):
    tensor = attention() if detector.tap == "attn_weights" else draw(T, D)
    x = jnp.asarray(tensor, jnp.bfloat16)
    pair = x, jnp.asarray(np.float32(x))
    if detector.reduce:  # of the one layer
        pair = [detector.reduce(each)[None] for each in pair]
    found, expected = map(detector.fn, pair)
    assert found.score.dtype == jnp.float32
    np.testing.assert_allclose(found.score, expected.score, rtol=1e-6)
    np.testing.assert_array_equal(found.flagged, expected.flagged)


# ------------------------------------------------------------------------------ dimensions


@pytest.mark.parametrize("quantile", [0.5, 0.9, 0.99])
@pytest.mark.parametrize("positions", [1, 6, 7])
def test_outlier_dimensions_against_a_loop(quantile, positions):
    x = draw(positions, 40)
    x[:, 3] += 9.0
    x[:, 17] -= 5.0
    found = d.outlier_dimensions(narrow(x), quantile)
    limit = np.quantile(np.abs(x), quantile)
    for at in range(40):
        score = np.median(np.abs(x[:, at])) / limit
        np.testing.assert_allclose(found.score[at], score, rtol=1e-5)
        assert bool(found.flagged[at]) == (score > 1)


def test_outlier_dimensions_is_about_what_is_usual():
    """One spike makes no outlier dimension, a smaller value at most positions does, and both signs
    count; at most 2 (1 - q) D dimensions can be flagged."""
    x = draw(51, 60)
    x[7, 3] = 1e4
    x[:26, 5] = 20.0
    x[:13, 5] = -20.0
    assert np.flatnonzero(d.outlier_dimensions(narrow(x)).flagged).tolist() == [5]
    assert d.DIMENSION_QUANTILE == 0.99
    x += 50.0 * np.arange(60)
    for quantile in (0.7, 0.9, 0.99):
        few = int(np.sum(d.outlier_dimensions(narrow(x), quantile).flagged))
        assert 0 < few <= 2 * (1 - quantile) * 60
    alone = d.outlier_dimensions(jnp.zeros((4, 200)).at[:, 7].set(0.1))  # the quantile is 0
    assert np.flatnonzero(alone.flagged).tolist() == [7]
    zeros = d.outlier_dimensions(jnp.zeros((4, 5)))
    assert not zeros.flagged.any()
    assert not zeros.score.any()


def test_normal_entries_have_the_score_of_the_docstring():
    score = d.outlier_dimensions(narrow(draw(400, 300))).score
    assert np.mean(score) == pytest.approx(0.6745 / 2.5758, abs=0.005)


@pytest.mark.parametrize(
    ("size", "shift", "flagged"), [(-2e3, 0, [4]), (990.0, 0, []), (2e3, 9, [])]
)
def test_massive_dimensions_need_all_three(size, shift, flagged):
    """The value, the median, and the deviation from it: states that are all near 9 have a spike
    of 200 medians that is 2,000 deviations away, and none that is both."""
    h = draw(T, D) / 0.6745
    h[3, 4] = size
    found = d.massive_dimensions(narrow(h + shift))
    entries_ = np.abs(h + shift)
    np.testing.assert_allclose(found.score, entries_.max(axis=0) / np.median(entries_), rtol=1e-4)
    assert np.flatnonzero(found.flagged).tolist() == flagged


def test_each_threshold_of_massive_dimensions_counts():
    """Median 0.1, median deviation 0.025: -150 is 1,500 medians and 6,000 deviations away."""
    h = np.linspace(0.05, 0.15, T * D).reshape(T, D)
    h[2, 5] = -150.0
    assert np.flatnonzero(d.massive_dimensions(narrow(h)).flagged).tolist() == [5]
    for lower, higher in (
        ({"value": 149.0}, {"value": 151.0}),
        ({"ratio": 1.4e3}, {"ratio": 1.6e3}),
    ):
        assert d.massive_dimensions(narrow(h), **lower).flagged.any()
        assert not d.massive_dimensions(narrow(h), **higher).flagged.any()
    assert d.massive_dimensions(narrow(h), deviation=5.8e3).flagged.any()
    assert not d.massive_dimensions(narrow(h), deviation=6.4e3).flagged.any()


OF_ONE = {
    d.activation_outliers: (T, D), d.massive_activations: (T, D), d.weight_outliers: (T, D),
    d.feature_reach: (T, D), d.outlier_dimensions: (T, D),
    d.attention_outliers: (N, T, T), d.super_experts: (T, D),
}  # fmt: skip


@pytest.mark.parametrize("detector", OF_ONE, ids=lambda detector: detector.__name__)
def test_a_batch_is_no_sequence(detector):
    """Its means would be over all of its sequences."""
    with pytest.raises(ValueError, match="of one sequence or matrix"):
        getattr(detector, "__wrapped__", detector)(jnp.ones((2, *OF_ONE[detector])))


def test_what_is_no_number_is_not_the_largest():
    h = draw(T, D)
    h[1, 2] = np.nan
    reach = np.asarray(d.feature_reach(narrow(h), 0.5))
    assert np.flatnonzero(np.isnan(reach)).tolist() == [2]
    many = draw(200, 50)  # of which one is beyond no quantile
    many[1, 2] = np.nan
    assert np.isnan(d.outlier_dimensions(narrow(many)).score).all()
    null = jnp.linspace(0.0, 1.0, 999)
    found = d.outliers_beside(jnp.asarray([jnp.nan, 2.0]), null)
    assert found.flagged.tolist() == [False, True]
    np.testing.assert_allclose(found.score, [np.nan, 3.0], rtol=1e-5)


def test_an_infinite_entry_stands_out():
    """As those of float16 beyond 65,504 are."""
    h = draw(T, D)
    h[1, 2] = np.inf
    assert np.flatnonzero(d.activation_outliers(narrow(h)).flagged).tolist() == [1]
    assert np.argwhere(d.six_sigma_outliers(narrow(h)).flagged).tolist() == [[1, 2]]
    for detector in (d.massive_activations, d.weight_outliers, d.super_experts):
        assert np.argwhere(detector(narrow(h)).flagged).tolist() == [[1, 2]]
    assert float(d.six_sigma_outliers(narrow(h)).score[1, 2]) == np.inf


def test_an_empirical_null_of_half_precision_has_the_p_value_of_its_numbers():
    null = jnp.arange(2000, dtype=jnp.float16)
    found = d.outliers_beside(jnp.asarray([1999.0], jnp.float16), null, 0.5)
    np.testing.assert_allclose(found.score, -np.log10(2 / 2001), rtol=1e-5)
