"""The convergence experiment as a user meets it: cells, resuming, tables, figures, refusals."""

import copy
import json

import numpy as np
import pytest

from experiments import convergence
from experiments.reports.convergence_report import compared, sections, sentences
from sysout_jax.errors import Diverged
from sysout_jax.results import plain
from sysout_jax.training.loop import train

TINY = (
    "--width=8", "--heads=1", "--layers=1", "--steps=6", "--steps_per_call=2", "--measure_every=2",
    "--batch_size=3", "--val_batches=1", "--seq_len=9", "--rounds=2", "--seeds=3,5",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished(run_convergence, tmp_path_factory, text_file):
    """A run that was interrupted in its second cell, and then went on with one more rate."""
    place = tmp_path_factory.mktemp("runs")
    trained, runs = [], {}

    def counted(cell, *rest):
        """Train each variant once, for tests must be quick: rates are the same run."""
        if len(trained) == 1 and not place.joinpath("stopped").exists():
            place.joinpath("stopped").touch()
            raise KeyboardInterrupt
        trained.append((cell.variant, cell.optimizer.lr))
        if cell.variant not in runs:
            runs[cell.variant] = train(cell, *rest)
        return runs[cell.variant]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(convergence, "train", counted)
        arguments = (
            *TINY, f"--corpus={text_file}", "--variants=softmax,context_scale", "--name=rates",
            f"--workdir={place}",
        )  # fmt: skip
        first = run_convergence(*arguments, "--lrs=0.01")
        directory = place / "convergence" / "rates"
        halfway = json.loads((directory / "result.json").read_text())
        kept = (directory / "cells" / "softmax-0.01.json").read_bytes()
        second = run_convergence(*arguments, "--lrs=0.01,0.003")
    assert (directory / "cells" / "softmax-0.01.json").read_bytes() == kept
    return directory, first, halfway, second, trained, runs, arguments


@pytest.fixture(scope="module")
def record(finished):
    return json.loads((finished[0] / "result.json").read_text())


def test_an_interrupted_run_keeps_its_cells_and_goes_on(finished, record):
    _, first, halfway, second, trained, *_ = finished
    assert (first.status, first.err) == (130, "error: interrupted\n")
    assert halfway["status"] == "interrupted"
    assert [c["variant"] for c in halfway["cells"]] == ["softmax"]
    assert list(halfway["compared"]["variants"]) == ["softmax"]
    assert second.status == 0, second.err
    names = ("softmax", "context_scale")
    assert trained == [(name, lr) for lr in (0.01, 0.003) for name in names]
    assert record["status"] == "complete"
    assert record["lrs"] == [0.003, 0.01]
    assert record["variants"] == halfway["variants"]  # timed once
    cells = [(c["variant"], c["lr"]) for c in record["cells"]]
    assert cells == [(name, lr) for lr in (0.003, 0.01) for name in names]


def test_a_cell_is_what_training_gives(finished, record):
    run = finished[5]["context_scale"]
    cell = next(c for c in record["cells"] if (c["variant"], c["lr"]) == ("context_scale", 0.01))
    assert (run.config.variant, run.config.optimizer.lr) == ("context_scale", 0.01)
    measured = [row for row in run.rows if "val_loss" in row]
    assert cell["step"] == [0, 2, 4, 6]
    np.testing.assert_allclose(cell["val_loss"], [row["val_loss"] for row in measured], rtol=1e-5)
    for name, values in cell["measures"].items():
        np.testing.assert_allclose(values, measured[-1]["measures"][name], rtol=1e-5)
    assert cell["seeds"] == [3, 5]
    assert set(cell["code"]) == {"commit", "dirty"}
    assert set(cell["zero_shot"]) == {
        "copy_loss_first", "copy_loss_second", "copy_accuracy", "next_word", "words",
    }  # fmt: skip
    assert all(len(values) == 2 for values in cell["zero_shot"].values())
    assert min(cell["zero_shot"]["words"]) > 20


def test_costs_are_beside_the_variants(record):
    plain, gated = record["variants"]["softmax"], record["variants"]["context_scale"]
    assert gated["parameters"] - plain["parameters"] == 8 + 1
    assert gated["flops"] > plain["flops"]
    assert len(plain["seconds"]) == len(gated["seconds"]) == 2


def test_tables_show_the_record(finished, record):
    shown = tables(record)
    assert list(shown) == ["tokens", "time", "rates", "zero-shot"]
    rates = shown["rates"]
    assert rates[0] == ["variant", "lr 0.003", "lr 0.01"]
    cell = next(c for c in record["cells"] if (c["variant"], c["lr"]) == ("softmax", 0.01))
    mean, sd = np.mean(cell["val_loss"][-1]), np.std(cell["val_loss"][-1], ddof=1)
    assert rates[1][2].removesuffix(" *") == f"{mean:.3f} ±{sd:.3f}"
    assert sum(text.endswith(" *") for text in rates[1]) == 1
    for rows in shown.values():
        assert all(len(row) == len(rows[0]) for row in rows)
        assert all(text in finished[3].out for text in rows[-1])
    unwrapped = " ".join(finished[3].out.split())
    assert all(line in unwrapped for line in sentences(record))


def test_figures_and_redraw_need_the_record_alone(finished, run_convergence, tmp_path):
    drawn = {path.name for path in (finished[0] / "figures").iterdir()}
    assert drawn == {f"{s}{e}" for s in ("loss", "rates", "speed") for e in (".png", ".pdf")}
    (tmp_path / "result.json").write_text((finished[0] / "result.json").read_text())
    done = run_convergence(f"--redraw={tmp_path}", "--markdown")
    assert done.status == 0, done.err
    assert done.out.startswith("| variant | best lr | validation loss |")
    assert done.out.count("| --- |") == 4
    assert {path.name for path in (tmp_path / "figures").iterdir()} == drawn


def test_nothing_to_compare_with_where_all_diverge(run_convergence, tmp_path, monkeypatch):
    def diverges(cell, *rest):
        raise Diverged(cell.variant, 4, 3, float("nan"))

    monkeypatch.setattr(convergence, "train", diverges)
    seconds = {"softmax": np.ones(2)}
    monkeypatch.setattr(convergence, "step_seconds", lambda *arguments: seconds)
    done = run_convergence(*TINY, "--variants=softmax", "--lrs=0.03", f"--workdir={tmp_path}")
    assert done.status == 0, done.err
    assert "nothing to compare with" in done.out
    (cell,) = json.loads(next(tmp_path.rglob("result.json")).read_text())["cells"]
    assert cell["diverged"] == {"step": 4, "seed": 3}


def tables(record):
    """Name -> rows of texts, headings first."""
    return {name: table.texts for name, table, *_ in sections(record) if table}


def planted(record, gain):
    """A record of made-up cells: context_scale is `gain` below softmax in every seed."""
    made = copy.deepcopy(record)
    made["config"]["steps"] = 100
    for cell in made["cells"]:
        falls = np.linspace(4, 2, 11)[:, None] + [0.0, 0.3]
        better = gain * (1 + np.array([0.001, -0.001])) if cell["variant"] != "softmax" else 0.0
        worse = 0.1 if cell["lr"] == 0.003 else 0.0
        cell |= {"step": list(range(0, 101, 10)), "val_loss": (falls - better + worse).tolist()}
    for costs in made["variants"].values():
        costs["seconds"] = [1.0, 1.0]
    made["variants"]["context_scale"]["seconds"] = [2.0, 2.0]
    made["compared"] = plain(compared(made))
    return made


def test_twice_the_time_per_step_takes_it_all_back(record):
    """0.5 nats where 100 steps bring 2: three quarters of the steps, half as much time again."""
    made = planted(record, 0.5)
    shown = tables(made)
    base, row = (dict(zip(shown["tokens"][0], r, strict=True)) for r in shown["tokens"][1:])
    assert base["steps to baseline's loss"] == "100"
    assert row["best lr"] == "0.01 (edge)"
    assert row["difference"].startswith("-0.500 (")
    assert row["steps to baseline's loss"] == "75"
    assert row["tokens, M"].startswith("0.0020")  # 75 steps of 3 x 9 tokens
    assert (row["speed-up"], row["verdict"]) == ("1.33 (1.33 to 1.33)", "faster")
    base, row = (dict(zip(shown["time"][0], r, strict=True)) for r in shown["time"][1:])
    assert base["ms per step"] == "1000.0"
    assert (base["seconds to baseline's loss"], row["seconds to baseline's loss"]) == ("100", "150")
    assert row["time per step"] == "2.00 (2.00 to 2.00)"
    assert row["speed-up"] == "0.67 (0.67 to 0.67)"
    assert row["difference"].startswith("+0.500 (")
    assert row["verdict"] == "slower"
    said = sentences(made)
    assert said[0] == "at equal tokens, faster: (e) context_scale"
    assert said[1] == "at equal time, slower: (e) context_scale"
    assert "1 of 1; the order of all last changed at step 0 of 100" in said[3]
    assert said[4] == "the baseline's loss fell by 0.800 nats in the last third"


def test_a_rate_that_diverges_is_a_result(record):
    """The best is then another; here it is the lowest, so lower ones are still to be tried."""
    made = planted(record, 0.4)
    for cell in made["cells"]:
        if (cell["variant"], cell["lr"]) == ("softmax", 0.01):
            cell["diverged"] = {"step": 4, "seed": 3}
    made["compared"] = plain(compared(made))
    shown = tables(made)
    assert shown["rates"][1][2] == "diverged"
    assert shown["tokens"][1][1] == "0.003 (edge)"
    assert "grid: (a) softmax (lowest), (e) context_scale (highest)" in sentences(made)[2]


def test_a_loss_that_is_not_reached(record):
    shown = tables(planted(record, -0.4))
    row = dict(zip(shown["tokens"][0], shown["tokens"][2], strict=True))
    assert (row["steps to baseline's loss"], row["tokens, M"]) == (">100", ">0.0027")
    assert (row["speed-up"], row["verdict"]) == ("<1", "slower")
    row = dict(zip(shown["time"][0], shown["time"][2], strict=True))
    assert (row["seconds to baseline's loss"], row["speed-up"]) == (">200", "<1")


def test_flags_that_would_change_the_cells_are_refused(finished, run_convergence):
    done = run_convergence(*finished[-1], "--steps=7")
    assert done.refusal.startswith("--steps=7: the cells in ")


def test_smoke_takes_two_variants_and_rates(run_convergence):
    run_convergence("--redraw=nowhere")  # defines the flags
    flags = convergence.FLAGS
    flags.smoke, flags["steps"].value = True, 3
    config = convergence.config_from_flags()
    assert (config.variants, len(config.lrs)) == (("softmax", "context_scale"), 2)
    assert (config.train.steps, config.train.batch_size, config.rounds) == (3, 4, 2)
    flags["rounds"].value = 7
    assert convergence.config_from_flags().rounds == 7
