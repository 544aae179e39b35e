"""Put the numbers of a record behind the formulas of README.md: python -m theory.readme.

The record is that of a whole run: python -m theory.verify --json > results/theory/verify.json
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE / "README.md"
RECORD = HERE.parent / "results" / "theory" / "verify.json"
MARK = re.compile(r"<!-- ([A-F]\d) -->.*?<!-- end -->", re.S)


def result(check: Mapping[str, Any]) -> str:
    """A check of a record as README.md shows it: its file, and what it printed."""
    (path,) = HERE.glob(f"{check['id'].lower()}_*.py")
    verdict = "" if check["passed"] else "**fails:** "
    return (
        f"> {verdict}[`{path.name}`]({path.name}): {check['instances']:,} instances, "
        f"error {check['max_error']:.1e} ≤ {check['tolerance']:.1e} "
        f"< {check['control_error']:.1e} with an assumption broken"
    )


def render(text: str, record: Mapping[str, Any]) -> str:
    """The text with what stands between `<!-- ID -->` and `<!-- end -->` taken from a record."""
    checks = {check["id"]: check for check in record["checks"]}
    return MARK.sub(lambda m: f"<!-- {m[1]} -->\n{result(checks[m[1]])}\n<!-- end -->", text)


if __name__ == "__main__":
    README.write_text(render(README.read_text(), json.loads(RECORD.read_text())))
