"""Figures, drawn from a record alone."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sysout_jax.errors import InputError
from sysout_jax.plots import (
    analysis,
    assumptions,
    benchmark,
    causal,
    compression,
    convergence,
    conversion,
    explicit,
    laboratory,
    tour,
    variants,
)
from sysout_jax.plots.style import STYLE, save, save_stacked

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NARROW = "narrow"  # a PNG in a folder of this name, with panels one below the other
# experiment -> (its figures, the kinds of file they are written as)
EXPERIMENTS: Mapping[str, tuple[Any, tuple[str, ...]]] = {
    "variants": (variants.figures, (".png",)),
    "analysis": (analysis.figures, (".png", ".pdf", NARROW)),
    "assumptions": (assumptions.figures, (".png", ".pdf")),
    "compression": (compression.figures, (".png", ".pdf", NARROW)),
    "convergence": (convergence.figures, (".png", ".pdf")),
    "convert": (conversion.figures, (".png", ".pdf")),
    "tour": (tour.figures, (".png", ".pdf")),
    "explicit": (explicit.figures, (".png", ".pdf")),
    "laboratory": (laboratory.figures, (".png", ".pdf")),
    "causal": (causal.figures, (".png", ".pdf")),
    "benchmark": (benchmark.figures, (".png", ".pdf")),
}


@contextlib.contextmanager
def figures(record: Mapping[str, Any]) -> Iterator[Iterator[tuple[str, "Figure"]]]:
    """The figures of a record as (name, figure), made one at a time in the project's style.

    Raises:
      InputError: the record is of another experiment.
    """
    if record.get("experiment") not in EXPERIMENTS:
        known = " or ".join(map(repr, EXPERIMENTS))
        raise InputError(f"record of {record.get('experiment')!r}", accepted=f"of {known}")
    import matplotlib as mpl

    style: Any = dict(STYLE)
    with mpl.rc_context(style):
        yield EXPERIMENTS[record["experiment"]][0](record)


def draw(record: Mapping[str, Any], directory: Path, names: Iterable[str] = ()) -> list[Path]:
    """Draw every figure of a record.

    Args:
      record: what `results.read_record` returned.
      directory: where the figures go; made if missing.
      names: patterns of all that such a record may have; those of another are removed.

    Returns:
      The paths of the PNG files.

    Raises:
      InputError: the record is of another experiment.
    """
    paths, written = [], set()
    with figures(record) as drawn:
        kinds = EXPERIMENTS[record["experiment"]][1]
        for name, figure in drawn:
            for suffix in kinds:
                if suffix == NARROW:
                    written.add(save_stacked(figure, directory / NARROW / f"{name}.png"))
                    continue
                written.add(path := save(figure, directory / f"{name}{suffix}"))
                if suffix == ".png":
                    paths.append(path)
    for suffix, name in product(kinds, names):
        found = directory.glob(f"{NARROW}/{name}.png" if suffix == NARROW else name + suffix)
        for path in set(found) - written:
            path.unlink()
    return paths
