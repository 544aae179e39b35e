"""The ledger: statuses are what records say, corrected for their number and kept in claims.json."""

import copy
import io
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from experiments import claims
from experiments.cli.tables import print_table
from experiments.ledger import registry, table
from experiments.ledger.claim import SETTINGS, Trial
from experiments.ledger.evidence import (
    EQUIVALENT,
    INAPPLICABLE,
    INCONCLUSIVE,
    REFUTED,
    SUPERSEDED,
    SUPPORTED,
    UNMEASURED,
)
from experiments.ledger.predicates import Has, Share
from experiments.ledger.table import STATEMENTS, TESTS
from experiments.records import units
from experiments.records.commands import COMMANDS
from experiments.reports import claims_report
from sysout_jax.errors import InputError

STATUSES = {SUPPORTED, REFUTED, EQUIVALENT, INCONCLUSIVE, INAPPLICABLE, UNMEASURED, SUPERSEDED}
NAME = "sinks_form.source"


@pytest.fixture(scope="module")
def rows():
    return claims.ledger()


@pytest.fixture(scope="module")
def stored():
    return table.read_stored(claims.VERDICTS)


def test_the_file_says_what_the_records_say(rows):
    """To renew it: `python -m experiments.claims --write`."""
    claims.check(rows, claims.VERDICTS)


def test_every_claim_says_what_decides_it(rows):
    assert list(rows) == list(TESTS)
    assert len({each.name for each in STATEMENTS}) == len(STATEMENTS)
    assert len({each.says for each in STATEMENTS}) == len(STATEMENTS)
    for name, (statement, setting, test) in TESTS.items():
        assert statement.says
        assert statement.source
        assert setting in SETTINGS
        assert rows[name]["status"] in STATUSES
        assert bool(test.superseded) == (rows[name]["status"] == SUPERSEDED)
        assert not test.superseded or test.superseded in {each.name for each in STATEMENTS}
        for record in test.records.split(", "):
            there = (claims.RESULTS / record / "result.json").exists()
            assert record in COMMANDS or not there
            assert there or rows[name]["status"] == UNMEASURED
        assert not (test.held and test.renews)


# ---------------------------------------------------------------------- the number of claims


def _corrected(p):
    rows = {str(at): {"p": each, "alone": SUPPORTED} for at, each in enumerate(p)}
    table.corrected(rows)
    return list(rows.values())


def test_p_values_are_adjusted_for_all_that_were_tested():
    p = [0.04, 0.001, 0.02, 0.3, 0.012]
    found = _corrected([*p, None])
    ranked = sorted(p)
    m = len(p)
    for each, row in zip(p, found, strict=False):
        i = ranked.index(each)
        holm = max(min(1.0, (m - j) * ranked[j]) for j in range(i + 1))
        rate = min(min(1.0, m / (j + 1) * ranked[j]) for j in range(i, m))
        assert row["holm"] == pytest.approx(holm)
        assert row["bh"] == pytest.approx(rate)
        assert row["status"] == (SUPPORTED if rate < 0.05 else INCONCLUSIVE)
    assert [row["status"] for row in found[:5]].count(SUPPORTED) == 3
    assert found[5] == {
        "p": None, "alone": SUPPORTED, "status": SUPPORTED, "holm": None, "bh": None
    }  # fmt: skip


def test_holm_keeps_the_order_of_what_it_was_given():
    p = np.array([0.5, 0.01, 0.01, 0.9])
    assert table.holms(p).tolist() == pytest.approx([1.0, 0.04, 0.04, 1.0])


def test_what_was_tested_is_what_is_corrected_for(rows):
    tested = [row for row in rows.values() if row["p"] is not None]
    assert len(tested) > 30
    for row in rows.values():
        assert (row["bh"] is None) == (row["p"] is None)
        assert row["status"] == row["alone"] or row["status"] == INCONCLUSIVE
        if row["status"] in (SUPPORTED, REFUTED, EQUIVALENT):
            assert row["p"] <= row["bh"] < 0.05


# -------------------------------------------------------------------------------- judging


def _benchmark(*rates):
    cell = {"variant": "softmax", "measures": {"sink": list(rates)}, "compressed": {"w4a4": [0.5]}}
    return {
        "experiment": "benchmark", "train": {"seeds": list(range(len(rates)))},
        "provenance": {"started": "2026-01-02T00:00:00Z"},
        "cells": [{"optimizer": "adamw", "norm": "own", "setting": "own", **cell}],
    }  # fmt: skip


def test_what_compression_costs_a_cell_is_read_by_its_method():
    made = _benchmark(1.0)
    assert units.values(made, "softmax", "w4a4").tolist() == [0.5]
    with pytest.raises(units.Unmeasured, match="w8a8 of softmax"):
        units.values(made, "softmax", "w8a8")


