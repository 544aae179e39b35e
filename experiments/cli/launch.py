"""What every experiment binary shares: flags from configs, errors in one line, caches."""

import dataclasses
import glob
import inspect
import io
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from logging import StreamHandler, getLogger
from pathlib import Path
from typing import Any, TypeVar

import jax
from absl import app, flags, logging

from sysout_jax.data import default_cache_dir
from sysout_jax.errors import InputError
from sysout_jax.files import read_json
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.rope import RULES, Rope, by_rule
from sysout_jax.model.rope import flag as rope_flag
from sysout_jax.model.stored import from_record
from sysout_jax.results import as_flag, named_run
from sysout_jax.training import hosts
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.optimizer import OptimizerConfig, unused

from . import ending, help
from .verdict import as_started

FLAGS = flags.FLAGS
C = TypeVar("C")
TPU_LIBRARY = "TPU_LIBRARY_PATH"
TPU_CHIPS = ("/dev/accel*", "/dev/vfio/*")  # as the drivers of TPUs name them


def define_overrides(
    config_type: type, skip: Sequence[str] = (), without: Sequence[str] = ()
) -> None:
    """Define one flag per field of a config dataclass and of the dataclasses in it.

    A flag that is not given leaves the field as it is. The comment beside a field, or else that
    above it, is its help.

    Args:
      config_type: the dataclass.
      skip: fields at any depth that are no flags.
      without: fields of this dataclass that are left out with all that is in them.
    """
    for name, hint, text in _leaves(config_type, without):
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


def override(config: C, flag_values: Mapping[str, Any], without: str = "") -> C:
    """The config with every field that is named in `flag_values` replaced, at any depth.

    Args:
      config: a dataclass.
      flag_values: field -> its value; None leaves it.
      without: a field of this dataclass that is left with all that is in it.

    Raises:
      InputError: a value is out of range, or a list holds what is no number.
    """
    changes: dict[str, Any] = {}
    named: Callable[[str], str] = str
    if isinstance(config, Rope):
        config, named = _turned(config, flag_values), rope_flag  # type: ignore[assignment]
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value, name = getattr(config, field.name), named(field.name)
        if field.name == without:
            continue
        if dataclasses.is_dataclass(value):
            changes[field.name] = override(value, flag_values)
        elif field.init and flag_values.get(name) is not None:
            given = flag_values[name]
            if isinstance(given, list):
                kind = next(k for k in (str, float, int) if k.__name__ in str(field.type))
                given = tuple(given) if kind is str else numbers(name, given, kind)
            changes[field.name] = given
    return dataclasses.replace(config, **changes)  # type: ignore[type-var]


def check_optimizer(before: OptimizerConfig, optimizers: Sequence[str], train: TrainConfig) -> None:
    """Refuse the flag of a number that none of the optimisers has, nor the schedule, and a warm-up
    that does not end.

    Args:
      before: what is trained by without flags, whose numbers may be given.
      optimizers: those of all trainings.
      train: what the trainings have in common.

    Raises:
      InputError: names the flag, and what is accepted.
    """
    if FLAGS["warmup"].present and train.optimizer.warmup >= train.steps:
        why = "the learning rate reaches its peak at no step, or at the last alone"
        raise InputError("warmup", train.optimizer.warmup, f"below --steps={train.steps}", why)
    for field, names in unused(optimizers, [train.optimizer.schedule]).items():
        given = FLAGS[field].value if field in FLAGS else None
        if given not in (None, getattr(before, field), getattr(OptimizerConfig, field)):
            raise InputError(field, as_flag(given), f"with {' or '.join(names)}", "no effect")


def check_tokenizer(corpora: Iterable[str]) -> None:
    """Refuse a tokenizer where nothing is text.

    Raises:
      InputError: it is given, and without effect.
    """
    if FLAGS["tokenizer"].present and set(corpora) == {"backcopy"}:
        raise InputError("tokenizer", FLAGS.tokenizer, "with text", "no effect on backcopy")


def from_flags(config: C, smoke: dict[str, Any]) -> C:
    """The config that the flags ask for, of what --smoke makes small if that is given.

    Args:
      config: without any flag.
      smoke: field -> its value under --smoke.

    Raises:
      InputError: a flag's value is not accepted.
    """
    config = override(config, smoke if FLAGS.smoke else {})
    return override(config, {name: FLAGS[name].value for name in FLAGS})


def _turned(rope: Rope, flag_values: Mapping[str, Any]) -> Rope:
    """The rotary rule that the flags mean, its numbers as they are.

    Raises:
      InputError: no rule, or the flag of a number that it does not have.
    """
    rope = by_rule(rope, flag_values.get(rope_flag("rule")) or rope.rule)
    mine = {field.name for field in dataclasses.fields(rope)}
    for rule, kind in RULES.items():
        for field in dataclasses.fields(kind):
            given = flag_values.get(rope_flag(field.name))
            if given is not None and field.name not in mine:
                accepted = f"with --rope_rule={rule}"
                raise InputError(rope_flag(field.name), as_flag(given), accepted, "no effect")
    return rope


def restore(config_type: type[C], stored: dict[str, Any]) -> C:
    """The config that a run wrote as config.json.

    Raises:
      InputError: other fields than the config has, as another version would write, or a value
        that is not accepted.
    """
    hints = typing.get_type_hints(config_type)
    if set(stored) != set(hints):
        odd = ", ".join(sorted(set(stored) ^ set(hints)))
        raise InputError("config.json", None, "the fields that this version writes", odd)
    values: dict[str, Any] = {}
    for name, value in stored.items():
        kind = hints[name]
        of = next(iter(typing.get_args(kind)), None)
        if kind is ModelConfig:
            values[name] = from_record(value)
        elif dataclasses.is_dataclass(kind):
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
    path = directory / "config.json"
    try:
        return restore(config_type, read_json(path, f"a run directory of {binary}"))
    except (ValueError, TypeError, AttributeError) as error:
        told = str(error).removeprefix(f"{path}: ").removeprefix("config.json: ")
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


