"""The analysis as a user meets it: a run in; record, figures, a page, or one line out."""

import base64
import html
import json
import re
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from experiments import analyze
from sysout_jax.data import load_corpus, load_tokenizer
from sysout_jax.families.known import Known
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import init
from sysout_jax.report import interactive
from sysout_jax.report.findings import PARTS
from sysout_jax.report.page import page
from sysout_jax.training.checkpoint import save
from tests.site import chromium


@pytest.fixture(scope="module")
def trained(run_variants, tmp_path_factory):
    """Bigram-Backcopy, long enough for a sink, with checkpoints; the model is there twice."""
    workdir = tmp_path_factory.mktemp("trained")
    run = run_variants(
        "--corpus=backcopy", "--variants=softmax", "--steps=1000", "--measure_every=1000",
        "--checkpoint_every=200", "--seeds=3,5", f"--workdir={workdir}",
    ).directory  # fmt: skip
    shutil.copytree(run / "models" / "backcopy-softmax", run / "models" / "backcopy-other")
    return run


@pytest.fixture(scope="module")
def finished(trained, run_analyze, tmp_path_factory):
    """A complete analysis of it."""
    workdir = tmp_path_factory.mktemp("analyses")
    return run_analyze(
        f"--model={trained}", "--variant=softmax", "--seed=5", "--sequences=12",
        f"--workdir={workdir}",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ("--seed=3", "--seed=3: the record in {} has 5; accepted: that, or another --name"),
        ("--only=roles", "--only=roles: the record in {} has existence,positions"),
        ("--sequences=11", "--sequences=11: the record in {} has 12; accepted: that, or"),
    ],
)
def test_a_name_is_of_one_analysis(finished, trained, run_analyze, tmp_path, changed, line):
    """What was found with other settings is not written over."""
    mine = tmp_path / "analyze" / "mine"
    shutil.copytree(finished.directory, mine)
    before = (mine / "result.json").read_bytes()
    refused = run_analyze(
        f"--model={trained}", "--variant=softmax", "--seed=5", "--sequences=12",
        f"--workdir={tmp_path}", "--name=mine", changed,
    )  # fmt: skip
    assert refused.refusal.startswith(line.format(mine))
    assert (mine / "result.json").read_bytes() == before


def test_a_name_is_free_while_nothing_is_found(finished, trained, run_analyze, tmp_path):
    mine = tmp_path / "analyze" / "mine"
    shutil.copytree(finished.directory, mine)
    record = json.loads((mine / "result.json").read_text())
    (mine / "result.json").write_text(json.dumps(record | {"status": "failed", "parts": {}}))
    done = run_analyze(
        f"--model={trained}", "--variant=softmax", "--seed=5", "--sequences=12", "--only=existence",
        f"--workdir={tmp_path}", "--name=mine", drawn=False,
    )  # fmt: skip
    assert list(done.record["parts"]) == ["existence"]


# ------------------------------------------------------------------------- what is found


def test_a_trained_backcopy_model_has_a_sink_and_no_other_outlier(record, finished):
    parts = record["parts"]
    assert list(parts) == list(PARTS)
    found = {f["detector"]: f for f in parts["existence"]["found"]}
    assert found["an_attention"]["tokens"][0] == 0
    assert not any(found[n]["layers"] for n in ("an_block_out", "an_down_in", "sun"))
    assert parts["existence"]["weights"]["outliers"] == []
    sink = parts["positions"]["kinds"]["an_attention"]
    assert sink["sequences"] == 12
    assert sink["classes"][0] == 12
    # 0.1 of 32 queries are three, which may copy from one key: only the first is always flagged.
    assert sink["positions"][0] == [0, 12]
    assert sink["flagged"] <= 15
    assert parts["positions"]["heads"][0][0] > 0.5
    assert parts["roles"]["shares"]["sink"] == 1
    effects = {
        (e["treatment"], e["control"]): e["change"][0]
        for e in parts["interventions"]["effects"]
        if e["detector"] == "an_attention"
    }
    assert effects["removed, rows renormalised", False] > 0.03
    assert abs(effects["removed, rescaled by S", False]) < 0.02
    assert "% initial (text: 3%)" in " ".join(finished.out.split())  # wherever lines break
    sink = next(e for e in parts["dynamics"]["emergence"] if e["kind"] == "attention sink")
    assert parts["dynamics"]["steps"] == [0, 200, 400, 600, 800, 1000]
    assert sink["changed"]
    assert 0 < sink["step"] <= 600
    assert parts["seeds"]["seeds"] == [3, 5]
    same = {(row["given"], row["on"]): row for row in parts["seeds"]["rows"]}
    assert same["flagged", "tokens"]["jaccard"][0] > 0.5  # the first token of every sequence
    assert same["flagged", "channels"]["jaccard"][0] is None
    assert "flagged channels of seeds 3, 5: none in any seed" in finished.out
    assert {fit["law"] for fit in sink["fits"]} == {"linear", "logarithmic", "square root"}


