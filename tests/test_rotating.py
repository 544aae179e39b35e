"""A model in another basis, as a notebook asks for it and as it is written."""

from dataclasses import replace

import jax
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.model.config import SHAPES
from sysout_jax.model.stream import Layers
from tests.refusing import refusal

CONFIG = replace(SHAPES["llama-tiny"], vocab=31, layers=2, width=24, heads=4, tied=True)
TOKENS = np.random.default_rng(0).integers(0, 31, (2, 9))


@pytest.fixture(scope="module")
def model():
    drawn = so.init(CONFIG, seed=3)
    return drawn.replace(params=jax.tree.map(lambda x: 2.0 * x, drawn.params))


def test_a_channel_is_spread_over_all_and_logits_stay(model):
    state = so.Tap(None, 0)
    model = model.replace(params=model.params | {"embed": model.params["embed"].at[:, 5].mul(90.0)})
    turned = so.rotate(model)
    before, seen = so.apply(model, TOKENS, {"block_in": state})
    after, found = so.apply(turned, TOKENS, {"block_in": state})
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-4)
    states = [np.asarray(of["block_in"]).reshape(-1, CONFIG.width) for of in (seen, found)]
    sizes = [np.linalg.norm(of, axis=-1) for of in states]
    np.testing.assert_allclose(sizes[1], sizes[0], rtol=1e-5)
    peaks = [np.median(np.abs(of).max(-1) / size) for of, size in zip(states, sizes, strict=True)]
    assert peaks[0] > 0.9
    assert peaks[1] < 0.5  # 1 / sqrt(D) = 0.2 at the least


def test_a_seed_is_a_basis(model):
    same, other = so.rotate(model, seed=0), so.rotate(model, seed=1)
    jax.tree.map(np.testing.assert_array_equal, same.params, so.rotate(model).params)
    assert not np.allclose(same.params["embed"], other.params["embed"])
    back = so.apply(so.rotate(other, seed=2), TOKENS)[0]
    np.testing.assert_allclose(back, so.apply(model, TOKENS)[0], rtol=1e-4, atol=1e-4)


def test_it_is_written_as_its_family_has_it(model, tmp_path):
    turned = so.rotate(model)
    so.export(turned, tmp_path / "llama", "llama")
    found = so.load(tmp_path / "llama")
    assert not found.config.tied
    np.testing.assert_array_equal(so.apply(found, TOKENS)[0], so.apply(turned, TOKENS)[0])
    so.save(turned, tmp_path / "own")
    np.testing.assert_array_equal(
        so.apply(so.load(tmp_path / "own"), TOKENS)[0], so.apply(turned, TOKENS)[0]
    )


def test_what_is_refused(model):
    lazy = model.replace(params=Layers(lambda name: None, ("embed",)))
    assert "layer by layer" in refusal(so.rotate, lazy)
    post = replace(CONFIG, norm_placement="post")
    assert refusal(so.rotate, so.init(post)).startswith("norm_placement=post: ")
