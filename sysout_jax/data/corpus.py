"""Documents out of text files, archives, directories or the running Python's own library."""

from __future__ import annotations

import codecs
import glob
import gzip
import hashlib
import io
import lzma
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from sysout_jax.errors import InputError

SEPARATOR = "<|endoftext|>"
ACCEPTED = "backcopy, stdlib, PATH, tokens:DIR"
PLAIN = (".txt", ".md", ".py")
PACKED = (".gz", ".xz", ".zst")
_BLOCK = 1 << 20
_NOT_LIBRARY = frozenset(
    ("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__")
)

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Source:
    """The files a `--corpus` value stands for, in reading order."""

    spec: str
    files: tuple[Path, ...]

    @property
    def packings(self) -> str:
        """How each file is unpacked."""
        return " ".join(_packing(path) or "plain" for path in self.files)

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(path.stat().st_size for path in self.files)

    def digest(self) -> str:
        """A hash of the raw bytes of all files, and of how each is unpacked."""
        state = hashlib.blake2b(digest_size=16)
        for path in self.files:
            one = hashlib.blake2b(digest_size=16)
            with _opened(self.spec, path) as file:
                while block := file.read(_BLOCK):
                    one.update(block)
            state.update(_packing(path).encode() + b"\0" + one.digest())
        return state.hexdigest()

    def documents(self, progress: Progress | None = None) -> Iterator[str]:
        """Every document that is not blank, file by file; `progress(bytes read, bytes in all)`.

        Raises:
          InputError: a file that cannot be read, unpacked or decoded; nothing but blank text.
        """
        total, done, blank = self.size, 0, True
        for path in self.files:
            for text, position in _file_documents(self.spec, path):
                if progress is not None:
                    progress(done + position, total)
                if text and not text.isspace():
                    blank = False
                    yield text
            done += path.stat().st_size
        if blank:
            where = self.files[0] if len(self.files) == 1 else f"all {len(self.files)} files"
            reject(self.spec, f"{where}: empty or only white space; wanted text")


def find_source(spec: str) -> Source:
    """The files named by `stdlib`, a file, a directory or a glob, sorted.

    A directory gives its .txt, .md, .py, .gz, .xz and .zst files at any depth, but not hidden ones
    or those behind links to directories; a glob the files among its matches with those suffixes;
    a file named outright is read whatever its suffix, as plain text where that is of no archive.

    Raises:
      InputError: there is no such file.
    """
    if spec == "stdlib":
        return Source(spec, _library_files(spec))
    path = Path(os.path.expanduser(spec))
    if not spec:
        reject(spec, f"names nothing; accepted: {ACCEPTED}")
    if path.is_file():
        return Source(spec, (path,))
    wanted = " ".join(PLAIN + PACKED)
    if path.is_dir():
        files = tuple(filter(_is_text, _walk(spec, path)))
        if not files:
            reject(spec, f"directory {path} has no file ending in {wanted}")
        return Source(spec, files)
    matches = sorted(glob.glob(str(path), recursive=True)) if glob.has_magic(spec) else []
    files = tuple(p for p in map(Path, matches) if p.is_file() and _is_text(p))
    if matches and not files:
        reject(spec, f"none of its {len(matches)} matches is a file ending in {wanted}")
    if not files:
        reject(spec, f"no such file, directory or match; accepted: {ACCEPTED}")
    return Source(spec, files)


def documents(spec: str) -> Iterator[str]:
    """The documents of a corpus; `<|endoftext|>` separates those that share a file.

    Text is UTF-8; line ends become `\\n` and a byte order mark is dropped, as a text editor would.
    The separator takes the line break after it along. Blank documents are left out.

    Raises:
      InputError: as `find_source` and `Source.documents`.
    """
    return find_source(spec).documents()


def _is_text(path: Path) -> bool:
    return path.suffix.lower() in PLAIN + PACKED


def _packing(path: Path) -> str:
    """The suffix of an archive, or nothing."""
    suffix = path.suffix.lower()
    return suffix if suffix in PACKED else ""


def _walk(spec: str, top: Path, skip: frozenset[str] = frozenset()) -> list[Path]:
    def unreadable(error: OSError) -> NoReturn:
        reject(spec, f"cannot list {error.filename}: {error.strerror}")

    found = []
    for folder, folders, names in os.walk(top, onerror=unreadable):
        folders[:] = [f for f in folders if f not in skip and not f.startswith(".")]
        found += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted((p for p in found if p.is_file()), key=lambda p: p.relative_to(top).as_posix())


