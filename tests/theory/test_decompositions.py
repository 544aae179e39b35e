"""Decompositions are NumPy's, one matrix at a time; no statement goes round them."""

import ast
from pathlib import Path

import jax
import numpy as np
import pytest

from theory import decompositions

STACK = np.random.default_rng(5).normal(size=(11, 7, 7))
SYMMETRIC = STACK + np.swapaxes(STACK, 1, 2)
MODULES = [
    path
    for path in sorted(Path(decompositions.__file__).parent.glob("*.py"))
    if path.name != "decompositions.py"
]


def test_the_values_of_numpy():
    with jax.enable_x64(True):
        values, vectors = jax.jit(jax.vmap(decompositions.eigh))(SYMMETRIC)
        q, r = jax.jit(jax.vmap(decompositions.qr))(STACK)
        inverse = jax.jit(jax.vmap(decompositions.pinv))(STACK[:, :, :3])
        singular = jax.jit(jax.vmap(decompositions.singular_values))(STACK[:, :3])
    np.testing.assert_allclose(values, np.linalg.eigvalsh(SYMMETRIC), rtol=1e-12)
    rebuilt = vectors * values[:, None] @ np.swapaxes(vectors, 1, 2)
    np.testing.assert_allclose(rebuilt, SYMMETRIC, atol=1e-12)
    np.testing.assert_allclose(q @ r, STACK, atol=1e-12)
    np.testing.assert_allclose(np.tril(r, -1), 0.0, atol=0.0)
    np.testing.assert_allclose(inverse, np.linalg.pinv(STACK[:, :, :3]), rtol=1e-10)
    expected = np.linalg.svd(STACK[:, :3], compute_uv=False)
    np.testing.assert_allclose(singular, expected, rtol=1e-12)


@pytest.mark.parametrize("name", ["eigh", "qr", "pinv", "singular_values"])
def test_no_call_takes_a_batch(name):
    """A batched call waits for threads that a second one may hold."""
    function = getattr(decompositions, name)
    lowered = jax.jit(jax.vmap(function)).lower(STACK.astype(np.float32)).as_text()
    calls = [line for line in lowered.splitlines() if "@lapack_" in line]
    assert calls
    assert not any("tensor<11x" in line for line in calls)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_statement_decomposes_by_itself(path):
    used = {
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "jnp.linalg"
    }
    assert used <= {"norm"}, used
    assert "ord=" not in path.read_text()  # a norm by singular values
