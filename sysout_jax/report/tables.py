"""The tables of an analysis, made from its record: of the page, a notebook, and pandas."""

import html
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sysout_jax.analysis.intervene.relocation import relocated
from sysout_jax.report.dynamics import growth_table
from sysout_jax.report.experts import expert_table
from sysout_jax.report.words import neuron, row_of
from sysout_jax.showing import WORDS, Interval, Table

Record = Mapping[str, Any]
WIDTH, GAP = 112, 3  # of a page, and between two columns, in characters of a table
FOLDED = 24  # rows from which on the page shows a table when it is asked to


def about(record: Record) -> str:
    """What was analysed."""
    facts = [
        f"{record['parameters']:,} parameters" if "parameters" in record else "",
        f"seed {record['seed']}" if "seed" in record else "",
        f"{record['sequences']} sequences of {record['seq_len']} tokens"
        + (f" of {record['corpus']}" if "corpus" in record else ""),
    ]
    prompt = " ".join(record["prompt"])
    unfinished = [name for name in record.get("asked", []) if name not in record["parts"]]
    missing = (
        f"<p><strong>This run is {html.escape(str(record['status']))}: not finished are "
        f"{html.escape(', '.join(unfinished))}.</strong></p>"
        if unfinished
        else ""
    )
    return (
        f"<p>{html.escape('; '.join(fact for fact in facts if fact))}. Prompt: "
        f"<code>{html.escape(prompt)}</code></p>{missing}"
    )


def of_part(record: Record, name: str) -> str:
    """The tables of one part, as HTML."""
    return "".join(map(shown, _TABLES[name](record["parts"][name], record).values()))


def shown(table: Table) -> str:
    """A table on a page, with its title; a long one is folded, a wide one in parts."""
    title, body = html.escape(table.title), "".join(part.to_html() for part in _parts(table))
    if len(table.rows) > FOLDED:
        return f"<details><summary>{title}</summary>{body}</details>"
    return f"<h3>{title}</h3>{body}"


def _parts(table: Table) -> list[Table]:
    """A table in parts that fit on a page, each with the first column."""
    widths = [
        GAP + min(WORDS, max(map(len, (*re.split("[ _@/]", heading), *cells))))
        for heading, *cells in zip(*table.texts, strict=True)
    ]
    cuts = [[0]]
    for at in range(1, len(widths)):
        if sum(widths[n] for n in cuts[-1]) + widths[at] > WIDTH:
            cuts.append([0])
        cuts[-1].append(at)
    return [
        Table.of(table.title, [table.headings[at] for at in cut],
                 [[row[at] for at in cut] for row in table.rows], table.align)
        for cut in cuts
    ]  # fmt: skip


def tables(record: Record) -> dict[str, Table]:
    """Every table of a record: "PART", or "PART-WHAT" for a part's others."""
    return {
        f"{name}-{what}" if what else name: table
        for name, part in record["parts"].items()
        for what, table in _TABLES[name](part, record).items()
    }


READOUTS = {
    "kl": "KL, nats", "surprisal": "surprisal", "entropy": "entropy", "accuracy": "accuracy",
    "slope": "slope on frequencies", "spearman": "Spearman",
}  # fmt: skip
Tables = dict[str, Table]  # "" is a part's main one


