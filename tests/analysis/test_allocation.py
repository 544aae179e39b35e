"""More bits for some matrices: what stands out and climbs, against loops and published bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sysout_jax.analysis.compress import allocation, schemes
from sysout_jax.analysis.compress.compression import Compressor
from sysout_jax.analysis.compress.rounding import Basis, round_weights
from sysout_jax.analysis.compress.schemes import scheme
from sysout_jax.core import quantise
from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import forward, init

CONFIG = ModelConfig(
    vocab=17, layers=6, width=32, heads=2, mlp_width=64, context=16, mlp="swiglu", norm="rms",
    position="rope", bias=False,
)  # fmt: skip
HOW = scheme("zero-w3-g32")


@pytest.fixture(scope="module")
def compressor():
    params = init(CONFIG, jax.random.key(0))
    rows = np.random.default_rng(0).integers(0, 17, (3, 13)).astype(np.int32)
    return Compressor(CONFIG, params, rows, batch=2)


def only_layer(params, changed, layer, names):
    """The parameters with the matrices of one layer taken from others."""
    key = f"block_{layer}"
    mixed = {
        module: {name: (changed if name in names else params)[key][module][name] for name in of}
        for module, of in params[key].items()
    }
    return {**params, key: mixed}


def test_bits_are_the_published_ones():
    names = [f"w{bits}-g{group}" for bits in (2, 3, 4, 8) for group in (128, 64, 32)]
    found = [round(schemes.bits(scheme(name)), 2) for name in names]
    assert found == [2.13, 2.25, 2.51, 3.13, 3.25, 3.51, 4.13, 4.25, 4.51, 8.13, 8.25, 8.51]
    assert allocation.climbed(scheme("hqq-w3-g64"), 2) == scheme("hqq-w4-g128")
    assert allocation.climbed(scheme("w8-g64"), 5) == scheme("w8-g32")


@pytest.mark.parametrize("method", ["w3", "w5-g64", "w3-g16", "a8", "magnitude-0.5", "we4m3-g64"])
def test_what_has_no_rung_is_refused(method):
    with pytest.raises(InputError, match=f"{method} has no rung"):
        allocation.on_ladder(method, scheme(method))


@pytest.mark.parametrize("part", allocation.PARTS)
def test_sensitivity_is_that_of_one_layer_alone(compressor, part):
    """Only the part of one layer is rounded, and the whole model is run."""
    found = allocation.sensitivity(compressor, HOW, compressor.calibration)[part]
    tap, names = allocation.PARTS[part]
    changed = compressor.compress(HOW).params
    tokens = jnp.asarray(compressor.calibration[:, :-1])
    _, before = forward(CONFIG, compressor.params, tokens, {tap: None})
    for layer in range(CONFIG.layers):
        params = only_layer(compressor.params, changed, layer, names)
        _, after = forward(CONFIG, params, tokens, {tap: None})
        error = np.float64(after[tap][layer]) - np.float64(before[tap][layer])
        assert found[layer] == pytest.approx(np.mean(error**2), rel=1e-3)


def test_steps_by_a_loop():
    values = np.array([1.0, 1.1, 1.0, 1.2, 9.0, 1.0] + [1.0, 1.1] * 12)
    for ratio in (True, False):
        taken = [
            values[n] / values[n - 1] if ratio else values[n] - values[n - 1]
            for n in range(1, len(values))
        ]
        kept = sorted(taken)[1:-1]  # 5% of 29 is one at either end
        mean = sum(kept) / len(kept)
        sd = (sum((x - mean) ** 2 for x in kept) / (len(kept) - 1)) ** 0.5
        expected = [(x - mean) / sd for x in taken]
        found = allocation.steps(values, ratio)
        assert found[0] == -np.inf
        np.testing.assert_allclose(found[1:], expected, rtol=1e-9)
        assert np.argmax(found) == 4
    for values in (np.ones(6), np.ones(1), np.array([1.0, 9.0])):
        assert (allocation.steps(values, ratio=True) == -np.inf).all()


def test_a_layer_without_error_hides_no_other_step():
    """The step from 0 is infinite and stands out; the others are as if it were not there."""
    rest = np.array([1.0, 1.1, 1.0, 1.2, 9.0, 9.1])
    found = allocation.steps(np.concatenate([[0.0], rest]), ratio=True)
    assert found[1] == np.inf
    np.testing.assert_allclose(found[2:], allocation.steps(rest, ratio=True)[1:])
    assert (allocation.steps(np.zeros(5), ratio=True) == -np.inf).all()


@pytest.mark.parametrize(("layers", "flagged"), [(11, 0), (12, 1)])
def test_how_many_layers_it_takes_to_stand_out(layers, flagged):
    """The largest z of n steps is that of one step among n - 1 equal ones."""
    z = allocation.steps(np.cumsum([0.0] * (layers - 1) + [1.0]), ratio=False)
    assert (z > allocation.STANDS_OUT).sum() == flagged
    n = layers - 1
    assert z.max() == pytest.approx((n - 1) / n**0.5)


def test_kurtoses_are_of_all_entries(compressor):
    found = allocation.kurtoses(compressor)
    assert set(found) == {"query", "key", "value", "out", "gate", "up", "down"}
    w = np.float64(compressor.params["block_3"]["mlp"]["down"]).ravel()
    assert found["down"][3] == pytest.approx(np.mean((w - w.mean()) ** 4) / w.var() ** 2, rel=1e-4)
    assert stats.kurtosis(w, fisher=False) == pytest.approx(found["down"][3], rel=1e-4)


def test_controls_share_what_they_control(compressor, monkeypatch):
    """However many seeds there are, sensitivity is measured once."""
    asked = []

    def sensitivity(*_):
        asked.append(1)
        return dict.fromkeys(allocation.PARTS, np.arange(1.0, 7.0))

    monkeypatch.setattr(allocation, "sensitivity", sensitivity)
    kinds = ("random:0", "random:1", "sensitivity")
    allocation.boosts(compressor, HOW, kinds, compressor.calibration, top=3)
    assert len(asked) == 1


def test_controls_have_the_bits_of_what_they_control(compressor):
    kinds = ("sensitivity", "kurtosis", "first_last", "random:0", "random:1")
    made = allocation.boosts(compressor, HOW, kinds, compressor.calibration, rungs=2, top=3)
    first = made["sensitivity"]
    assert any(first.layers.values())
    for seed in ("random:0", "random:1"):
        for name, of in first.layers.items():
            assert len(made[seed].layers[name]) == len(of) == len(set(made[seed].layers[name]))
        assert made[seed].bits == pytest.approx(first.bits)
    assert made["random:0"].layers != made["random:1"].layers
    assert set(made["first_last"].layers.values()) == {(0, 5)}
    z = made["kurtosis"].z
    best = sorted(((z[name][n], name, n) for name in z for n in range(1, 6)), reverse=True)[:3]
    climbing = {(name, n) for name, of in made["kurtosis"].layers.items() for n in of}
    assert climbing == {(name, n) for _, name, n in best}


def test_bits_are_counted_by_weights(compressor):
    (boost,) = allocation.boosts(
        compressor, HOW, ("first_last",), compressor.calibration, rungs=3
    ).values()
    sizes = {name: of[0].size for name, of in compressor.matrices().items()}
    low, high = schemes.bits(HOW), schemes.bits(allocation.climbed(HOW, 3))
    assert boost.bits == pytest.approx(low + (high - low) * 2 / CONFIG.layers)
    assert sum(sizes.values()) == 4 * 32 * 32 + 3 * 32 * 64


def test_a_budget_is_used_and_not_exceeded(compressor):
    low = schemes.bits(HOW)
    taken = []
    for budget in (low + 1e-4, low + 0.05, low + 0.3):
        (boost,) = allocation.boosts(
            compressor, HOW, ("kurtosis",), compressor.calibration, budget=budget
        ).values()
        assert boost.bits <= budget
        taken.append(sum(map(len, boost.layers.values())))
    assert taken[0] == 0 < taken[1] < taken[2]


def test_only_what_climbs_is_rounded_otherwise(compressor):
    boost = allocation.Boost("kurtosis", {}, {"down": (2,), "query": (0, 5)}, 0.0)
    higher = allocation.schemes_of(HOW, boost, 3)
    low, mixed = compressor.compress(HOW), compressor.compress(HOW, higher)
    high = compressor.compress(allocation.climbed(HOW, 3))
    for layer in range(CONFIG.layers):
        for module, of in mixed.params[f"block_{layer}"].items():
            for name, x in of.items():
                source = high if (name, layer) in higher else low
                assert (x == source.params[f"block_{layer}"][module][name]).all()


@pytest.mark.parametrize("kind", ["size", "random", "random:x", "random:-1", "sensitivity:1", ""])
def test_what_is_no_boost_is_refused(kind):
    with pytest.raises(InputError, match="sensitivity, kurtosis, first_last, random:SEED"):
        allocation.check_kind(kind)


# ----------------------------------------------------------------------- half-quadratic


def by_loop(w, bits, rounds=20):
    """The alternating steps on one group, in float64."""
    top = 2**bits - 1
    s = top / (w.max() - w.min())
    z = -w.min() * s
    best, least = z, np.inf
    for n in range(rounds):
        whole = np.clip(np.round(s * w + z), 0, top)
        left = w - (whole - z) / s
        if np.abs(left).mean() < least:
            best, least = z, np.abs(left).mean()
        beta = 10.0 * 1.01**n
        e = np.array(
            [0.0 if x == 0 else np.sign(x) * max(abs(x) - abs(x) ** -0.3 / beta, 0.0) for x in left]
        )
        z = np.mean(whole - s * (w - e))
    return (np.clip(np.round(s * w + best), 0, top) - best) / s


@pytest.mark.parametrize("bits", [2, 3, 4])
def test_half_quadratic_by_a_loop(bits):
    w = np.float32(np.random.default_rng(bits).standard_t(3, (5, 64)))
    found = quantise.half_quadratic(jnp.asarray(w), bits)
    for row, back in zip(np.float64(w), np.asarray(found), strict=True):
        errors = [np.abs(row - each).mean() for each in (back, by_loop(row, bits))]
        assert errors[0] == pytest.approx(errors[1], rel=0.02)  # a tie rounds either way
    start = quantise.half_quadratic(jnp.asarray(w), bits, rounds=1)
    assert np.abs(found - w).mean() < np.abs(start - w).mean()


def test_more_rounds_are_never_worse():
    """The best zero point of each row is kept, not the last."""
    w = jnp.asarray(np.random.default_rng(0).standard_t(3, (5, 64)), jnp.float32)
    found = [quantise.half_quadratic(w, 3, rounds) for rounds in range(1, 21)]
    errors = np.stack([np.abs(each - w).mean(axis=1) for each in found])
    assert (np.diff(errors, axis=0) <= 1e-7).all()


def test_a_shorter_last_group_is_rounded_by_itself():
    """576 inputs in groups of 128: the last 64 share a zero point with nothing else."""
    w = np.random.default_rng(0).standard_t(3, (80, 5)).astype(np.float32) + 1.0
    found = round_weights(scheme("hqq-w3-g32"), jnp.asarray(w), Basis())
    alone = [
        np.abs(quantise.half_quadratic(jnp.asarray(w[at].T), 3).T - w[at]).mean(axis=0)
        for at in (slice(0, 32), slice(32, 64), slice(64, 80))
    ]
    errors = [np.abs(found[at] - w[at]).mean(axis=0) for at in (slice(0, 32), slice(32, 64))]
    np.testing.assert_allclose(
        [*errors, np.abs(found[64:] - w[64:]).mean(axis=0)], alone, rtol=0.02
    )  # a tie rounds either way


def test_half_quadratic_leaves_what_is_constant():
    w = jnp.full((2, 8), 0.3)
    assert (quantise.half_quadratic(w, 3) == w).all()
