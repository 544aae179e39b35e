"""Predicates: each against its formula by hand, each part dropped or swapped in turn."""

import math

import numpy as np
import pytest
from scipy.special import betainc, stdtrit

from experiments.ledger.evidence import (
    EQUIVALENT,
    INAPPLICABLE,
    INCONCLUSIVE,
    REFUTED,
    SUPPORTED,
    all_hold,
    piece,
    within,
)
from experiments.ledger.predicates import (
    Control,
    Cost,
    Dose,
    Equal,
    Equivalence,
    Has,
    Level,
    Paired,
    Relation,
    Share,
)
from experiments.records import units
from sysout_jax.plots.laboratory import DEFAULT_CELL

SINK = Has("sink", 0.3)
NONE = Has("sink", 0.3, below=True)
LAW = ("r", 0.9)
NEAR = np.array([-0.01, 0.0, 0.01, 0.005])  # a spread about a mean of 0.00125


@pytest.fixture(autouse=True)
def _texts(monkeypatch):
    monkeypatch.setattr(units, "_READERS", {**units._READERS, "texts": _of_text})


def _of_text(record, variant, where, measure):
    cell = " ".join([variant, *(f"{name}={value}" for name, value in where.items())])
    return record["by_text"][cell][measure]


def record(**cells):
    """A record of texts: the cell `a` by its keyword, its measures with values."""
    return {"experiment": "texts", "by_text": cells}


def student(x, bound):
    """Two-sided p of a t-test by the incomplete beta function."""
    x = np.asarray(x, np.float64)
    t = (x.mean() - bound) / (x.std(ddof=1) / math.sqrt(len(x)))
    return float(betainc((len(x) - 1) / 2, 0.5, (len(x) - 1) / (len(x) - 1 + t * t)))


def binomial(k, n, share):
    """Two-sided exact p: of all counts that are no more probable than this one."""
    chances = [math.comb(n, j) * share**j * (1 - share) ** (n - j) for j in range(n + 1)]
    return sum(c for c in chances if c <= chances[k] * (1 + 1e-7))


# ------------------------------------------------------------------------ pieces of evidence


def test_p_values_are_those_of_the_formulas():
    x = np.array([0.2, 0.25, 0.1, 0.4])
    found = piece(x, 0.05, below=False)
    assert found.p == pytest.approx(student(x, 0.05), rel=1e-9)
    assert (found.towards, piece(x, 0.05, below=True).towards) == (True, False)
    assert within(x - x.mean(), 0.05) > 0.05  # too spread to be within
    assert within(x - x.mean(), 5.0) < 0.001
    shifted = x - 0.2  # mean 0.0375: the upper side decides
    assert within(shifted, 0.3) == pytest.approx(0.5 * student(shifted, 0.3), rel=1e-9)
    assert within(-shifted, 0.3) == pytest.approx(0.5 * student(shifted, 0.3), rel=1e-9)


def test_chains_are_the_units_of_a_laboratory():
    runs = np.array([[1.0, 2.0, 4.0], [1.2, 2.2, 4.2], [0.8, 1.8, 3.8], [1.0, 2.0, 4.0]])
    found = piece(runs, 0.0, below=False)
    assert found.p == pytest.approx(student([1.0, 2.0, 4.0], 0.0), rel=1e-9)
    assert found.p > 0.05 > student(runs.ravel(), 0.0)
    assert within(runs, 10.0) == pytest.approx(0.5 * student([1.0, 2.0, 4.0], 10.0), rel=1e-9)


def test_units_without_spread_or_alone_are_no_test():
    assert all_hold([piece(np.zeros(3), 0.3, below=True)])[0] == INCONCLUSIVE
    assert math.isnan(piece(np.array([5.0]), 0.3, below=False).p)
    assert math.isnan(within(np.array([0.0]), 1.0))
    assert (within(np.zeros(3), 1.0), within(np.full(3, 2.0), 1.0)) == (0.0, 1.0)


