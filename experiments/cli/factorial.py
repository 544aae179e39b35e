"""Experiments whose cells are trainings: variants crossed with other factors."""

import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from absl import flags

from sysout_jax.analysis.compress import schemes
from sysout_jax.analysis.compress.calibration import PRODUCTS
from sysout_jax.analysis.compress.compression import check_scheme
from sysout_jax.core.attention import VARIANTS
from sysout_jax.errors import Diverged, InputError
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.loop import Run

from . import grid, launch

FLAGS = flags.FLAGS
C = TypeVar("C")
# What --smoke has of the variants and of each other factor, beside fewer and smaller steps.
SMOKE_VARIANTS = ("softmax", "context_scale")


def crossed(
    variants: Sequence[str], axes: Sequence[Sequence[Any]], bases: Sequence[str], full: bool
) -> list[tuple[Any, ...]]:
    """(variant, value of each axis) of the cells, those with the most in common first.

    Args:
      variants: attention variants.
      axes: values of each other factor, the usual one first.
      bases: variants that are crossed with one factor at another value, too.
      full: every combination.
    """
    made = [(variant, *rest) for rest in itertools.product(*axes) for variant in variants]
    if full:
        return made
    usual = [axis[0] for axis in axes]

    def moved(cell: tuple[Any, ...]) -> int:
        return sum(x != y for x, y in zip(cell[1:], usual, strict=True))

    return [c for c in made if moved(c) == 0 or (moved(c) == 1 and c[0] in bases)]


def check_bases(bases: Sequence[str], variants: Sequence[str]) -> None:
    """Refuse a variant twice, or one that is not trained, among those that all else is tried with.

    Raises:
      InputError: names it.
    """
    if bases:
        grid.check_values("bases", bases)
    for name in bases:
        if name not in variants:
            raise InputError("bases", name, f"of --variants: {', '.join(variants)}", "no effect")


def check_methods(config: Any) -> None:
    """Refuse, before anything is trained, a method that the model of a cell cannot have.

    Raises:
      InputError: names the method.
    """
    for model in dict.fromkeys(config.training(cell).model for cell in config.cells):
        for method in config.methods:
            check_scheme(model, schemes.scheme(method), tuple(PRODUCTS))


def trained_cell(
    about: Mapping[str, Any],
    train: Callable[[], Run],
    found: Callable[[Run], Mapping[str, Any]],
    which: Callable[[int], Mapping[str, Any]] = lambda seed: {"seed": seed},
) -> dict[str, Any]:
    """What is said of a cell that is trained; that it diverged is a result.

    Args:
      about: the cell.
      train: trains it.
      found: what is found in what was trained.
      which: of a seed that diverged, what it is.
    """
    begun = time.perf_counter()
    try:
        trained = train()
    except Diverged as error:
        return {**about, "diverged": {"step": error.step, **which(error.seed)}}
    return {**about, **found(trained), "seconds": time.perf_counter() - begun}


def from_flags(config: C, skip: Sequence[str]) -> C:
    """The config that the flags ask for.

    Args:
      config: without any flag but --smoke.
      skip: fields of its trainings that no flag says.

    Raises:
      InputError: a flag's value is not accepted, or has no effect on the trainings.
    """
    given = {name: FLAGS[name].value for name in FLAGS}
    if given["variants"] == ["all"]:
        given["variants"] = list(VARIANTS)
    before = config.train  # type: ignore[attr-defined]
    train = launch.override(before, {n: value for n, value in given.items() if n not in skip})
    made: Any = launch.override(replace(config, train=train), given, without="train")  # type: ignore[type-var]
    optimizers = getattr(made, "optimizers", [train.optimizer.optimizer])
    launch.check_optimizer(before.optimizer, optimizers, train)
    return made


def define_flags(config_type: type, smoke: str, skip: tuple[str, ...]) -> None:
    """Define the flags of a command whose cells are trainings.

    Args:
      config_type: the config, whose `train` is what they have in common.
      smoke: what --smoke does.
      skip: fields of its trainings that are no flags.
    """
    launch.define_overrides(config_type, without=("train", "place"))
    grid.define_flags(TrainConfig, smoke, skip)
