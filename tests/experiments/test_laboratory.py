"""The laboratory: cells that are files, shared by shards; what a cell says, and of which chain."""

import copy
import json
import shutil
import subprocess
import sys
from dataclasses import asdict

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import laboratory
from experiments.cli.grid import Cells, Place
from experiments.cli.presets import BACKCOPY
from experiments.cli.tables import markdown
from experiments.laboratory import Cell, Config, found_in
from experiments.records.laboratory import cell_of
from experiments.reports.laboratory_report import sections, sentences
from sysout_jax.analysis.compress.compressed import losses
from sysout_jax.analysis.compress.compression import Compressor
from sysout_jax.analysis.compress.schemes import scheme
from sysout_jax.analysis.statistics import mean_interval
from sysout_jax.data import Backcopy
from sysout_jax.errors import Diverged, InputError
from sysout_jax.plots.laboratory import DEFAULT_CELL
from sysout_jax.training.loop import train
from sysout_jax.training.step import token_loss

TINY = (
    "--chains=0,2", "--seeds=3,5", "--steps=6", "--measure_every=2", "--steps_per_call=2",
    "--batch_size=3", "--val_batches=2", "--seq_len=9", "--width=8", "--mlp_width=8",
    "--optimizers=adamw", "--layers=1", "--starts=bos", "--decays=1e-4",
    "--epsilons=1e-8", "--norms=own", "--variants=softmax,context_scale",
    "--bases=softmax", "--name=cells",
)  # fmt: skip
ORDER = [(3, 0), (3, 2), (5, 0), (5, 2)]  # (seed, chain) of the runs


@pytest.fixture(scope="module")
def finished(run_laboratory, tmp_path_factory):
    """Three cells by two shards, the second of which is stopped at first; then all of them."""
    place = tmp_path_factory.mktemp("runs")
    trained, runs = [], {}

    def counted(config, *rest):
        """Train each variant once, for tests must be quick: the masked cell is the other's run."""
        if len(trained) == 1 and not (place / "stopped").exists():
            (place / "stopped").touch()
            raise KeyboardInterrupt
        trained.append((config.variant, config.loss_from))
        if config.variant not in runs:
            runs[config.variant] = train(config, *rest)
        return runs[config.variant]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(laboratory, "train", counted)
        arguments = (*TINY, f"--workdir={place}")
        stopped = run_laboratory(*arguments, "--shard=0/2")
        rest = run_laboratory(*arguments, "--shard=1/2")
        assert (stopped.status, stopped.err) == (130, "error: interrupted\n")
        assert rest.status == 0, rest.err
        assert trained == [("softmax", 0), ("context_scale", 0)]
        whole = run_laboratory(*arguments)
    assert trained == [("softmax", 0), ("context_scale", 0), ("softmax", 1)]
    return whole, runs


@pytest.fixture(scope="module")
def record(finished):
    return finished[0].record


def test_the_record_has_the_cells_of_all_shards(finished, record):
    assert record["status"] == "complete"
    assert [(c["variant"], c["loss"]) for c in record["cells"]] == [
        ("softmax", "all"), ("context_scale", "all"), ("softmax", "masked"),
    ]  # fmt: skip
    assert record["runs"] == [list(each) for each in ORDER]
    files = sorted(path.name for path in (finished[0].directory / "cells").iterdir())
    assert "softmax-adamw-1-masked-bos-0.0001-1e-08-own-none.json" in files
    assert len(files) == 3 + 1
    assert all(set(cell["code"]) == {"commit", "dirty"} for cell in record["cells"])


def test_each_run_has_its_own_chain(finished, record):
    """Losses of the first run of each chain, again, from its parameters and its chain's rows."""
    run, cell = finished[-1]["softmax"], record["cells"][0]
    for at in (0, 1):
        task = Backcopy(ORDER[at][1])
        rows = np.concatenate([task.batch("val", 0, n, 3, 9) for n in range(2)])
        model = run.model(run.config.seeds[at])
        losses = np.asarray(token_loss(model.config, model.params, jnp.asarray(rows)))
        assert cell["val_loss"][at] == pytest.approx(losses.mean(), rel=1e-4)
        trigger = task.trigger_queries(rows[:, :-1])
        copied = losses[trigger].mean()  # of both batches together
        assert cell["measures"]["loss_copy"][at] == pytest.approx(copied, rel=1e-4)
        least = task.entropy_floor(rows)[:, 1:]
        assert record["floor"]["bos"][at] == pytest.approx(least[~trigger[:, 1:]].mean(), rel=1e-5)