def _existence(part: Record, record: Record) -> Tables:
    def features(found: Record) -> str:
        kind = "neuron" if found["detector"] == "an_down_in" else "channel"
        named = found["features"]
        labels = [neuron(record, i) for i in named] if kind == "neuron" else map(str, named)
        return f"{kind} {', '.join(labels)}" if named else ""

    found = [
        [each["detector"], _listed(each["layers"]), _listed(each["tokens"]), features(each),
         each["largest"]]
        for each in part["found"]
    ]  # fmt: skip
    weights = part["weights"]["outliers"] or part["weights"]["largest"]
    headings = ("weight", "layer", "input", "output", "value", "over mean")
    rows = [
        [w["matrix"], w["layer"], row_of(record, w), w["output"], w["value"], w["ratio"]]
        for w in weights
    ]
    title = "Weight outliers" if part["weights"]["outliers"] else "Largest |W_down| of each layer"
    of_detectors = ("detector", "layers", "tokens", "features", "largest over threshold")
    return {
        "": Table.of("Outliers of the prompt", of_detectors, found),
        "weights": Table.of(title, headings, rows),
    }


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _positions(part: Record, record: Record) -> Tables:
    names = part["class_names"]
    rows = [["all tokens", "", "", *(f"{rate:.1%}" for rate in part["base_rate"]), "", ""]]
    for name, kind in part["kinds"].items():
        tokens = ", ".join(f"{piece!r} ({count})" for piece, count in kind["tokens"])
        places = _places(kind["positions"])
        rows.append([name, kind["flagged"], kind["sequences"], *kind["classes"], tokens, places])
    headings = ("detector", "tokens", "sequences", *names, "most frequent tokens", "positions")
    heads = [
        [layer, min(row), sum(row) / len(row), max(row)] for layer, row in enumerate(part["heads"])
    ]
    of_heads = ("layer", "lowest head", "mean", "highest head")
    found = part.get("experts")  # older records, and models without experts, have none
    experts = {"experts": expert_table(found)} if found else {}
    made = {
        "": Table.of("Which tokens", headings, rows),
        "heads": Table.of(f"Attention on {part['heads_of']}", of_heads, heads),
        "matrices": _matrices(part["weights"]),
    }
    return made | experts


def _matrices(weights: Record) -> Table:
    """Each projection in the layer where its largest weight stands out most."""
    rows = []
    for at, name in enumerate(weights["matrices"]):
        ratios = [row[at] for row in weights["ratio"]]
        layer = ratios.index(max(ratios))
        others = (weights[key][layer][at] for key in ("row_ratio", "column_ratio", "calibrated"))
        rows.append([name, layer, ratios[layer], *others])
    headings = ("matrix", "layer", "max/mean", "of a row", "of a column", "beyond a normal null")
    return Table.of("Projection matrices", headings, rows)


def _relations(part: Record, record: Record) -> Tables:
    rows = [
        [
            f"{row['given']} → {row['found']}", row["on"], row["sequences"],
            f"{row['mean_given']:.3g} / {row['mean_found']:.3g}", Interval.of(row["precision"]),
            row["null_precision"], Interval.of(row["recall"]), Interval.of(row["jaccard"]),
            row["null_jaccard"], row["p_value"],
        ]
        for row in part["rows"]
    ]  # fmt: skip
    headings = (
        "A → B", "on", "sequences", "|A| / |B|", "precision [95%]", "shuffled", "recall [95%]",
        "Jaccard [95%]", "shuffled Jaccard", "p",
    )  # fmt: skip
    return {"": Table.of("A beside B", headings, rows)}


def _seeds(part: Record, record: Record) -> Tables:
    rows = [
        [row["given"], row["on"], row["items"],
         f"{row['mean_given']:.3g} / {row['mean_found']:.3g}", Interval.of(row["jaccard"]),
         row["null_jaccard"], row["p_value"]]
        for row in part["rows"]
    ]  # fmt: skip
    seeds = ", ".join(map(str, part["seeds"]))
    headings = ("which", "on", "of", "number", "Jaccard of pairs [95%]", "shuffled", "p")
    return {"": Table.of(f"Pairs of the seeds {seeds}", headings, rows)}


def _measures(part: Record, record: Record) -> Tables:
    scores = [
        [row["name"], row["over"], Interval.of(row["value"]), Interval.of(row["untrained"])]
        for row in part["scores"]
    ]
    found = [
        [row["label"], Interval.of(row["count"]), Interval.of(row["untrained"]), row["of"],
         _places(row["places"])]
        for row in part["detectors"]
    ]  # fmt: skip
    beside = [
        [row["what"], row["null"], row["layer"], row["flagged"], f"{row['sequences']}/{row['of']}",
         row["evidence"], row["limit"], row["control"], _places(row["places"])]
        for row in part["calibrated"]
    ]  # fmt: skip
    untrained = f"{part['initialisations']} untrained [95%]"
    headings = (
        "what", "null", "layer", "flagged", "in", "-log10 p of largest", "most it can be",
        "flagged in an untrained model", "where (sequences)",
    )  # fmt: skip
    of_scores = ("measure@tap", "of layers, heads", "here [95%]", untrained)
    of_detectors = (
        "detector, by its paper's threshold",
        "here [95%]",
        untrained,
        "which",
        "where (sequences)",
    )
    return {
        "": Table.of("Measures", of_scores, scores),
        "detectors": Table.of("Detectors", of_detectors, found),
        "calibrated": Table.of("Calibrated: false discovery rate 0.01", headings, beside),
    }


