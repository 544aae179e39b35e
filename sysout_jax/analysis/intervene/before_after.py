"""A model before and after a conversion: losses, measures and generated text side by side.

Axes: B texts, S tokens of a text, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from sysout_jax.analysis.intervene.weak_sinks import profile
from sysout_jax.analysis.locate.scan import QUERIES_AT_ONCE
from sysout_jax.analysis.measure.summary import summary_in_batches
from sysout_jax.analysis.statistics import Interval, bootstrap_interval
from sysout_jax.model.compiling import jit_quickly
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, forward

GENERATED, PROMPT = 24, 16  # tokens: generated after the beginning of a text, and that beginning
SHOWN = 2  # texts that are continued
MEASURED = 4  # texts whose beginnings measures are of, losses being of all


@dataclass(frozen=True)
class Reader:
    """A model, and the tokens that it reads before every text."""

    config: ModelConfig
    params: Params
    begin: tuple[int, ...] = ()

    def rows(self, texts: Int[np.ndarray, "B S"]) -> Int[np.ndarray, "B s"]:
        """The texts as this model reads them."""
        first = np.broadcast_to(np.array(self.begin, np.int32), (len(texts), len(self.begin)))
        return np.concatenate([first, texts], axis=1)


@dataclass(frozen=True)
class BeforeAfter:
    """What a conversion changes on texts that it did not see."""

    tokens: int  # that are predicted
    loss: tuple[float, float]  # before and after, nats per token
    change: Interval  # paired by text
    losses: tuple[np.ndarray, np.ndarray]  # [B], of each text, before and after
    largest: tuple[np.ndarray, np.ndarray]  # [B], of each text max/median |h|, of all layers
    over_median: tuple[np.ndarray, np.ndarray]  # [L], largest |h| over the median, of all texts
    measures: tuple[Mapping[str, float], Mapping[str, float]]  # of `summary.outlier_summary`
    generated: tuple[tuple[tuple[int, ...], ...], tuple[tuple[int, ...], ...]]  # ids, prompt too


def compared(
    before: Reader, after: Reader, texts: Int[np.ndarray, "B S"], batch: int = 8
) -> BeforeAfter:
    """Compare two models on texts.

    Args:
      before: the model as trained.
      after: the one in its place.
      texts: [B, S], without the tokens that either reads before them.
      batch: texts that are run together.
    """
    found, measures, generated = [], [], []
    for reader in (before, after):
        rows = reader.rows(texts)
        found.append(profile(reader.config, reader.params, rows, len(reader.begin), batch))
        few = rows[:MEASURED, :-1][:, :QUERIES_AT_ONCE]
        measures.append(summary_in_batches(reader.config, reader.params, few, batch))
        generated.append(tuple(continued(reader, text[:PROMPT]) for text in texts[:SHOWN]))
    first, second = found
    return BeforeAfter(
        texts[:, 1:].size,
        (float(first.losses.mean()), float(second.losses.mean())),
        bootstrap_interval(second.losses - first.losses),
        (first.losses, second.losses),
        (first.over_median.max(axis=0), second.over_median.max(axis=0)),
        (first.over_median.max(axis=1), second.over_median.max(axis=1)),
        (measures[0], measures[1]),
        (generated[0], generated[1]),
    )


def continued(
    reader: Reader, prompt: Sequence[int] | np.ndarray, count: int = GENERATED
) -> tuple[int, ...]:
    """A prompt and the tokens that greedy decoding writes after it.

    Args:
      reader: the model.
      prompt: ids, without the tokens that it reads before every text.
      count: of tokens to write.
    """
    row = reader.rows(np.asarray(prompt, np.int32)[None])[0]
    padded = jnp.asarray(np.concatenate([row, np.zeros(count, np.int32)]))
    written = np.asarray(_continued(reader.config, count, reader.params, padded))
    return tuple(written[len(reader.begin) :].tolist())


@jit_quickly(0, 1)
def _continued(config: ModelConfig, count: int, params: Params, tokens: Array) -> Array:
    run = partial(forward, config, params)

    def step(at: Any, tokens: Array) -> Array:
        best = jnp.argmax(run(tokens[None])[0][0, at - 1]).astype(tokens.dtype)
        return tokens.at[at].set(best)

    return jax.lax.fori_loop(len(tokens) - count, len(tokens), step, tokens)
