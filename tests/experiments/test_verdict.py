"""Every command ends with at most three lines and a command that can be typed, in 80 columns."""

import copy
import importlib
import json
import shlex
import shutil
import subprocess
import sys

import numpy as np
import pytest
from absl import flags
from rich.cells import cell_len
from rich.console import Console

from experiments import claims
from experiments.cli.tables import Section
from experiments.cli.verdict import (
    LINE,
    Verdict,
    again,
    conclude,
    conversion,
    few,
    given,
    of_model,
    of_one,
)
from experiments.reports import claims_report, compress_report, convert_report, variants_report
from sysout_jax.report.tables import tables
from sysout_jax.results import provenance, read_record
from tests import usage
from tests.experiments.conftest import _binary
from tests.images import ink
from tests.pages import ROOT

RESULTS = ROOT / "results"
OF_MODULE = {"compression": "compress", "analysis": "analyze"}
# run directory -> the module that makes such
MADE = {
    path.parent: OF_MODULE.get(name, name)
    for path in sorted(RESULTS.rglob("result.json"))
    if not (name := json.loads(path.read_text()).get("experiment", "benchmarks.")).startswith(
        "benchmarks."
    )
}
ONE_OF_EACH = {module: path for path, module in reversed(MADE.items())}


def check(verdict):
    assert verdict.found
    assert all(len(text) <= LINE and "\n" not in text for text in verdict[:-1]), verdict
    name, *arguments = verdict.next
    usage.define(importlib.import_module(f"experiments.{name}"))
    flags.FLAGS([name, *arguments])  # the command has these flags


@pytest.mark.parametrize("directory", MADE, ids=lambda path: str(path.relative_to(RESULTS)))
def test_of_every_record(directory):
    report = importlib.import_module(f"experiments.{MADE[directory]}").REPORT
    check(report.verdict(read_record(directory), directory))


@pytest.mark.parametrize("name", ["assumptions", "causal", "convert", "explicit", "tour"])
def test_a_record_alone_is_drawn_again(name, tmp_path):
    """Those whose own tests do not."""
    shutil.copy(ONE_OF_EACH[name] / "result.json", tmp_path)
    done = _binary(importlib.import_module(f"experiments.{name}"))(f"--redraw={tmp_path}")
    assert (done.status, done.err) == (0, "")
    drawn = sorted((tmp_path / "figures").glob("*.png"))
    assert drawn
    assert all(0.02 < ink(each) < 0.8 for each in drawn)


def test_of_what_has_no_record():
    check(variants_report.catalogue()[-1])
    check(claims_report.verdict(claims.ledger()))


@pytest.mark.parametrize("name", ONE_OF_EACH)
def test_the_end_fits_and_comes_last(name, monkeypatch, tmp_path):
    module = importlib.import_module(f"experiments.{name}")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    shutil.copy(ONE_OF_EACH[name] / "result.json", "run")
    done = _binary(module)("--redraw=run", drawn=False)
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert max(map(cell_len, lines)) <= 80
    end = [line[:9].strip() for line in lines[lines.index("record   run/result.json") + 1 :]]
    kinds = [label for label in end if label]
    assert (kinds[0], kinds[-1]) == ("found", "next")
    assert set(kinds[1:-1]) <= {"means", "but"}
    assert len(end) - end.index("next") <= 4  # a command of a few lines


@pytest.mark.parametrize(
    ("module", "path", "value"),
    [
        ("analyze", ("parts",), None),
        ("analyze", ("parts",), []),
        ("assumptions", ("models", 0, "hulls"), []),
        ("convert", ("models", 0, "check", "generated"), [["once"]]),
        ("compress", ("models", 0, "methods", "w8a8", "change"), []),
        ("explicit", ("models", 0, "forms", "extra_key", "change"), []),
        ("convert", ("provenance", "command"), 7),
    ],
)
def test_a_damaged_record_is_one_line(module, path, value, tmp_path):
    record = read_record(ONE_OF_EACH[module])
    *above, last = path
    at = record
    for key in above:
        at = at[key]
    assert at[last] != value
    at[last] = value
    (tmp_path / "result.json").write_text(json.dumps(record))
    done = _binary(importlib.import_module(f"experiments.{module}"))(f"--redraw={tmp_path}")
    assert done.refusal.startswith(f"--redraw={tmp_path}: result.json is no record of this")


