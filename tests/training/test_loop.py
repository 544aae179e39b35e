"""The loop: reproducible, measured when it says, the seeds independent of their company."""

import dataclasses
import weakref
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import sysout_jax as so
from sysout_jax.data import Backcopy, TextCorpus
from sysout_jax.errors import Diverged, InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.training import held_out, loop
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.loop import train
from sysout_jax.training.optimizer import OptimizerConfig
from sysout_jax.training.parallel import make_devices
from sysout_jax.training.sharding import MeshShape
from sysout_jax.training.step import StepRecord, TrainState, token_loss
from tests.refusing import refusal

TINY = TrainConfig(
    corpus="backcopy",
    seq_len=8,
    batch_size=4,
    steps=7,
    seeds=(3, 1),
    steps_per_call=3,
    measure_every=5,
    val_batches=2,
    model=ModelConfig(layers=1, width=8, heads=1, mlp_width=8, mlp="relu", position="none"),
    optimizer=OptimizerConfig(lr=1e-2, warmup=2),
)
ALWAYS = {"variant", "seeds", "step", "tokens_per_second", "loss", "grad_norm"}
MEASURED = {"val_loss", "measures"}


@cache
def trained(**changes):
    return train(dataclasses.replace(TINY, **changes))


def same(found, expected):
    jax.tree.map(np.testing.assert_array_equal, found, expected)


def without_timing(rows):
    return [{k: v for k, v in row.items() if k != "tokens_per_second"} for row in rows]


# ------------------------------------------------------------------------- rows


@pytest.mark.parametrize(
    ("changes", "steps", "measured"),
    [
        ({}, [0, 3, 5, 7], [0, 5, 7]),  # calls are cut where a measurement is due
        ({"measure_every": 100}, [0, 3, 6, 7], [0, 7]),
        ({"steps_per_call": 25, "measure_every": 3, "steps": 6}, [0, 3, 6], [0, 3, 6]),
        ({"steps_per_call": 1, "measure_every": 2, "steps": 3}, [0, 1, 2, 3], [0, 2, 3]),
    ],
    ids=["uneven", "rarely", "long calls", "every step"],
)
def test_rows_come_at_the_right_steps(changes, steps, measured):
    rows = trained(**changes).rows
    assert [row["step"] for row in rows] == steps
    assert [row["step"] for row in rows if "measures" in row] == measured
    for row in rows:
        expected = (ALWAYS if row["step"] else {"variant", "seeds", "step"}) | (
            MEASURED if row["step"] in measured else set()
        )
        assert set(row) == expected
        assert (row["variant"], row["seeds"]) == ("softmax", [3, 1])
        for name in expected & {"loss", "grad_norm", "val_loss"}:
            assert np.shape(row[name]) == (2,)
            assert np.isfinite(row[name]).all()
        assert all(np.shape(values) == (2,) for values in row.get("measures", {}).values())
    assert all(row["tokens_per_second"] > 0 for row in rows[1:])


def test_a_row_of_several_steps_is_their_mean():
    single, several = trained(steps_per_call=1).rows[1:], trained().rows[1:]
    assert [row["step"] for row in single] == [1, 2, 3, 4, 5, 6, 7]
    for row, part in zip(several, (single[:3], single[3:5], single[5:]), strict=True):
        for name in ("loss", "grad_norm"):
            mean = np.mean([one[name] for one in part], axis=0)
            np.testing.assert_allclose(row[name], mean, rtol=1e-5)


def test_the_log_gets_each_row():
    heard = []
    assert train(TINY, log=heard.append).rows == heard


def test_validation_loss_is_that_of_the_final_parameters():
    run, corpus = trained(), Backcopy()
    loss = jax.jit(lambda p, rows: jnp.mean(token_loss(run.architecture, p, rows)))
    for at, seed in enumerate(TINY.seeds):
        batches = [jnp.asarray(corpus.batch("val", 0, n, 4, 8)) for n in range(2)]
        expected = np.mean([loss(run.model(seed).params, rows) for rows in batches])
        assert run.rows[-1]["val_loss"][at] == pytest.approx(expected, rel=1e-5)


def test_rows_to_measure_on_may_be_shorter_than_those_trained_on():
    run, corpus = trained(measure_seq_len=5), Backcopy()
    same(run.params, trained().params)
    loss = jax.jit(lambda p, rows: jnp.mean(token_loss(run.architecture, p, rows)))
    batches = [jnp.asarray(corpus.batch("val", 0, n, 4, 5)) for n in range(2)]
    expected = np.mean([loss(run.model(3).params, rows) for rows in batches])
    assert run.rows[-1]["val_loss"][0] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(InputError, match="measure_seq_len=9: accepted: at most seq_len=8"):
        dataclasses.replace(TINY, measure_seq_len=9)


