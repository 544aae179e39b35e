"""Programs that run once, compiled as soon as can be: that is most of their time."""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, ParamSpec, TypeVar

import jax

# Half of the time together, compiling and running.
_LEAST_EFFORT: Mapping[str, Any] = {
    "xla_backend_optimization_level": 0,
    "xla_cpu_use_fusion_emitters": False,
}
P = ParamSpec("P")
R = TypeVar("R")


def jit_once(function: Callable[P, R]) -> Callable[P, R]:
    """`jax.jit` with XLA's least effort."""
    return jax.jit(function, compiler_options=_known())


@cache
def _known() -> dict[str, Any]:
    """Those of the options that this version of XLA has."""
    known: dict[str, Any] = {}
    for name, value in _LEAST_EFFORT.items():
        try:
            jax.jit(lambda: 0, compiler_options={name: value}).lower().compile()
        except jax.errors.JaxRuntimeError:
            continue
        known[name] = value
    return known
