"""Encoding to disk: nothing leaks, nothing half-written is left or believed."""

import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from sysout_jax.data.encode import (
    default_cache_dir,
    encode_corpus,
    encoded_chunks,
    tokenizer_for,
    validation_documents,
)
from sysout_jax.data.tokenizer import ByteTokenizer, chunks
from sysout_jax.data.tokenizer_files import load_tokenizer
from sysout_jax.data.unchanged import FOLDER
from sysout_jax.errors import InputError

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data"
SEPARATOR = "<|endoftext|>"
BYTES = ByteTokenizer()


@dataclass(frozen=True)
class NeverEncodes(ByteTokenizer):
    def encode_many(self, texts):
        raise AssertionError("the cache was not used")


def write_corpus(path, texts):
    path.write_text(SEPARATOR.join(texts), encoding="utf-8")
    return str(path)


def entries(cache):
    """What is kept beside the notes on files."""
    return [path for path in cache.iterdir() if path.name != FOLDER]


def texts_of(tokens):
    """The documents of a token array of bytes."""
    *ended, rest = "".join(BYTES.decode(tokens)).split(SEPARATOR)
    assert rest == ""
    return ended


@pytest.fixture
def many(tmp_path):
    return [f"document {n} is é\n" for n in range(400)]


@pytest.fixture
def spec(tmp_path, many):
    return write_corpus(tmp_path / "many.txt", many)


def test_every_document_is_on_one_side_in_order(many, spec, tmp_path):
    corpus = encode_corpus(spec, BYTES, tmp_path / "cache")
    train, val = texts_of(corpus.train), texts_of(corpus.val)
    assert sorted(train + val) == sorted(many)
    assert train == [text for text in many if text in set(train)]
    assert 5 <= len(val) <= 40
    assert corpus.split == f"by document: {len(train)} train, {len(val)} validation"
    assert corpus.documents == 400
    assert corpus.train.size + corpus.val.size == 400 + sum(len(text.encode()) for text in many)
    assert isinstance(corpus.train, np.memmap)
    assert corpus.train.dtype == np.uint16


def test_copies_of_a_document_never_straddle(many, tmp_path):
    spec = write_corpus(tmp_path / "twice.txt", many + many[::-1] + many[:50])
    corpus = encode_corpus(spec, BYTES, tmp_path / "cache")
    train, val = texts_of(corpus.train), texts_of(corpus.val)
    assert len(train) + len(val) == 850
    assert set(train) | set(val) == set(many)
    assert not set(train) & set(val)


def test_side_depends_on_the_document_alone(many, tmp_path):
    def validation(texts, name):
        corpus = encode_corpus(write_corpus(tmp_path / name, texts), BYTES, tmp_path / "cache")
        return set(texts_of(corpus.val))

    assert validation(many[:300], "a.txt") == validation(many, "b.txt") & set(many[:300])


def test_split_rule():
    top = 2**64 - 1

    def rule(*shares):
        return validation_documents(np.array([int(s * top) for s in shares], np.uint64)).tolist()

    assert rule(0.049, 0.051, 0.9, 0.0) == [True, False, False, True]
    assert rule(0.5, 0.2, 0.9, 0.2) == [False, True, False, True]
    assert rule(0.01, 0.04, 0.04, 0.02) == [True, False, False, True]


@pytest.mark.parametrize("copies", [1, 3])
def test_one_document_gives_its_tail(tmp_path, copies):
    text = "".join(f"{n} " for n in range(1000))
    spec = write_corpus(tmp_path / "one.txt", [text] * copies)
    corpus = encode_corpus(spec, BYTES, tmp_path / "cache")
    whole = [*BYTES.encode(text).tolist(), BYTES.eot]
    assert corpus.train.tolist() + corpus.val.tolist() == whole
    assert corpus.val.size == round(0.05 * len(whole))
    assert "last 5%" in corpus.split
    assert ("3 copies" in corpus.split) == (copies == 3)


@pytest.mark.parametrize("large", ["book 0", "book 1", "book 2"])
def test_books_of_other_lengths_give_their_tails(tmp_path, large):
    """Whichever of them hashes lowest: it would be all of the text, or next to none."""
    texts = [f"book {n} " * (4000 if f"book {n}" == large else 10) for n in range(3)]
    corpus = encode_corpus(write_corpus(tmp_path / "books.txt", texts), BYTES, tmp_path / "cache")
    train, val = [], []
    for text in texts:
        whole = [*BYTES.encode(text).tolist(), BYTES.eot]
        cut = len(whole) - round(0.05 * len(whole))
        train, val = train + whole[:cut], val + whole[cut:]
    assert (corpus.train.tolist(), corpus.val.tolist()) == (train, val)
    assert corpus.split == "3 documents: the last 5% of tokens of each are validation"


