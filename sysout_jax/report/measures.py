"""Measures and detectors in words, computed from the record."""

from collections.abc import Mapping
from math import ceil
from typing import Any

from sysout_jax.core.detectors import FALSE_DISCOVERIES

GROWN = 2.0  # a measure is said to have changed by this factor


def measures_lines(record: Mapping[str, Any], part: Mapping[str, Any]) -> list[str]:
    """What a record of measures says; detectors among them are those of the papers, whatever the
    thresholds of the scan."""
    changed = []
    for row in part["scores"]:
        now, before = row["value"][0], row["untrained"][0]
        if now is None or before is None or now * before < 0:
            continue
        if max(abs(now), abs(before)) > GROWN * min(abs(now), abs(before)):
            changed.append(f"{row['name']} {before:.3g} to {now:.3g}")
    lines = [
        f"changed at least {GROWN:g}-fold from {part['initialisations']} untrained models: "
        + (listed(changed, len(part["scores"])) or "no measure")
    ]
    sweep = part["sweep"]
    above = [e for e, rate in zip(sweep["eps"], sweep["value"][0], strict=True) if rate >= 0.5]
    before = [e for e, rate in zip(sweep["eps"], sweep["untrained"][0], strict=True) if rate >= 0.5]
    lines.append(
        f"the first key is a sink of half of the heads up to threshold {max(above, default=0):g} "
        f"(untrained: {max(before, default=0):g}; usual: 0.3)"
    )
    for row in part["detectors"]:
        lines.append(
            f"{row['label']}, by its paper's threshold: {row['count'][0]:.3g} "
            f"(untrained: {row['untrained'][0]:.3g})"
        )
    for row in part["calibrated"]:
        control = row["control"]
        beside = "" if control is None else f" (in an untrained model: {control:.3g})"
        where = f", most often {listed([p for p, _ in row['places']])}" if row["places"] else ""
        lines.append(
            f"calibrated, {row['what']} of layer {row['layer']} beside {row['null']}: "
            f"{row['flagged']:.3g} flagged, in {row['sequences']} of {row['of']}{beside}{where}"
            f"{_fewest(row, part['length'])}"
        )
    return lines


def _fewest(row: Mapping[str, Any], length: int) -> str:
    """How many of a sequence's scores a null of few can flag at once, where one alone it cannot."""
    if "untrained models" not in row["null"]:
        return ""
    fewest = ceil(length / FALSE_DISCOVERIES * 10 ** -row["limit"] - 1e-3)
    return f"; fewer than {fewest} in a sequence cannot be" if fewest > 1 else ""


def listed(items: list[Any], most: int = 8) -> str:
    """The first of them, and how many more there are."""
    shown = ", ".join(map(str, items[:most]))
    return shown + (f" and {len(items) - most} more" if len(items) > most else "")
