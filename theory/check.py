"""What a statement is, and how a closed form is compared with an independent measurement.

A module of this package states one result and holds

    predict(instance)    its closed form,
    measure(instance)    the same quantities found without the closed form,
    control(instance)    the measurement with an assumption broken,
    draw, SHAPES         random instances of several shapes, where the statement is an identity,
    tight                of a one-sided bound: an instance to one at which equality holds,
    verify               the `Statement`: `verify(key, quick)` compares them.

`predict`, `measure` and `control` return named quantities. (B3, C2 and E2, whose quantities are of
no drawn instance, take settings in its place.) A statement holds where the worst error
of every quantity is within its tolerance, and the same comparison with `control` is not, in a tenth
of the instances or more: a check that no broken assumption can fail would prove nothing. A bound
holds all the more when it is made weaker. So it is also compared as an identity where it is
attained; there the control is the drawn instance, at which it is not.
"""

import importlib
import math
import pkgutil
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from theory.once import jit_once

INSTANCES = 1000  # of each shape; scales are cycled over them
SCALES = (1.0, 1e3)
# Of identities between logits of up to 5e3, whose rounding error of 1.1e-16 * 5e3 becomes a
# relative error of exp(s): chosen from that product before any error was seen.
TOLERANCE = 1e-12
BROKEN = 0.9  # quantile of the control's errors
TIGHT = ": tight"  # after the name of a bound, where it is compared as an identity

Quantities = Mapping[str, Array]
Instance = Any  # a pytree of arrays


