"""Several processes, each with devices of its own, that train as one.

Every process runs the same program on the same mesh. Each reads only the rows of a batch that its
own devices need; the first alone writes, but for training states, of which each writes what it
holds. All of them end when one does: whoever waits for the lost one is told by the connection, and
whoever does not by the heartbeat, `HEARTBEAT` seconds later.
"""

import contextlib
import ctypes
import hashlib
import json
import os
import signal
import sys
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from sysout_jax.errors import InputError, reason
from sysout_jax.training.sharding import batch_sharding

AUTO = "auto"
CONNECTING = 300  # seconds to wait for the others at the start
HEARTBEAT = 20  # seconds without a sign of life after which a process counts as lost
LEAVING = 86_400  # seconds that those who are done wait for the others, who may be saving
LETTER = 4096  # bytes that process 0 can tell the others at once


def connect(coordinator: str | None, processes: int | None, process: int | None) -> None:
    """Join the other processes of a run; nothing to do where no coordinator is given.

    Must come before any use of a device.

    Args:
      coordinator: HOST:PORT of process 0; "auto" where JAX knows it from SLURM, Cloud TPU, GKE or
        Open MPI; None for a run of one process.
      processes: how many there are.
      process: which of them this is, from 0.

    Raises:
      InputError: the three do not go together, the others are not there in time, or there are
        others and no coordinator.
    """
    if coordinator in (None, AUTO):
        for name, value in (("processes", processes), ("process", process)):
            if value is not None:
                raise InputError(name, f"{value}", "with --coordinator=HOST:PORT")
        if coordinator is None:
            if (count := jax.process_count()) > 1:
                raise InputError("coordinator", None, AUTO, f"none for a machine of {count} hosts")
            return
    elif ":" not in str(coordinator) or not str(coordinator).rpartition(":")[2].isdecimal():
        raise InputError("coordinator", f"{coordinator}", f"HOST:PORT, or {AUTO}")
    elif processes is None or processes < 1:
        raise InputError("processes", f"{processes}", "how many processes there are")
    elif process is None or not 0 <= process < processes:
        raise InputError("process", f"{process}", f"from 0 to {processes - 1}")
    _end_in_words()
    try:
        jax.distributed.initialize(
            None if coordinator == AUTO else coordinator,
            processes,
            process,
            cluster_detection_method=None if coordinator == AUTO else "deactivate",
            initialization_timeout=CONNECTING,
            heartbeat_timeout_seconds=HEARTBEAT,
            shutdown_timeout_seconds=LEAVING,
        )
    except (ValueError, RuntimeError) as error:
        said = reason(error)
        raise InputError(
            "coordinator",
            f"{coordinator}",
            (f"HOST:PORT of process 0, reachable from all, or {AUTO} on SLURM, Cloud TPU and GKE"),
            f"no run of several processes within {CONNECTING} s ({said})",
        ) from error
    if jax.default_backend() == "cpu":
        # Process 0 alone fills the cache and would then be ahead of the others by their compiling,
        # for longer than the collectives of CPUs wait.
        jax.config.update("jax_enable_compilation_cache", False)