def test_the_last_checkpoint_is_the_model(trained):
    """So that dynamics end where the other parts begin."""
    kept = trained / "checkpoints" / "backcopy-softmax" / "step-0001000-seed-3"
    model = so.load(trained / "models" / "backcopy-softmax", 5)
    for a, b in zip(
        *(np.asarray(x["embed"]) for x in (so.load(kept, 5).params, model.params)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    first = so.load(kept.with_name("step-0000000-seed-3"), 5)
    assert np.abs(np.asarray(first.params["embed"])).max() < 0.2


# ------------------------------------------------------------------------- record and files


def test_a_run_leaves_a_whole_record(finished, record):
    directory = finished.directory
    assert record["status"] == "complete"
    assert (record["name"], record["seed"], record["corpus"]) == ("backcopy-softmax", 5, "backcopy")
    assert (record["sequences"], record["seq_len"]) == (12, 32)
    assert json.loads((directory / "config.json").read_text())["sequences"] == 12
    figures = {path.stem for path in (directory / "figures").glob("*.png")}
    assert figures == {path.stem for path in (directory / "figures").glob("*.pdf")}
    assert figures >= {
        "existence", "positions-layers", "positions-tokens", "positions-features",
        "positions-heads", "lifecycle-trace", "lifecycle-emergence", "lifecycle-spread", "roles",
        "measures", "interventions", "dynamics",
    }  # fmt: skip
    assert not [path for path in directory.rglob(".*")]
    assert "finished existence, positions" in finished.out
    assert "model    backcopy-softmax, seed 5 of 3, 5" in finished.out


def test_redraw_needs_the_record_alone(finished, run_analyze, tmp_path):
    record = finished.record
    record["parts"] = {name: record["parts"][name] for name in ("existence", "dynamics")}
    (tmp_path / "result.json").write_text(json.dumps(record))
    assert run_analyze(f"--redraw={tmp_path}").status == 0
    drawn = list((tmp_path / "figures").glob("*.*"))
    assert {path.stem for path in drawn} >= {"existence", "dynamics"}
    for path in drawn:
        assert (finished.directory / "figures" / path.name).read_bytes() == path.read_bytes()


# ------------------------------------------------------------------------- the page


def test_the_page_needs_no_other_file_and_no_network(finished, record):
    whole = (finished.directory / "report.html").read_text()
    images = re.findall(r'<img [^>]*src="data:image/png;base64,([^"]+)"', whole)
    drawn = sorted((finished.directory / "figures").glob("*.png"))
    assert len(images) == whole.count("<img ") == len(drawn)
    assert {base64.b64decode(image) for image in images} == {p.read_bytes() for p in drawn}
    own = whole.replace(interactive.plotly() or "", "")
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', own)
    for link in re.findall(r'href="([^"#:,]+)"', own):
        assert (finished.directory / link).exists(), link
    assert all(f'id="{part}"' in own for part in record["parts"])
    assert html.escape(record["provenance"]["command"]) in own
    assert 'name="viewport"' in own


def test_the_page_says_what_the_terminal_says(finished):
    whole = (finished.directory / "report.html").read_text()
    wrapped = finished.out.replace("\n    ", " ")
    lines = [line.strip() for line in wrapped.splitlines() if line.startswith("  ")]
    assert len(lines) > 20
    ends = re.findall("^(?:found|means|but) +(.+)$", finished.out, re.M)
    assert ends
    assert all(f"{html.escape(end[1:])}." in whole for end in ends)
    assert all(html.escape(line) in whole for line in lines)


PHONE = 390  # pixels


@pytest.mark.skipif(chromium.executable() is None, reason="no Chromium on this machine")
def test_the_page_in_a_browser(finished, tmp_path):
    """At 1280 px no table scrolls; at 390 px panels are stacked, and nothing is cut off."""
    report = finished.directory / "report.html"
    with chromium.tab(tmp_path / "home") as tab:
        tab.size(1280)
        tab.open(report.as_uri())
        tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        wide = "[...document.querySelectorAll('.wide')].map(x => x.scrollWidth - x.clientWidth)"
        assert tab.evaluate(f"Math.max(...{wide})") <= 0
        images = "[...document.querySelectorAll('picture img')]"
        shape = f"JSON.stringify({images}.map(x => x.src == x.currentSrc))"
        assert json.loads(tab.evaluate(shape)).count(False) == 0
        tab.size(PHONE)
        tab.wait(f"{shape}.includes('false')")
        stacked = json.loads(tab.evaluate(shape)).count(False)
        assert stacked == len(list((finished.directory / "figures/narrow").glob("*.png"))) >= 4
        tab.wait("[...document.images].every(each => each.naturalWidth > 100)")
        assert tab.evaluate("document.images.length") == report.read_text().count("<img ")
        assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE
        if interactive.plotly():
            tab.wait("document.querySelectorAll('.view > *').length >= 4")
        assert tab.errors == []


def test_the_page_names_both_texts(finished, record):
    whole = (finished.directory / "report.html").read_text()
    assert whole.count(f"Of the prompt, {len(record['prompt'])} tokens.") == 2
    of_text = f"Of {record['sequences']} sequences of {record['seq_len']} tokens of backcopy."
    assert whole.count(of_text) == len(record["parts"]) - 2


def test_without_plotly_the_page_is_static(record, monkeypatch, tmp_path, finished):
    monkeypatch.setattr(interactive, "plotly", lambda: None)
    text = page(record, finished.directory / "figures")
    assert "<script" not in text
    assert "Turn it" not in text
    assert text.count("<img ") > 10


# ------------------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], ("--model: not given", "accepted:")),
        (["--model=no/where"], ("--model=no/where: not fetched", "accepted: a directory")),
        (["--model=../nowhere"], ("--model=../nowhere: no such file", "a run's model")),
        (["--model={run}", "--variant=softmax", "--stream"], ("--stream", "a run's model")),
        (["--stream", "--mesh=data=2"], ("--stream: with --mesh=data=2", "a mesh of one device")),
        (["--model={run}", "--variant=softmax", "--bos=maybe"], ("--bos='maybe'", "auto, yes")),
        (
            ["--model={run}", "--variant=softmax", "--check_known"],
            ("--check_known: nothing is published", "accepted: Llama-2-7b"),
        ),
        (["--model=tests"], ("tests: no config.json", "accepted:")),
        (["--model={run}"], ("--variant: not given", "backcopy-other, backcopy-softmax")),
        (["--model={run}", "--variant=sigmoid"], ("--variant=sigmoid", "fits 0")),
        (["--model={run}", "--variant=softmax", "--seed=4"], ("--seed=4", "3, 5")),
        (["--model={run}", "--only=existance"], ("--only='existance'", "existence, positions")),
        (["--model={run}", "--only="], ("--only=", "at least one,")),
        (["--model={run}", "--sequences=0"], ("--sequences=0", "at least 1")),
        (["--model={run}", "--seq_len=1"], ("--seq_len=1", "at least 2")),
        (["--model={run}", "--activation_ratio=-1"], ("--activation_ratio=-1", "above 0")),
        (["--model={run}", "--variant=softmax", "--seq_len=99"], ("--seq_len=99", "at most 32")),
        (["--model={run}", "--variant=softmax", "--corpus=stdlib"], ("no tokenizer.json",)),
    ],
)  # fmt: skip
def test_one_clear_line(trained, run_analyze, tmp_path, arguments, told):
    filled = [argument.format(run=trained) for argument in arguments]
    said = run_analyze(*filled, f"--workdir={tmp_path}").refusal
    assert all(part in said for part in told), said
    assert not list(tmp_path.rglob("result.json"))