@dataclass(frozen=True)
class Part:
    """One quantity of a statement over all its instances.

    max_error: the worst disagreement of prediction and measurement, in the units of `tolerance`.
    control_error: the same with an assumption broken, which a tenth of the instances exceed.
    data: numbers for figures and for the text, by name.
    """

    name: str
    instances: int
    max_error: float
    tolerance: float
    control_error: float
    data: Mapping[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        """Whether the check passes and its control does not; NaN passes nothing."""
        return self.max_error <= self.tolerance < self.control_error


@dataclass(frozen=True)
class Check:
    """What `verify` found. Errors and tolerance are those of the part that came closest to failing,
    instances the sum over parts."""

    id: str
    claim: str
    instances: int
    max_error: float
    tolerance: float
    control_error: float
    passed: bool
    seconds: float
    parts: tuple[Part, ...]


@dataclass(frozen=True)
class Statement:
    """A claim and the function that verifies it, in float64 whatever the process is set to."""

    id: str
    claim: str
    parts: Callable[[Array, bool], Sequence[Part]]

    def __call__(self, key: Array, quick: bool = False) -> Check:
        """Verify the claim.

        Args:
          key: a typed PRNG key; the same key gives the same numbers.
          quick: fewer shapes, and no models that train for more than seconds.
        """
        begun = time.perf_counter()
        with jax.enable_x64(True):
            parts = tuple(self.parts(key, quick))
        worst = max(parts, key=lambda part: (not part.passed, _closeness(part)))
        return Check(
            self.id,
            self.claim,
            sum(part.instances for part in parts),
            worst.max_error,
            worst.tolerance,
            worst.control_error,
            all(part.passed for part in parts),
            time.perf_counter() - begun,
            parts,
        )


def _closeness(part: Part) -> float:
    share = part.max_error / part.tolerance if part.tolerance else part.max_error
    return math.inf if math.isnan(share) else share


def statement(
    id: str, claim: str
) -> Callable[[Callable[[Array, bool], Sequence[Part]]], Statement]:
    """Make the decorated function, from a key and `quick` to parts, the statement's `verify`."""
    return lambda parts: Statement(id, claim, parts)


def statements() -> dict[str, Statement]:
    """Every statement of this package by id, in order: those of the modules named like a1_*.py."""
    package = importlib.import_module("theory").__path__
    names = [m.name for m in pkgutil.iter_modules(package) if re.match(r"[a-z]\d+_", m.name)]
    found = [importlib.import_module(f"theory.{name}").verify for name in sorted(names)]
    return {each.id: each for each in found}


# ----------------------------------------------------------------------------- errors


def relative(measured: Array, predicted: Array) -> Array:
    """max|measured - predicted| over the larger of max|measured| and max|predicted|; 0 of zeros."""
    size = jnp.maximum(jnp.max(jnp.abs(measured)), jnp.max(jnp.abs(predicted)))
    return jnp.max(jnp.abs(measured - predicted)) / jnp.where(size == 0.0, 1.0, size)


def absolute(measured: Array, predicted: Array) -> Array:
    """max|measured - predicted|, for quantities of known size such as probabilities."""
    return jnp.max(jnp.abs(measured - predicted))


def at_least(measured: Array, predicted: Array) -> Array:
    """By how much `measured` falls short of the bound `predicted`, over the bound's size or 1."""
    return jnp.max(jnp.maximum(predicted - measured, 0.0) / jnp.maximum(jnp.abs(predicted), 1.0))


def at_most(measured: Array, predicted: Array) -> Array:
    """By how much `measured` exceeds the bound `predicted`, over the bound's size or 1."""
    return at_least(-measured, -predicted)


# ------------------------------------------------------------------------- comparison


def compare(
    draw: Callable[[Array, Any, Array], Instance],
    predict: Callable[[Instance], Quantities],
    measure: Callable[[Instance], Quantities],
    control: Callable[[Instance], Quantities],
    key: Array,
    *,
    shapes: Sequence[Any],
    scales: Sequence[float] = SCALES,
    instances: int = INSTANCES,
    tolerance: float | Mapping[str, float] = TOLERANCE,
    error: Callable[[Array, Array], Array]
    | Mapping[str, Callable[[Array, Array], Array]] = relative,
    tight: Mapping[str, Callable[[Instance], Instance]] | None = None,
    quick: bool = False,
) -> list[Part]:
    """Compare closed form and measurement on random instances of several shapes and scales.

    Args:
      draw: (key, shape, scale) to an instance; shape is static, scale traced.
      predict, measure, control: an instance to named quantities, the same names in each.
      key: split over shapes and instances.
      shapes: what `draw` takes, one compilation each; `quick` takes the last.
      scales: cycled over the instances of each shape.
      instances: of each shape.
      tolerance: on the worst error; one for all quantities, or by name.
      error: (measured, predicted) to a scalar; one for all quantities, or by name.
      tight: by name of a bound, from a drawn instance to one at which it holds with equality.

    Returns:
      A `Part` for each quantity, and for each bound NAME of `tight` a part "NAME: tight": its
      error is relative, its tolerance that of the bound unless given by that name.

    Raises:
      ValueError: the three return other names.
    """
    shapes = shapes[-1:] if quick else shapes
    errors = [
        _errors(
            draw, predict, measure, control, error, tight or {}, shape_key, shape, scales, instances
        )
        for shape, shape_key in zip(shapes, jax.random.split(key, len(shapes)), strict=True)
    ]

    def allowed(name: str) -> float:
        if not isinstance(tolerance, Mapping):
            return tolerance
        return tolerance[name] if name in tolerance else tolerance[name.removesuffix(TIGHT)]

    return [
        Part(
            name,
            instances * len(shapes),
            float(np.max([found[name][0] for found in errors])),
            allowed(name),
            float(np.quantile([found[name][1] for found in errors], BROKEN)),
        )
        for name in errors[0]
    ]


def _errors(
    draw: Callable[..., Instance],
    predict: Callable[[Instance], Quantities],
    measure: Callable[[Instance], Quantities],
    control: Callable[[Instance], Quantities],
    error: Any,
    tight: Mapping[str, Callable[[Instance], Instance]],
    key: Array,
    shape: Any,
    scales: Sequence[float],
    instances: int,
) -> dict[str, tuple[Array, Array]]:
    """The largest error of each quantity and the control's errors, in one compiled call."""

    def one(key: Array, scale: Array) -> dict[str, tuple[Array, Array]]:
        instance = draw(key, shape, scale)
        predicted, found, broken = predict(instance), measure(instance), control(instance)
        if not predicted.keys() == found.keys() == broken.keys():
            raise ValueError(f"{[*predicted]}, {[*found]} and {[*broken]} should be the same names")
        measures = error if isinstance(error, Mapping) else dict.fromkeys(predicted, error)
        errors = {
            name: (measures[name](found[name], value), measures[name](broken[name], value))
            for name, value in predicted.items()
        }
        for at in dict.fromkeys(tight.values()):  # each function once, whatever it is tight for
            case = at(instance)
            attained, reached = predict(case), measure(case)
            errors |= {
                name + TIGHT: (
                    relative(reached[name], attained[name]),
                    relative(found[name], predicted[name]),
                )
                for name, of_name in tight.items()
                if of_name is at
            }
        return errors

    # A new function each time, so that nothing compiled from an earlier `predict` is taken instead.
    each = jit_once(jax.vmap(one))(
        jax.random.split(key, instances), jnp.resize(jnp.asarray(scales, jnp.float64), (instances,))
    )
    # Of NaN a maximum is NaN, and so is a quantile: neither passes.
    return {name: (jnp.max(found), broken) for name, (found, broken) in each.items()}