def test_learned_positions_may_begin_later():
    """OPT's first two rows are of no token: sequences are as long as they were asked for."""
    later = dataclasses.replace(TINY.model, position="learned", position_offset=2)
    run = trained(model=later)
    assert run.architecture.longest == TINY.seq_len
    assert np.isfinite(run.rows[-1]["loss"]).all()


def measured_in(parts, variant="context_scale"):
    """What is measured of two seeds on 32 rows in so many parts."""
    architecture = dataclasses.replace(TINY, variant=variant).architecture(65)
    devices = make_devices("jit", TINY.mesh_shape, architecture, optax.sgd(1.0), 32)
    config = dataclasses.replace(TINY, batch_size=32, val_batches=1)
    rows, noop = held_out.held_out(config, Backcopy(), 32 // parts, TINY.seeds)
    assert rows.shape == (parts, 32 // parts, 9)
    params = devices.start(jnp.stack([jax.random.key(seed) for seed in TINY.seeds])).params
    # Heads and channels that stand out in some sequences alone.
    params = jax.tree.map(lambda x: 3 * x, params)
    return held_out.measuring(architecture, Backcopy(), devices)(params, rows, noop)


@cache
def measured_whole():
    return measured_in(1)


@pytest.mark.parametrize("parts", [2, 8])
def test_what_is_measured_does_not_depend_on_the_parts(parts):
    """Sequences are averaged over before layers and heads are compared."""
    whole, found = measured_whole(), measured_in(parts)
    assert found["measures"].keys() == whole["measures"].keys()
    assert {"noop_sink_best", "sink_gap", "gate_active", "loss_copy"} < whole["measures"].keys()
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=1e-6), found, whole)


@pytest.mark.parametrize(
    ("changes", "divided", "rows"),
    [
        ({"batch_size": 24}, 1, 24),
        ({"batch_size": 24, "accumulate": 3}, 1, 8),
        ({"batch_size": 24, "accumulate": 3, "mesh": "data=2,fsdp=2"}, 4, 8),  # two on each device
        ({"batch_size": 24, "mesh": "tensor=2"}, 1, 24),
        ({"batch_size": 24, "accumulate": 3, "mesh": "data=4", "parallel": "pmap"}, 1, 2),
        ({"batch_size": 24, "seq_len": 3000, "measure_seq_len": 2000}, 1, 1),  # as parts_of says
    ],
)
def test_as_many_rows_are_measured_at_once_as_a_part_of_a_step_has(changes, divided, rows):
    """Whole maps of a batch that a step has in parts would not fit."""
    shape = dataclasses.replace(TINY.model, heads=2, mlp_width=8)
    config = dataclasses.replace(TINY, model=shape, **changes)
    devices = make_devices("jit", MeshShape(), config.architecture(65), optax.sgd(1.0), 24)
    devices = dataclasses.replace(devices, parts=divided)
    assert held_out.rows_at_once(config, config.architecture(65), devices) == rows


def test_a_run_measures_in_its_parts(monkeypatch):
    seen, sums = set(), held_out.outlier_sums

    def watched(config, params, tokens, noop):
        seen.add(tokens.shape)
        return sums(config, params, tokens, noop)

    monkeypatch.setattr(held_out, "outlier_sums", watched)
    train(dataclasses.replace(TINY, accumulate=2, steps=1))
    assert seen == {(2, 8)}


# ------------------------------------------------------------------------- reproducible


def test_the_same_config_gives_the_same_bits():
    again = train(TINY, Backcopy())
    same(again.params, trained().params)
    same(without_timing(again.rows), without_timing(trained().rows))
    other = trained(seeds=(3, 2))
    same(other.model(3).params, again.model(3).params)
    assert not np.array_equal(other.params["head"][1], again.params["head"][1])


def test_seeds_in_groups_equal_all_at_once():
    """To 1e-6, not to the bit: a batched matrix product may sum in another order."""
    grouped, together = trained(seeds_at_once=1), trained()
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), grouped.params, together.params
    )
    assert [(row["seeds"], row["step"]) for row in grouped.rows] == [
        ([seed], step) for seed in (3, 1) for step in (0, 3, 5, 7)
    ]
    for at in range(2):
        for row, whole in zip(grouped.rows[4 * at : 4 * at + 4], together.rows, strict=True):
            for name in {"loss", "grad_norm", "val_loss"} & set(whole):
                np.testing.assert_allclose(row[name], [whole[name][at]], rtol=1e-4)


