"""What is made of times and peaks at several lengths: exponents, how far memory goes, tables."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import goals
from benchmarks.against_hooks import check
from benchmarks.goals import Row, quartiles
from sysout_jax.showing import Table

HEADINGS = ("tokens", "ours", "above the model", "peak", "hooks", "above the model", "peak")
TIMES_LONGER, LINEAR = 16.0, 1.1  # goals: tokens over the peer's, and memory's exponent


def described(
    shared: int,
    gib: float,
    passes: Mapping[str, list[dict[str, Any]]],
    found: Mapping[str, Mapping[str, Any]],
) -> dict[str, Any]:
    """What a record says of lengths and of the one that both were timed at.

    Args:
      shared: that length.
      gib: the limit of memory.
      passes: "ours" and "hooks" at the shared length, by rounds.
      found: of `as_time_allows` and `longest`.

    Raises:
      Differs: ours and the peer do not find the same.
    """
    pairs = list(zip(passes["ours"], passes["hooks"], strict=True))
    points = {
        side: {
            shared: _point(passes[side]),
            **{tokens: _point([done]) for tokens, done in sorted(each["points"].items())},
        }
        for side, each in found.items()
    }
    ratio = {
        what: quartiles(
            np.ravel(
                [np.divide(_measured(b)[what], _measured(a)[what]) for a, b in pairs]
            )
        )
        for what in ("seconds", "memory")
    }  # fmt: skip
    stopped = {
        side: {name: each[name] for name in ("refused", "why") if name in each}
        for side, each in found.items()
    }
    return {
        "difference": max(check(our["found"], their["found"]) for our, their in pairs),
        "points": points,
        "stopped": stopped,
        "ratio": ratio,
        "rows": rows(shared, gib, points, ratio, stopped["hooks"]["refused"]),
    }


def _measured(done: Mapping[str, Any]) -> dict[str, list[float]]:
    """Seconds of each call, without the first if there are others; and the one peak of all."""
    seconds = done["seconds"]
    return {"seconds": seconds[1:] or seconds, "memory": [done["peak"] - done["loaded"]]}


def _point(passes: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over processes of the same length."""
    found = [{**_measured(done), "peak": [done["peak"]]} for done in passes]
    return {
        what: float(np.median([value for each in found for value in each[what]]))
        for what in ("seconds", "memory", "peak")
    }


def upper(points: Mapping[int, Mapping[str, float]]) -> list[int]:
    """The longer half of the lengths, to which laws are fitted: three at least, if there are."""
    lengths = sorted(points)
    return lengths[-max(3, math.ceil(len(lengths) / 2)) :]


def exponent(points: Mapping[int, Mapping[str, float]], what: str) -> float:
    """p of what = c T^p: the slope of its logarithm, by least squares, over `upper` lengths."""
    lengths = upper(points)
    values = [points[tokens][what] for tokens in lengths]
    return float(np.polyfit(np.log(lengths), np.log(values), 1)[0])


def extrapolated(points: Mapping[int, Mapping[str, float]], limit: float) -> float:
    """Tokens at which the line through the peaks of `upper` lengths reaches a limit."""
    lengths = upper(points)
    slope, start = np.polyfit(lengths, [points[tokens]["peak"] for tokens in lengths], 1)
    return float((limit - start) / slope)


def rows(
    shared: int,
    gib: float,
    points: Mapping[str, Mapping[int, Mapping[str, float]]],
    ratio: Mapping[str, list[float]],
    refused: int,
) -> list[Row]:
    """Lengths in thousands of tokens, exponents and the ratios at the shared length.

    Args:
      shared, gib: as of `described`.
      points: side -> tokens -> medians.
      ratio: the peer's over ours at the shared length: quartiles.
      refused: the shortest length that the peer has no memory for.
    """
    ours, hooks = (max(points[side]) for side in ("ours", "hooks"))
    peak = points["ours"][ours]["peak"] / 2**30
    at = f"at {shared:,} tokens"

    def beyond() -> list[Row]:
        if len(points["ours"]) < 2:
            return []
        reached = quartiles([extrapolated(points["ours"], gib * 2**30) / 1e3])
        return [Row(f"ours: {gib:g} GiB by the line through peaks, not run", reached, "k")]

    def laws(side: str) -> list[Row]:
        lengths = upper(points[side])
        if len(lengths) < 2:
            return []
        over = f"{side}: from {lengths[0]:,} to {lengths[-1]:,} tokens, exponent of"
        most = LINEAR if side == "ours" else None
        memory, seconds = (
            quartiles([exponent(points[side], what)]) for what in ("memory", "seconds")
        )
        return [Row(f"{over} memory", memory, most=most), Row(f"{over} time", seconds)]

    return [
        Row(f"hooks: longest in {gib:g} GiB (not {refused:,})", quartiles([hooks / 1e3]), "k"),
        Row(f"ours: longest that was run (peak {peak:.1f} GiB)", quartiles([ours / 1e3]), "k"),
        Row("the same, times the hooks'", quartiles([ours / hooks]), least=TIMES_LONGER),
        *beyond(),
        *laws("ours"),
        *laws("hooks"),
        Row(f"hooks' time, times ours, {at}", ratio["seconds"]),
        Row(f"hooks' memory above the model, times ours, {at}", ratio["memory"]),
    ]


def texts(record: Mapping[str, Any]) -> list[list[str]]:
    """A row for each length that was run: seconds and peaks of both."""
    points = {
        side: {int(tokens): point for tokens, point in each.items()}
        for side, each in record["points"].items()
    }
    found = []
    for tokens in sorted({*points["ours"], *points["hooks"]}):
        row = [f"{tokens:,}"]
        for side in ("ours", "hooks"):
            point = points[side].get(tokens)
            row += [""] * 3 if point is None else [
                f"{point['seconds']:.2f} s", f"{point['memory'] / 2**20:,.0f} MiB",
                f"{point['peak'] / 2**30:.2f} GiB",
            ]  # fmt: skip
        found.append(row)
    return found


def tables(record: Mapping[str, Any]) -> dict[str, Table]:
    """The rows beside their goals and the lengths, as docs/performance.md shows them."""
    return {
        "lengths": Table.of("", HEADINGS, texts(record), "r"),
        "rows": goals.table("statistics of long sequences", record["rows"]),
    }


def print_tables(console: Console, record: Mapping[str, Any]) -> None:
    """The lengths that were run, and the rows beside their goals."""
    for table in tables(record).values():
        goals.print_table(console, table)
    console.print(f"both find the same: at most {record['difference']:.0e} apart, as a share")
