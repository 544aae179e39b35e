"""`so.apply` runs ids of the model, and refuses what is none."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.errors import InputError
from sysout_jax.model.decoder import forward, init
from sysout_jax.model.model import token_ids
from tests.refusing import refusal

CONFIG = so.ModelConfig(vocab=7, context=8, layers=1, width=8, heads=2)
MODEL = so.Model(CONFIG, init(CONFIG, jax.random.key(0)))
IDS = [[0, 6, 3], [1, 2, 5]]


def test_ids_may_be_of_any_kind():
    expected = jax.jit(lambda t: forward(CONFIG, MODEL.params, t)[0])(jnp.asarray(IDS))
    for tokens in (IDS, np.array(IDS), np.array(IDS, np.uint16), jnp.asarray(IDS)):
        np.testing.assert_array_equal(so.apply(MODEL, tokens)[0], expected)
    traced = jax.jit(lambda t: so.apply(MODEL, t)[0])(jnp.asarray(IDS))
    np.testing.assert_allclose(traced, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("tokens", "told"),
    [
        (jnp.array([[0, 7]]), "tokens: token id 7; accepted: 0 to 6, the ids of the model's own"),
        (np.array([[0, -1]]), "tokens: token id -1; accepted: 0 to 6"),
        (np.array([[0, 2**32]]), "tokens: token id 4294967296; accepted: 0 to 6"),
        (np.arange(3), "tokens: int64 of shape [3]; accepted: integer ids [B, T], at least one"),
        (jnp.zeros((1, 0), int), "tokens: int32 of shape [1, 0]; accepted: "),
        (np.zeros((1, 2)), "tokens: float64 of shape [1, 2]; accepted: "),
        (np.zeros((1, 2), bool), "tokens: bool of shape [1, 2]; accepted: "),
        ([[1, 2], [3]], "tokens: rows of different lengths; accepted: integer ids [B, T]"),
    ],
)
def test_what_is_no_id_gets_one_line(tokens, told):
    assert told in refusal(so.apply, MODEL, tokens)


@pytest.mark.parametrize("ids", [3, [1, 2], [[1.0, 2.0]], [["a", "b"]], [[]], None])
def test_lists_are_read_as_arrays(ids):
    """Of a user without type checks."""
    with pytest.raises(InputError, match=r"accepted: integer ids \[B, T\]"):
        token_ids("tokens", ids, "B T", 7)


def test_shapes_are_checked_where_values_are_not_known():
    with pytest.raises(InputError, match=r"tokens: int32 of shape \[3\]"):
        jax.eval_shape(lambda t: so.apply(MODEL, t), jnp.arange(3))
