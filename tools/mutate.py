"""Break one line of the code at a time, and name the errors that no test catches.

python -m tools.mutate tests/core/mutations.toml [PART ...]   # of errors or files that have a PART

A list is TOML: by file the tests that are run, and errors, each with what is wrong (`error`), what
stands in the file once (`old`) and what is put there (`new`), and, of one that no test can tell,
why (`survives`). No file is changed: a process of its own imports the file with its error.
"""

import contextlib
import importlib
import io
import multiprocessing
import os
import sys
import tomllib
from dataclasses import dataclass, replace
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType

ROOT = Path(__file__).parents[1]
# Imported once for all, by the process from which the others are forked: nothing that is broken.
HEAVY = ("flax.linen", "jax", "matplotlib.figure", "optax", "pytest", "scipy.stats")


@dataclass(frozen=True)
class Mutant:
    """An error of one line, and the tests that have to fail with it."""

    error: str
    file: str
    tests: tuple[str, ...]
    old: str
    new: str
    survives: str = ""  # why no test can tell it

    @property
    def broken(self) -> str:
        """The text of the file with the error.

        Raises:
          LookupError: the line is not in its file once.
        """
        text = (ROOT / self.file).read_text()
        if text.count(self.old) != 1:
            raise LookupError(f"{self.file}: {self.error}: {text.count(self.old)} times {self.old}")
        return text.replace(self.old, self.new)


def read(path: Path) -> list[Mutant]:
    """The errors of a list."""
    listed = tomllib.loads(path.read_text())
    return [
        Mutant(file=file, tests=tuple(part["tests"]), **each)
        for file, part in listed.items()
        for each in part["errors"]
    ]


def passes(mutant: Mutant) -> bool:
    """Whether every test passes with the error; in a process that has imported none of our code."""
    import pytest

    path, broken, plain = ROOT / mutant.file, mutant.broken.encode(), SourceFileLoader.get_code

    def get_code(self: SourceFileLoader, module: str) -> CodeType | None:
        own = self.path == str(path)  # the hook that checks shapes compiles it, where there is one
        return self.source_to_code(broken, self.path) if own else plain(self, module)

    SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
    os.chdir(ROOT)
    tests = [str(ROOT / each) for each in mutant.tests]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return pytest.main(["-x", "-q", "-n0", "-pno:cacheprovider", *tests]) == pytest.ExitCode.OK


def main(lists: list[str], parts: list[str]) -> str | int:
    """Print each error as it is tried; what to exit with: those that are not as the list says."""
    mutants = [each for path in lists for each in read(Path(path))]
    mutants = [m for m in mutants if not parts or any(p in f"{m.file} {m.error}" for p in parts)]
    for each in mutants:
        compile(each.broken, each.file, "exec")  # what does not compile is no error of a formula
    none = {each.tests: replace(each, error="nothing", new=each.old) for each in mutants}
    for name in HEAVY:
        importlib.import_module(name)
    wrong, caught = [], 0
    with multiprocessing.get_context("fork").Pool(maxtasksperchild=1) as pool:
        for tests, alive in zip(none, pool.imap(passes, none.values()), strict=True):
            if not alive:
                return f"without any error one of these fails: {' '.join(tests)}"
        for mutant, alive in zip(mutants, pool.imap(passes, mutants), strict=True):
            print("survives" if alive else "caught", mutant.file, mutant.error, flush=True)
            caught += not alive
            if alive != bool(mutant.survives):
                wrong.append(f"{mutant.file}: {mutant.error}")
    print(f"{caught} of {len(mutants)} mutants are caught")
    return f"not as the list says: {'; '.join(wrong)}" if wrong else 0


if __name__ == "__main__":
    named = [each for each in sys.argv[1:] if each.endswith(".toml")]
    sys.exit(main(named, [each for each in sys.argv[1:] if each not in named]))
