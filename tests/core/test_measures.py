"""Every measure against a loop written from its definition, and on planted truth."""

import inspect
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from sysout_jax.core import measures as m
from sysout_jax.core.recorded import MEASURES
from sysout_jax.model.taps import TAPS

T, D, N, K, H = 7, 13, 3, 2, 5


def draw(*shape, seed=0, scale=1.0):
    """Random float64 numbers that float32 represents."""
    x = scale * np.random.default_rng(seed).standard_normal(shape)
    return x.astype(np.float32).astype(np.float64)


def narrow(x):
    return jnp.asarray(x, jnp.float32)


def attention(n=N, t=T, seed=0):
    """Causal rows that sum to one."""
    weights = np.exp(draw(n, t, t, seed=seed, scale=2.0)) * np.tri(t)
    return weights / weights.sum(-1, keepdims=True)


# ------------------------------------------------------------ definitions, entry by entry


def entries(x):
    return [abs(value) for value in x.ravel().tolist()]


def median(values):
    values = sorted(values)
    middle = len(values) // 2
    return values[middle] if len(values) % 2 else (values[middle - 1] + values[middle]) / 2


def mean(values):
    return math.fsum(values) / len(values)


def norms(x):
    return [math.sqrt(math.fsum(v * v for v in row)) for row in x.tolist()]


def mmr(x):
    ratios = []
    for row in x.tolist():
        centred = [abs(value - mean(row)) for value in row]
        ratios.append(max(centred) / median(centred))
    return mean(ratios)


def rms_kurtosis(x):
    everything = mean([value**2 for value in entries(x)])
    return mean([(mean([v * v for v in column]) / everything) ** 2 for column in x.T.tolist()])


def kurtosis(x):
    values = x.ravel().tolist()
    mu = mean(values)
    variance = mean([(v - mu) ** 2 for v in values])
    return mean([(v - mu) ** 4 for v in values]) / variance**2


def spectrum(x):
    """The squared singular values as shares, in float64."""
    shares = scipy.linalg.svdvals(np.asarray(x, np.float64)) ** 2
    return (shares / shares.sum()).tolist()


def peak(h, sink=0):
    lengths = norms(h)
    return lengths[sink] / mean(lengths[:sink] + lengths[sink + 1 :])


def drain(v, sink=0):
    return [peak(v[:, head], sink) for head in range(v.shape[1])]


def strength(weights, key=0):
    n, t, _ = weights.shape
    return [sum(weights[i, q, key] for q in range(key, t)) / (t - key) for i in range(n)]


def rate(weights, key=0, eps=0.3):
    return mean([float(a > eps) for a in strength(weights, key)])


def largest_is_first(weights):
    n, t, _ = weights.shape
    hits = [max(weights[i, q]) == weights[i, q, 0] > 0 for i in range(n) for q in range(1, t)]
    return mean([float(hit) for hit in hits])


DEFINITIONS = {
    "top1": (m.top1, lambda h: max(entries(h))),
    "top1_over_median": (m.top1_over_median, lambda h: max(entries(h)) / median(entries(h))),
    "top1_over_mean": (m.top1_over_mean, lambda h: max(entries(h)) / mean(entries(h))),
    "max_median_ratio": (m.max_median_ratio, mmr),
    "neuron_rms_kurtosis": (m.neuron_rms_kurtosis, rms_kurtosis),
    "tensor_kurtosis": (m.tensor_kurtosis, kurtosis),
    "residual_peak": (m.residual_peak, peak),
}
APART = {  # what depends on the order of tokens, or is found by iteration
    "first_token_kurtosis": (m.first_token_kurtosis, lambda h: kurtosis(h[0])),
    "other_token_kurtosis": (
        m.other_token_kurtosis,
        lambda h: mean([kurtosis(row) for row in h[1:]]),
    ),
    "spectral_dominance": (m.spectral_dominance, lambda h: max(spectrum(h))),
    "matrix_entropy": (m.matrix_entropy, lambda h: -sum(p * math.log(p) for p in spectrum(h))),
}


