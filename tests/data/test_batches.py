"""Batches of text: pure, resumable, and every block once an epoch."""

import numpy as np
import pytest
from scipy import stats

from sysout_jax.data.batches import TextCorpus, random_words, shuffled
from sysout_jax.errors import InputError
from tests.refusing import refusal


def counting(train=1009, val=211, bos=None):
    """Token i of a part is i, so a row tells where it was cut; validation starts at 5000."""
    return TextCorpus(
        name="counting",
        vocab=7001,
        bos=bos,
        train=np.arange(train, dtype=np.uint16),
        val=np.arange(5000, 5000 + val, dtype=np.uint16),
    )


@pytest.mark.parametrize("part", [np.zeros(50), np.zeros((5, 10), int), np.zeros(50, bool)])
def test_a_part_that_is_no_row_of_ids_is_refused(part):
    with pytest.raises(InputError, match=rf"val: {part.dtype} of .*; accepted: integer ids"):
        TextCorpus("mine", 7, None, np.zeros(50, int), part)


def test_a_bos_beyond_the_vocabulary_is_refused():
    with pytest.raises(InputError, match=r"bos=7: .*; accepted: 0 to 6"):
        TextCorpus("mine", 7, 7, np.zeros(50, int), np.zeros(50, int))


@pytest.mark.parametrize("bad", [-1, 7])
def test_an_id_beyond_the_vocabulary_is_refused(bad):
    """An embedding would take the first from the end, or be NaN."""
    ids = np.arange(50) % 7
    corpus = TextCorpus("mine", 7, None, np.where(ids == 3, bad, ids), ids)
    assert corpus.batch("val", 0, 0, 2, 9).max() == 6
    with pytest.raises(InputError, match=f"train: token id {bad}; accepted: 0 to 6"):
        corpus.batch("train", 0, 0, 2, 9)


@pytest.mark.parametrize("bos", [None, 7000])
@pytest.mark.parametrize("split", ["train", "val"])
def test_shape_dtype_and_text(bos, split):
    batch = counting(bos=bos).batch(split, 3, 5, batch_size=11, seq_len=13)
    assert batch.shape == (11, 14)
    assert batch.dtype == np.int32
    text = batch if bos is None else batch[:, 1:]
    assert (np.diff(text, axis=1) == 1).all()
    assert ((text >= 5000) == (split == "val")).all()
    if bos is not None:
        assert (batch[:, 0] == bos).all()


@pytest.mark.parametrize("bos", [None, 7000])
def test_batch_alone_equals_batch_in_sequence(bos):
    corpus = counting(bos=bos)
    sequence = [corpus.batch("train", 2, n, 17, 7) for n in range(40)]
    fresh = counting(bos=bos)
    for n in (39, 0, 23, 8):
        assert np.array_equal(fresh.batch("train", 2, n, 17, 7), sequence[n])


def test_row_is_a_sample_of_one_stream():
    corpus = counting()
    small = np.concatenate([corpus.batch("train", 2, n, 5, 7) for n in range(12)])
    assert np.array_equal(small, corpus.batch("train", 2, 0, 60, 7))


@pytest.mark.parametrize("bos", [None, 7000])
@pytest.mark.parametrize("seq_len", [1, 7, 30, 31, 104, 105, 106, 210])
def test_rows_to_judge_by_show_no_text_twice(bos, seq_len):
    """As many as are granted share no input, whatever the phase; one more would."""
    corpus = counting(bos=bos)
    room = round(1 / TextCorpus("v", 7001, bos, corpus.val, corpus.train).epochs(1, 1, seq_len))
    for count in range(1, room + 1):
        rows = corpus.distinct("val", count, seq_len)
        assert np.array_equal(rows, corpus.batch("val", 0, 0, count, seq_len))
        text = rows[:, :-1] if bos is None else rows[:, 1:]
        assert len(np.unique(text)) == text.size == count * seq_len
    with pytest.raises(InputError, match=f"sequences={room + 1}: .* at most {room} sequences"):
        corpus.distinct("val", room + 1, seq_len)


@pytest.mark.parametrize("bos", [None, 7000])
@pytest.mark.parametrize("seq_len", [1, 7, 31, 400, 503, 504, 505, 1008])
def test_epoch_sees_every_block_once(bos, seq_len):
    corpus = counting(bos=bos)
    blocks = round(1 / corpus.epochs(1, 1, seq_len))
    column = 0 if bos is None else 1
    phases = []
    for epoch in range(6):
        rows = [
            corpus.batch("train", 4, n, 1, seq_len)[0]
            for n in range(epoch * blocks, (epoch + 1) * blocks)
        ]
        starts = sorted(int(row[column]) for row in rows)
        assert np.array_equal(np.diff(starts), np.full(blocks - 1, seq_len))
        last = starts[-1] + seq_len + (bos is None)
        assert last <= 1009
        assert starts[0] + (1009 - last) < 2 * seq_len
        phases.append(starts[0])
    assert seq_len in (1, 1008) or len(set(phases)) > 1


