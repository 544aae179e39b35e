"""Training states on disk, written while training goes on, so that an interrupted run goes on too.

A state is a directory step-<n>: state/ (parameters and the optimiser's state, by orbax, each device
writing what it holds), about.json (what else a run needs) and sha256.json (the digest of every
other file). It appears under that name when all of it is there. The newest is that of the largest
step: no clock is read. Several processes see the same directory: each writes the arrays that it
holds, the first does all the rest and says which state is used.
"""

import contextlib
import errno
import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from sysout_jax.errors import InputError, at_least, reason
from sysout_jax.files import read_json, settle, write_text
from sysout_jax.results import write_json
from sysout_jax.training import hosts
from sysout_jax.training.checkpoint import STORAGE, digests, said_of

FORMAT = 1
NO_STATE = "none of its states is whole; accepted: remove it, and training begins at step 0"
UNREADABLE = (OSError, ValueError, KeyError, TypeError)  # what a damaged state raises
Say = Callable[[str], None]  # one line for the user
Check = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Saving:
    """Which training states are kept.

    A state is saved at the end of the call (`steps_per_call`) that reaches a multiple, so saving
    changes nothing of what is trained.

    Raises:
      InputError: a value is out of range.
    """

    save_every: int = 1000  # steps between training states; 0: the last, and when asked to stop
    keep_last: int = 2  # newest training states that are kept
    keep_every: int = 0  # steps between training states that are kept for good; 0: none

    def __post_init__(self) -> None:
        for name, least in (("save_every", 0), ("keep_last", 1), ("keep_every", 0)):
            at_least(least, name, getattr(self, name))

    def kept(self, steps: list[int], finished: bool) -> set[int]:
        """Of the steps saved, those that stay; a finished run needs its last state alone."""
        last = set(sorted(steps)[-1 if finished else -self.keep_last :])
        for before, step in zip([0, *sorted(steps)], sorted(steps), strict=False):
            if reaches(self.keep_every, before, step):
                last.add(step)
        return last


def reaches(period: int, before: int, step: int) -> bool:
    """Whether a multiple of the period lies after one step and up to another; never if it is 0."""
    return bool(period) and step // period > before // period