def test_one_letter_is_a_corpus(tmp_path):
    corpus = encode_corpus(write_corpus(tmp_path / "x.txt", ["x"]), BYTES, tmp_path / "cache")
    assert (corpus.train.tolist(), corpus.val.tolist()) == ([120], [256])


def test_wide_ids_are_stored_wide(tmp_path):
    @dataclass(frozen=True)
    class Wide(ByteTokenizer):
        vocab: int = 70000
        eot: int = 69999
        fingerprint: str = "wide"

    corpus = encode_corpus(write_corpus(tmp_path / "x.txt", ["abc"]), Wide(), tmp_path / "cache")
    assert corpus.val.tolist() == [69999]
    assert corpus.val.dtype == np.uint32


def test_cache_hit_equals_rebuild(spec, tmp_path):
    first = encode_corpus(spec, BYTES, tmp_path / "cache")
    hit = encode_corpus(spec, NeverEncodes(), tmp_path / "cache")
    rebuilt = encode_corpus(spec, BYTES, tmp_path / "other")
    for one in (hit, rebuilt):
        assert np.array_equal(one.train, first.train)
        assert np.array_equal(one.val, first.val)
        assert (one.documents, one.split) == (first.documents, first.split)
    assert len(entries(tmp_path / "cache")) == 1


def test_cache_key_follows_text_and_tokenizer(spec, tmp_path):
    cache = tmp_path / "cache"
    encode_corpus(spec, BYTES, cache)
    encode_corpus(spec, ByteTokenizer(fingerprint="another"), cache)
    assert len(entries(cache)) == 2
    Path(spec).write_text("other text")
    assert encode_corpus(spec, BYTES, cache).documents == 1
    assert len(entries(cache)) == 3


def cut_file(path):
    path.write_bytes(path.read_bytes()[:-3])


def flip_last_byte(path):
    content = path.read_bytes()
    path.write_bytes(content[:-2] + bytes([content[-2] ^ 1]) + content[-1:])


