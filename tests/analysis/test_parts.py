"""The pieces of the analyses against closed forms and loops: sets, classes, weights, growth."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from sysout_jax.analysis.compress import allocation
from sysout_jax.analysis.compress.compression import Compressor
from sysout_jax.analysis.compress.schemes import scheme
from sysout_jax.analysis.intervene.dose_response import doses
from sysout_jax.analysis.intervene.editing import without_weights
from sysout_jax.analysis.intervene.explicit_factor import factors
from sysout_jax.analysis.locate import nulls
from sysout_jax.analysis.locate.existence import pool
from sysout_jax.analysis.locate.relations import relate, relations
from sysout_jax.analysis.locate.scan import QUERIES_AT_ONCE, Thresholds, default_batch_size, scan
from sysout_jax.analysis.locate.tokens import NAMES, token_class, token_classes
from sysout_jax.analysis.locate.weights import PROJECTIONS, down_outliers, layer_params, weight_scan
from sysout_jax.analysis.measure.dynamics import KINDS, dynamics, emergence
from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import forward, init, stack_blocks
from tests.analysis import planted as p

# ----------------------------------------------------------------------- sizes of batches


@pytest.mark.parametrize(
    ("backend", "length", "expected"),
    [
        ("cpu", 5, 8), ("cpu", 128, 4), ("cpu", 512, 1), ("cpu", 1000, 1), ("gpu", 1000, 8),
        ("gpu", 1025, 1), ("cpu", 9000, 1),
    ],
)  # fmt: skip
def test_sequences_run_together(monkeypatch, backend, length, expected):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert default_batch_size(length) == expected


def test_what_holds_maps_whole_refuses_long_texts():
    rows = np.zeros((1, QUERIES_AT_ONCE + 2), np.int32)
    for refused in (lambda: doses(CONFIG, {}, rows, [1.0]), lambda: factors(CONFIG, {}, rows)):
        with pytest.raises(InputError, match=r"seq_len=102[56]: accepted: at most 1024"):
            refused()


@pytest.mark.parametrize("length", [QUERIES_AT_ONCE, QUERIES_AT_ONCE + 1])
def test_what_reads_no_maps_attends_in_blocks(monkeypatch, length):
    """Of long texts; `StopIteration` ends the run where it would begin."""
    asked = []

    def stop(config, *_):
        asked.append(config.execution.query_block is not None)
        raise StopIteration

    monkeypatch.setattr(allocation, "passes", stop)
    monkeypatch.setattr(nulls, "entering", stop)
    rows = np.zeros((1, length + 1), np.int32)
    model, few = init(CONFIG, jax.random.key(0)), np.zeros((1, 5), np.int32)
    for run in (
        lambda: allocation.sensitivity(Compressor(CONFIG, model, few), scheme("w3-g32"), rows),
        lambda: nulls.outlying_states(CONFIG, model, rows[:, :-1], scan(CONFIG, model, few), 1),
    ):
        with pytest.raises(StopIteration):
            run()
    assert asked == [length > QUERIES_AT_ONCE] * 2


# ------------------------------------------------------------------------------ relations

WHAT = ("a", "b", "tokens")


def test_relations_of_sets_by_hand():
    """A = {0, 1}, B = {1, 2, 3}; A = {4}, B = {}; and a sequence in which both are empty."""
    given, found = np.zeros((3, 7), bool), np.zeros((3, 7), bool)
    given[0, [0, 1]] = found[0, [1, 2, 3]] = given[1, 4] = True
    row = relate(WHAT, given, found)
    assert row.precision.mean == pytest.approx((1 / 2 + 0) / 2)
    assert row.recall.mean == pytest.approx(1 / 3)
    assert row.jaccard.mean == pytest.approx((1 / 4 + 0) / 2)
    assert (row.sequences, row.mean_given, row.mean_found) == (1, 1, 1)


def test_the_null_is_that_of_shuffled_positions():
    """E precision = |B|/n, and the p-value is the hypergeometric tail."""
    given, found = np.zeros((1, 50), bool), np.zeros((1, 50), bool)
    given[0, :5] = found[0, 3:13] = True
    row = relate(WHAT, given, found)
    assert row.null_precision == pytest.approx(10 / 50, abs=0.02)
    tail = stats.hypergeom.sf(1, 50, 10, 5)
    assert row.p_value == pytest.approx(tail, abs=0.04)


def test_independent_sets_are_seldom_significant():
    rng = np.random.default_rng(0)
    values = [
        relate(WHAT, rng.random((9, 40)) < 0.2, rng.random((9, 40)) < 0.2).p_value
        for _ in range(100)
    ]
    assert np.mean(np.array(values) < 0.1) < 0.2


def test_places_that_all_sequences_share_are_one_observation():
    """One of 64 channels that is hit by chance has p = 1/64, in however many sequences."""
    given = np.zeros((32, 64), bool)
    given[:, 7] = True
    assert relate(WHAT, given, given).p_value == pytest.approx(1 / 64, abs=0.01)


def test_shared_sets_are_seldom_significant():
    rng, values = np.random.default_rng(0), []
    for _ in range(100):
        given, found = np.zeros((2, 32, 64), bool)
        for flags in (given, found):
            flags[:, rng.choice(64, 4, replace=False)] = True
        values.append(relate(WHAT, given, found).p_value)
    assert np.mean(np.array(values) < 0.05) < 0.1  # of independent places of each sequence 0.27


def test_empty_sets_have_no_relation():
    row = relate(WHAT, np.zeros((2, 5), bool), np.ones((2, 5), bool))
    assert math.isnan(row.precision.mean)
    assert row.recall.mean == 0
    assert math.isnan(row.p_value)


# ------------------------------------------------------------------------------ tokens


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (".", "strong delimiter"), ("\n", "strong delimiter"), ("\n\n", "strong delimiter"),
        (" ?", "strong delimiter"), ("and", "weak-semantic"), (" The", "weak-semantic"),
        (",", "weak-semantic"), ("summer", "other"), (" ", "other"), ("3.14", "other"),
        ("", "other"), ("android", "other"),
    ],
)  # fmt: skip
def test_class_of_a_token(text, name):
    assert NAMES[token_class(text)] == name


def test_the_first_token_is_initial_whatever_it_says():
    words = [".", " and", "sun"]
    tokens = np.array([[0, 1, 2, 0], [2, 2, 0, 1]])
    classes = token_classes(tokens, lambda ids: words[ids[0]])
    named = [[NAMES[c] for c in row] for row in classes]
    assert named[0] == ["initial", "weak-semantic", "other", "strong delimiter"]
    assert named[1] == ["initial", "other", "strong delimiter", "weak-semantic"]
    without = token_classes(tokens, None)
    assert (without[:, 1:] == NAMES.index("other")).all()


# ------------------------------------------------------------------------------ weights

CONFIG = ModelConfig(
    vocab=11, context=5, layers=3, width=12, heads=4, kv_heads=2, mlp="swiglu", mlp_width=19
)


INPUTS = {"out": 2}  # axes of a matrix that are inputs, where there is more than one


def test_weight_scan_against_numpy():
    params = init(CONFIG, jax.random.key(0))
    found = weight_scan(params)
    assert found.matrices == tuple(name for _, name in PROJECTIONS)
    for layer in range(3):
        for at, (module, name) in enumerate(PROJECTIONS):
            weight = np.abs(np.asarray(params[f"block_{layer}"][module][name], np.float64))
            size = weight.reshape(math.prod(weight.shape[: INPUTS.get(name, 1)]), -1)
            rows = (size.max(1) / size.mean(1)).max()
            columns = (size.max(0) / size.mean(0)).max()
            np.testing.assert_allclose(found.ratio[layer, at], size.max() / size.mean(), rtol=1e-5)
            np.testing.assert_allclose(found.row_ratio[layer, at], rows, rtol=1e-5)
            np.testing.assert_allclose(found.column_ratio[layer, at], columns, rtol=1e-5)
        down = np.asarray(params[f"block_{layer}"]["mlp"]["down"])
        largest = found.largest[layer]
        assert abs(largest.value) == np.abs(down).max()
        assert down[largest.input, largest.output] == np.float32(largest.value)
    assert found.outliers == ()
    stacked = weight_scan(stack_blocks(params))
    np.testing.assert_array_equal(stacked.ratio, found.ratio)


@pytest.mark.parametrize("name", ["out", "query", "up"])
def test_a_planted_weight_is_found_in_any_matrix(name):
    params = jax.tree.map(lambda x: x, init(CONFIG, jax.random.key(0)))
    module, _ = next(p for p in PROJECTIONS if p[1] == name)
    weight = np.array(params["block_1"][module][name])
    flat = weight.reshape(math.prod(weight.shape[: INPUTS.get(name, 1)]), -1)
    flat[5, 3] = -90.0
    params["block_1"][module][name] = jnp.asarray(weight)
    (found,) = weight_scan(params, ratio=50.0).outliers
    assert (found.layer, found.matrix, found.input, found.output) == (1, name, 5, 3)
    assert found.value == -90


def test_more_outliers_of_down_than_are_listed_are_all_found_and_set_to_zero():
    """20 in one layer, of which a list has 16; and 1 in another."""
    params = jax.tree.map(lambda x: x, init(CONFIG, jax.random.key(0)))
    places = [(1, neuron, (5 * neuron) % 12) for neuron in range(19)] + [(1, 0, 7), (2, 3, 4)]
    for layer, *at in places:
        down = params[f"block_{layer}"]["mlp"]["down"]
        params[f"block_{layer}"]["mlp"]["down"] = down.at[tuple(at)].set(-90.0)
    size = np.abs(np.asarray(params["block_1"]["mlp"]["down"], np.float64))
    ratio = 5.0
    assert (size > ratio * size.mean()).sum() == 20
    found = [weight_scan(each, ratio) for each in (params, stack_blocks(params))]
    assert [w.layer for w in found[0].outliers if w.matrix == "down"] == [1] * 16 + [2]
    for each, of in zip((params, stack_blocks(params)), found, strict=True):
        flagged = down_outliers(each, of, ratio)
        assert sorted(flagged) == sorted(places)
        for whole in (False, True):
            down = layer_params(without_weights(each, flagged, whole), 1)["mlp"]["down"]
            assert np.abs(down).max() < 1.0
            assert np.all(down == 0.0) == whole  # every neuron of layer 1 has one


def test_relations_are_of_all_outliers_of_weights():
    """The list has 16 of the 20 channels of one neuron; the remover is the other neuron."""
    params, tokens = p.params(), p.rows()[:2, :-1]
    mlp = params["blocks"]["mlp"]
    down = mlp["down"].at[p.MADE, p.NEURON, 8:27].set(300.0)
    many = {**params, "blocks": {**params["blocks"], "mlp": {**mlp, "down": down}}}
    thresholds = Thresholds(weight_ratio=50.0)
    found = scan(p.CONFIG, params, tokens, thresholds)
    first, second, *_ = relations(p.CONFIG, many, tokens, found=found).rows
    assert (first.mean_given, second.mean_given) == (20, 2)


def test_weights_of_experts_are_stacked_by_input():
    config = dataclasses.replace(CONFIG, experts=3, experts_per_token=2)
    params = jax.tree.map(lambda x: x, init(config, jax.random.key(0)))
    down = params["block_2"]["mlp"]["down"]
    params["block_2"]["mlp"]["down"] = down.at[1, 4, 7].set(-90.0)
    (found,) = weight_scan(params, ratio=50.0).outliers
    assert (found.layer, found.matrix, found.input, found.output) == (2, "down", 19 + 4, 7)


def test_weights_of_an_mlp_without_a_gate():
    params = init(dataclasses.replace(CONFIG, mlp="relu"), jax.random.key(0))
    assert weight_scan(params).matrices == ("query", "key", "value", "out", "up", "down")


@pytest.mark.parametrize("columns", [1, 5, 6, 7, 23])
def test_pool_keeps_the_largest(columns):
    x = np.abs(np.random.default_rng(0).standard_normal((3, columns)))
    pooled = np.asarray(pool(jnp.asarray(x), 6))
    run = -(-columns // 6)
    assert pooled.shape[1] <= 6
    expected = [x[:, i : i + run].max(1) for i in range(0, columns, run)]
    np.testing.assert_allclose(pooled, np.stack(expected, axis=1), rtol=1e-6)


# ------------------------------------------------------------------------------ dynamics

STEPS = np.array([0, 10, 20, 40, 80, 160, 320])


def test_emergence_is_where_half_of_the_way_is_gone():
    values = np.array([1.0, 1.1, 1.2, 2.9, 3.1, 4.9, 5.0])
    row = emergence("kind", "ratio", STEPS, values)
    assert (row.changed, row.step) == (True, 80)
    assert emergence("kind", "ratio", STEPS, values / values).step is None
    falling = emergence("kind", "ratio", STEPS, values[::-1])
    assert (falling.changed, falling.step) == (True, 40)
    share = emergence("sink", "first_token_attention", STEPS, 0.1 + 0.02 * values)
    assert not share.changed  # from 0.12 to 0.20: too little for a share


def test_a_move_the_wrong_way_is_none_of_the_way():
    row = emergence("kind", "ratio", np.array([0, 10, 20, 30]), np.array([2.0, 0.4, 2.0, 5.0]))
    assert (row.changed, row.step) == (True, 30)
    falling = emergence("kind", "ratio", np.array([0, 10, 20, 30]), np.array([5.0, 9.0, 5.0, 2.0]))
    assert (falling.changed, falling.step) == (True, 30)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_dynamics_average_over_all_sequences_before_they_pick_a_layer(batch):
    """Whatever is run together: max_l mean_b |h_b0| / mean_t>0 |h_bt|, from raw states."""
    tokens = np.random.default_rng(3).integers(0, 11, (7, 5)).astype(np.int32)
    params = jax.tree.map(lambda x: 30 * x, init(CONFIG, jax.random.key(1)))
    state = forward(CONFIG, params, jnp.asarray(tokens), {"block_out": None})[1]["block_out"]
    norms = np.linalg.norm(np.asarray(state, np.float64), axis=-1)
    peaks = norms[..., 0] / norms[..., 1:].mean(axis=-1)  # [L, B]
    assert len(set(peaks.argmax(axis=0))) > 1  # sequences differ in their layer
    found = dynamics(CONFIG, [(0, params), (1, params)], tokens, batch).measures
    np.testing.assert_allclose(found["residual_peak@block_out"], peaks.mean(1).max(), rtol=1e-4)
    whole = dynamics(CONFIG, [(0, params), (1, params)], tokens, 7).measures
    assert set(found) == set(whole)
    for name, values in whole.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-4, err_msg=name)


def test_dynamics_measures_every_checkpoint():
    config = dataclasses.replace(CONFIG, layers=1)
    tokens = np.random.default_rng(0).integers(0, 11, (5, 5)).astype(np.int32)
    params = init(config, jax.random.key(0))

    def checkpoints():
        for step in (0, 1, 2):
            down = params["block_0"]["mlp"]["down"].at[3, 4].set(float(10**step))
            mlp = {**params["block_0"]["mlp"], "down": down}
            yield step, {**params, "block_0": {**params["block_0"], "mlp": mlp}}

    found = dynamics(config, checkpoints(), tokens, batch=3)
    assert found.steps == (0, 1, 2)
    assert set(KINDS.values()) <= set(found.measures)
    ratios = found.measures["weight_ratio@down"]
    np.testing.assert_allclose(ratios[-1], 228 / (1 + 227 * 0.016 / 100), rtol=0.1)
    assert "weight outliers, W_down" in found.order
    for few, said in (([], "0 checkpoints"), ([(0, params)], "1 checkpoint")):
        with pytest.raises(InputError, match=f"{said}; accepted: a run with at least 2"):
            dynamics(config, few, tokens)
