"""Outlier dimensions of planted models against loops in float64, for heads of every kind."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sysout_jax.analysis.locate.scan import Thresholds, scan
from sysout_jax.analysis.measure import predictions as pred
from sysout_jax.analysis.measure.dimensions import (
    chosen_positions,
    dimensions,
    final_states,
    residual_peaks,
)
from sysout_jax.analysis.statistics import bootstrap_interval
from sysout_jax.errors import InputError
from sysout_jax.model.decoder import forward, init, unstack_blocks
from tests.analysis import planted as p

ROWS = p.rows()
PLANTED = (4, 9)  # dimensions with large gains
MIDDLE = tuple(range(50, 101))  # the second half of 101 positions
QUANTILE = Thresholds(dimension_quantile=0.9)
# What a head can be: plain, capped, tied, with a bias, through another width; norms of either kind.
HEADS = {
    "plain": {},
    "capped": {"final_softcap": 3.0},
    "tied": {"tied": True, "norm_plus_one": True, "norm_placement": "sandwich"},
    "biased": {"head_bias": True, "norm": "layer", "bias": True, "logit_scale": 0.5},
    "narrow": {"embed_width": 12, "norm_placement": "post"},
    "bare": {"norm_scale": False},
    "mixture": {"experts": 3},
}


@cache
def made(name):
    """A config, and parameters whose final norm makes `PLANTED` large where it has gains."""
    config = dataclasses.replace(p.CONFIG, layers=2, **HEADS[name])
    drawn = jax.tree.map(np.array, init(config, jax.random.key(1)))
    if "scale" in drawn.get("final_norm", {}):
        scale = drawn["final_norm"]["scale"]
        scale[...] = 0.5 + np.random.default_rng(2).random(scale.shape)
        scale[..., list(PLANTED)] = 20.0
        if config.norm == "layer":  # what a mean of zero would hide
            drawn["final_norm"]["bias"][..., PLANTED[0]] = 9.0
    else:  # the stream itself is large there
        drawn["embed_in" if config.embed_width else "embed"][:, list(PLANTED)] *= 30.0
    if "head" in drawn:
        drawn["head"][7] *= 30.0  # an outlier dimension of the head
    if "head_bias" in drawn:
        drawn["head_bias"][:] = np.random.default_rng(3).standard_normal(config.vocab)
    return config, jax.tree.map(jnp.asarray, drawn)


@cache
def scanned():
    """Of the planted model: only the peaks beside the dimensions are read from it."""
    return scan(p.CONFIG, p.params(), ROWS[:, :-1])


def of(config, params, *positions, **given):
    return dimensions(
        config, params, ROWS, *positions, **{"thresholds": QUANTILE, "found": scanned()} | given
    )


@cache
def found(name):
    return of(*made(name), batch=4)


def mine(result):
    """The outlier dimensions in order."""
    return sorted(each.index for each in result.dimensions)


def by_hand(name):
    """Final states of the second half [B, P, D] and the head's matrix and bias, in float64."""
    config, params = made(name)
    taps = {"final_norm": lambda x: x}
    x = forward(config, params, jnp.asarray(ROWS[:, :-1]), taps)[1]["final_norm"]
    p64 = {key: np.asarray(v, np.float64) for key, v in params.items() if hasattr(v, "shape")}
    w = p64["embed"].T if config.tied else p64["head"]
    if config.embed_width:
        w = p64["embed_out"] @ w
    bias, scale = p64.get("head_bias", np.zeros(config.vocab)), config.logit_scale
    return np.asarray(x, np.float64)[:, MIDDLE], scale * w, scale * bias


def soft(z):
    e = np.exp(z - z.max())
    return e / e.sum()