def test_groups_need_not_be_of_one_size():
    run = trained(seeds=(3, 1, 0), seeds_at_once=2, steps=3, measure_every=3)
    assert [row["seeds"] for row in run.rows] == [[3, 1], [3, 1], [0], [0]]
    assert jax.tree.leaves(run.params)[0].shape[0] == 3


def test_a_model_for_each_seed():
    run = trained()
    for at, seed in enumerate(TINY.seeds):
        same(run.model(seed).params, jax.tree.map(lambda x, at=at: x[at], run.params))
        assert run.model(seed).config == run.architecture
    same(run.model().params, run.model(3).params)
    assert not np.array_equal(run.model(3).params["head"], run.model(1).params["head"])
    assert refusal(run.model, 0) == "seed=0: not in this run; accepted: 3, 1"


def test_a_run_tells_the_corpus_it_was_given():
    text = TextCorpus("mine", 9, None, np.arange(200) % 9, np.arange(90) % 9)
    run = train(dataclasses.replace(TINY, corpus="stdlib", steps=1, seeds=(1,)), text)
    assert run.config.corpus == "mine"
    assert "corpus mine;" in repr(run)


def test_groups_of_seeds_share_what_is_compiled(monkeypatch):
    traced = []

    def counted(*args):
        traced.append(args)
        return summary(*args)

    summary = held_out.outlier_sums
    monkeypatch.setattr(held_out, "outlier_sums", counted)
    config = dataclasses.replace(TINY, seeds=(3, 1, 2), seeds_at_once=1, steps=3)
    train(config)
    assert len(traced) == 1


def test_loss_falls():
    fast = OptimizerConfig(lr=0.03, schedule="constant", warmup=0)
    run = trained(steps=60, measure_every=60, steps_per_call=20, optimizer=fast)
    first, last = run.rows[0]["val_loss"], run.rows[-1]["val_loss"]
    np.testing.assert_allclose(first, [np.log(65)] * 2, rtol=0.01)
    assert (last < first - 0.5).all()


# ------------------------------------------------------------------------- divergence


class Poisoned(Backcopy):
    """A token beyond the vocabulary, whose embedding is NaN, in one batch of seed 1."""

    def batch(self, split, seed, index, *shape_and_rows):
        rows = super().batch(split, seed, index, *shape_and_rows)
        if (split, seed, index) == ("train", 1, 4):
            rows[2, 3] = 999
        return rows


def test_a_loss_that_is_not_finite_ends_the_run():
    rows = []
    with pytest.raises(Diverged) as caught:
        train(TINY, Poisoned(), rows.append)
    assert (caught.value.step, caught.value.seed) == (5, 1)
    message = str(caught.value)
    assert message.startswith("loss is nan at step 5 of seed 1, variant softmax; try")
    assert "\n" not in message
    assert [row["step"] for row in rows] == [0, 3, 5]
    assert np.isfinite(rows[1]["loss"]).all()
    assert np.isfinite(rows[2]["loss"]).tolist() == [True, False]


def test_a_gradient_that_is_not_finite_ends_the_run():
    """Of a loss that is: no later one tells where the step is the last."""
    loss, norm = np.ones((2, 3)), np.ones((2, 3))
    norm[1, 2] = np.inf
    config = dataclasses.replace(TINY, seeds=(4, 5, 6))
    row, diverged = loop._row(config, config.seeds, 7, StepRecord(loss, norm), lambda: 1.0)
    assert (diverged.step, diverged.seed) == (9, 6)
    assert str(diverged).startswith("gradient's norm is inf at step 9 of seed 6, variant softmax;")
    assert row["step"] == 9
    assert loop._row(config, config.seeds, 7, StepRecord(loss, loss), lambda: 1.0)[1] is None


def test_a_huge_learning_rate_diverges():
    rows = []
    wild = OptimizerConfig(optimizer="sgd", lr=1e30, schedule="constant", warmup=0, clip=0.0)
    with pytest.raises(Diverged, match=r"lr.*warmup.*clip") as caught:
        train(dataclasses.replace(TINY, optimizer=wild), log=rows.append)
    assert caught.value.step in (2, 3)  # the first loss is of the initial parameters
    assert [row["step"] for row in rows] == [0, 3]
    assert np.isnan(rows[-1]["loss"]).any()


