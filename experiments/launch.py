"""What every experiment binary shares: flags from configs, errors in one line, caches."""

import dataclasses
import inspect
import json
import os
import re
import signal
import sys
import threading
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from logging import getLogger
from pathlib import Path
from typing import Any, TypeVar

import jax
from absl import app, flags, logging
from rich.console import Console

from sysout_jax import plots
from sysout_jax.data import default_cache_dir
from sysout_jax.errors import Diverged, InputError, Preempted
from sysout_jax.results import read_record
from sysout_jax.training import hosts

FLAGS = flags.FLAGS
C = TypeVar("C")


def define_overrides(config_type: type, skip: tuple[str, ...] = ()) -> None:
    """Define one flag per field of a config dataclass and of the dataclasses in it.

    A flag that is not given leaves the field as it is. The comment beside a field is its help.
    """
    for name, hint, text in _leaves(config_type):
        if name in skip:
            continue
        if hint is bool:
            flags.DEFINE_bool(name, None, text)
        elif hint is int:
            flags.DEFINE_integer(name, None, text)
        elif hint is float:
            flags.DEFINE_float(name, None, text)
        elif hint is str:
            flags.DEFINE_string(name, None, text)
        else:
            flags.DEFINE_list(name, None, text)


def override(config: C, flag_values: dict[str, Any]) -> C:
    """The config with every field that is named in `flag_values` replaced, at any depth.

    Raises:
      InputError: a value is out of range, or a list holds what is no number.
    """
    changes: dict[str, Any] = {}
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if dataclasses.is_dataclass(value):
            changes[field.name] = override(value, flag_values)
        elif flag_values.get(field.name) is not None:
            given = flag_values[field.name]
            if isinstance(given, list):
                given = numbers(field.name, given, float if "float" in str(field.type) else int)
            changes[field.name] = given
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def restore(config_type: type[C], stored: dict[str, Any]) -> C:
    """The config that a run wrote as config.json.

    Raises:
      InputError: other fields than the config has, as another version would write, or a value
        that is not accepted.
    """
    hints = typing.get_type_hints(config_type)
    if set(stored) != set(hints):
        odd = ", ".join(sorted(set(stored) ^ set(hints)))
        raise InputError(str(odd), accepted="the fields that this version writes")
    values: dict[str, Any] = {}
    for name, value in stored.items():
        kind = hints[name]
        of = next(iter(typing.get_args(kind)), None)
        if dataclasses.is_dataclass(kind):
            values[name] = restore(typing.cast(type, kind), value)
        elif dataclasses.is_dataclass(of) and typing.get_origin(kind) is tuple:
            values[name] = tuple(restore(typing.cast(type, of), item) for item in value)
        else:
            values[name] = tuple(value) if isinstance(value, list) else value
    return config_type(**values)


def read_config(config_type: type[C], directory: Path, flag: str, binary: str) -> C:
    """The config of a run directory, which a flag means.

    Raises:
      InputError: it is no run of this binary.
    """
    try:
        return restore(config_type, json.loads((directory / "config.json").read_text()))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        told = str(getattr(error, "strerror", None) or error)
        if not isinstance(error, InputError):  # which says itself what is accepted
            told = f"{told}; accepted: a run directory of {binary}"
        raise InputError(flag, FLAGS[flag].value, why=f"config.json: {told}") from error


def numbers(name: str, values: list[str], kind: type) -> tuple[Any, ...]:
    """The value of a list flag as integers, or as numbers where `kind` is float.

    Raises:
      InputError: an item is none.
    """
    try:
        return tuple(kind(value) for value in values)
    except ValueError:
        words = {int: "integers", float: "numbers"}[kind]
        raise InputError(name, ",".join(values), f"{words} with commas between them") from None


def _leaves(config_type: type) -> Iterator[tuple[str, Any, str]]:
    comments = dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(config_type), re.M))
    for name, hint in typing.get_type_hints(config_type).items():
        if dataclasses.is_dataclass(hint):
            yield from _leaves(typing.cast(type, hint))
        else:
            if isinstance(hint, types.UnionType):
                hint = next(part for part in typing.get_args(hint) if part is not types.NoneType)
            yield name, hint, comments.get(name, name.replace("_", " "))


