"""Ids that others have written: read as they were written, or refused; never as other ids."""

import json
import os
import pickle

import numpy as np
import pytest

from sysout_jax.data import load_corpus, token_files, unchanged
from sysout_jax.data.token_files import DTYPES, open_token_files, told_by_ids
from sysout_jax.data.tokenizer import ByteTokenizer
from sysout_jax.errors import InputError
from tests.refusing import refusal

TYPES = {"<u2": "uint16", "<u4": "uint32", "<u8": "uint64"}


def ids(vocab, size, seed=0):
    """Ids as of text: few frequent ones, many rare."""
    draws = np.random.default_rng(seed).zipf(1.2, size).astype(np.uint64)
    return (draws % np.uint64(vocab)).astype(np.int64)


def write(directory, dtype, train, val):
    for name, part in (("train", train), ("val", val)):
        np.asarray(part).astype(dtype).tofile(directory / f"{name}.bin")
    return f"tokens:{directory}"


@pytest.mark.parametrize("vocab", [2, 5, 65, 258, 50_257, 65_536, 128_256, 262_144, 1_000_000])
@pytest.mark.parametrize("dtype", TYPES)
def test_ids_tell_their_type(tmp_path, dtype, vocab):
    if vocab > 2 ** (8 * np.dtype(dtype).itemsize):
        pytest.skip("such ids have no such type")
    train, val = ids(vocab, 5000), ids(vocab, 300, seed=1)
    found = open_token_files(write(tmp_path, dtype, train, val))
    assert found.dtype == TYPES[dtype]
    np.testing.assert_array_equal(found.train, train)
    np.testing.assert_array_equal(found.val, val)
    assert found.largest == max(train.max(), val.max())
    assert isinstance(found.train, np.memmap)


def test_rare_ids_of_a_small_alphabet():
    """Letters of DNA, of which a few unknown ones are at even places alone."""
    letters = np.random.default_rng(0).integers(0, 4, 10_000)
    letters[[10, 500, 4000]] = 4
    assert told_by_ids(letters.astype("<u2").view(np.uint8)) == "uint16"
    assert told_by_ids(letters.astype("<u4").view(np.uint8)) == "uint32"


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("how", ["flag", "beside"])
def test_few_ids_need_a_word(tmp_path, dtype, how):
    train = [5, 300, 7, 9] if dtype != "<u2" else [5, 0, 300, 0]
    spec = write(tmp_path, dtype, train, train)
    with pytest.raises(InputError, match=r"cannot be told .*accepted: token_dtype=uint16\|") as no:
        open_token_files(spec)
    assert "\n" not in str(no.value)
    if how == "beside":
        (tmp_path / "meta.json").write_text(json.dumps({"dtype": TYPES[dtype], "vocab_size": 301}))
    found = open_token_files(spec, TYPES[dtype] if how == "flag" else None)
    assert (found.train.tolist(), found.val.tolist()) == (train, train)


class Danger:
    def __reduce__(self):
        return pytest.fail, ("the pickle was opened",)


def test_a_pickle_beside_is_not_opened(tmp_path):
    (tmp_path / "meta.pkl").write_bytes(pickle.dumps(Danger()))
    assert open_token_files(write(tmp_path, "<u2", ids(65, 500), ids(65, 100))).largest <= 64


@pytest.mark.parametrize(
    ("magic", "version", "dtype"), [(20240520, 1, "<u2"), (20240801, 7, "<u4")]
)
def test_the_header_of_llm_c(tmp_path, magic, version, dtype):
    header = np.zeros(256, "<i4")
    for name, size in (("train", 77), ("val", 12)):
        header[:3] = magic, version, size
        content = header.tobytes() + ids(50_257, size).astype(dtype).tobytes()
        (tmp_path / f"{name}.bin").write_bytes(content)
    other = "uint32" if dtype == "<u2" else "uint16"
    said = refusal(open_token_files, f"tokens:{tmp_path}", other)
    assert f"token_dtype={other}: so a header in {tmp_path} says; accepted: {TYPES[dtype]}" in said
    found = open_token_files(f"tokens:{tmp_path}")
    np.testing.assert_array_equal(found.train, ids(50_257, 77))
    np.testing.assert_array_equal(found.val, ids(50_257, 12))
    (tmp_path / "val.bin").write_bytes(content[:-2])
    with pytest.raises(InputError, match="its header says 12 tokens, and 11"):
        open_token_files(f"tokens:{tmp_path}")