class StateStore:
    """The states of one group of seeds below one directory; a context that waits for the last.

    Args:
      directory: of the group; made when something is saved.
      saving: which states are kept.
      say: hears of states that are damaged.
    """

    def __init__(self, directory: Path, saving: Saving, say: Say) -> None:
        self.directory, self.saving, self._say = directory.absolute(), saving, say
        self._writer = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None
        self._checkpointer: Any = None

    def __enter__(self) -> "StateStore":
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.wait()
        finally:
            self._writer.shutdown()
            if self._checkpointer is not None:
                with contextlib.suppress(OSError, ValueError):  # what the wait has said already
                    self._checkpointer.close()

    def save(self, step: int, state: Any, about: dict[str, Any], finished: bool = False) -> None:
        """Copy a state off the devices and write it while training goes on.

        Args:
          step: how many steps led to it.
          state: a tree of arrays; they may be donated as soon as this returns.
          about: what else to keep with it, as JSON.
          finished: no step follows.

        Raises:
          OSError: this or the state before it cannot be written; what was there stays.
        """
        self.wait()
        target = _place(self.directory, step)
        partial = target.with_name(f".{target.name}.partial")
        if hosts.is_main():
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
        hosts.broadcast_json(step)  # the others come when the directory is there
        with STORAGE:
            if self._checkpointer is None:
                self._checkpointer = _checkpointer()
            with _whole_or_not(partial, target):
                self._checkpointer.save(partial / "state", hosts.replicated(_named(state)))
        record = {"format": FORMAT, "step": step, **about}
        self._pending = self._writer.submit(self._finish, partial, target, record, finished)

    def wait(self) -> None:
        """Wait until what was saved is on disk.

        Raises:
          OSError: it cannot be written.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _finish(self, partial: Path, target: Path, record: dict[str, Any], finished: bool) -> None:
        with _whole_or_not(partial, target):
            self._checkpointer.wait_until_finished()
            if not hosts.is_main():
                return
            write_text(partial / "about.json", json.dumps(record))
            write_json(partial / "sha256.json", digests(partial))
            settle(partial)
            shutil.rmtree(target, ignore_errors=True)
            partial.rename(target)
            settle(self.directory)  # before the states that this one replaces are gone
        steps = saved_steps(self.directory)
        for step in set(steps) - self.saving.kept(list(steps), finished):
            shutil.rmtree(steps[step], ignore_errors=True)

    def restore(self, like: Any, check: Check) -> tuple[Any, dict[str, Any]] | None:
        """The newest whole state of this group, which is then the newest there is; see `restore`.

        What a killed run had begun to write, and states after it, which are damaged, are removed.
        """
        found = restore(self.directory, like, self._say, check)
        if hosts.is_main():
            for left in self.directory.glob(".step-*.partial"):
                shutil.rmtree(left, ignore_errors=True)
            for step, path in saved_steps(self.directory).items():
                if found is not None and step > found[1]["step"]:
                    shutil.rmtree(path, ignore_errors=True)
        return found


def check_usable(states: Path) -> None:
    """Refuse the states of a run of which a group has some, and none that is whole.

    Args:
      states: of a run; below it a directory for each study, and in that one for each group.

    Raises:
      InputError: names the group.
    """
    for group in sorted({path.parent for path in states.glob("*/*/step-*")}):
        if _newest(group, lambda _: None, set()) is None:
            raise InputError(str(group), why=NO_STATE)


def restore(
    directory: Path, like: Any, say: Say, check: Check = lambda about: None
) -> tuple[Any, dict[str, Any]] | None:
    """The newest state below a directory that is whole, saying in a line which newer ones are not.

    Args:
      directory: that a `StateStore` wrote.
      like: a tree of jax.ShapeDtypeStruct with shardings, whatever mesh it was saved from.
      say: hears of damaged states.
      check: sees what was kept with a state before its arrays are read, and may refuse it.

    Returns:
      The state and what was kept with it; None if there is no whole one.

    Raises:
      InputError: of `check`.
    """
    damaged: set[int] = set()

    while (
        step := hosts.broadcast_json(_newest(directory, say, damaged) if hosts.is_main() else None)
    ) is not None:
        path = _place(directory, step)
        about = read_json(path / "about.json")
        check(about)
        try:
            return _arrays(path, like), about
        except UNREADABLE as error:
            if hosts.is_distributed():  # the others may have read it
                raise OSError(errno.EIO, reason(error)[:200], str(path)) from error
            damaged.add(step)
            _say_unusable(say, path, error)
    return None


def _newest(directory: Path, say: Say, damaged: set[int]) -> int | None:
    """The newest step whose state is whole; those that are not are said and enter `damaged`."""
    for step in sorted(set(saved_steps(directory)) - damaged, reverse=True):
        path = _place(directory, step)
        try:
            _verify(path)
        except UNREADABLE as error:
            damaged.add(step)
            _say_unusable(say, path, error)
        else:
            return step
    return None


def _say_unusable(say: Say, path: Path, error: Exception) -> None:
    say(f"{path}: cannot be used ({reason(error)[:200]}); the one before it is tried")


def saved_steps(directory: Path) -> dict[int, Path]:
    """The states below a directory, by step."""
    return {int(path.name.split("-")[1]): path for path in sorted(directory.glob("step-*"))}


def _verify(path: Path) -> None:
    """Read every byte of a state.

    Raises:
      OSError, ValueError, KeyError, TypeError: it is not as it was written, or of another version.
    """
    wanted = read_json(path / "sha256.json")
    found = digests(path)
    found.pop("sha256.json")
    odd = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
    if odd:
        raise ValueError(f"{odd[0]} is missing or not as it was written")
    about = read_json(path / "about.json")
    if about["format"] != FORMAT:
        raise ValueError(f"format {about['format']}; accepted: {FORMAT}")


def _arrays(path: Path, like: Any) -> Any:
    named = _named(like)
    with STORAGE, contextlib.closing(_checkpointer()) as checkpointer:
        place = path.absolute() / "state"
        arrays = hosts.local_part(checkpointer.restore(place, hosts.replicated(named)), named)
    return jax.tree.unflatten(jax.tree.structure(like), [arrays[name] for name in named])


@contextlib.contextmanager
def _whole_or_not(partial: Path, target: Path) -> Iterator[None]:
    """Remove what was begun of a state if it cannot be finished.

    All processes of a run write under one name, and one run at a time writes states.
    """
    with said_of("state", target):
        try:
            yield
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


def _place(directory: Path, step: int) -> Path:
    return directory / f"step-{step:09d}"


def _named(state: Any) -> dict[str, Any]:
    """The leaves by their path, so that what is on disk depends on no class."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _checkpointer() -> Any:
    import orbax.checkpoint as ocp  # takes over a second to import: only those who save pay

    # Directories are made before `save` returns: what is awaited otherwise is found by a number
    # that the whole process shares, and two variants may be saving.
    options = ocp.options.AsyncOptions(create_directories_asynchronously=False)
    return ocp.StandardCheckpointer(async_options=options)
