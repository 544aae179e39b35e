"""Bytes and collectives of programs whose answers are known by hand."""

import pytest

from sysout_jax.planning.hlo import buffers, parse, traffic

LOOP = """HloModule jit_f, is_scheduled=true, num_partitions=6

%add (x: f32[], y: f32[]) -> f32[] {
  %x = f32[] parameter(0)
  %y = f32[] parameter(1)
  ROOT %sum = f32[] add(%x, %y)
}

%fused (p0: f32[5,7], p1: s32[]) -> f32[1,7] {
  %p0 = f32[5,7]{1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %zero = s32[] constant(0)
  ROOT %row = f32[1,7]{1,0} dynamic-slice(%p0, %p1, %zero), dynamic_slice_sizes={1,7}
}

%body (t: (s32[], f32[5,7], f32[1,7])) -> (s32[], f32[5,7], f32[1,7]) {
  %t = (s32[], f32[5,7]{1,0}, f32[1,7]{1,0}) parameter(0)
  %i = s32[] get-tuple-element(%t), index=0
  %all = f32[5,7]{1,0} get-tuple-element(%t), index=1
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %part = f32[1,7]{1,0} fusion(%all, %i), kind=kLoop, calls=%fused
  %total = f32[1,7]{1,0} all-reduce(%part), channel_id=1, replica_groups={{0,1,2},{3,4,5}}
  ROOT %out = (s32[], f32[5,7]{1,0}, f32[1,7]{1,0}) tuple(%next, %all, %total)
}

%condition (t: (s32[], f32[5,7], f32[1,7])) -> pred[] {
  %t.1 = (s32[], f32[5,7]{1,0}, f32[1,7]{1,0}) parameter(0)
  %i.1 = s32[] get-tuple-element(%t.1), index=0
  %five = s32[] constant(5)
  ROOT %less = pred[] compare(%i.1, %five), direction=LT
}

ENTRY %main (a: f32[5,7], b: bf16[2,3]) -> f32[1,7] {
  %a = f32[5,7]{1,0} parameter(0)
  %b = bf16[2,3]{1,0:T(8,128)(2,1)} parameter(1)
  %zero.1 = s32[] constant(0)
  %near = f32[1,7]{1,0:T(8,128)S(1)} broadcast(%zero.1), dimensions={}
  %whole = bf16[12,3]{1,0} all-gather(%b), channel_id=2, replica_groups=[1,6]<=[6], dimensions={0}
  %start = (s32[], f32[5,7]{1,0}, f32[1,7]{1,0}) tuple(%zero.1, %a, %near)
  %loop = (s32[], f32[5,7], /*index=2*/f32[1,7]) while(%start), condition=%condition, body=%body
  ROOT %result = f32[1,7]{1,0} get-tuple-element(%loop), index=2
}
"""
GATHER = 2 * 3 * 2 + 12 * 3 * 2  # bytes of what it reads and writes
REDUCED = 7 * 4


def of(text):
    return traffic(parse(text.splitlines(keepends=True)))


def test_a_loop_counts_as_often_as_it_runs():
    found = of(LOOP)
    assert (found.loops, found.unknown) == ([5], 0)
    reduced, gathered = (found.collectives[k] for k in ("all-reduce", "all-gather"))
    assert (reduced.count, reduced.bytes) == (5, 5 * REDUCED)
    assert reduced.wire == pytest.approx(5 * REDUCED * 2 * 2 / 3)  # 3 devices in a ring
    assert (gathered.count, gathered.bytes, gathered.wire) == (1, 72, 72 * 5 / 6)


def test_bytes_by_hand():
    """One row of five is read each time, not all of them; what is near the core costs nothing."""
    counter = 4 + 4 + 4  # `next` reads two numbers and writes one
    row = REDUCED + 4 + REDUCED  # the slice and its index, and the row that is written
    inside = counter + row + 2 * REDUCED  # the reduction reads and writes
    condition = 1 + 4 + 4
    near = 4  # reads a number, writes to the chip's own memory
    assert of(LOOP).bytes == 5 * (inside + condition) + GATHER + near


