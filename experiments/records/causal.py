"""The responses in a record of experiments.causal."""

from typing import Any

import numpy as np

from sysout_jax.analysis.statistics import Interval, mean_interval

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
    """What a dose changes beyond as much elsewhere, paired by seed."""
    treated, control = (
        np.array(_changes(models, treatment, factor, measure, each)) for each in (False, True)
    )
    return mean_interval(treated - control)


def _changes(
    models: list[Record], treatment: str, factor: float, measure: str, control: bool
) -> list[float]:
    return [
        response(model, treatment, factor, control)[measure]
        - response(model, treatment, 1.0, control)[measure]
        for model in models
    ]