def test_a_record_that_is_not_there_leaves_a_claim_not_measured():
    test = Trial(Share(Has("sink", 0.3)), "one, other")
    made = _benchmark(*[1.0] * 6)
    assert table.judge(test, [made, None]).says == UNMEASURED
    assert table.judge(test, [made, made]).says == SUPPORTED
    lacking = table.judge(Trial(Share(Has("sank", 0.3)), "one"), [made])
    assert (lacking.says, lacking.numbers) == (UNMEASURED, "sank of softmax")
    other = Share(Has("sink", 0.3), ("softmax norm=qk",))
    assert table.judge(Trial(other, "one"), [made]).says == UNMEASURED
    later = table.judge(Trial(Share(Has("sink", 0.3)), "one", superseded="that"), [made])
    assert (later.says, later.p) == (SUPERSEDED, None)
    assert later.numbers.endswith("see that")


def test_cells_that_diverged_are_not_measured():
    made = _benchmark(1.0)
    made["cells"][0]["diverged"] = {"step": 3}
    assert table.judge(Trial(Share(Has("sink", 0.3)), "one"), [made]).says == UNMEASURED


# ------------------------------------------------------------------------------ registration


@pytest.fixture
def clone(tmp_path, monkeypatch):
    """A clone with a history of one's own: a function that commits files at a day of 2026."""
    registry.git.cache_clear()
    registry._commits.cache_clear()
    registry._version.cache_clear()

    def git(*arguments, **env):
        subprocess.run(
            ["git", "-C", tmp_path, "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            check=True, capture_output=True, env={"PATH": "/usr/bin:/bin", **env},
        )  # fmt: skip

    def commit(day, **files):
        for name, value in files.items():
            path = (
                tmp_path
                / "results"
                / ("claims.json" if name == "claims" else f"{name}/result.json")
            )
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(value))
        git("add", ".")
        when = f"2026-01-{day:02d}T12:00:00+00:00"
        git("commit", "-m", "x", "--date", when, GIT_COMMITTER_DATE=f"2026-03-{day:02d}T12:00:00Z")

    git("init")
    monkeypatch.setattr(registry, "ROOT", tmp_path)
    yield commit
    registry.git.cache_clear()
    registry._commits.cache_clear()
    registry._version.cache_clear()


def _begun(day, *seeds, measure="sink"):
    cell = {"variant": "softmax", "optimizer": "adamw", "norm": "own", "setting": "own",
            "measures": {measure: [1.0] * len(seeds)}, "compressed": {}}  # fmt: skip
    return {"experiment": "benchmark", "train": {"seeds": list(seeds)}, "cells": [cell],
            "provenance": {"started": f"2026-01-{day:02d}T00:00:00Z"}}  # fmt: skip


TEST = Trial(Share(Has("sink", 0.3)), "run")
HELD = {"a.books": {"threshold": TEST.predicate.threshold}}


def test_a_threshold_before_the_first_version_of_its_record_predicts(clone):
    clone(2, claims=HELD)
    clone(9, run=_begun(8, 1, 2))
    found = registry.registration("a.books", TEST, {"run": _begun(8, 1, 2)}, {})
    assert (found["written"], found["first"]) == (
        "2026-01-02T12:00:00+00:00", "2026-01-08T00:00:00Z"
    )  # fmt: skip
    assert found["predicted"]
    assert registry.registration("b.books", TEST, {"run": _begun(8, 1, 2)}, {})["written"] is None


@pytest.mark.parametrize(("again", "predicted"), [((1, 2), False), ((3, 4), True)])
def test_a_record_made_again_with_the_same_seeds_stays_what_it_was(clone, again, predicted):
    clone(1, run=_begun(1, 1, 2))
    clone(2, claims=HELD)
    clone(9, run=_begun(8, *again))
    found = registry.registration("a.books", TEST, {"run": _begun(8, *again)}, {})
    assert found["predicted"] == predicted
    assert found["first"] == f"2026-01-{8 if predicted else 1:02d}T00:00:00Z"


def test_a_cell_that_came_later_counts_from_then(clone):
    clone(1, run=_begun(1, 1, 2, measure="other"))
    clone(2, claims=HELD)
    clone(9, run=_begun(8, 1, 2))
    assert registry.registration("a.books", TEST, {"run": _begun(8, 1, 2)}, {})["predicted"]


