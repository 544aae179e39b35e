"""How the suite's own process compiles: without XLA's costly passes.

Four fifths of the suite's processor time was XLA compiling programs that then run for milliseconds.
One part per program: with several, the same arithmetic in two programs may differ in its last bits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax

# XLA aborts on a flag that it does not know, and newer ones have no other emitters than those.
_EMITTERS = ["--xla_cpu_use_fusion_emitters=false"] if jax.__version_info__ < (0, 11) else []
XLA_FLAGS = " ".join([*_EMITTERS, "--xla_cpu_parallel_codegen_split_count=1"])

# For a child whose bits are compared with those of the suite's process.
ENVIRONMENT = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "XLA_FLAGS": XLA_FLAGS}

# For a child that compiles what children of other runs of the tests have compiled.
CACHE = {
    "JAX_COMPILATION_CACHE_DIR": str(Path(__file__).parent.parent / ".cache" / "xla"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
}

# For a child of short programs, whose compiling is all the time.
UNOPTIMISED = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

# For a child that divides a model over two devices, whatever devices there are.
TWO_DEVICES = {
    "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"
}  # fmt: skip

# For a child that trains on a mesh of eight.
EIGHT_DEVICES = CACHE | {
    "JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"--xla_force_host_platform_device_count=8 {UNOPTIMISED}"
}  # fmt: skip


@contextmanager
def optimised() -> Iterator[None]:
    """XLA's passes, for programs compiled meanwhile that must round alike."""
    jax.config.update("jax_disable_most_optimizations", False)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", True)
