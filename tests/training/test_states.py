"""Training states: every bit comes back, nothing damaged is used, interrupted runs end the same."""

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sysout_jax.data import Backcopy
from sysout_jax.errors import InputError, Preempted
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import stack_blocks
from sysout_jax.training import states as training_states
from sysout_jax.training.checkpoint import save as save_model
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.loop import train
from sysout_jax.training.optimizer import OptimizerConfig
from sysout_jax.training.resume import States, initial
from sysout_jax.training.states import Saving, StateStore, restore, saved_steps
from tests.refusing import refusal
from tests.training.test_loop import same, without_timing

TINY = TrainConfig(
    corpus="backcopy", seq_len=8, batch_size=4, steps=7, seeds=(3, 1), steps_per_call=2,
    measure_every=5, val_batches=2, optimizer=OptimizerConfig(lr=1e-2, warmup=2),
    model=ModelConfig(layers=1, width=8, heads=1, mlp_width=8, mlp="relu", position="none"),
)  # fmt: skip
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def a_state(seed=0):
    rng = np.random.default_rng(seed)
    bits = jnp.asarray(rng.integers(0, 2**32, (5, 3), dtype=np.uint32).view(np.float32))
    return {"params": {"w": bits, "b": {"b": jnp.arange(7.0)}}, "opt": (jnp.asarray(seed), bits)}


def like(state):
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state
    )


def same_bits(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert (a.dtype, np.asarray(a).tobytes()) == (b.dtype, np.asarray(b).tobytes())


def store(directory, steps=(), finished=None, **saving):
    with StateStore(directory, Saving(**saving), print) as opened:
        for step in steps:
            opened.save(step, a_state(step), {"rows": [step]}, finished=step == finished)
    return directory


def found(directory):
    said = []
    back = restore(directory, like(a_state()), said.append)
    return back and back[1]["step"], said


# ------------------------------------------------------------------------- which are kept


@pytest.mark.parametrize(
    ("saving", "steps", "kept"),
    [
        ({"keep_last": 1}, [3, 6, 9], {9}),
        ({"keep_last": 2}, [3, 6, 9, 12], {9, 12}),
        ({"keep_last": 9}, [3, 6], {3, 6}),
        ({"keep_last": 1, "keep_every": 6}, [3, 6, 9, 12, 13], {6, 12, 13}),
        (
            {"keep_last": 1, "keep_every": 5},
            [3, 6, 9, 12, 13],
            {6, 12, 13},
        ),  # reached within a call
        ({"keep_last": 1, "keep_every": 100}, [3, 6], {6}),
    ],
)
def test_which_states_are_kept(saving, steps, kept):
    assert Saving(**saving).kept(steps, finished=False) == kept
    shown = []
    for step in steps:  # saved one after the other, each time only what was kept is still there
        shown = sorted(Saving(**saving).kept([*shown, step], finished=False))
    assert set(shown) == kept


def test_a_finished_run_keeps_its_last_state(tmp_path):
    store(tmp_path, (3, 6, 9), finished=9, keep_last=2)
    assert list(saved_steps(tmp_path)) == [9]
    assert Saving(keep_every=4).kept([3, 4, 8, 9], finished=True) == {4, 8, 9}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"save_every": -1}, "save_every=-1: accepted: an integer of at least 0"),
        ({"keep_last": 0}, "keep_last=0: accepted: an integer of at least 1"),
        ({"keep_every": -2}, "keep_every=-2: accepted: an integer of at least 0"),
    ],
)
def test_saving_out_of_range(changes, line):
    assert refusal(Saving, **changes) == line


# ------------------------------------------------------------------------- whole or not at all


def test_every_bit_comes_back(tmp_path):
    store(tmp_path / "a run", (2, 11, 100), keep_last=3)
    state, about = restore(tmp_path / "a run", like(a_state()), print)
    same_bits(state, a_state(100))
    assert about == {"format": 1, "step": 100, "rows": [100]}
    assert not [path for path in (tmp_path / "a run").glob(".*")]
    assert restore(tmp_path / "nothing", like(a_state()), print) is None