def readouts(x, w, b, cap, keep):
    """[B, P] of each readout, prediction by prediction, with the dimensions in `keep` alone."""
    targets = ROWS[:, 51:]
    out = {key: np.zeros(x.shape[:2]) for key in ("kl", "entropy", "surprisal", "top")}
    for text in range(x.shape[0]):
        for at in range(x.shape[1]):
            whole, part = (
                z if cap is None else cap * np.tanh(z / cap)
                for z in (x[text, at] @ w + b, (x[text, at] * keep) @ w + b)
            )
            before, after = soft(whole), soft(part)
            out["kl"][text, at] = np.sum(before * np.log(before / after))
            out["entropy"][text, at] = -np.sum(after * np.log(after))
            out["surprisal"][text, at] = -np.log(after[targets[text, at]])
            out["top"][text, at] = np.argmax(part)
    out["accuracy"] = (out["top"] == targets).astype(float)
    return out


# ------------------------------------------------------------------------------ detection


@pytest.mark.parametrize("name", HEADS)
def test_which_dimensions_against_their_definition(name):
    x = by_hand(name)[0].reshape(-1, 32)
    limit = np.quantile(np.abs(x), 0.9)
    scores = np.median(np.abs(x), axis=0) / limit
    result = found(name)
    np.testing.assert_allclose(result.scores, scores, rtol=1e-4)
    assert [each.index for each in result.dimensions] == [
        d for d in np.argsort(-scores) if scores[d] > 1
    ]
    assert set(mine(result)) >= set(PLANTED)
    for each in result.dimensions:
        column = x[:, each.index]
        assert each.median == pytest.approx(np.median(np.abs(column)), rel=1e-4)
        rms = np.sqrt(np.mean(column**2))
        assert each.constancy == pytest.approx(abs(column.mean()) / rms, rel=1e-3, abs=1e-5)
    energy = np.sum(x[:, mine(result)] ** 2) / np.sum(x**2)
    assert result.energy == pytest.approx(energy, rel=1e-4)
    squares = np.mean(x**2, axis=0)
    kurtosis = np.mean((squares / squares.mean()) ** 2)
    assert result.kurtosis == pytest.approx(kurtosis, rel=1e-4)
    assert (result.most, result.texts, result.positions) == (6, p.B, MIDDLE)


def test_the_interval_of_their_number_is_over_texts():
    """A dimension that is large in half of the texts is flagged in some resamples only."""
    x = np.random.default_rng(0).standard_normal((6, 5, 40))
    x[:, :, 3] += 30.0
    x[:3, :, 8] += 30.0
    picked = np.random.default_rng(0).integers(0, 6, (100, 6))
    expected = []
    for which in (np.arange(6), *picked):
        size = np.abs(x[which]).reshape(-1, 40)
        expected.append(np.median(size, axis=0) > np.quantile(size, 0.9))
    from sysout_jax.analysis.measure import dimensions as module

    found = module._stability(x, 0.9)
    np.testing.assert_array_equal(found, expected)
    assert found[1:, 3].all()
    assert 0.2 < found[1:, 8].mean() < 0.95
    assert not found[:, 0].any()


@pytest.mark.parametrize("name", ["plain", "tied", "biased", "bare", "narrow"])
def test_gains(name):
    config, params = made(name)
    result = found(name)
    if name in ("bare", "narrow"):
        assert result.gains is None
        assert all(each.gain is None for each in result.dimensions)
        return
    scale = np.asarray(params["final_norm"]["scale"], np.float64) + config.norm_plus_one
    rest = np.delete(np.abs(scale), mine(result))
    assert result.gains == pytest.approx(np.abs(scale[mine(result)]).mean() / rest.mean())
    for each in result.dimensions:
        assert each.gain == pytest.approx(abs(scale[each.index]) / np.abs(scale).mean())


@pytest.mark.parametrize("name", ["plain", "mixture"])
def test_singular_vectors(name):
    _, params = made(name)
    w = np.asarray(params["blocks"]["mlp"]["down"][-1], np.float64).reshape(-1, 32)
    _, values, vectors = np.linalg.svd(w)
    for at, vector in enumerate(found(name).vectors):
        assert vector.share == pytest.approx(values[at] ** 2 / np.sum(values**2), rel=1e-4)
        on = np.sum(vectors[at, mine(found(name))] ** 2)
        assert vector.on_outliers == pytest.approx(on, rel=1e-4)
    assert len(found(name).vectors) == 3


