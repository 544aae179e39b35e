"""Compression from Python: the command's methods, on a model and text."""

import dataclasses

import jax
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analysis.compress import calibration, compressed, compression, schemes
from sysout_jax.errors import InputError
from sysout_jax.model.stream import Layers
from tests.refusing import refusal

CONFIG = so.ModelConfig(vocab=31, context=16, layers=2, width=16, heads=2, mlp="swiglu")
TOKENS = np.random.default_rng(0).integers(0, 31, (3, 12))


@pytest.fixture(scope="module")
def model():
    drawn = so.init(CONFIG, seed=3)
    large = jax.tree.map(lambda x: 12.0 * x if x.ndim > 1 else x, drawn.params)
    return dataclasses.replace(drawn, params=large)


def test_losses_are_those_of_the_logits(model):
    logits = np.float64(so.apply(model, TOKENS)[0])[:, :-1]
    picked = np.take_along_axis(logits, TOKENS[:, 1:, None], -1)[..., 0]
    expected = (np.log(np.exp(logits).sum(-1)) - picked).mean(axis=1)
    np.testing.assert_allclose(so.losses(model, TOKENS), expected, rtol=1e-5)


def test_an_edit_means_what_it_means_to_apply(model):
    """Of the last position, and of arrays as long as the text."""
    state = so.apply(model, TOKENS, {"block_out": so.Tap(None, 0)})[1]["block_out"][0]
    whole = so.Edit(lambda old, layer, new: 0.5 * new, state, layers=0, in_axes=0)
    last = so.Edit(lambda old, layer: old.at[-1].set(0.0), layers=0)
    for edit in (whole, last):
        logits = np.float64(so.apply(model, TOKENS, edits={"block_out": edit})[0])[:, :-1]
        picked = np.take_along_axis(logits, TOKENS[:, 1:, None], -1)[..., 0]
        expected = (np.log(np.exp(logits).sum(-1)) - picked).mean(axis=1)
        found = so.losses(model, TOKENS, {"block_out": edit})
        np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("method", ["w4", "w8a8-tensor", "gptq-w3", "kv4", "wanda-0.5"])
def test_a_method_is_that_of_the_command(model, method):
    """With and without edits, and with calibration that counts."""
    small, edits = so.compress(model, method, TOKENS)
    compressor = compression.Compressor(CONFIG, model.params, TOKENS)
    found = compressor.compress(schemes.scheme(method))
    jax.tree.map(np.testing.assert_array_equal, small.params, found.params)
    assert set(edits) == set(found.edits)
    mine = np.asarray(so.losses(small, TOKENS, edits))
    assert np.abs(mine - np.asarray(so.losses(model, TOKENS))).max() > 1e-4
    if method != "w8a8-tensor":  # whose scale is of all tokens, the last one here among them
        expected = compressed.losses(CONFIG, found, TOKENS)
        np.testing.assert_allclose(mine, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("method", "tokens", "said"),
    [
        ("w9", TOKENS, "is none of the words; accepted: formats as w8"),
        ("w8a8", TOKENS[:, :1], "tokens: 1 in a sequence; accepted: 2 or more"),
        ("w8a8", TOKENS + 31, "token id"),
        ("wanda-0.5", "text", "the model has no tokenizer"),
        ("gptq-w4", None, "tokens: accepted: text or ids, which gptq-w4 learns from"),
    ],
)
def test_what_cannot_be_is_one_line(model, method, tokens, said):
    assert said in refusal(so.compress, model, method, tokens)


def test_what_learns_from_no_text_needs_none(model):
    without, edits = so.compress(model, "w4a8")
    given, _ = so.compress(model, "w4a8", TOKENS)
    jax.tree.map(np.testing.assert_array_equal, without.params, given.params)
    assert set(edits) == set(calibration.PRODUCTS)


def test_sites_and_the_share_of_the_scale_are_those_of_the_command(model):
    small, edits = so.compress(model, "smooth-w8a8", TOKENS, sites=("attn_norm",), alpha=0.8)
    made = compression.Compressor(CONFIG, model.params, TOKENS, ("attn_norm",), 0.8)
    found = made.compress(schemes.scheme("smooth-w8a8"))
    jax.tree.map(np.testing.assert_array_equal, small.params, found.params)
    assert set(edits) == {"attn_norm"}
    for wrong in ({"sites": ("nowhere",)}, {"alpha": 1.5}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))}=.*accepted: "):
            so.compress(model, "smooth-w8a8", TOKENS, **wrong)


def test_a_model_that_is_read_layer_by_layer_is_refused():
    lazy = so.Model(CONFIG, Layers(lambda name: None, ("embed",)), None)
    with pytest.raises(InputError, match="model: it is read layer by layer"):
        so.compress(lazy, "w8a8", TOKENS)
