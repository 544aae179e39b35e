"""What experiments.compress says: tables of perplexity, and how well noise is predicted."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax import plots
from sysout_jax.analysis.compress import schemes
from sysout_jax.analysis.compress.noise import Agreement, agreement
from sysout_jax.analysis.compress.schemes import Rounding
from sysout_jax.analysis.statistics import bootstrap_interval, over_seeds, ratio_interval
from sysout_jax.converting import CONVERTED
from sysout_jax.errors import InputError
from sysout_jax.plots.compression import noise_rows
from sysout_jax.rotating import BASES
from sysout_jax.showing import Interval, Table

from ..cli.showing import Report
from ..cli.tables import Section
from ..cli.verdict import Verdict, given
from .compress_page import CAPTIONS, details, write_page

Record = dict[str, Any]
BEFORE = "as trained"
E1 = "theory E1"
NOT_FINITE = "not finite"
FEW = 6.0  # bits a weight, below which it matters that a file had few


def sections(record: Record) -> Iterator[Section]:
    """For each corpus a table with a row a method; how well the noise of rounding is predicted.

    A cell is the perplexity, a geometric mean over seeds, and the change of the loss in nats: over
    seeds with the half-width of Student's interval, or for one model with that over sequences.
    """
    for corpus in dict.fromkeys(model["corpus"] for model in record["models"]):
        mine = [model for model in record["models"] if model["corpus"] == corpus]
        mine.sort(key=lambda model: str(model["label"]))  # the paper's letters first
        groups: dict[str, list[Any]] = {}
        for model in mine:
            groups.setdefault(model["name"], []).append(model)
        labels = {name: of[0]["label"] for name, of in groups.items()}
        distinct = len(set(labels.values())) == len(labels)
        headings = ["method", "bits", *(labels[name] if distinct else name for name in groups)]
        rows = [[BEFORE, "", *(_perplexity([m["loss"] for m in of]) for of in groups.values())]]
        for method in record["methods"]:
            if any(method in model["methods"] for model in mine):
                bits = _bits(mine, method)
                rows.append([method, bits, *(_cell(of, method) for of in groups.values())])
        seeds = max(map(len, groups.values()))
        title = (
            f"{corpus}: perplexity (change of the loss in nats, 95% over "
            f"{'seeds' if seeds > 1 else 'sequences'}); {seeds} seed{'s' * (seeds > 1)}, "
            f"{mine[0]['tokens']['evaluation']:,} tokens; bits a weight"
        )
        table = Table.of(title, headings, rows, "lr")
        yield Section(corpus, table, list(_rounded_before(record)), apart=True)
        boosted = [m for m in mine if any("boosted" in of for of in m["methods"].values())]
        if boosted:
            yield _allocated(corpus, boosted, record["methods"])
        if any("trained" in model for model in mine):
            yield _bought(corpus, mine, record["methods"])
    yield Section("noise", None, list(_agreement_lines(record)))
    flushed = [each for each in noise_rows(record) if "flushed" in each]
    if flushed:  # older records have none
        yield _flushed(flushed)
    for model in record["models"]:
        yield from (Section(name, table, asked=True) for name, table in details(model))


def _bits(models: list[Record], method: str) -> str:
    """Bits a weight: what a record says of a boost, or else what the method's name does."""
    said = {of["bits"] for m in models if "bits" in (of := m["methods"].get(method, {}))}
    if said:
        return " to ".join(dict.fromkeys(f"{bits:.2f}" for bits in (min(said), max(said))))
    bits = _bits_of_name(method)
    return "" if bits is None else f"{bits:.2f}"


def _bits_of_name(method: str) -> float | None:
    """What a method's name says; None where weights are not rounded, or of an older record a name
    that is refused now."""
    with contextlib.suppress(InputError):
        how = schemes.scheme(method.partition("+")[0])
        return schemes.bits(how) if isinstance(how, Rounding) else None
    return None


def _rounded_before(record: Record) -> Iterator[str]:
    """A line for each model whose weights are of a file of few bits, where methods are too."""
    if not any((_bits_of_name(method) or FEW) < FEW for method in record["methods"]):
        return
    for name, origin in (record.get("origins") or {}).items():  # older records have none
        if origin["weights"].startswith("GGUF"):
            yield (
                f"{name} was rounded before, to {origin['weights']}: weights of few bits cost less "
                "here than of the model it was made from, and nothing on the same grid"
            )
            if any(m.get("trained") == name and _rotated(m) for m in record["models"]):
                yield "rotated and folded models are on no such grid: compare activations only"


