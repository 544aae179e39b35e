"""What a compiled program moves, read from its text: bytes of memory, and collectives.

XLA's own cost analysis counts the body of a loop once; here a body counts as often as it runs.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import fsum, prod

COLLECTIVES = (
    "all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute",
)  # fmt: skip
FREE = (  # no bytes of their own: names, constants, and what is counted where it is called
    "parameter", "constant", "get-tuple-element", "tuple", "bitcast", "after-all", "opt-barrier",
    "partition-id", "replica-id", "while", "conditional", "call",
)  # fmt: skip
BITS = {"pred": 8, "bf16": 16, "token": 0, "opaque": 0}
SHAPE = re.compile(r"([a-z]\w*)\[([\d,]*)\](?:\{([^}]*)\})?")
NAMED = re.compile(r"%([\w.\-]+)")
CALLED = re.compile(
    r"(calls|body|condition|branch_computations|true_computation|false_computation|to_apply)="
    r"(\{[^}]*\}|%?[\w.\-]+)"
)
TRIPS = re.compile(r'known_trip_count[^0-9]*"(\d+)"')
GROUPS = re.compile(r"replica_groups=(mesh\[[^\]]*\] ?\{[^}]*\}|\[[^\]]*\]|\{\{[^}]*\}|\{\})")
CHANNEL = re.compile(r"channel_id=(\d+)")
AXIS = re.compile(r"'(\w+)'(?::\(\d+\)(\d+))?")


@dataclass(frozen=True)
class Buffer:
    """An array: its bytes in the device's main memory, 0 where it is kept in the chip's own."""

    bytes: float
    size: float  # bytes, wherever it is kept


@dataclass(frozen=True)
class Op:
    """One instruction."""

    kind: str
    out: tuple[Buffer, ...]
    operands: tuple[str, ...]
    called: Mapping[str, tuple[str, ...]]  # body, condition, calls, ... -> computations
    value: int | None = None  # of an integer constant, the index of a parameter, a loop's count
    group: int = 0  # devices that a collective joins; 0: all
    channel: int = 0  # of a collective: its number in the program; 0: none

    @property
    def bytes(self) -> float:
        """Of what it writes to main memory."""
        return fsum(buffer.bytes for buffer in self.out)


@dataclass
class Computation:
    """Instructions by name, and the last of them."""

    ops: dict[str, Op] = field(default_factory=dict)
    root: str = ""


@dataclass(frozen=True)
class Program:
    """The computations of a program by name."""

    computations: Mapping[str, Computation]
    entry: str
    devices: int


@dataclass
class Collective:
    """What all collectives of one kind move, per device."""

    count: int = 0
    bytes: float = 0.0  # of the whole arrays
    wire: float = 0.0  # sent by each device, if devices form a ring


@dataclass
class Traffic:
    """What a program moves on each device."""

    bytes: float = 0.0  # read from and written to main memory
    collectives: dict[str, Collective] = field(default_factory=lambda: defaultdict(Collective))
    loops: list[int] = field(default_factory=list)  # the counts of its loops
    unknown: int = 0  # loops whose count the text does not say: counted once
    channels: set[int] = field(default_factory=set)  # of the collectives that are counted


def buffers(text: str) -> tuple[Buffer, ...]:
    """The arrays of a type, such as `(f32[2,3]{1,0}, bf16[5]{0:T(256)S(1)})`."""
    found = []
    for kind, sizes, layout in SHAPE.findall(text):
        digits = re.match(r"[a-z]+(\d+)", kind)
        bits = BITS.get(kind, int(digits.group(1)) if digits else 0)
        size = bits / 8 * prod(int(n) for n in sizes.split(",") if n)
        found.append(Buffer(0.0 if re.search(r"S\([1-9]", layout) else size, size))
    return tuple(found)


def parse(lines: Iterable[str]) -> Program:
    """Read the text of a compiled program, a line at a time."""
    computations: dict[str, Computation] = {}
    entry, devices, at = "", 1, Computation()
    for line in lines:
        if line.startswith("HloModule"):
            partitions = re.search(r"num_partitions=(\d+)", line)
            devices = int(partitions.group(1)) if partitions else 1
        elif line.startswith(("%", "ENTRY")) and line.rstrip().endswith("{"):
            name = re.match(r"(?:ENTRY )?%?([\w.\-]+)", line)
            assert name is not None
            at = computations[name.group(1)] = Computation()
            entry = name.group(1) if line.startswith("ENTRY") else entry
        elif line.startswith("  ") and " = " in line:
            name_text, op = _op(line)
            at.ops[name_text.removeprefix("ROOT ").lstrip("%")] = op
            if name_text.startswith("ROOT "):
                at.root = name_text.removeprefix("ROOT ").lstrip("%")
    return Program(computations, entry, devices)


def _op(line: str) -> tuple[str, Op]:
    name, _, rest = line.strip().partition(" = ")
    end = _closed(rest) if rest.startswith("(") else rest.index(" ")
    out, rest = rest[:end], rest[end:].lstrip()
    kind, _, _ = rest.partition("(")
    end = _closed(rest, len(kind))
    inside, after = rest[len(kind) + 1 : end - 1], rest[end:]
    called = {key: tuple(re.findall(r"[\w.\-]+", names)) for key, names in CALLED.findall(after)}
    trips = TRIPS.search(after)
    number = inside if kind in ("constant", "parameter") else trips.group(1) if trips else ""
    value = int(number) if re.fullmatch(r"-?\d+", number) else None
    groups, channel = GROUPS.search(after), CHANNEL.search(after)
    size, number_of = _group(groups.group(1)) if groups else 0, channel and int(channel.group(1))
    operands = tuple(NAMED.findall(inside))
    return name, Op(kind, buffers(out), operands, called, value, size, number_of or 0)


def _closed(text: str, start: int = 0) -> int:
    """The place after the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += (text[place] == "(") - (text[place] == ")")
        if depth == 0:
            return place + 1
    return len(text)