def effect(first, mix):
    """Query by query: norms of what is added, over the root mean square of all outputs."""
    t, n, _ = mix.shape
    if t == 1:
        return [0.0] * n
    squares = [norms(mix[i])[k] ** 2 for i in range(1, t) for k in range(n)]
    usual = math.sqrt(mean(squares))
    return [mean([norms(first[i])[k] for i in range(1, t)]) / usual for k in range(n)]


OF_VALUES = {"value_drain": (m.value_drain, drain)}
OF_WEIGHTS = {
    "sink_strength": (m.sink_strength, strength),
    "sink_rate": (m.sink_rate, rate),
    "first_token_argmax": (m.first_token_argmax, largest_is_first),
}
every_state_measure = pytest.mark.parametrize("name", DEFINITIONS)


def test_every_measure_has_a_definition_here():
    assert {measure.fn.__name__ for measure in MEASURES} <= {
        *DEFINITIONS,
        *APART,
        *OF_VALUES,
        *OF_WEIGHTS,
    }


@every_state_measure
@pytest.mark.parametrize("shape", [(T, D), (4, 6)], ids=["odd", "even"])
def test_measures_of_states(name, shape):
    """Off centre and with uneven channels, so that centring and the axis matter."""
    fn, definition = DEFINITIONS[name]
    h = draw(*shape) * np.linspace(0.5, 3, shape[1]) + 0.25
    h = narrow(h)
    np.testing.assert_allclose(fn(h), definition(np.asarray(h, np.float64)), rtol=1e-5)


@pytest.mark.parametrize("name", APART)
@pytest.mark.parametrize("shape", [(T, D), (D, T), (2, 2)], ids=["wide", "tall", "square"])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_measures_of_order_and_spectrum(name, shape, scale):
    """The first token is heavy in one feature, and the spectrum is steep."""
    h = draw(*shape) * np.logspace(1, 0, shape[0])[:, None]
    h[0, 1] = 9.0
    fn, definition = APART[name]
    h = narrow(scale * h)
    np.testing.assert_allclose(fn(h), definition(np.asarray(h, np.float64)), rtol=1e-4)


@pytest.mark.parametrize("quantile", [0.9, 0.99])
def test_top_dimension(quantile):
    x = draw(T, 30) + 3.0 * (np.arange(30) == 4)
    scores = np.median(np.abs(x), axis=0) / np.quantile(np.abs(x), quantile)
    np.testing.assert_allclose(m.top_dimension(narrow(x), quantile), scores.max(), rtol=1e-5)


def test_token_kurtosis_of_a_spike():
    """D - 2 + 1/(D - 1), whatever the spike's size and place."""
    x = np.zeros((3, D))
    x[0, 4], x[1, 0], x[2] = 5.0, -2.0, 1.0
    spike = D - 2 + 1 / (D - 1)
    np.testing.assert_allclose(m.token_kurtosis(narrow(x)), [spike, spike, 0.0], rtol=1e-5)


@pytest.mark.parametrize("size", [1e-30, 1e-11, 1e9, 1e30])
def test_kurtosis_has_no_unit(size):
    """Fourth powers of float32 end at 1e9, and begin at 1e-11."""
    x = draw(T, D)
    np.testing.assert_allclose(m.tensor_kurtosis(narrow(size * x)), kurtosis(x), rtol=1e-4)
    np.testing.assert_allclose(m.token_kurtosis(narrow(size * x))[0], kurtosis(x[0]), rtol=1e-4)


def test_no_row_has_a_part_along_the_largest_direction():
    """The longest row spans a channel of its own; two shorter ones share another."""
    x = jnp.array([[2.0, 0.0], [0.0, 1.9], [0.0, 1.9]])
    squares = np.linalg.svd(np.asarray(x), compute_uv=False) ** 2
    np.testing.assert_allclose(m.spectral_dominance(x), squares[0] / squares.sum(), rtol=1e-5)