def test_flags_beside_redraw_are_refused(run_tour, tmp_path):
    done = run_tour(f"--redraw={ONE_OF_EACH['tour']}", "--sequences=4")
    assert done.refusal == "--sequences: no effect; accepted: without --redraw"


def test_analyze_prints_the_tables_of_its_findings(tmp_path, run_analyze):
    shutil.copy(ONE_OF_EACH["analyze"] / "result.json", tmp_path)
    record = read_record(tmp_path)
    made = tables(record)
    whole = run_analyze(f"--redraw={tmp_path}", "--markdown", drawn=False)
    assert whole.out == "\n\n".join(each.to_markdown() for each in made.values()) + "\n"
    rows = run_analyze(f"--redraw={tmp_path}", "--csv", drawn=False).out
    assert all(f"# {each.title or name}\n{each.to_csv()}" in rows for name, each in made.items())
    assert json.loads(run_analyze(f"--redraw={tmp_path}", "--json", drawn=False).out) == record
    assert "found  " in whole.err


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_command_is_one_to_a_shell(width, monkeypatch):
    console = Console(width=width)
    command = ("x", "--model=a b", "--corpus=some/where/far", "--out=converted")
    monkeypatch.setattr(sys, "orig_argv", ["a b/python", "-m", "experiments.y", "--a=b"])
    with console.capture() as said:
        conclude(console, Verdict("found " * 20, "", "but", command))
    lines = said.get().splitlines()
    assert max(map(len, lines)) <= width
    assert not any(line.startswith("means") for line in lines)
    begun = next(at for at, line in enumerate(lines) if line.startswith("next"))
    typed = "\n".join(line[9:] for line in lines[begun:])
    words = subprocess.run(
        ["sh", "-c", f"printf '%s\\n' {typed}"], stdout=subprocess.PIPE, text=True
    )
    assert words.stdout.splitlines() == ["a b/python", "-m", "experiments.x", *command[1:]]


def test_a_command_is_run_as_this_one_was(tmp_path, monkeypatch):
    def said(*argv):
        monkeypatch.setattr(sys, "orig_argv", list(argv))
        console = Console(width=200)
        with console.capture() as capture:
            conclude(console, Verdict("", "", "", ("runs",)))
        return capture.get().removeprefix("next").strip()

    script = tmp_path / "sysout"
    script.touch(mode=0o755)
    assert said(".venv/bin/python", "-m", "experiments.tour", "--model=m") == (
        ".venv/bin/python -m experiments.runs"
    )
    assert said("/bin/python", str(script), "tour") == f"{script} runs"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert said("/bin/python", str(script), "tour") == "sysout runs"


