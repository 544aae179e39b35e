"""A second published model, of another family: Gemma 3 270M. Its first token is massive, and in the
same channels all other tokens are large. Layers and channels count from 0."""

import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.data.prompt import PROMPT
from tests.published.reference import place_of

FIRST, LATER = 400, 163  # the channel that is largest in layers 0 to 2, and from 3 on

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gemma3(published):
    return so.load(published("gemma3-270m"))


@pytest.fixture(scope="module")
def seen(gemma3):
    """Logits [T, V], states [L, T, D], and mean attention to the first token [L, N]."""
    to_first = {"block_out": None, "attn_weights": lambda x: x[:, 1:, 0].mean(axis=1)}
    logits, taps = so.apply(gemma3, PROMPT, to_first)
    return np.asarray(logits)[0], *(np.asarray(taps[name])[:, 0] for name in to_first)


def test_logits_are_the_references(gemma3, seen):
    """transformers' own reading of the same file; the tokenizer's ids are equal too."""
    with np.load(place_of("gemma3-270m")) as record:
        ids, columns, logits, largest = (
            record[name] for name in ("ids", "columns", "logits", "largest")
        )
    np.testing.assert_array_equal(so.encode(gemma3, PROMPT)[0], ids)
    np.testing.assert_allclose(seen[0][:, columns], logits, rtol=0, atol=2e-3)
    np.testing.assert_allclose(np.abs(seen[1]).max(axis=(1, 2))[:-1], largest, rtol=1e-4)


def test_the_first_token_is_massive_in_one_channel(seen):
    """Beyond 1,000 means, the bound of An et al. 2025, from layer 0 to 8."""
    size = np.abs(seen[1])
    places = [np.unravel_index(layer.argmax(), layer.shape) for layer in size]
    assert places == [(0, FIRST)] * 3 + [(0, LATER)] * 15
    over = size.max(axis=(1, 2)) / size.mean(axis=(1, 2))
    assert (over[:9] > 1000).sum() >= 8
    assert over[-1] < 300


def test_other_tokens_are_massive_too(seen):
    """In the same two channels the largest of them is beyond 400 medians in layers 1 to 8."""
    others = np.abs(seen[1])[:, 1:]
    assert set(others.max(axis=1).argmax(axis=-1)) == {FIRST, LATER}
    median = np.median(np.abs(seen[1]), axis=(1, 2))
    assert (others.max(axis=(1, 2))[1:9] > 400 * median[1:9]).all()


def test_most_heads_have_a_sink(seen):
    assert (seen[2] > 0.3).mean() > 0.8


def test_its_first_token_becomes_parameters_exactly(gemma3):
    """Norms of queries and keys, windows and one head of values: rotated keys and all."""
    ids = so.encode(gemma3, PROMPT)
    found = so.convert(gemma3, prefix=ids[0, :1].tolist())
    whole, rest = so.apply(gemma3, ids)[0], so.apply(found.model, ids[:, 1:])[0]
    np.testing.assert_allclose(rest, whole[:, 1:], rtol=0, atol=2e-3)
