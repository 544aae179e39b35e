"""The findings in words: each sentence is computed from the record."""

from collections.abc import Mapping
from typing import Any

from sysout_jax.analysis.intervene.relocation import relocated
from sysout_jax.plots.lifecycle import given_by_seeing
from sysout_jax.plots.stems import of_expert
from sysout_jax.report.dynamics import dynamics_lines
from sysout_jax.report.experts import expert_lines
from sysout_jax.report.measures import listed, measures_lines
from sysout_jax.report.sinks import sink_lines

DETECTORS = {
    "an_block_out": (
        "activation outliers at block_out (An et al. 2025: |h| > {activation_ratio:g} x mean)"
    ),
    "an_down_in": (
        "activation outliers at down_in (An et al. 2025: |h| > {activation_ratio:g} x mean)"
    ),
    "sun": (
        "massive activations (Sun et al. 2024: |h| > {massive_value:g} and > {massive_ratio:g} x "
        "median)"
    ),
    "an_attention": (
        "attention outliers (An et al. 2025: a key with {attention_share:g} of all attention, and "
        "{attention_excess:g} x what uniform attention gives)"
    ),
    "an_weight": "weight outliers (An et al. 2025: |W| > {weight_ratio:g} x mean)",
    "super_weight": "super weight (Yu et al. 2024: down_in and mlp_out above 50)",
    "largest": "the largest value, whatever its size",
}


def detector(record: Mapping[str, Any], name: str) -> str:
    """A detector with its thresholds in this record."""
    return DETECTORS[name].format(**record["thresholds"])


def headline(record: Mapping[str, Any], part: str) -> list[str]:
    """What one part of a record says.

    Args:
      record: of the analysis experiment, as JSON holds it.
      part: a key of record["parts"].
    """
    return _SENTENCES[part](record, record["parts"][part])


def _existence(record: Mapping[str, Any], part: Mapping[str, Any]) -> list[str]:
    lines, pieces = [], record["prompt"]
    for found in part["found"]:
        what = f"in the prompt, {detector(record, found['detector'])}"
        if not found["layers"]:
            lines.append(f"{what}: none; the largest is {found['largest']:.2g} of the threshold")
            continue
        tokens = listed([f"{t} {pieces[t]!r}" for t in found["tokens"]])
        kind = "neuron" if found["detector"] == "an_down_in" else "channel"
        named = found["features"]
        if kind == "neuron":
            named = [neuron(record, index) for index in named]
        features = f", {_plural(kind, named)}" if named else ""
        lines.append(f"{what}: {_plural('layer', found['layers'])}, token {tokens}{features}")
    weights = part["weights"]
    what = detector(record, "an_weight")
    if weights["outliers"]:
        entries = [
            f"{w['matrix']}[{row_of(record, w)}, {w['output']}] of layer {w['layer']}"
            for w in weights["outliers"]
        ]
        lines.append(f"{what}: {listed(entries)}")
    else:
        top = max(max(row) for row in weights["ratio"])
        lines.append(f"{what}: none; the largest ratio is {top:.3g}")
    return lines


def neuron(record: Mapping[str, Any], index: int) -> str:
    """A neuron by its number; of a mixture, by its number in its expert."""
    model = record["model"]
    if not model.get("experts"):
        return str(index)
    return of_expert(index, model["mlp_width"] or 4 * model["width"])


def row_of(record: Mapping[str, Any], weight: Mapping[str, Any]) -> str:
    """The input of a flagged weight; of a mixture's MLP, in its expert."""
    if weight["matrix"] == "down":
        return neuron(record, weight["input"])
    if weight["matrix"] in ("gate", "up") and record["model"].get("experts"):
        return of_expert(weight["input"], record["model"]["width"])
    return str(weight["input"])


