"""The cells of a record of experiments.laboratory, found by their settings."""

from typing import Any

import numpy as np

from sysout_jax.plots.laboratory import DEFAULT_CELL

Record = dict[str, Any]


def trained(record: Record) -> list[Record]:
    """The cells that did not diverge."""
    return [cell for cell in record["cells"] if "diverged" not in cell]


def by_chain(record: Record, values: Any) -> np.ndarray:
    """[repeats, chains] of the values of a cell's runs.

    Raises:
      ValueError: its runs are not of each chain in turn.
    """
    chains = record["chains"]
    if [chain for _, chain in record["runs"]] != chains * (len(values) // len(chains)):
        raise ValueError("runs that are not of each chain in turn")
    return np.reshape(np.asarray(values, np.float64), (-1, len(chains)))


def of_units(found: np.ndarray) -> np.ndarray:
    """[units]: of [repeats, chains] the mean of each chain's runs; of one chain, its runs."""
    if found.ndim == 1:
        return found
    return found.mean(axis=0) if found.shape[1] > 1 else found[:, 0]


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