def test_matrix_entropy_is_between_zero_and_the_rank():
    assert m.matrix_entropy(jnp.outer(jnp.arange(1.0, 4.0), jnp.arange(1.0, 6.0))) < 1e-4
    np.testing.assert_allclose(m.matrix_entropy(jnp.eye(T, D)), math.log(T), rtol=1e-5)
    assert m.matrix_entropy(jnp.zeros((3, 5))) == 0
    batched = jax.jit(jax.vmap(m.matrix_entropy))(jnp.stack([jnp.eye(3), jnp.ones((3, 3))]))
    np.testing.assert_allclose(batched, [math.log(3), 0], atol=1e-4)


def gated_heads(gate, weights, v):
    """What the first key adds to each head behind a gate [T, N], and the heads' outputs."""
    mix = gate[..., None] * np.einsum("nts,snh->tnh", weights, v)
    first = gate[..., None] * weights[:, :, 0].T[..., None] * v[0]
    return first, mix


@pytest.mark.parametrize("t", [1, 2, T])
def test_sink_effect_is_that_of_a_loop(t):
    first, mix = gated_heads(np.abs(draw(t, N)), attention(t=t), draw(t, N, H, seed=1))
    found = m.sink_effect(narrow(first), narrow(mix))
    np.testing.assert_allclose(found, effect(first, mix), rtol=1e-5)


def test_a_shut_gate_leaves_no_sink_effect():
    """Where |o| of the same head would keep p_0 |v_0| / |o|, whatever the gate."""
    gate = np.ones((T, N))
    weights, v = attention(), draw(T, N, H, seed=1)
    opened = m.sink_effect(*map(narrow, gated_heads(gate, weights, v)))
    gate[:, 1] = 0.0
    found = m.sink_effect(*map(narrow, gated_heads(gate, weights, v)))
    assert found[1] == 0.0
    assert np.all(found[np.array([0, 2])] > 0.0)
    gate[:, 1] = 1e-4
    near = m.sink_effect(*map(narrow, gated_heads(gate, weights, v)))
    assert near[1] < 2e-4 * opened[1]
    assert not np.any(m.sink_effect(jnp.zeros((T, N, H)), jnp.zeros((T, N, H))))


def test_sink_effect_of_softmax_is_what_its_head_gives_the_first_token():
    """One head whose outputs are as long for every query: the mean of p_0 |v_0| / |o|."""
    first, mix = gated_heads(np.ones((T, 1)), attention(n=1), draw(T, 1, H, seed=1))
    length = np.linalg.norm(mix, axis=-1, keepdims=True)
    first, mix = first / length, mix / length
    expected = np.linalg.norm(first[1:, 0], axis=-1).mean()
    np.testing.assert_allclose(m.sink_effect(narrow(first), narrow(mix)), [expected], rtol=1e-5)


@pytest.mark.parametrize("scale", [1e-6, 3.0, 1e6])
def test_sink_effect_does_not_see_the_size_of_values(scale):
    weights, v, gate = attention(), draw(T, N, H, seed=1), np.abs(draw(T, N))
    found = [m.sink_effect(*map(narrow, gated_heads(gate, weights, a * v))) for a in (1.0, scale)]
    np.testing.assert_allclose(found[1], found[0], rtol=1e-5)


def test_sink_effect_of_indifferent_heads_falls_with_the_length():
    """sqrt(mean_i 1/i) of values without a common part, which a sink is to be beyond."""
    rng, t = np.random.default_rng(0), 64
    weights = np.broadcast_to(np.tri(t) / np.arange(1, t + 1)[:, None], (200, t, t))
    first, mix = gated_heads(np.ones((t, 200)), weights, rng.standard_normal((t, 200, 32)))
    expected = math.sqrt(mean([1.0 / i for i in range(2, t + 1)]))
    assert expected == pytest.approx(0.24, abs=0.005)
    found = np.asarray(m.sink_effect(narrow(first), narrow(mix)))
    np.testing.assert_allclose(found.mean(), expected, rtol=0.02)