def test_all_parts_support_and_one_refutes():
    good, bad = (piece(NEAR + shift, 0.0, below=False) for shift in (0.1, -0.1))
    weak, poor = (piece(NEAR + shift, 0.0, below=False) for shift in (0.005, -0.005))
    assert all_hold([good, good]) == (SUPPORTED, good.p)
    assert all_hold([good, weak]) == (INCONCLUSIVE, weak.p)
    assert all_hold([good, bad]) == (REFUTED, pytest.approx(2 * bad.p))
    assert all_hold([good, poor])[0] == INCONCLUSIVE
    assert all_hold([bad, poor, weak]) == (REFUTED, pytest.approx(3 * bad.p))


# ------------------------------------------------------------------------------- counting


@pytest.mark.parametrize(
    ("k", "n", "control", "says"),
    [
        (8, 8, None, SUPPORTED), (6, 6, None, SUPPORTED), (5, 5, None, INCONCLUSIVE),
        (3, 3, None, INCONCLUSIVE), (7, 8, None, INCONCLUSIVE), (9, 10, None, SUPPORTED),
        (0, 8, None, INCONCLUSIVE),  # absent, and nothing shows that it could be there
        (0, 8, 8, REFUTED), (0, 8, 5, REFUTED), (0, 8, 4, INCONCLUSIVE), (0, 8, 0, INAPPLICABLE),
        (8, 8, 8, SUPPORTED), (8, 8, 0, INAPPLICABLE), (0, 5, 5, INCONCLUSIVE),
    ],
)  # fmt: skip
def test_share(k, n, control, says):
    def counted(k):
        return {"sink": [0.31] * k + [0.3] * (n - k)}

    made = record(a=counted(k), softmax=counted(control or 0))
    found = Share(SINK, ("a",), control=None if control is None else Control(SINK)).judge([made])
    assert (found.says, found.units, found.short) == (says, n, f"{k}/{n}")
    if says in (SUPPORTED, REFUTED):
        assert found.p == pytest.approx(binomial(k, n, 0.5), rel=1e-9)


@pytest.mark.parametrize(("k", "says"), [(128, SUPPORTED), (125, INCONCLUSIVE), (100, REFUTED)])
def test_share_above_another_than_half(k, says):
    made = record(a={"sink": [1.0] * k + [0.0] * (128 - k)}, softmax={"sink": [1.0] * 128})
    found = Share(SINK, ("a",), most=0.95, control=Control(SINK)).judge([made])
    assert found.says == says
    assert found.p == pytest.approx(binomial(k, 128, 0.95), rel=1e-9)


def test_share_is_of_each_cell_and_pools_records():
    one, other = [1.0] * 7 + [0.0], [0.0] + [1.0] * 7
    both = record(a={"sink": one}, b={"sink": other}, softmax={"sink": one})
    found = Share(SINK, ("a", "b"), control=Control(SINK)).judge([both])
    assert (found.short, found.p) == ("7/8", pytest.approx(binomial(7, 8, 0.5)))
    assert found.numbers == "a 7 of 8 [0.47, 1.00], b 7 of 8 [0.47, 1.00]"
    assert Share(SINK, ("a",)).judge([both, both]).short == "14/16"
    none = Share(NONE, ("a",), control=Control(SINK)).judge([both])
    assert (none.says, none.short) == (INCONCLUSIVE, "1/8")


def test_one_cell_refutes_what_is_said_of_all():
    made = record(a={"sink": [1.0] * 8}, b={"sink": [0.0] * 8}, softmax={"sink": [1.0] * 8})
    found = Share(SINK, ("a", "b"), control=Control(SINK)).judge([made])
    assert (found.says, found.short) == (REFUTED, "0/8")
    assert found.p == pytest.approx(2 * binomial(0, 8, 0.5))  # one of two cells


@pytest.mark.parametrize("k", [0, 3, 5, 8])
def test_without_a_control_the_test_is_of_one_side(k):
    """So that what is corrected for does not depend on how it came out."""
    found = Share(SINK, ("a",)).judge([record(a={"sink": [1.0] * k + [0.0] * (8 - k)})])
    above = sum(math.comb(8, j) for j in range(k, 9)) / 2**8
    assert found.p == pytest.approx(min(1.0, 2 * above))