def is_distributed() -> bool:
    """Whether this run has more than one process."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_main() -> bool:
    """Whether this process is the one that writes."""
    return jax.process_index() == 0


def broadcast_json(value: Any) -> Any:
    """What process 0 gives, in every process; JSON of at most `LETTER` bytes.

    All of them have to ask together.
    """
    if not is_distributed():
        return value
    letter = json.dumps(value).encode() if is_main() else b""
    if len(letter) > LETTER:
        raise ValueError(f"{len(letter)} bytes; accepted: at most {LETTER}")
    page = np.frombuffer(letter.ljust(LETTER), np.uint8)
    return json.loads(multihost_utils.broadcast_one_to_all(page).tobytes())


def all_gather_flag(flag: bool) -> list[bool]:
    """What each process says, in every process; all of them have to ask together."""
    if not is_distributed():
        return [flag]
    return [bool(said) for said in multihost_utils.process_allgather(np.array(flag))]


def agree(said: str) -> None:
    """Refuse a run whose processes were told different things; all of them have to ask together.

    Raises:
      InputError: in all of them; names those that differ from process 0.
    """
    digest = hashlib.sha256(said.encode()).hexdigest()
    same = all_gather_flag(broadcast_json(digest) == digest)
    if not all(same):
        raise InputError(
            "process",
            ",".join(str(n) for n, each in enumerate(same) if not each),
            "the same command, code and text for all",
            "its config or text is not that of process 0",
        )


def leave(why: object) -> None:
    """End this process because another is gone, with one line and exit status 1."""
    said = reason(why)[:200]
    print(
        f"error: another process of this run is gone, or does not answer: this one stops ({said})",
        file=sys.stderr,
    )
    leave_with(1)


def leave_with(status: int) -> None:
    """End this process at once.

    On the way out, JAX would wait for the other processes, and where a signal has come in the
    middle of its work, crash.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(status)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborting(_: int) -> None:
    leave("JAX gave up, as it says above")


def _end_in_words() -> None:
    """Say what happened where JAX aborts because it misses another process.

    JAX does so in a thread of its own, where no exception reaches Python and no handler of the
    signal module is run.
    """
    ctypes.CDLL(None).signal(signal.SIGABRT, _aborting)


def host_rows(mesh: Mesh, batch_size: int) -> np.ndarray | None:
    """Which rows of a batch the devices of this process need, in order; None: all of them."""
    if not is_distributed():
        return None
    where = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    parts = [np.arange(batch_size)[rows] for rows in where.values()]
    return np.unique(np.concatenate(parts))


def put_rows(mesh: Mesh, batch_size: int, rows: np.ndarray | None, batches: np.ndarray) -> Array:
    """Batches on the devices of all processes, each of which gives its rows.

    Args:
      mesh: of `make_mesh`.
      batch_size: B, of all processes together.
      rows: of `host_rows`.
      batches: [steps, seeds, rows, T+1].
    """
    leading = 2
    where = batch_sharding(mesh, leading)
    if rows is None:
        return jax.device_put(batches, where)
    steps, seeds, _, width = batches.shape

    def of(index: Any) -> np.ndarray:
        wanted = np.arange(batch_size)[index[leading]]
        return batches[:, :, np.searchsorted(rows, wanted)]

    return jax.make_array_from_callback((steps, seeds, batch_size, width), where, of)


def gather_to_hosts(tree: Any, wanted: bool = True) -> Any:
    """Arrays of all processes whole in the memory of each host, one after the other through its
    devices; all of them have to ask together.

    Args:
      tree: of arrays; those of this process alone stay as they are.
      wanted: whether this process keeps them; else None is in their place.
    """

    def of(x: Any) -> Any:
        if x.is_fully_addressable:
            return x
        if x.is_fully_replicated:
            return np.asarray(x.addressable_data(0)) if wanted else None
        whole = multihost_utils.process_allgather(x, tiled=True)
        return whole if wanted else None

    return jax.tree.map(of, tree)


def replicated(tree: Any) -> Any:
    """Arrays of which every process holds the whole, as arrays of all processes together.

    Others, which are divided over processes, stay as they are. Of jax.ShapeDtypeStruct: such ones.
    """
    if not is_distributed():
        return tree
    everywhere = NamedSharding(Mesh(np.array(jax.devices()), "all"), PartitionSpec())

    def of(x: Any) -> Any:
        if not x.sharding.is_fully_addressable:
            return x
        if isinstance(x, jax.ShapeDtypeStruct):
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere)
        return jax.make_array_from_callback(x.shape, everywhere, np.asarray(x).__getitem__)

    return jax.tree.map(of, tree)


def local_part(tree: Any, like: Any) -> Any:
    """The other way: what `replicated` made of arrays such as those in `like`."""

    def of(x: Array, wanted: Any) -> Array:
        return x if x.sharding == wanted.sharding else x.addressable_data(0)

    return jax.tree.map(of, tree, like)
