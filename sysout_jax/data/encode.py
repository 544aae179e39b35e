"""A corpus as token arrays on disk: encoded once, split by document, memory-mapped after."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import tokenizers

from sysout_jax.data.corpus import Progress, Source, find_source, reject
from sysout_jax.data.tokenizer import Tokenizer, chunks
from sysout_jax.data.tokenizer_files import load_saved, load_tokenizer
from sysout_jax.data.unchanged import remembered
from sysout_jax.errors import InputError

VALIDATION_FRACTION = 0.05
_SHARES = (0.01, 0.2)  # of tokens that whole documents may put into validation
_FORMAT_VERSION = 2
_CHUNK = 1 << 15  # characters; enough chunks a batch for every core, few enough tokens in memory
_BATCH = 1 << 21  # characters
_PARTS = ("train", "val")


@dataclass(frozen=True, eq=False)
class EncodedCorpus:
    """Two token arrays and how they were parted."""

    train: np.ndarray
    val: np.ndarray
    vocab: int
    documents: int | None
    split: str


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/sysout_jax`, or `~/.cache/sysout_jax`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sysout_jax"


def encode_corpus(
    spec: str,
    tokenizer: Tokenizer,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> EncodedCorpus:
    """Token arrays of a corpus, from the cache when the same bytes were encoded before.

    Each document is followed by `tokenizer.eot`, where there is one. A document is validation when
    the hash of its content falls in the lowest 5 percent, so copies of a document are on one side;
    see `validation_documents` for small corpora. Where that parts less than 1 or more than 20
    percent of the tokens, as where one document is most of the text, the last 5 percent of every
    document's tokens are validation; `split` says so.

    Args:
      spec: what `find_source` reads.
      tokenizer: gives the ids; its fingerprint is part of the cache key.
      cache_dir: where entries are kept; `default_cache_dir()` if None.
      progress: called with the bytes read so far and the bytes in all.

    Raises:
      InputError: unreadable text, a cache directory that cannot be written.
    """
    source = find_source(spec)
    cache = cache_of(cache_dir)
    entry = cache / _key(_digest(source, cache), tokenizer.fingerprint)
    found = _open_entry(entry)
    if found is not None:
        return found
    try:
        _build_entry(entry, source, tokenizer, progress)
    except OSError as error:
        _reject_cache(cache, f"cannot be written: {error.strerror}")
    built = _open_entry(entry)
    if built is None:
        _reject_cache(cache, f"entry {entry.name} does not read back as written")
    return built


def tokenizer_for(
    corpus: str, spec: str, cache_dir: str | os.PathLike[str] | None = None
) -> Tokenizer:
    """`load_tokenizer`, training a `bpe:SIZE` on all documents of the corpus once and keeping it.

    Raises:
      InputError: as `load_tokenizer` and `find_source`.
    """
    if not spec.startswith("bpe:"):
        return load_tokenizer(spec)
    source, cache = find_source(corpus), cache_of(cache_dir)
    kept = cache / f"{_key(_digest(source, cache), spec, tokenizers.__version__)}.json"
    with contextlib.suppress(InputError):  # absent or damaged
        return load_saved(kept)
    trained = load_tokenizer(spec, source.documents)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        trained.save(kept)
    except OSError as error:
        _reject_cache(cache, f"cannot be written: {error.strerror}")
    return trained


def validation_documents(digests: np.ndarray) -> np.ndarray:
    """Which documents are validation, from their 64-bit content hashes.

    Those with hash / 2^64 < 0.05; if there are none, the one with the smallest hash; if that
    leaves nothing to train on, all but the one with the largest. Equal hashes share a side.

    Args:
      digests: uint64, at least two distinct values.

    Returns:
      bool array, with a True and a False at least.
    """
    chosen = digests < np.uint64(VALIDATION_FRACTION * 2**64)
    if not chosen.any():
        return digests == digests.min()
    return digests != digests.max() if chosen.all() else chosen


def encoded_chunks(
    documents: Iterable[str], tokenizer: Tokenizer, chunk: int = _CHUNK
) -> Iterator[tuple[np.ndarray, bool]]:
    """Ids of the documents in order, cut into chunks where `tokenizer.cut` allows.

    Returns:
      Pairs of int32 ids and whether a document ends there. The ids of a document's chunks, joined,
      are those of the whole document.
    """
    texts: list[str] = []
    ends: list[bool] = []
    held = 0
    for document in documents:
        for text in chunks(document, tokenizer.cut, chunk):
            if held >= _BATCH:
                yield from zip(tokenizer.encode_many(texts), ends, strict=True)
                texts, ends, held = [], [], 0
            texts.append(text)
            ends.append(False)
            held += len(text)
        ends[-1] = True
    yield from zip(tokenizer.encode_many(texts), ends, strict=True)


class _DocumentLog:
    """Passes documents on, keeping the hash of each and the bytes of all."""

    def __init__(self) -> None:
        self.digests: list[int] = []
        self.bytes = 0

    def watch(self, documents: Iterable[str]) -> Iterator[str]:
        for document in documents:
            content = document.encode()
            hashed = hashlib.blake2b(content, digest_size=8).digest()
            self.digests.append(int.from_bytes(hashed, "little"))
            self.bytes += len(content)
            del content
            yield document


def _build_entry(
    entry: Path, source: Source, tokenizer: Tokenizer, progress: Progress | None
) -> None:
    """Write all files into a directory of another name, then rename it into place."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{entry.name}.", dir=entry.parent))
    try:
        _write_entry(work, source, tokenizer, progress)
        if _open_entry(entry) is None:
            with contextlib.suppress(FileNotFoundError):
                os.rename(entry, work / "old")  # an entry that cannot be used
            # Another process may be first here too; its entry holds the same tokens.
            with contextlib.suppress(OSError):
                os.rename(work / "new", entry)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _write_entry(
    work: Path, source: Source, tokenizer: Tokenizer, progress: Progress | None
) -> None:
    dtype = np.dtype("<u2" if tokenizer.vocab <= 1 << 16 else "<u4")
    log = _DocumentLog()
    ends = [0]
    position = 0
    separator = b"" if tokenizer.eot is None else np.array([tokenizer.eot], dtype).tobytes()
    with (work / "all.bin").open("wb") as out:
        stream = log.watch(source.documents(progress))
        for ids, end in encoded_chunks(stream, tokenizer):
            out.write(ids.astype(dtype).tobytes() + (separator if end else b""))
            position += ids.size + (end and bool(separator))
            if end:
                ends.append(position)
    if position == len(log.digests):
        reject(source.spec, "the tokenizer gives no tokens for its text")
    tokens = np.memmap(work / "all.bin", dtype, mode="r")
    spans, split = _split(np.array(log.digests, np.uint64), np.array(ends))
    (work / "new").mkdir()
    checks = {}
    for part in _PARTS:
        path = work / "new" / f"{part}.npy"
        size = sum(stop - start for start, stop in spans[part])
        array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(size,))
        _copy_spans(tokens, spans[part], array)
        array.flush()
        checks[part] = {"tokens": size, "crc32": zlib.crc32(array.data)}
    facts = {
        "documents": len(log.digests),
        "bytes": log.bytes,
        "vocab": tokenizer.vocab,
        "split": split,
        "source": source.spec,
        "parts": checks,
    }
    (work / "new" / "corpus.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def _split(digests: np.ndarray, ends: np.ndarray) -> tuple[dict[str, list[tuple[int, int]]], str]:
    """Token spans of each part, in corpus order, and the rule in words."""
    copies = f" ({digests.size} copies, one kept)" if digests.size > 1 else ""
    if np.unique(digests).size == 1:
        stop = int(ends[1])
        cut = stop - max(1, round(VALIDATION_FRACTION * stop))
        words = f"1 document{copies}: its last 5% of tokens are validation"
        return {"train": [(0, cut)], "val": [(cut, stop)]}, words
    is_val = validation_documents(digests)
    sizes = np.diff(ends)
    spans: dict[str, list[tuple[int, int]]] = {"train": [], "val": []}
    least, most = _SHARES
    if sizes.max() > 1 and not least <= sizes[is_val].sum() / sizes.sum() <= most:
        tails = np.maximum(1, np.rint(VALIDATION_FRACTION * sizes).astype(np.int64))
        cuts = ends[1:] - np.minimum(tails, np.maximum(sizes - 1, 0))
        for start, cut, stop in zip(ends[:-1], cuts, ends[1:], strict=True):
            spans["train"].append((int(start), int(cut)))
            spans["val"].append((int(cut), int(stop)))
        return spans, f"{digests.size} documents: the last 5% of tokens of each are validation"
    for held_out, start, stop in zip(is_val, ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        spans["val" if held_out else "train"].append((start, stop))
    words = f"by document: {len(spans['train'])} train, {len(spans['val'])} validation"
    return spans, words


def _copy_spans(tokens: np.ndarray, spans: list[tuple[int, int]], out: np.ndarray) -> None:
    position = 0
    for start, stop in spans:
        out[position : position + stop - start] = tokens[start:stop]
        position += stop - start


def _open_entry(entry: Path) -> EncodedCorpus | None:
    """The cached corpus, or None if it is absent or any of its files is not as it was written."""
    try:
        facts: dict[str, Any] = json.loads((entry / "corpus.json").read_text(encoding="utf-8"))
        arrays = {p: np.load(entry / f"{p}.npy", mmap_mode="r") for p in _PARTS}
        files = [entry / f"{part}.npy" for part in _PARTS]
        sums = remembered(
            files, entry.parent, lambda: " ".join(str(zlib.crc32(a.data)) for a in arrays.values())
        )
        for (part, array), crc32 in zip(arrays.items(), sums.split(), strict=True):
            expected = facts["parts"][part]
            if array.shape != (expected["tokens"],) or int(crc32) != expected["crc32"]:
                return None
        return EncodedCorpus(
            train=arrays["train"],
            val=arrays["val"],
            **{name: facts[name] for name in ("vocab", "documents", "split")},
        )
    except (OSError, ValueError, EOFError, KeyError, TypeError):
        return None


def _digest(source: Source, cache: Path) -> str:
    """`source.digest()`, of files that are as they were without reading them.

    Raises:
      InputError: a file that cannot be read.
    """
    try:
        # A link may have another suffix than its file: unpacked otherwise, it is other text.
        return remembered(source.files, cache, source.digest, source.packings)
    except OSError as error:
        reject(source.spec, f"cannot read {error.filename}: {error.strerror}")


def cache_of(cache_dir: str | os.PathLike[str] | None) -> Path:
    """The directory that is meant: `default_cache_dir()` if None."""
    return default_cache_dir() if cache_dir is None else Path(os.path.expanduser(cache_dir))


def _key(*parts: str) -> str:
    identity = "\n".join([str(_FORMAT_VERSION), *parts])
    return hashlib.blake2b(identity.encode(), digest_size=16).hexdigest()


def _reject_cache(cache: Path, problem: str) -> NoReturn:
    raise InputError(f"cache directory {cache}", why=f"{problem}; set XDG_CACHE_HOME or cache_dir")
