"""The responses in a record of experiments.causal."""

from typing import Any

import numpy as np

from sysout_jax.analysis.statistics import Interval, bootstrap_interval, mean_interval

Record = dict[str, Any]


def response(model: Record, treatment: str, factor: float, control: bool) -> Record:
    """What a dose does to one model.

    Raises:
      KeyError: the dose was not given.
    """
    for each in model["responses"]:
        if (each["treatment"], each["factor"], each["control"]) == (treatment, factor, control):
            return dict(each)
    raise KeyError(f"no {treatment} dose of {factor}")


def specific(models: list[Record], treatment: str, factor: float, measure: str) -> Interval:
    """What a dose changes beyond as much elsewhere, paired by seed; of one model the attention is
    paired by text, and other measures have no interval."""
    if len(models) == 1 and measure == "attention":
        by_text = "by_sequence" in response(models[0], treatment, factor, False)
        measure = "by_sequence" if by_text else measure
    treated, control = (
        _changes(models, treatment, factor, measure, each) for each in (False, True)
    )
    beyond = np.subtract(treated, control)  # of each model, or of each of one model's texts
    return bootstrap_interval(beyond[0]) if measure == "by_sequence" else mean_interval(beyond)


def _changes(
    models: list[Record], treatment: str, factor: float, measure: str, control: bool
) -> list[np.ndarray]:
    def of(model: Record, dose: float) -> np.ndarray:
        return np.asarray(response(model, treatment, dose, control)[measure], np.float64)

    return [of(model, factor) - of(model, 1.0) for model in models]