@pytest.fixture(scope="module")
def of_text(tmp_path_factory):
    """A run of an untrained model of text, and a text to look at."""
    path = tmp_path_factory.mktemp("text")
    documents = (f"Summer {n} is warm. Winter {n} is cold.\n" for n in range(90))
    (path / "text.txt").write_text("<|endoftext|>\n".join(documents))
    config = ModelConfig(vocab=258, context=40, layers=1, width=8)
    params = jax.vmap(partial(init, config))(jnp.stack([jax.random.key(0)]))
    save(path / "run" / "models" / "tiny", config, params, (0,), load_tokenizer("bytes"))
    return path


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--sequences=500"], ("--sequences=500", "at most")),
        (["--prompt="], ("--prompt=: empty", "accepted")),
        (["--prompt=a", "--bos=no"], ("--prompt: 1 token", "2 to 40")),
        (["--prompt=" + "long " * 80], ("--prompt: 401 tokens", "2 to 40")),
        (["--only=dynamics"], ("--only=dynamics: 0 checkpoints", "--checkpoint_every")),
        (["--only=seeds"], ("--only=seeds: 1 seed of tiny", "--seeds=0,1")),
    ],
)
def test_text_that_does_not_fit(of_text, run_analyze, tmp_path, arguments, told):
    common = [f"--model={of_text / 'run'}", f"--corpus={of_text / 'text.txt'}", "--seq_len=11"]
    said = run_analyze(*common, "--sequences=2", *arguments, f"--workdir={tmp_path}").refusal
    assert all(part in said for part in told), said