def _group(text: str) -> int:
    """How many devices each of the groups has, in any of the three notations; 0: all."""
    if text.startswith("mesh"):
        mesh, _, over = text.partition("]")
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh))
        return prod(int(part or sizes[name]) for name, part in AXIS.findall(over))
    if text.startswith("["):
        return int(text.strip("[]").split(",")[-1])
    return len(re.findall(r"\d+", text))


def traffic(program: Program) -> Traffic:
    """The bytes and the collectives of every instruction, as often as it runs."""
    found = Traffic()
    _visit(program, program.entry, 1, found)
    return found


def _visit(program: Program, name: str, times: int, found: Traffic, fused: bool = False) -> None:
    computation = program.computations[name]
    for op in computation.ops.values():
        if op.kind == "while":
            count = _trips(program, op)
            found.unknown += count is None
            turns = 1 if count is None else count
            found.loops.append(turns)
            for part in ("body", "condition"):
                _visit(program, op.called[part][0], times * turns, found, fused)
            continue
        inside = op.kind == "fusion" or op.kind.endswith("-start")
        if inside or op.kind in ("call", "conditional"):
            for callee in _callees(op):
                _visit(program, callee, times, found, fused or inside)
        base = op.kind.removesuffix("-start")
        # What a TPU does beside other work is named by each piece of that work, with one channel.
        if base in COLLECTIVES and op.channel not in found.channels:
            found.channels |= {op.channel} - {0}
            # A TPU names a reduction of which each device keeps a part after both.
            base = "reduce-scatter" if name.startswith("all-reduce-scatter") else base
            _join(program, computation, op, base, times, found)
        if not fused:
            found.bytes += times * _moved(program, computation, op)