@pytest.mark.parametrize("bos", [None, 7000])
@pytest.mark.parametrize("tokens", [8, 13, 14, 15, 20, 21, 22, 27, 28, 29, 700])
def test_as_many_blocks_as_fit_at_every_phase(bos, tokens):
    width, seq_len = (8, 7) if bos is None else (7, 7)
    fitting = [n for n in range(1, tokens) if 6 + (n - 1) * seq_len + width <= tokens]
    blocks = max(fitting, default=1)
    assert counting(train=tokens, bos=bos).epochs(blocks, 1, seq_len) == 1


def test_epochs_differ_in_order_and_seed():
    corpus = counting()
    blocks = round(1 / corpus.epochs(1, 1, 7))
    one = corpus.batch("train", 0, 0, blocks, 7)[:, 0]
    two = corpus.batch("train", 0, 1, blocks, 7)[:, 0]
    other = corpus.batch("train", 1, 0, blocks, 7)[:, 0]
    assert not np.array_equal(np.argsort(one), np.argsort(two))
    assert not np.array_equal(np.argsort(one), np.argsort(other))
    assert not np.array_equal(one, np.sort(one))


def test_every_phase_occurs():
    corpus = counting(train=200)
    blocks = round(1 / corpus.epochs(1, 1, 5))
    firsts = {corpus.batch("train", 0, n, blocks, 5)[:, 0].min() for n in range(100)}
    assert firsts == set(range(5))


def test_counts():
    corpus = counting()
    assert corpus.tokens == {"train": 1009, "val": 211}
    blocks = (1009 - 10) // 10  # from any of 10 phases, rows of 11 tokens every 10
    assert corpus.epochs(2 * blocks, 3, 10) == 6.0


@pytest.mark.parametrize(("bos", "largest"), [(None, 210), (7000, 211)])
def test_too_short_for_a_row(bos, largest):
    corpus = counting(bos=bos)
    assert corpus.batch("val", 0, 0, 2, largest).shape == (2, largest + 1)
    message = refusal(corpus.batch, "val", 0, 0, 2, largest + 1)
    assert f"seq_len={largest + 1}" in message
    assert "val part" in message
    assert "211 tokens" in message
    assert f"fits is {largest}" in message


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"seq_len": 0}, "seq_len=0"),
        ({"seq_len": -3}, "seq_len=-3"),
        ({"seed": -1}, "seed=-1"),
        ({"index": -1}, "index -1"),
        ({"split": "test"}, "accepted: train, val"),
    ],
)
def test_bad_requests(change, wanted):
    request = {"split": "train", "seed": 0, "index": 0, "batch_size": 2, "seq_len": 4} | change
    assert wanted in refusal(counting().batch, **request)


def test_random_words_are_fixed_for_ever():
    """A change here would silently give a resumed run other batches."""
    assert random_words(3, "blocks", "train", 0, 0).tolist() == GOLDEN
    assert random_words(2, "blocks", "train", 0, 0).tolist() == GOLDEN[:2]
    keys = [("a", 1), ("a", 1, 0), ("a", 11), ("a1",), ("a", 2**32), ("a", 0, 1)]
    assert len({random_words(1, *key)[0] for key in keys}) == len(keys)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 16, 17, 255, 256, 257, 1009])
def test_shuffled_is_a_permutation(count):
    for seed in range(5):
        assert sorted(shuffled(np.arange(count), count, seed).tolist()) == list(range(count))


@pytest.mark.parametrize("count", [3, 5, 11])
def test_every_order_is_as_frequent_as_any_other(count):
    """Over keys each item is in each place, and each pair comes first, in equal shares."""
    keys = 1000
    orders = np.array([shuffled(np.arange(count), count, key) for key in range(keys)])
    placed = np.array([np.bincount(orders[:, n], minlength=count) for n in range(count)])
    first_two = np.bincount(orders[:, 0] * count + orders[:, 1], minlength=count**2)
    pairs = first_two.reshape(count, count)[~np.eye(count, dtype=bool)]
    for found, freedom in ((placed, (count - 1) ** 2), (pairs, pairs.size - 1)):
        expected = keys * (count if found is placed else 1) / found.size
        chi = float(((found - expected) ** 2 / expected).sum())
        assert stats.chi2.sf(chi, freedom) > 1e-4


def test_shuffled_entry_alone_is_the_entry_among_others():
    whole = shuffled(np.arange(5003), 5003, "a", 7)
    assert shuffled(np.array([[17], [5002]]), 5003, "a", 7).tolist() == [[whole[17]], [whole[5002]]]
    assert shuffled(np.array([2**40]), 2**40 + 1, "a").item() <= 2**40


def test_shuffled_is_fixed_for_ever():
    assert shuffled(np.arange(5), 1000, "blocks", "train", 0, 0).tolist() == SHUFFLED


GOLDEN = [13805227608821353135, 6271344364173739851, 14314998045075295392]
SHUFFLED = [256, 907, 210, 212, 629]
