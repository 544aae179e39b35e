"""What the logit of a sink's factor can be told by: least squares on one part of the texts, R^2 on
another (theory T2).

logit S_i = LSE_R(s_i) - s_i0 of the query i, S_i what the first key leaves to the others. Axes: B
texts, T queries, D width, n heads of one layer, H head dim, M queries of all texts, P features.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Float, Int
from scipy import linalg

PENALTIES = (1e-4, 1e-2, 1.0)  # of standardised features, beside a mean over queries
CHOSEN_ON = 4  # the last of as many parts of the texts to fit on chooses the penalty
PRODUCTS = 32  # directions of a query whose products are taken, those in which it varies most
DEGREE = 3  # of the polynomial in the logarithm of the position
SHRINK = 1.0  # queries of the mean beside those of a token id


@dataclass(frozen=True)
class Queries:
    """The queries of texts in one layer, as some of its heads see them."""

    ids: Int[np.ndarray, "B T"]  # tokens
    positions: Int[np.ndarray, "T"]
    x: Float[np.ndarray, "B T D"]  # what attention reads
    query: Float[np.ndarray, "B T n H"]  # after norm and positions
    sink: Float[np.ndarray, "B T n"]  # s_i0
    evidence: Float[np.ndarray, "B T n"]  # LSE_R

    @property
    def target(self) -> Float[np.ndarray, "M n"]:
        """logit S."""
        return flat(self.evidence) - flat(self.sink)

    @cached_property
    def of_position(self) -> Float[np.ndarray, "M P"]:
        """Powers of the logarithm of the position."""
        powers = np.log1p(self.positions)[:, None] ** np.arange(1, DEGREE + 1)
        return flat(np.broadcast_to(powers, (*self.ids.shape, DEGREE)))


def flat(x: Float[np.ndarray, "B T ..."]) -> Float[np.ndarray, "M ..."]:
    """All queries in one axis, as float64."""
    return np.asarray(x, np.float64).reshape(-1, *x.shape[2:])


Fitted = Callable[[Queries], Float[np.ndarray, "M n"]]


def predictors(fit: Queries) -> Iterator[tuple[str, Fitted]]:
    """For each set of features, what tells logit S by it, fitted to these queries."""
    yield "token id", _of_ids(fit)
    yield "position", _linear(fit, lambda of: of.of_position)
    yield "x", _linear(fit, lambda of: flat(of.x))
    yield "x and position", _linear(fit, lambda of: np.hstack([flat(of.x), of.of_position]))
    yield "quadratic in q", _each(fit, _quadratic(fit))
    yield "the sink's logit", _each(fit, lambda of, head: flat(of.sink)[:, [head]])
    yield "LSE_R", _each(fit, lambda of, head: flat(of.evidence)[:, [head]])


def errors(fit: Queries, held_out: Queries) -> tuple[Mapping[str, np.ndarray], np.ndarray]:
    """The squared errors of each set of features on other texts, and the spread they are of.

    They give R^2 by `explained`.

    Args:
      fit: the queries to fit to, of at least `CHOSEN_ON` texts.
      held_out: those of other texts.

    Returns:
      name -> [B, n], the sum over a text's queries of (logit S - predicted)^2; and [B, n], that of
      (logit S - its mean over all texts)^2.
    """
    target, texts = held_out.target, len(held_out.ids)

    def by_text(left: Float[np.ndarray, "M n"]) -> Float[np.ndarray, "B n"]:
        return np.asarray(np.sum((left**2).reshape(texts, -1, left.shape[1]), axis=1))

    found = {name: by_text(target - told(held_out)) for name, told in predictors(fit)}
    return found, by_text(target - target.mean(axis=0))


def explained(
    left: Float[np.ndarray, "B ..."], spread: Float[np.ndarray, "B ..."]
) -> Float[np.ndarray, "..."]:
    """R^2 = 1 - sum_b left_b / sum_b spread_b; 0 where nothing varies.

    Args:
      left: [B, ...], the squared errors of each text.
      spread: [B, ...], what they are of.
    """
    whole = spread.sum(axis=0)
    share = left.sum(axis=0) / np.where(whole > 0.0, whole, 1.0)
    return np.asarray(np.where(whole > 0.0, 1.0 - share, 0.0))


def _of_ids(fit: Queries) -> Fitted:
    """The mean of each token, drawn to that of all."""
    ids, target = fit.ids.ravel(), fit.target
    mean, size = target.mean(axis=0), int(ids.max()) + 1
    sums, counts = np.zeros((size, target.shape[1])), np.bincount(ids, minlength=size)
    np.add.at(sums, ids, target - mean)
    of_token = sums / (counts + SHRINK)[:, None]

    def told(of: Queries) -> np.ndarray:
        known = np.append(of_token, np.zeros((1, of_token.shape[1])), axis=0)
        return np.asarray(mean + known[np.minimum(of.ids.ravel(), size)])

    return told


def _linear(fit: Queries, features: Callable[[Queries], np.ndarray]) -> Fitted:
    """By features that all heads share."""
    kernel, bias = ridge(features(fit), fit.target, _chosen_by(fit))
    return lambda of: features(of) @ kernel + bias


def _each(fit: Queries, features: Callable[[Queries, int], np.ndarray]) -> Fitted:
    """By features that each head has itself."""
    target, chosen_by = fit.target, _chosen_by(fit)
    heads = range(target.shape[1])
    made = [ridge(features(fit, head), target[:, [head]], chosen_by) for head in heads]

    def told(of: Queries) -> np.ndarray:
        each = zip(heads, made, strict=True)
        return np.hstack([features(of, head) @ kernel + bias for head, (kernel, bias) in each])

    return told


def _chosen_by(fit: Queries) -> int:
    """How many of the queries, the last ones, choose the penalty."""
    texts, length = fit.ids.shape
    return texts // CHOSEN_ON * length


def _quadratic(fit: Queries) -> Callable[[Queries, int], np.ndarray]:
    """A head's query, and the products of its parts in the directions in which it varies most."""
    dim = fit.query.shape[-1]
    one, other = np.triu_indices(min(dim, PRODUCTS))
    turns = [
        linalg.eigh(np.atleast_2d(np.cov(flat(fit.query[:, :, head]).T)))[1][:, ::-1]
        for head in range(fit.query.shape[2])
    ]

    def features(of: Queries, head: int) -> np.ndarray:
        q = flat(of.query[:, :, head]) @ turns[head]
        return np.hstack([q, q[:, one] * q[:, other]])

    return features


