"""A suite of checkpoints on the hub, offline: a cache with a few tiny ones, made here."""

import hashlib
import json
from dataclasses import replace

import jax
import numpy as np
import pytest

import sysout_jax as so
from experiments.inputs import revisions
from sysout_jax.analysis.measure.summary import summary_in_batches
from sysout_jax.errors import InputError
from sysout_jax.model.config import SHAPES
from sysout_jax.model.decoder import init

CONFIG = replace(
    SHAPES["llama-tiny"], layers=2, width=12, heads=2, kv_heads=1, mlp_width=20, vocab=19
)
SUITE = "someone/suite-1m"
STEPS = (0, 512, 8000)


def params(step):
    """Initial weights, which a step makes larger."""
    return jax.tree.map(lambda w: (1 + step / 1000) * w, init(CONFIG, jax.random.key(0)))


def publish(cache, name, revision, model):
    """A revision in the hub's cache: a name that stands for a commit, and the commit's files."""
    commit = hashlib.sha1(revision.encode()).hexdigest()
    place = cache / f"models--{name.replace('/', '--')}"
    (place / "refs").mkdir(parents=True, exist_ok=True)
    (place / "refs" / revision).write_text(commit)
    (place / "snapshots").mkdir(exist_ok=True)
    so.export(model, place / "snapshots" / commit, "llama")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """The cache and text of ids."""
    place = tmp_path_factory.mktemp("suite")
    for step in STEPS:
        publish(place / "hub", SUITE, f"step{step}", so.Model(CONFIG, params(step)))
    other = replace(CONFIG, mlp_width=24)
    publish(place / "hub", SUITE, "step9000", so.Model(other, init(other, jax.random.key(1))))
    (place / "text").mkdir()
    for part, seed in (("train", 1), ("val", 2)):
        ids = np.random.default_rng(seed).integers(0, 19, 40 * 13).astype(np.uint16)
        ids.tofile(place / "text" / f"{part}.bin")
    return place


@pytest.fixture(autouse=True)
def offline(place, monkeypatch, tmp_path):
    """No network, and that cache."""
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(place / "hub"))
    monkeypatch.chdir(tmp_path)


def asked(place, tmp_path, *more, revisions="step8000,step0,step512"):
    return (
        f"--model={SUITE}", f"--revisions={revisions}", "--only=dynamics", "--sequences=5",
        "--seq_len=12", f"--corpus=tokens:{place}/text", f"--workdir={tmp_path}/runs", *more,
    )  # fmt: skip


def test_revisions_are_the_checkpoints_of_the_dynamics(place, tmp_path, run_analyze):
    done = run_analyze(*asked(place, tmp_path))
    directory, record = done.directory, done.record
    part = record["parts"]["dynamics"]
    assert part["steps"] == list(STEPS)
    assert record["revisions"] == ["step8000", "step0", "step512"]
    last = hashlib.sha1(b"step8000").hexdigest()
    assert record["origin"]["place"].endswith(last)  # what other parts would look at
    for at, step in enumerate(STEPS):
        cell = json.loads((directory / "cells" / f"step{step}.json").read_text())
        assert cell["step"] == step
        for name, values in part["measures"].items():
            assert values[at] == pytest.approx(cell["summary"][name], rel=1e-6), name
    found = part["measures"]["weight_ratio@down"]
    down = np.concatenate([np.abs(params(0)[f"block_{i}"]["mlp"]["down"]) for i in range(2)])
    assert found[0] == pytest.approx(found[2], rel=1e-4)  # a ratio, whatever the scale
    assert found[0] == pytest.approx(
        max(float(np.max(w) / np.mean(w)) for w in np.split(down, 2)), rel=1e-4
    )
    assert "growth of top1_over_median@block_out (four laws by AICc" in done.out
    assert "2 checkpoints after step 0, and it takes 8" in done.out
    assert (directory / "figures" / "dynamics.png").exists()


