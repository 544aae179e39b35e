"""Measures of outliers, sinks and drains: one plain function per definition, listed at the foot.

Every function takes the tensor of ONE sequence (or one weight matrix), so a tap's reducer can be
any of them. Axes: T query position, S key position, D width, N query heads, K KV heads, H head
dim. Attention weights cover the real keys only; rows of unnormalised variants are brought to one
by `rows_to_one` before a sink is measured. Tensors narrower than float32 are widened first, so a
measure of a bfloat16 model is that of its numbers, and a float32.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from sysout_jax.core.detectors import (
    DIMENSION_QUANTILE,
    activation_outliers,
    outlier_dimensions,
    ratio_or_infinity,
    ratio_or_zero,
)
from sysout_jax.core.layers import lengths, one_widened, widened
from sysout_jax.core.ordering import median_magnitude, row_medians

SINK_EPS = 0.3  # Gu et al. 2025
SINK_RATE_PRESENT = 0.1  # Sink_0(0.3), of heads and layers: sinks in a model of several heads
SINK_RATE_ABSENT = 0.02  # below it, none
SINK_SWEEP = tuple(n / 20 for n in range(20))  # thresholds from 0 to 0.95
SINK_KEYS = 4  # whose sweep is kept
POWER_ITERATIONS = 64  # to the largest singular value
VALUE_DRAINED, VALUE_KEPT = 0.2, 0.8  # value drain of no-op sinks; near 1 a sink broadcasts


# ----------------------------------------------------------- measures of activations


def top1(h: Float[Array, "T D"]) -> Float[Array, ""]:
    """The largest magnitude: max |h|, in units of h."""
    return jnp.max(jnp.abs(one_widened(h, "T D")))


def top1_over_median(h: Float[Array, "T D"]) -> Float[Array, ""]:
    """The largest magnitude over the median one: max |h| / median |h| (Sun et al. 2024)."""
    size = jnp.abs(one_widened(h, "T D"))
    return ratio_or_infinity(jnp.max(size), median_magnitude(size))


def top1_over_mean(h: Float[Array, "T D"]) -> Float[Array, ""]:
    """The score of An et al. 2025 at its largest token: max |h| / mean |h|."""
    return jnp.max(activation_outliers(one_widened(h, "T D")).score)


def top_dimension(x: Float[Array, "P D"], quantile: float = DIMENSION_QUANTILE) -> Float[Array, ""]:
    """The largest score of `outlier_dimensions` (Macocco et al. 2025): above 1 there is one."""
    return jnp.max(outlier_dimensions(one_widened(x, "P D"), quantile).score)


def max_median_ratio(x: Float[Array, "T D"]) -> Float[Array, ""]:
    """MMR: mean_t max_j |x_tj - mean_j x_t| / median_j |x_tj - mean_j x_t| (He et al. 2024)."""
    x = one_widened(x, "T D")
    size = jnp.abs(x - jnp.mean(x, axis=-1, keepdims=True))
    return jnp.mean(ratio_or_zero(jnp.max(size, axis=-1), row_medians(size)))


def neuron_rms_kurtosis(x: Float[Array, "T D"]) -> Float[Array, ""]:
    """How unevenly the energy of a site is spread over its channels.

    s_j = mean_t x_tj^2 / mean x^2;  mean_j s_j^2, from 1 (even) to D (all in one channel).

    Source: He et al. 2024 (arXiv:2405.19279), with s_j their squared neuron RMS.
    """
    energy = jnp.mean(jnp.square(one_widened(x, "T D")), axis=0)
    return jnp.mean(jnp.square(ratio_or_zero(energy, jnp.mean(energy))))


def tensor_kurtosis(x: Float[Array, "T D"]) -> Float[Array, ""]:
    """mean((x - mu)^4) / std^4 over all T*D entries: 3 for a normal (Bondarenko et al. 2023)."""
    x = one_widened(x, "T D")
    centred = _to_one(x - jnp.mean(x), None)
    return ratio_or_zero(jnp.mean(centred**4), jnp.square(jnp.mean(centred**2)))


def token_kurtosis(x: Float[Array, "T D"]) -> Float[Array, "T"]:
    """Kurtosis over the features of each token: 3 for a normal, D - 2 + 1/(D - 1) for one spike.

    mean_j (x_tj - mu_t)^4 / (mean_j (x_tj - mu_t)^2)^2.

    Source: Kaul et al. 2024 (arXiv:2410.17174).
    """
    x = one_widened(x, "T D")
    centred = _to_one(x - jnp.mean(x, axis=-1, keepdims=True), -1)
    fourth, second = (jnp.mean(centred**power, axis=-1) for power in (4, 2))
    return ratio_or_zero(fourth, jnp.square(second))


def _to_one(x: Float[Array, "*any"], axis: int | None) -> Float[Array, "*any"]:
    """x / max |x|, whose fourth powers neither overflow nor vanish; 0 stays 0."""
    largest = jnp.max(jnp.abs(x), axis=axis, keepdims=True)
    return x / jnp.where(largest == 0.0, 1.0, largest)


def first_token_kurtosis(x: Float[Array, "T D"]) -> Float[Array, ""]:
    """`token_kurtosis` of the first token, which Kaul et al. 2024 keep apart."""
    return token_kurtosis(x)[0]


def other_token_kurtosis(x: Float[Array, "T D"]) -> Float[Array, ""]:
    """The mean `token_kurtosis` of the tokens after the first; 0 where there is none."""
    return jnp.sum(token_kurtosis(x)[1:]) / max(x.shape[0] - 1, 1)


def spectral_dominance(x: Float[Array, "R C"]) -> Float[Array, ""]:
    """How close a matrix is to rank one: sigma_1^2 / sum_i sigma_i^2, from 1/rank to 1.

    sigma_1 by power iteration from a random mix of the rows, which approaches it from below: no
    row need have a part along it.

    Source: Queipo de Llano et al. 2025, for token states; D1 of theory/ for the form of a SwiGLU.
    """
    x = _to_one(one_widened(x, "R C"), None)

    def step(_: Array, v: Array) -> Array:
        v = x.T @ (x @ v)
        return ratio_or_zero(v, jnp.linalg.norm(v))

    start = x.T @ jax.random.normal(jax.random.key(0), (x.shape[0],), x.dtype)
    v = jax.lax.fori_loop(0, POWER_ITERATIONS, step, ratio_or_zero(start, jnp.linalg.norm(start)))
    return ratio_or_zero(jnp.sum(jnp.square(x @ v)), jnp.sum(x * x))


def matrix_entropy(x: Float[Array, "R C"]) -> Float[Array, ""]:
    """Entropy of a matrix' spectrum, in nats: from 0 (rank one) to log min(R, C) (all even).

    -sum_i p_i log p_i,  p_i = sigma_i^2 / |x|_F^2: `spectral_dominance` is the largest of the p_i.

    Source: Queipo de Llano et al. 2025, for token states. It has no gradient.
    """
    x = _to_one(one_widened(x, "R C"), None)
    x = x.T if x.shape[0] > x.shape[1] else x
    gram = jnp.matmul(x, x.T, precision="highest")
    shares = jnp.maximum(_eigenvalues(gram), 0.0)  # rounding makes some of zero negative
    return jnp.sum(jax.scipy.special.entr(ratio_or_zero(shares, jnp.sum(shares))))


@jax.custom_batching.sequential_vmap
def _eigenvalues(gram: Float[Array, "R R"]) -> Float[Array, "R"]:
    """One matrix at a time: batched LAPACK calls of one program can wait for each other for good
    (theory/decompositions.py)."""
    return jnp.linalg.eigvalsh(gram)


def residual_peak(h: Float[Array, "T D"], sink: int = 0) -> Float[Array, ""]:
    """Norm of the sink token's state over the rest's mean: |h_sink| / mean |h_t|; 0 without a rest.

    Source: Guo et al. 2024 (arXiv:2410.13835).
    """
    return _sink_over_rest(one_widened(h, "T D"), sink)


def value_drain(v: Float[Array, "T K H"], sink: int = 0) -> Float[Array, "K"]:
    """Norm of the sink token's value over the mean norm of the rest, per KV head; 0 without a rest.

    |v_sink| / mean_t |v_t|: below 0.2 the sink is a no-op, near 1 it broadcasts.

    Source: Guo et al. 2024 (arXiv:2410.13835); Fesser 2026 for the reading.
    """
    return _sink_over_rest(one_widened(v, "T K H"), sink)


def gradient_sink(gradient: Float[Array, "T D"], sink: int = 0) -> Float[Array, ""]:
    """Norm of the loss' gradient at the sink token over the mean norm at the rest.

    |dL/dx_sink| / mean_t |dL/dx_t|, x the attention input after its norm.

    Args:
      gradient: [T, D], dL/dx of one sequence and layer.
      sink: its position.

    Source: Chen 2026; F3 of theory/.
    """
    return _sink_over_rest(one_widened(gradient, "T D"), sink)


def norm_over_rest(x: Float[Array, "T *C D"], outliers: Bool[Array, "T"]) -> Float[Array, "*C"]:
    """Mean norm of outlier tokens over that of the rest: `value_drain`, `residual_peak` of any set.

    Args:
      x: [T, ..., D].
      outliers: [T], True for tokens in O; 0 is returned where O is empty or everything.
    """
    norms = lengths(widened(x))
    chosen = outliers.reshape(-1, *(1,) * (norms.ndim - 1)) & jnp.ones(norms.shape, bool)
    inside, outside = (jnp.mean(norms, axis=0, where=c) for c in (chosen, ~chosen))
    both, ratio = jnp.any(outliers) & ~jnp.all(outliers), ratio_or_infinity(inside, outside)
    return jnp.where(both, ratio, 0.0)


def _sink_over_rest(x: Array, sink: int) -> Array:
    if not 0 <= sink < x.shape[0]:
        raise ValueError(f"sink={sink}: {x.shape[0]} tokens; accepted: 0 to {x.shape[0] - 1}")
    norms = lengths(x)
    # Not the sum of all less the sink's: a massive sink would swallow the rest in float32.
    rest = jnp.sum(norms.at[sink].set(0.0), axis=0) / max(x.shape[0] - 1, 1)
    return ratio_or_infinity(norms[sink], rest) if x.shape[0] > 1 else 0.0 * rest


def expert_peaks(
    experts: Int[Array, "T J"], out: Float[Array, "T J D"], count: int
) -> Float[Array, "E"]:
    """The largest magnitude that each expert of a mixture returns, over its tokens and channels.

    a_e = max |out[t, j, d]| over (t, j) with experts[t, j] = e;  0 where no token goes to e.

    Args:
      experts: [T, J], the experts of each token: the tap experts.
      out: [T, J, D], what they return: the tap expert_out.
      count: E.

    Source: Su et al. 2025 (arXiv:2507.23279), max |down_proj output|; `super_experts` of
    core/detectors.py says which stand out.
    """
    peak = jnp.max(jnp.abs(one_widened(out, "T J D")), axis=-1)
    return jnp.zeros(count, peak.dtype).at[experts].max(peak)


# ------------------------------------------------------------- measures of attention


def rows_to_one(weights: Float[Array, "*B N T S"]) -> Float[Array, "*B N T S"]:
    """Rows of unnormalised attention as shares, so that they can be compared; 0 stays 0.

    |w_j| / sum_k |w_k|: a weight may be negative, and takes the output as far either way.
    """
    weights = jnp.abs(widened(weights))
    return ratio_or_zero(weights, jnp.sum(weights, axis=-1, keepdims=True))


def sink_strength(weights: Float[Array, "N T S"], key: int = 0) -> Float[Array, "N"]:
    """Mean attention that a key receives from the queries that are not before it, per head.

    a_k = sum_{q >= k} A[q, k] / (T - k), for self-attention, T = S. Queries whose window ends
    before the key count, with 0: in a layer with a window of W keys a_k is at most W/(T - k).

    Source: Gu et al. 2025 (arXiv:2410.10781), the score under Sink_k(eps).
    """
    weights = one_widened(weights, "N T S")
    if not 0 <= key < min(weights.shape[1:]):
        raise ValueError(f"key={key}: not there; accepted: 0 to {min(weights.shape[1:]) - 1}")
    return jnp.mean(weights[:, key:, key], axis=-1)


def sink_rate(
    weights: Float[Array, "N T S"], key: int = 0, eps: float = SINK_EPS
) -> Float[Array, ""]:
    """Share of heads in which a key is a sink: mean_n 1[a_k > eps]; the threshold comes first.

    Average it over layers and sequences for Sink_k(eps) of Gu et al. 2025 (arXiv:2410.10781).
    """
    return jnp.mean(_above(sink_strength(weights, key), eps))


def sink_sweep(
    weights: Float[Array, "N T S"], eps: tuple[float, ...] = SINK_SWEEP, keys: int = SINK_KEYS
) -> Float[Array, "K E"]:
    """`sink_rate` of the first keys at every threshold: one number of Sink_k(eps) is a choice.

    Args:
      weights: [N, T, S].
      eps: the thresholds, E of them.
      keys: how many keys k, from the first; fewer where S is smaller.

    Returns:
      [K, E], row k for key k.
    """
    kept = range(min(keys, weights.shape[-1]))
    strength = jnp.stack([sink_strength(weights, key) for key in kept])[:, :, None]  # [K, N, 1]
    limits = jnp.asarray(eps, strength.dtype)[None, None]
    return jnp.mean(_above(strength, limits), axis=1)


def _above(strength: Array, limit: Array | float) -> Array:
    return jnp.where(jnp.isnan(strength), strength, (strength > limit).astype(strength.dtype))


def sink_effect(first: Float[Array, "T N H"], mix: Float[Array, "T N H"]) -> Float[Array, "N"]:
    """What the first token adds to a head's output, over what heads of the layer put out.

    mean_i |g_in p_in0 v_0| / sqrt(mean_{i,m} |o_im|^2), i over queries, n and m over heads, g_in
    the gate on the output, o_im the output behind it. A shut gate makes it 0: over |o_in| of the
    same query the gate would cancel. Heads that attend evenly to values without a common part have
    sqrt(mean_i 1/i), 0.24 for 64 tokens. The first query, which sees nothing else, is left out; 0
    where there is no other.

    Args:
      first: [T, N, H], g_in p_in0 v_0: the tap attn_first.
      mix: [T, N, H], o: the tap attn_mix.

    Source: this project; Qiu et al. 2025 (arXiv:2505.06708) for sinks behind gates.
    """
    added, put_out = (lengths(one_widened(x, "T N H")[1:]) for x in (first, mix))
    count = max(added.shape[0], 1)
    usual = jnp.sqrt(jnp.sum(jnp.square(put_out)) / (count * added.shape[1]))
    return ratio_or_zero(jnp.sum(added, axis=0) / count, usual)


def first_token_argmax(weights: Float[Array, "N T S"]) -> Float[Array, ""]:
    """Share of (head, query) whose largest weight is on the first key (Kaul et al. 2024).

    The largest of a row of zeros, which some variants have, counts as another. The first query,
    which sees nothing else, is left out; 0 where there is no other.
    """
    weights = one_widened(weights, "N T S")[:, 1:]
    largest = jnp.max(weights, axis=-1)  # NaN, where one of the row is
    first = _above(largest, 0.0) * (weights[..., 0] == largest).astype(largest.dtype)
    return jnp.sum(first) / max(first.size, 1)


def implicit_scale(
    weights: Float[Array, "N T S"], outliers: Bool[Array, "S"]
) -> Float[Array, "N T"]:
    """The factor by which attention to outlier tokens scales attention to the rest.

    S_i = sum_{j not in O} p_ij, which is 1 - alpha_i without extra keys: where the values of O are
    zero, attention over all keys is S_i times attention over the rest.

    Args:
      weights: [N, T, S], normalised with any extra keys' mass left out.
      outliers: [S], True for tokens in O.

    Returns:
      [N, T].

    Source: the identity A1 of theory/; An et al. 2025 (arXiv:2502.06415), section 5.
    """
    weights, outliers = one_widened(weights, "N T S"), jnp.asarray(outliers)
    if outliers.dtype != bool or outliers.shape != weights.shape[-1:]:
        raise ValueError(f"outliers: {outliers.dtype}{outliers.shape}; accepted: bools [S]")
    return jnp.sum(jnp.where(jnp.broadcast_to(outliers, weights.shape), 0.0, weights), axis=-1)


def uniform_share(queries: int, window: int | None = None) -> Float[Array, "S"]:
    """The share of attention that each key receives where every query is indifferent.

    u_k = (1/T) sum_{q >= k} 1/(q + 1), which for k = 0 is the harmonic number of T, over T; with a
    window of w keys, 1/min(q + 1, w) over k <= q < k + w.

    Args:
      queries: T.
      window: the number of keys visible to a query; None for all of the past.

    Returns:
      [S], S = T: what `attention_outliers` scores on uniform rows.
    """
    positions = jnp.arange(queries)
    seen = min(window or queries, queries)
    each = 1.0 / jnp.minimum(positions + 1, seen).astype(jnp.float32)
    before = jnp.concatenate([jnp.zeros(1), jnp.cumsum(each)])
    return (before[jnp.minimum(positions + seen, queries)] - before[positions]) / queries
