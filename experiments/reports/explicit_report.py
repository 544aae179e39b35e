"""What experiments.explicit says: the forms of a model side by side, and how far S is a gate."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sysout_jax.analysis.intervene.explicit_factor import FORMS
from sysout_jax.analysis.statistics import bootstrap_interval, over_seeds
from sysout_jax.plots.explicit import trained_on
from sysout_jax.showing import Interval, Table

from ..cli.showing import Report
from ..cli.tables import Section
from ..cli.verdict import Verdict, few, of_model

Record = dict[str, Any]
MEASURES = {
    "first_token_attention": "attention to first token",
    "top1_over_median@block_out": "max/median |h|",
    "neuron_rms_kurtosis@block_out": "kurtosis",
}


def groups(record: Record) -> dict[str, list[Any]]:
    """The models of a record by name; those of one name are seeds."""
    found: dict[str, list[Any]] = {}
    for model in record["models"]:
        found.setdefault(model["name"], []).append(model)
    return found


def first_group(record: Record) -> tuple[list[Any], str]:
    """The seeds of the first model, which a verdict is of; and what it says if there are others."""
    (name, models), *others = groups(record).items()
    left = few([other for other, _ in others], 30)
    return models, f"of {name}; {left}: see the tables" if others else ""


def sections(record: Record) -> Iterator[Section]:
    """A table for each name, and under it what S is like."""
    tuned = _trained(record)
    headings = [
        "form", "loss", "change", *tuned.values(), *MEASURES.values(),
        *(f"{method}: change" for method in record["methods"]),
    ]  # fmt: skip
    for name, models in groups(record).items():
        forms = {form: [m["forms"][form] for m in models if form in m["forms"]] for form in FORMS}
        rows = [[FORMS[n], *_cells(record, of, tuned)] for n, of in forms.items() if of]
        title = f"{name}: nats per token, {len(models)} seed{'s' * (len(models) > 1)}"
        table = Table.of(f"{title}; ± 95% interval", headings, rows)
        yield Section(name, table, [factors_line(models)])


def _trained(record: Record) -> dict[str, str]:
    """What forms were trained, and the heading of what that changed."""
    config = record["config"]
    said = {"distilled": ("distil", "steps of what the form adds"),
            "finetuned": ("finetune", "steps on")}  # fmt: skip
    return {
        kind: f"change, {config[name]} {what}"
        for kind, (name, what) in said.items()
        if config.get(name)  # older records have no distil
    }


def _cells(record: Record, of: list[Any], tuned: Iterable[str]) -> Iterator[str]:
    """Of one form, over seeds; what a form has not is left empty."""
    yield f"{np.mean(np.asarray([each['loss'] for each in of], np.float64)):.3f}"
    yield _over([each["change"] for each in of])
    for kind in tuned:
        found = [[draw["change"] for draw in trained_on(each, kind)] for each in of]
        yield _over([over_seeds(draws) for draws in found if draws])
    for name in MEASURES:
        values = [each["measures"][name] for each in of if "measures" in each]
        yield f"{np.mean(np.asarray(values, np.float64)):.3g}" if values else ""
    for method in record["methods"]:
        yield _over([each["methods"][method]["change"] for each in of if "methods" in each])


def _over(changes: Sequence[Sequence[float | None]]) -> str:
    return f"{over_seeds(changes):±+.3f}" if changes else ""


def factors_line(models: list[Any]) -> str:
    """What S is like on held-out text, over layers, heads and seeds; or where the sink is."""
    if "factors" not in models[0]:
        firsts = sorted({model["sink"]["first"] for model in models})
        made = [FORMS[name] for name in models[0].get("models", ())]
        said = f"models of their own: {'; '.join(made)}" if made else "all of them edits"
        return (
            f"texts begin with different tokens: from layer {', '.join(map(str, firsts))} on, "
            f"which read what makes the first token a sink; {said}"
        )
    mean, sd, explained = (
        np.array([model["factors"][key] for model in models], np.float64)
        for key in ("mean", "sd", "explained")
    )
    return (
        f"S: mean {mean.mean():.2f}, sd over queries {sd.mean():.2f}; a gate linear in the "
        f"attention input explains {np.nanmean(explained):.2f} of its variance on held-out text "
        f"({np.nanmin(explained):.2f} to {np.nanmax(explained):.2f} over heads and seeds)"
    )


def verdict(record: Record, directory: Path) -> Verdict:
    """The form that costs least, what going without a factor costs, and what training regains."""
    if not record["models"]:
        return Verdict("no model is finished", "", "", ("runs",))
    changes: dict[str, list[list[float | None]]] = {}
    models, others = first_group(record)
    for model in models:
        for form, found in model["forms"].items():
            changes.setdefault(form, []).append(found["change"])
    cost = {form: over_seeds(found) for form, found in changes.items()}
    made = [form for form in cost if form not in ("trained", "dropped", "factor")]
    if not made:
        return Verdict("no form is finished", "", "", ("runs",))
    best = min(made, key=lambda form: cost[form].mean)
    dropped = f"; with none {cost['dropped'].mean:+.3f}" if "dropped" in cost else ""
    tuned = {
        form: over_seeds([over_seeds(draws) for draws in found])
        for kind in _trained(record)
        for form in made
        if (found := [x for m in models if (x := _regained(m["forms"], form, kind))])
    }
    worse = [form for form, found in tuned.items() if found.low > 0]
    least = min(worse, key=lambda form: tuned[form].low, default="")
    return Verdict(
        f"{_first(FORMS[best])}: loss {cost[best].mean:+.3f} nats{dropped}", _explained(models),
        others if others
        else f"training does not regain: {_first(FORMS[least])} {tuned[least].mean:+.3f}" if worse
        else "no form was trained" if not tuned
        else "trained on, no form is told from the trained model",
        ("causal", *of_model(record)),
    )  # fmt: skip


def _regained(forms: Record, form: str, kind: str) -> list[list[float | None] | Interval]:
    """What a trained form costs, of each draw: of all weights beside the trained model, which was
    trained on as long on the same text."""
    own, beside = forms.get(form, {}), forms.get("trained", {})
    if kind != "finetuned":
        return [found["change"] for found in trained_on(own, kind)]
    pairs = [(own, beside)]
    pairs += [(own.get("draws", {})[n], of) for n, of in beside.get("draws", {}).items()
              if n in own.get("draws", {})]  # fmt: skip
    return [_beyond(one[kind], of[kind]) for one, of in pairs if kind in one and kind in of]


def _beyond(one: Record, other: Record) -> Interval:
    """The difference of two losses, paired by text; older records have means alone."""
    if "losses" in one and "losses" in other:
        return bootstrap_interval(np.subtract(one["losses"], other["losses"]))
    return Interval(one["loss"] - other["loss"], float("nan"), float("nan"))


def _first(label: str) -> str:
    """The beginning of a form's label that names it."""
    return label.partition(":")[0]


def _explained(models: list[Record]) -> str:
    """How far S is a gate."""
    found = [m["factors"]["explained"] for m in models if "factors" in m]
    if found:
        mean = np.nanmean(np.concatenate([np.ravel(np.array(x, np.float64)) for x in found]))
        share = f"{mean:.0%}" if mean > 0.0 else "nothing"  # below 0: worse than the mean of S
        return f"a gate linear in the attention's input explains {share} of S's variance"
    first = min(model["sink"]["first"] for model in models)
    return f"texts begin with different tokens: forms are of layers from {first} on"


REPORT = Report(sections, verdict)
