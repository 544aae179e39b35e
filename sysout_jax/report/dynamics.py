"""How outliers come up over the checkpoints of a run, in words and as a table, from the record."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from sysout_jax.showing import Table


def dynamics_lines(record: Mapping[str, Any], part: Mapping[str, Any]) -> list[str]:
    """What a record of dynamics says: what comes up, in which order, by which law."""
    lines = []
    for row in part["emergence"]:
        if row["step"] is None:
            lines.append(f"{row['kind']}: no change, {row['first']:.3g} to {row['last']:.3g}")
            continue
        law = ""
        if row["fits"]:
            law = f"; closest law {row['fits'][0]['law']} (R² {row['fits'][0]['r_squared']:.2f})"
        lines.append(
            f"{row['kind']}: {row['first']:.3g} to {row['last']:.3g}, half way at step "
            f"{row['step']}{law}"
        )
    if part["order"]:
        steps = {row["kind"]: row["step"] for row in part["emergence"]}
        order = part["order"][0]
        for before, kind in pairwise(part["order"]):
            order += f" {'=' if steps[before] == steps[kind] else '<'} {kind}"
        lines.append(f"order of emergence: {order}")
    return lines + _growth(part.get("growth"))  # older records have none


def _growth(found: Mapping[str, Any] | None) -> list[str]:
    """The law of the massive activation's growth."""
    if found is None:
        return []
    what = f"growth of {found['measure']} (four laws by AICc, arXiv:2508.03616)"
    if found["missing"]:
        return [f"{what}: not compared, {found['missing']}"]
    best, second = found["laws"][:2]
    turns = "" if best["turns"] is None else f", which turns at step {best['turns']:,.0f}"
    return [
        f"{what}: {best['law']}{turns}, R² {best['r_squared']:.3f}, {best['weight']:.0%} of the "
        f"weight; next {second['law']}, AICc {second['aicc'] - best['aicc']:+.1f}"
    ]


def growth_table(found: Mapping[str, Any]) -> Table:
    """The laws of growth beside each other, the least AICc first."""
    rows = [
        [law["law"], law["aicc"] - found["laws"][0]["aicc"], law["weight"], law["residual"],
         law["r_squared"], ", ".join(f"{k} = {x:.3g}" for k, x in law["parameters"].items()),
         law["turns"]]
        for law in found["laws"]
    ]  # fmt: skip
    headings = ("law", "AICc - least", "weight", "rms residual", "R²", "parameters", "turns at")
    return Table.of(f"Laws of growth of {found['measure']}", headings, rows)