def test_an_absence_is_in_every_run_of_a_chain():
    cells = [
        {
            **DEFAULT_CELL,
            "variant": "softmax",
            "start": start,
            "measures": {"sink": values},
            "compressed": {},
        }
        for start, values in (("bos", [0.9] * 12), ("none", [0.1] * 11 + [0.5]))
    ]
    runs = [[seed, chain] for seed in range(2) for chain in range(6)]
    made = {"experiment": "laboratory", "cells": cells, "runs": runs, "chains": [*range(6)]}
    there = Share(SINK, ("softmax",)).judge([made])
    gone = Share(NONE, ("softmax start=none",), control=Control(SINK)).judge([made])
    assert (there.says, there.short, gone.short) == (SUPPORTED, "6/6", "5/6")


@pytest.mark.parametrize(
    ("without", "of", "says"),
    [(1, 3, INCONCLUSIVE), (2, 3, REFUTED), (3, 3, REFUTED), (1, 2, INCONCLUSIVE), (2, 2, REFUTED)],
)
def test_a_chain_is_without_it_where_most_runs_are(without, of, says):
    lacking = np.repeat(np.arange(of) >= without, 8).astype(float).tolist()
    measures = {"softmax": [1.0] * 8 * of, "sink_logit": lacking}
    cells = [
        {**DEFAULT_CELL, "variant": name, "measures": {"sink": x}, "compressed": {}}
        for name, x in measures.items()
    ]
    runs = [[seed, chain] for seed in range(of) for chain in range(8)]
    made = {"experiment": "laboratory", "cells": cells, "runs": runs, "chains": [*range(8)]}
    found = Share(SINK, ("sink_logit",), control=Control(SINK)).judge([made])
    assert (found.says, found.short) == (says, "0/8")


def test_every_part_of_the_loss_must_be_equal():
    fine = {"sink": [1.0] * 8, "bigram": 2.0 + np.tile(NEAR, 2), "copy": 1.0 + np.tile(NEAR, 2)}
    base = {"sink": [1.0] * 8, "bigram": [2.0] * 8, "copy": [1.0] * 8}
    equal = Equal(("bigram", "copy"))
    share = Share(SINK, ("a",), control=Control(SINK), equal=equal)
    paired = Paired("sink", (("a", "softmax"),), equal=equal)
    assert share.judge([record(a=fine, softmax=base)]).says == SUPPORTED
    for part in ("bigram", "copy"):
        for sign in (1, -1):  # FAILS must not pass at another loss either
            off = fine | {part: fine[part] + 0.06 * sign}
            made = record(a=off | {"sink": np.linspace(0.4, 0.5, 8)}, softmax=base)
            for predicate in (share, paired):
                found = predicate.judge([made])
                assert (found.says, found.p) == (INCONCLUSIVE, None)
                assert f"{part} of a differs by" in found.numbers


# -------------------------------------------------------------------------------- sizes


@pytest.mark.parametrize(
    ("mean", "below", "says"),
    [
        (0.4, True, SUPPORTED), (0.6, True, REFUTED), (0.501, True, INCONCLUSIVE),
        (0.6, False, SUPPORTED), (0.4, False, REFUTED), (0.499, False, INCONCLUSIVE),
    ],
)  # fmt: skip
def test_level(mean, below, says):
    found = Level("drain", 0.5, below, ("a",)).judge([record(a={"drain": mean + NEAR})])
    assert found.says == says
    assert found.p == pytest.approx(student(mean + NEAR, 0.5), rel=1e-6)


def test_level_in_each_cell_and_of_each_measure():
    made = record(a={"r": 0.95 + NEAR, "linear": 0.8 + NEAR[::-1]},
                  b={"r": 0.8 + NEAR, "linear": 0.9 + NEAR[::-1]})  # fmt: skip
    gain = (("r - linear", 0.0),)
    assert Level(*LAW, cells=("a",), also=gain).judge([made]).says == SUPPORTED
    assert Level(*LAW, cells=("a", "b")).judge([made]).says == REFUTED
    assert Level("r", 0.7, cells=("b",), also=gain).judge([made]).says == REFUTED
    assert Level("r", 0.7, cells=("a", "b")).judge([made]).short == "0.80"  # the worst
    absent = Level(*LAW, cells=("a",), control=Control(SINK)).judge(
        [record(**made["by_text"], softmax={"sink": [0.0] * 4})]
    )
    assert (absent.says, absent.p) == (INAPPLICABLE, None)


