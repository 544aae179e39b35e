"""What every variant is composed of, head by head in float64: scale, cap and bias of logits, keys
of no token ahead of the text, and queries at places of their own."""

import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.core.flash import ALL
from sysout_jax.core.primitives import (
    Heads,
    extra_scores,
    mix,
    scores,
    softmax_mix,
    softmax_weights,
)
from tests.core.test_layers import draw, narrow

T, S, N, K, H, D = 3, 5, 4, 2, 6, 7
Q, KEYS, VALUES = draw(T, N, H), draw(S, K, H, seed=1), draw(S, K, H, seed=2)
BIAS, EXTRA = draw(N, T, S, seed=3), draw(K, H, seed=4)
WEIGHTS, MASS = np.abs(draw(N, T, S, seed=5)), np.abs(draw(N, T, seed=6))


def heads(**changes):
    x_q, x_k = jnp.zeros((T, D)), jnp.zeros((S, D))
    seen = jnp.ones((T, S), bool)
    return Heads(narrow(Q), narrow(KEYS), narrow(VALUES), x_q, x_k, seen, **changes)


@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("cap", [None, 1.5])
@pytest.mark.parametrize("biased", [False, True])
def test_logits_are_scaled_then_capped_then_biased(scale, cap, biased):
    factor = 1 / np.sqrt(H) if scale is None else scale
    capped = (lambda s: s) if cap is None else lambda s: cap * np.tanh(s / cap)
    found = heads(scale=scale, softcap=cap, bias=narrow(BIAS) if biased else None)
    for n in range(N):
        logits = capped(factor * Q[:, n] @ KEYS[:, n // (N // K)].T) + biased * BIAS[n]
        np.testing.assert_allclose(scores(found)[n], logits, rtol=1e-5, atol=1e-6)
        extra = capped(factor * Q[:, n] @ EXTRA[n // (N // K)])
        np.testing.assert_allclose(
            extra_scores(found, narrow(EXTRA))[n], extra, rtol=1e-5, atol=1e-6
        )


def test_an_extra_logit_of_any_size():
    """Far above the others it takes all; at minus infinity nothing, and a row that sees no key has
    nothing then."""
    logits, seen = narrow(scores(heads())), jnp.ones((T, S), bool).at[0].set(False)
    weights, mass = softmax_weights(logits, seen, jnp.full((N, T), 1e4))
    np.testing.assert_array_equal(weights, np.zeros((N, T, S)))
    np.testing.assert_array_equal(mass, np.ones((N, T)))
    weights, mass = softmax_weights(logits, seen, jnp.full((N, T), -jnp.inf))
    np.testing.assert_array_equal(mass, np.zeros((N, T)))
    np.testing.assert_array_equal(weights, softmax_weights(logits, seen)[0])
    assert not np.any(weights[:, 0])


@pytest.mark.parametrize("scale", [None, 0.7])
@pytest.mark.parametrize("extra", [None, narrow(draw(N, S, seed=7))], ids=["plain", "extra"])
def test_a_fused_kernel_mixes_the_same(scale, extra):
    found = heads(scale=scale)._replace(q=narrow(draw(S, N, H)), mask=jnp.tri(S, dtype=bool))
    plain = softmax_mix(found, extra)
    found = found._replace(**{name: getattr(found, name)[None] for name in ("q", "k", "v")})
    fused = softmax_mix(found._replace(fused=ALL), None if extra is None else extra[None])
    np.testing.assert_allclose(fused.out[0], plain.out, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(fused.extra[0], plain.extra, rtol=1e-5, atol=1e-6)


def test_own_values_are_those_at_the_places_of_the_queries():
    for places, queries in ((range(S - T, S), None), ((4, 0, 2), jnp.asarray([4, 0, 2]))):
        own = np.asarray(heads(queries=queries).own_value)
        for at, place in enumerate(places):
            for n in range(N):
                np.testing.assert_allclose(own[at, n], VALUES[place, n // (N // K)], rtol=1e-6)


def test_the_length_is_that_of_the_whole_sequence():
    assert heads().length == S
    assert heads(sequence=11).length == 11


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_keys_ahead_are_mixed_and_hidden_from_taps(factor):
    """An edit of their mass, here to a part of it, leaves its division among them as it is."""
    tapped = {}

    def tap(name, value):
        tapped[name] = value
        return factor * value if name == "attn_extra" else value

    found = heads(ahead=2, tap=tap)
    logits = scores(found)
    assert logits.shape == (N, T, S)
    np.testing.assert_array_equal(tapped["attn_logits"], logits[..., 2:])
    mixed = mix(found, narrow(WEIGHTS), narrow(MASS))
    np.testing.assert_allclose(tapped["attn_weights"], WEIGHTS[..., 2:], rtol=1e-6)
    np.testing.assert_allclose(tapped["attn_extra"], MASS + WEIGHTS[..., :2].sum(-1), rtol=1e-6)
    np.testing.assert_allclose(mixed.extra, factor * MASS, rtol=1e-6)
    weights = WEIGHTS * np.where(np.arange(S) < 2, factor, 1.0)
    for n in range(N):
        out = weights[n] @ VALUES[:, n // (N // K)]
        np.testing.assert_allclose(mixed.out[:, n], out, rtol=1e-5, atol=1e-6)