@contextmanager
def redrawing(directory: Path, binary: str) -> Iterator[dict[str, Any]]:
    """The record of a run, to draw it again.

    Raises:
      InputError: there is none, or what is drawn is not in it.
    """
    record = read_record(directory)
    try:
        yield record
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(
            "redraw",
            directory,
            f"a run directory of {binary}",
            f"result.json is no record of this experiment ({error!r})",
        ) from error


def define_hosts() -> None:
    """Define the flags of a run on several hosts."""
    flags.DEFINE_string(
        "coordinator",
        None,
        f"HOST:PORT of process 0 where several run together; {hosts.AUTO} on SLURM, Cloud TPU, GKE",
    )
    flags.DEFINE_integer("processes", None, "how many processes run this command, one a host")
    flags.DEFINE_integer("process", None, "which of them this is, from 0")


def publish(console: Console, directory: Path, record: dict[str, Any]) -> None:
    """Draw the record of a run into its directory, and say where both are."""
    figures = plots.draw(record, directory / "figures")
    console.print(f"record   {directory / 'result.json'}", soft_wrap=True, markup=False)
    found = "\n         ".join(map(str, figures))
    console.print(f"figures  {found}", soft_wrap=True, markup=False)


def redraw(
    binary: str,
    console: Console,
    show: Callable[[Console, dict[str, Any]], None],
    markdown_tables: Callable[[dict[str, Any]], dict[str, str]],
) -> None:
    """Print the record of the run that --redraw names, in Markdown if --markdown, and draw it.

    Raises:
      InputError: there is no record of this experiment.
    """
    directory = Path(FLAGS.redraw)
    with redrawing(directory, binary) as record:
        if FLAGS.markdown:
            print("\n\n".join(markdown_tables(record).values()))
        else:
            show(console, record)
        figures = plots.draw(record, directory / "figures")
    if not FLAGS.markdown:
        console.print("\n".join(map(str, figures)), soft_wrap=True, markup=False)


def launch(main: Callable[[], None]) -> None:
    """Parse flags and run `main`; the exit status is that of `guarded`."""

    def run(argv: Sequence[str]) -> None:
        if not FLAGS["verbosity"].present:
            _quiet_storage()
        status = guarded(main, argv)
        if status and hosts.several():
            hosts.leave_with(status)
        sys.exit(status)

    app.run(run)


def guarded(main: Callable[[], None], argv: Sequence[str]) -> int:
    """Run `main` and turn what may go wrong for a user into one line on stderr.

    Returns:
      The exit status: 0, also of a run that stopped as SIGTERM asked, 2 for a user's mistake, 1
      for a run that failed or whose output nobody reads any more, 130 for Ctrl-C.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(default_cache_dir() / "xla"))
    try:
        if len(argv) > 1:
            raise InputError(repr(argv[1]), None, "flags of the form --name=value", "unexpected")
        for name in FLAGS:  # as a variable of the shell that is not set leaves it
            if FLAGS[name].present and FLAGS[name].value == "":
                raise InputError(name, "", f"a value, or no --{name}", "empty")
        main()
        sys.stdout.flush()
    except InputError as error:
        return _say(error.of_command(FLAGS), 2)
    except Diverged as error:
        return _say(error, 1)
    except jax.errors.JaxRuntimeError as error:
        if not hosts.several():
            raise
        hosts.leave(error)
    except BrokenPipeError:  # who read the output has left, as head does: nobody is to be told
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _say(f"{error.filename or '--workdir'}: {error.strerror or error}", 1)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except Preempted as error:
        print(error)
    return 0


def _quiet_storage() -> None:
    """Leave out what the storage library says besides what it raises.

    It tells its whole story at INFO; a failed write it logs with a traceback from each of its
    threads; other writes that failed are heard of as nobody asks for them, or because the event
    loop that they report to is closed.
    """
    logging.set_verbosity(logging.WARNING)
    for name in ("absl", "asyncio"):
        getLogger(name).addFilter(lambda record: not record.exc_info)
    before = sys.unraisablehook

    def hook(raised: Any) -> None:
        if str(raised.exc_value) != "Event loop is closed":
            before(raised)

    sys.unraisablehook = hook


@contextmanager
def until_terminated() -> Iterator[Callable[[], bool]]:
    """Whether SIGTERM has come, as machines that are taken away send: the run ends by itself."""
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def _say(message: object, status: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return status