@pytest.mark.parametrize("sink", [0, 2, T - 1])
def test_norms_of_a_sink_over_the_rest(sink):
    h, v = draw(T, D), draw(T, K, H, seed=1)
    np.testing.assert_allclose(m.residual_peak(narrow(h), sink), peak(h, sink), rtol=1e-5)
    np.testing.assert_allclose(m.gradient_sink(narrow(h), sink), peak(h, sink), rtol=1e-5)
    np.testing.assert_allclose(m.value_drain(narrow(v), sink), drain(v, sink), rtol=1e-5)


def test_a_large_sink_does_not_swallow_the_rest():
    """Massive activations are why the measure exists: their size must not cost its precision."""
    h = draw(T, D)
    h[0] *= 1e5
    np.testing.assert_allclose(m.residual_peak(narrow(h)), peak(h), rtol=1e-5)


@pytest.mark.parametrize("key", [0, 2, T - 1])
@pytest.mark.parametrize("name", ["sink_strength", "sink_rate"])
def test_sinks_of_any_key(name, key):
    fn, definition = OF_WEIGHTS[name]
    weights = attention()
    np.testing.assert_allclose(fn(narrow(weights), key), definition(weights, key), rtol=1e-5)


@pytest.mark.parametrize("sink", [-1, T])
def test_a_sink_that_is_no_token_is_refused(sink):
    """An index beyond the end would be that of another token, or of none."""
    for measure, shape in ((m.residual_peak, (T, D)), (m.value_drain, (T, K, H))):
        with pytest.raises(ValueError, match=f"sink={sink}: 7 tokens; accepted: 0 to 6"):
            measure(narrow(draw(*shape)), sink)
    for measure in (m.sink_strength, m.sink_rate):
        with pytest.raises(ValueError, match=f"key={sink}: not there; accepted: 0 to 6"):
            measure(narrow(attention()), sink)


@pytest.mark.parametrize(
    ("measure", "shapes"),
    [
        (m.top1_over_median, [(T, D)]), (m.top1_over_mean, [(T, D)]), (m.top_dimension, [(T, D)]),
        (m.max_median_ratio, [(T, D)]), (m.neuron_rms_kurtosis, [(T, D)]),
        (m.token_kurtosis, [(T, D)]), (m.spectral_dominance, [(T, D)]),
        (m.residual_peak, [(T, D)]), (m.value_drain, [(T, K, H)]), (m.sink_strength, [(3, T, T)]),
        (m.first_token_argmax, [(3, T, T)]), (m.sink_effect, [(T, K, H), (T, K, H)]),
    ],
    ids=lambda each: getattr(each, "__name__", ""),
)  # fmt: skip
def test_a_batch_is_refused(measure, shapes):
    """Of a user without type checks: it would be a number of something else."""
    unchecked = inspect.unwrap(measure)
    arrays = [narrow(draw(*shape)) for shape in shapes]
    assert np.isfinite(unchecked(*arrays)).all()
    with pytest.raises(ValueError, match=r"an array of shape \(1, .*\); accepted: \[.*\], of one"):
        unchecked(*[array[None] for array in arrays])


def test_what_is_no_number_is_no_sink_and_not_none():
    weights = attention()
    weights[1, 3, 0] = np.nan
    for found in (m.sink_rate, m.first_token_argmax):
        assert np.isnan(found(narrow(weights)))
    swept = np.asarray(m.sink_sweep(narrow(weights)))
    assert np.isnan(swept[0]).all()
    np.testing.assert_array_equal(swept[1:], m.sink_sweep(narrow(attention()))[1:])


