"""Put the numbers of a record behind the formulas of README.md: python -m theory.readme.

The record is that of a whole run, which is moved there: CONTRIBUTING.md has the commands.
"""

import json
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from theory.check import statements

HERE = Path(__file__).parent
README = HERE / "README.md"
RECORD = HERE.parent / "results" / "theory" / "verify.json"
MARK = re.compile(r"<!-- (\w+) -->(?:(?!<!--).)*?<!-- end -->", re.S)


def result(check: Mapping[str, Any]) -> str:
    """A check of a record as README.md shows it: its file, and what it printed."""
    (path,) = HERE.glob(f"{check['id'].lower()}_*.py")
    verdict = "" if check["passed"] else "**fails:** "
    return (
        f"> {verdict}[`{path.name}`]({path.name}): {check['instances']:,} comparisons, "
        f"error {check['max_error']:.1e} ≤ {check['tolerance']:.1e} "
        f"< {check['control_error']:.1e} with an assumption broken."
    )


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _seeds(values: Sequence[float], digits: int = 2) -> str:
    return ", ".join(f"{value:.{digits}f}" for value in values)


def habits(data: Mapping[str, Any]) -> str:
    """Of B5: where the attention of idle queries goes, by seed."""
    columns = {
        "first": "first token", "own": "own token", "others": "others",
        "drain": "value of the first over the mean", "excess loss": "excess loss, nats",
    }  # fmt: skip
    rows = ([name, *(_seeds(found[column]) for column in columns)] for name, found in data.items())
    return _table(["", *columns.values()], rows)


def bases(data: Mapping[str, Any]) -> str:
    """Of F6: scores of the given basis, by seed."""
    return _table(["", "score"], ([name, _seeds(found, 1)] for name, found in data.items()))


def neurons(data: Mapping[str, Any]) -> str:
    """Of D1: what the form of a trained MLP is like, by seed."""
    return _table(
        ["at the massive token", "seeds"],
        ([n.replace("|", "\\|"), _seeds(x)] for n, x in data.items()),
    )


def peaks(data: Mapping[str, Any]) -> str:
    """Of F2: the norm of the first token's state over the others', by seed."""
    return _table(["", "ratio"], ([name, _seeds(x["peak"])] for name, x in data.items()))


TABLES: Mapping[str, tuple[str, str, Callable[[Mapping[str, Any]], str]]] = {
    "habits": ("B5", "trained, a BOS: (iv)", habits),
    "peaks": ("F2", "trained: sink", peaks),
    "bases": ("F6", "trained with sgd", bases),
    "neurons": ("D1", "trained: form at the token", neurons),
}


def render(text: str, record: Mapping[str, Any]) -> str:
    """The text with what stands between `<!-- NAME -->` and `<!-- end -->` taken from a record; the
    names are ids of statements and those of `TABLES`."""
    checks = {check["id"]: check for check in record["checks"]}

    def shown(name: str) -> str:
        if name in checks:
            return result(checks[name])
        id, part, table = TABLES[name]
        return table(next(p["data"] for p in checks[id]["parts"] if p["name"] == part))

    return MARK.sub(lambda m: f"<!-- {m[1]} -->\n{shown(m[1])}\n<!-- end -->", text)


def check_whole(record: Mapping[str, Any]) -> None:
    """Refuse a record that is not of every statement at full size."""
    there = {check["id"] for check in record["checks"]}
    missing = [id for id in statements() if id not in there]
    if record["quick"] or missing:
        found = "of a run with --quick" if record["quick"] else f"without {', '.join(missing)}"
        sys.exit(f"error: {RECORD.name}: {found}; accepted: the record of a whole run")


if __name__ == "__main__":
    found = json.loads(RECORD.read_text())
    check_whole(found)
    README.write_text(render(README.read_text(), found))