# ------------------------------------------------------------------------- text


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "some text.txt"
    path.write_text("".join(f"Line {n} is not line {n + 1}.\n" for n in range(400)))
    return path


def test_text_is_trained_on(text):
    config = dataclasses.replace(TINY, corpus=str(text), seeds=(0,), steps=2)
    runs = {bos: so.train(dataclasses.replace(config, bos=bos)) for bos in (True, False)}
    for run in runs.values():
        assert run.architecture.vocab == 258
        assert run.tokenizer.decode(run.tokenizer.encode("Line")) == "Line"
        assert np.isfinite([row["loss"] for row in run.rows if "loss" in row]).all()
    # Both runs start from the same values; a token's embedding moves beyond decay where it is seen.
    of_bos = [run.model().params["embed"][257] for run in runs.values()]
    of_nothing = [run.model().params["embed"][255] for run in runs.values()]
    assert not np.array_equal(*of_bos)
    np.testing.assert_array_equal(*of_nothing)


def test_text_that_is_too_short(text):
    config = dataclasses.replace(TINY, corpus=str(text), seq_len=100_000)
    assert refusal(train, config).startswith("seq_len=100000: the ")


# ------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"checkpoint_every": 3}, [0, 3, 6, 7]),
        ({"checkpoint_every": 7}, [0, 7]),
        ({"checkpoint_every": 100}, [0, 7]),
        ({"checkpoint_every": 0}, []),
    ],
)
def test_models_are_kept_on_the_way(changes, steps):
    """At step 0, when it is due and at the end; what is trained does not depend on it."""
    kept = {}

    def keep(step, seeds, params):
        kept[step] = (seeds, jax.tree.map(np.array, params))

    run = train(dataclasses.replace(TINY, **changes), keep=keep)
    assert list(kept) == steps
    same(run.params, trained().params)
    if kept:
        assert all(seeds == (3, 1) for seeds, _ in kept.values())
        same(kept[7][1], run.params)
        moved = kept[0][1]["embed"] != kept[7][1]["embed"]
        assert moved.any(axis=(1, 2)).all()  # of both seeds


def test_groups_of_seeds_are_kept_apart():
    kept = []
    config = dataclasses.replace(TINY, checkpoint_every=7, seeds_at_once=1)
    train(config, keep=lambda step, seeds, params: kept.append((step, seeds)))
    assert kept == [(0, (3,)), (7, (3,)), (0, (1,)), (7, (1,))]


# ------------------------------------------------------------------------- order


def test_the_device_has_its_next_call_before_the_last_one_is_read(monkeypatch):
    """But where the state is looked at: then nothing may be trained on before."""
    happened = []
    make = loop.make_devices

    def watched(*arguments):
        devices = make(*arguments)

        def steps(state, batches):
            happened.append("call")
            return devices.steps(state, batches)

        return dataclasses.replace(devices, steps=steps)

    monkeypatch.setattr(loop, "make_devices", watched)

    def log(row):
        happened.append(row["step"])

    changes = {"steps": 8, "steps_per_call": 1, "measure_every": 4, "checkpoint_every": 6}
    train(dataclasses.replace(TINY, **changes), log=log)
    assert happened == [
        0, "call", "call", 1, "call", 2, "call", 3, 4, "call", "call", 5, 6, "call", "call", 7, 8,
    ]  # fmt: skip


# ------------------------------------------------------------------------- what devices hold


def test_the_state_that_was_placed_is_not_held(monkeypatch):
    """Under pmap it would lie beside its copy on the first device, for all of the run."""
    begun, held = [], []
    make = loop.make_devices

    def watched(*arguments):
        devices = make(*arguments)

        def whole(state):
            found = devices.whole(state)
            begun.extend(map(weakref.ref, jax.tree.leaves(found)) if not begun else ())
            return found

        placed = partial(jax.tree.map, jnp.copy)
        return dataclasses.replace(devices, whole=whole, placed=placed)

    monkeypatch.setattr(loop, "make_devices", watched)
    train(TINY, log=lambda row: held.append(sum(ref() is not None for ref in begun)))
    assert len(begun) > 10
    assert held[-1] == 0


def test_parameters_are_made_whole_without_the_optimisers_state():
    asked = []
    devices = make_devices("jit", TINY.mesh_shape, TINY.architecture(65), optax.sgd(1.0), 4)
    devices = dataclasses.replace(devices, whole=lambda tree: asked.append(tree) or tree)
    assert devices.params(TrainState({"w": 1}, {"m": 2})) == {"w": 1}
    assert asked == [{"w": 1}]
