"""Bigram-Backcopy against plain loops: the chain, the copying, the least possible loss."""

import math

import numpy as np
import pytest

from sysout_jax.data import Backcopies, Backcopy
from sysout_jax.errors import InputError

TASK = Backcopy()


@pytest.fixture(scope="module")
def rows():
    return TASK.batch("train", 0, 0, batch_size=1500, seq_len=101)


def slow_transition(seed):
    """softmax_j(log(1 / (j + 3)) + 2 N(0, 1)), one entry at a time."""
    random = np.random.RandomState(seed)
    table = []
    for _ in range(64):
        logits = [math.log(1 / (j + 3)) + 2 * random.standard_normal() for j in range(64)]
        total = sum(math.exp(x) for x in logits)
        table.append([math.exp(x) / total for x in logits])
    return np.array(table)


def slow_stationary(transition):
    """Many steps of the chain from a uniform start."""
    distribution = np.full(64, 1 / 64)
    for _ in range(500):
        distribution = distribution @ transition
    return distribution


def test_interface():
    assert (TASK.name, TASK.vocab, TASK.bos, TASK.tokenizer) == ("backcopy", 65, 64, None)
    assert TASK.tokens == {}
    assert TASK.epochs(1000, 8, 32) == 0


def test_shape_dtype_and_range(rows):
    assert rows.shape == (1500, 102)
    assert rows.dtype == np.int32
    assert (rows[:, 0] == 64).all()
    assert rows[:, 1:].min() >= 0
    assert rows[:, 1:].max() == 63
    assert TASK.batch("val", 0, 0, 3, 1).shape == (3, 2)


@pytest.mark.parametrize("seed", [0, 5])
def test_chain_is_the_published_one(seed):
    task = Backcopy(chain_seed=seed)
    transition = slow_transition(seed)
    np.testing.assert_allclose(task.transition, transition, rtol=1e-12)
    stationary = slow_stationary(transition)
    triggers = sorted(range(64), key=lambda token: -stationary[token])[:3]
    assert list(task.triggers) == triggers
    stationary[triggers] = 0
    np.testing.assert_allclose(task.first, stationary / stationary.sum(), rtol=1e-9, atol=1e-15)


def test_chain_arrays_are_shared_and_so_read_only():
    with pytest.raises(ValueError, match="read-only"):
        TASK.transition[0, 0] = 1


def test_copying_rule_exactly(rows):
    triggers = set(TASK.triggers)
    copies = 0
    for row in rows[:300].tolist():
        assert row[1] not in triggers
        for t in range(2, len(row) - 1):
            if row[t] in triggers:
                copies += 1
                assert row[t - 1] not in triggers
                assert row[t + 1] == row[t - 1]
    assert copies > 3000


def chi_square(counts, probability):
    """Pearson's statistic and degrees of freedom, rare cells pooled into one."""
    expected = counts.sum() * probability
    common = expected >= 5
    observed = np.append(counts[common], counts[~common].sum())
    wanted = np.append(expected[common], expected[~common].sum())
    observed, wanted = observed[wanted > 0], wanted[wanted > 0]
    return ((observed - wanted) ** 2 / wanted).sum(), len(wanted) - 1


def test_frequencies_follow_the_matrix(rows):
    """About 100,000 drawn transitions and 1,500 first tokens, 5 standard deviations allowed."""
    counts = np.zeros((64, 64))
    triggers = set(TASK.triggers)
    for t in range(1, rows.shape[1] - 1):
        np.add.at(counts, (rows[:, t], rows[:, t + 1]), 1)
    tests = [
        chi_square(counts[token], TASK.transition[token])
        for token in range(64)
        if token not in triggers and counts[token].sum() > 50
    ]
    assert len(tests) > 40
    first = np.bincount(rows[:, 1], minlength=64)
    for group in (tests, [chi_square(first, TASK.first)]):
        statistic, freedom = np.sum(group, axis=0)
        assert abs(statistic - freedom) < 5 * math.sqrt(2 * freedom)