def test_headers_of_two_types(tmp_path):
    for name, magic, dtype in (("train", (20240520, 1), "<u2"), ("val", (20240801, 7), "<u4")):
        header = np.array([*magic, 12, *[0] * 253], "<i4")
        content = header.tobytes() + ids(50_257, 12).astype(dtype).tobytes()
        (tmp_path / f"{name}.bin").write_bytes(content)
    said = refusal(open_token_files, f"tokens:{tmp_path}")
    assert said.endswith("the headers of its files say uint16 and uint32")


@pytest.mark.parametrize("part", ["train", "val"])
@pytest.mark.parametrize(("content", "found"), [(None, "No such"), (b"", "empty"), (b"abc", "odd")])
def test_bad_files(tmp_path, part, content, found):
    spec, path = write(tmp_path, "<u2", [5, 300, 7], [1, 2]), tmp_path / f"{part}.bin"
    path.unlink() if content is None else path.write_bytes(content)
    message = refusal(open_token_files, spec)
    assert all(word in message for word in ("corpus", str(path), found, "uint16"))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"dtype": "int7"}, "token_dtype=int7: unknown; accepted: uint16, uint32, uint64"),
        ({"dtype": "uint64"}, "bytes are no whole number of uint64; accepted: token_dtype="),
        ({"dtype": "uint32"}, "if its ids are uint32; accepted: token_dtype="),
    ],
)
def test_a_type_that_does_not_fit(tmp_path, given, told):
    spec = write(tmp_path, "<u2", ids(50_257, 1002), ids(50_257, 102))
    assert told in refusal(open_token_files, spec, **given)


@pytest.mark.parametrize("content", ["{", "[]", '{"dtype": "float32"}'])
def test_a_bad_word_beside(tmp_path, content):
    spec = write(tmp_path, "<u2", ids(50_257, 100), ids(50_257, 100))
    (tmp_path / "meta.json").write_text(content)
    with pytest.raises(InputError, match=r"meta\.json: .*accepted: token_dtype="):
        open_token_files(spec)
    assert open_token_files(spec, "uint16").train.size == 100


def test_files_of_two_types(tmp_path):
    spec = write(tmp_path, "<u4", ids(50_257, 1000), ids(50_257, 1000))
    ids(50_257, 1000).astype("<u2").tofile(tmp_path / "val.bin")
    with pytest.raises(InputError, match=r"the type of train\.bin and val\.bin differs"):
        open_token_files(spec)


def test_the_corpus(tmp_path):
    spec = write(tmp_path, "<u4", ids(128_256, 5000), ids(128_256, 1000))
    corpus = load_corpus(spec)
    assert corpus.tokens == {"train": 5000, "val": 1000}
    assert corpus.vocab == max(ids(128_256, 5000).max(), ids(128_256, 1000).max()) + 1
    assert corpus.split.endswith("ids of uint32")
    with pytest.raises(
        InputError, match=r"token \d+, its ids read as uint16; accepted: those of a"
    ):
        load_corpus(spec, ByteTokenizer(), token_dtype="uint16")
    with pytest.raises(InputError, match="corpus 'backcopy' has no ids; accepted: with tokens:DIR"):
        load_corpus("backcopy", token_dtype="uint16")
    assert set(DTYPES) == set(TYPES.values())


def test_ids_are_read_once_for_the_largest(tmp_path, monkeypatch):
    """Files of terabytes, at each start of each process; another type has another largest."""
    cache, read = tmp_path / "cache", []
    spec = write(tmp_path, "<u4", ids(50_257, 1000), ids(50_257, 1000))

    def watched(files, place, compute, what):
        return unchanged.remembered(files, place, lambda: read.append(what) or compute(), what)

    monkeypatch.setattr(token_files, "remembered", watched)
    found = open_token_files(spec, "uint32", cache).largest
    (note,) = (cache / unchanged.FOLDER).iterdir()
    later = (tmp_path / "val.bin").stat().st_mtime_ns + 5 * 10**9
    os.utime(note, ns=(later, later))
    assert open_token_files(spec, "uint32", cache).largest == found
    assert len(read) == 1
    halves = np.fromfile(tmp_path / "train.bin", "<u2"), np.fromfile(tmp_path / "val.bin", "<u2")
    assert open_token_files(spec, "uint16", cache).largest == max(map(np.max, halves))