# ---------------------------------------------------------------------------- predictions


@pytest.mark.parametrize("name", HEADS)
def test_predictions_without_them_and_with_them_alone(name):
    config, _ = made(name)
    x, w, b = by_hand(name)
    result = found(name)
    whole = readouts(x, w, b, config.final_softcap, np.ones(32))
    size = np.abs(w)
    of_head = np.median(size, axis=1) > np.quantile(size, 0.9)
    assert [(e.of, e.draw, e.kept) for e in result.ablations][:3] == [
        ("", None, False), ("outlier dimensions", None, False), ("outlier dimensions", None, True),
    ]  # fmt: skip
    assert [e.draw for e in result.ablations if e.of == "random dimensions" and e.kept] == [
        0, 1, 2, 3, 4,
    ]  # fmt: skip
    for each in result.ablations:
        if each.of == "random dimensions":
            others = np.delete(np.arange(32), mine(result))
            chosen = np.random.default_rng(each.draw).choice(
                others, len(mine(result)), replace=False
            )
        else:
            at = {"": [], "outlier dimensions": mine(result), "those of the head": of_head}[each.of]
            chosen = np.arange(32)[at]
        inside = np.isin(np.arange(32), chosen)
        expected = readouts(x, w, b, config.final_softcap, inside if each.kept else ~inside)
        assert each.count == inside.sum()
        assert each.distinct == len(np.unique(expected["top"]))
        for key in ("kl", "entropy", "surprisal", "accuracy"):
            assert each.values[key].mean == pytest.approx(expected[key].mean(), abs=2e-5), key
            texts = (expected[key] - whole[key]).mean(axis=1)
            change = bootstrap_interval(texts)
            np.testing.assert_allclose(each.changes[key], change, atol=5e-5)


def test_the_head_s_own_outlier_dimensions():
    overlap = found("plain").overlaps[2]
    assert overlap.dimensions == (7,)
    assert overlap.shared == 0
    assert overlap.expected == pytest.approx(2 * 1 / 32)
    assert overlap.p_value == 1.0
    assert {e.count for e in found("plain").ablations if e.of == "those of the head"} == {1}


@pytest.mark.parametrize("name", ["plain", "capped", "biased"])
def test_parts_of_the_logit(name):
    """Before the cap, over the vocabulary's mean, the parts add up to the whole."""
    x, w, b = by_hand(name)
    split, chosen = found(name).split, mine(found(name))
    own, rest = [], []
    for state in x.reshape(-1, 32):
        z = state @ w + b
        part = state[chosen] @ w[chosen]
        top = np.argmax(z)
        own.append(part[top] - part.mean())
        rest.append((z - part)[top] - (z - part).mean())
    assert split.outliers.mean == pytest.approx(np.mean(own), rel=1e-4)
    assert split.rest.mean == pytest.approx(np.mean(rest), rel=1e-4, abs=1e-4)
    assert split.outliers.low < split.outliers.mean < split.outliers.high


def test_the_cap_changes_what_is_lost():
    """The same parameters without the cap: other divergences, the same likeliest tokens."""
    plain, capped = ({(e.of, e.draw, e.kept): e for e in found(n).ablations} for n in HEADS_ALIKE)
    for key, each in capped.items():
        assert each.distinct == plain[key].distinct
        assert each.values["accuracy"] == plain[key].values["accuracy"]
    key = ("outlier dimensions", None, False)
    assert capped[key].values["kl"].mean < 0.9 * plain[key].values["kl"].mean


HEADS_ALIKE = ("plain", "capped")

# ---------------------------------------------------------------------------- frequencies


