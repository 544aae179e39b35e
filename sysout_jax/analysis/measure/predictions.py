"""What the output head predicts from a part of the final state's dimensions.

Axes: A sets of dimensions, n predictions, B texts, P positions of each,
R = 1 + resamples of texts, D width, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Num
from scipy import stats

from sysout_jax.analysis.statistics import Interval, bootstrap_interval
from sysout_jax.core.ordering import first_largest
from sysout_jax.core.primitives import soft_cap
from sysout_jax.model.compiling import jit_quickly, precisely
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params

AT_ONCE = 64  # predictions whose logits are in memory together
RANDOM_SETS = 5
READOUTS = ("kl", "entropy", "surprisal", "accuracy", "slope", "spearman")
OUTLIERS, RANDOM, OF_HEAD = "outlier dimensions", "random dimensions", "those of the head"
DRAWS = 500  # resamples of texts for what is no mean over them


class Head(NamedTuple):
    """The map from the final state to logits: x W + b, both float32."""

    weight: Float[Array, "D V"]
    bias: Float[Array, "V"]


class Read(NamedTuple):
    """Predictions from the whole state, or from a part of it.

    Leading axes are whatever the readers' are: [n], [A, n] or [A, 2, n] with drop and keep.
    """

    kl: Any  # nats, KL(whole || part)
    entropy: Any  # nats
    surprisal: Any  # nats, of the true next token
    likeliest: Any  # id


@dataclass(frozen=True)
class Ablation:
    """Predictions without a set of dimensions, or with nothing else."""

    of: str  # which dimensions; "" for all of them, dropped from nothing
    draw: int | None  # of random ones, which set
    kept: bool  # whether nothing else is left, or they alone are gone
    count: int
    distinct: int  # different predictions; a bootstrap of it would be biased
    values: dict[str, Interval]  # of `READOUTS`, over texts
    changes: dict[str, Interval]  # from the whole state, paired by text


@dataclass(frozen=True)
class Split:
    """Parts of the predicted token's logit over the vocabulary's mean, before any soft cap."""

    outliers: Interval
    rest: Interval


@precisely
def head_of(config: ModelConfig, params: Params) -> Head:
    """The output head as one matrix, with the map back to the embedding's width and the scale of
    logits in it.

    Args:
      config: the architecture.
      params: its parameters, held or read layer by layer.
    """
    table = params["embed"].T if config.tied else params["head"]
    weight = jnp.asarray(table, jnp.float32)
    if config.embed_width is not None:
        weight = jnp.asarray(params["embed_out"], jnp.float32) @ weight
    bias = params["head_bias"] if config.head_bias else jnp.zeros(weight.shape[1])
    scale = config.logit_scale
    return Head(scale * weight, scale * jnp.asarray(bias, jnp.float32))


@jit_quickly(0)
def read(
    cap: float | None,
    head: Head,
    states: Float[Array, "n D"],
    targets: Int[Array, "n"],
    sets: Sequence[Int[Array, "_"]],
) -> tuple[Read, Read, Float[Array, "A n"], Float[Array, "n"]]:
    """Predict from all dimensions, without those of each set, and from those alone.

    With z = x W + b and z_S = x_S W_S, the logits are cap(z), cap(z - z_S) and cap(z_S + b).

    Args:
      cap: c of the logits' soft cap c tanh(z / c), as Gemma has it; None: there is none.
      head: the output head.
      states: [n, D], after the final norm.
      targets: [n], the true next tokens.
      sets: A sets of dimensions.

    Returns:
      `Read` of the whole [n]; of each set [A, 2, n], first without its dimensions, then with
      nothing else; then two parts of the likeliest token's logit over the vocabulary's mean, before
      the cap: that of each set, z_S[top] - mean z_S, [A, n], and that of all, z[top] - mean z, [n].
    """

    def one(given: tuple[Array, Array]) -> Any:
        x, target = given
        z = x @ head.weight + head.bias
        parts = [x[dims] @ head.weight[dims] for dims in sets]
        whole = _capped(z, cap)
        top = first_largest(z)
        each = [
            [_read(whole, _capped(kept, cap), target) for kept in (z - part, part + head.bias)]
            for part in parts
        ]
        stacked = [jax.tree.map(lambda *pair: jnp.stack(pair), *pair) for pair in each]
        logits = [part[top] - jnp.mean(part) for part in parts]
        return _read(whole, whole, target), stacked, logits, z[top] - jnp.mean(z)

    whole, each, logits, total = jax.lax.map(one, (states, targets), batch_size=AT_ONCE)
    if not sets:
        none = jax.tree.map(lambda x: jnp.zeros((0, 2, *x.shape), x.dtype), whole)
        return whole, none, jnp.zeros((0, len(states))), total
    of_sets = jax.tree.map(lambda *x: jnp.moveaxis(jnp.stack(x), 1, 2), *each)
    return whole, of_sets, jnp.stack(logits), total


def _capped(logits: Array, cap: float | None) -> Array:
    return logits if cap is None else soft_cap(logits, cap)


def _read(whole: Float[Array, "V"], part: Float[Array, "V"], target: Int[Array, ""]) -> Read:
    p, q = jax.nn.log_softmax(whole), jax.nn.log_softmax(part)
    kl = jnp.sum(jnp.exp(p) * (p - q))
    entropy = -jnp.sum(jnp.exp(q) * q)
    return Read(kl, entropy, -q[target], first_largest(part))


# --------------------------------------------------------------------- frequencies of tokens


def frequency_fit(
    predicted: Int[np.ndarray, "v"], corpus: Int[np.ndarray, "v"]
) -> tuple[float, float]:
    """How the frequency of predictions follows that in the corpus: a slope and a rank correlation.

    Over the tokens that occur in both: the least-squares slope of log predicted on log corpus, 1
    where they are proportional and above where frequent tokens are predicted too often; and
    Spearman's correlation.

    Args:
      predicted: how often each token is the likeliest.
      corpus: how often it occurs.

    Returns:
      Slope and correlation; NaN where fewer than three tokens occur in both, or all equally often.
    """
    both = (predicted > 0) & (corpus > 0)
    x, y = np.log(corpus[both]), np.log(predicted[both])
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan")
    x0, rank_x, rank_y = x - x.mean(), stats.rankdata(x), stats.rankdata(y)
    return float(x0 @ y / (x0 @ x0)), float(np.corrcoef(rank_x, rank_y)[0, 1])


def frequency_draws(
    likeliest: Int[np.ndarray, "B P"], corpus: Int[np.ndarray, "V"], draws: int = DRAWS
) -> Float[np.ndarray, "R 2"]:
    """`frequency_fit` of all texts in the first row, and of resampled texts in the others.

    Args:
      likeliest: the predictions of each text.
      corpus: how often each token of the vocabulary occurs.
      draws: resamples; the same texts whatever the predictions are, so that rows can be compared.
    """
    texts = len(likeliest)
    picked = np.random.default_rng(0).integers(0, texts, (draws, texts))
    ids, place = np.unique(likeliest, return_inverse=True)
    place, known = place.reshape(likeliest.shape), corpus[ids]

    def fit(rows: Any) -> tuple[float, float]:
        return frequency_fit(np.bincount(place[rows].ravel(), minlength=len(ids)), known)

    return np.array([fit(rows) for rows in (np.arange(texts), *picked)])


def of_draws(values: Num[np.ndarray, "R"], level: float = 0.95) -> Interval:
    """The first value, with the percentiles of the others about their mean put around it.

    A resample holds some texts twice and others not, which shifts a fit over the tokens that occur;
    the spread is what it tells.

    Args:
      values: of all texts, then of resamples; where some are NaN the interval has no bounds.
      level: the coverage.
    """
    own, others = float(values[0]), np.asarray(values[1:], np.float64)
    if not others.size or np.isnan(others).any():
        return Interval(own, float("nan"), float("nan"))
    low, high = np.quantile(others - others.mean(), [(1 - level) / 2, (1 + level) / 2])
    return Interval(own, own + float(low), own + float(high))


# ------------------------------------------------------------------------------- ablations

Set = tuple[str, int | None, np.ndarray]  # which dimensions, which draw, their numbers


def ablation_sets(
    flagged: Bool[np.ndarray, "D"], of_head: Bool[np.ndarray, "D"]
) -> tuple[Set, ...]:
    """The outlier dimensions, as many others at random five times, and those of the head.

    Where more than half are outlier dimensions there are not as many others, and none are drawn.

    Args:
      flagged: the outlier dimensions of the final states.
      of_head: those of the head's own weights.

    Returns:
      A set's name, its draw if it is random, and its dimensions; sets of none are left out.
    """
    sets: list[Set] = []
    mine, others = np.flatnonzero(flagged), np.flatnonzero(~flagged)
    if len(mine):
        sets.append((OUTLIERS, None, mine))
        for draw in range(RANDOM_SETS if len(mine) <= len(others) else 0):
            random = np.random.default_rng(draw).choice(others, len(mine), replace=False)
            sets.append((RANDOM, draw, np.sort(random)))
    if of_head.any():
        sets.append((OF_HEAD, None, np.flatnonzero(of_head)))
    return tuple(sets)


def ablations(
    cap: float | None,
    head: Head,
    states: Float[np.ndarray, "B P D"],
    targets: Int[np.ndarray, "B P"],
    corpus: Int[np.ndarray, "V"],
    sets: Sequence[Set],
) -> tuple[tuple[Ablation, ...], Split | None]:
    """Predict without each set of dimensions, and from it alone.

    Args:
      cap: of the logits, as for `read`.
      head: the output head.
      states: what it reads.
      targets: the true next tokens.
      corpus: how often each token occurs.
      sets: as `ablation_sets` returns them.

    Returns:
      The whole state's predictions, then two ablations of each set; and the split of logits, None
      where there are no outlier dimensions.
    """
    texts = states.shape[:2]
    given = [jnp.asarray(numbers) for _, _, numbers in sets]
    flat = jnp.asarray(states.reshape(-1, states.shape[-1]))
    whole, parts, logits, total = read(cap, head, flat, jnp.asarray(targets.ravel()), given)

    def values(found: Read, *at: int) -> tuple[dict[str, np.ndarray], int]:
        kl, entropy, surprisal, likeliest = (np.asarray(x)[at].reshape(texts) for x in found)
        fits = frequency_draws(likeliest, corpus)
        means = {"kl": kl, "entropy": entropy, "surprisal": surprisal}
        means["accuracy"] = likeliest == targets
        of_texts = {name: x.mean(axis=1) for name, x in means.items()}
        draws = {"slope": fits[:, 0], "spearman": fits[:, 1]}
        return {**of_texts, **draws}, len(np.unique(likeliest))

    before = values(whole)
    made = [_ablation(("", None, np.array([])), False, before, before)]
    for at, each in enumerate(sets):
        for kept in (False, True):
            made.append(_ablation(each, kept, values(parts, at, int(kept)), before))
    split = None
    if sets and sets[0][0] == OUTLIERS:
        own, every = (np.asarray(x).reshape(texts).mean(axis=1) for x in (logits[0], total))
        split = Split(bootstrap_interval(own), bootstrap_interval(every - own))
    return tuple(made), split


def _ablation(of: Set, kept: bool, found: Any, before: Any) -> Ablation:
    def interval(name: str, x: np.ndarray) -> Interval:
        return of_draws(x) if name in ("slope", "spearman") else bootstrap_interval(x)

    what, draw, numbers = of
    values, distinct = found
    return Ablation(
        what, draw, kept, len(numbers), distinct,
        {name: interval(name, values[name]) for name in READOUTS},
        {name: interval(name, values[name] - before[0][name]) for name in READOUTS},
    )  # fmt: skip
