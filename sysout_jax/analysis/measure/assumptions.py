"""What the theory assumes of a sink, measured on a trained model (theory B1, B2, T2, T3, T4).

The sink is the first token of a text, of the heads that give it more than 0.3 of their attention
(Gu et al. 2025). Intervals are bootstraps over texts. Axes: L layers, B texts, T tokens, D width, N
heads, K KV heads, H head dim; n sink heads of a layer, k KV heads that serve them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from sysout_jax.analysis.locate.first_token import FirstToken, enough, first_token
from sysout_jax.analysis.locate.scan import over_batches, whole_maps
from sysout_jax.analysis.locate.sinks import Sink, sees_first
from sysout_jax.analysis.measure.factor_features import CHOSEN_ON, explained
from sysout_jax.analysis.measure.sink_layer import AT_FIRST, TAPS, SinkLayer, deviations, sink_layer
from sysout_jax.analysis.measure.sink_state import (
    asked_magnitude,
    centred,
    common_direction,
    split,
    value_gain,
)
from sysout_jax.analysis.statistics import bootstrap_interval, statistic_interval
from sysout_jax.core.measures import SINK_EPS
from sysout_jax.core.norms import PLAIN
from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params
from sysout_jax.model.stream import entering, recorded, through
from sysout_jax.showing import Interval

ALLOWED = 0.1  # deviation of the sink's value, over |v_0|, for which T3 is asked a magnitude
ROUNDING = 1e-4  # of float32 attention, by which a bound is not violated
KINDS = 256  # token ids of the vocabulary, evenly spaced, each as a text's first token


@dataclass(frozen=True)
class Hull:
    """How the values and keys of a text's first tokens lie, by their number (theory B1, B2)."""

    keys: int  # tokens 1 to that
    distance: Interval  # dist(0, conv V_R) over mean |v|, mean over KV heads
    least: float  # the smallest of all KV heads and texts
    met: Interval  # share of KV heads with a half-space
    sink_key: Interval  # dist(k_0, conv K_R) over mean |k_j - k_0|: how far a query can tell it


@dataclass(frozen=True)
class Range:
    """The attention that B2 requires of the sink beside what it has."""

    pairs: int  # of a query and a sink head
    applies: Interval  # share in which |o| is less than the margin of the values
    violated: int  # pairs in which the sink has less
    required: Interval | None  # mean over pairs where it applies; None where it never does
    actual: Interval | None  # of the same pairs


@dataclass(frozen=True)
class Massive:
    """The first token's state x = a u + y that a layer reads, u the direction of the texts' mean
    (theory T3)."""

    along: Interval  # |a|
    across: float  # r: the largest |y| of all texts
    tangent: Interval  # |y|/|a|
    tangent_shared: Interval  # the same about one direction for all layers that read the state
    axis: Interval  # and about the largest channel
    beta: float | None  # of the value matrix across u, mean over KV heads; None without a norm
    asked: Interval | None  # the a for `ALLOWED`, by each text's |y|; median over KV heads
    asked_most: float | None  # by the largest |y|


@dataclass(frozen=True)
class Layer:
    """A layer with a sink head."""

    layer: int
    heads: int  # sink heads
    key_spread: Interval  # rms distance of first keys from their mean over its length; largest head
    value_spread: Interval
    key_kinds: float  # the same over token ids instead of texts
    value_kinds: float
    massive: Massive | None  # None where it reads no state that stands out


@dataclass(frozen=True)
class Head:
    """A sink head."""

    layer: int
    head: int
    given: float  # attention to the first token
    drain: float  # |v_0| over the mean |v| of the others
    cosine: float  # of the mean query and the sink's key
    cosine_others: float  # mean over the other keys
    explained: Mapping[str, float]  # R^2 of logit S on held-out queries, by set of features


@dataclass(frozen=True)
class Assumptions:
    """What was found of a model; of one without a sink, the sink alone."""

    sink: Sink
    kinds: int  # different first tokens of the texts
    heads: tuple[Head, ...] = ()
    layers: tuple[Layer, ...] = ()
    hulls: tuple[Hull, ...] = ()
    range: Range | None = None
    drain: Interval | None = None  # mean over sink heads
    cosine: Interval | None = None
    cosine_others: Interval | None = None
    explained: Mapping[str, Interval] | None = None  # median over sink heads
    explained_by_text: Mapping[str, tuple[float, ...]] | None = None  # the same of each text alone


