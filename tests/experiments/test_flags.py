"""Flags that would have no effect are refused; the commands of the records are accepted."""

import importlib

import pytest
from absl import flags

from experiments.records.commands import COMMANDS
from tests import usage
from tests.refusing import refusal

SHORT = "--variants=softmax,sigmoid"


def config_of(command):
    """What a command runs by, without running it."""
    name, *arguments = command.split()
    module = importlib.import_module(name)
    usage.define(module)
    flags.FLAGS([name, *arguments])
    return module.config_from_flags()


@pytest.mark.parametrize("command", sorted({each for of in COMMANDS.values() for each in of}))
def test_commands_of_records_are_accepted(command):
    assert config_of(command)


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("compress --top=3", "top=3: no effect; accepted: with boost"),
        ("compress --rungs=3", "rungs=3: no effect; accepted: with boost"),
        ("compress --budget=4", "budget=4.0: no effect; accepted: with boost"),
        ("compress --methods=w8 --alpha=0.4", "alpha=0.4: no effect; accepted: with a smooth"),
        ("explicit --finetune=0 --draws=2", "draws=2: no effect; accepted: with distil or"),
        ("explicit --methods=w8,w8", "methods=w8,w8: accepted: at least one, none of them twice"),
        (f"benchmark {SHORT} --bases=sigmoid,sigmoid", "bases=sigmoid,sigmoid: accepted: at"),
        (f"benchmark {SHORT} --bases=sink_logit", "bases=sink_logit: no effect; accepted: of var"),
        (f"laboratory {SHORT} --bases=sigmoid,sigmoid", "bases=sigmoid,sigmoid: accepted: at"),
        (f"laboratory {SHORT} --bases=sink_logit", "bases=sink_logit: no effect; accepted: of "),
    ],
)
def test_flags_without_effect_are_refused(command, line):
    assert refusal(config_of, f"experiments.{command}").startswith(line)


@pytest.mark.parametrize(
    "command",
    [
        "compress --methods=smooth-w8a8 --alpha=0.4 --rungs=2",
        "explicit --finetune=0 --draws=1",
        "explicit --finetune=0 --distil=5 --draws=2",
        f"benchmark {SHORT}",
        f"laboratory {SHORT} --bases=",
    ],
)
def test_flags_at_their_defaults_or_with_effect_are_not(command):
    assert config_of(f"experiments.{command}")