def _positions(record: Mapping[str, Any], part: Mapping[str, Any]) -> list[str]:
    lines = []
    names, base = part["class_names"], part["base_rate"]
    for name, kind in part["kinds"].items():
        what = detector(record, name)
        if not kind["flagged"]:
            lines.append(f"{what}: in none of {part['sequences']} sequences of text")
            continue
        shares = [
            f"{count / kind['flagged']:.0%} {label} (text: {rate:.0%})"
            for label, count, rate in zip(names, kind["classes"], base, strict=True)
            if count
        ]
        tokens = listed([f"{piece!r} ({count})" for piece, count in kind["tokens"]])
        lines.append(
            f"{what}: in {kind['sequences']} of {part['sequences']} sequences of text, "
            f"{kind['flagged']} tokens: {listed(shares)}; most often {tokens}"
        )
    heads = [max(row) for row in part["heads"]]
    layer = heads.index(max(heads))
    lines.append(
        f"attention on {part['heads_of']}: at most {max(heads):.2f} of a head's, in layer {layer}"
    )
    return lines + expert_lines(record, part)


def _relations(record: Mapping[str, Any], part: Mapping[str, Any]) -> list[str]:
    lines = []
    for row in part["rows"]:
        name = f"{row['given']} -> {row['found']} on {row['on']}"
        if not row["sequences"]:
            absent = [row[which] for which in ("given", "found") if not row[f"mean_{which}"]]
            why = f"no outliers in {' and '.join(absent)}" if absent else "never in one sequence"
            lines.append(f"{name}: not defined, {why}")
        else:
            lines.append(
                f"{name}: precision {row['precision'][0]:.2f} "
                f"(shuffled: {row['null_precision']:.2f}), recall {row['recall'][0]:.2f}, "
                f"p = {row['p_value']:.2g}"
            )
    return lines


def _lifecycle(record: Mapping[str, Any], part: Mapping[str, Any]) -> list[str]:
    piece = record["prompt"][part["token"]]
    up, gone = part["emergence"], part["disappearance"]
    lines = [
        f"of the prompt, the largest activation relative to its layer's mean is "
        f"{part['peak']:.3g} = {part['over_mean']:.3g} x mean, at token {part['token']} {piece!r}, "
        f"channel {part['channel']}, layer {part['peak_layer']}{_larger(part)}"
        + ("" if part["outlier"] else "; no detector calls it an outlier")
    ]
    form = ""
    if up["rank_one_share"] is not None:
        form = f"; the channel's form is rank one to {up['rank_one_share']:.0%} (theory D1)"
    lines.append(
        f"emergence: layer {up['layer']} adds {up['gained']:.3g}, by its {up['writer']}; neuron "
        f"{neuron(record, up['neuron'])} writes {up['neuron_share']:.0%} of the MLP's part{form}"
    )
    lines.append(_spread(record, part))
    if gone is None:
        lines.append("disappearance: no later layer makes it smaller")
    else:
        lines.append(
            f"disappearance: layer {gone['layer']} removes {gone['removed']:.3g}, by its "
            f"{gone['writer']}{_write(gone)}"
        )
    for each in part.get("others", ())[:3]:  # older records have none
        until = "the last" if each["gone"] is None else f"layer {each['gone']}"
        lines.append(
            f"beside it token {each['token']} {record['prompt'][each['token']]!r} stands out from "
            f"layer {each['born']} to {until}: {each['over_median']:.3g} x the median norm, cosine "
            f"{each['cosine']:.2f} with it, {each['received']:.2f} of attention"
        )
    return lines