@pytest.mark.parametrize("shape", [(3, 3), (4, 6), (7, 5)])
@pytest.mark.parametrize("measure", [m.top1_over_median, m.top_dimension, m.max_median_ratio])
def test_measures_by_order_have_their_gradient(measure, shape):
    """Against central differences, in float64."""
    with jax.enable_x64(True):
        x = jnp.asarray(draw(*shape))
        found = jax.grad(inspect.unwrap(measure))(x)
        step = 1e-6 * jnp.eye(x.size).reshape(-1, *shape)
        of_each = jax.jit(jax.vmap(measure))
        expected = (of_each(x[None] + step) - of_each(x[None] - step)) / 2e-6
        np.testing.assert_allclose(found.ravel(), expected, atol=1e-7)


@pytest.mark.parametrize("eps", [0.2, 0.3, 0.8])
def test_sink_rate_thresholds_before_it_averages(eps):
    """Heads of strength 1, 0.5, 0.25 and 0: the mean, 0.44, would be over or under as a whole."""
    weights = np.zeros((4, T, T))
    weights[:, :, 0] = np.array([1.0, 0.5, 0.25, 0.0])[:, None]
    expected = {0.2: 0.75, 0.3: 0.5, 0.8: 0.25}[eps]
    assert m.sink_rate(narrow(weights), eps=eps) == expected
    if eps == 0.3:
        assert m.sink_rate(narrow(weights)) == expected


