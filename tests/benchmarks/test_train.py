"""Flags of the benchmark, and what it makes of seconds."""

import io

import numpy as np
import pytest
from rich.console import Console

from benchmarks import train
from sysout_jax.errors import InputError
from sysout_jax.planning import machines


def test_without_pytorch_one_line_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"PyTorch.*pip install -r requirements-reference\.txt"):
        train.run(train.Config(workdir=str(tmp_path)), Console(file=io.StringIO()))
    assert not list(tmp_path.iterdir())


def test_a_fused_kernel_that_is_not_here_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(train, "find_spec", lambda name: name)
    config = train.Config(dtype="bfloat16", flash=True, workdir=str(tmp_path))
    with pytest.raises(InputError, match="no effect on a CPU; accepted: on a GPU or TPU"):
        train.run(config, Console(file=io.StringIO()))
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
    return train.described(size.architecture("gpt2-tiny", "bfloat16"), size, found, 1e15)


def test_rates_by_hand(cell):
    tokens = 16 * 1024
    without_positions = 124_439_808 + 47 * 768 - 1024 * 768
    flops = tokens * (6 * without_positions + 12 * 12 * 768 * 1024)
    assert cell["flops_per_step"] == flops
    assert cell["tokens_per_second"] == {"eager": tokens / 0.05, "ours": tokens / 0.025}
    assert cell["utilisation"] == pytest.approx(
        {"eager": flops / 0.05 / 1e15, "ours": flops / 0.025 / 1e15}
    )


def test_the_peak_is_the_chips_or_measured(monkeypatch):
    monkeypatch.setattr(train, "SIDE", 64)
    found = train.peak_of("float32")
    assert "64 x 64 in float32, measured" in found["source"]
    assert 1e6 < found["flops"] < 1e15
    monkeypatch.setattr(train, "chip_of", lambda kind: machines.CHIPS["h100"])
    assert train.peak_of("bfloat16")["flops"] == 989.4e12
    assert "measured" in train.peak_of("float32")["source"]  # the table has bfloat16's


def test_the_table_has_a_row_for_each(cell):
    record = {"cells": [{"style": "gpt2-tiny", "size": "124m", **cell}]}
    used = [f"{share:.1%}" for share in cell["utilisation"].values()]
    assert train.texts(record) == [
        ["gpt2-tiny, 124m", "ours", "25.0", "655,360", used[1], "", "", ""],
        ["", "eager", "50.0", "327,680", used[0], "2.00 (2.00 to 2.00)", ">= 1.0", "yes"],
        ["", "compile", "", "", "", "no", "", ""],
    ]
    out = io.StringIO()
    train.print_table(Console(file=out, width=120), record)
    assert "655,360" in out.getvalue()
    assert train.table(record).to_markdown().count("\n") == 4


def test_fused_attention_is_timed_besides():
    c = train.SIZES["1m"].architecture("gpt2-tiny", "bfloat16")
    assert train.forms(c, False) == {"ours": c}
    assert train.forms(c, True) == {"ours": c.with_execution(flash=True), "ours, dense": c}
    assert train.forms(c, True)["ours"].fused
    heads_of_12 = train.SIZES["60k"].architecture("gpt2-tiny", "bfloat16")
    assert train.forms(heads_of_12, True) == {"ours": heads_of_12}