def test_pure_and_distinct():
    batch = TASK.batch("train", 1, 2, 50, 33)
    TASK.batch("train", 1, 3, 50, 33)
    assert np.array_equal(batch, Backcopy().batch("train", 1, 2, 50, 33))
    others = [
        TASK.batch("val", 1, 2, 50, 33),
        TASK.batch("train", 2, 2, 50, 33),
        TASK.batch("train", 1, 3, 50, 33),
        TASK.batch("train", 2, 1, 50, 33),
        Backcopy(chain_seed=1).batch("train", 1, 2, 50, 33),
    ]
    seen = {row.tobytes() for row in batch}
    for other in others:
        assert not seen & {row.tobytes() for row in other}


def test_trigger_queries(rows):
    queries = TASK.trigger_queries(rows[:50])
    assert queries.shape == (50, 102)
    assert queries.dtype == bool
    for row, flags in zip(rows[:50].tolist(), queries.tolist(), strict=True):
        assert flags == [token in TASK.triggers for token in row]


def slow_floor(row):
    transition, triggers = slow_transition(0), TASK.triggers
    first = slow_stationary(transition)
    first[list(triggers)] = 0
    losses = [-math.log(first[row[1]] / first.sum())]
    for t in range(1, len(row) - 1):
        if row[t] in triggers:
            losses.append(0.0 if row[t + 1] == row[t - 1] else math.inf)
        else:
            losses.append(-math.log(transition[row[t], row[t + 1]]))
    return losses


def test_entropy_floor_against_a_loop(rows):
    floor = TASK.entropy_floor(rows[:20])
    assert floor.shape == (20, 101)
    assert floor.dtype == np.float64
    for row, found in zip(rows[:20].tolist(), floor, strict=True):
        np.testing.assert_allclose(found, slow_floor(row), rtol=1e-9)


def test_entropy_floor_of_the_impossible():
    trigger = TASK.triggers[0]
    plain = [t for t in range(64) if t not in TASK.triggers]
    row = [64, plain[0], trigger, plain[1], plain[2]]
    found = TASK.entropy_floor(np.array([row, [64, trigger, plain[0], plain[0], plain[0]]]))
    assert found[0, 2] == np.inf
    assert found[1, 0] == np.inf
    np.testing.assert_allclose(found[0], slow_floor(row))
    assert TASK.entropy_floor(np.array([[64, plain[0]]])).shape == (1, 1)


@pytest.mark.parametrize(
    "tokens",
    [np.zeros((2, 5), int), np.array([64, 1, 2]), np.array([[64]]), np.array([[64, 1, 64, 2]])],
)
def test_entropy_floor_wants_rows_of_the_task(tokens):
    with pytest.raises(InputError, match="entropy_floor"):
        TASK.entropy_floor(tokens)


def test_without_bos_rows_are_those_with_it_cut(rows):
    """The same numbers are drawn, one more for each row, as its BOS takes no number."""
    bare = Backcopy(begins_with_bos=False)
    assert bare.bos is None
    found = bare.batch("train", 0, 0, 1500, 100)
    assert found.shape == (1500, 101)
    assert np.array_equal(found, rows[:, 1:])
    np.testing.assert_array_equal(bare.entropy_floor(found), TASK.entropy_floor(rows)[:, 1:])
    with pytest.raises(InputError, match="entropy_floor"):
        bare.entropy_floor(rows[:20])


@pytest.mark.parametrize("begins_with_bos", [True, False])
def test_several_chains_are_each_their_own(begins_with_bos):
    several = Backcopies((0, 4, 2), begins_with_bos)
    for seed, chain_seed in ((0, 0), (7, 4), (5, 2)):
        one = Backcopy(chain_seed, begins_with_bos)
        assert several.of(seed) == one
        for index in (0, 3, 49, 50, 121):  # drawn in parts of fifty
            expected = one.batch("train", seed, index, 5, 7)
            assert np.array_equal(several.batch("train", seed, index, 5, 7), expected)
        some = np.array([3, 1])
        assert np.array_equal(several.batch("val", seed, 2, 5, 7, some),
                              one.batch("val", seed, 2, 5, 7)[some])  # fmt: skip
    with pytest.raises(InputError):
        several.batch("train", 0, -1, 5, 7)


@pytest.mark.parametrize("change", [{"batch_size": 0}, {"seq_len": 0}, {"index": -1}])
def test_bad_requests(change):
    request = {"split": "train", "seed": 0, "index": 0, "batch_size": 2, "seq_len": 4} | change
    with pytest.raises(InputError):
        TASK.batch(**request)