def _rotated(model: Record) -> bool:
    return str(model["conversion"]).endswith(BASES)


def _allocated(corpus: str, models: list[Record], methods: list[str]) -> Section:
    """Each boost beside the method without it: bits a weight, the loss, what climbs."""
    rows = []
    for model in models:
        for method in methods:
            found = model["methods"].get(method)
            if found is None or "bits" not in found:
                continue
            base = model["methods"].get(method.partition("+")[0])
            beside = ""
            if base is not None and base is not found:
                gain = np.subtract(*(np.asarray(of["losses"], np.float64) for of in (found, base)))
                beside = f"{bootstrap_interval(gain):±+.3f}"
            where = (
                f"{name} {','.join(map(str, of))}"
                for name, of in found.get("boosted", {}).items()
                if of
            )
            rows.append(
                [
                    model["name"], method, f"{found['bits']:.2f}",
                    f"{Interval.of(found['change']):±+.3f}", beside, "; ".join(where),
                ]
            )  # fmt: skip
    drop = len({row[0] for row in rows}) == 1
    headings = ("model", "method", "bits a weight", "change", "beside no boost", "what climbs")
    title = f"{corpus}: more bits for some matrices, nats (95% over sequences)"
    sides = "l" * (2 - drop) + "rrrl"
    table = Table.of(title, headings[drop:], [row[drop:] for row in rows], sides)
    return Section(f"{corpus}-boosts", table)


def _bought(corpus: str, models: list[Record], methods: list[str]) -> Section:
    """What each method adds to the loss of the model as trained, and how much less of that the
    converted models have."""
    trained = {(m["name"], m["seed"]): m for m in models if "trained" not in m}
    names = list(dict.fromkeys(m["trained"] for m in models if "trained" in m))
    ways = list(dict.fromkeys(m["conversion"] for m in models if "trained" in m))
    rows, said = [], []
    for name in names:
        of = {way: _pairs(models, trained, name, way) for way in ways}
        alone = [(base, base) for base in {id(b): b for p in of.values() for _, b in p}.values()]
        for method in (None, *methods):
            cells = [_rise(pairs, method) for pairs in (alone, *of.values())]
            if any(cells):
                rows.append([name, method or BEFORE, *cells])
        for way, pairs in of.items():
            said += [f"{name}, {way}: {line}" for model, _ in pairs[:1] for line in model["said"]]
    title = (
        f"{corpus}: loss beyond that of the model as trained, nats (95% over sequences or seeds); "
        "in brackets, how much of what the method adds is gone"
    )
    headings = ["model", "method", BEFORE, *ways]
    drop = len(names) == 1
    table = Table.of(title, headings[drop:], [row[drop:] for row in rows], "l" * (2 - drop) + "r")
    return Section(f"{corpus}-bought", table, said, apart=True)


def _pairs(
    models: list[Record], trained: dict[Any, Record], name: str, way: str
) -> list[tuple[Record, Record]]:
    """The converted models of all seeds, each with the one that it was."""
    return [
        (m, trained[name, m["seed"]]) for m in models
        if (m.get("trained"), m.get("conversion")) == (name, way)
        and (name, m["seed"]) in trained
    ]  # fmt: skip


def _rise(pairs: list[tuple[Record, Record]], method: str | None) -> str:
    """The loss of models under a method over that of what they were; and how much is gone."""
    rises, gone = [], []
    for model, base in pairs:
        before = np.asarray(base["losses"], np.float64)
        if method is None:
            rises.append(bootstrap_interval(np.asarray(model["losses"]) - before))
            continue
        if method not in model["methods"] or method not in base["methods"]:
            continue
        own, its = (of["methods"][method] for of in (model, base))
        if own["loss"] is None:
            return NOT_FINITE
        one, other = (np.asarray(of["losses"], np.float64) - before for of in (own, its))
        rises.append(bootstrap_interval(one))
        left = None if its["loss"] is None else ratio_interval(one, other)
        if left is not None and model is not base:
            gone.append(Interval(1.0 - left.mean, 1.0 - left.high, 1.0 - left.low))
    if not rises:
        return ""
    share = over_seeds(gone) if len(gone) == len(rises) else None
    found = f"{over_seeds(rises):±+.3f}"
    return found if share is None else f"{found} ({share:.0%})"


