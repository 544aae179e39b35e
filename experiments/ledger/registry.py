"""When a threshold was first held, and when a record that meets it was first begun: from git.

Commits count by the time at which they were written. A record made again with the same seeds is
what its first version was: a threshold that came between predicts nothing. Where there is no git,
as in a wheel, what results/claims.json says is taken.
"""

import json
import subprocess
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from sysout_jax.errors import InputError

from ..records.units import Record, Unmeasured, seeds_of
from .claim import Trial

ROOT = Path(__file__).parent.parent.parent
STORED = "results/claims.json"


@cache
def git(*arguments: str) -> str | None:
    """What git prints in this clone, or None where it fails or its history is not whole."""
    try:
        if arguments[0] != "rev-parse" and git("rev-parse", "--is-shallow-repository") != "false\n":
            return None
        done = subprocess.run(
            ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return done.stdout if done.returncode == 0 else None


def registration(
    name: str, test: Trial, records: Mapping[str, Record | None], stored: Mapping[str, Any]
) -> dict[str, Any]:
    """The commit that first held a threshold, when it and the first record were, and which came
    first; of a threshold that no commit holds yet the commit is None.

    Args:
      name: of the claim and its setting.
      test: what holds the threshold.
      records: by their names, as they are now.
      stored: what claims.json says of it.

    Raises:
      InputError: the commit that a test names is not in the history, or its ledger has no such
        claim.
    """
    if git("log", "-1", "--format=%h") is None:
        kept = {"commit": None, "written": None, "first": None, "predicted": False}
        return {key: stored.get(key, value) for key, value in kept.items()}
    commit, written = _held(test.held) if test.held else _first_holding(name, test)
    begun = [_first(test, each, record) for each, record in records.items() if record is not None]
    first = min(begun, default=None)
    before = written is not None and first is not None and _time(written) < _time(first)
    return {"commit": commit, "written": written, "first": first, "predicted": before}


def _held(held: str) -> tuple[str, str]:
    commit, _, name = held.partition(" ")
    when = git("log", "-1", "--format=%aI", commit)
    if when is None:
        raise InputError("held", commit, "a commit of this history")
    looked_for = ("grep", "--quiet", "--word-regexp", "--fixed-strings", name)
    if name and git(*looked_for, commit, "--", "experiments", STORED) is None:
        raise InputError("held", held, "a claim in the ledger of that commit")
    return commit, when.strip()


def _first_holding(name: str, test: Trial) -> tuple[str | None, str | None]:
    """The first commit whose claims.json holds the threshold of the claim."""
    for commit, when in _commits(STORED):
        row = _version(commit, STORED).get(name, {})
        if row.get("threshold") == test.predicate.threshold:
            return commit, when
    return None, None


def _first(test: Trial, name: str, record: Record) -> str:
    """When the first version of a record was begun that had these seeds and could be judged."""
    path = f"results/{name}/result.json"
    for commit, _ in _commits(path):
        version = _version(commit, path)
        try:
            if seeds_of(version) == seeds_of(record):
                test.predicate.judge([version])
                return str(version["provenance"]["started"])
        except (Unmeasured, KeyError):
            continue
    return str(record["provenance"]["started"])


@cache
def _commits(path: str) -> tuple[tuple[str, str], ...]:
    """The commits that changed a file and when each was written, the oldest first."""
    lines = (git("log", "--reverse", "--format=%h %aI", "--", path) or "").splitlines()
    return tuple((commit, when) for commit, when in map(str.split, lines))


@cache
def _version(commit: str, path: str) -> dict[str, Any]:
    return dict(json.loads(git("show", f"{commit}:{path}") or "{}"))


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)


def refuse_changes(rows: Mapping[str, Any], stored: Mapping[str, Any]) -> None:
    """Refuse a threshold that is another than the stored one and does not say what it renews.

    Raises:
      InputError: naming the claims.
    """
    for name, row in rows.items():
        before = stored.get(name, {})
        changed = before.get("threshold", row["threshold"]) != row["threshold"]
        if changed and row["renews"] in ("", before.get("renews")):
            raise InputError(
                name, why=f"its threshold was {before['threshold']!r} and is {row['threshold']!r}; "
                "a test that takes another's place names it in `renews`",
            )  # fmt: skip
