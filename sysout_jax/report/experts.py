"""The experts of a mixture whose outputs stand out, in words and as a table, from the record."""

from collections.abc import Mapping
from statistics import median
from typing import Any

from sysout_jax.showing import Table

SHOWN = 8  # super experts in the sentence


def expert_lines(record: Mapping[str, Any], part: Mapping[str, Any]) -> list[str]:
    """What a record of positions says of super experts; nothing of a model without experts."""
    found = part.get("experts")  # older records have none
    if found is None:
        return []
    limits = record["thresholds"]
    count = len(found["peak"]) * len(found["peak"][0])
    what = (
        f"super experts (Su et al. 2025: max |output| above the {limits['expert_quantile']:.1%} "
        f"quantile of all {count} experts and above {limits['expert_share']:g} of the largest)"
    )
    unvisited = f"; no token goes to {found['unvisited']} experts" if found["unvisited"] else ""
    named = [
        f"expert {each['expert']} of layer {each['layer']} (|output| {each['peak']:.3g}, "
        f"{each['over_median']:.3g} x the median of all that tokens go to, in "
        f"{each['sequences']} of {part['sequences']} sequences)"
        for each in found["found"]
    ]
    more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
    return [f"{what}: {', '.join(named[:SHOWN]) or 'none'}{more}{unvisited}"]


def expert_table(found: Mapping[str, Any]) -> Table:
    """The expert of each layer with the largest output, and whether it is a super expert."""
    rows = []
    for layer, peaks in enumerate(found["peak"]):
        expert = peaks.index(max(peaks))
        named = [str(each["expert"]) for each in found["found"] if each["layer"] == layer]
        rows.append([layer, expert, peaks[expert], median(peaks), ", ".join(named)])
    headings = ("layer", "expert", "max |output|", "median of the layer's", "super experts")
    return Table.of("Largest outputs of experts", headings, rows)
