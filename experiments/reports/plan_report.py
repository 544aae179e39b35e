"""What experiments.plan says: a table of each step, a line that says whether it fits."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sysout_jax.planning.machines import GIB
from sysout_jax.showing import Table
from sysout_jax.training.sharding import parse_mesh

from ..cli.showing import Report
from ..cli.tables import Section
from ..cli.verdict import LINE, Verdict, again

Record = dict[str, Any]
HEADINGS = (
    "model", "machine", "step", "mesh", "batch x T", "remat", "peak, GiB", "of", "fits",
    "TFLOP", "GB moved", "GB sent", "least ms", "bound by", "MFU at best", "MFU, no overlap",
)  # fmt: skip
# A run with nothing that saves memory in training; what --levers sets, and is refused beside it.
PLAIN = {
    "remat": "none", "scan_layers": False, "accumulate": 1, "dtype": "float32",
    "moment_dtype": "float32", "param_dtype": "float32",
}  # fmt: skip
PULLED = ("only", "flash", *PLAIN)
PARTS = 4  # that a lever cuts a batch into
RESERVED = 0.75  # of a GPU's memory, which JAX takes as it starts
OF_LEVERS = ("flags", "peak, GiB", "state", "temporaries", "TFLOP", "GB moved", "least ms")


def bound(step: Record) -> str:
    """What takes the longest."""
    return max(("compute", "memory", "network"), key=lambda name: step["roofline"][name])


def fitting(record: Record) -> str:
    """Whether the training step fits; if not, by how much, and what would."""
    step = record["steps"]["train"]
    said = fits(step)
    found = record.get("suggestion")
    if step["fits"] is not False:
        return said
    if not found:
        return f"{said}; no mesh of these devices was found that fits"
    return f"{said}; nearest alternative: {' '.join(_how(found))}: {fits(found)}"


def _how(step: Record) -> list[str]:
    how = step["config"]
    return [f"--{n}={how[n]}" for n in ("mesh", "remat", "accumulate", "batch_size")]


def fits(step: Record) -> str:
    """FITS, or by how much a step does not."""
    peak, room = step["memory"]["peak"] / GIB, step["room"]
    if room is None:
        return f"needs {peak:.2f} GiB"
    if step["fits"]:
        return f"FITS: {peak:.2f} of {room / GIB:.1f} GiB"
    over = peak - room / GIB
    if over <= 0:  # the compiler keeps a part of the memory for itself
        return f"DOES NOT FIT: {peak:.2f} of {room / GIB:.1f} GiB, of which the system keeps a part"
    return f"DOES NOT FIT: {peak:.2f} of {room / GIB:.1f} GiB, {over:.2f} too many"


def sections(record: Record) -> Iterator[Section]:
    """A row for each step or lever; then each step by itself."""
    yield Section("plan", table(record), asked=bool(record["steps"]))
    for name, step in record["steps"].items():
        lines = [fitting(record) if name == "train" else fits(step)]
        yield Section(name, _step_table(record, name), lines)


def _step_table(record: Record, name: str) -> Table:
    """One step: memory, work, what is moved, and the least time."""
    step = record["steps"][name]
    memory = step["memory"]
    parts = ("arguments", "outputs", "temporaries", "kept", "peak")
    rows = [(part, f"{memory[part] / GIB:.3f} GiB") for part in parts if memory[part] is not None]
    rows.append(("work", f"{step['flops'] / 1e12:.3f} TFLOP"))
    if step["model_flops"] is not None:
        rows.append(("of the model", f"{step['model_flops'] / 1e12:.3f} TFLOP"))
    if step["traffic"]:
        rows.append(("memory traffic", f"{step['traffic']['bytes'] / 1e9:.3f} GB"))
        for kind, each in step["traffic"]["collectives"].items():
            moved, sent = each["bytes"] / 1e9, each["wire"] / 1e9
            rows.append((kind, f"{each['count']:g} times, {moved:.3f} GB, {sent:.3f} GB sent"))
    if step["roofline"]:
        for part in ("compute", "memory", "network", "step", "without_overlap"):
            rows.append((part.replace("_", " "), f"{1e3 * step['roofline'][part]:.2f} ms"))
    title = f"{name} step of {record['model']} on {record['topology']}, {record['devices']} devices"
    return Table.of(title, ("of each", ""), rows, "l")


def table(record: Record) -> Table:
    """One row for each step, or for each lever."""
    if record.get("levers"):
        return Table.of("", OF_LEVERS, [_lever(*each) for each in record["levers"].items()])
    return Table.of("", HEADINGS, [_row(record, name) for name in record["steps"]], "lllr")


def _lever(name: str, step: Record) -> list[str]:
    memory, moved, line = step["memory"], step["traffic"], step["roofline"]
    held, beside = memory["arguments"], memory["temporaries"]
    return [
        name if name == "none" or "--" not in name else f"`{name}`",
        f"{memory['peak'] / GIB:.2f}",
        "" if held is None else f"{held / GIB:.2f}",
        "" if beside is None else f"{beside / GIB:.2f}",
        f"{step['flops'] / 1e12:.2f}",
        f"{moved['bytes'] / 1e9:.1f}" if moved else "",
        f"{1e3 * line['step']:.1f}" if line else "",
    ]


def _row(record: Record, name: str) -> list[str]:
    step, how = record["steps"][name], record["steps"][name]["config"]
    line, moved = step["roofline"], step["traffic"]
    sent = moved and sum(each["wire"] for each in moved["collectives"].values())
    trained = line and "utilisation" in line
    return [
        record["model"],
        record["topology"],
        name,
        divided(how["mesh"]),
        f"{how['batch_size']} x {how['seq_len']}",
        how["remat"] if name == "train" else "",
        f"{step['memory']['peak'] / GIB:.2f}",
        f"{step['room'] / GIB:.0f}" if step["room"] else "",
        {True: "yes", False: "no", None: ""}[step["fits"]],
        f"{step['flops'] / 1e12:.2f}",
        f"{moved['bytes'] / 1e9:.1f}" if moved else "",
        f"{sent / 1e9:.2f}" if moved else "",
        f"{1e3 * line['step']:.1f}" if line else "",
        bound(step) if line else "",
        f"{line['utilisation']:.2f}" if trained else "",
        f"{line['utilisation_without_overlap']:.2f}" if trained else "",
    ]


def _can_pull(record: Record) -> bool:
    """Whether the same command with --levers is one that is accepted."""
    step = record["steps"].get("train")
    given = re.findall(r"--(?:no)?(\w+)", record["provenance"]["command"])
    if step is None or not set(PULLED).isdisjoint(given):
        return False
    mesh = parse_mesh(step["config"]["mesh"])
    return bool(step["config"]["batch_size"] % (PARTS * mesh.data * mesh.fsdp) == 0)


def divided(text: str) -> str:
    """The axes of a mesh that divide anything."""
    axes = [axis for axis in text.split(",") if not axis.endswith("=1")]
    return ",".join(axes) or "data=1"


def verdict(record: Record, directory: Path) -> Verdict:
    """Which steps fit, what bounds them, and what this does not say."""
    steps = record["levers"] if record.get("levers") else record["steps"]
    if not steps:
        return Verdict("nothing is compiled", "", "", ("plan", *again(record)))
    if record.get("levers"):
        least = min(steps, key=lambda name: steps[name]["memory"]["peak"])
        found, first = f"least memory with {least}: {fits(steps[least])}", steps[least]
        found = found if len(found) <= LINE else fits(steps[least])
    else:
        found, first = (
            "; ".join(f"{name}: {_fit(step)}" for name, step in steps.items()),
            steps[next(iter(steps))],
        )
    line = first["roofline"]
    least = "at least" if (record["chip"] or {}).get("tpu") else "as a CPU's program about"
    means = f"{least} {1e3 * line['step']:.1f} ms a step, bound by {bound(first)}" if line else ""
    suggestion = record.get("suggestion")
    but = "compiled, not run: no machine has to be as fast as its data sheet"
    gpu = record["chip"] and not record["chip"]["tpu"]
    if gpu and any(_needs_more_than_jax_takes(step) for step in steps.values()):
        but = "JAX takes 75% of a GPU's memory unless XLA_PYTHON_CLIENT_MEM_FRACTION says more"
    return Verdict(
        found, means, but,
        ("plan", *again(record, *_how(suggestion))) if suggestion
        else ("plan", *again(record, "--levers")) if _can_pull(record)
        else ("plan", f"--redraw={directory}", "--markdown"),
    )  # fmt: skip


def _needs_more_than_jax_takes(step: Record) -> bool:
    """Whether a step that fits on a GPU does not with the share that JAX reserves by itself."""
    return bool(step["fits"] and step["memory"]["peak"] > RESERVED * step["room"])


def _fit(step: Record) -> str:
    """Whether a step fits, in a few words."""
    peak, room = f"{step['memory']['peak'] / GIB:.2f}", step["room"]
    if room is None:
        return f"{peak} GiB"
    return f"{'fits' if step['fits'] else 'DOES NOT FIT'}, {peak} of {room / GIB:.0f} GiB"


REPORT = Report(sections, verdict, lambda record, directory: {})
