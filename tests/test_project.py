"""Files about the project say what is so."""

import re
from pathlib import Path

import pytest
import yaml

import sysout_jax
from experiments.ledger import claim
from tests.families.reference import CASES
from tests.pages import PAGES

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "CONTRIBUTING.md").read_text()


def test_the_citation_is_of_this_version():
    """The keys that version 1.2.0 of the format requires, of the software and of what it cites."""
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert (cited["cff-version"], cited["version"]) == ("1.2.0", sysout_jax.__version__)
    assert all({"type", "title", "authors"} <= set(each) for each in cited["references"])
    assert f": {sysout_jax.__version__}\n" in (ROOT / "CHANGELOG.md").read_text()


def test_the_guide_names_files_that_are_there():
    named = re.findall(r"`((?:[\w.-]+/)+[\w.]+)`", GUIDE)
    assert len(named) > 10
    missing = {name for name in named if not (ROOT / name).exists()}
    assert missing == {
        "sysout_jax/families/NAME.py", "tests/families/golden/NAME.npz", "notebooks/NAME.ipynb",
        "tests/families/configs/MODEL.json",
    }  # fmt: skip


def test_the_guide_names_what_code_has():
    assert claim.Statement
    assert claim.Trial
    assert "stablelm" in CASES
    oracles = (ROOT / "tests" / "core" / "test_measures.py").read_text()
    for name in ("DEFINITIONS", "APART", "OF_VALUES", "OF_WEIGHTS"):
        assert f"`{name}`" in GUIDE
        assert f"\n{name} = " in oracles


@pytest.mark.parametrize("name", ["bug", "question"])
def test_issue_templates_have_a_header(name):
    text = (ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.md").read_text()
    _, header, body = text.split("---\n", 2)
    assert {"name", "about", "labels"} == set(yaml.safe_load(header))
    assert body.strip()


def test_workflows_are_yaml():
    for path in (ROOT / ".github" / "workflows").glob("*.yml"):
        assert yaml.safe_load(path.read_text())["jobs"]


def test_the_log_is_indexed_newest_first():
    index = (ROOT / "LOG.md").read_text()
    months = sorted((path.stem for path in (ROOT / "log").glob("*.md")), reverse=True)
    days = [
        day
        for month in months
        for day in re.findall(r"^## (\S+)$", (ROOT / "log" / f"{month}.md").read_text(), re.M)
    ]
    assert days == sorted(days, reverse=True)
    assert re.findall(r"\(log/(\S+)\.md\)", index) == months
    assert re.findall(r"\[(\S+)\]\(log/\S+\.md#(\S+)\)", index) == [(day, day) for day in days]


def anchors(page):
    """Those of a page's headings, as GitHub makes them, and MkDocs by mkdocs.yml."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S)
    said = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    headings = re.findall(r"^#+ (.+)$", said, re.M)
    return {re.sub(r"[^\w\- ]", "", each.lower()).strip().replace(" ", "-") for each in headings}


def test_links_within_pages_are_to_headings_that_are_there():
    """Those of the API's names are made by mkdocstrings, and tested with the site."""
    missing, seen = [], 0
    for page in (ROOT / "CONTRIBUTING.md", ROOT / "LOG.md", *PAGES):
        for path, anchor in re.findall(r"\]\(([^)#:\s]*)#([^)\s]+)\)", page.read_text()):
            target = (page.parent / path).resolve() if path else page
            seen += 1
            if target.suffix == ".md" and target.name != "api.md" and anchor not in anchors(target):
                missing.append(f"{page.name}: {path}#{anchor}")
    assert seen > 50
    assert missing == []
