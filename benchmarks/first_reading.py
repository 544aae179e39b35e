"""Ours of `benchmarks.first_result`, by itself: a child imports what it needs alone."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import sysout_jax as so
from benchmarks import children
from sysout_jax.core.measures import top1_over_median
from sysout_jax.model.model import Model


def prepare(checkpoint: str, prompt: str, rows: str) -> Callable[[], Any]:
    """For `children.measured`: as `hooks.first_result`."""
    tokens = np.load(rows)

    def load() -> Model:
        model = so.load(checkpoint)
        jax.block_until_ready(model.params)
        return model

    def run(model: Model, given: str | np.ndarray) -> np.ndarray:
        ids = so.encode(model, given, bos="no") if isinstance(given, str) else given
        found = so.apply(model, ids, {"block_out": top1_over_median})
        return np.asarray(jax.block_until_ready(found)[1]["block_out"])

    return lambda: children.stepped(load, run, {"prompt": prompt, "sequences": tokens})
