"""Files are read again exactly when they may have changed."""

import gzip
import os

import numpy as np
import pytest

from sysout_jax.data import corpus, encode
from sysout_jax.data.encode import encode_corpus
from sysout_jax.data.tokenizer import ByteTokenizer
from sysout_jax.data.unchanged import FOLDER, remembered
from sysout_jax.errors import InputError

BYTES = ByteTokenizer()


@pytest.fixture
def path(tmp_path):
    made = tmp_path / "text"
    made.write_text("some words")
    return made


def asked(path, cache):
    """What is found, and whether the file was read for it."""
    read = []

    def compute():
        read.append(path)
        return path.read_text()

    return remembered([path], cache, compute), bool(read)


def settle(path, cache):
    """Let the note be some ticks younger than the file, as it is after a few seconds."""
    (note,) = (cache / FOLDER).iterdir()
    later = max(path.stat().st_mtime_ns, path.stat().st_ctime_ns) + 5 * 10**9
    os.utime(note, ns=(later, later))
    return note


def settle_all(path, cache):
    """The same for all notes of a corpus."""
    young = [*cache.glob("*/*.npy"), path]
    later = max(max(one.stat().st_mtime_ns, one.stat().st_ctime_ns) for one in young) + 5 * 10**9
    for note in (cache / FOLDER).iterdir():
        os.utime(note, ns=(later, later))


def test_a_file_that_stays_is_read_once(path, tmp_path):
    assert asked(path, tmp_path) == ("some words", True)
    settle(path, tmp_path)
    assert asked(path, tmp_path) == ("some words", False)
    assert asked(path, tmp_path / "elsewhere") == ("some words", True)


def test_a_file_that_has_just_changed_is_read_again(path, tmp_path):
    """Within a tick of the file system's clock another change would show in no time."""
    asked(path, tmp_path)
    assert asked(path, tmp_path) == ("some words", True)


def rewritten(path):
    path.write_text("more words")


def replaced(path):
    other = path.with_name("other")
    other.write_text("more words")
    os.utime(other, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    other.replace(path)


def dated_back(path):
    stamp = path.stat().st_mtime_ns
    path.write_text("more words")
    os.utime(path, ns=(stamp, stamp))


def longer(path):
    path.write_text("more words than before")


@pytest.mark.parametrize("change", [rewritten, replaced, dated_back, longer])
def test_a_file_that_changes_is_read_again(path, tmp_path, change):
    asked(path, tmp_path)
    settle(path, tmp_path)
    change(path)
    assert asked(path, tmp_path) == (path.read_text(), True)
    assert path.read_text().startswith("more")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": []}', "\udcff"])
def test_a_damaged_note_is_no_note(path, tmp_path, content):
    asked(path, tmp_path)
    settle(path, tmp_path).write_bytes(content.encode("utf-8", "surrogateescape"))
    settle(path, tmp_path)
    assert asked(path, tmp_path) == ("some words", True)


def test_a_file_that_changes_while_it_is_read_is_not_noted(path, tmp_path):
    def compute():
        path.write_text("in the meantime")
        return "half of each"

    remembered([path], tmp_path, compute)
    assert not (tmp_path / FOLDER).exists()


def test_a_cache_that_cannot_be_written_costs_time_alone(path, tmp_path):
    for _ in range(2):
        assert asked(path, path) == ("some words", True)


def test_a_corpus_is_neither_hashed_nor_summed_at_every_start(path, tmp_path, monkeypatch):
    path.write_text("<|endoftext|>".join(f"document {n}" for n in range(50)))
    cache = tmp_path / "cache"
    first = encode_corpus(str(path), BYTES, cache)
    encode_corpus(str(path), BYTES, cache)
    settle_all(path, cache)

    def never(*arguments):
        raise AssertionError("read again")

    monkeypatch.setattr(corpus.Source, "digest", never)
    monkeypatch.setattr(encode.zlib, "crc32", never)
    again = encode_corpus(str(path), BYTES, cache)
    np.testing.assert_array_equal(again.train, first.train)
    monkeypatch.undo()
    path.write_text("other text")
    assert encode_corpus(str(path), BYTES, cache).documents == 1


def test_a_link_with_another_suffix_is_other_text(tmp_path):
    """The same bytes, unpacked, after they were read as they are."""
    packed, link, cache = tmp_path / "text.gz", tmp_path / "link.xz", tmp_path / "cache"
    packed.write_bytes(gzip.compress(b"some words"))
    link.symlink_to(packed)
    encode_corpus(str(packed), BYTES, cache)
    settle_all(packed, cache)
    with pytest.raises(InputError, match=r"link\.xz: truncated or corrupt archive"):
        encode_corpus(str(link), BYTES, cache)
