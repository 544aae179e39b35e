"""Experts against a loop over tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.core.experts import choose, expert_linear, gather, route, scatter

T, E, D, F = 7, 5, 3, 4
RNG = np.random.default_rng(0)
X, W, BIAS, ROUTER = (
    RNG.standard_normal(shape).astype(np.float32) for shape in ((T, D), (E, D, F), (E, F), (T, E))
)


def through(x, weight, bias, router, chosen):
    """[T, J, F], and the weights of the J chosen experts."""
    routing = route(*choose(router, chosen), E)
    out = expert_linear(gather(x, routing), weight, bias, routing)
    return scatter(out, routing), routing.weights


@pytest.mark.parametrize("chosen", [1, 2, E])
@pytest.mark.parametrize("biased", [True, False])
def test_every_token_goes_through_its_best_experts(chosen, biased):
    bias = jnp.asarray(BIAS) if biased else None
    found, weights = through(*map(jnp.asarray, (X, W)), bias, jnp.asarray(ROUTER), chosen)
    for t in range(T):
        best = np.argsort(-ROUTER[t])[:chosen]
        for j, e in enumerate(best):
            expected = X[t] @ W[e] + (BIAS[e] if biased else 0)
            np.testing.assert_allclose(found[t, j], expected, rtol=1e-5, atol=1e-6)
        # softmax over all, cut to the best and brought to one
        share = np.exp(ROUTER[t]) / np.exp(ROUTER[t]).sum()
        np.testing.assert_allclose(weights[t], share[best] / share[best].sum(), rtol=1e-5)
        experts, shares = choose(jnp.asarray(ROUTER[t : t + 1]), chosen, sum_to_one=False)
        assert experts[0].tolist() == best.tolist()
        np.testing.assert_allclose(shares[0], share[best], rtol=1e-5)


def test_an_expert_that_nobody_chooses():
    router = jnp.asarray(ROUTER).at[:, 2].set(-9.0)
    routing = route(*choose(router, 2), E)
    assert routing.counts[2] == 0
    assert int(routing.counts.sum()) == 2 * T
    assert (jnp.diff(routing.expert) >= 0).all()


def test_the_gradient_of_a_bias_is_no_sum_in_bfloat16():
    """4,096 tokens of one expert, a one from each: bfloat16 counts to 256."""
    routing = route(jnp.zeros((4096, 1), jnp.int32), jnp.ones((4096, 1)), E)

    def total(bias):
        x = jnp.zeros((4096, D), jnp.bfloat16)
        return jnp.sum(expert_linear(x, jnp.asarray(W), bias, routing).astype(jnp.float32))

    np.testing.assert_array_equal(jax.grad(total)(jnp.zeros((E, F)))[0], 4096.0)


def test_gradients_under_vmap_are_those_of_the_loop():
    """Several seeds are trained by vmap: the products by expert must have its rule."""

    def loss(weight, router):
        found, weights = through(jnp.asarray(X), weight, None, router, 2)
        return jnp.sum(jnp.einsum("tjf,tj->tf", found, weights) ** 2)

    def dense(weight, router):
        best = jnp.broadcast_to(jax.lax.top_k(router, 2)[0][:, -1:], router.shape)
        share = jax.nn.softmax(jnp.where(router >= best, router, -jnp.inf))
        return jnp.sum(jnp.einsum("td,edf,te->tf", jnp.asarray(X), weight, share) ** 2)

    weights = jnp.stack([jnp.asarray(W), 2 * jnp.asarray(W)])
    routers = jnp.stack([jnp.asarray(ROUTER), jnp.asarray(ROUTER[::-1].copy())])
    found = jax.jit(jax.vmap(jax.grad(loss, (0, 1))))(weights, routers)
    expected = jax.jit(jax.vmap(jax.grad(dense, (0, 1))))(weights, routers)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)
