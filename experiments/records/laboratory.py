"""The cells of a record of experiments.laboratory, found by their settings."""

from typing import Any

from sysout_jax.plots.laboratory import DEFAULT_CELL

Record = dict[str, Any]


def trained(record: Record) -> list[Record]:
    """The cells that did not diverge."""
    return [cell for cell in record["cells"] if "diverged" not in cell]


def cell_of(record: Record, variant: str, **setting: object) -> Record:
    """The cell of a setting: what is not given is as usual.

    Raises:
      KeyError: it is not in the record, or diverged.
    """
    wanted = {**DEFAULT_CELL, **setting}
    for cell in trained(record):
        if cell["variant"] == variant and all(cell[n] == value for n, value in wanted.items()):
            return cell
    raise KeyError(f"no cell {variant}, {wanted}")
