"""What experiments.compress says: tables of perplexity, and how well noise is predicted."""

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax import plots
from sysout_jax.analysis.compress import schemes
from sysout_jax.analysis.compress.schemes import Rounding
from sysout_jax.analysis.statistics import bootstrap_interval, over_seeds, ratio_interval
from sysout_jax.converting import CONVERTED
from sysout_jax.errors import InputError
from sysout_jax.plots.compression import noise_rows
from sysout_jax.rotating import BASES
from sysout_jax.showing import Interval, Table

from ..cli.showing import Report
from ..cli.tables import Section
from ..cli.verdict import LINE, Verdict, conversion, few, of_model, of_one
from .compress_noise import agreement_lines, flushed_section, furthest
from .compress_page import CAPTIONS, details, write_page

Record = dict[str, Any]
Key = tuple[str, int | None]  # name and seed
BEFORE = "as trained"
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
    yield Section("noise", None, list(agreement_lines(record)))
    flushed = [each for each in noise_rows(record) if "flushed" in each]
    if flushed:  # older records have none
        yield flushed_section(flushed)
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


def verdict(record: Record, directory: Path) -> Verdict:
    """What methods cost models as trained; what conversion saves, or which variants lose most.

    Means are over the same models: those in which most methods are finished.
    """
    trained = [model for model in record["models"] if "trained" not in model]
    most = max((len(model["methods"]) for model in trained), default=0)
    whole = [model for model in trained if len(model["methods"]) == most]
    shared = [m for m in record["methods"] if all(m in model["methods"] for model in whole)]
    before = {_key(model): model["loss"] for model in trained}
    cost = {method: _costs(whole, method, before) for method in shared}
    mean = {m: value for m in shared if np.isfinite(value := _mean(cost[m].values()))}
    if not mean:
        return Verdict("no method is finished with a finite loss", "", "", ("runs",))
    dearest, cheapest = (choose(mean, key=lambda of: mean[of]) for choose in (max, min))
    found = f"{dearest} costs {mean[dearest]:+.3f} nats"
    if len(mean) > 1:
        found = f"{dearest} costs most, {mean[dearest]:+.3f} nats; {cheapest} {mean[cheapest]:+.3f}"
    ways = _converted(record, {method: cost[method] for method in mean}, before)
    if ways:
        saved = {each: as_trained - after for each, (as_trained, after) in ways.items()}
        (way, most_of), (worst, least_of) = (
            pick(saved, key=lambda of: saved[of]) for pick in (max, min)
        )
        best, last = (
            "{1:+.3f} of {0:+.3f}".format(*ways[of]) for of in ((way, most_of), (worst, least_of))
        )
        return Verdict(
            found, f"after {way} {most_of} costs {best}", f"least: {least_of}, {worst}: {last}",
            # What so.rotate writes, no command does.
            ("analyze", *of_one(record)) if way.endswith(BASES)
            else conversion(of_one(record), f"--weak={way}"),
        )  # fmt: skip
    labels = {_key(model): model["label"] for model in whole}
    low, high = (choose(cost[dearest], key=lambda of: cost[dearest][of]) for choose in (min, max))
    broken = [method for method in shared if method not in mean]
    return Verdict(
        found, f"it costs {labels[high]} {cost[dearest][high]:+.3f}, {labels[low]} "
        f"{cost[dearest][low]:+.3f}" if high != low else "",
        f"no finite loss: {few(broken, LINE - 16)}" if broken else furthest(record),
        ("analyze", *of_one(record)) if len(trained) < len(record["models"])  # it did nothing
        else ("compress", *of_model(record), "--conversions=bound,prefix+bound"),
    )  # fmt: skip


def _key(model: Record) -> Key:
    """Name and seed of the model as trained that a model was made of."""
    return str(model.get("trained", model["name"])), model["seed"]


def _converted(
    record: Record, cost: Mapping[str, Mapping[Key, float]], losses: Mapping[Key, float]
) -> dict[tuple[str, str], tuple[float, float]]:
    """(conversion, method) -> the mean cost of the method in the same models before and after.

    Args:
      record: of which models so converted are taken.
      cost: method -> what it costs each model as trained.
      losses: of the models as trained.
    """
    models = [
        model for model in record["models"]
        if model.get("kind") in CONVERTED or ("trained" in model and _rotated(model))
    ]  # fmt: skip
    found = {}
    for way in dict.fromkeys(model["conversion"] for model in models):
        for method, before in cost.items():
            mine = [m for m in models if m["conversion"] == way and method in m["methods"]]
            after = _costs(mine, method, losses)
            both = [key for key in before if np.isfinite(after.get(key, np.nan))]
            if both:
                found[way, method] = (
                    _mean(before[key] for key in both), _mean(after[key] for key in both),
                )  # fmt: skip
    return found


def _mean(found: Iterable[float]) -> float:
    return float(np.mean(list(found)))


def _costs(models: list[Record], method: str, before: Mapping[Key, float]) -> dict[Key, float]:
    """Model -> its loss under a method beyond that of the same model as trained; infinite where it
    is not finite."""
    losses = {_key(model): model["methods"][method]["loss"] for model in models}
    return {key: np.inf if loss is None else loss - before[key] for key, loss in losses.items()}


def _drawn(record: Record, directory: Path) -> dict[str, list[Path]]:
    """The figures, and the page that has them."""
    names = [name + end for name in CAPTIONS for end in ("", "-*")]
    figures = plots.draw(record, directory / "figures", names)
    *said, _ = verdict(record, directory)
    return {"figures": figures, "report": [write_page(record, directory, sections(record), said)]}


REPORT = Report(sections, verdict, _drawn)
