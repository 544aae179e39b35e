"""Where the training states of a run go, if all of its processes see that place."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console

from sysout_jax.errors import InputError
from sysout_jax.training import hosts
from sysout_jax.training.resume import States
from sysout_jax.training.states import Saving

from ..cli import ending

STATES = "states"  # of a run directory: gone when it is complete, unless --keep_every


@contextmanager
def keeping(
    path: Path, saving: Saving, resume_from: str | None, init_from: str | None,
    needed: bool, console: Console,
) -> Iterator[Callable[[str], States | None]]:  # fmt: skip
    """A function from the name of a study to its states; Ctrl-C or SIGTERM asks the run to stop.

    Several processes keep states where all of them see the run's directory. Where some do not, each
    state would be in pieces: none is kept, and either ends the run.

    Args:
      path: of the run's directory, with its config.json.
      saving: which states are kept.
      resume_from: a run directory, whose training goes on.
      init_from: a model directory, whose parameters training begins with.
      needed: whether the run cannot be without them.
      console: for a line of each state that cannot be used.

    Raises:
      InputError: they are needed, and some process does not see the directory.
    """
    say = partial(console.print, soft_wrap=True, markup=False)
    sees = hosts.all_gather_flag((path / "config.json").exists())
    if not all(sees):
        blind = ", ".join(str(n) for n, found in enumerate(sees) if not found)
        said = f"{path}: not seen by process {blind}"
        if needed:
            raise InputError(said, accepted="a --workdir that all processes share")
        say(f"{said}, so no training states are kept")
        yield lambda study: None
        return
    with ending.until_stopped() as stopping:
        yield lambda study: States(
            path / STATES / study,
            saving,
            say,
            Path(resume_from) / STATES / study if resume_from else None,
            Path(init_from) if init_from else None,
            stopping,
        )
