"""Zero-shot abilities that need no benchmark: whole next words, and copying from the context."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from sysout_jax.analysis.locate.scan import for_length, over_batches
from sysout_jax.analysis.statistics import Interval, bootstrap_interval
from sysout_jax.core.layers import cross_entropy
from sysout_jax.model.compiling import precisely
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, forward

# A token that is part of a character decodes to U+FFFD: letters beyond ASCII are words too.
_INSIDE = re.compile(r"(?:[^\W_]|�)+")
_OPENING = re.compile(r"\s+(?:[^\W_]|�)+")


@dataclass(frozen=True)
class Vocabulary:
    """Which tokens words are made of.

    opens: [V], white space and then only letters or digits.
    inside: [V], letters or digits only; such a token opens a word where `blank` comes before it.
    blank: [V], white space only.
    """

    opens: Bool[np.ndarray, "V"]
    inside: Bool[np.ndarray, "V"]
    blank: Bool[np.ndarray, "V"]


def vocabulary(text: Callable[[list[int]], str], size: int, specials: set[int]) -> Vocabulary:
    """Sort the tokens of a tokenizer.

    Args:
      text: what a list of ids decodes to, e.g. `tokenizer.decode`.
      size: V, ids are below it.
      specials: ids that stand for no text.
    """
    texts = ["" if i in specials else text([i]) for i in range(size)]
    return Vocabulary(
        np.array([bool(_OPENING.fullmatch(t)) for t in texts]),
        np.array([bool(_INSIDE.fullmatch(t)) for t in texts]),
        np.array([t.isspace() for t in texts]),
    )


def words(kinds: Vocabulary, tokens: Int[np.ndarray, "S"], context: int) -> list[tuple[int, int]]:
    """The words of a row as (first, last) positions of their tokens.

    A word is a token that opens one and those inside it that follow. It counts where it has at
    least `context` tokens before it, of which it is predicted and of which there is one, and a
    token after it that shows where it ends.
    """
    found = []
    opens = kinds.opens[tokens]
    opens[1:] |= kinds.inside[tokens[1:]] & kinds.blank[tokens[:-1]]
    inside = kinds.inside[tokens]
    for first in np.flatnonzero(opens).tolist():
        last = first
        while last + 1 < tokens.size and inside[last + 1]:
            last += 1
        if first >= max(context, 1) and last + 1 < tokens.size:
            found.append((first, last))
    return found


def next_words(
    kinds: Vocabulary, rows: Int[np.ndarray, "B S"], guesses: Int[np.ndarray, "B T"], context: int
) -> tuple[int, int]:
    """How many words greedy decoding writes exactly, and how many there are.

    A word is right if each of its tokens is the likeliest given the true ones before, which is to
    say that greedy decoding writes it, and the likeliest token after it is not one inside a word:
    "sun" for "sunday" is wrong, and so is "sunday" for "sun".

    Args:
      kinds: of the tokens.
      rows: S = T + 1 tokens each.
      guesses: the likeliest next token at each position, as `greedy` returns them.
      context: tokens that a word must have before it.

    Source: whole words after Paperno et al. 2016 (LAMBADA), here any word of running text.
    """
    right = total = 0
    for row, guess in zip(rows, guesses, strict=True):
        for first, last in words(kinds, row, context):
            total += 1
            exact = (guess[first - 1 : last] == row[first : last + 1]).all()
            right += bool(exact and not kinds.inside[guess[last]])
    return right, total


def greedy(
    config: ModelConfig, params: Params, rows: Int[np.ndarray, "B S"], batch: int = 8
) -> tuple[Int[np.ndarray, "B T"], Float[np.ndarray, "B T"]]:
    """The likeliest next token at each position, and the loss of the true one in nats.

    Args:
      config: the architecture.
      params: its parameters.
      rows: S = T + 1 tokens each.
      batch: sequences that are run together.
    """
    run = partial(_greedy, for_length(config, rows.shape[1] - 1))
    guesses, losses = over_batches(run, params, rows, batch)
    return guesses[0], losses[0]


@precisely
@partial(jax.jit, static_argnums=0)
def _greedy(config: ModelConfig, params: Params, rows: Array) -> tuple[Array, Array]:
    logits, _ = forward(config, params, rows[:, :-1])
    losses = cross_entropy(logits, rows[:, 1:])
    return jnp.argmax(logits, axis=-1)[None], losses[None]


@dataclass(frozen=True)
class Copying:
    """What a model makes of random tokens that come twice.

    loss_first, loss_second: nats per token on either copy.
    accuracy: share of the second copy that is predicted.
    gain: of a sequence, first loss minus second, with a bootstrap interval over sequences.
    """

    loss_first: float
    loss_second: float
    accuracy: float
    gain: Interval


def repeated(
    key: Array, tokens: Int[np.ndarray, "W"], length: int, count: int, bos: int | None
) -> Int[np.ndarray, "B S"]:
    """Rows of `length` random tokens and then the same once more.

    Args:
      key: a jax.random.key.
      tokens: what to draw from, uniformly.
      length: of one copy.
      count: B, rows.
      bos: id in front of every row; None for none.
    """
    drawn = np.asarray(jax.random.choice(key, jnp.asarray(tokens), (count, length)), np.int32)
    front = np.full((count, 0 if bos is None else 1), 0 if bos is None else bos, np.int32)
    return np.concatenate([front, drawn, drawn], axis=1)


def copying(
    rows: Int[np.ndarray, "B S"],
    guesses: Int[np.ndarray, "B T"],
    losses: Float[np.ndarray, "B T"],
    length: int,
) -> Copying:
    """Read copying off the predictions of `repeated` rows.

    The first token of the second copy is left out, for nothing announces it, and so is that of
    the first: both sides are `length` - 1 tokens, the same ones.

    Source: Olsson et al. 2022 (arXiv:2209.11895), repeated random tokens.
    """
    second = slice(rows.shape[1] - length, rows.shape[1] - 1)  # predictions of the second copy
    first = slice(second.start - length, second.stop - length)
    right = guesses[:, second] == rows[:, second.start + 1 : second.stop + 1]
    before, after = losses[:, first].mean(axis=1), losses[:, second].mean(axis=1)
    return Copying(
        float(before.mean()), float(after.mean()), float(right.mean()),
        bootstrap_interval(before - after),
    )  # fmt: skip