@pytest.mark.parametrize(
    ("a", "below", "ratio", "bound", "says"),
    [
        (0.9, True, False, 0.0, SUPPORTED), (1.1, True, False, 0.0, REFUTED),
        (1.1, False, False, 0.0, SUPPORTED), (0.9, False, False, 0.0, REFUTED),
        (0.4, True, True, 0.5, SUPPORTED), (0.6, True, True, 0.5, REFUTED),
        (0.6, False, True, 0.5, SUPPORTED), (0.95, True, False, -0.1, REFUTED),
    ],
)  # fmt: skip
def test_paired(a, below, ratio, bound, says):
    base = np.array([1.0, 2.0, 3.0, 4.0])  # of units that differ more than the cells do
    moved = base * (a + NEAR) if ratio else base + (a - 1.0) + NEAR
    found = Paired("x", (("a", "b"),), bound, below, ratio).judge(
        [record(a={"x": moved}, b={"x": base})]
    )
    assert found.says == says
    change = moved / base if ratio else moved - base
    assert found.p == pytest.approx(student(change, bound), rel=1e-6)


def test_paired_of_several_and_of_other_measures():
    made = record(a={"x": 1 + NEAR, "y": 1 + NEAR}, b={"x": [2.0] * 4, "y": [0.0] * 4},
                  c={"x": [0.0] * 4, "y": [2.0] * 4})  # fmt: skip
    assert Paired("x", (("a", "b"),)).judge([made]).says == SUPPORTED
    assert Paired("x", (("a", "b"), ("a", "c"))).judge([made]).says == REFUTED
    assert Paired("x", (("a", "b"),), also=("y",)).judge([made]).says == REFUTED
    refused = Paired("x", (("a", "b"),), control=Control(Has("x", 5.0), "b")).judge([made])
    assert refused.says == INAPPLICABLE


def _dosed(falls, beside, base=0.3):
    def model(treatment, factor, control, attention):
        return {"treatment": treatment, "factor": factor, "control": control,
                "attention": attention}  # fmt: skip

    rows = [
        [model("weight", 1.0, False, base), model("weight", 1.0, True, base),
         model("weight", 0.0, False, base - falls + x), model("weight", 0.0, True, base - beside)]
        for x in NEAR
    ]  # fmt: skip
    models = [{"seed": seed, "responses": row} for seed, row in enumerate(rows)]
    return {"experiment": "causal", "models": models}


@pytest.mark.parametrize(
    ("falls", "beside", "base", "says"),
    [
        (0.25, 0.0, 0.3, SUPPORTED), (0.0, 0.0, 0.3, REFUTED), (0.25, 0.25, 0.3, REFUTED),
        (0.1, 0.0, 0.3, INCONCLUSIVE), (0.0, 0.0, 0.15, INAPPLICABLE), (0.05, 0.0, 0.3, REFUTED),
    ],
)  # fmt: skip
def test_dose(falls, beside, base, says):
    assert Dose("weight", 0.0).judge([_dosed(falls, beside, base)]).says == says


@pytest.mark.parametrize(
    ("factor", "constant", "removal", "than", "says"),
    [
        (0.01, 0.2, 0.4, None, SUPPORTED), (0.08, 0.2, 0.4, None, REFUTED),
        (0.04, 0.2, 0.4, None, INCONCLUSIVE), (0.0, 0.2, 0.0, None, INCONCLUSIVE),
        (0.0, 0.2, -0.4, None, INCONCLUSIVE),  # what removal gains is no cost
        (0.01, 0.2, 0.4, "constant", SUPPORTED), (0.01, -0.2, 0.4, "constant", REFUTED),
    ],
)  # fmt: skip
def test_cost(factor, constant, removal, than, says):
    spread = 0.3 * NEAR
    made = record(factor={"cost": factor + spread}, constant={"cost": constant + spread[::-1]},
                  dropped={"cost": removal + NEAR})  # fmt: skip
    found = Cost("factor", than=than).judge([made])
    assert found.says == says
    if says == SUPPORTED and than is None:
        change = factor + spread - 0.1 * (removal + NEAR)
        assert found.p == pytest.approx(student(change, 0.0), rel=1e-6)


