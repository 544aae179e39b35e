"""What an analysis says in three sentences: what there is, what it does, what does not hold."""

from collections.abc import Mapping
from typing import Any

from sysout_jax.analysis.intervene.relocation import relocated

Record = Mapping[str, Any]


def summary(record: Record) -> tuple[str, str, str]:
    """Three sentences on a record, from the parts that it has; "" for one that none of them says.

    Args:
      record: of the analysis experiment, as JSON holds it.

    Returns:
      The outliers and where they are; what they do to attention and to the loss; what does not
      hold or is not known. Each is short enough for a line of a terminal.
    """
    return _found(record), _does(record), _not(record)


def _found(record: Record) -> str:
    parts = record["parts"]
    if "existence" in parts:
        massive = _detected(record, "sun")
        if not massive["layers"]:
            return f"no massive activation: the largest is {massive['largest']:.2g} of the bound"
        where, size = _layers(massive["layers"]), _size(massive, parts.get("lifecycle"))
        tokens = _one_or_several("token", massive["tokens"])
        channels = _one_or_several("channel", massive["features"])
        return f"massive activations: {where}, {tokens}, {channels}{size}"
    if "positions" in parts:
        kind, of = parts["positions"]["kinds"]["sun"], parts["positions"]["sequences"]
        return f"massive activations in {kind['sequences']} of {of} sequences of text"
    if "lifecycle" in parts:
        life = parts["lifecycle"]
        return f"the largest activation is {life['peak']:.3g}, in layer {life['peak_layer']}"
    if "dimensions" in parts:
        part = parts["dimensions"]
        count, width, top = len(part["dimensions"]), len(part["scores"]), max(part["scores"])
        return f"{count} of {width} dimensions are outlier dimensions: scores up to {top:.2f} of 1"
    if "relations" in parts:
        rows = [row for row in parts["relations"]["rows"] if row["sequences"]]
        told = (f"{row['given']} to {row['found']} {row['precision'][0]:.2f}" for row in rows)
        return f"precision: {', '.join(told)}" if rows else "no relation has outliers to be of"
    return ""


def _does(record: Record) -> str:
    parts = record["parts"]
    if "sink" in parts.get("interventions", {}):
        sink = parts["interventions"]["sink"]
        if not sink["heads"]:
            return f"no sink: a head gives the first token at most {sink['most']:.2f}"
        forms = parts["interventions"]["forms"]["forms"]
        cost = next((form["change"][0] for form in forms if form["name"] == "dropped"), None)
        first = f"{sink['heads']:.0%} of heads from layer {sink['first']} on are sinks"
        return first + ("" if cost is None else f"; without it loss {cost:+.2f} nats")
    if "roles" in parts:
        shares = parts["roles"]["shares"]
        return f"{shares['sink']:.0%} of heads are sinks, {shares['no_op']:.0%} are no-ops"
    if "positions" in parts:
        part = parts["positions"]
        most = max(max(row) for row in part["heads"])
        return f"a head gives {part['heads_of']} at most {most:.2f} of its attention"
    if "dimensions" in parts and parts["dimensions"]["dimensions"]:
        own = next(e for e in parts["dimensions"]["ablations"] if e["of"] == "outlier dimensions")
        return f"without them predictions change by {own['values']['kl'][0]:.3g} nats of KL"
    return ""


def _not(record: Record) -> str:
    parts = record["parts"]
    unfinished = [name for name in record.get("asked", ()) if name not in parts]
    if unfinished:
        return f"not finished: {', '.join(unfinished)}"
    forms = parts.get("interventions", {}).get("forms", {"forms": ()})["forms"]
    dropped = next((form for form in forms if form["name"] == "dropped"), None)
    if dropped and relocated(dropped["relocation"]):
        return "the sink relocates: the cost is not that of a model without one"
    if "existence" in parts and not parts["existence"]["weights"]["outliers"]:
        top = max(max(row) for row in parts["existence"]["weights"]["ratio"])
        bound = record["thresholds"]["weight_ratio"]
        return f"no weight outlier: the largest is {top:.3g} means, and the bound {bound:g}"
    if "relations" in parts:
        rows = parts["relations"]["rows"]
        none = sum(not row["sequences"] for row in rows)
        return f"{none} of {len(rows)} relations have no outliers to be of" if none else ""
    return ""


def _detected(record: Record, name: str) -> Record:
    found: list[Record] = record["parts"]["existence"]["found"]
    return next(each for each in found if each["detector"] == name)


def _layers(numbers: list[int]) -> str:
    """The layers, by runs where these are few."""
    begins = [n for n in numbers if n - 1 not in numbers]
    ends = [n for n in numbers if n + 1 not in numbers]
    if len(begins) > 3:
        return f"{len(numbers)} layers of {numbers[0]} to {numbers[-1]}"
    runs = (f"{a} to {b}" if a < b else f"{a}" for a, b in zip(begins, ends, strict=True))
    return f"layer{'s' * (len(numbers) > 1)} {', '.join(runs)}"


def _size(massive: Record, life: Record | None) -> str:
    """The largest |h|, in the layers of massive activations, at the place that was followed."""
    if life is None or life["token"] not in massive["tokens"]:
        return ""
    trace = life["trace"]["block_out"]
    largest = max(abs(trace[layer]) for layer in massive["layers"])
    return f", |h| {largest:,.0f}" if life["channel"] in massive["features"] else ""


def _one_or_several(noun: str, numbers: list[int]) -> str:
    return f"{noun} {numbers[0]}" if len(numbers) == 1 else f"{len(numbers)} {noun}s"