def test_a_threshold_counts_from_the_commit_that_changed_it(clone):
    clone(2, claims={"a.books": {"threshold": "another"}})
    clone(5, claims=HELD)
    clone(6, claims=HELD | {"b.books": {}})
    found = registry.registration("a.books", TEST, {"run": _begun(4, 1)}, {})
    assert (found["written"][:10], found["predicted"]) == ("2026-01-05", False)

    def registered(held):
        test = Trial(TEST.predicate, "run", held=held)
        return registry.registration("c.books", test, {"run": _begun(6, 1)}, {})

    assert registered(f"{found['commit']} a.books")["predicted"]
    with pytest.raises(InputError, match="a commit of this history"):
        registered("0123456 a.books")
    with pytest.raises(InputError, match="a claim in the ledger of that commit"):
        registered(f"{found['commit']} b.books")  # which came a commit later


def test_without_git_the_stored_registration_holds(monkeypatch):
    monkeypatch.setattr(registry, "git", lambda *arguments: None)
    stored = {"commit": "abc", "written": "2026-01-01", "first": "2026-01-02", "predicted": True}
    assert registry.registration("a.books", TEST, {"run": _begun(8, 1)}, stored) == stored
    none = registry.registration("a.books", TEST, {"run": _begun(8, 1)}, {})
    assert none == {"commit": None, "written": None, "first": None, "predicted": False}


def test_the_ledger_that_a_threshold_is_from_names_it():
    if registry.git("log", "-1", "--format=%h") is None:
        pytest.skip("no git history here")
    for name, (_, _, test) in TESTS.items():
        for says in filter(None, (test.held, test.renews)):
            commit, *names = says.replace(",", "").split()
            for each in names:
                found = registry.git("grep", "-lw", each, commit, "--", "experiments")
                assert found, f"{name}: {commit} has no {each}"


# ------------------------------------------------------------------------------ the check


def test_a_status_that_is_not_the_records_is_found(rows, stored, tmp_path):
    file = tmp_path / "claims.json"
    for key, value in (("status", REFUTED), ("numbers", "7 of 8"), ("p", 0.5), ("first", "2020")):
        stated = copy.deepcopy(stored)
        stated[NAME] |= {"written": rows[NAME]["written"] or "2026", key: value}
        file.write_text(json.dumps(stated))
        with pytest.raises(InputError, match=rf"says otherwise of {NAME}"):
            claims.check(rows, file)
    del stated[NAME]
    file.write_text(json.dumps(stated))
    with pytest.raises(InputError, match=rf"says otherwise of {NAME};"):
        claims.check(rows, file)
    with pytest.raises(InputError, match="what write wrote"):
        claims.check(rows, tmp_path / "none.json")


def test_a_threshold_is_not_changed_in_silence(rows, stored, tmp_path):
    stated = copy.deepcopy(stored)
    stated[NAME]["threshold"] = rows[NAME]["threshold"].replace("0.1", "0.12")
    file = tmp_path / "claims.json"
    file.write_text(json.dumps(stated))
    with pytest.raises(InputError, match=rf"{NAME}: its threshold was .*0\.12.*renews"):
        claims.check(rows, file)
    row = rows[NAME] | {"renews": "abc sinks_form.source"}
    registry.refuse_changes({NAME: row}, stated)  # it says what it renews, and said so never before
    stated[NAME]["renews"] = row["renews"]
    with pytest.raises(InputError, match="its threshold was"):
        registry.refuse_changes({NAME: row}, stated)


def test_a_commit_is_known_by_its_time(rows, stored, tmp_path):
    """A rebase gives commits other names."""
    stated = copy.deepcopy(stored)
    for row in stated.values():
        row["commit"] = "0123456"
    file = tmp_path / "claims.json"
    file.write_text(json.dumps(stated))
    claims.check(rows, file)


# ------------------------------------------------------------------------------ the pages


def test_the_matrix_has_every_claim_and_setting(rows):
    cells = claims_report.matrix(rows).texts
    assert cells[0] == ["claim", *SETTINGS]
    assert [row[0] for row in cells[1:]] == [each.says for each in STATEMENTS]
    assert sum(cell != "" for row in cells[1:] for cell in row[1:]) == len(TESTS)
    assert max(len(cell) for row in cells[1:] for cell in row[1:]) <= 12
    page = claims_report.markdown_ledger(rows, table.WITHDRAWN)
    for row in rows.values():
        assert row["numbers"].replace("|", "\\|") in page
        assert row["threshold"] in page
    lines = claims_report.markdown_summary(rows).splitlines()
    assert max(map(len, lines)) <= 120
    told = " ".join(lines)
    assert f"supported {[row['status'] for row in rows.values()].count(SUPPORTED)}," in told