def test_frequencies_against_a_fit_by_hand():
    predicted = np.array([9, 0, 3, 1, 4, 0, 2])
    corpus = np.array([90, 7, 10, 0, 33, 2, 12])
    slope, rank = pred.frequency_fit(predicted, corpus)
    both = [0, 2, 4, 6]
    line = stats.linregress(np.log(corpus[both]), np.log(predicted[both]))
    assert slope == pytest.approx(line.slope)
    assert rank == pytest.approx(stats.spearmanr(corpus[both], predicted[both])[0])
    doubled = pred.frequency_fit(3 * corpus, corpus)
    np.testing.assert_allclose(doubled, (1.0, 1.0))


@pytest.mark.parametrize("predicted", [[1, 2, 0, 0], [3, 3, 3, 3], [0, 0, 0, 0]])
def test_frequencies_that_have_no_fit(predicted):
    assert np.isnan(pred.frequency_fit(np.array(predicted), np.array([4, 5, 6, 7]))).all()


def test_frequencies_of_resampled_texts():
    likeliest = np.random.default_rng(1).integers(0, 6, (5, 40))
    corpus = np.array([5, 1, 9, 2, 30, 4, 8])
    draws = pred.frequency_draws(likeliest, corpus, 20)
    picked = np.random.default_rng(0).integers(0, 5, (20, 5))
    for row, which in zip(draws, (range(5), *picked), strict=True):
        counts = np.bincount(np.concatenate([likeliest[i] for i in which]), minlength=7)
        np.testing.assert_allclose(row, pred.frequency_fit(counts, corpus))
    interval = pred.of_draws(draws[:, 0])
    assert interval.mean == draws[0, 0]
    away = draws[1:, 0] - draws[1:, 0].mean()
    bounds = draws[0, 0] + np.quantile(away, [0.025, 0.975])
    np.testing.assert_allclose((interval.low, interval.high), bounds)
    assert np.isnan(pred.of_draws(np.array([1.0, 2.0, np.nan])).low)


def test_frequencies_of_a_corpus_or_of_the_rows():
    config, params = made("plain")
    counts = np.arange(1, 20) ** 2
    given = of(config, params, frequencies=counts)
    x, w, b = by_hand("plain")
    top = np.argmax(x @ w + b, axis=-1)
    predicted = np.bincount(top.ravel(), minlength=19)
    slope = pred.frequency_fit(predicted, counts)[0]
    assert given.ablations[0].values["slope"].mean == pytest.approx(slope)
    own = pred.frequency_fit(predicted, np.bincount(ROWS.ravel(), minlength=19))[0]
    assert found("plain").ablations[0].values["slope"].mean == pytest.approx(own)
    assert own != pytest.approx(slope)


# ------------------------------------------------------------------------- beside massive


def test_a_peak_over_a_median_of_zero_is_the_largest():
    site = scanned().block_out
    peak = np.zeros_like(site.feature_peak)
    peak[0, :, 3] = 5000.0
    site = dataclasses.replace(site, median=0 * site.median, feature_peak=peak)
    peaks = residual_peaks(dataclasses.replace(scanned(), block_out=site))
    assert peaks[3] == np.inf
    assert not np.delete(peaks, 3).any()


def test_massive_channels_beside_them():
    """In the planted model channel 5 has massive activations; it is no outlier dimension."""
    drawn = jax.tree.map(np.array, p.params())
    drawn["final_norm"]["scale"][[4, 9]] = 20.0
    model = jax.tree.map(jnp.asarray, drawn)
    result = of(p.CONFIG, model)
    massive, largest, _ = result.overlaps
    assert {each.index for each in result.dimensions} >= {4, 9}
    assert massive.dimensions == (p.CHANNEL,)
    assert not any(each.massive for each in result.dimensions if each.index != p.CHANNEL)
    site = scanned().block_out
    peaks = np.max(np.mean(site.feature_peak / site.median[..., None], axis=1), axis=0)
    np.testing.assert_allclose(result.peaks, peaks, rtol=1e-5)
    count = len(result.dimensions)
    assert largest.dimensions == tuple(sorted(np.argsort(-peaks)[:count]))
    assert massive.expected == pytest.approx(count / 32)
    hit = massive.shared
    assert massive.p_value == pytest.approx(1.0 if not hit else count / 32)