def test_summaries_are_those_of_each_revision_alone(tmp_path):
    from experiments.cli.grid import Cells
    from experiments.inputs.model_selection import Choice

    tokens = np.random.default_rng(3).integers(0, 19, (5, 12)).astype(np.int32)
    choice = Choice(model=SUITE)
    cells = Cells(tmp_path / "cells", revisions.about(choice, tokens)).begin()
    config = so.load(SUITE, revision="step0").config
    found = dict(revisions.summaries(choice, ("step512", "step0"), config, tokens, 2, cells))
    assert list(found) == [0, 512]
    for step, summary in found.items():
        alone = summary_in_batches(CONFIG, params(step), tokens, 2)
        assert summary == pytest.approx(alone, rel=1e-5)


def test_what_is_measured_is_not_measured_again(place, tmp_path, run_analyze, monkeypatch):
    """An interrupted run of that name goes on with the revisions that it lacks."""
    loaded, original = [], revisions._summary

    def counted(choice, *rest):
        if len(loaded) == 2 and "stop" not in loaded:
            loaded.append("stop")
            raise KeyboardInterrupt
        loaded.append(choice.revision)
        return original(choice, *rest)

    monkeypatch.setattr(revisions, "_summary", counted)
    stopped = run_analyze(*asked(place, tmp_path, "--name=mine"))
    assert stopped.status == 130
    assert "goes on  " in stopped.out
    cells = tmp_path / "runs" / "analyze" / "mine" / "cells"
    assert sorted(x.name for x in cells.glob("step*")) == ["step0.json", "step512.json"]
    record = run_analyze(*asked(place, tmp_path, "--name=mine"), drawn=False).record
    assert loaded == ["step0", "step512", "stop", "step8000"]
    assert (record["status"], record["parts"]["dynamics"]["steps"]) == ("complete", list(STEPS))
    changed = run_analyze(*asked(place, tmp_path, "--name=mine", "--seq_len=11"))
    assert "--seq_len=11: the cells in " in changed.refusal
    assert "have 12; accepted: that, or another --name" in changed.refusal


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--revisions=step0,step7",), "--revisions=step7: someone/suite-1m has none of that name"),
        (("--revisions=step0,main",), "--revisions=main: accepted: names with a step, as step10"),
        (("--revisions=step0",), "--revisions=step0: accepted: at least two"),
        (("--revisions=step512,step512",), "are both of step 512; accepted: one revision a step"),
        (("--only=positions",), "accepted: with dynamics in --only"),
        (("--stream",), "accepted: without --stream"),
        (("--model=./here",), "accepted: with the id of a model on the hub"),
        (("--revisions=step0,step9000", "--revision=step0"), "step9000: its config.json is anoth"),
        (("--name=a/b",), "--name=a/b: accepted: letters, digits"),
    ],
)
def test_one_clear_line(place, tmp_path, run_analyze, arguments, told):
    assert told in run_analyze(*asked(place, tmp_path), *arguments).refusal


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (("step1000", "step20"), [20, 1000]),
        (("stage1-step5000-tokens21B", "stage1-step1000-tokens5B"), [1000, 5000]),
        (("step_3", "step-12"), [3, 12]),
    ],
)
def test_steps_are_read_from_names(names, steps):
    assert [step for step, _ in revisions.in_order(names)] == steps


@pytest.mark.parametrize("name", ["main", "stepping1", "footstep3", "step", "v1.0"])
def test_names_without_a_step(name):
    with pytest.raises(InputError, match="names with a step"):
        revisions.in_order(("step1", name))


def test_the_hub_is_asked_once_for_what_the_cache_lacks(monkeypatch):
    import huggingface_hub

    from sysout_jax.families.hub import check_revisions

    asked = []

    class Refs:
        branches = (type("Ref", (), {"name": "step7"}),)
        tags = (type("Ref", (), {"name": "step9"}),)

    monkeypatch.setattr(
        huggingface_hub.HfApi, "list_repo_refs", lambda self, name: asked.append(name) or Refs
    )
    check_revisions(SUITE, ["step0", "step7", "step9"])
    check_revisions(SUITE, ["step0", "step512"])
    assert asked == [SUITE]
    with pytest.raises(
        InputError, match="step8: someone/suite-1m has none of that name on the hub"
    ):
        check_revisions(SUITE, ["step7", "step8"])