def assumptions(
    config: ModelConfig,
    params: Params,
    calibration: Int[np.ndarray, "b S"],
    rows: Int[np.ndarray, "B S"],
    batch: int = 8,
) -> Assumptions:
    """Measure them.

    Args:
      config: the architecture, of variant softmax, not converted.
      params: its parameters, in memory.
      calibration: [b, S], to fit what tells S, at least 4 texts.
      rows: [B, S], S = T + 1, of other texts, for all else; at least 4.
      batch: texts that are run together.

    Raises:
      InputError: another variant, a converted model, too few or too short texts, or longer ones
        than attention's maps fit of.
    """
    check(config, calibration, rows)
    first = first_token(config, params, rows, batch)
    chosen = {
        layer: np.flatnonzero(heads > SINK_EPS)
        for layer, heads in enumerate(first.given)
        if (heads > SINK_EPS).any()
    }
    kinds = len(np.unique(rows[:, 0]))
    if not chosen:
        return Assumptions(first.sink, kinds)
    config = config.with_execution(query_block=None, flash=False)
    tokens = np.concatenate([rows, calibration])[:, :-1]
    see = sees_first(config, tokens.shape[1])
    found = [
        sink_layer(layer, chosen[layer], tokens, np.flatnonzero(see[layer]), seen, len(rows))
        for layer, seen in _layers(config, params, tokens, tuple(chosen), batch)
    ]
    return Assumptions(
        first.sink, kinds, _heads(found, first),
        _of_layers(config, params, found, first, _over_kinds(config, params)),
        _hulls(found), _range(found), _over_heads([each.drain for each in found]),
        _over_heads([each.cosine for each in found]),
        _over_heads([each.cosine_others for each in found]), *_explained(found),
    )  # fmt: skip


def check(
    config: ModelConfig, calibration: Int[np.ndarray, "b S"], rows: Int[np.ndarray, "B S"]
) -> None:
    """Refuse what the theory's head is not, and text that cannot show it.

    Raises:
      InputError: as `assumptions`.
    """
    if config.variant != "softmax":
        raise InputError("variant", config.variant, "a model of variant softmax")
    if config.norm not in PLAIN:
        raise InputError("norm", config.norm, f"a model of norm {' or '.join(PLAIN)}")
    if config.sink is not None:
        raise InputError("model", None, "one that was not converted", "its sink is explicit")
    enough(rows)
    if len(calibration) < CHOSEN_ON:
        raise InputError("calibration", len(calibration), f"at least {CHOSEN_ON}")
    whole_maps(rows.shape[1] - 1)


