"""Programs that run once, compiled as soon as can be: that is most of their time."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

from sysout_jax.model.compiling import supported

# Half of the time together, compiling and running.
_LEAST_EFFORT = (("xla_backend_optimization_level", 0), ("xla_cpu_use_fusion_emitters", False))
P = ParamSpec("P")
R = TypeVar("R")


def jit_once(function: Callable[P, R]) -> Callable[P, R]:
    """`jax.jit` with XLA's least effort."""
    return jax.jit(function, compiler_options=supported(_LEAST_EFFORT))
