"""Masks against loops, what they have in common, and SparseGPT against optimal brain surgeon."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.core import compensate as c
from sysout_jax.core import prune as p

I, O, T = 12, 7, 53  # noqa: E741


def weights(seed=1):
    return np.random.default_rng(seed).normal(size=(I, O)).astype(np.float32)


def inputs(seed=0):
    random = np.random.default_rng(seed)
    x = random.normal(size=(T, I)) @ random.normal(size=(I, I)) * np.geomspace(0.1, 10, I)
    return x.astype(np.float32)


@pytest.mark.parametrize("sparsity", [0.0, 0.1, 0.5, 0.99, 1.0])
def test_shares_are_exact(sparsity):
    w = jnp.asarray(weights())
    whole = p.magnitude_mask(w, sparsity)
    assert int((~whole).sum()) == int(sparsity * w.size)
    each = p.per_output_mask(jnp.abs(w), sparsity)
    assert np.all((~np.asarray(each)).sum(axis=0) == int(sparsity * I))
    together = p.global_magnitude_masks([w, 9.0 * w[:3]], sparsity)
    assert sum(int((~mask).sum()) for mask in together) == int(sparsity * (w.size + 3 * O))


def test_ties_do_not_change_the_share():
    for w in (jnp.ones((4, 6)), jnp.zeros((4, 6))):
        assert int(p.magnitude_mask(w, 0.5).sum()) == 12


def test_magnitude_keeps_the_largest():
    w = weights()
    mask = np.asarray(p.magnitude_mask(jnp.asarray(w), 0.4))
    assert np.abs(w[mask]).min() > np.abs(w[~mask]).max()


def test_global_pruning_takes_from_small_layers():
    large = jnp.asarray(np.sign(weights()) * (10.0 + np.abs(weights())))
    first, second = p.global_magnitude_masks([jnp.asarray(weights()), large], 0.5)
    assert not np.any(first)
    assert np.all(second)


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.62, 1.0])
def test_global_pruning_is_that_of_one_matrix(sparsity):
    """Ties, too: of equal magnitudes the first go."""
    parts = [np.round(weights()), np.round(weights(1)[:3])]
    found = p.global_magnitude_masks([jnp.asarray(part) for part in parts], sparsity)
    flat = jnp.asarray(np.concatenate([part.ravel() for part in parts]))
    expected = p.magnitude_mask(flat[None], sparsity)[0]
    np.testing.assert_array_equal(np.concatenate([mask.ravel() for mask in found]), expected)


def test_wanda_by_loop():
    w, x = weights(), inputs()
    norm = np.linalg.norm(x, axis=0)
    mask = np.asarray(p.per_output_mask(p.wanda_score(jnp.asarray(w), jnp.asarray(norm)), 0.5))
    for o in range(O):
        order = sorted(range(I), key=lambda i: abs(w[i, o]) * norm[i])
        assert sorted(np.flatnonzero(~mask[:, o])) == sorted(order[: I // 2])


def test_wanda_of_constant_inputs_is_magnitude_per_output():
    w = jnp.asarray(weights())
    score = p.wanda_score(w, jnp.full(I, 3.0))
    np.testing.assert_array_equal(p.per_output_mask(score, 0.5), p.per_output_mask(jnp.abs(w), 0.5))


@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 6), (4, 4), (1, 1)])
def test_n_of_m(n, m):
    w = weights()
    mask = np.asarray(p.n_of_m_mask(jnp.abs(jnp.asarray(w)), n, m))
    for o in range(O):
        for start in range(0, I, m):
            run, kept = np.abs(w[start : start + m, o]), mask[start : start + m, o]
            assert kept.sum() == n
            assert n == m or run[kept].min() > run[~kept].max()


@pytest.mark.parametrize(("n", "m"), [(2, 5), (0, 4), (5, 4)])
def test_n_of_m_that_does_not_fit(n, m):
    with pytest.raises(ValueError, match=f"{n}:{m} of 12 inputs"):
        p.n_of_m_mask(jnp.ones((I, O)), n, m)


def test_sparsegpt_of_even_inputs_is_magnitude():
    w = jnp.asarray(weights())
    found = p.sparsegpt(w, jnp.eye(I), 0.5)
    np.testing.assert_allclose(found, jnp.where(p.magnitude_mask(w, 0.5), w, 0.0), atol=1e-6)


def pruned_by_loop(w, gram, run, kept):
    """Optimal brain surgeon, with the inverse of what is left for each input; at each `run` inputs
    the mask of those is chosen anew, `kept` of each output or, if None, half of all of them."""
    w = w.copy()
    h = gram + c.DAMPING * np.mean(np.diagonal(gram)) * np.eye(len(gram))
    for i in range(len(w)):
        if i % run == 0:
            turn = range(i, min(i + run, len(w)))
            scores = np.array([w[j] ** 2 / np.linalg.inv(h[j:, j:])[0, 0] for j in turn])
            mask = np.ones_like(scores, bool)
            if kept is None:
                mask.flat[np.argsort(scores, axis=None)[: mask.size // 2]] = False
            else:
                np.put_along_axis(mask, np.argsort(scores, axis=0)[: run - kept], False, axis=0)
        inverse = np.linalg.inv(h[i:, i:])
        removed = np.where(mask[i % run], 0.0, w[i]) / inverse[0, 0]
        w[i:] -= inverse[:, :1] * removed[None]
    return w


@pytest.mark.parametrize(
    ("sparsity", "block", "run", "kept"),
    [
        (0.5, 4, 4, None),
        (0.5, 128, 128, None),
        ((2, 4), 128, 4, 2),
        ((2, 4), 9, 4, 2),
        ((1, 3), 128, 3, 1),
        ((3, 4), 2, 4, 3),
    ],
)
def test_sparsegpt_is_the_loop_that_it_stands_for(sparsity, block, run, kept):
    with jax.enable_x64(True):
        w, x = weights().astype(np.float64), inputs().astype(np.float64)
        gram = jnp.asarray(x.T @ x)
        found = np.asarray(p.sparsegpt(jnp.asarray(w), gram, sparsity, block))
        np.testing.assert_allclose(found, pruned_by_loop(w, x.T @ x, run, kept), atol=1e-8)
        share = 0.5 if kept is None else 1 - kept / run
        assert np.sum(found == 0.0) == round(share * w.size)
        only_masked = c.output_error(jnp.asarray(w), jnp.where(found == 0.0, 0.0, w), gram)
        assert c.output_error(jnp.asarray(w), jnp.asarray(found), gram) < only_masked


def test_sparsegpt_of_one_input_by_hand():
    """Removing one weight of two moves the other by the regression of one input on the other."""
    with jax.enable_x64(True):
        x = np.random.default_rng(3).normal(size=(T, 2)) @ np.array([[1.0, 0.8], [0.0, 0.6]])
        w = np.array([[0.1], [2.0]])
        found = p.sparsegpt(jnp.asarray(w), jnp.asarray(x.T @ x), 0.5, damping=0.0)
        moved = 2.0 + 0.1 * (x[:, 0] @ x[:, 1]) / (x[:, 1] @ x[:, 1])
        np.testing.assert_allclose(found, [[0.0], [moved]], rtol=1e-9)


def test_m_divides_the_inputs():
    with pytest.raises(ValueError, match=f"2:5 of {I} inputs"):
        p.sparsegpt(jnp.asarray(weights()), jnp.eye(I), (2, 5))


def test_layers_with_more_outliers_lose_less():
    """By hand of three layers; the mean stays, and so do all where layers are alike."""
    found = p.shares_by_layer(np.array([0.01, 0.03, 0.02]), 0.7, 0.08)
    np.testing.assert_allclose(found, [0.7 + 0.08, 0.7 - 0.08, 0.7])
    np.testing.assert_allclose(p.shares_by_layer(np.array([0.2, 0.2]), 0.7), [0.7, 0.7])
    np.testing.assert_allclose(p.shares_by_layer(np.array([0.0, 0.1]), 0.99, 0.08), [1.0, 0.91])


def test_outliers_are_beyond_five_means_of_the_layer():
    scores = [jnp.ones((3, 4)), jnp.asarray([[30.0, 8.0], [0.5, 0.5]])]  # of mean 3.2
    assert float(p.outlier_share(scores)) == pytest.approx(1 / 16)
    assert float(p.outlier_share([scores[0]])) == 0.0
