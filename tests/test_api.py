"""Every public name has an example on the page of the API, and the page runs as it stands."""

import doctest
import re
from pathlib import Path

import jax
import pytest

import sysout_jax as so

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "api.md").read_text()
EXAMPLE = re.compile(r"```pycon\n(.*?)```", re.S)


def test_every_name_has_an_example():
    entries = re.findall(r"^(?:::: sysout_jax\.|### )(\w+)\n(.*?)(?=^#|^:::|\Z)", PAGE, re.M | re.S)
    assert sorted(name for name, _ in entries) == so.__all__
    for name, said in entries:
        examples = EXAMPLE.findall(said)
        assert len(examples) == 1, name
        assert name in {"Model", "Execution"} or f"so.{name}" in examples[0]


@pytest.mark.usefixtures("smollm2", "own_variants")
def test_the_page_runs(monkeypatch, tmp_path):
    """As a user has it, without this suite's strictness."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(ROOT / ".cache"))
    source = "".join(EXAMPLE.findall(PAGE))
    test = doctest.DocTestParser().get_doctest(source, {"__name__": "page"}, "api.md", None, 0)
    said: list[str] = []
    with jax.numpy_rank_promotion("allow"), jax.numpy_dtype_promotion("standard"):
        done = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert done.attempted > 40
    assert not done.failed, "".join(said)