def _cell(models: list[Any], method: str) -> str:
    found = [model["methods"][method] for model in models if method in model["methods"]]
    if not found:
        return ""
    if any(each["loss"] is None for each in found):
        return NOT_FINITE
    change = over_seeds([each["change"] for each in found])
    return f"{_perplexity([each['loss'] for each in found])} ({change:±+.3f})"


def _perplexity(losses: list[float]) -> str:
    return f"{np.exp(np.mean(losses)):.4g}"


def agreements(record: Record) -> Iterator[tuple[str, str, str, Agreement]]:
    """(kind of tensor, bits, what is compared with the measured SQNR, how they go together), over
    all layers and models."""
    for kind in ("activation", "weight"):
        rows = [
            each for each in noise_rows(record)
            if each["kind"] == kind
        ]  # fmt: skip
        if not rows:
            continue
        for bits in rows[0]["measured"]:
            measured = _joined([each["measured"][bits] for each in rows])
            predicted = _joined([each["predicted"][bits] for each in rows])
            yield kind, bits, E1, agreement(predicted, measured)
            for name, label in (
                ("peak_over_rms", "log max/RMS"),
                ("max_median_ratio", "log max/median ratio"),
                ("kurtosis", "log kurtosis"),
            ):
                with np.errstate(divide="ignore"):  # of a tensor of zeros, which is left out
                    values = np.log(_joined([each[name] for each in rows]))
                yield kind, bits, label, agreement(values, measured)


def _flushed(tensors: Sequence[Mapping[str, Any]]) -> Section:
    """What formats with blocks set to zero, kind of tensor by kind, over all models and layers."""
    rows, said = [], []
    for kind, name in dict.fromkeys((each["kind"], each["name"]) for each in tensors):
        mine = [each for each in tensors if (each["kind"], each["name"]) == (kind, name)]
        nvfp4, mxfp4, rest, without = (
            _joined([each[key][of] for each in mine])
            for key, of in (
                ("flushed", "nvfp4"), ("flushed", "mxfp4"), ("flushed_rest", "nvfp4"),
                ("flushed_without", "nvfp4"),
            )
        )  # fmt: skip
        others = _joined([each["outlier_inputs"] for each in mine]).mean()
        of_model = max((_joined([each["flushed"]["nvfp4"]]) for each in mine), key=np.max)
        layer = int(np.argmax(of_model))
        shares = [f"{of.mean():.1%}" for of in (rest, without, mxfp4)]
        rows.append(
            [kind, name, f"{nvfp4.mean():.1%}", f"{nvfp4.max():.1%}", layer, f"{others:.1f}",
             *shares]
        )  # fmt: skip
        said.append((rest.mean() - without.mean(), f"{kind} {name}", *shares))
    cost, what, before, after, _ = max(said)
    line = (
        f"NVFP4 flushes most to zero because of outlier inputs in {what}: {before} of the other "
        f"inputs' entries beside them, {after} without them"
    )
    if cost <= 0:
        line = "outlier inputs add to what NVFP4 flushes to zero in no kind of tensor"
    headings = (
        "kind", "tensor", "NVFP4", "largest", "in layer", "outlier inputs", "others, beside them",
        "others, without", "MXFP4",
    )  # fmt: skip
    title = "Share of nonzero entries that become zero (outlier: an entry beyond 6 sigma)"
    return Section("flushed", Table.of(title, headings, rows, "llr"), [line])


def _joined(columns: list[Any]) -> np.ndarray:
    return np.concatenate([np.array(column, np.float64) for column in columns])


def _agreement_lines(record: Record) -> Iterator[str]:
    """One for each kind of tensor and width."""
    lines: dict[tuple[str, str], list[tuple[str, Agreement]]] = {}
    for kind, bits, what, found in agreements(record):
        lines.setdefault((kind, bits), []).append((what, found))
    for (kind, bits), compared in lines.items():
        said = ", ".join(f"{what} {found.pearson:.2f}" for what, found in compared)
        _, first = compared[0]
        yield (
            f"SQNR of {kind}s at {bits} bits over {first.n} tensors: {first.difference:+.1f} dB "
            f"from theory E1; correlation with {said}"
        )


