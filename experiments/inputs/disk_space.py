"""Whether the disk has room for what a run will leave on it."""

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import jax

from sysout_jax.errors import InputError
from sysout_jax.model.decoder import init
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.loop import Corpus
from sysout_jax.training.states import Saving

RECORD_BYTES = 8_000_000  # of a study beside its models: record and figures
STATE = 3  # times its parameters: with two moments of the optimiser


def check_room(
    workdir: str,
    studies: Sequence[TrainConfig],
    corpora: Sequence[Corpus],
    variants: int,
    jobs: int,
    saving: Saving,
) -> None:
    """Refuse to start where the trained models and training states will not fit on the disk.

    Args:
      workdir: where run directories go.
      studies, corpora: one corpus per study.
      variants: how many are trained in each.
      jobs: how many of them at the same time.
      saving: which training states are kept.

    Raises:
      InputError: says how much is needed.
    """
    needed = 0
    for study, corpus in zip(studies, corpora, strict=True):
        architecture = study.architecture(corpus.vocab)
        parameters = jax.eval_shape(partial(init, architecture), jax.random.key(0))
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(parameters))
        models = 1 + _every(study.checkpoint_every, study.steps + study.checkpoint_every)
        states = 1 + _every(saving.keep_every, study.steps)
        per_seed = variants * (models + STATE * states) + jobs * STATE * saving.keep_last
        needed += size * per_seed * len(study.seeds) + RECORD_BYTES
    existing = next(p for p in (Path(workdir).absolute() / "x").parents if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(
            "workdir",
            workdir,
            (
                "a directory with room for the trained models and their training "
                f"states, {needed / 1000000.0:.1f} MB"
            ),
            f"{free / 1000000.0:.1f} MB free",
        )


def _every(period: int, steps: int) -> int:
    return 1 + steps // period if period else 0
