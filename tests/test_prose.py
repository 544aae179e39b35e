"""Sentences of the pages are short: at most 25 words each, at most 18 in the mean of a page.

Code, formulas and link targets count as one word. Tables, code blocks, headings, comments and what
a command writes (`tests.pages`, `theory.readme`) are not prose. `test_readme` counts the README.
Of notebooks the Markdown is.
"""

import json
import re
from pathlib import Path
from statistics import mean

import pytest

from tests import pages

LONGEST, MEAN = 25, 18
CLAIMS = pages.ROOT / "docs" / "claims.md"  # a command writes all of it
NOTEBOOKS = sorted((pages.ROOT / "notebooks").glob("*.ipynb"))
PROSE = [*pages.PAGES, pages.ROOT / "CONTRIBUTING.md", *NOTEBOOKS]
PROSE.remove(CLAIMS)

LEFT_OUT = re.compile(
    r"^```.*?^```|^\$\$.*?\$\$"  # code, formulas
    r"|<!-- [^>]+ -->\n(?:(?!<!--).)*<!-- end -->|<!--.*?-->"  # what a command writes, comments
    r"|(?<=\n\n)(?: {4}[^\n]+\n)+"  # indented code
    r"|^:::[^\n]*\n(?: {4}[^\n]*\n)*"  # directives of the API's pages
    r"|^(?:\||#|!\[)[^\n]*",  # tables, headings, figures
    re.M | re.S,
)
ONE_WORD = re.compile(r"\$[^$]+\$|`[^`]+`")
ITEM = re.compile(r"^\s*(?:[-*>]|\d+\.) ", re.M)
END = re.compile(r"(?:(?<=[.!?:;])(?<!\bal\.)|(?<=[.!?:;][)\"]))\s+(?=[A-Z\"(\[†∎])")


def sentences(text: str) -> list[str]:
    """A page's sentences, in order: `text` is Markdown."""
    text = ONE_WORD.sub("X", LEFT_OUT.sub("", text))
    text = ITEM.sub("\n", re.sub(r"\]\([^)]*\)", "]", text)).replace("*", "")
    blocks = (" ".join(block.split()) for block in re.split(r"\n\s*\n", text))
    return [sentence for block in blocks if block for sentence in END.split(block)]


def markdown(page: Path) -> str:
    """A page, or the Markdown of a notebook."""
    if page not in NOTEBOOKS:
        return page.read_text()
    cells = json.loads(page.read_text())["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def words(sentence: str) -> int:
    return len(sentence.split())


@pytest.mark.parametrize("page", PROSE, ids=lambda page: str(page.relative_to(pages.ROOT)))
def test_sentences_are_short(page: Path):
    found = sentences(markdown(page))
    assert [sentence for sentence in found if words(sentence) > LONGEST] == []
    assert not found or mean(map(words, found)) <= MEAN


def test_the_counter_finds_what_is_long_and_nothing_else():
    long = "Word" + " word" * LONGEST
    assert [words(each) for each in sentences(f"# {long}\n\nOne. {long}.\n")] == [1, LONGEST + 1]
    short = "- It is $a + b$, `a b` and [a link](to/what it is)."
    assert list(map(words, sentences(f"{short}\n- {short[2:]}"))) == [7, 7]
    for other in (
        f"| a |\n|---|\n| {long} |",
        f"```bash\n{long}\n```",
        f"Call:\n\n    {long}\n",
        f"<!-- table: a b -->\n{long}\n<!-- end -->",
        f"$$\n{long}\n$$",
        f"![{long}](figure.png)",
        f"## {long}",
    ):
        assert all(words(each) <= LONGEST for each in sentences(other)), other
