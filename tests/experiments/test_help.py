"""--help explains what people use and names the rest; a wrong flag is one line."""

import re
import shlex
import sys

import pytest
from absl import flags

from experiments.cli import help, launch, verdict
from experiments.cli.presets import NORMS, PENALTIES, PRESETS, SETTINGS
from experiments.laboratory import LOSSES, STARTS
from sysout_jax.training.optimizer import OPTIMIZERS
from tests import usage

BINARIES = {module.__name__.rpartition(".")[2]: module for module in usage.binaries()}


@pytest.fixture
def defined():
    yield usage.define
    usage.define(BINARIES["variants"])


def configs(module):
    config = getattr(module, "Config", None)
    return [config()] if config else []


def commands(text):
    whole = text.partition("often used:")[0].replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True) for line in whole if line.startswith("python ")]


@pytest.mark.parametrize("name", BINARIES)
def test_every_flag_is_there_within_80_columns(name, defined):
    module = BINARIES[name]
    defined(module)
    page = help.page(module.__doc__, module.OFTEN, configs(module))
    assert max(map(len, page.splitlines())) <= 80
    assert commands(page) == commands(module.__doc__)  # broken lines are one to a shell
    explained, _, others = page.partition("others, explained by --helpfull:")
    assert re.findall(r"^  --(\w+)", explained, re.M) == list(module.OFTEN)
    listed = set(re.findall(r"\w+(?=,|$)", others, re.M))
    assert {flag for flag in help.ours() if flag not in module.OFTEN} == listed


@pytest.mark.parametrize(
    ("name", "flag", "accepted"),
    [
        ("benchmark", "preset", PRESETS), ("benchmark", "settings", SETTINGS),
        ("benchmark", "norms", NORMS), ("benchmark", "optimizers", OPTIMIZERS),
        ("laboratory", "norms", NORMS), ("laboratory", "penalties", PENALTIES),
        ("laboratory", "losses", LOSSES), ("laboratory", "starts", STARTS),
        ("laboratory", "optimizers", OPTIMIZERS),
    ],
)  # fmt: skip
def test_a_list_says_what_it_may_hold(name, flag, accepted, defined):
    defined(BINARIES[name])
    assert set(accepted) <= set(re.findall(r"[\w-]+", help.FLAGS[flag].help))


def test_commands_are_shown_as_this_one_was_started(monkeypatch):
    text = "python -m experiments.tour --model=MODEL"
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "experiments.tour", "--help"])
    assert verdict.as_started(text) == text
    monkeypatch.setattr(sys, "orig_argv", ["python", "/env/bin/sysout", "tour", "--help"])
    assert verdict.as_started(text) == "sysout tour --model=MODEL"


def test_home_is_where_a_flag_says_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    given = ["x", "--workdir=~/runs", "--corpus=a~b", "--prompt=1 ~ 2"]
    assert launch.named_runs(given) == ["x", "--workdir=/home/me/runs", *given[2:]]


def test_defaults_are_those_of_the_config(defined):
    variants = BINARIES["variants"]
    defined(variants)
    page = help.page("", ("steps", "workdir"), variants.Config().studies)
    assert "optimiser steps [1000 or 100]" in page
    assert "where run directories go [runs]" in page


@pytest.mark.parametrize(
    ("argument", "line"),
    [
        ("--stepz=3", "error: --stepz: unknown flag; did you mean --steps? --help lists"),
        ("--qqqqqq", "error: --qqqqqq: unknown flag; --help lists the accepted ones"),
        ("--steps=abc", "error: flag --steps=abc: invalid literal for int"),
    ],
)
def test_a_flag_that_cannot_be_read_is_one_line(argument, line, defined):
    defined(BINARIES["variants"])
    with pytest.raises(flags.Error) as raised:
        flags.FLAGS(["binary", argument])
    said = help.unread(raised.value)
    assert said.startswith(line)
    assert "\n" not in said
