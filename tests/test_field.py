"""What docs/field.md names is there: files, commands with their flags, names of so, variants."""

import importlib
import re
import shlex

import pytest
from absl import flags

import sysout_jax as so
from sysout_jax.core.attention import VARIANTS
from tests import pages, usage

FIELD = pages.ROOT / "docs" / "field.md"
CODE = re.findall(r"`([^`]+)`", FIELD.read_text())
COMMANDS = sorted({code for code in CODE if code.startswith("experiments.")})


PUBLISHED = [
    ("sysout_jax.core.detectors", "ACTIVATION_RATIO", 1000.0, "An et al. 2025"),
    ("sysout_jax.core.detectors", "WEIGHT_RATIO", 1000.0, "An et al. 2025"),
    ("sysout_jax.core.detectors", "ATTENTION_SHARE", 0.1, "An et al. 2025"),
    ("sysout_jax.core.detectors", "FEATURE_VALUE", 6.0, "Dettmers et al. 2022"),
    ("sysout_jax.core.detectors", "SIGMAS", 6.0, "Bondarenko et al. 2023"),
    ("sysout_jax.core.measures", "SINK_EPS", 0.3, "Gu et al. 2025"),
    ("sysout_jax.core.measures", "VALUE_DRAINED", 0.2, "Fesser 2026"),
    ("sysout_jax.core.compensate", "DAMPING", 0.01, "Frantar et al. 2022"),
    ("sysout_jax.core.compensate", "BLOCK", 128, "Frantar et al. 2022"),
    ("sysout_jax.core.prune", "OUTLIER", 5.0, "Yin et al. 2024"),
    ("sysout_jax.core.prune", "REACH", 0.08, "Yin et al. 2024"),
    ("sysout_jax.core.quantise", "RUN", 32, "Liu et al. 2024"),
    ("sysout_jax.core.quantise", "SPARING", 0.7, "Badri and Shaji 2023"),
    ("sysout_jax.analysis.compress.compression", "ALPHA", 0.5, "Xiao et al. 2022, section 4"),
    ("sysout_jax.analysis.intervene.interventions", "SPIKE", 50.0, "Yu et al. 2024"),
    ("sysout_jax.analysis.intervene.weak_sinks", "CARRIES", 64.0, "PrefixQuant"),
    ("sysout_jax.training.optimizer", "MUON_RMS", 0.2, "Liu et al. 2025"),
]


@pytest.mark.parametrize(("module", "name", "value", "source"), PUBLISHED)
def test_published_constants(module, name, value, source):
    """Tests of what uses them take them from the module."""
    assert getattr(importlib.import_module(module), name) == value, source


def test_files_are_there():
    paths = [code for code in CODE if code.endswith(".py")]
    assert len(paths) >= 15
    assert [path for path in paths if not (pages.ROOT / path).is_file()] == []


def test_names_of_the_package_are_there():
    names = [code.removeprefix("so.").split(".") for code in CODE if code.startswith("so.")]
    assert len(names) > 4
    for name, *rest in names:
        found = getattr(so, name)
        for each in rest:
            found = getattr(found, each)
        assert callable(found)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_have_these_flags(command):
    """And take these values, but for the paths of a user."""
    module, *arguments = shlex.split(command)
    usage.define(importlib.import_module(module))
    left = flags.FLAGS([module, *arguments])
    assert left == [module]


def test_variants_are_in_the_table():
    named = {"value_bias+context_scale", "sink_value", "exclusive", "value_state_gate",
             "scalable_softmax", "head_gate+value_gate", "head_gate", "element_gate",
             "plain_head_gate", "plain_element_gate", "v_scale", "differential",
             "head_norm+differential"}  # fmt: skip
    assert named <= set(CODE)
    for name in named:
        assert VARIANTS[name].formula


def test_every_table_says_where_or_why_not():
    rows = [line for line in FIELD.read_text().splitlines() if line.startswith("| ")]
    body = [row for row in rows if row != "| what the field has | here |" and set(row) - set("|- ")]
    assert len(body) > 50
    for row in body:
        what, here = re.split(r"(?<!\\)\|", row.strip("| "))
        assert what.strip()
        assert len(here.strip()) > 5
