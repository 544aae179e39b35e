"""Words and copies against plain loops, and models whose ability is known."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.analysis.measure.zero_shot import (
    copying,
    greedy,
    next_words,
    repeated,
    vocabulary,
    words,
)
from sysout_jax.data import load_tokenizer
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import forward, init

TEXT = "The cat's 3 hats, été_x; no-one\nknew   why. A sun, sunday sun."
BYTES = load_tokenizer("bytes")


@pytest.fixture(scope="module", params=["bytes", "bpe"])
def tokenizer(request):
    if request.param == "bytes":
        return BYTES
    return load_tokenizer("bpe:280", lambda: [TEXT * 40])


@pytest.fixture(scope="module")
def kinds(tokenizer):
    return vocabulary(tokenizer.decode, tokenizer.vocab, {tokenizer.eot, tokenizer.bos})


def test_words_are_those_of_the_text(tokenizer, kinds):
    """Letters and digits after white space, up to the next character that is neither."""
    tokens = tokenizer.encode(TEXT)
    found = [
        tokenizer.decode(tokens[first : last + 1]).strip()
        for first, last in words(kinds, tokens, 1)
    ]
    expected = re.findall(r"(?<=\s)[^\W_]+(?=.)", TEXT)
    assert found == expected
    assert "été" in found
    assert "one" not in found  # nothing white before it


def test_a_word_needs_context_and_an_end():
    kinds = vocabulary(BYTES.decode, BYTES.vocab, {BYTES.eot, BYTES.bos})
    tokens = BYTES.encode("ab cd ef")
    assert words(kinds, tokens, 1) == [(3, 4)]  # "ef" may go on
    assert words(kinds, tokens, 4) == []
    assert words(kinds, BYTES.encode("ab cd ef."), 1) == [(3, 4), (6, 7)]


def guesses_of(tokenizer, row, changes=()):
    """Perfect predictions, but for changes {position of the token: text of what is guessed}."""
    guesses = row[1:].copy()
    for position, text in dict(changes).items():
        (guesses[position - 1],) = tokenizer.encode(text)
    return guesses[None]


@pytest.mark.parametrize(
    ("changes", "right"),
    [
        ({}, 3),
        ({8: "x"}, 2),  # a letter inside "sun"
        ({7: "x"}, 2),  # its first letter
        ({6: ";"}, 3),  # the space before it is no part of it
        ({6: "x"}, 2),  # but "my" goes on
        ({10: "d"}, 2),  # "sun" goes on: the word that is written is another
        ({10: ";"}, 3),  # ends otherwise, but ends
    ],
)
def test_a_word_is_right_as_a_whole(changes, right):
    kinds = vocabulary(BYTES.decode, BYTES.vocab, {BYTES.eot, BYTES.bos})
    row = BYTES.encode("No, my sun, sunday.")
    assert row[7:10].tolist() == BYTES.encode("sun").tolist()
    for context in (0, 1):  # nothing predicts the first token
        found = next_words(kinds, row[None], guesses_of(BYTES, row, changes), context)
        assert found == (right, 3)


def test_greedy_decoding_writes_what_counts_as_right(tokenizer, kinds):
    """The definition by teacher forcing against decoding token by token, on a random model."""
    config = ModelConfig(vocab=tokenizer.vocab, layers=1, width=8, heads=1, context=64)
    params = init(config, jax.random.key(3))
    params = jax.tree.map(lambda x: 30 * x, params)  # guesses that vary
    row = np.concatenate([[tokenizer.bos], tokenizer.encode(TEXT)]).astype(np.int32)[:48]
    guesses, _ = greedy(config, params, row[None])
    guesses = guesses.copy()
    for first, last in words(kinds, row, 1)[::2]:
        guesses[0, first - 1 : last] = row[first : last + 1]
    right = 0
    for first, last in words(kinds, row, 1):
        written = []
        for position in range(first - 1, last):
            written.append(guesses[0, position])
            if written != row[first : position + 2].tolist():
                break
        else:
            right += not kinds.inside[guesses[0, last]]
    assert next_words(kinds, row[None], guesses, 1) == (right, len(words(kinds, row, 1)))


def test_greedy_is_the_models_argmax_and_loss():
    config = ModelConfig(vocab=13, layers=1, width=8, heads=1, context=7)
    params = init(config, jax.random.key(0))
    rows = np.random.default_rng(0).integers(0, 13, (3, 8)).astype(np.int32)
    guesses, losses = greedy(config, params, rows, batch=2)
    logits = np.asarray(forward(config, params, jnp.asarray(rows[:, :-1]))[0], np.float64)
    np.testing.assert_array_equal(guesses, logits.argmax(-1))
    log_z = np.log(np.exp(logits).sum(-1))
    expected = log_z - np.take_along_axis(logits, rows[:, 1:, None].astype(int), -1)[..., 0]
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


@pytest.mark.parametrize("bos", [None, 12])
def test_rows_come_twice(bos):
    rows = repeated(jax.random.key(1), np.arange(3, 11), 5, 400, bos)
    front = 0 if bos is None else 1
    assert rows.shape == (400, 10 + front)
    assert rows.dtype == np.int32
    np.testing.assert_array_equal(rows[:, front : front + 5], rows[:, front + 5 :])
    assert (rows[:, :front] == 12).all()
    share = np.bincount(rows[:, front : front + 5].ravel(), minlength=11)[3:] / 2000
    np.testing.assert_allclose(share, 1 / 8, atol=5 * np.sqrt(1 / 8 * 7 / 8 / 2000))
    assert not np.array_equal(rows, repeated(jax.random.key(2), np.arange(3, 11), 5, 400, bos))


@pytest.mark.parametrize("bos", [None, 12])
def test_copying_by_loop(bos):
    length, random = 5, np.random.default_rng(2)
    rows = repeated(jax.random.key(1), np.arange(11), length, 7, bos)
    guesses = np.where(random.random((7, rows.shape[1] - 1)) < 0.5, rows[:, 1:], 0)
    losses = random.uniform(0, 3, guesses.shape)
    found = copying(rows, guesses, losses, length)
    front = 0 if bos is None else 1
    first, second, right = [], [], []
    for row, guess, loss in zip(rows, guesses, losses, strict=True):
        for i in range(1, length):  # the second to the last token of a copy
            first.append(loss[front + i - 1])
            second.append(loss[front + length + i - 1])
            right.append(guess[front + length + i - 1] == row[front + length + i])
    assert found.loss_first == pytest.approx(np.mean(first))
    assert found.loss_second == pytest.approx(np.mean(second))
    assert found.accuracy == pytest.approx(np.mean(right))
    assert found.gain.mean == pytest.approx(np.mean(first) - np.mean(second))
    assert found.gain.low < found.gain.mean < found.gain.high


def test_a_model_without_memory_gains_nothing():
    """An untrained model without positions: the loss is that of chance on either copy."""
    config = ModelConfig(vocab=13, layers=1, width=8, heads=1, context=20, position="none")
    rows = repeated(jax.random.key(1), np.arange(11), 10, 64, 12)
    found = copying(rows, *greedy(config, init(config, jax.random.key(0)), rows), 10)
    assert found.loss_first == pytest.approx(np.log(13), abs=0.02)
    assert found.gain.low < 0.002
    assert abs(found.gain.mean) < 0.01