def test_the_matrix_can_be_read_at_80_columns(rows):
    """In parts, rather than with claims a few letters wide."""
    console = Console(width=80, record=True, file=io.StringIO())
    print_table(console, claims_report.matrix(rows))
    lines = console.export_text().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum("Softmax attention develops" in line for line in lines) > 1


# ----------------------------------------------------------------------------- the command


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (("--run=no_such_claim",), "--run=no_such_claim: unknown; accepted: all, sinks_form."),
        (("--run=",), "--run=: accepted: at least one, none of them twice"),
        (("--run=all", "--check"), "--check: no effect; accepted: without --run"),
        (("--run=all", "--write"), "--write: no effect; accepted: without --run"),
        (("--run=all", "--json"), "--json: no effect; accepted: without --run"),
        (("--run=all", "--wide"), "--wide: no effect; accepted: without --run"),
        (("--write", "--check"), "--check: what was just written says the same; accepted: without"),
        (("--budget=30",), "--budget=30.0: no effect; accepted: with --run"),
        (("--run=all", "--budget=nan"), "--budget=nan: accepted: a finite number of at least 0"),
        (("--run=all", "--budget=-1"), "--budget=-1.0: accepted: a finite number of at least 0"),
    ],
)
def test_wrong_flags_are_one_line(run_claims, flags, line, monkeypatch):
    monkeypatch.setattr(claims, "run", lambda *_: None)
    monkeypatch.setattr(claims, "write_json", lambda *_: None)
    assert run_claims(*flags).refusal.startswith(line)


def test_the_budget_is_kept(run_claims, tmp_path):
    names = ("removal_harms.backcopy", "weight_decay.laboratory")
    done = run_claims(f"--run={','.join(names)}", "--budget=0", f"--workdir={tmp_path}")
    assert done.status == 0  # no longer -1, which is no budget and refused
    for name in names:
        assert f"{name}: not run, the budget is spent" in done.out
    assert not list(tmp_path.iterdir())


def test_a_run_that_several_records_start_from_is_made_once(monkeypatch, tmp_path, run_claims):
    ran, missing = [], []

    def command(arguments, **_):
        ran.append(arguments[2:])
        names = [each.removeprefix("--name=") for each in arguments if each.startswith("--name=")]
        place = tmp_path / arguments[2].partition(".")[2] / (*names, "latest")[0]
        place.mkdir(parents=True, exist_ok=True)
        (place / "result.json").write_text(json.dumps(_benchmark(*[1.0] * 6)))
        return subprocess.CompletedProcess(arguments, 2 if set(missing) & set(arguments) else 0)

    monkeypatch.setattr(claims.subprocess, "run", command)
    names = "sinks_form.books,massive_activations_form.books,removal_harms.books"
    done = run_claims(f"--run={names}", f"--workdir={tmp_path}")
    assert done.status == 0
    assert [each[0] for each in ran] == ["experiments.variants"] * 2 + ["experiments.explicit"]
    assert f"--model={tmp_path / 'variants'}" in " ".join(ran[-1])
    with monkeypatch.context() as without:
        without.setattr(claims, "COMMANDS", {})
        said = run_claims("--run=removal_harms.books").out
    assert "no command makes explicit/fruitfly-h100 yet" in said
    ran.clear()
    missing = ["--corpus=tokens:.cache/books"]  # what it lacks, the others do not need
    done = run_claims(f"--run={names},sinks_form.source", f"--workdir={tmp_path}")
    assert done.refusal.startswith(f"--run: not measured, see above: {names.replace(',', ', ')}")
    assert done.out.count(" not run, 'experiments.variants --corpus=tokens:.cache/books") == 3
    assert [each[0] for each in ran] == ["experiments.variants"] * 3 + ["experiments.benchmark"]
    assert "sinks_form.source: " in done.out


def test_what_a_command_writes_goes_below_the_workdir(monkeypatch, tmp_path):
    """Whose name may have a blank; a second time another place is free."""
    ran, place = [], tmp_path / "my runs"

    def command(arguments, **_):
        ran.append(arguments[2:])
        (out,) = [each.removeprefix("--out=") for each in arguments if each.startswith("--out=")]
        Path(out).mkdir(parents=True)
        return subprocess.CompletedProcess(arguments, 3)

    monkeypatch.setattr(claims.subprocess, "run", command)
    run = "experiments.convert --model=RUN --out=.cache/a"
    for _ in range(2):
        why = claims._run(run, place / "variants" / "latest", place, Console())
        assert why.endswith("ended with status 3")
    assert ran == [
        ["experiments.convert", f"--model={place}/variants/latest", f"--out={place}/{out}",
         f"--workdir={place}"]
        for out in ("a", "a-2")
    ]  # fmt: skip
