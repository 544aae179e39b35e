"""Reading text: separators, archives, directories, and one clear line for each bad file."""

import gzip
import lzma
import os
import sys
import sysconfig
import tracemalloc
from importlib import import_module
from pathlib import Path

import pytest

from sysout_jax.data import corpus as corpus_module
from sysout_jax.data.corpus import documents, find_source
from tests.refusing import refusal

zstd = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
SEPARATOR = "<|endoftext|>"
TEXT = "First.\nLine é 🙂\n<|endoftext|>\nSecond.\n<|endoftext|>Third"
PARTS = ["First.\nLine é 🙂\n", "Second.\n", "Third"]


PACK = {"gz": gzip.compress, "xz": lzma.compress, "zst": zstd.compress}


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def reject(spec, *wanted):
    message = refusal(lambda: list(documents(str(spec))))
    for part in ("corpus", *wanted):
        assert str(part) in message


@pytest.mark.parametrize("name", ["a.txt", "a.md", "a.py", "a.log", "noextension", "[a].txt"])
def test_a_named_file_is_split_at_separators(tmp_path, name):
    assert list(documents(str(write(tmp_path / name, TEXT)))) == PARTS


@pytest.mark.parametrize("suffix", [*PACK, *map(str.upper, PACK)])
def test_archives_round_trip(tmp_path, suffix):
    write(tmp_path / "dir" / f"a.{suffix}", PACK[suffix.lower()](TEXT.encode()))
    assert list(documents(str(tmp_path / "dir"))) == PARTS
    path = write(tmp_path / f"a.txt.{suffix}", PACK[suffix.lower()](TEXT.encode()))
    assert list(documents(str(path))) == PARTS
    assert list(documents(str(tmp_path / f"*.{suffix}"))) == PARTS


@pytest.mark.parametrize("suffix", PACK)
def test_archives_of_several_members(tmp_path, suffix):
    packed = b"".join(PACK[suffix](half.encode()) for half in (TEXT[:9], TEXT[9:]))
    assert list(documents(str(write(tmp_path / f"a.{suffix}", packed)))) == PARTS


@pytest.mark.parametrize("block", [1, 2, 3, 5, 16])
@pytest.mark.parametrize("suffix", ["txt", "gz", "xz"])
def test_block_edges_do_not_show(tmp_path, monkeypatch, block, suffix):
    text = "\ufeffaé🙂\r\nb\rc<|endoftext|>\r\n<|endo<|endoftext|>🙂"
    packed = PACK.get(suffix, bytes)(text.encode())
    path = write(tmp_path / f"a.{suffix}", packed)
    monkeypatch.setattr(corpus_module, "_BLOCK", block)
    assert list(documents(str(path))) == ["aé🙂\nb\nc", "<|endo", "🙂"]


def test_blank_documents_are_left_out(tmp_path):
    path = write(tmp_path / "a.txt", f"\n{SEPARATOR}a{SEPARATOR}\n  {SEPARATOR}{SEPARATOR}b")
    assert list(documents(str(path))) == ["a", "b"]


def test_directory_and_glob_are_sorted_and_filtered(tmp_path):
    for name in ("z.txt", "b/a.md", "b/a.bin", "a.py", ".hidden/x.txt", "b/.x.txt", "c/d/e.txt"):
        write(tmp_path / name, name)
    write(tmp_path / "m.gz", gzip.compress(b"m.gz"))
    assert list(documents(str(tmp_path))) == ["a.py", "b/a.md", "c/d/e.txt", "m.gz", "z.txt"]
    assert list(documents(f"{tmp_path}/*.*")) == ["a.py", "m.gz", "z.txt"]
    assert list(documents(f"{tmp_path}/**/*.txt")) == ["c/d/e.txt", "z.txt"]


def test_progress_counts_bytes_on_disk(tmp_path):
    paths = [write(tmp_path / f"{n}.xz", lzma.compress(TEXT.encode() * 9)) for n in "ab"]
    total = sum(path.stat().st_size for path in paths)
    seen = []
    list(find_source(str(tmp_path)).documents(lambda done, size: seen.append((done, size))))
    done = [d for d, _ in seen]
    assert done == sorted(done)
    assert seen[-1] == (total, total)


def test_digest_follows_content_not_names(tmp_path):
    one = find_source(str(write(tmp_path / "a.txt", "text")))
    two = find_source(str(write(tmp_path / "b.md", "text")))
    three = find_source(str(write(tmp_path / "c.txt", "texT")))
    four = find_source(str(write(tmp_path / "d.gz", "text")))
    assert one.digest() == two.digest()
    assert len({one.digest(), three.digest(), four.digest()}) == 3