def _leaves(config_type: type, without: Sequence[str] = ()) -> Iterator[tuple[str, Any, str]]:
    source = inspect.getsource(config_type)
    above = {
        name: " ".join(re.findall("# (.*)", lines))
        for lines, name in re.findall(r"((?:^    # .*\n)+)^    (\w+): ", source, re.M)
    }
    comments = {**above, **dict(re.findall(r"^    (\w+): .*?  # (.*)$", source, re.M))}
    for name, hint in typing.get_type_hints(config_type).items():
        if name in without:
            continue
        if hint is Rope:
            own = [each for kind in RULES.values() for each in _leaves(kind)]
            # Where several rules have a number, the first says what it is.
            first = {field: (field_hint, text) for field, field_hint, text in reversed(own)}
            yield from ((rope_flag(field), *about) for field, about in first.items())
        elif dataclasses.is_dataclass(hint):
            yield from _leaves(typing.cast(type, hint))
        else:
            if isinstance(hint, types.UnionType):
                hint = next(part for part in typing.get_args(hint) if part is not types.NoneType)
            if dataclasses.is_dataclass(hint):  # what no flag says
                continue
            yield name, hint, comments.get(name, name.replace("_", " "))


def define_hosts() -> None:
    """Define the flags of a run on several hosts."""
    flags.DEFINE_string(
        "coordinator",
        None,
        f"HOST:PORT of process 0 where several run together; {hosts.AUTO} on SLURM, Cloud TPU, GKE",
    )
    flags.DEFINE_integer("processes", None, "how many processes run this command, one a host")
    flags.DEFINE_integer("process", None, "which of them this is, from 0")


def launch(
    main: Callable[[], None],
    often: Sequence[str] = (),
    configs: Sequence[Any] = (),
    tpu_compiler: bool = False,
) -> None:
    """Parse flags and run `main`; the exit status is that of `guarded`.

    Args:
      main: the command.
      often: the flags that --help explains; none: all.
      configs: what it does when no flag is given, for the defaults that --help shows.
      tpu_compiler: whether it compiles for TPUs that are not here.
    """
    if not tpu_compiler and not any(map(glob.glob, TPU_CHIPS)):
        _hide_tpu_compiler()
    sys.stdout = ending.Output(typing.cast(io.TextIOWrapper, sys.stdout))
    if any(argument in help.HELP for argument in sys.argv[1:]):
        with ending.printing():
            text = sys.modules["__main__"].__doc__ or ""
            print(help.page(as_started(text), often, configs))
        sys.exit()
    sys.argv[1:] = named_runs(sys.argv[1:])

    def run(argv: Sequence[str]) -> None:
        if not FLAGS["verbosity"].present:
            _quiet_storage()
        _say_notes()
        if "smoke" in FLAGS and FLAGS.smoke:  # nearly all of its time is spent compiling
            jax.config.update("jax_disable_most_optimizations", True)
        status = guarded(main, argv)
        if status and (hosts.is_distributed() or status > 128):
            hosts.leave_with(status)
        sys.exit(status)

    app.run(run, flags_parser=_parsed)


def _parsed(argv: list[str]) -> list[str]:
    try:
        with ending.printing():  # --helpfull prints
            return FLAGS(argv)
    except flags.Error as error:
        print(help.unread(error), file=sys.stderr)
        sys.exit(2)


def _hide_tpu_compiler() -> None:
    """Have JAX not find libtpu, which without a TPU fails at length, and at every signal."""
    found = sys.modules.get("libtpu")  # JAX has asked it for its path, and it has noted it
    if found and os.environ.get(TPU_LIBRARY) == found.get_library_path():
        del os.environ[TPU_LIBRARY]
    sys.modules["libtpu"] = None  # type: ignore[assignment]


def named_runs(arguments: Sequence[str]) -> list[str]:
    """Arguments in which the runs are named that `latest` stands for as the command begins, and
    the directory that `~` stands for, which a shell leaves alone behind a flag."""
    parts = (each.rpartition("=") if each.startswith("-") else ("", "", each) for each in arguments)
    return [f"{flag}{sign}{os.path.expanduser(named_run(value))}" for flag, sign, value in parts]


def guarded(main: Callable[[], None], argv: Sequence[str]) -> int:
    """Run `main` and turn what may go wrong for a user into one line on stderr.

    Returns:
      The exit status: 0, also of a run that stopped as SIGTERM asked, 2 for a user's mistake, 1
      for a run that failed or whose output nobody reads any more, 130 for Ctrl-C, 143 for SIGTERM
      where there is nothing to go on from.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(default_cache_dir() / "xla"))
    with ending.heard() as signals:
        try:
            if len(argv) > 1:
                raise InputError(
                    repr(argv[1]), None, "flags of the form --name=value", "unexpected"
                )
            for name in FLAGS:  # as a variable of the shell that is not set leaves it
                if FLAGS[name].present and FLAGS[name].value == "":
                    raise InputError(name, "", f"a value, or no --{name}", "empty")
            main()
            sys.stdout.flush()
        except (Exception, KeyboardInterrupt) as error:
            return ending.ended(error, signals)
    return 0


def _say_notes() -> None:
    """Print what the library logs as it is, without a time and a place in the code."""
    notes = getLogger("sysout_jax")
    notes.addHandler(StreamHandler())
    notes.propagate = False


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
