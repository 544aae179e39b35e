"""Planning as a user meets it: a machine and a model in; a record, or one line out."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest

from experiments import plan
from experiments.reports.plan_report import HEADINGS, divided, fits, fitting, table, verdict
from sysout_jax.model.config import SHAPES
from sysout_jax.model.decoder import parameter_count
from sysout_jax.model.execution import Execution
from sysout_jax.planning.machines import GIB
from sysout_jax.results import read_record
from tests import quick
from tests.refusing import refusal

ROOT = Path(__file__).parents[2]
QUICK = quick.CACHE | {"XLA_FLAGS": quick.UNOPTIMISED}
SMALL = ("--model=backcopy", "--vocab=16", "--seq_len=8", "--dtype=float32")


def in_own_process(workdir, *arguments):
    """A process has as many devices as it had when it started."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.plan", f"--workdir={workdir}", *arguments],
        cwd=ROOT, capture_output=True, text=True,
        env=os.environ | QUICK,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    directory = (workdir / "plan" / "latest").resolve()
    return read_record(directory), done.stdout


def test_two_devices_add_up_their_gradients(tmp_path):
    """Data-parallel, every parameter's gradient is added up once, and the loss; nothing else."""
    record, said = in_own_process(
        tmp_path, *SMALL, "--topology=h100:2", "--batch_size=4", "--only=train"
    )
    assert record["status"] == "complete"
    assert (record["devices"], record["topology"]) == (2, "h100:2")
    step = record["steps"]["train"]
    assert step["config"]["mesh"] == "data=2"
    (reduced,) = step["traffic"]["collectives"].values()
    gradients = 4 * record["shape"]["parameters"]
    assert gradients <= reduced["bytes"] <= 1.02 * gradients
    assert reduced["wire"] == pytest.approx(reduced["bytes"])  # twice, half of it each time
    assert step["traffic"]["loops_counted_once"] == 0
    assert step["fits"] is True
    assert "FITS" in said
    assert "all-reduce" in said
    heads = [cell.strip() for cell in table(record).to_markdown().splitlines()[0].split("|")[1:-1]]
    assert heads == list(HEADINGS)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--topology=v9:2x2",), "--topology=v9:2x2: accepted: a TPU slice"),
        (("--topology=h100:1", "--mesh=data=2"), "--mesh=data=2,fsdp=1,tensor=1: 2 devices, but"),
        (("--topology=h100:1", "--mesh=data=3", "--batch_size=4"), "--batch_size=4: not divided"),
        (("--topology=h100:1", "--model=no/such/one"), "--model=no/such/one: accepted:"),
        (("--topology=h100:1", "--only=train,eat"), "--only='eat': unknown"),
        (("--topology=h100:1", "--only=analysis", "--accumulate=2"), "--accumulate=2: no effect;"),
        (("--topology=h100:1", "--only=analysis", "--optimizer=muon"), "--optimizer=muon: no eff"),
        (("--topology=cpu:1", "--levers"), "--dtype=float32: no effect; accepted: without --lev"),
    ],
)  # fmt: skip
def test_one_line_for_what_cannot_be(run_plan, tmp_path, flags, said):
    assert run_plan(*SMALL, f"--workdir={tmp_path}", *flags).refusal.startswith(said)
    assert not list(tmp_path.iterdir())


def test_a_directory_is_a_model(run_plan, tmp_path):
    """Of a published model its config.json is enough."""
    config = {
        "model_type": "llama", "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 2,
        "num_attention_heads": 2, "vocab_size": 13, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 7, "rope_theta": 10000.0,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    outcome = run_plan(
        f"--model={tmp_path}", "--topology=cpu:1", "--seq_len=4", "--batch_size=2",
        "--only=analysis", f"--workdir={tmp_path}",
    )  # fmt: skip
    record = outcome.record
    assert record["shape"]["F"] == 12
    step = record["steps"]["analysis"]
    assert (step["fits"], step["roofline"]) == (None, None)  # nothing is known of a CPU
    assert step["flops"] > 0


HALF = "--scan_layers --moment_dtype=bfloat16"


def test_levers_are_compiled_one_by_one(run_plan, tmp_path, monkeypatch):
    """Each is in the record, in the printed lines, and a row of the table, none of them first."""
    two = {name: plan.LEVERS[name] for name in ("--scan_layers", HALF)}
    monkeypatch.setattr(plan, "LEVERS", two)
    outcome = run_plan(
        *SMALL[:-1], "--topology=cpu:1", "--batch_size=2", "--levers", f"--workdir={tmp_path}"
    )
    record = outcome.record
    assert record["steps"] == {}
    plain, half = (record["levers"][name]["memory"]["arguments"] for name in two)
    assert plain - half == pytest.approx(2 * record["shape"]["parameters"], abs=64)
    rows = table(record).to_markdown().splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows] == ["`--scan_layers`", f"`{HALF}`"]
    assert all(f"{name}: needs 0.00 GiB" in outcome.out for name in two)


@pytest.mark.parametrize(
    ("flags", "batch_size", "mesh", "levers"),
    [
        ((), 8, "data=2,fsdp=1,tensor=1", True),
        ((), 12, "data=2,fsdp=1,tensor=1", False),
        ((), 8, "data=2,fsdp=2,tensor=4", False),
        (("--flash", "--only=train"), 8, "data=2,fsdp=1,tensor=1", False),
        (("--noscan_layers",), 8, "data=2,fsdp=1,tensor=1", False),
    ],
)
def test_the_next_command_is_one_that_is_accepted(tmp_path, flags, batch_size, mesh, levers):
    how = {"mesh": mesh, "batch_size": batch_size}
    line = {"compute": 1.0, "memory": 2.0, "network": 0.5, "step": 2.0}
    step = {"memory": {"peak": GIB}, "room": 16 * GIB, "fits": True, "config": how,
            "roofline": line}  # fmt: skip
    command = " ".join(("python -m experiments.plan --topology=h100:2", *flags))
    record = {"steps": {"train": step}, "provenance": {"command": command}, "chip": {"tpu": False}}
    said = verdict(record, tmp_path)
    assert ("--levers" in said.next) is levers
    assert said.means.startswith("as a CPU's program about 2000.0 ms")
    assert said.but.startswith("compiled, not run")
    step["memory"]["peak"] = 13 * GIB  # more than three quarters
    assert "75% of a GPU" in verdict(record, tmp_path).but


