"""When each kind of outlier emerges in training, in which order, and by which law it grows."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Int

from sysout_jax.analysis.locate.scan import Progress
from sysout_jax.analysis.measure.growth import Growth, growth
from sysout_jax.analysis.measure.summary import summary_in_batches
from sysout_jax.analysis.statistics import Fit, fit_growth
from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params

# Each kind and the measure of `outlier_summary` that stands for it.
KINDS = {
    "attention sink": "first_token_attention",
    "value drain": "value_drain@value",
    "residual peak": "residual_peak@block_out",
    "activation outliers, block_out": "top1_over_median@block_out",
    "activation outliers, down_in": "top1_over_mean@down_in",
    "weight outliers, W_down": "weight_ratio@down",
}
MASSIVE = KINDS["activation outliers, block_out"]
FACTOR, SHARE = 2.0, 0.1  # a change counts if by this factor, or of a share by this much


@dataclass(frozen=True)
class Emergence:
    """How one kind comes up during a run."""

    kind: str
    measure: str
    first: float
    last: float
    changed: bool  # by a factor of 2, or by 0.1 for shares
    step: int | None  # the first checkpoint that is half way between first and last
    fits: tuple[Fit, ...]  # best first; empty with fewer than three checkpoints after step 0


@dataclass(frozen=True)
class Dynamics:
    """All measures at the checkpoints of one run."""

    steps: tuple[int, ...]
    length: int  # T of the sequences
    measures: dict[str, np.ndarray]  # name -> [checkpoints]
    emergence: tuple[Emergence, ...]
    order: tuple[str, ...]  # the kinds that changed, by the step of their emergence
    growth: Growth  # laws of the massive activation, by a criterion that counts parameters


def dynamics(
    config: ModelConfig,
    checkpoints: Iterable[tuple[int, Params]],
    tokens: Int[Array | np.ndarray, "B T"],
    batch: int = 8,
    progress: Progress | None = None,
    total: int = 0,
) -> Dynamics:
    """Measure a model at each of its checkpoints, by `outlier_summary` of all sequences.

    Args:
      config: the architecture.
      checkpoints: (step, parameters), in the order of the steps; read one at a time.
      tokens: [B, T], the same for every checkpoint.
      batch: sequences that are run together; nothing measured depends on it.
      progress: called with the checkpoints done and their number.
      total: the number of checkpoints, for `progress`.

    Raises:
      InputError: there are fewer than two checkpoints.
    """
    summaries = (
        (step, summary_in_batches(config, params, tokens, batch)) for step, params in checkpoints
    )
    return of_summaries(summaries, tokens.shape[1], progress, total)


def of_summaries(
    summaries: Iterable[tuple[int, Mapping[str, float]]],
    length: int,
    progress: Progress | None = None,
    total: int = 0,
) -> Dynamics:
    """The dynamics of checkpoints whose `outlier_summary` is known.

    Args:
      summaries: (step, its summary), in the order of the steps; made one at a time.
      length: T, of the sequences.
      progress, total: as for `dynamics`.

    Raises:
      InputError: there are fewer than two.
    """
    steps, found = [], []
    for step, summary in summaries:
        found.append(summary)
        steps.append(step)
        if progress:
            progress(len(steps), max(total, len(steps)))
    if len(steps) < 2:
        raise InputError(
            "dynamics",
            None,
            "a run with at least 2, trained with --checkpoint_every",
            f"{len(steps)} checkpoint{'s' * (len(steps) != 1)}",
        )
    measures = {name: np.array([row[name] for row in found]) for name in found[0]}
    emerged = tuple(
        emergence(kind, name, np.array(steps), measures[name]) for kind, name in KINDS.items()
    )
    ordered = sorted((e for e in emerged if e.step is not None), key=lambda e: e.step or 0)
    order = tuple(e.kind for e in ordered)
    law = growth(MASSIVE, np.array(steps), measures[MASSIVE])
    return Dynamics(tuple(steps), length, measures, emerged, order, law)


def emergence(kind: str, measure: str, steps: np.ndarray, values: np.ndarray) -> Emergence:
    """When a measure has gone half of its way, and the laws it grows by.

    Args:
      kind, measure: their names.
      steps: [n], ascending.
      values: [n].
    """
    first, last = float(values[0]), float(values[-1])
    low, high = sorted((abs(first), abs(last)))
    share = measure == "first_token_attention"
    changed = high - low > SHARE if share else high > FACTOR * low
    half = (values - first) * np.sign(last - first) >= abs(last - first) / 2
    step = int(steps[np.argmax(half)]) if changed else None
    return Emergence(kind, measure, first, last, changed, step, fit_growth(steps, values))