def test_own_library():
    source = find_source("stdlib")
    top = Path(sysconfig.get_path("stdlib"))
    names = [path.relative_to(top).as_posix() for path in source.files]
    assert names == sorted(names)
    assert {"json/decoder.py", "argparse.py"} <= set(names)
    assert len(names) > 400
    first = next(path for path in source.files if path.stat().st_size)
    assert next(source.documents()) == first.read_text(encoding="utf-8")


def test_library_leaves_out_what_is_not_the_library(tmp_path, monkeypatch):
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "lib"))
    reject("stdlib", "zipped", tmp_path)
    for name in ("a.py", "json/b.py", "email/c.py", "readme.txt"):
        write(tmp_path / "lib" / name, name)
    for folder in ("site-packages", "dist-packages", "json/test", "json/tests", "idlelib"):
        write(tmp_path / "lib" / folder / "x.py", "x")
    write(tmp_path / "lib" / "latin.py", b"# \xe9")
    assert list(documents("stdlib")) == ["a.py", "email/c.py", "json/b.py"]


@pytest.mark.parametrize("spec", ["", "stdlbi", "no/such/file.txt", "no/such/*.txt", "a\0b"])
def test_nothing_there(spec, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    reject(spec, repr(spec), "backcopy, stdlib, PATH, tokens:DIR")


@pytest.mark.parametrize("content", ["", " \n\t\n", f"\n{SEPARATOR}\n{SEPARATOR}"])
def test_blank_file(tmp_path, content):
    path = write(tmp_path / "a.txt", content)
    reject(path, path, "empty or only white space")
    write(tmp_path / "b.txt", content)
    reject(tmp_path, "all 2 files", "empty or only white space")


def test_directory_or_glob_of_other_files(tmp_path):
    write(tmp_path / "a.bin", "x")
    reject(tmp_path, tmp_path, "no file ending in .txt .md .py .gz .xz .zst")
    reject(f"{tmp_path}/*", "none of its 1 matches", ".txt .md .py")


@pytest.mark.parametrize(
    ("content", "at"),
    [
        (b"ab\xff", "0xff at byte 2"),
        ("aé".encode("latin-1"), "0xe9 at byte 1"),
        (b"\xe9" * 7 + "é".encode(), "0xe9 at byte 0"),
        ("abc🙂".encode()[:-1], "0xf0 at byte 3"),
        ("text".encode("utf-16"), "0xff at byte 0"),
        ("text".encode("utf-16-le"), "NUL at byte 1"),
    ],
)
@pytest.mark.parametrize("block", [1, 4, 1 << 20])
def test_undecodable_bytes(tmp_path, monkeypatch, content, at, block):
    monkeypatch.setattr(corpus_module, "_BLOCK", block)
    path = write(tmp_path / "a.txt", content)
    reject(path, path, at)
    path = write(tmp_path / "a.txt.gz", gzip.compress(content))
    reject(path, path, f"{at} of the unpacked text")


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("damage", ["truncated", "garbage", "flipped"])
def test_broken_archives(tmp_path, suffix, damage):
    packed = PACK[suffix]("".join(f"line {n}\n" for n in range(5000)).encode())
    if damage == "truncated":
        packed = packed[: len(packed) // 2]
    elif damage == "garbage":
        packed = b"this is no archive at all"
    else:
        packed = bytes([packed[0] ^ 1]) + packed[1:]
    path = write(tmp_path / f"a.{suffix}", packed)
    reject(path, path, "truncated or corrupt archive")


def test_zst_without_its_package(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, zstd.__name__, None)
    path = write(tmp_path / "a.zst", b"x")
    reject(path, path, "pip install backports.zstd")


@pytest.mark.parametrize("suffix", PACK)
def test_a_bomb_takes_no_more_memory_than_a_block(tmp_path, suffix):
    one = "x" * 9999 + SEPARATOR
    path = write(tmp_path / f"a.{suffix}", PACK[suffix](one.encode() * 3000))
    tracemalloc.start()
    assert sum(map(len, documents(str(path)))) == 3000 * 9999
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 20 << 20


def test_zst_of_the_largest_window(tmp_path):
    options = {zstd.CompressionParameter.window_log: 28}  # 256 MiB: `zstd --long=28`
    packer = zstd.ZstdCompressor(options=options)
    packed = packer.compress(TEXT.encode()) + packer.flush()
    assert list(documents(str(write(tmp_path / "a.zst", packed)))) == PARTS


def test_directory_without_permission(tmp_path, monkeypatch):
    def refuse(top):
        raise PermissionError(13, "Permission denied", top)

    monkeypatch.setattr(os, "scandir", refuse)
    reject(tmp_path, f"cannot list {tmp_path}: Permission denied")


def test_file_without_permission(tmp_path, monkeypatch):
    path = write(tmp_path / "a.txt", "x")

    def refuse(self, *_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    reject(path, path, "Permission denied")
