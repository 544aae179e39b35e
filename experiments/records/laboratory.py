"""The cells of a record of experiments.laboratory, found by their settings."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

Record = dict[str, Any]
# What a cell is beside its variant, where nothing is said.
DEFAULT_CELL: Mapping[str, Any] = MappingProxyType(
    {
        "optimizer": "adamw", "layers": 1, "loss": "all", "start": "bos", "decay": 1e-4,
        "eps": 1e-8, "norm": "own", "penalty": "none",
    }
)  # fmt: skip


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


def setting(cell: Record) -> str:
    """What a cell is beside its variant, in words."""
    words = [cell["optimizer"], f"{cell['layers']} layer{'s' * (cell['layers'] > 1)}"]
    words += ["BOS not trained"] if cell["loss"] == "masked" else []
    words += ["no BOS"] if cell["start"] == "none" else []
    words += [f"{n} {cell[n]:g}" for n in ("decay", "eps") if cell[n] != DEFAULT_CELL[n]]
    words += [f"{cell['norm']} norms"] if cell["norm"] != DEFAULT_CELL["norm"] else []
    words += [cell["penalty"]] if cell["penalty"] != DEFAULT_CELL["penalty"] else []
    return ", ".join(words)
