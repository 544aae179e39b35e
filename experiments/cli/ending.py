"""How a command ends: signals, the exit status, the line that says why, and what goes on."""

import _thread
import io
import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
from absl import flags

from sysout_jax.errors import Diverged, InputError, Preempted, Terminated, reason
from sysout_jax.files import naming
from sysout_jax.training import hosts

FLAGS = flags.FLAGS
OUTPUT = Path("standard output")
NO_MEMORY = ("resource_exhausted", "out of memory")  # in what XLA says
LESS = (
    "remat", "accumulate", "seeds_at_once", "measure_seq_len", "batch_size", "stream", "batch",
    "seq_len",
)  # fmt: skip


def ended(error: BaseException, signals: Sequence[int]) -> int:
    """Say why a command ended, and give its exit status.

    Raises:
      BaseException: the error, where it is no user's and no system's.
    """
    if signals:  # whatever a library has made of it
        said = "interrupted" if signals[0] == signal.SIGINT else "terminated"
        return _say(said, 128 + signals[0])
    if isinstance(error, InputError):
        return _say(error.of_command(FLAGS), 2)
    if isinstance(error, Diverged):
        return _say(error, 1)
    if isinstance(error, Preempted):
        print(error)
        return 0
    if isinstance(error, jax.errors.JaxRuntimeError):
        if any(words in str(error).lower() for words in NO_MEMORY):
            ways = ", ".join(f"--{name}" for name in LESS if name in FLAGS)
            said = f"less at a time, by {ways}, as docs/errors.md says"
            return _say(f"out of memory on the device; accepted: {said}", 1)
        if hosts.is_distributed():
            hosts.leave(error)
    if isinstance(error, OSError):
        if error.filename == str(OUTPUT):  # what is left of it must not fail again at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if isinstance(error, BrokenPipeError):  # as head leaves: nobody is to be told
                return 1
        return _say(f"{error.filename or '--workdir'}: {error.strerror or error}", 1)
    if isinstance(error, KeyboardInterrupt):
        return _say("interrupted", 130)
    if (no_device := _no_device()) is not None:
        return _say(no_device, 2)
    raise error


@contextmanager
def printing() -> Iterator[None]:
    """What a command prints before it runs, to the end; nobody may read it to there."""
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        sys.exit(ended(error, ()))


class Output(io.TextIOWrapper):
    """Standard output whose errors say that it is: the system's name no file.

    Args:
      stream: standard output as Python has opened it.
    """

    def __init__(self, stream: io.TextIOWrapper) -> None:
        how = {name: getattr(stream, name) for name in ("encoding", "errors", "line_buffering")}
        super().__init__(stream.detach(), **how)

    def write(self, text: str) -> int:
        """Write, or name standard output."""
        with naming(OUTPUT):
            return super().write(text)

    def flush(self) -> None:
        """Flush, or name standard output."""
        with naming(OUTPUT):
            super().flush()


def _no_device() -> str | None:
    """What is wrong with the devices that are asked for; None where they are there."""
    asked = os.environ.get("JAX_PLATFORMS")
    try:
        if asked:
            jax.devices()
    except RuntimeError as error:
        said = reason(error).partition(" (set JAX_PLATFORMS")[0].rstrip(".")
    except AssertionError:  # where JAX has no plugin
        said = "no such device"
    else:
        return None
    return f"JAX_PLATFORMS={asked}: {said}; accepted: what this machine has, such as cpu"


@contextmanager
def heard() -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM as exceptions that do not get lost; yields the numbers that came.

    A handler's exception is lost where it is raised in a callback of the garbage collector, of
    which JAX has one (jax#18246): then it is raised again.
    """
    came: list[int] = []

    def handle(number: int, _: object) -> None:
        came.append(number)
        raise KeyboardInterrupt if number == signal.SIGINT else Terminated

    def again(raised: Any) -> None:
        if came and issubclass(raised.exc_type, KeyboardInterrupt):
            # In a moment: raised here, it would be lost again.
            threading.Timer(0.02, _thread.interrupt_main, [signal.Signals(came[-1])]).start()
        else:
            hook(raised)

    hook, sys.unraisablehook = sys.unraisablehook, again
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    before = {number: how for number, how in before.items() if how is not signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, handle)
        yield came
    finally:
        for number, how in before.items():
            signal.signal(number, how)
        sys.unraisablehook = hook


@contextmanager
def until_stopped() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C has come, or SIGTERM, as machines that are taken away send.

    The run ends by itself, with its state; at a second Ctrl-C it ends at once.
    """
    came: list[int] = []

    def handle(number: int, frame: Any) -> None:
        came.append(number)
        if came.count(signal.SIGINT) > 1:
            before[signal.SIGINT](number, frame)

    before: dict[int, Any] = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}
    try:
        for number, how in before.items():
            if how is not signal.SIG_IGN:
                signal.signal(number, handle)
        yield lambda: bool(came)
        if signal.SIGINT in came:  # after the last step
            raise KeyboardInterrupt
    except Preempted:
        if signal.SIGINT in came:
            raise KeyboardInterrupt from None
        raise
    finally:
        for number, how in before.items():
            signal.signal(number, how)


@contextmanager
def telling_how_to_go_on(*arguments: str) -> Iterator[None]:
    """Say which command goes on with a run that Ctrl-C or SIGTERM stops: this with `arguments`."""
    try:
        yield
    except (KeyboardInterrupt, Preempted):
        own = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
        print(f"goes on  {shlex.join([*own, *arguments])}", flush=True)
        raise


def with_name(directory: Path) -> list[str]:
    """The arguments of this command, and the name of its run directory if they do not give it."""
    return [*sys.argv[1:], *([] if FLAGS.name else [f"--name={directory.name}"])]


def _say(message: object, status: int) -> int:
    with suppress(OSError):  # of standard error
        print(f"error: {message}", file=sys.stderr, flush=True)
    return status