def ridge(
    features: Float[np.ndarray, "M P"], target: Float[np.ndarray, "M n"], chosen_by: int
) -> tuple[Float[np.ndarray, "P n"], Float[np.ndarray, "n"]]:
    """The kernel and bias of the ridge regression whose penalty does best on the last queries.

    min mean (y - f.w - b)^2 + penalty |w|^2, f with mean 0 and variance 1 over queries; fitted to
    the others for each of `PENALTIES`, and with the one that is chosen, for each target, to all.

    Args:
      features: [M, P].
      target: [M, n].
      chosen_by: how many queries, from the end, choose.
    """
    mean, deviation = features.mean(axis=0), features.std(axis=0)
    scale = np.where(deviation > 0.0, deviation, 1.0)
    f, centre = (features - mean) / scale, target.mean(axis=0)
    y, first = target - centre, len(target) - chosen_by
    gram, moment = f[:first].T @ f[:first], f[:first].T @ y[:first]
    left = [
        np.mean((y[first:] - f[first:] @ _solved(gram, moment, first, each)) ** 2, axis=0)
        for each in PENALTIES
    ]
    best = np.argmin(left, axis=0)
    gram, moment = gram + f[first:].T @ f[first:], f.T @ y
    kernel = np.zeros(moment.shape)
    for at in np.unique(best):
        mine = best == at
        kernel[:, mine] = _solved(gram, moment[:, mine], len(f), PENALTIES[at])
    kernel = kernel / scale[:, None]
    return kernel, centre - mean @ kernel


def _solved(gram: np.ndarray, moment: np.ndarray, count: int, penalty: float) -> np.ndarray:
    penalised = gram + count * penalty * np.eye(len(gram))
    return np.asarray(linalg.solve(penalised, moment, assume_a="pos"))