def test_auto_is_how_the_model_was_trained(of_text, run_analyze, tmp_path):
    """The same for a corpus and a prompt, here and from a notebook: what is saved beside it."""
    place = tmp_path / "run" / "models" / "tiny"
    shutil.copytree(of_text / "run" / "models" / "tiny", place)
    load_corpus(str(of_text / "text.txt"), "bytes", bos=False).tokenizer.save(
        place / "tokenizer.json"
    )
    record, _ = analysed(
        run_analyze, tmp_path, f"--model={place}", f"--corpus={of_text / 'text.txt'}",
        "--seq_len=11", "--sequences=2", "--only=existence", "--prompt=Summer",
    )  # fmt: skip
    assert record["prompt"] == list("Summer")
    findings = so.analyze(so.load(place), "Summer", parts=("existence",))
    assert findings.record["prompt"] == list("Summer")


def test_a_model_of_unknown_text_asks_for_it(of_text, run_analyze, tmp_path):
    said = run_analyze(f"--model={of_text / 'run'}", f"--workdir={tmp_path}").refusal
    assert "--corpus: not given" in said


@pytest.mark.parametrize("change", [{"format": 7}, {"model": {"colour": "red"}}])
def test_a_model_of_another_version_of_the_code(of_text, run_analyze, tmp_path, change):
    copy = tmp_path / "copy"
    shutil.copytree(of_text / "run" / "models" / "tiny", copy)
    content = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps(content | change))
    said = run_analyze(f"--model={copy}", f"--workdir={tmp_path}").refusal
    assert "config.json" in said
    assert "accepted: " in said


def test_an_interrupted_run_says_what_it_finished(of_text, run_analyze, tmp_path, monkeypatch):
    def interrupt(material, progress):
        raise KeyboardInterrupt

    monkeypatch.setattr("experiments.analyze.PARTS", {**PARTS, "relations": interrupt})
    outcome = run_analyze(
        f"--model={of_text / 'run'}", f"--corpus={of_text / 'text.txt'}", "--seq_len=11",
        "--sequences=2", f"--workdir={tmp_path}", "--only=existence,positions,relations,roles",
    )  # fmt: skip
    assert outcome.status == 130
    assert "finished existence, positions\n" in outcome.out
    directory = outcome.place
    record = json.loads((directory / "result.json").read_text())
    assert record["status"] == "interrupted"
    assert list(record["parts"]) == ["existence", "positions"]
    told = (directory / "report.html").read_text()
    assert "not finished are relations, roles" in told
    assert "1 layer, width 8" in told
    drawn = {path.stem for path in (directory / "figures").glob("*.png")}
    assert {name.partition("-")[0] for name in drawn} == {"existence", "positions"}
    assert outcome.err == "error: interrupted\n"
    assert run_analyze(f"--redraw={directory}").status == 0
    assert (directory / "report.html").read_text() == told


