"""What is claimed of outliers, and what the records here say of it.

python -m experiments.claims                              # the ledger, claims by settings
python -m experiments.claims --check                      # decide all again; fail where one differs
python -m experiments.claims --run=removal_harms.source   # measure again, and decide from that
python -m experiments.claims --run=all --budget=30        # minutes
"""

import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console

from sysout_jax.errors import InputError, finite
from sysout_jax.files import unused
from sysout_jax.results import LATEST, named_run, plain, read_mapping, read_record, write_json

from .cli import launch, showing
from .cli.grid import check_values
from .cli.tables import PRINTED
from .ledger.registry import refuse_changes
from .ledger.table import TESTS, WITHDRAWN, Row, decided, judge, read_stored
from .records.commands import COMMANDS
from .records.units import Record
from .reports.claims_report import markdown_ledger, markdown_summary, sections, verdict

FLAGS = flags.FLAGS
OFTEN = ("check", "write", "run", "budget", "workdir")  # what --help explains
ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
VERDICTS = RESULTS / "claims.json"
REGISTERED = ("written", "first", "predicted")


def ledger() -> dict[str, Row]:
    """Every claim with what the records of this clone say of it."""
    return decided(RESULTS, read_stored(VERDICTS))


def markdown(summary: bool) -> str:
    """The ledger as docs/claims.md shows it, or in the README's few lines."""
    rows = ledger()
    return markdown_summary(rows) if summary else markdown_ledger(rows, WITHDRAWN)


# ------------------------------------------------------------------------- measuring again


def run(names: list[str], budget: float | None, workdir: Path, console: Console) -> None:
    """Make the records of claims anew below `workdir`, and say what they decide alone.

    Records are made in the order of the ledger, and a run that several of them start from once; one
    is begun only while there is budget. A command that fails fails once.

    Raises:
      InputError: at the end, naming the claims of which a command failed. One that the budget does
        not reach, or of which no command is known, is said and is no failure.
    """
    begun = time.monotonic()
    made: dict[tuple[str, ...], Path | str] = {}
    failed = []
    for name in names:
        test = TESTS[name][2]
        records: list[Record] = []
        for each in test.records.split(", "):
            if budget is not None and time.monotonic() - begun >= 60.0 * budget:
                console.print(f"{name}: not run, the budget is spent", soft_wrap=True)
                break
            if each not in COMMANDS:
                console.print(f"{name}: no command makes {each} yet", soft_wrap=True)
                break
            directory = _made(COMMANDS[each], workdir, console, made)
            if isinstance(directory, str):
                console.print(f"{name}: not run, {directory}", soft_wrap=True, markup=False)
                failed.append(name)
                break
            records.append(read_record(directory))
        else:
            found = judge(test, records)
            console.print(f"{name}: {found.says} ({found.numbers})", soft_wrap=True)
    if failed:
        raise InputError("run", why=f"not measured, see above: {', '.join(failed)}")


def _made(
    commands: tuple[str, ...],
    workdir: Path,
    console: Console,
    made: dict[tuple[str, ...], Path | str],
) -> Path | str:
    """The run of the last command, or why there is none; those before it make what it reads."""
    if commands not in made:
        first = _made(commands[:1], workdir, console, made) if commands[1:] else None
        made[commands] = (
            first if isinstance(first, str) else _run(commands[-1], first, workdir, console)
        )
    return made[commands]


def _run(command: str, first: Path | None, workdir: Path, console: Console) -> Path | str:
    module, *arguments = (word.replace("RUN", str(first)) for word in command.split())
    place = (workdir / module.partition(".")[2]).absolute()
    arguments = [_placed(each, workdir.absolute()) for each in arguments]
    command = shlex.join([module, *arguments])
    console.print(f"python -m {command}", soft_wrap=True, markup=False)
    arguments.append(f"--workdir={workdir.absolute()}")
    done = subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, check=False)
    if done.returncode:
        return f"{command!r} ended with status {done.returncode}"
    named = [a.partition("=")[2] for a in arguments if a.startswith("--name=")]
    return Path(named_run(str(place / (named or [LATEST])[0])))


def _placed(argument: str, workdir: Path) -> str:
    """An argument; of a model that is written, with a place below the workdir that is free."""
    flag, _, path = argument.partition("=")
    if flag != "--out":
        return argument
    return f"--out={unused(workdir / Path(path).name)}"


# ------------------------------------------------------------------------------ the binary


def main() -> None:
    if not RESULTS.is_dir():
        raise InputError("claims", why="reads results/, which only a clone of the repository has")
    _check_flags()
    if FLAGS.run is not None:
        names = list(TESTS) if FLAGS.run == ["all"] else FLAGS.run
        unknown = [name for name in names if name not in TESTS]
        if unknown:
            raise InputError("run", unknown[0], f"all, {', '.join(TESTS)}", "unknown")
        run(names, FLAGS.budget, Path(FLAGS.workdir), Console())
        return
    rows = ledger()
    refuse_changes(rows, read_stored(VERDICTS))
    if FLAGS.write:
        write_json(VERDICTS, rows)
    if FLAGS.check:
        check(rows, VERDICTS)
    showing.listed(sections(rows), plain(rows), verdict(rows))


def _check_flags() -> None:
    """Refuse flags that would have no effect together.

    Raises:
      InputError: names one.
    """
    finite("budget", FLAGS.budget, or_zero=True)
    if FLAGS.budget is not None and FLAGS.run is None:
        raise InputError("budget", FLAGS.budget, "with --run", "no effect")
    if FLAGS.write and FLAGS.check:
        raise InputError("check", None, "without --write", "what was just written says the same")
    if FLAGS.run is not None:
        check_values("run", FLAGS.run)
        for name in ("check", "write", "wide", *PRINTED):
            if FLAGS[name].value:
                raise InputError(name, None, "without --run", "no effect")


def check(rows: dict[str, Row], path: Path) -> None:
    """Compare what the records say with what the file says they do.

    Commits are compared by the time at which they were written, which a rebase does not change; a
    threshold that none held when the file was written has no registration in it.

    Raises:
      InputError: they differ, or there is no such file; a threshold was changed in silence.
    """
    stated = read_mapping(path, "what --write wrote")
    refuse_changes(rows, stated)
    found = plain(rows)
    differing = [
        name for name in {**found, **stated}
        if _compared(found.get(name), stated.get(name)) != _compared(stated.get(name))
    ]  # fmt: skip
    if differing:
        raise InputError(
            str(path), None, "what the records say, as --write writes it",
            f"says otherwise of {', '.join(differing)}",
        )  # fmt: skip


def _compared(row: Row | None, stated: Row | None = None) -> dict[str, Any]:
    """What is compared of a row: without its registration where the file has none yet."""
    pending = (stated or row or {}).get("written") is None
    left_out = {"commit", *(REGISTERED if pending else ())}
    return {key: x for key, x in (row or {}).items() if key not in left_out}


def define_flags() -> None:
    """Define the flags of this binary."""
    flags.DEFINE_bool("check", False, "fail if results/claims.json is not what the records say")
    flags.DEFINE_bool("write", False, "write results/claims.json from the records")
    flags.DEFINE_list("run", None, "measure these claims again, or all")
    flags.DEFINE_float("budget", None, "with --run: minutes after which no measurement is begun")
    flags.DEFINE_string("workdir", "runs", "with --run: where run directories go")
    showing.define_formats()


if __name__ == "__main__":
    define_flags()
    launch.launch(main, OFTEN)
