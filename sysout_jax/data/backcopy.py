"""Bigram-Backcopy: the smallest task on which attention sinks form (arXiv:2410.13835)."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from sysout_jax.core.backcopy import BOS, TEXT_TOKENS, chain
from sysout_jax.data.batches import check_request, random_words
from sysout_jax.errors import InputError


@dataclass(frozen=True)
class Backcopy:
    """A Markov chain with three triggers: after a trigger the token BEFORE it is copied.

    The chain over 64 tokens has row logits log(1 / (j + 3)) + 2 N(0, 1) at column j, drawn once
    from `chain_seed`. The triggers are its three most frequent tokens (stationary distribution of
    the chain without copying). A row is BOS, a first token drawn from the stationary distribution
    without the triggers, and then for each next token: a copy of x[t-1] if x[t] is a trigger, else
    a draw from the chain at x[t].

    Why the first token is no trigger: there would be only BOS to copy. It follows that the token
    before a trigger is never a trigger (a copy is of a non-trigger, so the next draw starts from
    one); were it, the two would copy each other in an endless alternation.

    Without BOS rows begin with that first token, so there is none whose value nobody needs.

    Source: Guo et al. 2024, Active-Dormant Attention Heads, arXiv:2410.13835.
    """

    chain_seed: int = 0
    begins_with_bos: bool = True
    name: ClassVar[str] = "backcopy"
    vocab: ClassVar[int] = TEXT_TOKENS + 1
    tokenizer: ClassVar[None] = None
    documents: ClassVar[None] = None
    split: ClassVar[str] = "drawn apart: train and validation have different random keys"

    @property
    def tokens(self) -> dict[str, int]:
        """Empty: rows are drawn, not stored."""
        return {}

    @property
    def bos(self) -> int | None:
        """The id in front of every row; None where there is none."""
        return BOS if self.begins_with_bos else None

    @property
    def transition(self) -> np.ndarray:
        """float64 [64, 64]: P(next | token), for a token that is no trigger."""
        return chain(self.chain_seed).transition

    @property
    def first(self) -> np.ndarray:
        """float64 [64]: distribution of the token after BOS."""
        return chain(self.chain_seed).first

    @property
    def triggers(self) -> tuple[int, ...]:
        """The trigger tokens, most frequent first."""
        return chain(self.chain_seed).triggers

    def batch(
        self,
        split: str,
        seed: int,
        index: int,
        batch_size: int,
        seq_len: int,
        rows: np.ndarray | None = None,
    ) -> np.ndarray:
        """Fresh rows: inputs are `[:, :-1]`, targets `[:, 1:]`.

        Args:
          split: `train` or `val`; the two never share a random key.
          seed, index: which stream, and which batch of it; both from 0.
          batch_size, seq_len: B and T.
          rows: which rows of the batch; None: all.

        Returns:
          int32 [B, T + 1], or as many rows as `rows`; BOS, if any, in column 0.

        Raises:
          InputError: a size below 1, a negative seed or index.
        """
        check_request(split, seed, index, batch_size, seq_len)
        return self.drawn(split, seed, range(index, index + 1), batch_size, seq_len, rows)[0]

    def drawn(
        self,
        split: str,
        seed: int,
        indices: range,
        batch_size: int,
        seq_len: int,
        rows: np.ndarray | None = None,
    ) -> np.ndarray:
        """The batches of these numbers, drawn in one go: int32 [n, B, T + 1]."""
        cut = 0 if self.begins_with_bos else 1  # the rows that have a BOS, without it
        shape = (seq_len + cut, batch_size)
        uniform = []
        for index in indices:
            words = random_words(batch_size * shape[0], "backcopy", split, seed, index)
            numbers = (words >> np.uint64(11)).reshape(shape) * 2.0**-53
            uniform.append(numbers if rows is None else numbers[:, rows])
        found = chain(self.chain_seed).rows(np.concatenate(uniform, axis=1))
        return found.reshape(len(indices), -1, shape[0] + 1)[..., cut:]

    def distinct(self, split: str, count: int, seq_len: int) -> np.ndarray:
        """Rows to judge by: int32 [B, T + 1], the first batch of seed 0's stream."""
        return self.batch(split, 0, 0, count, seq_len)

    def epochs(self, steps: int, batch_size: int, seq_len: int) -> float:
        """Always 0: no row is ever seen twice."""
        return 0.0

    def trigger_queries(self, tokens: np.ndarray) -> np.ndarray:
        """True where the token is a trigger, so that the next one is copied; shape of `tokens`."""
        return chain(self.chain_seed).is_trigger[np.asarray(tokens)]

    def entropy_floor(self, tokens: np.ndarray) -> np.ndarray:
        """Cross-entropy of the true distribution on rows of the task: no model can do better.

        -log p(x[t+1] | x[0..t]): log of `first` after BOS, of `transition` after a token, and 0
        after a trigger.

        Args:
          tokens: int [B, T + 1] as `batch` gives them.

        Returns:
          float64 [B, T] in nats; infinite where the task cannot produce that token.

        Raises:
          InputError: rows that do not start with BOS, or that have it although the task has none.
        """
        tokens = np.asarray(tokens)
        if not self.begins_with_bos and tokens.ndim == 2:
            longer = replace(self, begins_with_bos=True)
            return longer.entropy_floor(np.insert(tokens, 0, BOS, axis=1))[:, 1:]
        if tokens.ndim != 2 or tokens.shape[1] < 2 or (tokens[:, 0] != BOS).any():
            raise InputError("entropy_floor", why=f"wanted rows that start with BOS ({BOS})")
        if tokens.min() < 0 or tokens[:, 1:].max() >= TEXT_TOKENS:
            raise InputError("entropy_floor", why=f"wanted tokens 0 to {TEXT_TOKENS - 1} after BOS")
        task = chain(self.chain_seed)
        current, target = tokens[:, 1:-1], tokens[:, 2:]
        copied = np.where(target == tokens[:, :-2], 0.0, np.inf)
        with np.errstate(divide="ignore"):
            first = -np.log(task.first[tokens[:, 1:2]])
            drawn = -np.log(task.transition[current, target])
        rest = np.where(task.is_trigger[current], copied, drawn)
        return np.concatenate([first, rest], axis=1)