DAMAGE = {
    "truncated tokens": lambda entry: cut_file(entry / "train.npy"),
    "empty tokens": lambda entry: (entry / "val.npy").write_bytes(b""),
    "flipped bit": lambda entry: flip_last_byte(entry / "val.npy"),
    "no tokens": lambda entry: (entry / "val.npy").unlink(),
    "no facts": lambda entry: (entry / "corpus.json").unlink(),
    "truncated facts": lambda entry: cut_file(entry / "corpus.json"),
    "other facts": lambda entry: (entry / "corpus.json").write_text("[]"),
    "incomplete facts": lambda entry: (entry / "corpus.json").write_text("{}"),
    "a file in its place": lambda entry: (shutil.rmtree(entry), entry.write_text("x")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_corrupt_entry_is_rebuilt(spec, tmp_path, damage):
    cache = tmp_path / "cache"
    before = encode_corpus(spec, BYTES, cache)
    train, val = before.train.tolist(), before.val.tolist()
    del before
    (entry,) = entries(cache)
    DAMAGE[damage](entry)
    after = encode_corpus(spec, BYTES, cache)
    assert (after.train.tolist(), after.val.tolist()) == (train, val)
    assert entries(cache) == [entry]
    encode_corpus(spec, NeverEncodes(), cache)


def test_interrupted_build_leaves_nothing(spec, tmp_path):
    def interrupt(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        encode_corpus(spec, BYTES, tmp_path / "cache", interrupt)
    assert entries(tmp_path / "cache") == []


def test_bad_text_halfway_leaves_nothing(many, tmp_path):
    path = tmp_path / "bad.txt"
    path.write_bytes(SEPARATOR.join(many).encode() + b"\xff")
    with pytest.raises(InputError, match="0xff at byte"):
        encode_corpus(str(path), BYTES, tmp_path / "cache")
    assert entries(tmp_path / "cache") == []


def test_concurrent_build_of_the_same_entry(spec, tmp_path):
    cache = tmp_path / "cache"
    others = []

    def build_meanwhile(done, total):
        if not others:
            others.append(encode_corpus(spec, BYTES, cache))

    mine = encode_corpus(spec, BYTES, cache, build_meanwhile)
    assert np.array_equal(mine.train, others[0].train)
    assert len(entries(cache)) == 1


def test_cache_that_cannot_be_written(spec, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for tokenizer in ("bytes", "bpe:260"):
        with pytest.raises(InputError, match="XDG_CACHE_HOME") as caught:
            encode_corpus(
                spec, tokenizer_for(spec, tokenizer, tmp_path / "file"), tmp_path / "file"
            )
        assert str(tmp_path / "file") in str(caught.value)


def test_default_cache_dir(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == tmp_path / "sysout_jax"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert default_cache_dir() == Path("/home/someone/.cache/sysout_jax")


def test_trained_tokenizer_is_kept_and_retrained_when_damaged(spec, tmp_path):
    cache = tmp_path / "cache"
    trained = tokenizer_for(spec, "bpe:262", cache)
    (kept,) = entries(cache)
    assert json.loads(kept.read_text())["kind"] == "tokenizers"
    stamp = kept.stat().st_mtime_ns
    assert tokenizer_for(spec, "bpe:262", cache).fingerprint == trained.fingerprint
    assert kept.stat().st_mtime_ns == stamp
    cut_file(kept)
    assert tokenizer_for(spec, "bpe:262", cache).fingerprint == trained.fingerprint
    assert entries(cache) == [kept]
    json.loads(kept.read_text())


def rugged_text(count, seed):
    """Text in which line breaks meet spaces, tabs, other line breaks and punctuation."""
    alphabet = ["a", "the", " ", "  ", "\n", "\n", "\n\n", "\t", ".", "'s", "'", "é", "7", "\xa0"]
    return "".join(random.Random(seed).choices(alphabet, k=count))


def joined_chunks(text, tokenizer, size):
    return np.concatenate([ids for ids, _ in encoded_chunks([text], tokenizer, size)]).tolist()


@pytest.fixture(scope="module")
def bpe():
    library = [rugged_text(3000, n) for n in range(3)]
    library += [Path(json.__file__).read_text(), Path(random.__file__).read_text()]
    return load_tokenizer("bpe:600", lambda: library)


@pytest.mark.parametrize("size", [1, 7, 50])
def test_chunked_ids_are_those_of_the_whole_document(bpe, size):
    for seed in range(20):
        text = rugged_text(700, seed)
        assert len(list(chunks(text, bpe.cut, size))) > 5
        assert joined_chunks(text, bpe, size) == bpe.encode(text).tolist()
        assert joined_chunks(text, BYTES, size) == BYTES.encode(text).tolist()


def test_cutting_at_any_line_break_would_change_ids(bpe):
    """The rule of the test above is needed: its texts tell a careless cut from a careful one."""
    text = rugged_text(700, 0)
    careless = [bpe.encode(line) for line in text.splitlines(keepends=True)]
    assert np.concatenate(careless).tolist() != bpe.encode(text).tolist()


def test_chunks_keep_documents_apart(bpe):
    texts = ["a\nb\nc\n" * 9, "x", "d\ne\n" * 30]
    found, held = [], []
    for ids, end in encoded_chunks(texts, bpe, 5):
        held += ids.tolist()
        if end:
            found.append(bpe.decode(held))
            held = []
    assert found == texts
    assert held == []


def test_a_line_without_end_is_one_chunk(bpe):
    assert list(chunks("x y " * 100, bpe.cut, 10)) == ["x y " * 100]
    assert list(chunks("", bpe.cut, 10)) == [""]


@pytest.mark.skipif(not (SHARED / "text").is_dir(), reason="the shared books are not here")
def test_chunked_books_with_the_published_gpt2():
    tokenizer = load_tokenizer(f"gpt2:{SHARED / 'tokenizer' / 'gpt2'}")
    text = (SHARED / "text" / "books_val.txt").read_text(encoding="utf-8")[:300_000]
    assert joined_chunks(text, tokenizer, 1000) == tokenizer.encode(text).tolist()


def test_text_without_tokens(tmp_path):
    @dataclass(frozen=True)
    class Mute(ByteTokenizer):
        def encode_many(self, texts):
            return [np.empty(0, np.int32) for _ in texts]

    with pytest.raises(InputError, match="no tokens"):
        encode_corpus(write_corpus(tmp_path / "x.txt", ["abc"]), Mute(), tmp_path / "cache")