def test_loops_in_loops():
    """The condition of the outer one is met as often as that runs, whatever is inside of it."""
    outer = """
%around (t: (s32[], f32[5,7], f32[1,7])) -> (s32[], f32[5,7], f32[1,7]) {
  %t.2 = (s32[], f32[5,7]{1,0}, f32[1,7]{1,0}) parameter(0)
  ROOT %inner = (s32[], f32[5,7], f32[1,7]) while(%t.2), condition=%condition, body=%body
}

ENTRY"""
    once, counted = (
        "condition=%condition, body=%body\n  ROOT %result",
        '"known_trip_count":{"n":"3"}',
    )
    twice = f"condition=%condition, body=%around, backend_config={{{counted}}}\n  ROOT %result"
    nested = of(LOOP.replace(once, twice).replace("\nENTRY", outer))
    assert sorted(nested.loops) == [3, 5]
    condition, rest = 1 + 4 + 4, GATHER + 4
    assert nested.bytes == 3 * (of(LOOP).bytes - rest) + 3 * condition + rest


def test_a_count_that_the_loop_states_is_taken():
    said = LOOP.replace("body=%body", 'body=%body, backend_config={"known_trip_count":{"n":"3"}}')
    assert of(said).loops == [3]
    unsaid = LOOP.replace("%five = s32[] constant(5)", "%five = s32[] get-tuple-element(%t.1)")
    assert (of(unsaid).loops, of(unsaid).unknown) == ([1], 1)


@pytest.mark.parametrize(
    ("groups", "n"),
    [
        ("{{0,1,2},{3,4,5}}", 3),
        ("[3,2]<=[6]", 2),
        ("[2,3]<=[3,2]T(1,0)", 3),
        ("{}", 6),
        ("mesh['axis_0'=2,'axis_1'=3] {'axis_1'}", 3),
        ("mesh['axis_0'=2,'axis_1'=3] {'axis_0','axis_1'}", 6),
        ("mesh['axis_0'=6] {'axis_0':(2)3}", 3),
    ],
)
def test_groups_in_every_notation(groups, n):
    found = of(LOOP.replace("{{0,1,2},{3,4,5}}", groups)).collectives["all-reduce"]
    assert found.wire == pytest.approx(5 * REDUCED * 2 * (n - 1) / n)


def test_one_channel_is_one_collective():
    """A TPU names a collective in each fusion that works beside it."""
    line = next(line for line in LOOP.splitlines() if "all-gather(" in line)
    twice = LOOP.replace(line, f"{line}\n{line.replace('%whole', '%again')}")
    assert of(twice).collectives["all-gather"].count == 1
    other = twice.replace("%again = bf16[12,3]{1,0} all-gather(%b), channel_id=2", "%again = "
                          "bf16[12,3]{1,0} all-gather(%b), channel_id=7")  # fmt: skip
    assert of(other).collectives["all-gather"].count == 2


def test_halves_of_an_instruction_count_once():
    split = LOOP.replace(
        "%whole = bf16[12,3]{1,0} all-gather(%b)",
        "%begun = (bf16[2,3]{1,0}, bf16[12,3]{1,0}) all-gather-start(%b)",
    ).replace("  %start = (", "  %whole = bf16[12,3]{1,0} all-gather-done(%begun)\n  %start = (")
    found = of(split)
    assert (found.collectives["all-gather"].count, found.collectives["all-gather"].bytes) == (1, 72)
    assert found.bytes == of(LOOP).bytes - GATHER + 2 * 72


def test_sizes_of_types():
    (pred, half, none, near) = buffers(
        "(pred[3], bf16[2,5]{1,0:T(8,128)(2,1)}, token[], f8e4m3fn[7]{0:S(1)})"
    )
    assert [x.size for x in (pred, half, none, near)] == [3, 20, 0, 7]
    assert near.bytes == 0
    assert [x.size for x in buffers("s4[6]")] == [3]
