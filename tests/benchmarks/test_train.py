"""Flags of the benchmark, and what it makes of seconds."""

import io

import numpy as np
import pytest
from rich.console import Console

from benchmarks import train
from sysout_jax.errors import InputError
from sysout_jax.training import planning


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sizes": ("60k", "2b")}, "--sizes='2b': unknown; accepted: 60k, 1m, 10m, 124m"),
        ({"styles": ("gpt3",)}, "--styles='gpt3': unknown; accepted: gpt2-tiny, llama-tiny"),
        ({"styles": ()}, "--styles=: accepted: some of gpt2-tiny"),
        ({"dtype": "float16"}, "--dtype='float16': unknown; accepted: float32, bfloat16"),
        ({"flash": True}, "--flash: --dtype=float32; accepted: --dtype=bfloat16"),
        ({"batch_size": 0}, "--batch_size=0: accepted: an integer of at least 1"),
        ({"rounds": 1}, "--rounds=1"),
    ],
    ids=str,
)
def test_bad_flags_are_refused(changes, says):
    with pytest.raises(InputError, match=says):
        train.Config(**changes)


def test_without_pytorch_one_line_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"PyTorch.*pip install -r requirements-reference\.txt"):
        train.run(train.Config(workdir=str(tmp_path)), Console(file=io.StringIO()))
    assert not list(tmp_path.iterdir())


def test_the_124m_is_gpt_2():
    """Its 124,439,808 parameters, and embeddings of 47 more tokens."""
    c = train.SIZES["124m"].architecture("gpt2-tiny")
    assert train.parameter_count(c) == 124_439_808 + (50_304 - 50_257) * 768
    assert "124m" not in train.Config().sizes


@pytest.fixture
def cell():
    """124m in bfloat16 at 50 and 25 ms a step, as if on the device of the parameter."""
    size = train.SIZES["124m"]
    seconds = {"eager": np.array([0.05, 0.05, 0.2]), "ours": np.array([0.025, 0.025, 0.1])}
    found = {"seconds": seconds, "ratio": {"eager": [2.0, 2.0, 2.0]}, "left_out": {"compile": "no"}}
    return lambda dtype: train.described(size.architecture("gpt2-tiny", dtype), size, found)


def test_rates_by_hand(cell, monkeypatch):
    kind = planning.CHIPS["h100"].reports
    device = type("Device", (), {"device_kind": kind})
    monkeypatch.setattr(train.jax, "devices", lambda: [device])
    of, tokens = cell("bfloat16"), 16 * 1024
    without_positions = 124_439_808 + 47 * 768 - 1024 * 768
    flops = tokens * (6 * without_positions + 12 * 12 * 768 * 1024)
    assert of["flops_per_step"] == flops
    assert of["tokens_per_second"] == {"eager": tokens / 0.05, "ours": tokens / 0.025}
    assert of["utilisation"] == pytest.approx(
        {"eager": flops / 0.05 / 989.4e12, "ours": flops / 0.025 / 989.4e12}
    )
    assert cell("float32")["utilisation"] is None  # the table has bfloat16's peak
    device.device_kind = "cpu"
    assert cell("bfloat16")["utilisation"] is None


def test_the_table_has_a_row_for_each(cell):
    out = io.StringIO()
    record = {"cells": [{"style": "gpt2-tiny", "size": "124m", **cell("bfloat16")}]}
    train.print_table(Console(file=out, width=100), record)
    rows = [line for line in out.getvalue().splitlines() if line.startswith("│")]
    cells = [[part.strip() for part in row.strip("│").split("│")] for row in rows]
    assert cells == [
        ["gpt2-tiny, 124m", "ours", "25.0", "655,360", "-", ""],
        ["", "eager", "50.0", "327,680", "-", "2.00 (2.00 to 2.00)"],
        ["", "compile", "-", "-", "-", "no"],
    ]


def test_fused_attention_is_timed_besides():
    c = train.SIZES["1m"].architecture("gpt2-tiny", "bfloat16")
    assert train.forms(c, False) == {"ours": c}
    assert train.forms(c, True) == {"ours": train.replace(c, flash=True), "ours, dense": c}
    assert train.forms(c, True)["ours"].fused
    heads_of_12 = train.SIZES["60k"].architecture("gpt2-tiny", "bfloat16")
    assert train.forms(heads_of_12, True) == {"ours": heads_of_12}
