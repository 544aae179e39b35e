"""The tables of the page, as HTML made from a record."""

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sysout_jax.report.words import row_of

Record = Mapping[str, Any]


def table(headings: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table that scrolls by itself where the screen is narrow."""
    head = "".join(f"<th>{html.escape(heading)}</th>" for heading in headings)
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(_cell(value))}</td>' for value in row)}</tr>"
        for row in rows
    )
    whole = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="wide"><table>{whole}</table></div>'


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _interval(values: Sequence[float | None]) -> str:
    mean, low, high = values
    if mean is None or low is None or high is None:
        return "–" if mean is None else f"{mean:.3g}"
    return f"{mean:.3g} [{low:.3g}, {high:.3g}]"


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
    """The tables of one part; empty where its figures and sentences say it all."""
    make = _TABLES.get(name)
    return make(record["parts"][name], record) if make else ""


def _existence(part: Record, record: Record) -> str:
    weights = part["weights"]["outliers"] or part["weights"]["largest"]
    headings = ("weight", "layer", "input", "output", "value", "over mean")
    rows = [
        [w["matrix"], w["layer"], row_of(record, w), w["output"], w["value"], w["ratio"]]
        for w in weights
    ]
    title = "Weight outliers" if part["weights"]["outliers"] else "Largest |W_down| of each layer"
    return f"<h3>{title}</h3>{table(headings, rows)}"


def _positions(part: Record, record: Record) -> str:
    names = part["class_names"]
    rows = [["all tokens", "", "", *(f"{rate:.1%}" for rate in part["base_rate"]), "", ""]]
    for name, kind in part["kinds"].items():
        tokens = ", ".join(f"{piece} ({count})" for piece, count in kind["tokens"])
        places = _places(kind["positions"])
        rows.append([name, kind["flagged"], kind["sequences"], *kind["classes"], tokens, places])
    classes = table(
        ("detector", "tokens", "sequences", *names, "most frequent tokens", "positions"), rows
    )
    heads = [
        [layer, min(row), sum(row) / len(row), max(row)] for layer, row in enumerate(part["heads"])
    ]
    shares = table(("layer", "lowest head", "mean", "highest head"), heads)
    return (
        f"<h3>Which tokens</h3>{classes}<h3>Attention on {part['heads_of']}</h3>{shares}"
        f"<h3>Projection matrices</h3>{_matrices(part['weights'])}"
    )


def _matrices(weights: Record) -> str:
    """Each projection in the layer where its largest weight stands out most."""
    rows = []
    for at, name in enumerate(weights["matrices"]):
        ratios = [row[at] for row in weights["ratio"]]
        layer = ratios.index(max(ratios))
        others = (weights[key][layer][at] for key in ("row_ratio", "column_ratio", "calibrated"))
        rows.append([name, layer, ratios[layer], *others])
    headings = ("matrix", "layer", "max/mean", "of a row", "of a column", "beyond a normal null")
    return table(headings, rows)


def _relations(part: Record, record: Record) -> str:
    rows = [
        [
            f"{row['given']} → {row['found']}", row["on"], row["sequences"],
            f"{row['mean_given']:.3g} / {row['mean_found']:.3g}", _interval(row["precision"]),
            row["null_precision"], _interval(row["recall"]), _interval(row["jaccard"]),
            row["null_jaccard"], row["p_value"],
        ]
        for row in part["rows"]
    ]  # fmt: skip
    headings = (
        "A → B", "on", "sequences", "|A| / |B|", "precision [95%]", "shuffled", "recall [95%]",
        "Jaccard [95%]", "shuffled", "p",
    )  # fmt: skip
    return table(headings, rows)


def _seeds(part: Record, record: Record) -> str:
    rows = [
        [row["given"], row["on"], row["items"],
         f"{row['mean_given']:.3g} / {row['mean_found']:.3g}", _interval(row["jaccard"]),
         row["null_jaccard"], row["p_value"]]
        for row in part["rows"]
    ]  # fmt: skip
    seeds = ", ".join(map(str, part["seeds"]))
    headings = ("which", "on", "of", "number", "Jaccard of pairs [95%]", "shuffled", "p")
    return f"<h3>Pairs of the seeds {seeds}</h3>{table(headings, rows)}"


def _measures(part: Record, record: Record) -> str:
    scores = [
        [row["name"], row["over"], _interval(row["value"]), _interval(row["untrained"])]
        for row in part["scores"]
    ]
    found = [
        [row["label"], _interval(row["count"]), _interval(row["untrained"]), row["of"],
         _places(row["places"])]
        for row in part["detectors"]
    ]  # fmt: skip
    beside = [
        [row["what"], row["null"], row["layer"], row["flagged"], f"{row['sequences']}/{row['of']}",
         row["evidence"], row["limit"], row["control"], _places(row["places"])]
        for row in part["calibrated"]
    ]  # fmt: skip
    untrained = f"{part['initialisations']} untrained [95%]"
    of_scores = table(("measure@tap", "of layers, heads", "here [95%]", untrained), scores)
    of_detectors = table(("detector", "here [95%]", untrained, "which", "where (sequences)"), found)
    headings = (
        "what", "null", "layer", "flagged", "in", "-log10 p of largest", "most it can be",
        "flagged in another untrained model", "where (sequences)",
    )  # fmt: skip
    return (
        f"<h3>Measures</h3>{of_scores}<h3>Detectors</h3>{of_detectors}"
        f"<h3>Calibrated: false discovery rate 0.01</h3>{table(headings, beside)}"
    )


def _places(places: Sequence[Sequence[int]]) -> str:
    return ", ".join(f"{place} ({count})" for place, count in places)


def _interventions(part: Record, record: Record) -> str:
    rows = [["before", "", "", "", part["loss"][0], part["perplexity"], ""]]
    for e in part["effects"]:
        who = f"{e['kind']}: {e['detector']}" + (" (random control)" if e["control"] else "")
        several = "several" if e["kind"] == "weights" else "all"
        layer = several if e["layer"] is None else e["layer"]
        rows.append(
            [who, e["treatment"], layer, f"{e['edited']:.3g}", e["loss"], e["perplexity"],
             _interval(e["change"])]
        )  # fmt: skip
    headings = ("what", "treatment", "layer", "changed", "loss", "perplexity", "change [95%]")
    return table(headings, rows)


def _dynamics(part: Record, record: Record) -> str:
    rows = []
    for row in part["emergence"]:
        fits = "; ".join(
            f"{f['law']}: rms residual {f['residual']:.2g}, R² {f['r_squared']:.2f}"
            for f in row["fits"]
        )
        rows.append([row["kind"], row["measure"], row["first"], row["last"], row["step"], fits])
    headings = ("kind", "measure", "first", "last", "half way at step", "growth laws")
    order = table(headings, rows)
    names = list(part["measures"])
    steps = [
        [step, *(part["measures"][name][at] for name in names)]
        for at, step in enumerate(part["steps"])
    ]
    every = table(("step", *names), steps)
    return f"{order}<details><summary>All measures at every checkpoint</summary>{every}</details>"


_TABLES: Mapping[str, Callable[[Record, Record], str]] = {
    "existence": _existence,
    "positions": _positions,
    "relations": _relations,
    "measures": _measures,
    "interventions": _interventions,
    "dynamics": _dynamics,
    "seeds": _seeds,
}