def _layers(
    config: ModelConfig, params: Params, tokens: np.ndarray, chosen: tuple[int, ...], batch: int
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """(layer, what `TAPS` recorded of all texts) of the chosen layers, one at a time in memory."""
    parts = np.array_split(tokens, -(-len(tokens) // batch))
    states = [entering(config, params, jnp.asarray(part)) for part in parts]
    begin = 0
    for layer in chosen:
        records = []
        for at, x in enumerate(states):
            x, _ = through(config, params, x, range(begin, layer))
            states[at], record = through(config, params, x, range(layer, layer + 1), TAPS)
            records.append(record)
        begin = layer + 1
        yield layer, jax.tree.map(lambda *each: np.concatenate(each, axis=1)[0], *records)


def _over_kinds(config: ModelConfig, params: Params) -> Mapping[str, Float[np.ndarray, "L K"]]:
    """The spread of key and value of a first token over ids of the vocabulary: it sees itself."""
    ids = np.unique(np.linspace(0, config.vocab - 1, KINDS).astype(np.int32))[:, None]
    run = partial(recorded, config, taps=AT_FIRST)
    found = over_batches(lambda params, tokens: run(params, tokens), params, ids, len(ids))
    return {
        name: np.sqrt(np.array([deviations(layer).mean(axis=0) for layer in of]))
        for name, of in found.items()
    }


def _hulls(found: Sequence[SinkLayer]) -> tuple[Hull, ...]:
    """By number of keys, over the KV heads that serve a sink head in layers where they are seen."""
    made = []
    for keys in sorted({count for each in found for count in each.keys}):
        of = [(each, each.keys.index(keys)) for each in found if keys in each.keys]
        distance = np.hstack([each.distance[at] for each, at in of])
        apart = np.hstack([each.sink_key[at] for each, at in of])
        made.append(
            Hull(
                keys, bootstrap_interval(distance.mean(axis=1)), float(distance.min()),
                bootstrap_interval((distance > 0.0).mean(axis=1)),
                bootstrap_interval(apart.mean(axis=1)),
            )
        )  # fmt: skip
    return tuple(made)


def _range(found: Sequence[SinkLayer]) -> Range:
    required, actual = (
        np.concatenate([_by_text(getattr(each, name)) for each in found], axis=1)
        for name in ("required", "actual")
    )
    applies = np.isfinite(required)
    some = applies.any(axis=1)

    def mean(of: np.ndarray) -> Interval | None:
        of = np.where(applies, of, np.nan)[some]
        return bootstrap_interval(np.nanmean(of, axis=1)) if some.any() else None

    return Range(
        int(applies.size), bootstrap_interval(applies.mean(axis=1)),
        int(np.sum(required > actual + ROUNDING)), mean(required), mean(actual),
    )  # fmt: skip


def _by_text(of: Float[np.ndarray, "P B n"]) -> Float[np.ndarray, "B m"]:
    return np.moveaxis(of, 1, 0).reshape(of.shape[1], -1)


def _over_heads(by_layer: Sequence[Float[np.ndarray, "B n"]]) -> Interval:
    return bootstrap_interval(np.hstack(by_layer).mean(axis=1))


def _explained(
    found: Sequence[SinkLayer],
) -> tuple[Mapping[str, Interval], Mapping[str, tuple[float, ...]]]:
    """The median over sink heads of R^2, by set of features: of all texts, and of each.

    A text's own R^2 is of its distances from the mean over all texts."""
    spread = np.hstack([each.spread for each in found])
    intervals, by_text = {}, {}
    for name in found[0].errors:
        left = np.hstack([each.errors[name] for each in found])
        median = partial(_median_explained, left, spread)
        intervals[name] = statistic_interval(median, len(left))
        by_text[name] = tuple(median(np.array([text])) for text in range(len(left)))
    return intervals, by_text


def _median_explained(left: np.ndarray, spread: np.ndarray, texts: np.ndarray) -> float:
    return float(np.median(explained(left[texts], spread[texts])))


def _heads(found: Sequence[SinkLayer], first: FirstToken) -> tuple[Head, ...]:
    return tuple(
        Head(
            each.layer, int(head), float(first.given[each.layer, head]),
            float(each.drain[:, at].mean()), float(each.cosine[:, at].mean()),
            float(each.cosine_others[:, at].mean()),
            {
                name: float(explained(left[:, at], each.spread[:, at]))
                for name, left in each.errors.items()
            },
        )
        for each in found
        for at, head in enumerate(each.heads)
    )  # fmt: skip


def _of_layers(
    config: ModelConfig, params: Params, found: Sequence[SinkLayer], first: FirstToken,
    over_kinds: Mapping[str, np.ndarray],
) -> tuple[Layer, ...]:  # fmt: skip
    """What each layer shows; of its state where it reads one that stands out."""
    states = {each.layer: centred(config, each.state) for each in found}
    reads = [layer for layer in first.reads if layer in states]
    shared = common_direction(np.array([states[layer] for layer in reads])) if reads else None

    def massive(each: SinkLayer) -> Massive | None:
        if shared is None or each.layer not in reads:
            return None
        return _massive(config, params, each, states[each.layer], shared)

    return tuple(
        Layer(
            each.layer, len(each.heads), _spread(each.key_off), _spread(each.value_off),
            float(over_kinds["key"][each.layer, each.served].max()),
            float(over_kinds["value"][each.layer, each.served].max()), massive(each),
        )
        for each in found
    )  # fmt: skip


def _spread(off: Float[np.ndarray, "B k"]) -> Interval:
    """The root mean square of the KV head in which it is largest."""
    return Interval(*np.sqrt(bootstrap_interval(off[:, np.argmax(off.mean(axis=0))])).tolist())


def _massive(
    config: ModelConfig, params: Params, each: SinkLayer, states: Float[np.ndarray, "B D"],
    shared: Float[np.ndarray, "D"],
) -> Massive:  # fmt: skip
    """T3 in one layer."""
    u = common_direction(states[None])
    parts, about_shared = split(states, u), split(states, shared)
    beta = value_gain(config, params, each.layer, u)
    asked = None
    if beta is not None:
        nu = ALLOWED * each.value
        of_heads = asked_magnitude(beta[each.served], parts.across[:, None], nu, config.width)
        asked = np.median(of_heads, axis=1)
    along = np.abs(parts.along)
    return Massive(
        bootstrap_interval(along), float(parts.across.max()),
        bootstrap_interval(parts.across / along),
        bootstrap_interval(about_shared.across / np.abs(about_shared.along)),
        bootstrap_interval(parts.axis), None if beta is None else float(beta[each.served].mean()),
        None if asked is None else bootstrap_interval(asked),
        None if asked is None else float(asked.max()),
    )  # fmt: skip
