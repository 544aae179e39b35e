"""Hooks of mkdocs.yml: the site is the repository's pages, in the places where they are.

Links between pages are therefore those that a reader of the repository follows. What a page links
to and is no page (a figure, a record, a program) is copied beside it.
"""

import ast
import html
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

import griffe
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
FOLDERS = ("docs", "docs/commands", "log")
PAGES = ("README.md", "theory/README.md", "LOG.md", "CHANGELOG.md", "CONTRIBUTING.md")
WIDE = ("README.md", "docs/claims.md")  # their tables take the place of a table of contents
API = ROOT / "docs" / "api.md"
LINK = re.compile(r"\]\((?!\w+:|#)([^)#\s]+)")
INLINE = 30  # characters of a formula that fits a phone
READ_AS_TEXT = (".py", ".toml", ".cff")  # browsers would save them


def on_files(files: Files, config: Any) -> Files:
    """The pages, and all that they link to, by their paths in the repository."""
    paths = [path for folder in FOLDERS for path in sorted((ROOT / folder).glob("*.md"))]
    paths += [ROOT / name for name in PAGES] + sorted((ROOT / "notebooks").glob("*.ipynb"))
    paths.append(ROOT / "docs" / "site.css")
    found = {path.relative_to(ROOT).as_posix(): path for path in paths}
    for path in paths:
        for target in LINK.findall(_text(path)):
            linked = (path.parent / target).resolve()
            if linked.is_relative_to(ROOT) and linked.is_file():
                found.setdefault(linked.relative_to(ROOT).as_posix(), linked)
    _check_api()
    of_theme = [file for file in files if file.src_dir != config.docs_dir]
    return Files([*of_theme, *(_file(name, path, config) for name, path in found.items())])


def _file(name: str, path: Path, config: Any) -> File:
    if path.suffix != ".ipynb":
        file = File.generated(config, name, abs_src_path=str(path))
        if path.suffix in READ_AS_TEXT:
            file.dest_uri = f"{name}.txt"
    else:
        file = _Notebook.generated(config, name, content=_text(path))
        file.dest_uri = PurePosixPath(name).with_suffix("").joinpath("index.html").as_posix()
    file.dest_uri = file.dest_uri.removeprefix("docs/")
    return file


class _Notebook(File):
    """A page whose source is no Markdown file."""

    def is_documentation_page(self) -> bool:
        return True


def _text(path: Path) -> str:
    """The Markdown of a page or a notebook."""
    if path.suffix != ".ipynb":
        return path.read_text()
    cells = json.loads(path.read_text())["cells"]
    return "\n\n".join(part for cell in cells for part in _cell(cell))


def _cell(cell: dict[str, Any]) -> list[str]:
    """A cell's Markdown: of code also the text and the figures that it gave."""
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        return [source]
    return [f"```python\n{source}\n```", *map(_output, cell["outputs"])]


def _output(output: dict[str, Any]) -> str:
    """A plain block, or an image that the page holds itself, with the text that stands for it."""
    data = output.get("data", {})
    text = "".join(output["text"] if "text" in output else data["text/plain"])
    if "image/png" in data:
        return f"![{text}](data:image/png;base64,{''.join(data['image/png']).strip()})"
    return f"```text\n{text.rstrip()}\n```"


# ------------------------------------------------------------------------- text


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Markers of generated tables away, and cells of tables as GitHub reads them."""
    if page.file.src_uri in WIDE:
        page.meta["hide"] = ["toc"]
    markdown = re.sub(r"^<!-- .*? -->$", "", markdown, flags=re.M)
    return re.sub(r"^\|.*\|$", lambda row: _row(row[0]), markdown, flags=re.M)


def _row(row: str) -> str:
    """A bar within code or a formula is written "\\|" in tables of GitHub."""
    row = re.sub(r"`[^`]+`", lambda code: code[0].replace(r"\|", "|"), row)
    return re.sub(r"\$[^$]+\$", lambda formula: formula[0].replace(r"\|", r"{\vert}"), row)


def on_page_content(page_html: str, /, **_: Any) -> str:
    """Formulas as MathML, which browsers draw without a script or a font of ours; flags marked."""
    page_html = re.sub(
        r"<code>(--[\w=,/:.-]{1,28})</code>", r'<code class="flag">\1</code>', page_html
    )
    return re.sub(
        r'<(span|div) class="arithmatex">\\([(\[])(.*?)\\[)\]]</\1>',
        _formula,
        page_html,
        flags=re.S,
    )


def _formula(found: re.Match[str]) -> str:
    tag, opening, text = found[1], found[2], html.unescape(found[3])
    kind = "formula long" if len(text) > INLINE else "formula"
    drawn = convert(text, display="block" if opening == "[" else "inline")
    return f'<{tag} class="{kind}">{drawn}</{tag}>'


# ------------------------------------------------------------------------- names


def _check_api() -> None:
    """Refuse a public name without a docstring or outside the reference, and what is not public."""
    shown = re.findall(r"^(?:::: |### )(\S+)$", API.read_text(), re.M)
    package = griffe.load("sysout_jax", search_paths=[str(ROOT)])
    homes = ast.literal_eval(str(package["_HOMES"].value))
    public = {name if name == "measures" else f"sysout_jax.{name}" for name in homes}
    of_measures = package["core.measures"].functions.values()
    bare = [name for name in homes if not package[name].docstring]
    bare += [each.path for each in of_measures if not each.docstring and each.is_public]
    if sorted(shown) != sorted(public) or bare:
        odd = sorted(public.symmetric_difference(shown))
        raise PluginError(f"API reference: missing or unknown {odd}; undocumented {bare}")