def test_the_newest_is_that_of_the_largest_step(tmp_path):
    """No clock is read: one that was wrong while a state was saved changes nothing."""
    store(tmp_path, (4, 8))
    now = time.time()
    for path in tmp_path.rglob("*"):
        skew = 1e6 if "step-000000004" in str(path) else -1e6
        os.utime(path, (now + skew, now + skew))
    assert found(tmp_path) == (8, [])


def test_damaged_states_are_not_used(tmp_path):
    """Cut short, flipped, missing or added: whichever file it is, the state before it is used."""
    store(tmp_path, (4, 8))
    newest = tmp_path / "step-000000008"
    files = [path for path in sorted(newest.rglob("*")) if path.is_file()]
    assert {"about.json", "sha256.json"} < {path.name for path in files}
    for file in files:
        whole = file.read_bytes()
        flipped = bytes([*whole[:-1], whole[-1] ^ 4]) if whole else b"0"
        for damaged in (whole[: len(whole) // 2], flipped):
            if damaged != whole:
                file.write_bytes(damaged)
                step, said = found(tmp_path)
                assert step == 4, file
                (line,) = said
                assert line.startswith(f"{newest}: cannot be used (")
                assert line.endswith("; the one before it is tried")
                assert "\n" not in line
        file.unlink()
        assert found(tmp_path)[0] == 4
        file.write_bytes(whole)
    (newest / "state" / "extra").write_text("")
    assert found(tmp_path)[0] == 4
    (newest / "state" / "extra").unlink()
    assert found(tmp_path) == (8, [])
    shutil.rmtree(tmp_path / "step-000000004" / "state")
    (newest / "about.json").unlink()
    step, said = found(tmp_path)
    assert (step, len(said)) == (None, 2)


def test_what_a_killed_run_left_is_cleared_away(tmp_path):
    store(tmp_path, (4, 8))
    (tmp_path / ".step-000000009.partial" / "state").mkdir(parents=True)
    (tmp_path / "step-000000008" / "about.json").write_text("{}")
    said = []
    with StateStore(tmp_path, Saving(), said.append) as opened:
        state, _ = opened.restore(like(a_state()), lambda about: None)
        same_bits(state, a_state(4))
        assert [path.name for path in tmp_path.iterdir()] == ["step-000000004"]
        opened.save(8, a_state(8), {})
    assert len(said) == 1
    assert list(saved_steps(tmp_path)) == [4, 8]


def test_a_state_outlasts_a_loss_of_power_before_others_are_removed(tmp_path, monkeypatch):
    """The storage library sees to its arrays; names and digests are nobody else's."""
    done = []
    sync, remove = os.fsync, shutil.rmtree

    def synced(handle):
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        sync(handle)

    def removed(path, **how):
        done.append(f"removed {os.path.basename(path)}")
        remove(path, **how)

    store(tmp_path, (4,), keep_last=1)
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(shutil, "rmtree", removed)
    store(tmp_path, (8,), keep_last=1)
    last = done.index("removed step-000000004")
    assert done[last - 1] == tmp_path.name
    before = " ".join(done[:last])
    assert all(f".{name}." in before for name in ("about.json", "sha256.json"))
    assert ".step-000000008.partial" in done[:last]
    assert list(saved_steps(tmp_path)) == [8]


def test_a_full_disk_leaves_the_states_before(tmp_path, monkeypatch):
    store(tmp_path, (4,))

    def full(path, value):
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(training_states, "write_json", full)
    with pytest.raises(OSError, match="No space left on device"):
        store(tmp_path, (8,))
    assert [path.name for path in tmp_path.iterdir()] == ["step-000000004"]
    assert found(tmp_path) == (4, [])


NO_ROOM = """
import resource, sys
from pathlib import Path
from experiments.cli import launch
from sysout_jax.training.states import Saving, StateStore
from tests.training.test_states import a_state

def main():
    with StateStore(Path(sys.stdin.read()), Saving(), print) as store:
        store.save(4, a_state(4), {})
        store.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
        store.save(8, a_state(8), {})

launch.launch(main)
"""


def test_a_write_that_the_system_refuses_is_one_line(tmp_path):
    """The storage library's threads meet it first; a user sees which state, why, and no more."""
    done = subprocess.run(
        [sys.executable, "-c", NO_ROOM], input=str(tmp_path), cwd=Path(__file__).parents[2],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        1,
        f"error: {tmp_path}/step-000000008: state not written: File too large\n",
    )
    assert list(saved_steps(tmp_path)) == [4]
    assert found(tmp_path) == (4, [])


# ------------------------------------------------------------------------- training goes on


@pytest.fixture(scope="module")
def whole():
    return train(TINY)


class Interrupted(Backcopy):
    """A corpus that fails when it is asked for the batch of some step."""

    at = 6

    def batch(self, split, seed, index, *shape_and_rows):
        if (split, index) == ("train", self.at):
            raise KeyboardInterrupt
        return super().batch(split, seed, index, *shape_and_rows)


def states(directory, **changes):
    values = {"saving": Saving(save_every=1, keep_last=3), "say": print}
    return States(directory, **(values | changes))


def interrupted(directory, **changes):
    config = dataclasses.replace(TINY, **changes)
    with pytest.raises(KeyboardInterrupt):
        train(config, Interrupted(), states=states(directory))
    return directory


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    return interrupted(tmp_path_factory.mktemp("stopped"))


@pytest.fixture
def copy(stopped, tmp_path):
    return shutil.copytree(stopped, tmp_path / "states")


def test_an_interrupted_run_ends_with_the_same_bits(whole, copy):
    """Rows are logged again, and only the steps after the last state are trained again."""
    trained, heard = [], []

    class Watched(Backcopy):
        def batch(self, split, seed, index, *shape_and_rows):
            trained.append((split, index))
            return super().batch(split, seed, index, *shape_and_rows)

    again = train(TINY, Watched(), heard.append, states=states(copy))
    same(again.params, whole.params)
    same(without_timing(again.rows), without_timing(whole.rows))
    same(without_timing(heard), without_timing(whole.rows))
    steps = {index for split, index in trained if split == "train"}
    assert steps == {0, 4, 5, 6}  # batches are made one call ahead; 0 is compared
    finished = train(TINY, Interrupted(), states=states(copy))  # nothing left to train
    same(finished.params, whole.params)
    assert finished.rows[1]["tokens_per_second"] == again.rows[1]["tokens_per_second"]
    assert min(finished.seconds, again.seconds) > whole.seconds / 100


@pytest.mark.slow
def test_groups_of_seeds_go_on_one_by_one(tmp_path):
    grouped = dataclasses.replace(TINY, seeds_at_once=1)
    again = train(grouped, states=states(interrupted(tmp_path, seeds_at_once=1)))
    expected = train(grouped)
    same(again.params, expected.params)
    same(without_timing(again.rows), without_timing(expected.rows))


def test_another_run_goes_on_from_it(whole, copy, tmp_path):
    """`resume_from` is read and not written to; the own directory comes first."""
    before = sorted(copy.rglob("*"))
    new = states(tmp_path / "new", resume_from=copy)
    same(train(TINY, states=new).params, whole.params)
    assert sorted(copy.rglob("*")) == before
    shutil.rmtree(copy)
    same(train(TINY, Interrupted(), states=new).params, whole.params)


def test_a_damaged_state_costs_time_and_no_bits(whole, copy):
    (group,) = copy.iterdir()
    newest = max(saved_steps(group).values())
    (newest / "about.json").write_bytes((newest / "about.json").read_bytes()[:-9])
    said = []
    again = train(TINY, states=states(copy, say=said.append))
    assert [line.startswith(f"{newest}: cannot be used (about.json is") for line in said] == [True]
    same(again.params, whole.params)
    same(without_timing(again.rows), without_timing(whole.rows))


def test_asked_to_stop(whole, tmp_path):
    """The state is saved at the end of the call that the device has by then, and the run ends."""
    heard, seldom = [], Saving(save_every=0)
    asked = states(tmp_path, saving=seldom, stopping=lambda: len(heard) >= 2)
    with pytest.raises(Preempted, match="asked to stop at step 4 of variant softmax"):
        train(TINY, log=heard.append, states=asked)
    assert [row["step"] for row in heard] == [0, 2, 4]
    with pytest.raises(Preempted, match="asked to stop before variant softmax"):
        train(TINY, states=asked)
    again = train(TINY, states=states(tmp_path, saving=seldom))
    same(again.params, whole.params)
    same(without_timing(again.rows), without_timing(whole.rows))


@pytest.mark.parametrize("every", [0, 1000])
def test_what_has_ended_is_not_trained_again(whole, tmp_path, every):
    """Where a later variant or group of seeds was asked to stop."""
    saving = Saving(save_every=every)
    train(TINY, states=states(tmp_path, saving=saving))
    again = train(TINY, Interrupted(), states=states(tmp_path, saving=saving))
    same(again.params, whole.params)


# ------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"steps": 9}, "steps=9: "),
        ({"batch_size": 2}, "batch_size=2: "),
        ({"seeds": (3, 2)}, "seeds=3,2: "),
        ({"optimizer": OptimizerConfig(lr=0.5, warmup=2)}, "lr=0.5: "),
        ({"model": dataclasses.replace(TINY.model, width=4)}, "width=4: "),
    ],
)
def test_a_config_that_contradicts_the_state(stopped, changes, told):
    config = dataclasses.replace(TINY, **changes)
    message = refusal(train, config, states=states(stopped))
    assert message.startswith(told)
    assert "was trained with" in message
    assert "init_from" in message
    assert list(saved_steps(stopped / "softmax-seed-3"))


