"""The ledger: verdicts are what the records say, and a record that says otherwise changes them."""

import copy
import json

import pytest

from experiments import claims, ledger
from experiments.ledger import FAILS, HOLDS, LEDGER, UNDECIDED, above, below, together
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
    with pytest.raises(InputError, match="--write wrote"):
        claims.check(rows, tmp_path / "none.json")


def test_intervals_decide():
    inside, over, under = Interval(1, 0, 2), Interval(3, 2, 4), Interval(-1, -2, 0.5)
    assert [above(x, 1.0) for x in (inside, over, under)] == [UNDECIDED, HOLDS, FAILS]
    assert [below(x, 1.0) for x in (inside, over, under)] == [UNDECIDED, FAILS, HOLDS]
    assert above(Interval(5, float("nan"), float("nan")), 1.0) == UNDECIDED  # one seed
    assert together([HOLDS, HOLDS]) == HOLDS
    assert together([HOLDS, UNDECIDED]) == UNDECIDED
    assert together([UNDECIDED, FAILS, HOLDS]) == FAILS


def _study(**measures):
    """A record of a study in which every variant has the same measures, [seeds]."""
    variants = {
        name: {"measured": {"measures": {key: [value] for key, value in measures.items()}}}
        for name in ledger.PAPER
    }
    return {"studies": [{"name": "backcopy", "variants": variants}]}


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


def _forms(gate, constant):
    changes = zip(gate, constant, strict=True)
    return {
        "models": [
            {"forms": {"gate": {"change": [g]}, "constant": {"change": [c]}}} for g, c in changes
        ]
    }


def test_a_gate_must_be_free_and_better_than_a_constant():
    decide = LEDGER["the_factor_can_be_made_explicit"].decide
    assert decide(_forms([0.0, 0.001, 0.002], [0.1, 0.11, 0.12])).says == HOLDS
    assert decide(_forms([0.2, 0.21, 0.22], [0.1, 0.11, 0.12])).says == FAILS
    assert decide(_forms([0.0, 0.001, 0.002], [0.0, 0.001, 0.002])).says == UNDECIDED


def test_thresholds_that_are_younger_than_their_record_say_so(rows):
    table = claims.markdown_table(rows)
    for name, row in rows.items():
        (line,) = [each for each in table.splitlines() if LEDGER[name].statement in each]
        assert ("(set after the run)" in line) == (not row.get("threshold_before_record", True))


def test_wrong_flags_are_one_line(run_claims):
    done = run_claims("--run=no_such_claim")
    assert done.status == 2
    assert done.err.startswith("error: --run=no_such_claim: unknown; accepted: all, attention_")
    assert done.err.count("\n") == 1


def test_the_budget_is_kept_and_claims_without_a_record_are_named(run_claims, tmp_path):
    done = run_claims("--run=removal_harms,set_to_mean", "--budget=-1", f"--workdir={tmp_path}")
    assert done.status == 0
    assert "removal_harms: not run, the budget is spent" in done.out
    assert "set_to_mean: no record yet" in done.out
    assert not list(tmp_path.iterdir())
