"""The numbers of any record by its units: one for each seed, chain and seed, or text.

A cell is named as it differs from softmax trained as usual: "value_gate", "softmax norm=sandwich".
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from . import benchmark, causal, laboratory

Record = dict[str, Any]
LAST = 1000  # steps over which training losses are averaged
DEFAULT_WAY = "bound"  # of experiments.convert, to deal with weaker sinks

WORDS = {
    "noop_sink": "attention of no-op queries to the first token",
    "noop_sink_best": "attention of no-op queries to the first token, best head",
    "attention": "attention to the first token, best head",
    "sink_rate@attn_weights": "Sink_0(0.3)",
    "sink_effect": "g p_0 |v_0| / |o|",
    "top1_over_median@block_out": "max/median |h|",
    "residual_peak@block_out": "residual peak",
    "neuron_rms_kurtosis@block_out": "channel kurtosis",
    "value_drain@value": "value norm of the first token over the others'",
    "ratio": "max/median |h| of the first token",
    "gate_noop": "mean factor on no-op queries",
    "calibrated@down": "calibrated outliers of W_down (FDR 0.01)",
    "loss": "validation loss",
    "loss_last_third": "validation loss of the last third",
    "loss_bigram": "loss of bigrams",
    "loss_copy": "loss of copies",
    "train_loss": "training loss of the last 1,000 steps",
    "cost": "loss added",
    "largest": "largest max/median |h| of a text",
    "removed": "cosine of the last layers' write and the residual",
    "outlier": "channel flagged as an outlier",
    "r_squared: logarithmic": "R^2 of a line in log(step)",
    "r_squared: linear": "R^2 of a line in the step",
    "explained": "R^2 of a gate fitted to S",
    "dropped": "the sink removed",
    "factor": "S in its place",
    "gate": "a gate in its place",
    "constant": "a constant in its place",
    "kind: an_attention": "share of texts with attention outliers",
    "kind: sun": "share of texts with massive activations",
}


class Unmeasured(Exception):
    """A record has not what is asked of it; the message says what."""


def values(record: Record, cell: str, measure: str) -> np.ndarray:
    """A measure of a cell: [units], or [repeats, chains] of a laboratory's record; of two measures
    with " / " or " - " between, the ratio or the difference.

    Raises:
      Unmeasured: the record does not have it.
    """
    for sign, joined in ((" / ", np.divide), (" - ", np.subtract)):
        one, found, other = measure.partition(sign)
        if found:
            return np.asarray(joined(values(record, cell, one), values(record, cell, other)))
    variant, *settings = cell.split()
    where = dict(each.split("=") for each in settings)
    try:
        found = _READERS[record["experiment"]](record, variant, where, measure)
    except (KeyError, StopIteration, ValueError) as error:
        raise Unmeasured(f"{measure} of {cell}") from error
    if found is None or not np.size(found):
        raise Unmeasured(f"{measure} of {cell}")
    return np.asarray(found, np.float64)


def words(measure: str) -> str:
    """What a measure, or two, or a form is called in a threshold."""
    for sign in (" / ", " - "):
        one, found, other = measure.partition(sign)
        if found:
            return f"{words(one)}{sign}{words(other)}"
    return WORDS.get(measure, measure)


def seeds_of(record: Record) -> list[int]:
    """The seeds that the models of a record were trained with."""
    if "models" in record:
        return sorted({model["seed"] for model in record["models"]})
    if "studies" in record:
        return list(record["studies"][0]["config"]["seeds"])
    for part in ("train", "config"):
        if "seeds" in (record.get(part) or {}):
            return list(record[part]["seeds"])
    return [record["seed"]] if record.get("seed") is not None else []


def _trained(record: Record, variant: str, where: Mapping[str, str], measure: str) -> Any:
    """Of the first study of a record of experiments.variants."""
    found = record["studies"][0]["variants"][variant]
    if measure == "train_loss":
        curve = found["curve"]
        rows = [x for n, x in zip(curve["step"], curve["loss"], strict=True)
                if n > curve["step"][-1] - LAST]  # fmt: skip
        return np.mean(rows, axis=0)
    measured = found["measured"]
    return (measured["val_loss"] if measure == "loss" else measured["measures"][measure])[-1]


def _of_benchmark(record: Record, variant: str, where: Mapping[str, str], measure: str) -> Any:
    cell = benchmark.cell_of(record, variant=variant, **where)
    if cell is None or "diverged" in cell:
        return None
    found = cell["measures"] | cell["compressed"]  # what compression adds to the loss
    return cell["val_loss"][-1] if measure == "loss" else found[measure]


def _of_laboratory(record: Record, variant: str, where: Mapping[str, str], measure: str) -> Any:
    usual = laboratory.DEFAULT_CELL
    typed = {name: type(usual[name])(value) for name, value in where.items()}
    cell = laboratory.cell_of(record, variant, **typed)
    law = measure.removeprefix("r_squared: ")
    measured = cell["measures"] | cell["compressed"]  # what compression adds to the loss
    runs = cell["growth"][law]["r_squared"] if law != measure else measured[measure]
    found = laboratory.by_chain(record, runs)
    return found - record["floor"][cell["start"]] if measure == "loss_bigram" else found


def _converged(record: Record, variant: str, where: Mapping[str, str], measure: str) -> Any:
    """At the best learning rate: the loss at the end, or over the last third of the steps."""
    rate = record["compared"]["variants"][variant]["lr"]
    cell = next(x for x in record["cells"] if (x["variant"], x["lr"]) == (variant, rate))
    losses = np.array(cell["val_loss"], np.float64)
    at = np.array(cell["step"]) > record["config"]["steps"] * 2 / 3
    return {"loss": losses[-1], "loss_last_third": losses[at].mean(axis=0)}[measure]


def _explicit(record: Record, form: str, where: Mapping[str, str], measure: str) -> Any:
    """By models; of a published one by texts, compression over what the form itself loses."""
    if measure == "explained":
        return [np.mean(model["factors"]["explained"]) for model in record["models"]]
    first = record["models"][0]["forms"][form]
    if "losses" in first and measure != "cost":
        mine = first[where["by"]] if where else first
        if measure in ("loss", "largest"):
            return mine[{"loss": "losses"}.get(measure, measure)]
        return np.subtract(mine["methods"][measure]["losses"], mine["losses"])
    return {"cost": [model["forms"][form]["change"][0] for model in record["models"]]}[measure]


def _compressed(record: Record, variant: str, where: Mapping[str, str], measure: str) -> Any:
    """By models; of a published one by texts, as trained or converted, over what it was."""
    if variant in ("trained", "converted"):
        way = where.get("by", DEFAULT_WAY) if variant == "converted" else None
        base = next(model for model in record["models"] if "trained" not in model)
        mine = base if way is None else next(
            model for model in record["models"] if model.get("conversion") == way
        )  # fmt: skip
        return np.subtract(mine["methods"][measure]["losses"], base["losses"])
    mine = [model for model in record["models"] if model["variant"] == variant]
    return [m["methods"][measure]["change"][0] for m in sorted(mine, key=lambda m: m["seed"])]


def _dosed(record: Record, treatment: str, where: Mapping[str, str], measure: str) -> Any:
    """After a dose, "weight dose=0"; with "beside=1" of as much elsewhere."""
    factor, beside = float(where["dose"]), "beside" in where
    found = [causal.response(m, treatment, factor, beside) for m in record["models"]]
    if record["models"][0]["seed"] is None and measure == "attention":
        return found[0]["by_sequence"]
    return [each[measure] for each in found]


def _analysed(record: Record, variant: str, where: Mapping[str, str], measure: str) -> Any:
    """Of one model, a single unit; of what is a text's, and of a published model, a unit each."""
    parts = record["parts"]
    if measure == "cost":
        forms = parts["interventions"]["forms"]["forms"]
        return next(form["by_sequence"] for form in forms if form["name"] == variant)
    if measure.startswith("kind: "):
        found = parts["positions"]["kinds"][measure.removeprefix("kind: ")]["sequences"]
        return np.arange(record["sequences"]) < found
    if measure == "calibrated@down":
        weights = parts["existence"]["weights"]
        down = weights["matrices"].index("down")
        return [sum(layer[down] for layer in weights["calibrated"])]
    if measure == "top1_over_median@block_out":
        site = parts["positions"]["sites"]["block_out"]
        return [max(top[0] / x for top, x in zip(site["top"], site["median"], strict=True))]
    if measure in ("outlier", "removed"):  # by the last layers: the cosine of write and residual
        life = parts["lifecycle"]
        removed = (life["disappearance"] or {"cosine": 0.0})["cosine"]
        return [removed if measure == "removed" else float(life["outlier"])]
    edited = next(
        effect for effect in parts["interventions"]["effects"]
        if (effect["kind"], effect["detector"]) == ("activations", "largest")
        and effect["treatment"] == measure and not effect["control"]
    )  # fmt: skip
    return edited["by_sequence"] if record["seed"] is None else [edited["change"][0]]


def _assumed(record: Record, form: str, where: Mapping[str, str], measure: str) -> Any:
    """Of a published model by texts, of trained ones by models; a gate sees x, its logit is linear
    in it."""
    if (form, measure) != ("gate", "explained"):
        return None
    models = record["models"]
    if models[0]["seed"] is None:
        return models[0]["explained_by_text"]["x"]
    return [model["explained"]["x"][0] for model in models if model["heads"]]


def _converted(record: Record, variant: str, where: Mapping[str, str], measure: str) -> Any:
    """Of one published model, before and after its conversion, a number for each text."""
    check = record["models"][0]["check"]
    pair = {"loss": check["losses"], "largest": check["largest"]}[measure]
    return pair[{"trained": 0, "converted": 1}[variant]]


_READERS: Mapping[str, Callable[[Record, str, Mapping[str, str], str], Any]] = MappingProxyType(
    {
        "variants": _trained, "benchmark": _of_benchmark, "laboratory": _of_laboratory,
        "convergence": _converged, "explicit": _explicit, "compression": _compressed,
        "causal": _dosed, "analysis": _analysed, "convert": _converted, "assumptions": _assumed,
    }
)  # fmt: skip
