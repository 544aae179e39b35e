"""The cells of a record of experiments.benchmark, found by what they differ in."""

from types import MappingProxyType
from typing import Any

Record = dict[str, Any]
# What a cell is, where nothing is said.
DEFAULT_CELL = MappingProxyType(
    {"variant": "softmax", "optimizer": "adamw", "norm": "own", "setting": "own"}
)
AXES = tuple(DEFAULT_CELL)


def cell_of(record: Record, **moved: str) -> Record | None:
    """The cell that differs from the usual in what is given, if it is there.

    Raises:
      KeyError: cells have no such name.
    """
    for name in moved:
        DEFAULT_CELL[name]
    wanted = {**DEFAULT_CELL, **moved}
    return next((c for c in record["cells"] if {n: c[n] for n in AXES} == wanted), None)
