"""Exponents, rows beside goals and tables, by hand; what differs is refused."""

from dataclasses import asdict

import pytest

from benchmarks import against_hooks, lengths

MIB, GIB = 2**20, 2**30


def done(seconds, memory, loaded=100 * MIB, found=None):
    return {
        "seconds": [seconds], "whole": seconds + 2.0, "loaded": loaded, "peak": loaded + memory,
        "found": found,
    }  # fmt: skip


def test_laws_by_hand():
    points = {
        t: {"seconds": 3e-9 * t**2, "memory": 20e3 * t, "peak": GIB + 20e3 * t}
        for t in (2048, 4096, 8192, 16384, 32768)
    }
    points[2048]["seconds"] = points[2048]["memory"] = 1e9  # not in the longer half
    assert lengths.upper(points) == [8192, 16384, 32768]
    assert lengths.exponent(points, "seconds") == pytest.approx(2.0)
    assert lengths.exponent(points, "memory") == pytest.approx(1.0)
    assert lengths.extrapolated(points, 8 * GIB) == pytest.approx(7 * GIB / 20e3)


FOUND = {"median": [1.0, 2.0]}


def record():
    passes = {
        "ours": [done(1.0, 100 * MIB, found=FOUND), done(2.0, 100 * MIB, found=FOUND)],
        "hooks": [done(3.0, 800 * MIB, found=FOUND), done(6.0, 800 * MIB, found=FOUND)],
    }
    found = {
        "ours": {
            "points": {t: done(1.5 * (t / 4096) ** 2, 100 * MIB * t // 4096)
                       for t in (8192, 131072)},
            "refused": 262144, "why": "time",
        },
        "hooks": {"points": {8192: done(18.0, 3200 * MIB)}, "refused": 9216},
    }  # fmt: skip
    return lengths.described(4096, 8.0, passes, found)


def test_rows_by_hand_and_the_tables():
    made = record()
    rows = {row.what: row for row in made["rows"]}
    times = rows["the same, times the hooks'"]
    assert (times.found[0], times.met) == (16.0, True)
    assert rows["hooks: longest in 8 GiB (not 9,216)"].found[0] == 8.192
    assert rows["ours: longest that was run (peak 3.2 GiB)"].found[0] == 131.072
    law = rows["ours: from 4,096 to 131,072 tokens, exponent of memory"]
    assert (law.found[0], law.met) == (pytest.approx(1.0), True)
    assert rows["hooks' time, times ours, at 4,096 tokens"].found[0] == 3.0
    assert rows["hooks' memory above the model, times ours, at 4,096 tokens"].found[0] == 8.0
    beyond = rows["ours: 8 GiB by the line through peaks, not run"].found[0]
    assert beyond == pytest.approx((8 * 1024 - 100) / 100 * 4.096)
    made["rows"] = [asdict(row) for row in made["rows"]]
    made["points"] = {
        side: {str(t): point for t, point in each.items()} for side, each in made["points"].items()
    }
    tables = {name: table.to_markdown() for name, table in lengths.tables(made).items()}
    assert "| the same, times the hooks' | 16 | >= 16 | yes |" in tables["rows"]
    shown = tables["lengths"].splitlines()
    both = "| 8,192 | 6.00 s | 200 MiB | 0.29 GiB | 18.00 s | 3,200 MiB | 3.22 GiB |"
    assert shown[3:] == [both, "| 131,072 | 1536.00 s | 3,200 MiB | 3.22 GiB |  |  |  |"]


def test_one_length_has_no_line():
    points = {
        side: {4096: {"seconds": 1.0, "memory": MIB, "peak": MIB}} for side in ("ours", "hooks")
    }
    ratio = {"seconds": [1.0] * 3, "memory": [1.0] * 3}
    found = lengths.rows(4096, 8.0, points, ratio, 8192)
    assert not [row for row in found if "line through peaks" in row.what or "exponent" in row.what]


def test_what_differs_is_refused():
    passes = {"ours": [done(1.0, MIB, found=FOUND)], "hooks": [done(1.0, MIB, found={"median": 3})]}
    points = {"points": {}, "refused": 8192}
    with pytest.raises(against_hooks.Differs):
        lengths.described(4096, 8.0, passes, {"ours": points, "hooks": points})