@pytest.mark.parametrize(
    ("change", "claimed", "says"),
    [
        (0.0, False, EQUIVALENT), (0.0, True, SUPPORTED), (-0.5, False, SUPPORTED),
        (0.5, False, REFUTED), (0.5, True, REFUTED), (-0.5, True, REFUTED),
        (0.0302, True, INCONCLUSIVE), (0.028, True, INCONCLUSIVE), (-0.05, False, SUPPORTED),
    ],
)  # fmt: skip
def test_equivalence(change, claimed, says):
    made = record(a={"loss": 2 + change + NEAR}, b={"loss": [2.0] * 4})
    found = Equivalence("loss", "a", "b", 0.03, claimed).judge([made])
    assert found.says == says
    if abs(change) > 0.03 and claimed:  # beyond the margin, on both sides of the test
        p = student(change + NEAR, 0.03 if change > 0 else -0.03)
    elif says == EQUIVALENT or claimed:
        p = student(change + NEAR, 0.03) / 2
    else:
        p = student(change + NEAR, 0.0)
    assert found.p == pytest.approx(p, rel=1e-6)


@pytest.mark.parametrize(("change", "says"), [(0.0, SUPPORTED), (0.02, INCONCLUSIVE)])
def test_equivalence_by_the_mean_too(change, says):
    made = record(a={"loss": 2 + change + NEAR}, b={"loss": [2.0] * 4})
    assert Equivalence("loss", "a", "b", 0.05, claimed=True).judge([made]).says == SUPPORTED
    assert Equivalence("loss", "a", "b", 0.05, True, mean=0.015).judge([made]).says == says


@pytest.mark.parametrize(("share", "says"), [(0.97, INCONCLUSIVE), (1.03, SUPPORTED)])
def test_equivalence_by_an_interval_of_95(share, says):
    """It is within the margin, or not quite: then that of 90% is."""
    made = record(a={"loss": 2.01 + NEAR}, b={"loss": [2.0] * 4})
    margin = share * (0.01 + NEAR.mean() + stdtrit(3, 0.975) * NEAR.std(ddof=1) / 2)
    assert Equivalence("loss", "a", "b", margin, True, level=0.025).judge([made]).says == says
    assert Equivalence("loss", "a", "b", margin, True).judge([made]).says == SUPPORTED


def related(**changes):
    """A row of a record's relations."""
    return {
        "given": "weights", "found": "activations", "sequences": 8, "items": 2000,
        "mean_given": 2.0, "mean_found": 4.0, "recall": [0.5, 0.48, 0.52], "null_precision": 0.2,
        "p_value": 0.0005,
    } | changes  # fmt: skip


@pytest.mark.parametrize(
    ("precision", "recall", "p", "sequences", "says"),
    [
        (0.97, 0.5, 0.0005, 8, SUPPORTED), (0.97, 0.5, 0.002, 8, INCONCLUSIVE),
        (0.97, 0.03, 0.0005, 8, REFUTED), (0.8, 0.5, 0.0005, 8, REFUTED),
        (0.91, 0.5, 0.0005, 8, INCONCLUSIVE), (None, None, None, 0, INAPPLICABLE),
    ],
)  # fmt: skip
def test_relation_by_precision_and_recall(precision, recall, p, sequences, says):
    def around(x):
        return [x, x and x - 0.02, x and x + 0.02]

    row = related(
        sequences=sequences, precision=around(precision), recall=around(recall), p_value=p
    )
    made = {"parts": {"relations": {"rows": [row | {"found": "down_in"}, row]}}}
    found = Relation("weights", "activations").judge([made])
    assert found.says == says
    if says == SUPPORTED:  # chance of recall: as many hits by chance, of what was found
        assert "recall 0.50 [0.48, 0.52] (chance 0.10)" in found.numbers
    better = row | {"precision": around(0.99), "p_value": 0.0005}
    good = {"parts": {"relations": {"rows": [better]}}}
    for records in ([good, made], [made, good]):
        assert Relation("weights", "activations").judge(records).says == says


