"""The peer finds what we find, whatever is planted; the table."""

import io
from dataclasses import asdict, replace

import jax
import numpy as np
import pytest
from rich.console import Console

from benchmarks import against_hooks, analysis
from sysout_jax.analysis.locate.scan import Thresholds
from sysout_jax.errors import InputError
from sysout_jax.families.export import export
from sysout_jax.model.decoder import init
from sysout_jax.model.model import Model

SINK, CHANNEL = 3, 5  # a token with a huge activation, and where


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A tiny model on disk whose token SINK has an outlier, and sequences that start with it."""
    place = tmp_path_factory.mktemp("planted")
    c = replace(
        analysis.Config().architecture(), layers=2, width=12, heads=3, kv_heads=3, mlp_width=17,
        vocab=29, context=128,
    )  # fmt: skip
    params = jax.tree.map(np.array, init(c, jax.random.key(0)))
    params["embed"][SINK, CHANNEL] = 1e5
    export(Model(c, params, None), place / "model", "llama")
    # 127 tokens of width 12: one of so many entries can be 1000 times their mean
    rows = np.load(against_hooks.write_rows(place, c.vocab, 5, 127))
    rows[rows == SINK] += 1
    rows[1:, 0] = SINK
    np.save(place / "rows.npy", rows)
    return place


def test_the_peer_finds_the_same(planted):
    torch = pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from benchmarks import hooks

    rows = np.load(planted / "rows.npy")
    prompt = rows[1, :13].tolist()
    ours = analysis.prepare(str(planted / "model"), str(planted / "rows.npy"), prompt, 3)()
    np.save(planted / "inputs.npy", rows[:, :-1])
    limits = asdict(Thresholds())
    theirs = hooks.analysis(
        str(planted / "model"), str(planted / "inputs.npy"), prompt, 3, limits, "cpu"
    )()
    torch.set_num_threads(1)
    assert ours.keys() == theirs.keys()
    assert against_hooks.check(ours, theirs) < 1e-4
    assert theirs["existence"]["block_out"][1:] == [0, CHANNEL]
    assert theirs["flagged"] == {"block_out": 4, "down_in": 0, "sun": 4, "attention": 0}
    assert theirs["relations"][1] == {"precision": 0.0, "recall": None}


NUMBERS = {"top": [[2.0, 1.0]], "layer": 3}


def passed(seconds, whole, loaded, peak, found=NUMBERS):
    return {
        "seconds": [seconds], "whole": whole, "loaded": loaded * 2**20, "peak": peak * 2**20,
        "found": found,
    }  # fmt: skip


def test_ratios_by_hand_and_the_table():
    passes = {
        "ours": [passed(2.0, 4.0, 100, 200), passed(4.0, 5.0, 100, 200)],
        "peer": [passed(8.0, 8.0, 100, 600), passed(8.0, 9.0, 100, 500)],
    }
    record = analysis.compared(passed(20.0, 22.0, 100, 300), passes)
    assert record["difference"] == 0.0
    assert record["measured"]["peer"]["memory"] == [500 * 2**20, 400 * 2**20]
    assert record["ratio"]["pass"] == [3.0, 2.0, 4.0]
    assert record["ratio"]["memory"] == [4.5, 4.0, 5.0]
    out = io.StringIO()
    analysis.print_table(Console(file=out, width=110), record)
    ratio = "3.00 (2.00 to 4.00)"
    assert ratio in out.getvalue()
    cells = analysis.table(record).rows
    assert list(cells[0]) == ["the pass", "20.0 s", "3.0 s", "8.0 s", ratio, ">= 2", "yes"]
    assert cells[2][1:4] == ("200.0 MiB", "100.0 MiB", "450.0 MiB")
    assert cells[2][5:] == (">= 5", "no")
    assert cells[3][5:] == ("", "")
    shown = f"| the pass | 20.0 s | 3.0 s | 8.0 s | {ratio} | >= 2 | yes |"
    assert shown in analysis.table(record).to_markdown().splitlines()
    passes["ours"][1]["found"] = {**NUMBERS, "layer": 4}
    with pytest.raises(against_hooks.Differs):
        analysis.compared(passed(20.0, 22.0, 100, 300), passes)


@pytest.mark.parametrize("missing", ["torch", "transformers"])
def test_without_the_peer_one_line_says_how_to_install_it(tmp_path, monkeypatch, missing):
    monkeypatch.setattr(against_hooks, "find_spec", lambda name: None if name == missing else name)
    with pytest.raises(InputError, match=r"not installed: accepted: pip install -r requirements"):
        analysis.run(analysis.Config(workdir=str(tmp_path)), Console(file=io.StringIO()))
    assert not list(tmp_path.iterdir())
