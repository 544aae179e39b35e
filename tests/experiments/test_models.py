"""The table of families: complete, and what the README shows."""

import subprocess
import sys
from pathlib import Path

from experiments import models
from sysout_jax.families.table import FAMILIES
from sysout_jax.model.config import ModelConfig

ROOT = Path(__file__).parents[2]


def test_every_family_has_a_row():
    assert [row[0] for row in models.rows()] == [*FAMILIES, "llama2.c"]
    assert all(cell for row in models.rows() for cell in row)
    assert all(len(row) == len(models.COLUMNS) for row in models.rows())


def test_features_are_fields():
    fields = set(ModelConfig.__dataclass_fields__)
    assert set(models.FEATURES) <= fields
    for family in FAMILIES.values():
        assert models.settable(family) <= fields
    assert "experts" in models.settable(FAMILIES["mixtral"])
    assert "experts" not in models.settable(FAMILIES["llama"])


def test_the_binary_prints_it():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.models", "--markdown"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == models.table().to_markdown() + "\n"