def _callees(op: Op) -> Iterator[str]:
    for key, names in op.called.items():
        if key != "to_apply" or op.kind == "call":
            yield from names


def _trips(program: Program, op: Op) -> int | None:
    """How often a loop runs: as it says, or as its condition compares a counter with."""
    if op.value is not None:
        return op.value
    constants = [
        each.value
        for each in program.computations[op.called["condition"][0]].ops.values()
        if each.kind == "constant" and each.value is not None
    ]
    return constants[0] if len(constants) == 1 else None


def _join(
    program: Program, computation: Computation, op: Op, kind: str, times: int, found: Traffic
) -> None:
    """Count a collective: n devices that hold arrays of so many bytes each."""
    n = op.group or program.devices
    held = fsum(
        buffer.size
        for name in op.operands
        if name in computation.ops
        for buffer in computation.ops[name].out
    )
    whole = held * n if kind == "all-gather" else held
    sent = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1.0}.get(kind, (n - 1) / n)
    total = found.collectives[kind]
    total.count += times
    total.bytes += times * whole
    total.wire += times * whole * sent


# ------------------------------------------------------------------------- bytes of memory


def _moved(program: Program, computation: Computation, op: Op) -> float:
    """What one instruction reads from and writes to main memory."""
    ops = computation.ops
    if op.kind in FREE or op.kind.endswith("-start"):
        return 0.0  # of two halves, the second is counted
    if op.kind.endswith("-done"):
        begun = ops.get(op.operands[0])
        source = ops.get(begun.operands[0]) if begun and begun.operands else None
        size = fsum(buffer.size for buffer in op.out)
        return op.bytes + (size if source is None or source.bytes else 0.0)
    if op.kind in ("dynamic-slice", "slice", "gather"):
        return 2 * op.bytes
    if op.kind == "dynamic-update-slice":
        return 2 * ops[op.operands[1]].bytes
    if op.kind == "fusion":
        return _of_fusion(program.computations[op.called["calls"][0]], ops, op)
    return op.bytes + fsum(ops[name].bytes for name in op.operands if name in ops)


def _of_fusion(inner: Computation, ops: Mapping[str, Op], op: Op) -> float:
    """Operands as far as they are read, results as far as they are written."""
    parameters = {o.value: name for name, o in inner.ops.items() if o.kind == "parameter"}
    read = 0.0
    for index, name in enumerate(op.operands):
        whole = ops[name].bytes if name in ops else 0.0
        inside = parameters.get(index)
        read += min(whole, _part_read(inner, inside)) if inside and whole else whole
    root = inner.ops[inner.root]
    results = [inner.root] if root.kind != "tuple" else list(root.operands)
    if len(results) != len(op.out):
        return read + op.bytes
    pairs = zip(results, op.out, strict=True)
    return read + fsum(_part_written(inner, name, buffer) for name, buffer in pairs)


def _part_read(inner: Computation, name: str) -> float:
    """Bytes that are read of a parameter of which slices may be all that is used."""
    total = 0.0
    for op in inner.ops.values():
        if name not in op.operands:
            continue
        if op.kind in ("dynamic-slice", "slice", "gather") and op.operands[0] == name:
            total += fsum(buffer.size for buffer in op.out)
        elif op.kind == "bitcast":
            user = next(key for key, value in inner.ops.items() if value is op)
            total += _part_read(inner, user) if user != inner.root else float("inf")
        elif op.kind != "dynamic-update-slice" or op.operands[0] != name:
            return float("inf")
    return total


def _part_written(inner: Computation, name: str, buffer: Buffer) -> float:
    """Bytes that are written of a result that may be changed in one place alone."""
    op = inner.ops[name]
    while op.kind == "bitcast" and op.operands[0] in inner.ops:
        op = inner.ops[op.operands[0]]
    if op.kind == "dynamic-update-slice" and buffer.bytes:
        return fsum(part.size for part in inner.ops[op.operands[1]].out)
    return buffer.bytes