def test_each_seed_has_the_chain_of_its_number(finished):
    run = finished[-1]["softmax"]
    assert len(set(run.config.seeds)) == 4
    assert [seed % 2 for seed in run.config.seeds] == [0, 1, 0, 1]  # the chain of each


def test_growth_is_fitted_to_the_gap(finished, record):
    run = finished[-1]["softmax"]
    gaps = np.array([row["measures"]["sink_gap"] for row in run.rows if "measures" in row])
    cell = record["cells"][0]
    np.testing.assert_allclose(cell["curves"]["sink_gap"], gaps, rtol=1e-4)
    for at in range(4):
        slope, _ = np.polyfit(np.log([2, 4, 6]), gaps[1:, at], 1)
        assert cell["growth"]["logarithmic"]["slope"][at] == pytest.approx(slope, rel=1e-3)
    assert found_in(run)["begun"]["noop_sink"] == pytest.approx(cell["begun"]["noop_sink"], 1e-4)


def test_compression_is_judged_on_the_chain_of_a_run(finished, record):
    """The rise of each run's loss, again, from its parameters and its chain's rows."""
    run, cell, masked = finished[-1]["softmax"], record["cells"][0], record["cells"][2]
    assert set(cell["compressed"]) == set(record["methods"]) == {"w8a8", "w4a4"}
    for at, (_, chain) in enumerate(ORDER):
        rows = np.concatenate([Backcopy(chain).batch("val", 0, n, 3, 9) for n in range(2)])
        model = run.model(run.config.seeds[at])
        rounded = Compressor(model.config, model.params, rows).compress(scheme("w4a4"))
        before = token_loss(model.config, model.params, jnp.asarray(rows))
        for found, skip in ((cell, 0), (masked, 1)):  # what is not trained is not judged
            rise = losses(model.config, rounded, rows, skip=skip).mean() - before[:, skip:].mean()
            assert found["compressed"]["w4a4"][at] == pytest.approx(float(rise), abs=2e-6)
    assert min(map(abs, cell["compressed"]["w4a4"])) > 1e-5  # above what is tolerated


def test_one_chain_is_counted_by_its_runs(record):
    made = copy.deepcopy(record)
    made["chains"], made["runs"] = [0], [[seed, 0] for seed in range(4)]
    made["floor"] = {start: of[:1] for start, of in made["floor"].items()}
    made["cells"][0]["measures"]["noop_sink_best"] = [0.2, 0.4, 0.6, 0.8]
    whole = {section.name: section.table for section in sections(made) if section.table}
    mean, low, high = mean_interval([0.2, 0.4, 0.6, 0.8])
    assert f"{mean:.2f} ±{(high - low) / 2:.2f}" in whole["cells"].rows[0]
    assert whole["cells"].title.endswith("over runs")
    made["runs"][1] = [1, 2]
    with pytest.raises(ValueError, match="each chain in turn"):
        list(sections(made))


def test_tables_show_the_record(finished, record):
    made = copy.deepcopy(record)
    made["cells"][0]["measures"]["noop_sink_best"] = [0.2, 0.4, 0.6, 0.8]
    shown = {name: table.texts for name, table, *_ in sections(made) if table}
    first = dict(zip(shown["cells"][0], shown["cells"][1], strict=True))
    assert (first["setting"], first["variant"]) == ("adamw, 1 layer", "(a) softmax")
    assert first["runs with a sink"] == "3 of 4"
    mean, low, high = mean_interval([0.4, 0.6])  # of chain 0 and chain 2
    assert f"{mean:.2f} ±{(high - low) / 2:.2f}" in first.values()
    assert shown["cells"][3][0] == "adamw, 1 layer, BOS not trained"
    _, *slopes = made["cells"][0]["growth"]["logarithmic"]["slope"]  # of the three with a sink
    mean, low, high = mean_interval([slopes[1], (slopes[0] + slopes[2]) / 2])
    assert shown["growth"][1][3] == f"{mean:.2f} ±{(high - low) / 2:.2f}"
    assert all(len(row) == len(rows[0]) for rows in shown.values() for row in rows)
    assert "in some: softmax (adamw, 1 layer)" in sentences(made)[0]
    assert set(markdown(sections(made))) == {"cells", "growth"}
    assert cell_of(made, "softmax", loss="masked") is made["cells"][2]
    with pytest.raises(KeyError, match="muon"):
        cell_of(made, "softmax", optimizer="muon")
    made["cells"].append(made["cells"][0] | {"decay": 3.0})
    assert cell_of(made, "softmax", decay=3.0) is made["cells"][-1]
    assert next(iter(sections(made))).table.rows[-1][0] == "adamw, 1 layer, decay 3"
    made["cells"][-1] |= {"decay": 0.1, "eps": 1e-4, "norm": "qk", "penalty": "tweo"}
    assert next(iter(sections(made))).table.rows[-1][0].endswith(", eps 0.0001, qk norms, tweo")
    assert "(e) context_scale" in finished[0].out