def test_a_command_goes_where_this_one_went(run_runs, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    place = tmp_path / "my runs"
    place.mkdir()
    assert f"tour '--workdir={place}'\n" in run_runs(f"--workdir={place}").out


def test_names_that_have_room_and_flags_that_were_given():
    assert few(["one", "two", "three"]) == "one, two, three"
    assert few(["one", "two", "three"], 14) == "one and 2 more"
    assert few([]) == "none"
    command = "python -m experiments.x --model='a b' --corpus=c --modelling=d -- --seed=1"
    record = {"provenance": {"command": command}}
    assert given(record, "corpus", "model") == ["--model=a b", "--corpus=c"]
    assert given(record) == []


def test_a_command_again():
    command = "python -m experiments.x --model 'a b' --lrs=1,2 --full --name r --json --lr -1"
    record = {"provenance": {"command": command}}
    assert again(record, "--lrs=3") == ["--model=a b", "--full", "--lr=-1", "--lrs=3"]
    assert given(record, "model", "full") == ["--model=a b", "--full"]


def test_a_place_is_left_out_of_a_record_however_it_is_given(monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["x", "--workdir", "/home/me", "--a", "1", "--out=/home/me/o", "--b"]
    )
    assert shlex.split(provenance()["command"])[-2:] == ["--a=1", "--b"]


def test_what_is_long_is_printed_where_it_is_asked_for():
    assert not Section("name", None).asked


def verdict_of(name):
    record = read_record(RESULTS / name)
    module = importlib.import_module(f"experiments.{MADE[RESULTS / name]}")
    return record, module.REPORT.verdict(record, RESULTS / name)


def test_compress_says_what_costs_most_and_what_conversion_saves():
    record, said = verdict_of("compress/smollm2-135m-books")
    (before,) = [m["loss"] for m in record["models"] if "trained" not in m]
    cost = {  # beyond the model as trained, whose loss a conversion moves too
        (model.get("conversion"), method): np.mean(found["losses"]) - before
        for model in record["models"]
        for method, found in model["methods"].items()
    }
    trained = {method: change for (way, method), change in cost.items() if way is None}
    most = max(trained, key=trained.get)
    assert said.found.startswith(f"{most} costs most, {trained[most]:+.3f} nats; ")
    saved = {key: trained[key[1]] - change for key, change in cost.items() if key[0]}
    way, method = max(saved, key=saved.get)
    costs = f"{cost[way, method]:+.3f} of {trained[method]:+.3f}"
    assert said.means == f"after {way} {method} costs {costs}"
    assert f"--weak={way}" in said.next
    way, method = min(saved, key=saved.get)
    assert said.but == f"least: {method}, {way}: {cost[way, method]:+.3f} of " + (
        f"{trained[method]:+.3f}"
    )


@pytest.mark.parametrize(
    ("before", "after", "says"),
    [
        (1500.0, 999.0, "the massive state is gone: max/median |h| is below 1,000"),
        (1500.0, 1000.0, "a massive state is left: max/median |h| is at least 1,000"),
        (40.0, 30.0, "there was no massive state: max/median |h| was below 1,000"),
        (None, None, ""),
    ],
)
def test_convert_says_what_was_measured(before, after, says):
    """A state is massive from 1,000 times the median on (Sun et al. 2024)."""
    record, said = verdict_of("convert/smollm2-135m")
    assert said.but == "not the weights: rows of W_down stand out in layers 2, 9, 11, 28"
    (model,) = record["models"]
    model["said"][-1] = "rows of W_down stand out in no layer"
    model["check"]["over_median"] = [[2.0, before], [after, 1.0]]
    model["check"] = model["check"] if says else None
    said = convert_report.verdict(record, RESULTS)
    assert (said.means, said.but) == (says, "")


def test_compress_of_one_method_and_of_what_nothing_converted():
    """One costs most of none; a model that is as it was has saved nothing."""
    record, _ = verdict_of("compress/smollm2-135m-books")
    record["methods"] = ["w8a8"]
    for model in record["models"]:
        model["methods"] = {"w8a8": model["methods"]["w8a8"]}
        model |= {"kind": "none"} if "trained" in model else {}
    (trained,) = [model for model in record["models"] if "trained" not in model]
    said = compress_report.verdict(record, RESULTS)
    assert said.found == f"w8a8 costs {trained['methods']['w8a8']['change'][0]:+.3f} nats"
    assert said.means == ""
    assert "converted" not in said.but
    assert said.next[0] == "analyze"
    check(said)


def test_compress_compares_means_over_the_same_models():
    """Not of one that a run was stopped in, nor of one that a conversion did nothing to."""
    record, whole = verdict_of("compress/smollm2-135m-books")
    models, name = record["models"], record["models"][0]["name"]
    methods = list(models[0]["methods"])
    worse = copy.deepcopy(models)
    for model in worse:
        model["name"] = model["name"].replace(name, "other")
        model |= {"trained": "other", "kind": "none"} if "trained" in model else {}
        for found in model["methods"].values():
            found["loss"] += 1.0
    record["models"] = models + worse
    said = compress_report.verdict(record, RESULTS)
    assert said.means == whole.means  # of the model that was converted alone
    assert f"--variant={name}" in said.next
    del worse[0]["methods"][methods[0]]
    said = compress_report.verdict(record, RESULTS)
    assert (said.found, said.means) == (whole.found, whole.means)


def test_compress_says_which_methods_leave_no_finite_loss():
    record, _ = verdict_of("compress/smollm2-135m-books")
    record["models"] = [model for model in record["models"] if "trained" not in model]
    broken, *others = record["methods"]
    record["models"][0]["methods"][broken]["loss"] = None
    said = compress_report.verdict(record, RESULTS)
    assert said.but == f"no finite loss: {broken}"
    assert not said.found.startswith(broken)
    for method in others:
        record["models"][0]["methods"][method]["loss"] = None
    said = compress_report.verdict(record, RESULTS)
    assert said.found == "no method is finished with a finite loss"


def test_the_next_command_is_of_the_same_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    of = ["--model=m", "--file=a.gguf", "--bos=no", "--corpus=tokens:t", "--token_dtype=uint16"]
    command = f"python -m experiments.x {' '.join(of)} --name=n --shard=0/2 --sequences=3"
    record = {"provenance": {"command": command}, "models": [{"name": "a"}, {"name": "a"}]}
    assert of_model(record) == of_one(record) == of
    record["models"].append({"name": "b"})
    assert of_one(record) == [*of, "--variant=a"]
    assert again(record, "--lrs=3") == [*of, "--sequences=3", "--lrs=3"]
    assert conversion(of, "--weak=bound") == ("convert", *of, "--weak=bound", "--out=converted")
    (tmp_path / "converted").mkdir()
    (tmp_path / "converted-2").symlink_to("nowhere")
    assert conversion([]) == ("convert", "--out=converted-3")


def test_labels_of_a_terminal_are_plain():
    record, _ = verdict_of("convert/smollm2-135m")
    texts = [str(section.table.texts) for section in convert_report.sections(record)]
    assert "$" not in "".join(texts)


def test_variants_and_laboratory_count_runs_with_a_sink():
    record, said = verdict_of("variants/sinks")
    entries = record["studies"][-1]["variants"].values()
    rates = [entry["measured"]["measures"]["sink_rate@attn_weights"][-1] for entry in entries]
    every = sum(min(of) > 0.1 for of in rates)
    assert f"in every seed of {every} of {len(rates)} variants" in said.found
    record, said = verdict_of("laboratory")
    runs = [[x > 0.3 for x in cell["measures"]["noop_sink_best"]] for cell in record["cells"]]
    some = sum(any(of) and not all(of) for of in runs)
    none = sum(not any(of) for of in runs)
    assert said.found == (
        f"{len(runs)} cells: sinks in every run of {sum(map(all, runs))}, in some of {some}, "
        f"in none of {none}"
    )


def test_variants_within_the_intervals_are_not_said_to_be_alike():
    record, _ = verdict_of("variants/fruitfly-h100")
    study = record["studies"][-1]
    study["variants"]["softmax"]["measured"]["measures"]["massive_activations"][-1][0] = 1.0
    said = variants_report.verdict(record, RESULTS)
    check(said)
    count = len(study["config"]["seeds"])
    assert said.but == f"{count} seeds: what lies within the intervals is not told from chance"


def test_convergence_counts_verdicts_and_goes_beyond_the_edge():
    record, said = verdict_of("convergence/backcopy")
    of = [each["verdict"] for each in record["compared"]["variants"].values()]
    assert f"{of.count('not decided') - 1} not decided of 5 variants" in said.found  # softmax's own
    lrs = [float(x) for x in said.next[-1].removeprefix("--lrs=").split(",")]
    assert lrs[0] < min(record["lrs"]) < max(record["lrs"]) < lrs[1]


def test_claims_are_counted():
    rows = claims.ledger()
    status = [row["status"] for row in rows.values()]
    said = claims_report.verdict(rows)
    assert f"{len(rows)} tests: {status.count('supported')} supported" in said.found
    assert said.but.startswith(f"{status.count('not measured')} are not measured")
    whole = {section.name: section.table for section in claims_report.sections(rows)}
    assert [row[0] for row in whole["tests"].rows] == list(rows)
