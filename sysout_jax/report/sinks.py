"""The sink at the first token and its forms in words, computed from the record."""

from collections.abc import Mapping
from typing import Any

from sysout_jax.analysis.intervene.relocation import relocated


def sink_lines(record: Mapping[str, Any], part: Mapping[str, Any]) -> list[str]:
    """What a record of interventions says of the sink at the first token and of its forms."""
    sink, forms = part["sink"], part["forms"]
    if not sink["heads"]:
        early = f"; {sink['heads_elsewhere']:.0%} of heads do before" if sink["first"] else ""
        where = f" from layer {sink['first']} on" if sink["first"] else ""
        excess = record["thresholds"]["attention_excess"]
        least = f"{excess:g} x even attention" if sink["most"] > 0.3 else "0.3 of its attention"
        return [
            f"no sink at the first token: no head{where} gives it more than {least} "
            f"(at most {sink['most']:.2f}){early}"
        ]
    made = "no layer writes a state of it that stands out"
    if sink["emergence"] is not None:
        made = f"layer {sink['emergence']} writes its state (|h| up to {sink['size']:.3g})"
    lines = [
        f"the first token is a sink of {sink['heads']:.0%} of heads from layer {sink['first']} on; "
        f"{made}, so it is taken away from layer {sink['first']} on"
    ]
    window = record["model"].get("window")
    if window is not None and window < record["seq_len"]:
        lines.append(f"queries that a window of {window} ends before do not see it: left as it is")
    if forms["calibration"]:
        lines.append(
            f"over {forms['calibration']} other texts its key spreads by "
            f"{forms['key_spread']:.1%} and its value by {forms['value_spread']:.1%}, median over "
            "layers"
        )
    for form in forms["forms"]:
        guard = _guard(form["relocation"]) if form["name"] in ("dropped", "everywhere") else ""
        lines.append(f"{form['label']}: loss {form['change'][0]:+.4f}{_of(form)}{guard}")
    if forms["missing"]:
        lines.append(f"forms in the sink's place left out: {forms['missing']}")
    return lines


def _of(form: Mapping[str, Any]) -> str:
    share = form["share"]
    if share is None or form["name"] == "dropped":
        return ""
    return f", {share[0]:.1%} of what taking it away costs [{share[1]:.1%}, {share[2]:.1%}]"


def _guard(moved: Mapping[str, Any]) -> str:
    """What the other tokens are after an intervention on a sink."""
    verdict = (
        "the sink relocates: the cost is not that of a model without one"
        if relocated(moved)
        else "it does not relocate"
    )
    return (
        f"; of the other tokens then the largest |h| is {moved['peak']:.3g} (before: "
        f"{moved['peak_before']:.3g}; the sink's: {moved['sink_peak']:.3g}), most often of token "
        f"{moved['token']}, and the largest share of attention {moved['attention']:.2f} (before: "
        f"{moved['attention_before']:.2f}; the sink's: {moved['sink_attention']:.2f}): {verdict}"
    )