@pytest.mark.parametrize(
    ("items", "precision", "tested"), [(1001, 0.97, True), (1000, 0.97, False), (64, 0.91, True)]
)
def test_few_places_cannot_show_a_relation(items, precision, tested):
    """What both kinds share by chance once in n draws has no p below 1/n; and is no test then."""
    row = related(
        items=items, mean_given=1.0, mean_found=1.0, recall=[1.0] * 3, null_precision=0.01,
        precision=[precision, precision - 0.02, precision + 0.02], p_value=0.0165,
    )  # fmt: skip
    found = Relation("weights", "activations").judge([{"parts": {"relations": {"rows": [row]}}}])
    assert found.says == INCONCLUSIVE
    assert (found.p, "are too few" in found.numbers) == (
        (0.0165, False) if tested else (None, True)
    )


def test_what_falls_short_has_the_p_of_its_interval():
    """The interval is 1.96 standard errors wide on each side; of four, the least decides."""
    made = [
        {"parts": {"relations": {"rows": [related(precision=p)]}}}
        for p in ([0.95, 0.94, 0.96], [0.88, 0.87, 0.89])
    ]
    found = Relation("weights", "activations").judge(made)
    z = 0.02 / (0.01 / 1.959964)
    assert found.says == REFUTED
    assert found.p == pytest.approx(4 * math.erfc(z / math.sqrt(2)), rel=1e-5)


# ------------------------------------------------------------------------------ the words


@pytest.mark.parametrize(
    ("predicate", "text"),
    [
        (Share(Has("sink_rate@attn_weights", 0.02, below=True), ("sigmoid",), control=Control(
            Has("sink_rate@attn_weights", 0.1))),
         "sigmoid: Sink_0(0.3) below 0.02 in most units; where softmax has Sink_0(0.3) above 0.1 "
         "in most units"),
        (Share(Has("sink_rate@attn_weights", 0.1), most=0.95),
         "softmax: Sink_0(0.3) above 0.1 in more than 95% of units"),
        (Level("cost", 0.01, cells=("dropped",)), "the sink removed: mean loss added above 0.01"),
        (Paired("loss", (("a", "b"),), equal=Equal(("loss_copy",))),
         "validation loss, pairs: a below b; at equal loss of copies (within 0.05 nats, TOST)"),
        (Paired("ratio", (("a", "b"),), 0.5, below=False, ratio=True),
         "max/median |h| of the first token, pairs: a above 0.5 of b"),
        (Dose("weight", 0.0), "weight times 0: attention to the first token, best head falls by "
         "more than 0.1, beyond as much elsewhere; where weight dose=1 has attention to the first "
         "token, best head above 0.2 in most units"),
        (Cost("gate", than="constant"), "a gate in its place costs less than 10% of what the sink "
         "removed does and less than a constant in its place, pairs; where the sink removed costs "
         "more than nothing"),
        (Equivalence("loss", "a", "b", 0.005),
         "validation loss, pairs: a below b; equivalent within 0.005 of b (TOST)"),
        (Equivalence("loss", "a", "b", 0.02, claimed=True, mean=0.01),
         "validation loss, pairs: a within 0.02 of b (TOST), the mean within 0.01"),
        (Equivalence("loss", "a", "b", 0.02, claimed=True, level=0.025),
         "validation loss, pairs: a within 0.02 of b (TOST at 0.025)"),
        (Relation("weights", "activations"), "weights to activations: precision above 0.9, recall "
         "above chance, p < 0.001 by permutation; where both kinds are"),
    ],
)  # fmt: skip
def test_a_threshold_is_written_by_its_predicate(predicate, text):
    assert predicate.threshold == text