def test_other_data_than_the_states(stopped):
    with pytest.raises(InputError, match=r"corpus=backcopy: not the text that .* trained on"):
        train(TINY, Backcopy(chain_seed=1), states=states(stopped))


# ------------------------------------------------------------------------- a model to begin with


@pytest.fixture(scope="module")
def model(whole, tmp_path_factory):
    place = tmp_path_factory.mktemp("run") / "models" / "softmax"
    save_model(place, whole.architecture, whole.params, TINY.seeds)
    return place


def test_beginning_with_a_models_parameters(whole, model, tmp_path):
    """Its validation loss is the first of the run; steps, schedule and optimiser start anew."""
    run = train(TINY, states=states(tmp_path / "a", init_from=model))
    assert run.rows[0]["step"] == 0
    same(run.rows[0]["val_loss"], whole.rows[-1]["val_loss"])
    assert not np.array_equal(run.params["head"], whole.params["head"])
    again = train(TINY, Interrupted(), states=states(tmp_path / "a", init_from=Path("gone")))
    same(again.params, run.params)  # its own states come first


def test_a_model_of_one_seed_is_for_all(whole, tmp_path):
    place = tmp_path / "model"
    save_model(place, whole.architecture, jax.tree.map(lambda x: x[:1], whole.params), [3])
    params = initial(place, whole.architecture, Backcopy(), (0, 9), whole.params)
    same(params, jax.tree.map(lambda x: jnp.stack([x[0], x[0]]), dict(whole.params)))


@pytest.mark.parametrize("scanned", [True, False])
def test_a_model_whose_layers_are_laid_out_otherwise(whole, scanned, tmp_path):
    one_by_one = whole.architecture, dict(whole.params)
    together = (
        whole.architecture.with_execution(scan_layers=True), jax.vmap(stack_blocks)(whole.params)
    )  # fmt: skip
    (saved, params), (run, wanted) = (one_by_one, together) if scanned else (together, one_by_one)
    save_model(tmp_path / "model", saved, params, TINY.seeds)
    fresh = jax.tree.map(jnp.zeros_like, wanted)
    same(initial(tmp_path / "model", run, Backcopy(), TINY.seeds, fresh), wanted)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"variant": "context_scale"}, "variant softmax, but the run has context_scale"),
        ({"model": dataclasses.replace(TINY.model, mlp_width=5)}, "mlp_width 8, but the run has 5"),
        ({"seeds": (3, 2)}, "seed=2: not in"),
    ],
)
def test_a_model_that_does_not_fit(whole, model, changes, told):
    config = dataclasses.replace(TINY, **changes)
    of_run = config.architecture(65), Backcopy(), config.seeds, whole.params
    message = refusal(initial, model, *of_run)
    assert told in message
    assert "accepted: " in message
