"""Verify every statement of the theory.

python -m theory.verify                             # all, with the trained models: some 20 minutes
python -m theory.verify --quick                     # without them: a minute
python -m theory.verify --only=B2,C3 --json
python -m theory.verify --figures=DIR

One line per statement; the exit status is 1 if a check fails or the control of one passes.
"""

import multiprocessing
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path
from typing import Any

import jax
from absl import app, flags, logging

from sysout_jax.results import layout, provenance
from theory.check import Check, Statement, statements
from theory.figures import draw

FLAGS = flags.FLAGS
PROCESSES = 2  # compiling, most of the time, leaves a core idle


def checks(chosen: Sequence[Statement], seed: int, quick: bool) -> Iterator[Check]:
    """Verify the statements, two at a time, each with a key of its own; yielded in order.

    In processes, since threads would trace and compile one after the other.

    Raises:
      BrokenProcessPool: one of them was killed.
    """
    count, spawned = min(PROCESSES, len(chosen)), multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(count, spawned, _leave_interrupts) as pool:
        try:
            ids = [each.id for each in chosen]
            yield from pool.map(partial(_verify, seed=seed, quick=quick), ids)
        except BaseException:
            for child in multiprocessing.active_children():  # whose statements may take minutes
                child.terminate()
            raise


def _leave_interrupts() -> None:
    """Ctrl-C is for the process that prints: it ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _verify(id: str, seed: int, quick: bool) -> Check:
    table = statements()
    # By place in the whole table, so that --only gives the numbers that a full run gives.
    return table[id](jax.random.fold_in(jax.random.key(seed), list(table).index(id)), quick)


def line(check: Check) -> str:
    """A check as the terminal shows it."""
    return (
        f"{'ok  ' if check.passed else 'FAIL'} {check.id:<3} {check.instances:>7,} comparisons  "
        f"error {check.max_error:8.1e} <= {check.tolerance:7.1e} < {check.control_error:8.1e} "
        f"of the control  {check.seconds:5.1f} s  {check.claim}"
    )


def record(
    origin: dict[str, Any], found: Sequence[Check], seed: int, quick: bool
) -> dict[str, Any]:
    """The checks with what is needed to make them again; `origin` is as of the start."""
    return {"provenance": origin, "seed": seed, "quick": quick, "checks": list(found)}


def _make_directory(path: Path) -> None:
    """One that can be written to, before the work and not after it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        print(f"error: --figures={path}: {error.strerror}; accepted: a directory", file=sys.stderr)
        sys.exit(2)


def main(argv: Sequence[str]) -> None:
    """Verify what the flags ask for."""
    table = statements()
    unknown = [each for each in [*argv[1:], *(FLAGS.only or ())] if each not in table]
    if unknown or argv[1:] or FLAGS.only == []:
        given = f"--only={','.join(unknown)}" if not argv[1:] else repr(argv[1])
        print(f"error: {given}: accepted: --only= with any of {', '.join(table)}", file=sys.stderr)
        sys.exit(2)
    if not FLAGS["verbosity"].present:
        logging.set_verbosity(logging.WARNING)  # jax lists the backends it lacks at INFO
    if FLAGS.figures:
        _make_directory(Path(FLAGS.figures))
    found, origin = [], provenance()
    try:
        for check in checks([table[id] for id in FLAGS.only or table], FLAGS.seed, FLAGS.quick):
            found.append(check)
            print(line(check), file=sys.stderr if FLAGS.json else sys.stdout, flush=True)
    except KeyboardInterrupt:
        print(f"error: interrupted after {len(found)} statements", file=sys.stderr, flush=True)
        sys.exit(130)
    except BrokenProcessPool:
        said = "a process was killed, perhaps for memory; accepted: fewer at a time, by --only="
        print(f"error: {said}", file=sys.stderr, flush=True)
        sys.exit(1)
    if FLAGS.json:
        print(layout(record(origin, found, FLAGS.seed, FLAGS.quick)))
    if FLAGS.figures:
        draw(found, Path(FLAGS.figures))
    sys.exit(0 if all(check.passed for check in found) else 1)


def define_flags() -> None:
    """Define the flags of this binary."""
    flags.DEFINE_list("only", None, "statements to verify, by id; all by default")
    flags.DEFINE_bool("quick", False, "one shape of each, and no models that train for long")
    flags.DEFINE_bool("json", False, "print one JSON object; progress goes to stderr")
    flags.DEFINE_string("figures", None, "directory to draw the figures in")
    flags.DEFINE_integer("seed", 0, "seed of the random instances", 0, 2**32 - 1)


if __name__ == "__main__":
    define_flags()
    app.run(main)
