"""The site builds strictly, from the repository alone, and a browser shows it."""

import html
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.site import chromium

ROOT = Path(__file__).parents[2]
NEEDED = ("mkdocs", "material", "mkdocstrings", "latex2mathml")
missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(missing), reason=f"{', '.join(missing)} of requirements-docs.txt not installed"
)


def build(place: Path, root: Path = ROOT) -> tuple[int, str]:
    """The exit status of a strict build, and what it said."""
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(place)],
        cwd=root, capture_output=True, text=True, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    place = tmp_path_factory.mktemp("site")
    status, said = build(place)
    assert status == 0, said
    return place


def test_it_builds_and_has_every_public_name(site):
    import sysout_jax

    reference = (site / "api" / "index.html").read_text()
    for name in set(sysout_jax.__all__) - {"measures"}:
        assert f'id="sysout_jax.{name}"' in reference, name
    assert 'id="sysout_jax.core.measures.sink_rate"' in (site / "measures/index.html").read_text()


def test_nothing_is_fetched_from_elsewhere(site):
    """A page of the site loads files of the site alone; links may lead anywhere."""
    loads = re.compile(
        r'<(?:script|img|iframe|source)[^>]* src="(\w+:)?//|<link[^>]*href="https?://'
    )
    assert not [page for page in site.rglob("*.html") if loads.search(page.read_text())]


def test_bars_in_tables_are_bars(site):
    """GitHub wants them escaped there, within code too."""
    table = (site / "usage" / "index.html").read_text().partition("<table>")[2]
    assert "<code>&lt;|endoftext|&gt;</code>" in table
    assert table.partition("</thead>")[0].count("<th>") == 2


def test_formulas_are_drawn(site):
    pages = {page: page.read_text() for page in site.rglob("*.html")}
    theory = pages[site / "theory" / "index.html"]
    assert theory.count("<math") > 250
    left = re.compile(r"arithmatex|\$[\\{]|\\\w+ ?\$")
    prose = {
        page: re.sub(r"<pre.*?</pre>|<code.*?</code>", "", text, flags=re.S)
        for page, text in pages.items()
    }
    assert not {page: left.search(text)[0] for page, text in prose.items() if left.search(text)}


def test_notebooks_show_what_they_printed(site):
    """Text as a block of its own, a figure with the words that stand for it."""
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        page = html.unescape((site / "notebooks" / path.stem / "index.html").read_text())
        cells = json.loads(path.read_text())["cells"]
        for output in (each for cell in cells for each in cell.get("outputs", ())):
            figure = output.get("data", {}).get("image/png")
            text = "".join(output["text"] if "text" in output else output["data"]["text/plain"])
            if figure:
                assert re.search(rf'<img alt="{re.escape(text)}" src="data:image/png;base64,', page)
            assert text.splitlines()[0].strip() in page


@pytest.fixture
def copy(tmp_path):
    """The files of the repository that the site is made of, to be spoilt."""
    for name in ("docs", "log", "notebooks", "results", "sysout_jax", "theory", "tools"):
        if (ROOT / name).exists():
            (tmp_path / name).symlink_to(ROOT / name)
    for path in ROOT.glob("*.*"):
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "docs").unlink()
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    return tmp_path


def spoilt(page: Path, *changes: tuple[str, str]) -> None:
    text = page.read_text()
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    page.write_text(text)


def test_a_broken_link_fails(copy, tmp_path):
    spoilt(
        copy / "docs/start.md", ("(all.md)", "(al.md)"), ("(claims.md)", "(claims.md#no-heading)")
    )
    status, said = build(tmp_path / "built", copy)
    assert status != 0
    assert "'al.md'" in said
    assert "'no-heading'" in said or "#no-heading" in said


def test_a_public_name_left_out_fails(copy, tmp_path):
    spoilt(copy / "docs/api.md", ("::: sysout_jax.load\n", ""))
    status, said = build(tmp_path / "built", copy)
    assert status != 0
    assert "missing or unknown ['sysout_jax.load']" in said


# ------------------------------------------------------------------------- a browser

needs_browser = pytest.mark.skipif(chromium.executable() is None, reason="no Chromium here")


@pytest.fixture(scope="module")
def address(site):
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def tab(tmp_path_factory):
    with chromium.tab(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_search_finds_convert(address, tab, width):
    tab.size(width)
    tab.open(f"{address}/?q=convert")
    tab.wait("document.querySelectorAll('.md-search-result__item a').length > 0")
    found = json.loads(
        tab.evaluate(
            "JSON.stringify([...document.querySelectorAll('.md-search-result__item a')]"
            ".map(a => new URL(a.href).pathname))"
        )
    )
    assert {"/convert/", "/commands/convert/", "/api/"} <= set(found)
    assert tab.errors == []


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_pages_fit_and_run_without_an_error(site, address, tab, width):
    """Wide tables and formulas may scroll; the page may not."""
    tab.size(width)
    for page in sorted(site.rglob("index.html")):
        where = page.parent.relative_to(site).as_posix()
        tab.open(f"{address}/{where}/")
        wide = tab.evaluate("document.documentElement.scrollWidth")
        assert wide <= width, (where, wide)
        broken = "[...document.images].filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
        assert tab.evaluate(f"JSON.stringify({broken})") == "[]", where
        assert tab.errors == [], where