def test_sink_sweep_is_the_rate_at_every_threshold():
    weights = attention()
    found = m.sink_sweep(narrow(weights))
    expected = [[rate(weights, k, n / 20) for n in range(20)] for k in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert 0 < np.mean(expected) < 1
    assert m.sink_sweep(narrow(attention(t=3)), (0.3,)).shape == (3, 1)


def test_first_token_argmax():
    weights = attention()
    assert 0 < largest_is_first(weights) < 1
    np.testing.assert_allclose(
        m.first_token_argmax(narrow(weights)), largest_is_first(weights), rtol=1e-6
    )
    diagonal = np.eye(T)[None]
    assert m.first_token_argmax(narrow(diagonal)) == 0  # the first query's key is no choice


def test_a_row_of_zeros_has_no_largest_weight():
    """Softpick, ReLU and clipped softmax have such rows; those of one head, of two queries."""
    weights = attention()
    weights[0], weights[1, 3:5] = 0.0, 0.0
    found = m.first_token_argmax(narrow(weights))
    np.testing.assert_allclose(found, largest_is_first(weights), rtol=1e-6)
    assert 0 < largest_is_first(weights) < 1
    assert m.first_token_argmax(jnp.zeros((N, T, T))) == 0


# ------------------------------------------------------------------------ narrow numbers


def functions():
    """Every public function of the module that measures a tensor."""
    found = {
        name: fn
        for name, fn in vars(m).items()
        if inspect.isfunction(fn) and fn.__module__ == m.__name__ and not name.startswith("_")
    }
    del found["uniform_share"], found["expert_peaks"]  # of numbers; has a test of its own
    return found


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", functions())
def test_a_measure_of_narrow_numbers_is_that_of_their_values(name, dtype):
    fn = functions()[name]
    first, *rest = inspect.signature(fn).parameters
    shape = (T, K, H) if first in ("v", "first") else (T, D)
    tensor = attention() if first == "weights" else draw(*shape, scale=300)  # squares overflow
    outliers = [jnp.arange(T) < 2] if "outliers" in rest else []
    x = jnp.asarray(tensor, dtype)
    wide = jnp.asarray(np.float32(x))
    found, expected = (fn(of, of) if "mix" in rest else fn(of, *outliers) for of in (x, wide))
    assert found.dtype == expected.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert np.any(np.asarray(expected) != 0)


# -------------------------------------------------------------------- bounds, invariances


def test_neuron_rms_kurtosis_is_between_one_and_the_width():
    even = np.sign(draw(T, D))
    single = np.zeros((T, D))
    single[:, 4] = draw(T)
    np.testing.assert_allclose(m.neuron_rms_kurtosis(narrow(even)), 1.0, rtol=1e-5)
    np.testing.assert_allclose(m.neuron_rms_kurtosis(narrow(single)), D, rtol=1e-5)
    for seed in range(5):
        x = draw(T, D, seed=seed) * np.exp(3 * draw(D, seed=seed + 10))
        assert 1 <= m.neuron_rms_kurtosis(narrow(x)) <= D


def test_tensor_kurtosis_of_known_distributions():
    np.testing.assert_allclose(m.tensor_kurtosis(narrow(draw(300, 400))), 3.0, atol=0.05)
    np.testing.assert_allclose(m.tensor_kurtosis(narrow(np.sign(draw(30, 40)))), 1.0, atol=0.01)


@every_state_measure
@pytest.mark.parametrize("scale", [1e-3, -1e4])
def test_ratios_do_not_depend_on_the_unit(name, scale):
    fn, _ = DEFINITIONS[name]
    h = draw(T, D)
    unit = abs(scale) if name == "top1" else 1.0
    np.testing.assert_allclose(fn(narrow(scale * h)), unit * fn(narrow(h)), rtol=1e-4)


def test_centred_measures_do_not_depend_on_the_mean():
    h = draw(T, D)
    shifted = narrow(h + np.arange(T)[:, None])
    np.testing.assert_allclose(
        m.max_median_ratio(shifted), m.max_median_ratio(narrow(h)), rtol=1e-4
    )
    np.testing.assert_allclose(
        m.tensor_kurtosis(narrow(h + 3)), m.tensor_kurtosis(narrow(h)), rtol=1e-4
    )


@pytest.mark.parametrize("order", [np.arange(T)[::-1], np.random.default_rng(0).permutation(T)])
def test_only_the_peak_depends_on_the_order_of_tokens(order):
    h = draw(T, D)
    for name, (fn, _) in DEFINITIONS.items():
        if name != "residual_peak":
            np.testing.assert_allclose(fn(narrow(h[order])), fn(narrow(h)), rtol=1e-5)


@pytest.mark.parametrize("name", [*DEFINITIONS, *APART])
def test_no_measure_of_states_depends_on_the_order_of_channels(name):
    fn, _ = {**DEFINITIONS, **APART}[name]
    h = draw(T, D) * np.linspace(0.5, 3, D)
    np.testing.assert_allclose(fn(narrow(h[:, ::-1])), fn(narrow(h)), rtol=1e-5)


@pytest.mark.parametrize("name", OF_WEIGHTS)
def test_measures_of_attention_follow_the_order_of_heads(name):
    fn, _ = OF_WEIGHTS[name]
    weights = attention()
    moved, plain = fn(narrow(weights[::-1])), fn(narrow(weights))
    np.testing.assert_allclose(moved, plain[::-1] if plain.ndim else plain, rtol=1e-6)


# ----------------------------------------------------------------------------- degenerate

DEGENERATE = {
    "zeros": lambda *shape: np.zeros(shape),
    "constant": lambda *shape: np.full(shape, 2.5),
    "one token": lambda _, *shape: draw(1, *shape),
    "one token, zeros": lambda _, *shape: np.zeros((1, *shape)),
}


@pytest.mark.parametrize("case", DEGENERATE)
@pytest.mark.parametrize("name", [*DEFINITIONS, *APART, *OF_VALUES])
def test_degenerate_states_give_finite_values(name, case):
    shape = (T, K, H) if name in OF_VALUES else (T, D)
    fn, _ = {**DEFINITIONS, **APART, **OF_VALUES}[name]
    value = np.asarray(fn(narrow(DEGENERATE[case](*shape))))
    assert np.all(np.isfinite(value))
    if "zeros" in case:
        assert not np.any(value)


def test_a_peak_above_a_median_of_zero_is_above_every_other():
    assert m.top1_over_median(jnp.zeros((T, D)).at[2, 3].set(5000.0)) == np.inf


@pytest.mark.parametrize(
    ("name", "expected"),
    [("residual_peak", 1.0), ("value_drain", 1.0), ("neuron_rms_kurtosis", 1.0), ("top1", 2.5)],
)
def test_constants_are_even(name, expected):
    fn, _ = {**DEFINITIONS, **OF_VALUES}[name]
    constant = np.full((T, K, H) if name in OF_VALUES else (T, D), 2.5)
    np.testing.assert_allclose(fn(narrow(constant)), expected, rtol=1e-6)


@pytest.mark.parametrize("name", OF_WEIGHTS)
@pytest.mark.parametrize("weights", [np.zeros((N, T, T)), np.ones((N, 1, 1))], ids=["zero", "T=1"])
def test_degenerate_attention_gives_finite_values(name, weights):
    assert np.all(np.isfinite(OF_WEIGHTS[name][0](narrow(weights))))


# ------------------------------------------------------------------------------ attention


def test_negative_weights_are_shares_of_magnitude():
    """A row that sums to nothing has shares all the same, and the sink of a negative weight is as
    strong as of a positive one."""
    raw = draw(N, T, T) * np.tri(T)
    raw[1, 3, :4] = 1.0, -1.0, 2.0, -2.0
    found = np.asarray(m.rows_to_one(narrow(raw)))
    for head, query in np.ndindex(N, T):
        row = raw[head, query].tolist()
        total = math.fsum(map(abs, row))
        np.testing.assert_allclose(found[head, query], [abs(w) / total for w in row], rtol=1e-5)
    np.testing.assert_allclose(m.rows_to_one(narrow(-raw)), found, rtol=1e-6)
    assert np.all(m.sink_strength(jnp.asarray(found)) > 0)


def test_rows_to_one():
    raw = 5 * attention() * draw(N, T, 1) ** 2
    raw[1, 3] = 0.0
    rows = np.asarray(m.rows_to_one(narrow(raw)))
    for head, query in np.ndindex(N, T):
        total = math.fsum(raw[head, query])
        expected = raw[head, query] / total if total else np.zeros(T)
        np.testing.assert_allclose(rows[head, query], expected, rtol=1e-5)
    np.testing.assert_allclose(m.rows_to_one(narrow(rows)), rows, rtol=1e-6)
    np.testing.assert_allclose(m.rows_to_one(narrow(raw)[None])[0], rows, rtol=1e-6)


@pytest.mark.parametrize("outliers", [(), (0,), (1, 4), range(T)])
def test_implicit_scale(outliers):
    """With the mass of an extra key left out, S is what the rest receives and not 1 - alpha."""
    weights = 0.8 * attention()
    inside = np.isin(np.arange(T), outliers)
    expected = [
        [sum(p for p, out in zip(row, inside, strict=True) if not out) for row in head]
        for head in weights
    ]
    found = m.implicit_scale(narrow(weights), jnp.asarray(inside))
    assert found.shape == (N, T)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


# -------------------------------------------------------------------------------- experts


def test_expert_peaks_against_a_loop():
    rng = np.random.default_rng(0)
    experts = np.stack([rng.permutation(4)[:2] for _ in range(T)])  # nobody goes to expert 4
    out = draw(T, 2, D)
    expected = [0.0] * 5
    for t in range(T):
        for j in range(2):
            size = max(abs(value) for value in out[t, j].tolist())
            expected[experts[t, j]] = max(expected[experts[t, j]], size)
    found = m.expert_peaks(jnp.asarray(experts), narrow(out), 5)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    short = narrow(out).astype("bfloat16")
    of_short = m.expert_peaks(jnp.asarray(experts), short, 5)
    assert of_short.dtype == found.dtype == jnp.float32
    wide = m.expert_peaks(jnp.asarray(experts), short.astype("float32"), 5)
    np.testing.assert_array_equal(of_short, wide)


# -------------------------------------------------------------------------------- the list


def test_measures_read_known_taps():
    for measure in MEASURES:
        assert measure.tap in TAPS
        assert measure.over in ("max", "min", "mean")
        assert measure.label
        assert measure.name == f"{measure.fn.__name__}@{measure.tap}"
    assert len({measure.name for measure in MEASURES}) == len(MEASURES)
    assert len({measure.label for measure in MEASURES}) == len(MEASURES)


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.name)
def test_measures_accept_what_their_tap_gives(measure):
    sizes = {"T": T, "S": T, "N": N, "K": K, "H": H, "D": D, "F": 11}
    letters = TAPS[measure.tap].split(",")[0].split()
    value = measure.fn(narrow(np.abs(draw(*(sizes[letter] for letter in letters)))))
    assert value.ndim <= 1
    assert np.all(np.isfinite(value))