@dataclass(frozen=True)
class Backcopies:
    """Several chains in one corpus: a training seed s has chain s modulo their number.

    Seeds that are trained together are so of all chains, in one compiled program.
    """

    chain_seeds: tuple[int, ...]
    begins_with_bos: bool = True
    name: ClassVar[str] = Backcopy.name
    vocab: ClassVar[int] = Backcopy.vocab
    tokenizer: ClassVar[None] = None

    def of(self, seed: int) -> Backcopy:
        """The task that a training seed has."""
        chain_seed = self.chain_seeds[seed % len(self.chain_seeds)]
        return Backcopy(chain_seed, self.begins_with_bos)

    def batch(
        self,
        split: str,
        seed: int,
        index: int,
        batch_size: int,
        seq_len: int,
        rows: np.ndarray | None = None,
    ) -> np.ndarray:
        """Rows of the seed's own task, as its `Backcopy.batch` gives them."""
        check_request(split, seed, index, batch_size, seq_len)
        found = _together(self.of(seed), split, seed, index // TOGETHER, batch_size, seq_len)
        batch = found[index % TOGETHER]
        return batch if rows is None else batch[rows]


TOGETHER = 50  # batches of one seed that are drawn in one go: as long as one alone takes


@functools.lru_cache(maxsize=64)
def _together(
    task: Backcopy, split: str, seed: int, part: int, batch_size: int, seq_len: int
) -> np.ndarray:
    numbers = range(part * TOGETHER, (part + 1) * TOGETHER)
    found = task.drawn(split, seed, numbers, batch_size, seq_len)
    found.setflags(write=False)
    return found