# -------------------------------------------------------------------- any model, any text


@pytest.mark.parametrize("name", ["plain", "mixture"])
def test_unrolled_layers_give_the_same(name):
    config, params = made(name)
    loose = config.with_execution(scan_layers=False)
    one = of(loose, unstack_blocks(params), batch=3)
    np.testing.assert_allclose(one.scores, found(name).scores, rtol=1e-4)
    for one_, its in zip(one.ablations, found(name).ablations, strict=True):
        np.testing.assert_allclose(one_.values["kl"], its.values["kl"], rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(
        [v.on_outliers for v in one.vectors],
        [v.on_outliers for v in found(name).vectors],
        rtol=1e-3,
    )


def test_positions_are_those_that_are_asked_for():
    config, params = made("plain")
    states = final_states(config, params, ROWS, (100, 3), batch=4)
    x = forward(config, params, jnp.asarray(ROWS[:, :-1]), {"final_norm": None})[1]["final_norm"]
    np.testing.assert_allclose(states, np.asarray(x)[:, [100, 3]], rtol=1e-4, atol=1e-5)
    one = of(config, params, (99,))
    assert one.positions == (99,)
    assert chosen_positions(None, 5) == (2, 3, 4)


@pytest.mark.parametrize("given", [(), (101,), (-1,), (3, 3)])
def test_positions_that_are_not_there(given):
    with pytest.raises(InputError, match=r"dimension_positions=.*some of 0 to 100, none twice"):
        chosen_positions(given, 101)


@pytest.mark.parametrize("quantile", [0.0, 1.0, -0.1, float("nan")])
def test_quantiles_that_are_none(quantile):
    with pytest.raises(InputError, match="dimension_quantile"):
        Thresholds(dimension_quantile=quantile)


def test_more_than_half_of_the_dimensions():
    """There are not as many others to draw at random, and none are drawn."""
    flagged = np.arange(8) < 5
    assert [name for name, _, _ in pred.ablation_sets(flagged, np.zeros(8, bool))] == [
        pred.OUTLIERS
    ]
    drawn = pred.ablation_sets(np.arange(8) < 4, np.zeros(8, bool))
    assert [numbers.tolist() for _, _, numbers in drawn[1:]] == [[4, 5, 6, 7]] * pred.RANDOM_SETS


def test_nothing_is_found_where_nothing_can_be():
    """0.99 leaves room for 0.64 of 32 dimensions: no ablation of them, no split."""
    config, params = made("plain")
    result = of(config, params, thresholds=Thresholds())
    assert (result.most, result.dimensions, result.split, result.energy) == (0, (), None, 0.0)
    assert {each.of for each in result.ablations} <= {"", "those of the head"}
    assert result.count.high == 0
    assert result.overlaps[1].dimensions == ()


def test_checkpoints():
    config, params = made("plain")
    other = init(config, jax.random.key(9))
    calls = []
    result = of(
        config, params, checkpoints=[(0, other), (7, params)], total=2,
        progress=lambda done, total: calls.append((done, total)),
    )  # fmt: skip
    first, last = result.stages
    alone = of(config, other)
    assert (first.step, last.step) == (0, 7)
    assert first.dimensions == tuple(sorted(each.index for each in alone.dimensions))
    assert first.largest == pytest.approx(alone.scores.max(), rel=1e-5)
    assert first.kurtosis == pytest.approx(alone.kurtosis, rel=1e-5)
    assert last.dimensions == PLANTED
    assert last.shared == 1.0
    union = set(first.dimensions) | set(PLANTED)
    assert first.shared == len(set(first.dimensions) & set(PLANTED)) / len(union)
    np.testing.assert_allclose(last.kl, result.ablations[1].values["kl"], rtol=1e-4)
    assert calls[-1] == (2, 2)
