"""Passes over a model that is looked at: compiled with less effort, their products precise."""

from collections.abc import Callable, Mapping
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import jax
import jax.numpy as jnp

# Loops over elements are laid out more simply: a few percent slower, compiled in half of the time.
# What takes a pass its time are products of matrices, which XLA's CPU library computes either way.
_LESS_EFFORT: Mapping[str, Any] = {
    "xla_backend_optimization_level": 1,
    "xla_cpu_use_fusion_emitters": False,
}
P = ParamSpec("P")
R = TypeVar("R")


def precisely(function: Callable[P, R]) -> Callable[P, R]:
    """A function whose products of float32 are made in float32, on accelerators too.

    By default GPUs take TF32 for them and TPUs bfloat16. Training may; what compares models,
    solves or inverts would find that rounding.
    """

    @wraps(function)
    def call(*given: P.args, **named: P.kwargs) -> R:
        with jax.default_matmul_precision("highest"):
            return function(*given, **named)

    return call


def jit_quickly(*static_argnums: int) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """`jax.jit` of a pass over a model that is looked at: on a CPU what compiles soonest, on an
    accelerator with precise products.

    Inside of another compiled or transformed function it is a part of that.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        within = jax.jit(function, static_argnums=static_argnums)
        precise = precisely(within)

        @cache
        def alone() -> Any:
            return jax.jit(function, static_argnums=static_argnums, compiler_options=_known())

        @wraps(function)
        def call(*given: P.args, **named: P.kwargs) -> R:
            traced = any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((given, named)))
            if traced or _staged():
                return within(*given, **named)
            if jax.default_backend() != "cpu":
                return precise(*given, **named)
            try:
                return alone()(*given, **named)
            except ValueError as error:
                if "compiler_options" not in str(error):
                    raise
                return within(*given, **named)  # a static function closes over a tracer

        return call

    return decorate


def _staged() -> bool:
    """Whether what is computed now becomes a part of another program."""
    return isinstance(jnp.zeros(()), jax.core.Tracer)


@cache
def _known() -> dict[str, Any]:
    """The options that this version of XLA has; none where JAX is told to do least by itself."""
    known: dict[str, Any] = {}
    if jax.config.read("jax_disable_most_optimizations"):
        return known
    for name, value in _LESS_EFFORT.items():
        try:
            jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
        except jax.errors.JaxRuntimeError:
            continue
        known[name] = value
    return known