# ------------------------------------------------------------------------- order, sets, spectra


@pytest.mark.parametrize("window", [None, 1, 3, 7, 20])
def test_uniform_share(window):
    rows = np.tril(np.ones((7, 7))) * np.triu(np.ones((7, 7)), 1 - (window or 7))
    rows /= rows.sum(1, keepdims=True)
    np.testing.assert_allclose(m.uniform_share(7, window), rows.mean(0), rtol=1e-5, atol=1e-7)


def test_norm_over_rest():
    x = np.random.default_rng(3).standard_normal((11, 3, 5)).astype(np.float32)
    outliers = np.isin(np.arange(11), [2, 7])
    norms = np.linalg.norm(x, axis=-1)
    expected = norms[outliers].mean(0) / norms[~outliers].mean(0)
    found = m.norm_over_rest(jnp.asarray(x), jnp.asarray(outliers))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    first = jnp.arange(11) == 0
    drained = m.value_drain(jnp.asarray(x))
    np.testing.assert_allclose(m.norm_over_rest(jnp.asarray(x), first), drained, rtol=1e-5)
    for nobody in (jnp.zeros(11, bool), jnp.ones(11, bool)):
        np.testing.assert_array_equal(m.norm_over_rest(jnp.asarray(x), nobody), np.zeros(3))


