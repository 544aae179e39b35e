"""Checkpoints of a suite on the hub, each a revision of one id: step1000, step2000, ..."""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int

from sysout_jax import loading
from sysout_jax.analysis.measure.summary import summary_in_batches
from sysout_jax.errors import InputError
from sysout_jax.families.hub import check_revisions, is_hub_id
from sysout_jax.model.config import ModelConfig

from ..cli.grid import Cells
from .identity import of_text
from .model_selection import Choice

_STEP = re.compile(r"(?:^|[^a-z])step[-_]?(\d+)(?!\d)")


def in_order(revisions: Sequence[str]) -> list[tuple[int, str]]:
    """(step, revision) by step: of "step1000", or of "stage1-step1000-tokens4B".

    Raises:
      InputError: fewer than two, one that names no step, or two of the same step.
    """
    said = ",".join(revisions)
    if len(revisions) < 2:
        raise InputError("revisions", said, "at least two, as step1000,step2000")
    by_step: dict[int, str] = {}
    for revision in revisions:
        found = _STEP.search(revision)
        if found is None:
            accepted = "names with a step, as step1000 or stage1-step1000-tokens4B"
            raise InputError("revisions", revision, accepted)
        step = int(found[1])
        if step in by_step:
            why = f"{by_step[step]} and {revision} are both of step {step}"
            raise InputError("revisions", said, "one revision a step", why)
        by_step[step] = revision
    return sorted(by_step.items())


def of_last(choice: Choice, revisions: Sequence[str]) -> Choice:
    """The choice of the model that the other parts look at: the last revision, if none is named.

    Raises:
      InputError: the model has no revisions, or there is none of that name.
    """
    if Path(os.path.expanduser(choice.model)).exists() or not is_hub_id(choice.model):
        raise InputError("revisions", ",".join(revisions), "with the id of a model on the hub")
    check_revisions(choice.model, revisions, choice.file)
    _, last = in_order(revisions)[-1]
    return replace(choice, revision=choice.revision or last)


def about(choice: Choice, tokens: Int[np.ndarray, "B T"]) -> dict[str, Any]:
    """What the summary of a revision depends on beside its name."""
    return {
        "model": choice.model, "file": choice.file, "param_dtype": choice.param_dtype,
        "sequences": len(tokens), "seq_len": tokens.shape[1],
        "text": of_text(tokens),
    }  # fmt: skip


def summaries(
    choice: Choice, revisions: Sequence[str], config: ModelConfig, tokens: Int[np.ndarray, "B T"],
    batch: int, cells: Cells,
) -> Iterator[tuple[int, dict[str, float]]]:  # fmt: skip
    """The `outlier_summary` of each revision by step; one at a time is in memory.

    Args:
      choice: the model and how it is read.
      revisions: of it.
      config: the architecture, which all of them have.
      tokens: [B, T], the same for every revision.
      batch: sequences that are run together.
      cells: the revisions that are measured already are read there, the others written.

    Raises:
      InputError: a revision that cannot be read, or that is another architecture.
    """
    for step, revision in in_order(revisions):
        if revision not in cells:
            cells.write(revision, {"step": step, "summary": _summary(
                replace(choice, revision=revision), config, tokens, batch
            )})  # fmt: skip
        yield step, cells.read(revision)["summary"]


def _summary(
    choice: Choice, config: ModelConfig, tokens: Int[np.ndarray, "B T"], batch: int
) -> dict[str, float]:
    located = loading.resolve(choice.model, choice.revision, choice.file)
    model = loading.read(located, None, choice.param_dtype, choice.shard())
    if replace(model.config, execution=config.execution) != config:
        accepted = "revisions of one architecture"
        raise InputError("revisions", choice.revision, accepted, "its config.json is another")
    run = model.config.with_execution(query_block=None)
    return summary_in_batches(run, model.params, tokens, batch)