@pytest.mark.parametrize(
    ("mesh", "said"),
    [
        ("data=2,fsdp=16,tensor=1", "data=2,fsdp=16"),
        ("data=1,fsdp=16,tensor=16", "fsdp=16,tensor=16"),
        ("data=16,fsdp=1,tensor=1", "data=16"),
        ("data=1,fsdp=1,tensor=1", "data=1"),
    ],
)
def test_axes_of_a_mesh(mesh, said):
    assert divided(mesh) == said


def test_words_of_a_verdict():
    step = {"memory": {"peak": 20 * GIB}, "room": 16 * GIB, "fits": False}
    how = {"mesh": "fsdp=4", "remat": "block", "accumulate": 2, "batch_size": 8}
    better = {"memory": {"peak": 9 * GIB}, "room": 16 * GIB, "fits": True, "config": how}
    assert fits(step) == "DOES NOT FIT: 20.00 of 16.0 GiB, 4.00 too many"
    said = fitting({"steps": {"train": step}, "suggestion": better})
    assert "--mesh=fsdp=4 --remat=block --accumulate=2 --batch_size=8: FITS: 9.00" in said
    assert "no mesh" in fitting({"steps": {"train": step}, "suggestion": None})


@pytest.mark.parametrize(("fitting_one", "expected"), [(0, None), (1, True), (2, True)])
def test_a_suggestion_that_does_not_fit_as_compiled_is_none(monkeypatch, fitting_one, expected):
    """The next command is one that is known to fit."""
    memory = SimpleNamespace(peak=20)
    asked = plan.Config(topology="cpu:1")
    compiled = []

    def needed(name, config, topology, devices):
        compiled.append(config)
        return {"fits": len(compiled) == fitting_one, "memory": memory}

    monkeypatch.setattr(plan, "needed", needed)
    monkeypatch.setattr(plan.fitting, "suggestion", lambda config, *rest: config)
    found = plan._search(asked, None, [None], {"memory": memory, "room": 10})
    assert (found and found["fits"]) is expected


FUSED = Execution(flash=True, dtype="bfloat16")


@pytest.mark.parametrize(
    ("only", "execution", "said"),
    [
        (("analysis",), Execution(remat="block"), "remat=block: no effect; accepted: with only=tr"),
        (("train", "analysis"), FUSED, "flash=True: no effect on v5e:2x4; accepted: with only=tr"),
    ],
)
def test_execution_without_effect_is_refused(only, execution, said):
    model = replace(plan.BASE.model, execution=execution)
    train = replace(plan.BASE, model=model)
    assert refusal(plan.Config, only=only, train=train).startswith(said)


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs the extra tpu-plan (libtpu)")
@pytest.mark.parametrize(
    ("model", "topology", "flags"),
    [
        ("gpt2-124m", "v5e:2x4", ("--mesh=data=8", "--batch_size=64", "--seq_len=1024")),
        ("llama2-7b", "v5e:16x16", ("--mesh=fsdp=256", "--batch_size=256", "--seq_len=4096")),
        ("llama2-7b", "v5p:4x8x8", ("--mesh=fsdp=256", "--batch_size=256", "--seq_len=4096")),
        ("gpt2-124m", "v5e:2x4", ("--mesh=data=8", "--batch_size=64", "--flash")),
        (
            "gpt2-124m",
            "v5e:2x4",
            (
                "--mesh=tensor=2,fsdp=4",
                "--batch_size=64",
                "--flash",
                "--variant=sink_logit",
                "--accumulate=2",
            ),
        ),
    ],
)
def test_tpus_that_are_not_at_hand(tmp_path, model, topology, flags):
    """The plans of docs/scale.md, compiled again: they fit, and work is within bounds of 6ND."""
    record, _ = in_own_process(
        tmp_path,
        f"--model={model}",
        f"--topology={topology}",
        "--remat=block",
        "--only=train",
        *flags,
    )
    train = record["steps"]["train"]
    assert train["fits"]
    # With one more pass forwards at most 4/3; less where the compiler need not repeat the last.
    assert 1.0 < train["flops"] / train["model_flops"] < 1.4
    held = 12 * parameter_count(SHAPES[model]) / (1 if model == "gpt2-124m" else 256)
    assert held <= train["memory"]["arguments"] < 1.1 * held
    if train["traffic"]:  # the text of a program for v5p is not always to be had
        assert train["traffic"]["loops_counted_once"] == 0
        assert 0 < train["roofline"]["utilisation"] < 1


@pytest.mark.slow
@pytest.mark.skipif(find_spec("libtpu") is None, reason="needs the extra tpu-plan (libtpu)")
def test_the_analysis_of_a_long_text_compiles_for_a_tpu(tmp_path):
    """A slice with a stride over all of a layer's numbers did not fit into vector memory."""
    record, _ = in_own_process(
        tmp_path, "--model=llama2-7b", "--topology=v5e:16x16", "--mesh=data=32,tensor=8",
        "--batch_size=32", "--seq_len=4096", "--only=analysis",
    )  # fmt: skip
    assert record["steps"]["analysis"]["fits"]