def test_spectral_dominance_of_rank_one_and_of_nothing():
    x = jnp.outer(jnp.arange(1.0, 4.0), jnp.arange(1.0, 6.0))
    np.testing.assert_allclose(m.spectral_dominance(x), 1.0, rtol=1e-5)
    assert m.spectral_dominance(jnp.zeros((3, 5))) == 0
    apart = jnp.diag(jnp.asarray([1.0, 3.0, 2.0]))  # what begins at another row never leaves it
    np.testing.assert_allclose(m.spectral_dominance(apart), 9 / 14, rtol=1e-6)


def test_over_a_rest_of_zeros_a_sink_is_infinite_and_without_a_rest_nothing():
    one = np.zeros((T, D))
    one[0] = 1.0
    assert float(m.residual_peak(narrow(one))) == np.inf
    np.testing.assert_array_equal(m.norm_over_rest(narrow(one), jnp.arange(T) == 0), np.inf)
    assert float(m.residual_peak(narrow(one[:1]))) == 0.0
    np.testing.assert_array_equal(m.value_drain(narrow(draw(1, K, H))), [0.0] * K)


def test_a_state_of_zeros_has_a_gradient():
    h = draw(T, D)
    h[3] = 0.0
    gradient = np.asarray(jax.grad(m.residual_peak)(narrow(h)))
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[2]).max() > 0.0


@pytest.mark.parametrize("outliers", [[0], [True], [1.0] * T])
def test_a_set_of_keys_is_a_bool_for_each(outliers):
    with pytest.raises(ValueError, match=r"outliers: .*; accepted: bools \[S\]"):
        inspect.unwrap(m.implicit_scale)(narrow(attention()), jnp.asarray(outliers))
