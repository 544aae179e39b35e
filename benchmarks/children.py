"""A fresh process for each measurement: what it finds, its seconds, and the peak of its memory.

The child imports no more than this and the module that it is told to run.
"""

import ctypes
import importlib
import json
import os
import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


class Died(RuntimeError):
    """A child ended without a result."""


class NoMemory(Died):
    """It ended because it may not have more memory."""


def measured(
    prepare: str, cache: Path, calls: int = 1, limit: int = -1, **arguments: Any
) -> dict[str, Any]:
    """Run what `prepare(**arguments)` returns in a process of its own.

    Args:
      prepare: "module:function"; it loads a model and returns the work, a function without
        arguments whose result JSON knows. Loading counts in the time of the whole alone.
      cache: a directory for what JAX compiles, as experiments have one.
      calls: how often the work is done; the first compiles, or reads what is in the cache.
      limit: bytes of private memory that the process may have; -1 for any number.

    Returns:
      "found": the result; "seconds": of each call; "whole": seconds from the start of the process
      to its end; "loaded": bytes in memory before the work; "peak": the most in it.

    Raises:
      NoMemory: the limit ended it.
      Died: it ended without a result; with the last line that it wrote.
    """
    command = [sys.executable, "-m", "benchmarks.children", prepare, str(calls), str(limit)]
    environment = {
        **os.environ, "JAX_COMPILATION_CACHE_DIR": str(cache),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # else one process takes most of a GPU's memory
    }  # fmt: skip
    begun = time.perf_counter()
    done = subprocess.run(
        [*command, json.dumps(arguments)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    whole = time.perf_counter() - begun
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        last = lines[-1] if lines else "no word"
        refused = limit >= 0 and re.search("memory|bad_alloc|MemoryError", last)
        raise (NoMemory if refused else Died)(f"{prepare}: status {done.returncode}: {last}")
    return {**json.loads(done.stdout.splitlines()[-1]), "whole": whole}


def memory() -> dict[str, int]:
    """Bytes of this process that are in memory now, and the most that were since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    sizes = {name: int(size) for name, size in re.findall(r"^(Vm\w+):\s+(\d+) kB$", status, re.M)}
    return {"now": 1024 * sizes["VmRSS"], "peak": 1024 * sizes["VmHWM"]}


def forget_peak() -> None:
    """Start to look for the peak of this process from now on.

    What was freed before goes back to the kernel: else the work could fill it unseen.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc
    if trim is not None:
        trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def carried_out(work: Callable[[], Any], calls: int) -> Mapping[str, Any]:
    """Do the work in this process, and measure it as `measured` says."""
    forget_peak()
    loaded, seconds, found = memory()["now"], [], None
    for _ in range(calls):
        begun = time.perf_counter()
        found = work()
        seconds.append(time.perf_counter() - begun)
    return {"found": found, "seconds": seconds, "loaded": loaded, "peak": memory()["peak"]}


def stepped(
    load: Callable[[], Any], run: Callable[[Any, Any], Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Load a model, and give it one thing after the other, each twice.

    Returns:
      "seconds": of "load", of each name in `given`, and of the name with " again"; "found": name ->
      what `run` returned, as lists.
    """
    begun = time.perf_counter()
    model, found = load(), {}
    seconds = {"load": time.perf_counter() - begun}
    for name, one in given.items():
        for step in (name, f"{name} again"):
            begun = time.perf_counter()
            found[name] = run(model, one)
            seconds[step] = time.perf_counter() - begun
    return {"seconds": seconds, "found": {name: each.tolist() for name, each in found.items()}}


def main(prepare: str, calls: str, limit: str, arguments: str) -> None:
    """What the child does; the last line that it writes is the result."""
    resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))
    module, _, function = prepare.partition(":")
    work = getattr(importlib.import_module(module), function)(**json.loads(arguments))
    print(json.dumps(carried_out(work, int(calls))))


if __name__ == "__main__":
    main(*sys.argv[1:])