def test_figures_and_redraw_need_the_record_alone(finished, run_laboratory, tmp_path):
    drawn = {path.name for path in (finished[0].directory / "figures").iterdir()}
    assert drawn == {f"{s}{e}" for s in ("sinks", "growth") for e in (".png", ".pdf")}
    shutil.copy(finished[0].directory / "result.json", tmp_path)
    done = run_laboratory(f"--redraw={tmp_path}", "--markdown")
    assert done.status == 0, done.err
    assert done.out.startswith("| setting | variant |")
    assert {path.name for path in (tmp_path / "figures").iterdir()} == drawn


def test_other_settings_do_not_join_cells_that_are_there(finished, run_laboratory):
    place = finished[0].directory.parents[1]
    done = run_laboratory(*TINY, "--steps=7", f"--workdir={place}")
    assert done.refusal.startswith("--steps=7: the cells in ")


RACE = """
import multiprocessing, sys
from pathlib import Path
from experiments.cli.grid import Cells

def begin(barrier):
    for n in range(40):
        barrier.wait()
        Cells(Path(sys.argv[1]) / str(n), {"steps": 4}).begin()

fork = multiprocessing.get_context("fork")
barrier = fork.Barrier(8)
shards = [fork.Process(target=begin, args=(barrier,)) for _ in range(8)]
for each in shards:
    each.start()
for each in shards:
    each.join(60)
    if each.exitcode:
        barrier.abort()
sys.exit(any(each.exitcode for each in shards))
"""


