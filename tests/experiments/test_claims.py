"""The ledger: verdicts are what the records say, and a record that says otherwise changes them."""

import copy
import json

import pytest

from experiments import claims
from experiments.ledger import claim as claim_module
from experiments.ledger import levers
from experiments.ledger.claim import (
    FAILS,
    HOLDS,
    LEDGER,
    UNDECIDED,
    above,
    below,
    together,
)
from experiments.records import benchmark as benchmark_record
from experiments.records import laboratory as laboratory_record
from sysout_jax.analysis.statistics import Interval
from sysout_jax.errors import InputError


@pytest.fixture(scope="module")
def rows():
    return claims.decided(claims.RESULTS)


def test_the_file_says_what_the_records_say(rows):
    """To renew it: `python -m experiments.claims --write`."""
    claims.check(rows, claims.VERDICTS)


def test_every_claim_says_what_decides_it(rows):
    assert list(rows) == list(LEDGER)
    for name, each in LEDGER.items():
        assert each.statement
        assert each.source
        assert each.threshold
        assert rows[name]["verdict"] in (HOLDS, FAILS, UNDECIDED)
        assert rows[name]["numbers"]
        assert each.record in claims.COMMANDS


def test_a_verdict_that_is_not_the_records_is_found(rows, tmp_path):
    stated = copy.deepcopy(claims.plain(rows))
    name = list(LEDGER)[3]
    stated[name]["verdict"] = FAILS if stated[name]["verdict"] != FAILS else HOLDS
    file = tmp_path / "claims.json"
    file.write_text(json.dumps(stated))
    with pytest.raises(InputError, match=rf"says otherwise of {name};"):
        claims.check(rows, file)
    del stated[name]
    file.write_text(json.dumps(stated))
    with pytest.raises(InputError, match=rf"says otherwise of {name};"):
        claims.check(rows, file)
    with pytest.raises(InputError, match="what write wrote"):
        claims.check(rows, tmp_path / "none.json")


def test_intervals_decide():
    inside, over, under = Interval(1, 0, 2), Interval(3, 2, 4), Interval(-1, -2, 0.5)
    assert [above(x, 1.0) for x in (inside, over, under)] == [UNDECIDED, HOLDS, FAILS]
    assert [below(x, 1.0) for x in (inside, over, under)] == [UNDECIDED, FAILS, HOLDS]
    assert above(Interval(5, float("nan"), float("nan")), 1.0) == UNDECIDED  # one seed
    assert together([HOLDS, HOLDS]) == HOLDS
    assert together([HOLDS, UNDECIDED]) == UNDECIDED
    assert together([UNDECIDED, FAILS, HOLDS]) == FAILS


def _study(text="backcopy", **measures):
    """A record of a study in which every variant has the same measures, [seeds]."""
    variants = {
        name: {"measured": {"measures": {key: [value] for key, value in measures.items()}}}
        for name in claim_module.PAPER
    }
    return {"studies": [{"name": text, "variants": variants}]}


@pytest.mark.parametrize(
    ("name", "values", "verdict"),
    [
        ("attention_outliers_form", [0.9, 0.91, 0.92], HOLDS),
        ("attention_outliers_form", [0.1, 0.11, 0.12], FAILS),
        ("attention_outliers_form", [0.0, 0.3, 0.9], UNDECIDED),
        ("biases_keep_sinks", [0.9, 0.91, 0.92], HOLDS),
        ("explicit_factors_remove_sinks", [0.9, 0.91, 0.92], FAILS),
        ("explicit_factors_remove_sinks", [0.1, 0.11, 0.12], HOLDS),
    ],
)
def test_a_record_decides(name, values, verdict):
    assert LEDGER[name].decide(_study(noop_sink=values)).says == verdict


def test_what_is_absent_at_a_small_size_is_not_refuted():
    record = _study(**{"top1_over_median@block_out": [5.0, 5.1, 5.2]})
    assert LEDGER["activation_outliers_form"].decide(record).says == UNDECIDED
    record = _study(**{"top1_over_median@block_out": [500.0, 510.0, 520.0]})
    assert LEDGER["activation_outliers_form"].decide(record).says == HOLDS