def _dimensions(part: Record, record: Record) -> Tables:
    listed = [
        [each["index"], each["score"], each["share"], each["median"], each["constancy"],
         each["gain"], each["peak"], "yes" if each["massive"] else "no"]
        for each in part["dimensions"]
    ]  # fmt: skip
    of_listed = (
        "dimension", "score", "in resamples", "median |x|", "|mean|/rms", "final gain over mean",
        "peak over median |h|", "massive",
    )  # fmt: skip
    beside = [
        [each["other"], len(each["dimensions"]), each["shared"], each["expected"], each["p_value"]]
        for each in part["overlaps"]
    ]
    stages = [
        [each["step"], _listed(each["dimensions"]), each["largest"], each["kurtosis"],
         each["shared"], None if each["kl"] is None else Interval.of(each["kl"])]
        for each in part["stages"]
    ]  # fmt: skip
    of_stages = ("step", "dimensions", "largest score", "kurtosis", "Jaccard with the last", "KL")
    vectors = [[at, v["share"], v["on_outliers"]] for at, v in enumerate(part["vectors"])]
    made = {
        "": _readouts(part["ablations"]),
        "list": Table.of("Outlier dimensions", of_listed, listed),
        "overlaps": Table.of(
            "Beside other dimensions", ("other", "number", "shared", "at random", "p"), beside
        ),
        "vectors": Table.of(
            "Singular vectors of the last W_down", ("vector", "of |W|²", "in them"), vectors
        ),
    }
    return made | ({"steps": Table.of("Over checkpoints", of_stages, stages)} if stages else {})


def _readouts(ablations: Sequence[Record]) -> Table:
    """A row for each way to read the final state; random sets together, lowest to highest."""
    headings = (
        "read from", "dimensions", *READOUTS.values(), "different predictions"
    )  # fmt: skip
    groups: dict[tuple[str, bool], list[Record]] = {}
    for each in ablations:
        groups.setdefault((each["of"], each["kept"]), []).append(each)
    rows = []
    for (of, kept), members in groups.items():
        which = f"{of}, {len(members)} sets" if len(members) > 1 else of
        named = f"{which} alone" if kept else f"all but {which}" if of else "all dimensions"
        rows.append([
            named, members[0]["count"] or None,
            *(_range([each["values"][name] for each in members], name) for name in READOUTS),
            _span([float(each["distinct"]) for each in members], 0),
        ])  # fmt: skip
    return Table.of("Predictions", headings, rows)


def _range(intervals: Sequence[Sequence[float | None]], name: str) -> str:
    """A value with its bootstrap interval; of several sets the range of their values."""
    digits = 3 if name == "accuracy" else 2
    if len(intervals) == 1:
        return f"{Interval.of(intervals[0]):.{digits}f}"
    return _span([each[0] for each in intervals], digits)


def _span(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None]
    ends = [f"{end:,.{digits}f}" for end in (min(known), max(known))] if known else [""]
    return " to ".join(dict.fromkeys(ends))


def _places(places: Sequence[Sequence[int]]) -> str:
    return ", ".join(f"{place} ({count})" for place, count in places)


def _interventions(part: Record, record: Record) -> Tables:
    rows = [["before", "", "", "", part["loss"][0], part["perplexity"], ""]]
    for e in part["effects"]:
        who = f"{e['kind']}: {e['detector']}" + (" (random control)" if e["control"] else "")
        first = part["sink"]["first"] if "sink" in part else 0  # older records: all layers
        several = "several" if e["kind"] == "weights" else f"{first} on" if first else "all"
        layer = several if e["layer"] is None else e["layer"]
        rows.append(
            [who, e["treatment"], layer, f"{e['edited']:.3g}", e["loss"], e["perplexity"],
             Interval.of(e["change"])]
        )  # fmt: skip
    headings = ("what", "treatment", "layer", "changed", "loss", "perplexity", "change [95%]")
    made = {"": Table.of("What taking them away costs", headings, rows)}
    return made | (_forms(part) if "sink" in part else {})