def test_shards_may_start_at_once(tmp_path):
    """Each writes what the cells have in common, if no other has; none takes another's file."""
    done = subprocess.run([sys.executable, "-c", RACE, str(tmp_path)], capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    for n in range(40):
        (about,) = (tmp_path / str(n)).iterdir()
        assert json.loads(about.read_text()) == {"steps": 4}


def test_what_cells_have_in_common_is_written_once(tmp_path):
    Cells(tmp_path, {"steps": 4, "seeds": (0, 1)}).begin()
    before = (tmp_path / "about.json").stat()
    Cells(tmp_path, {"steps": 4, "seeds": (0, 1)}).begin()
    after = (tmp_path / "about.json").stat()  # reading it may move its time of access
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("content", ["", "{", "{}", "[]"])
@pytest.mark.parametrize(
    ("file", "accepted"),
    [
        ("about.json", "cells/ without it, if these flags are those of its cells"),
        ("softmax-adamw-1-all-bos-0.0001-1e-08-own-none.json", "remove it, and it is made again"),
    ],
)
def test_a_damaged_file_of_cells_is_one_line(
    finished, run_laboratory, tmp_path, file, accepted, content
):
    shutil.copytree(finished[0].directory, tmp_path / "laboratory" / "cells")
    path = tmp_path / "laboratory" / "cells" / "cells" / file
    path.write_text(content)
    result = (finished[0].directory / "result.json").read_bytes()
    done = run_laboratory(*TINY, "--optimizers=adamw,sgd", f"--workdir={tmp_path}")
    assert done.refusal.startswith(f"{path}: ")
    assert done.refusal.endswith(f"; accepted: {accepted}")
    assert (tmp_path / "laboratory" / "cells" / "result.json").read_bytes() == result


def test_a_work_directory_that_cannot_be_written(run_laboratory, tmp_path):
    (tmp_path / "file").touch()
    workdir = tmp_path / "file" / "below"
    for named in ((), ("--name=x",), ("--name=x", "--shard=0/2")):
        done = run_laboratory("--smoke", *named, f"--workdir={workdir}")
        told = f"--workdir={workdir}: Not a directory; accepted: a directory that is writable"
        assert done.refusal == told


def test_a_cell_that_diverges_is_a_result(run_laboratory, tmp_path, monkeypatch):
    def diverges(config, *rest):
        raise Diverged(config.variant, 4, config.seeds[3], float("nan"))

    monkeypatch.setattr(laboratory, "train", diverges)
    done = run_laboratory(*TINY, "--losses=all", f"--workdir={tmp_path}")
    assert done.status == 0, done.err
    assert "(a) softmax, adamw, 1 layer: diverged at step 4, seed 5, chain 2" in done.out


def test_one_factor_at_a_time_or_every_combination():
    few = Config(variants=("softmax", "sigmoid"), bases=("sigmoid",))
    assert len(few.cells) == 2 + (2 + 2 + 1 + 1 + 5 + 2 + 4)
    assert len(Config(variants=("softmax",), full=True).cells) == (3 + 1 + 3) * 3 * 2 * 2 * 6 * 5
    usual = ("adamw", 1, "all", "bos", 1e-4, 1e-8, "own", "none")
    assert few.cells[:2] == [Cell(name, *usual) for name in ("softmax", "sigmoid")]
    changed = ("sgd", 2, "masked", "none", 0.3, 1e-4, "sandwich", "tweo")
    training = few.training(Cell("sigmoid", *changed))
    assert training.penalties == ("tweo=0.01",)
    assert (training.loss_from, training.bos, training.model.layers) == (1, False, 2)
    optimizer = training.optimizer
    assert (optimizer.lr, optimizer.decay, optimizer.eps) == (laboratory.RATES["sgd"], 0.3, 1e-4)
    assert (training.model.norm, training.model.norm_placement) == ("rms", "sandwich")
    assert DEFAULT_CELL.items() == asdict(Config().cells[0]).items() - {("variant", "softmax")}
    adam = BACKCOPY.optimizer  # what is usual here is usual on Backcopy
    assert (DEFAULT_CELL["decay"], DEFAULT_CELL["eps"]) == (adam.decay, adam.eps)


def test_shards_share_all_items():
    parts = [Place(name="x", shard=f"{i}/3").of(range(10)) for i in range(3)]
    assert parts == [[0, 3, 6, 9], [1, 4, 7], [2, 5, 8]]
    for text in ("3/3", "a", "1", "-1/2", "0/0"):
        with pytest.raises(InputError, match="accepted: i/n"):
            Place(name="x", shard=text)
    with pytest.raises(InputError, match="with a name that all share"):
        Place(shard="1/2")


def test_an_optimizer_without_an_eps_has_cells_with_the_first_alone():
    of = {"variants": ("softmax",), "layers": (1,), "losses": ("all",), "starts": ("bos",),
          "decays": (0.1,), "norms": ("own",), "epsilons": (1e-6, 1e-8)}  # fmt: skip
    every = Config(**of, optimizers=("adamw", "sgd", "lion", "muon"), full=True)
    assert [(cell.optimizer, cell.eps) for cell in every.cells] == [
        ("adamw", 1e-6), ("adamw", 1e-8), ("sgd", 1e-6), ("lion", 1e-6), ("muon", 1e-6),
        ("muon", 1e-8),
    ]  # fmt: skip
    alone = Config(**of, optimizers=("sgd",), bases=("softmax",))
    assert [cell.eps for cell in alone.cells] == [1e-6]


def test_smoke_is_two_cells(run_laboratory, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(laboratory, "run", lambda config, console: asked.append(config))
    assert run_laboratory("--smoke", f"--workdir={tmp_path}").status == 0
    (config,) = asked
    assert [cell.variant for cell in config.cells] == ["softmax", "context_scale"]
    some = ("--optimizers=adamw,lion", "--layers=1,4", "--chains=2", "--decays=0.5")
    assert run_laboratory("--smoke", *some, f"--workdir={tmp_path}").status == 0
    config = asked[1]
    assert (config.chains, config.decays, config.train.steps) == ((2,), (0.5,), 4)
    found = [(cell.variant, cell.optimizer, cell.layers) for cell in config.cells]
    assert found == [
        (variant, *how)
        for how in (("adamw", 1), ("adamw", 4), ("lion", 1))
        for variant in ("softmax", "context_scale")
    ]