def verdict(record: Record, directory: Path) -> Verdict:
    """What methods cost models as trained; what conversion saves, or which variants lose most."""
    of = given(record, "model", "variant", "seed", "corpus")
    trained = [model for model in record["models"] if "trained" not in model]
    cost = {
        method: each for method in record["methods"] if (each := _costs(trained, trained, method))
    }
    if not cost:
        return Verdict("no method is finished with a finite loss", "", "", ("runs",))
    mean = {method: _mean(each) for method, each in cost.items()}
    dearest, cheapest = (choose(mean, key=lambda of: mean[of]) for choose in (max, min))
    found = f"{dearest} costs {mean[dearest]:+.3f} nats"
    if len(mean) > 1:
        found = f"{dearest} costs most, {mean[dearest]:+.3f} nats; {cheapest} {mean[cheapest]:+.3f}"
    ways = _converted(record, list(mean))
    if ways:
        saved = {(way, of): mean[of] - after for (way, of), after in ways.items()}
        (way, most), (worst, least) = (pick(saved, key=lambda of: saved[of]) for pick in (max, min))
        return Verdict(
            found, f"after {way} {most} costs {ways[way, most]:+.3f} of {mean[most]:+.3f}",
            f"least: {least}, {worst}: {ways[worst, least]:+.3f} of {mean[least]:+.3f}",
            ("analyze", *of) if way.endswith(BASES)  # which so.rotate writes, and no command
            else ("convert", *of, f"--weak={way}", "--out=converted"),
        )  # fmt: skip
    (least, low), (most, high) = (pick(cost[dearest], key=lambda x: x[1]) for pick in (min, max))
    return Verdict(
        found, f"it costs {most} {high:+.3f}, {least} {low:+.3f}" if most != least else "",
        _off(record),
        ("analyze", *of) if len(trained) < len(record["models"])  # a conversion did nothing
        else ("compress", *of, "--conversions=bound,prefix+bound"),
    )  # fmt: skip


def _converted(record: Record, methods: list[str]) -> dict[tuple[str, str], float]:
    """(conversion, method) -> the mean cost of the method in models so converted."""
    models = [
        model for model in record["models"]
        if model.get("kind") in CONVERTED or ("trained" in model and _rotated(model))
    ]  # fmt: skip
    trained = [model for model in record["models"] if "trained" not in model]
    return {
        (way, method): _mean(found)
        for way in dict.fromkeys(model["conversion"] for model in models)
        for method in methods
        if (found := _costs([m for m in models if m["conversion"] == way], trained, method))
    }


def _mean(found: list[tuple[str, float]]) -> float:
    return float(np.mean([change for _, change in found]))


def _costs(models: list[Record], trained: list[Record], method: str) -> list[tuple[str, float]]:
    """The label of each model whose loss is finite, and the loss beyond that of the same model as
    trained."""
    before = {(m["name"], m["seed"]): m["loss"] for m in trained}
    return [
        (m["label"], loss - before[m.get("trained", m["name"]), m["seed"]])
        for m in models
        if method in m["methods"] and (loss := m["methods"][method]["loss"]) is not None
    ]


def _off(record: Record) -> str:
    """Where theory E1 is furthest from what was measured."""
    found = [
        (abs(each.difference), kind, bits, each) for kind, bits, what, each in agreements(record)
        if what == E1 and np.isfinite(each.difference)
    ]  # fmt: skip
    if not found:
        return ""
    _, kind, bits, worst = max(found, key=lambda each: each[0])
    said = f"theory E1 is {worst.difference:+.1f} dB off for {kind}s at {bits} bits"
    return said + (f", correlation {worst.pearson:.2f}" if np.isfinite(worst.pearson) else "")


def _drawn(record: Record, directory: Path) -> dict[str, list[Path]]:
    """The figures, and the page that has them."""
    names = [name + end for name in CAPTIONS for end in ("", "-*")]
    figures = plots.draw(record, directory / "figures", names)
    *said, _ = verdict(record, directory)
    return {"figures": figures, "report": [write_page(record, directory, sections(record), said)]}


REPORT = Report(sections, verdict, _drawn)