def _spread(record: Mapping[str, Any], part: Mapping[str, Any]) -> str:
    """What the head gives the token, of the attention of queries that see it, and of what value."""
    spread = part["spread"]
    layer, head, received = spread["layer"], spread["head"], spread["received"]
    value = spread["value_ratio"][head * len(spread["value_ratio"]) // len(received)]
    return (
        f"spread: layer {layer}, head {head} gives the token "
        f"{given_by_seeing(record, part):.2f} of the attention of queries that see it; its "
        f"value there has {value:.2f} of the others' norm"
    )


def _larger(part: Mapping[str, Any]) -> str:
    """Where the same place is larger, in a layer whose mean is larger too."""
    sizes = [abs(value) for value in part["trace"]["block_out"]]
    layer = sizes.index(max(sizes))
    if layer == part["peak_layer"]:
        return ""
    return f" ({sizes[layer]:.3g} in layer {layer}, where the mean is larger too)"


def _write(gone: Mapping[str, Any]) -> str:
    """How the layer that removes an activation does so."""
    cosine = f"cosine of its write with the residual {gone['cosine']:.2f}"
    if gone.get("grows") is None:  # records from before it was measured have none
        return f"; {cosine}"
    return (
        f"; in its channel the write is {gone['share']:+.2f} of the residual, but over all "
        f"channels it points the same way, as channel {gone['grows']} grows by "
        f"{gone['grown']:.3g} ({cosine})"
    )


def _roles(record: Mapping[str, Any], part: Mapping[str, Any]) -> list[str]:
    def mean(name: str) -> float:
        values = [x for row in part[name] for x in row]
        return sum(values) / len(values)

    shares = part["shares"]
    return [
        f"O = {part['outliers']}, in {part['sequences']} of {record['sequences']} sequences; "
        f"implicit scale S {mean('scale'):.2f}, its sd over queries {mean('scale_sd'):.2f}, mean "
        "over heads",
        f"error of S x attention over the rest: {mean('error'):.2f} of the output",
        f"{shares['sink']:.0%} of heads are sinks (> 0.3 of attention on O); {shares['no_op']:.0%} "
        f"are no-ops (value at most 0.2 of the rest's), {shares['broadcast']:.0%} broadcast (0.8 "
        f"or more){_ranks(part)}",
    ]


def _ranks(part: Mapping[str, Any]) -> str:
    """The stable rank of the outputs of heads that broadcast, beside that of the rest."""
    if "stable_rank" not in part:  # older records have none
        return ""
    ranks: dict[bool, list[float]] = {True: [], False: []}
    for of, flags in zip(part["stable_rank"], part["broadcast"], strict=True):
        for rank, broadcast in zip(of, flags, strict=True):
            ranks[bool(broadcast)].append(rank)
    said = [
        f"{sum(of) / len(of):.2f} of {which}"
        for which, of in (("those", ranks[True]), ("other heads", ranks[False]))
        if of
    ]
    return f"; stable rank of outputs {', '.join(said)}"


def _dimensions(record: Mapping[str, Any], part: Mapping[str, Any]) -> list[str]:
    found = part["dimensions"]
    numbers = [each["index"] for each in found]
    width, where = len(part["scores"]), f"{part['texts']} texts, quantile {part['quantile']:g}"
    if not found:
        top = max(part["scores"])
        return [
            f"none of {width} dimensions is an outlier dimension (Macocco et al. 2025) in {where}; "
            f"the largest score is {top:.2f} of the threshold, and {part['most']} could be"
        ]
    massive, peaks, _ = part["overlaps"]
    gains = (
        "" if part["gains"] is None else f"; the final gains there {part['gains']:.2g} x others'"
    )
    lines = [
        f"{_plural('dimension', numbers)} of {width} (Macocco et al. 2025; {where}), with "
        f"{part['energy']:.0%} of the final states' energy{gains}",
        f"{massive['shared']} of {len(found)} are among {len(massive['dimensions'])} channels of "
        f"massive activations, {peaks['shared']} among the {len(found)} with the largest peaks "
        f"(at random: {peaks['expected']:.2g}, p = {peaks['p_value']:.2g})",
    ]
    for kept in (False, True):
        own, others = of_dimensions(part, kept)
        what = "from them alone" if kept else "without them"
        random = [each["values"]["kl"][0] for each in others]  # none where most are outliers
        beside = f" (random dimensions: {min(random):.2g} to {max(random):.2g})" if random else ""
        surprisal, accuracy = (own["changes"][name][0] for name in ("surprisal", "accuracy"))
        slope = " to ".join(_known(e["values"]["slope"][0]) for e in (part["ablations"][0], own))
        lines.append(
            f"predictions {what}: KL {own['values']['kl'][0]:.3g} nats{beside}, surprisal "
            f"{surprisal:+.3f}, accuracy {accuracy:+.3f}, slope on frequencies {slope}, "
            f"{own['distinct']} different predictions"
        )
    split = part["split"]
    lines.append(
        f"the predicted token's logit over the mean: {split['outliers'][0]:.3g} from them, "
        f"{split['rest'][0]:.3g} from the rest"
    )
    vectors = ", ".join(f"{each['on_outliers']:.0%}" for each in part["vectors"])
    lines.append(
        f"the last W_down's first singular vectors have {vectors} of their squares in them (at "
        f"random: {len(found) / width:.1%})"
    )
    stages = [stage for stage in part["stages"] if stage["dimensions"]]
    if stages:
        lines.append(
            f"over {len(part['stages'])} checkpoints the first are at step {stages[0]['step']}"
        )
    return lines


def of_dimensions(part: Mapping[str, Any], kept: bool) -> tuple[Any, list[Any]]:
    """The ablation of the outlier dimensions, and those of as many random ones."""
    found = [each for each in part["ablations"] if each["kept"] == kept]
    (own,) = (each for each in found if each["of"] == "outlier dimensions")
    return own, [each for each in found if each["draw"] is not None]


def _known(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _interventions(record: Mapping[str, Any], part: Mapping[str, Any]) -> list[str]:
    lines = [f"loss {part['loss'][0]:.3f}, perplexity {part['perplexity']:.1f} before"]
    for effect in part["effects"]:
        if not effect["control"]:
            moved = effect.get("relocation")
            lines.append(
                f"{effect['kind']}, {effect['detector']}, {effect['treatment']}: loss "
                f"{effect['change'][0]:+.3f}, perplexity {effect['perplexity']:.1f}"
                + ("; the sink relocates" if moved and relocated(moved) else "")
            )
    treatments = {effect["treatment"] for effect in part["effects"]}
    if "set to zero" in treatments and "set to mean" not in treatments:
        lines.append("nothing set to its mean: of one sequence and no other text it is that itself")
    if part.get("super_weight"):  # older records have none
        layer, row, channel = part["super_weight"]
        where = f"down[{neuron(record, row)}, {channel}] of layer {layer}"
        lines.append(f"{detector(record, 'super_weight')}: {where}")
    if part["nothing_found"]:
        lines.append(f"nothing to remove for {listed(part['nothing_found'])}")
    return lines + (sink_lines(record, part) if "sink" in part else [])


def _seeds(record: Mapping[str, Any], part: Mapping[str, Any]) -> list[str]:
    lines = []
    for row in part["rows"]:
        name = f"{row['given']} {row['on']} of seeds {listed(part['seeds'])}"
        if row["jaccard"][0] is None:
            lines.append(f"{name}: none in any seed")
        else:
            lines.append(
                f"{name}: Jaccard of pairs {row['jaccard'][0]:.2f} (shuffled: "
                f"{row['null_jaccard']:.2f}), {row['mean_given']:.3g} of {row['items']} each"
            )
    return lines


def _plural(noun: str, numbers: list[Any]) -> str:
    return f"{noun}{'s' * (len(numbers) > 1)} {listed(numbers)}"


_SENTENCES = {
    "existence": _existence,
    "positions": _positions,
    "relations": _relations,
    "lifecycle": _lifecycle,
    "roles": _roles,
    "measures": measures_lines,
    "dimensions": _dimensions,
    "interventions": _interventions,
    "dynamics": dynamics_lines,
    "seeds": _seeds,
}


def known_lines(record: Mapping[str, Any]) -> list[str]:
    """Published coordinates beside what was found; empty where none were asked for."""
    lines = []
    for check in record.get("known", []):
        known = check["known"]
        what = f"neuron {known['neuron']}" if known["neuron"] is not None else "channels"
        what += f" {', '.join(map(str, known['channels']))}" if known["channels"] else ""
        verdict = "found" if check["agrees"] else "NOT found"
        largest = ", ".join(map(str, check["found"][:4]))
        over = check["over_median"]  # None: the median is 0, as after a ReLU
        size = "the median is 0" if over is None else f"{over:.0f} x median"
        lines.append(
            f"{known['model']}, {what}: {verdict} at layer {check['layer']} (from 1; largest "
            f"there: {largest}, {size}; {known['source']})"
        )
    return lines