def test_sinks_without_massive_activations_refute_their_need():
    sinks = {"noop_sink": [0.9, 0.91, 0.92], "top1_over_median@block_out": [5.0, 5.1, 5.2]}
    decide = LEDGER["sinks_need_massive_activations"].decide
    assert decide(_study(**sinks)).says == FAILS
    massive = sinks | {"top1_over_median@block_out": [500.0, 510.0, 520.0]}
    assert decide(_study(**massive)).says == UNDECIDED


@pytest.mark.parametrize(
    ("values", "verdict"),
    [([0.3, 0.31, 0.32], HOLDS), ([0.0, 0.01, 0.02], FAILS), ([0.0, 0.1, 0.2], UNDECIDED)],
)
def test_source_text_decides_where_sinks_are(values, verdict):
    decide = LEDGER["source_biases_keep_sinks"].decide
    record = _study("stdlib", **{levers.SINKS: values})
    assert decide(record).says == verdict
    of_b = record["studies"][0]["variants"]["value_bias"]["measured"]["measures"]
    of_b[levers.SINKS] = [[0.0, 0.0, 0.01]]
    assert decide(record).says == FAILS


def test_learning_faster_is_of_the_last_steps_however_rows_are_cut():
    decide = LEDGER["text_learns_faster"].decide
    for rows in (10, 20):  # of 100 steps, or of 50
        step = [1000 // rows * n for n in range(1, 2 * rows + 1)]
        worse, better = [[5.0, 5.1, 5.2]] * rows, [[4.0, 4.2, 4.3]] * rows
        same = [[4.5, 4.6, 4.7]] * rows
        for before, after, verdict in ((worse, better, HOLDS), (better, worse, FAILS)):
            curves = {"softmax": same + same, "context_scale": before + after}
            variants = {
                name: {"curve": {"step": step, "loss": loss}} for name, loss in curves.items()
            }
            assert decide({"studies": [{"variants": variants}]}).says == verdict


def _forms(**changes):
    """A record of models in explicit forms: what each costs, of each seed."""
    seeds = range(len(next(iter(changes.values()))))
    return {
        "models": [
            {"forms": {form: {"change": [values[seed]]} for form, values in changes.items()}}
            for seed in seeds
        ]
    }


FREE, DEAR = [0.0, 0.001, 0.002], [0.1, 0.11, 0.12]


@pytest.mark.parametrize(
    ("name", "changes", "verdict"),
    [
        ("the_factor_can_be_made_explicit", {"gate": FREE, "constant": DEAR}, HOLDS),
        ("the_factor_can_be_made_explicit", {"gate": DEAR, "constant": DEAR}, FAILS),
        ("the_factor_can_be_made_explicit", {"gate": FREE, "constant": FREE}, UNDECIDED),
        ("text_outliers_are_a_factor", {"factor": FREE}, HOLDS),
        ("text_outliers_are_a_factor", {"factor": DEAR}, FAILS),
        ("source_removal_harms", {"dropped": DEAR}, HOLDS),
        ("source_removal_harms", {"dropped": FREE}, FAILS),
    ],
)
def test_what_an_explicit_form_costs_decides(name, changes, verdict):
    assert LEDGER[name].decide(_forms(**changes)).says == verdict


def _laboratory(*cells):
    """A record of three seeds of one chain: (variant, setting, sinks, max/median) of each cell."""
    made = [
        {
            "variant": variant, **laboratory_record.DEFAULT_CELL, **setting,
            "measures": {"noop_sink_best": sinks, "top1_over_median@block_out": peaks},
        }
        for variant, setting, sinks, peaks in cells
    ]  # fmt: skip
    return {"cells": made, "runs": [[0, 7], [1, 7], [2, 7]], "chains": [7]}


@pytest.mark.parametrize(
    ("inside", "most", "verdict"),
    [
        ([0.8, 0.81, 0.82], [0.2, 0.21, 0.22], HOLDS),  # above both ends
        ([0.5, 0.51, 0.55], [0.2, 0.21, 0.22], UNDECIDED),  # not told from the lower end
        ([0.5, 0.51, 0.55], [0.9, 0.91, 0.92], FAILS),  # still rising
        ([0.3, 0.31, 0.32], [0.2, 0.21, 0.22], FAILS),  # falling from the first
    ],
)
def test_an_inverted_u_is_above_both_of_its_ends(inside, most, verdict):
    low = [0.1, 0.11, 0.12]
    decays = {0.0: [0.5, 0.52, 0.53], 0.1: low, 0.5: inside, 2.0: most}
    cells = [("softmax", {"decay": decay}, sinks, low) for decay, sinks in decays.items()]
    other = ("softmax", {"decay": 0.5, "layers": 2}, [0.9] * 3, low)  # of another setting
    assert LEDGER["weight_decay"].decide(_laboratory(*cells, other)).says == verdict


@pytest.mark.parametrize(
    ("softmax", "gate", "sinks", "verdict"),
    [
        (400.0, 100.0, 0.9, HOLDS),
        (400.0, 300.0, 0.9, FAILS),
        (400.0, 100.0, 0.1, FAILS),
        (40.0, 10.0, 0.9, UNDECIDED),  # no spikes to remove
        (40.0, 10.0, 0.1, FAILS),
    ],
)
def test_value_gates_must_halve_spikes_and_keep_sinks(softmax, gate, sinks, verdict):
    near = [-1.0, 0.0, 1.0]
    record = _laboratory(
        ("softmax", {}, [0.9, 0.91, 0.92], [softmax + x for x in near]),
        ("value_gate", {}, [sinks + 0.01 * x for x in near], [gate + x for x in near]),
    )
    assert LEDGER["value_gates"].decide(record).says == verdict


@pytest.mark.parametrize(("worst", "verdict"), [(0.9, HOLDS), (0.1, FAILS)])
def test_norms_keep_sinks_if_each_does(worst, verdict):
    near = [-0.01, 0.0, 0.01]
    cells = [
        ("softmax", {"norm": name}, [sink + x for x in near], near)
        for name, sink in (("own", 0.1), ("qk", 0.9), ("sandwich", worst))
    ]
    other = ("softmax", {"norm": "qk", "eps": 1e-4}, [0.0] * 3, near)  # of another setting
    assert LEDGER["norms_keep_sinks"].decide(_laboratory(*cells, other)).says == verdict


@pytest.mark.parametrize(
    ("moved", "loss", "verdict"),
    [
        ([1.0, 2.1, 3.0], 2.0, HOLDS),  # of pairs: the seeds themselves are far apart
        ([3.0, 4.1, 5.0], 2.0, FAILS),
        ([1.0, 3.1, 5.0], 2.0, UNDECIDED),
        ([1.0, 2.1, 3.0], 2.1, UNDECIDED),  # smaller, at another loss
        ([1.0, 2.1, 3.0], 1.9, UNDECIDED),
        ([3.0, 4.1, 5.0], 2.1, FAILS),
    ],
)
@pytest.mark.parametrize(
    ("name", "measure", "setting"),
    [
        ("sandwich_norms_remove_peaks", "residual_peak@block_out", {"norm": "sandwich"}),
        ("unscaled_norms_remove_outlier_channels", "neuron_rms_kurtosis@block_out",
         {"norm": "unscaled"}),
        ("larger_eps_removes_outlier_channels", "neuron_rms_kurtosis@block_out", {"eps": 1e-4}),
    ],
)  # fmt: skip
def test_what_falls_must_fall_at_equal_loss(name, measure, setting, moved, loss, verdict):
    record = _laboratory(("softmax", {}, [], []), ("softmax", setting, [], []))
    record["floor"] = {"bos": [1.0]}
    for cell, values, losses in zip(
        record["cells"], ([2.0, 3.0, 4.0], moved), ([2.0] * 3, [loss] * 3), strict=True
    ):
        cell["measures"] |= {measure: values, "loss_bigram": losses}
    assert LEDGER[name].decide(record).says == verdict


def _related(sequences, precision):
    row = {
        "given": "weights", "found": "activations", "on": "channels", "sequences": sequences,
        "mean_given": 1.0, "mean_found": 2.0, "precision": precision, "null_precision": 0.1,
    }  # fmt: skip
    return {"parts": {"relations": {"rows": [row, row | {"found": "down_in"}]}}}


def _levers(*cells):
    """A benchmark's record: softmax with nothing changed, and what each other cell changes of it.

    A cell is (what it changes, Sink rate, max/median, kurtosis, loss), of three seeds about that.
    """
    near = [-0.01, 0.0, 0.01]
    return {
        "cells": [
            {
                **benchmark_record.DEFAULT_CELL, **moved,
                "val_loss": [[9.0] * 3, [loss + x for x in near]],
                "measures": {
                    levers.SINKS: [max(0.0, sinks + x) for x in near],
                    levers.LARGEST: [largest * (1 + x) for x in near],
                    levers.KURTOSIS: [kurtosis + x for x in near],
                },
            }
            for moved, sinks, largest, kurtosis, loss in cells
        ]
    }  # fmt: skip


USUAL = ({}, 0.3, 120.0, 20.0, 4.0)
LLAMA = ({"setting": "llama"}, 0.3, 150.0, 20.0, 4.0)
FEW = ({"setting": "decay_0"}, 0.1, 120.0, 20.0, 4.0)


def held(variant):
    return {"variant": variant}, 0.3, 9.0, 1.0, 4.0


def lost(variant):
    return {"variant": variant}, 0.0, 9.0, 1.0, 4.0


@pytest.mark.parametrize(
    ("name", "cells", "verdict"),
    [
        ("text_value_gates", [({"variant": "value_gate"}, 0.4, 40.0, 1, 4)], HOLDS),
        ("text_value_gates", [({"variant": "value_gate"}, 0.0, 40.0, 1, 4)], FAILS),
        ("text_value_gates", [({"variant": "value_gate"}, 0.4, 90.0, 1, 4)], FAILS),
        ("text_attention_bias_fails_on_llama",
         [LLAMA, ({"variant": "attention_bias", "setting": "llama"}, 0, 140.0, 1, 4)], HOLDS),
        ("text_attention_bias_fails_on_llama",
         [LLAMA, ({"variant": "attention_bias", "setting": "llama"}, 0, 40.0, 1, 4)], FAILS),
        ("text_attention_bias_fails_on_llama",
         [({"setting": "llama"}, 0.3, 50.0, 1, 4),
          ({"variant": "attention_bias", "setting": "llama"}, 0, 45.0, 1, 4)], UNDECIDED),
        ("text_llama_factor_removes_large_activations",
         [LLAMA, ({"variant": "context_scale", "setting": "llama"}, 0, 40.0, 1, 4)], HOLDS),
        ("text_llama_factor_removes_large_activations",
         [LLAMA, ({"variant": "context_scale", "setting": "llama"}, 0, 140.0, 1, 4)], FAILS),
        ("text_llama_factor_removes_large_activations",
         [({"setting": "llama"}, 0.3, 50.0, 1, 4),
          ({"variant": "context_scale", "setting": "llama"}, 0, 5.0, 1, 4)], UNDECIDED),
        ("text_llama_attention_outliers_form", [LLAMA], HOLDS),
        ("text_llama_attention_outliers_form",
         [({"setting": "llama"}, 0.02, 150.0, 1, 4)], FAILS),
        ("text_repeated_makes_fewer_sinks", [({"setting": "repeated"}, 0.1, 9, 1, 5)], HOLDS),
        ("text_repeated_makes_fewer_sinks", [({"setting": "repeated"}, 0.5, 9, 1, 5)], FAILS),
        ("text_longer_contexts_make_stronger_sinks",
         [({"setting": "quarter_context"}, 0.1, 9, 1, 5)], HOLDS),
        ("text_longer_contexts_make_stronger_sinks",
         [({"setting": "quarter_context"}, 0.5, 9, 1, 5)], FAILS),
        ("source_longer_contexts_make_stronger_sinks_on_equal_rows",
         [({"setting": "quarter_context"}, 0.1, 9, 1, 5),
          ({"setting": "four_contexts"}, 0.5, 9, 1, 5)], HOLDS),
        ("source_longer_contexts_make_stronger_sinks_on_equal_rows",
         [({"setting": "quarter_context"}, 0.1, 9, 1, 5),
          ({"setting": "four_contexts"}, 0.1, 9, 1, 5)], FAILS),
        ("source_longer_contexts_make_stronger_sinks_on_equal_rows",
         [({"setting": "quarter_context"}, 0.1, 9, 1, 5),
          ({"setting": "four_contexts"}, 0.3, 9, 1, 5)], UNDECIDED),
        ("text_optimisers", [({"optimizer": "muon"}, 0.1, 40.0, 1, 3.9)], HOLDS),
        ("text_optimisers", [({"optimizer": "muon"}, 0.1, 40.0, 1, 4.2)], UNDECIDED),
        ("text_optimisers", [({"optimizer": "muon"}, 0.1, 140.0, 1, 4.2)], FAILS),
        ("text_weight_decay", [FEW, ({"setting": "decay_1"}, 0.1, 9, 1, 4)], HOLDS),
        ("text_weight_decay", [FEW, ({"setting": "decay_1"}, 0.5, 9, 1, 4)], FAILS),
        ("text_larger_eps_removes_outlier_channels",
         [({"setting": "eps_1e-4"}, 0, 9, 5.0, 4.0)], HOLDS),
        ("text_larger_eps_removes_outlier_channels",
         [({"setting": "eps_1e-4"}, 0, 9, 5.0, 4.5)], UNDECIDED),
        ("text_larger_eps_removes_outlier_channels",
         [({"setting": "eps_1e-4"}, 0, 9, 25.0, 4.0)], FAILS),
        ("text_sandwich_norms_remove_large_states",
         [({"norm": "sandwich"}, 0, 20.0, 5.0, 4.0)], HOLDS),
        ("text_sandwich_norms_remove_large_states",
         [({"norm": "sandwich"}, 0, 20.0, 5.0, 4.5)], UNDECIDED),
        ("text_sandwich_norms_remove_large_states",
         [({"norm": "sandwich"}, 0, 90.0, 5.0, 4.5)], FAILS),
        ("source_explicit_factors_remove_sinks",
         [lost("attention_bias"), lost("context_scale"), lost("sigmoid")], HOLDS),
        ("source_explicit_factors_remove_sinks",
         [lost("attention_bias"), held("context_scale"), lost("sigmoid")], FAILS),
        ("source_one_is_not_enough", [held("softmax_off_by_one"), held("sink_logit")], HOLDS),
        ("source_one_is_not_enough", [held("softmax_off_by_one"), lost("sink_logit")], FAILS),
        ("source_value_gates_keep_sinks", [held("value_gate")], HOLDS),
        ("source_value_gates_keep_sinks", [lost("value_gate")], FAILS),
        ("source_norms_keep_sinks",
         [({"norm": name}, 0.3, 9, 1, 4) for name in ("rms", "sandwich", "qk")], HOLDS),
        ("source_norms_keep_sinks",
         [({"norm": name}, sinks, 9, 1, 4)
          for name, sinks in (("rms", 0.3), ("sandwich", 0.0), ("qk", 0.3))], FAILS),
        ("source_muon_makes_sinks", [({"optimizer": "muon"}, 0.3, 9, 1, 4)], HOLDS),
        ("source_muon_makes_sinks", [({"optimizer": "muon"}, 0.0, 9, 1, 4)], FAILS),
        ("source_no_sink_without_bos", [({"setting": "no_bos"}, 0.0, 9, 1, 4)], HOLDS),
        ("source_no_sink_without_bos", [({"setting": "no_bos"}, 0.3, 9, 1, 4)], FAILS),
        ("source_llama_keeps_sinks", [LLAMA], HOLDS),
        ("source_llama_keeps_sinks", [({"setting": "llama"}, 0.0, 9, 1, 4)], FAILS),
    ],
)  # fmt: skip
def test_levers_of_a_language_model(name, cells, verdict):
    assert LEDGER[name].decide(_levers(USUAL, *cells)).says == verdict


def test_a_cell_that_is_not_there_leaves_a_claim_open():
    each = LEDGER["text_optimisers"]
    with pytest.raises(claim_module.Unmeasured, match="the cell muon"):
        each.decide(_levers(USUAL))
    about = {"provenance": {"started": "2026-11-28T00:00:00Z"}, "preset": "fruitfly"}
    made = {**_levers(USUAL), **about, "train": {"seeds": [0], "corpus": "books"}}
    made["cells"][0]["parameters"] = 7
    row = claims._judged(each, made)
    assert (row["verdict"], row["numbers"]) == (UNDECIDED, "not measured yet: the cell muon")
    made["cells"].append({**made["cells"][0], "optimizer": "muon", "diverged": {"step": 3}})
    made["cells"][1]["parameters"] = 2007
    row = claims._judged(each, made)
    assert row["numbers"] == "not measured yet: the cell muon, which diverged"
    assert row["scale"] == "books, 0k to 2k parameters, 1 seeds in each cell"
    with pytest.raises(KeyError, match="optimiser"):
        benchmark_record.cell_of(made, optimiser="muon")


def test_every_lever_has_a_test():
    tested = {row[0] for row in test_levers_of_a_language_model.pytestmark[0].args[1]}
    records = (levers.LEVERS, levers.SOURCE, levers.CONTEXTS)
    mine = {name for name, each in LEDGER.items() if each.record in records}
    again = {name for name in mine if name.replace("source_", "text_") in tested} - tested
    assert tested | again == mine
    for name in again:  # decided by the same function from another record
        assert LEDGER[name].decide is LEDGER[name.replace("source_", "text_")].decide


def test_what_is_shared_is_more_than_by_chance_and_needs_both_kinds():
    decide = LEDGER["weights_make_activations"].decide
    assert decide(_related(4, [0.9, 0.8, 1.0])).says == HOLDS
    assert decide(_related(4, [0.05, 0.0, 0.08])).says == FAILS
    assert decide(_related(4, [0.2, 0.0, 0.4])).says == UNDECIDED
    nothing = decide(_related(0, [None, None, None]))
    assert nothing.says == UNDECIDED
    assert "weights 1.0, activations 2.0; never both" in nothing.numbers


def _treated(ratio, **changes):
    site = {"top": [[2.0 * ratio, 1.0], [1.0, 1.0]], "median": [2.0, 1.0]}
    effects = [
        {"kind": "activations", "detector": "largest", "treatment": name.replace("_", " "),
         "control": control, "change": [9.0, 8.0, 10.0] if control else change}
        for name, change in changes.items() for control in (False, True)
    ]  # fmt: skip
    return {
        "parts": {
            "positions": {"sites": {"block_out": site}},
            "interventions": {"effects": effects},
        }
    }


def test_treatments_of_the_largest_activation_need_one_that_is_massive():
    free, dear = [0.0, -0.001, 0.001], [0.5, 0.4, 0.6]
    mean, critical = (
        LEDGER[name].decide for name in ("set_to_mean", "massive_activations_are_critical")
    )
    for change, at_mean, at_zero in ((free, HOLDS, FAILS), (dear, FAILS, HOLDS)):
        record = _treated(150.0, set_to_mean=change, set_to_zero=change)
        assert (mean(record).says, critical(record).says) == (at_mean, at_zero)
        record = _treated(50.0, set_to_mean=change, set_to_zero=change)
        assert (mean(record).says, critical(record).says) == (UNDECIDED, UNDECIDED)
    nothing = mean(_treated(150.0, set_to_mean=[1e-8, -1e-8, 2e-8]))
    assert nothing.says == UNDECIDED
    assert "whose state is its mean in every text" in nothing.numbers


def test_thresholds_that_are_younger_than_their_record_say_so(rows):
    table = claims.table(rows).to_markdown()
    for name, row in rows.items():
        (line,) = [each for each in table.splitlines() if LEDGER[name].statement in each]
        assert ("(set after the run)" in line) == (not row.get("threshold_before_record", True))


def test_wrong_flags_are_one_line(run_claims):
    done = run_claims("--run=no_such_claim")
    assert done.status == 2
    assert done.err.startswith("error: --run=no_such_claim: unknown; accepted: all, attention_")
    assert done.err.count("\n") == 1


def test_the_budget_is_kept(run_claims, tmp_path):
    done = run_claims("--run=removal_harms,set_to_mean", "--budget=-1", f"--workdir={tmp_path}")
    assert done.status == 0
    assert "removal_harms: not run, the budget is spent" in done.out
    assert "set_to_mean: not run, the budget is spent" in done.out
    assert not list(tmp_path.iterdir())