def _library_files(spec: str) -> tuple[Path, ...]:
    top = Path(sysconfig.get_path("stdlib"))
    found = _walk(spec, top, _NOT_LIBRARY) if top.is_dir() else []
    files = tuple(p for p in found if p.suffix == ".py" and _is_utf8(p))
    if not files:
        reject(spec, f"no .py files in {top} (a zipped library?); give a PATH of text instead")
    return files


def _is_utf8(path: Path) -> bool:
    try:
        path.read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return False
    return True


def _file_documents(spec: str, path: Path) -> Iterator[tuple[str, int]]:
    """Documents of one file, each with the number of packed bytes read so far."""
    held: list[str] = []  # pieces of the document being read; joined once, so memory stays linear
    tail = ""
    after_separator = False
    for text, position in _file_text(spec, path):
        tail += text
        *ended, tail = tail.split(SEPARATOR)
        for piece in ended:
            whole = "".join([*held, piece])
            held.clear()
            yield (whole.removeprefix("\n") if after_separator else whole), position
            after_separator = True
        keep = len(SEPARATOR) - 1  # a separator may straddle two blocks
        held.append(tail[:-keep])
        tail = tail[-keep:]
    whole = "".join([*held, tail])
    held.clear()
    yield (whole.removeprefix("\n") if after_separator else whole), path.stat().st_size


def _file_text(spec: str, path: Path) -> Iterator[tuple[str, int]]:
    utf8 = codecs.getincrementaldecoder("utf-8")()
    line_ends = io.IncrementalNewlineDecoder(None, translate=True)
    offset, first = 0, True
    for block, position in _unpacked(spec, path):
        start = offset - len(utf8.getstate()[0])
        try:
            text = utf8.decode(block, final=not block)
        except UnicodeDecodeError as error:
            found = f"0x{error.object[error.start]:02x}"
            where = f"byte {start + error.start}" + _unpacked_note(path)
            reject(spec, f"{path}: not UTF-8, {found} at {where}; convert it to UTF-8")
        if b"\0" in block:
            where = f"byte {offset + block.index(0)}" + _unpacked_note(path)
            reject(spec, f"{path}: not text, a NUL at {where}; wanted UTF-8 text")
        offset += len(block)
        if first and text:
            text, first = text.removeprefix("\ufeff"), False
        yield line_ends.decode(text, final=not block), position


def _unpacked_note(path: Path) -> str:
    return " of the unpacked text" if _packing(path) else ""


def _unpacked(spec: str, path: Path) -> Iterator[tuple[bytes, int]]:
    """Blocks of the unpacked file and the packed bytes read so far; last of all b""."""
    with _opened(spec, path) as file:
        stream = _unpacker(spec, path, file)
        block = b"\n"
        while block:
            try:
                block = stream.read(_BLOCK)
            except Exception as error:  # each format has its own; an error of the disk has a number
                if isinstance(error, OSError) and error.errno:
                    reject(spec, f"cannot read {path}: {error.strerror}")
                reject(spec, f"{path}: truncated or corrupt archive ({error})")
            yield block, file.tell()


def _unpacker(spec: str, path: Path, file: io.BufferedReader) -> io.BufferedIOBase:
    packing = _packing(path)
    if packing == ".gz":
        return gzip.GzipFile(fileobj=file)
    if packing == ".xz":
        return lzma.LZMAFile(file)
    if not packing:
        return file
    home = "compression" if sys.version_info >= (3, 14) else "backports"
    try:
        zstd = import_module(f"{home}.zstd")
    except ImportError:
        reject(spec, f"{path}: a .zst file needs backports.zstd; pip install backports.zstd")
    return zstd.ZstdFile(file, options={zstd.DecompressionParameter.window_log_max: 31})


def _opened(spec: str, path: Path) -> io.BufferedReader:
    try:
        return path.open("rb")
    except OSError as error:
        reject(spec, f"cannot read {path}: {error.strerror}")


def reject(spec: str, problem: str) -> NoReturn:
    """Refuse the corpus that a `--corpus` value names.

    Raises:
      InputError: says the problem.
    """
    raise InputError("corpus", repr(spec), why=problem)