# ------------------------------------------------------------------------- from a notebook


def test_from_a_notebook(of_text, tmp_path):
    model = so.load(of_text / "run" / "models" / "tiny")
    findings = so.analyze(model, "Summer is warm. Winter is cold.\n", parts=("existence", "roles"))
    assert findings.existence is not None
    assert findings.positions is None
    assert set(findings.figures()) == {"existence", "roles"}
    assert findings.record["prompt"][:2] == ["<|bos|>", "S"]
    bare = so.analyze(model, "Summer", parts=("existence",), bos="no")
    assert bare.record["prompt"][0] == "S"
    with pytest.raises(so.InputError, match="bos='maybe': unknown; accepted: auto, yes, no"):
        so.analyze(model, "Summer", bos="maybe")
    written = findings.save(tmp_path / "out")
    assert written.exists()
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == findings.record
    with pytest.raises(so.InputError, match="parts='dynamic': unknown; accepted: existence"):
        so.analyze(model, "abc", parts=("dynamic",))
    with pytest.raises(so.InputError, match="no tokenizer; accepted: token ids"):
        so.analyze(so.Model(model.config, model.params), "abc")


# -------------------------------------------------------------------- published models


@pytest.fixture(scope="module")
def of_family(golden, tmp_path_factory):
    """Flags of a published model's directory without a tokenizer, and of ids that it can read."""
    texts = tmp_path_factory.mktemp("ids")
    random = np.random.default_rng(0)
    for part in ("train", "val"):
        random.integers(0, 19, 400, np.uint16).tofile(texts / f"{part}.bin")

    def flags(case):
        directory, _, _ = golden(case)
        return [f"--model={directory}", f"--corpus=tokens:{texts}", "--sequences=5", "--seq_len=7"]

    return flags


@pytest.fixture
def published(of_family):
    return of_family("llama")


def analysed(run_analyze, workdir, *arguments):
    outcome = run_analyze(*arguments, f"--workdir={workdir}")
    return outcome.record, outcome


@pytest.mark.parametrize("case", ["llama", "mixtral"])
def test_streaming_finds_what_a_model_in_memory_shows(of_family, case, run_analyze, tmp_path):
    published = of_family(case)
    parts = "--only=existence,positions,relations,dimensions"
    whole, _ = analysed(run_analyze, tmp_path / "whole", *published, parts)
    run = partial(run_analyze, drawn=False)
    streamed, outcome = analysed(run, tmp_path / "streamed", *published, "--stream")
    assert "lifecycle left out: takes a model in memory" in outcome.out
    assert list(streamed["parts"]) == list(whole["parts"])
    assert streamed["parameters"] == whole["parameters"] > 0
    equal(streamed["parts"], whole["parts"])


def equal(found, expected):
    """Records with the same numbers, up to the order of float32 sums."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            equal(found[key], expected[key])
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            equal(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-2, abs=1e-4)
    else:
        assert found == expected


def test_a_part_that_cannot_be_streamed(published, run_analyze, tmp_path):
    said = run_analyze(*published, "--stream", "--only=roles", f"--workdir={tmp_path}").refusal
    assert said.startswith("--only=roles: takes a model in memory")


def test_published_coordinates_are_compared(published, run_analyze, tmp_path, monkeypatch):
    true, _ = analysed(run_analyze, tmp_path / "plain", *published, "--only=positions")
    claims = (
        Known("tiny", "neuron", 1, (), 0, "nobody 2026"),
        Known("tiny", "channels", 1, tuple(range(8)), None, "nobody 2026"),
    )
    monkeypatch.setattr(analyze, "known_of", lambda name, config: claims)
    record, outcome = analysed(
        run_analyze, tmp_path / "known", *published, "--only=positions", "--check_known"
    )
    assert [check["known"]["source"] for check in record["known"]] == ["nobody 2026"] * 2
    neuron, channels = record["known"]
    assert neuron["agrees"] == (neuron["found"][0] == 0)
    assert not {*range(8)} <= {*channels["found"]}
    assert channels["agrees"] is False
    assert "tiny, neuron 0: " in outcome.out
    assert "Published coordinates" in (outcome.directory / "report.html").read_text()
    assert "known" not in true
