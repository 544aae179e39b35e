"""The Bigram-Backcopy task (Guo et al. 2024, arXiv:2410.13835) as arrays: chain and rows."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

TEXT_TOKENS = 64
BOS = TEXT_TOKENS
TRIGGERS = 3


@dataclass(frozen=True, eq=False)
class Chain:
    """A Markov chain over 64 tokens, three of which are triggers; BOS is the 65th token.

    transition: float64 [64, 64], P(next | token) for a token that is no trigger.
    first: float64 [64], distribution of the token after BOS.
    triggers: the trigger tokens, most frequent first.
    is_trigger: bool [65].
    """

    transition: np.ndarray
    first: np.ndarray
    triggers: tuple[int, ...]
    is_trigger: np.ndarray
    _first_cdf: np.ndarray
    _stacked_cdf: np.ndarray

    def rows(self, uniform: np.ndarray) -> np.ndarray:
        """Rows of the task by inverse CDF: BOS, a first token, then copies and draws.

        Args:
          uniform: [T, B] in [0, 1), one number for each token drawn; those of copies are not used.

        Returns:
          int32 [B, T + 1], BOS in column 0.
        """
        rows = np.empty((len(uniform) + 1, uniform.shape[1]), np.int32)
        rows[0] = BOS
        rows[1] = np.searchsorted(self._first_cdf, uniform[0], side="right")
        for t in range(1, len(uniform)):
            drawn = self._draw(rows[t], uniform[t])
            rows[t + 1] = np.where(self.is_trigger[rows[t]], rows[t - 1], drawn)
        return np.ascontiguousarray(rows.T)

    def _draw(self, token: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """Inverse CDF of each token's row, all rows in one sorted array: row i is i + its CDF."""
        found = np.searchsorted(self._stacked_cdf, token + uniform, side="right")
        return np.minimum(found - token * TEXT_TOKENS, TEXT_TOKENS - 1)


@functools.lru_cache(maxsize=16)
def chain(seed: int) -> Chain:
    """Draw the chain of a seed.

    Row logits are log(1 / (j + 3)) + 2 N(0, 1) at column j. The triggers are the three most
    frequent tokens in the stationary distribution of the chain without copying; `first` is that
    distribution without them.
    """
    # RandomState's stream is frozen (NEP 19); Generator.normal may change between releases.
    noise = np.random.RandomState(seed).standard_normal((TEXT_TOKENS, TEXT_TOKENS))
    scores = np.exp(2 * noise) / (np.arange(TEXT_TOKENS) + 3)
    transition = scores / scores.sum(axis=1, keepdims=True)
    stationary = _stationary(transition)
    triggers = np.argsort(-stationary, kind="stable")[:TRIGGERS]
    is_trigger = np.zeros(TEXT_TOKENS + 1, bool)
    is_trigger[triggers] = True
    first = np.where(is_trigger[:TEXT_TOKENS], 0.0, stationary)
    first /= first.sum()
    stacked = (_cdf(transition) + np.arange(TEXT_TOKENS)[:, None]).ravel()
    drawn = Chain(transition, first, tuple(triggers.tolist()), is_trigger, _cdf(first), stacked)
    for array in (transition, first, is_trigger, drawn._first_cdf, stacked):
        array.setflags(write=False)
    return drawn


def _stationary(transition: np.ndarray) -> np.ndarray:
    """pi with pi P = pi and sum 1, by least squares on both conditions at once."""
    size = len(transition)
    system = np.concatenate([transition.T - np.eye(size), np.ones((1, size))])
    return np.linalg.lstsq(system, np.append(np.zeros(size), 1.0), rcond=None)[0]


def _cdf(probability: np.ndarray) -> np.ndarray:
    cdf = np.cumsum(probability, axis=-1)
    cdf /= cdf[..., -1:]
    return cdf
