"""README.md says what the record says, of every statement; the record is of a whole, clean run."""

import json
import re

import pytest

from theory import check, readme

TEXT = readme.README.read_text()
RECORD = json.loads(readme.RECORD.read_text())


def test_numbers_come_from_the_record():
    """To renew them: `python -m theory.readme`."""
    assert readme.render(TEXT, RECORD) == TEXT


def test_the_record_is_whole():
    assert {each["id"] for each in RECORD["checks"]} == check.statements().keys()
    assert not RECORD["quick"]
    assert RECORD["provenance"]["code"]["dirty"] is False
    for each in RECORD["checks"]:
        assert each["passed"], each["id"]


@pytest.mark.parametrize("id", check.statements())
def test_every_statement_is_told(id):
    assert f"<!-- {id} -->" in TEXT


def test_links_and_images_exist():
    targets = re.findall(r"\]\((?!http)([^)#]+)", TEXT)
    assert len(targets) > 20
    assert all((readme.HERE / target).exists() for target in targets)


def test_a_part_of_a_record_is_refused():
    for part, found in (
        (RECORD | {"quick": True}, "of a run with --quick"),
        (RECORD | {"checks": RECORD["checks"][1:]}, "without A1"),
    ):
        with pytest.raises(SystemExit) as ended:
            readme.check_whole(part)
        assert (
            ended.value.code == f"error: verify.json: {found}; accepted: the record of a whole run"
        )
    readme.check_whole(RECORD)


def test_failures_are_shown_as_such():
    found = dict(RECORD["checks"][0], passed=False)
    assert "**fails:**" in readme.result(found)
