"""How a command shows what it found: tables, a verdict of three lines, and the next command."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from absl import flags
from rich.console import Console

from sysout_jax import plots
from sysout_jax.errors import InputError
from sysout_jax.results import RunDirectory, read_record

from . import help
from .tables import PRINTED, TEXTS, Section, show
from .verdict import LABEL, Verdict, conclude

FLAGS = flags.FLAGS
C = TypeVar("C")
Record = dict[str, Any]
WIDTH = 1000  # characters: wide enough for any table


class Report(NamedTuple):
    """What is made of the record of a command."""

    sections: Callable[[Record], Iterable[Section]]
    verdict: Callable[[Record, Path], Verdict]  # of a record and the run directory that it is in
    # Draws a record into its run directory; returns what was made, and where each of it is.
    draw: Callable[[Record, Path], Mapping[str, Sequence[Path]]] = lambda record, directory: {
        "figures": plots.draw(record, directory / "figures")
    }


# ------------------------------------------------------------------------------ the flags


def define_formats() -> None:
    """Define the flags of a command that prints tables."""
    for name, says in PRINTED.items():
        flags.DEFINE_bool(name, False, f"print {says}; the rest goes to stderr")
    flags.DEFINE_bool("wide", False, "print tables whole, however wide; else in parts that fit")


def define_tables() -> None:
    """Define the flags of a command that prints the tables of its record."""
    flags.DEFINE_string("redraw", None, "print and draw the record of this run directory and exit")
    define_formats()


def console_for_tables() -> Console:
    """The console that tables are printed to, as wide as --wide says; stderr, where a flag of
    `PRINTED` asks for stdout."""
    return Console(width=WIDTH if FLAGS.wide else None, stderr=printed() is not None)


def printed() -> str | None:
    """The flag of `PRINTED` that is given.

    Raises:
      InputError: several are.
    """
    given = [name for name in PRINTED if FLAGS[name].value]
    if len(given) > 1:
        raise InputError(given[1], accepted=f"without --{given[0]}")
    return given[0] if given else None


# ------------------------------------------------------------------------------- the ends


def run_or_redraw(
    binary: str,
    run: Callable[[C, Console], RunDirectory | Path | None],
    config_from_flags: Callable[[], C],
    report: Report,
) -> None:
    """Run what the flags ask for, or print the record of the run that --redraw names and draw it.

    What a flag of `PRINTED` asks for goes to stdout.

    Raises:
      InputError: there is no record of this experiment, or a flag that is not of its drawing.
    """
    console = console_for_tables()
    if FLAGS.redraw:
        directory = Path(FLAGS.redraw)
        record = read_record(directory)
        for name in sorted(help.ours() - {"redraw", "workdir", "wide", *PRINTED}):
            if FLAGS[name].present:
                raise InputError(name, None, "without --redraw", "no effect")
        try:
            _say(console, report.sections(record), record)
            publish(console, directory, record, report)
        except InputError:
            raise
        except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
            accepted = f"a run directory of {binary}"
            why = f"result.json is no record of this experiment ({error!r})"
            raise InputError("redraw", directory, accepted, why) from error
        return
    made = run(config_from_flags(), console)
    place = made.path if isinstance(made, RunDirectory) else made
    if printed() and place:
        record = read_record(place)
        _say(console, report.sections(record), record)


def listed(sections: Iterable[Section], record: Any, verdict: Verdict) -> None:
    """Print what a command without a run directory found, and what a flag of `PRINTED` asks for.

    Args:
      sections: its tables.
      record: what --json prints.
      verdict: its end.
    """
    console = console_for_tables()
    _say(console, sections, record)
    conclude(console, verdict)


def publish(console: Console, directory: Path, record: Record, report: Report) -> None:
    """Draw the record of a run into its directory, say where both are, and conclude."""
    for name, paths in {
        "record": [directory / "result.json"], **report.draw(record, directory)
    }.items():  # fmt: skip
        if paths:
            where = f"\n{' ' * LABEL}".join(map(str, paths))
            console.print(f"{name:<{LABEL}}{where}", soft_wrap=True, markup=False)
    conclude(console, report.verdict(record, directory))


def _say(console: Console, sections: Iterable[Section], record: Any) -> None:
    """Print to stdout what a flag of `PRINTED` asks for; where none is given, show the sections."""
    asked = printed()
    if asked == "json":
        print(json.dumps(record), flush=True)
    elif asked:
        print("\n\n".join(TEXTS[asked](sections).values()), flush=True)
    else:
        show(console, sections)