def _forms(part: Record) -> Tables:
    """The sink's forms, and every token beside them."""
    rows = []
    for form in part["forms"]["forms"]:
        moved = form["relocation"]
        rows.append(
            [form["label"], form["loss"], Interval.of(form["change"]),
             form["share"] and Interval.of(form["share"]), moved["peak"], moved["attention"],
             "yes" if relocated(moved) else "no"]
        )  # fmt: skip
    headings = (
        "the sink", "loss", "change [95%]", "of what taking it away costs [95%]",
        "largest |h| of another token", "largest attention to another", "relocates",
    )  # fmt: skip
    names = list(part["forms"]["peaks"])
    columns = [part["forms"][of][name] for of in ("peaks", "attention") for name in names]
    tokens = [[token, *row] for token, row in enumerate(zip(*columns, strict=True))]
    of_tokens = (
        "token", *(f"|h|, {SHOWN[name]}" for name in names),
        *(f"attention, {SHOWN[name]}" for name in names),
    )  # fmt: skip
    return {
        "forms": Table.of("What can take the sink's place", headings, rows),
        "tokens": Table.of("Every token, where the sink is read", of_tokens, tokens),
    }


SHOWN = {"trained": "as trained", "dropped": "sink taken away", "everywhere": "in every layer"}


def _dynamics(part: Record, record: Record) -> Tables:
    rows = []
    for row in part["emergence"]:
        fits = "; ".join(
            f"{f['law']}: rms residual {f['residual']:.2g}, R² {f['r_squared']:.2f}"
            for f in row["fits"]
        )
        rows.append([row["kind"], row["measure"], row["first"], row["last"], row["step"], fits])
    headings = ("kind", "measure", "first", "last", "half way at step", "growth laws")
    laws = part.get("growth")  # older records have none
    names = list(part["measures"])
    steps = [
        [step, *(part["measures"][name][at] for name in names)]
        for at, step in enumerate(part["steps"])
    ]
    return {
        "": Table.of("Order of emergence", headings, rows),
        "steps": Table.of("All measures at every checkpoint", ("step", *names), steps),
    } | ({"growth": growth_table(laws)} if laws and laws["laws"] else {})


def _lifecycle(part: Record, record: Record) -> Tables:
    stages = part["trace"]
    rows = [[layer, *values] for layer, values in enumerate(zip(*stages.values(), strict=True))]
    where = f"The value at token {part['token']}, channel {part['channel']}"
    names = ("token", "born", "gone", "over_median", "cosine", "received")
    others = [
        [record["prompt"][each["token"]], *(each[name] for name in names)]
        for each in part.get("others", ())  # older records have none
    ]
    said = "Other tokens whose state stands out"
    return {
        "": Table.of(where, ("layer", *stages), rows),
        "others": Table.of(said, ("piece", *names), others),
    }


def _roles(part: Record, record: Record) -> Tables:
    of_heads = (
        "attention", "scale", "scale_sd", "error", "drain", "sink", "no_op", "broadcast",
        "stable_rank",
    )  # fmt: skip
    names = [name for name in of_heads if name in part]  # older records have no rank
    layers, heads = len(part["attention"]), len(part["attention"][0])
    rows = [
        [layer, head, *(part[name][layer][head] for name in names)]
        for layer in range(layers)
        for head in range(heads)
    ]
    return {"": Table.of(f"Heads, by {part['outliers']}", ("layer", "head", *names), rows)}


_TABLES: Mapping[str, Callable[[Record, Record], Tables]] = {
    "existence": _existence,
    "positions": _positions,
    "relations": _relations,
    "lifecycle": _lifecycle,
    "roles": _roles,
    "measures": _measures,
    "dimensions": _dimensions,
    "interventions": _interventions,
    "dynamics": _dynamics,
    "seeds": _seeds,
}
