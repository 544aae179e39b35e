"""Text to token ids and back: raw bytes, and any tokenizer of the `tokenizers` library."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Collection, Container, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import tokenizers
from tokenizers import decoders

from sysout_jax.errors import InputError, printable, reason
from sysout_jax.files import write_text

FORMAT = "sysout_jax tokenizer 1"  # of what `save` writes

# A single line break between two non-space characters is a pre-token of its own (or ends one) in
# GPT-2's pattern whatever surrounds it; inside "\n\n" or beside a space it is not.
AFTER_LINE = re.compile(r"\S\n(?=\S)")
_ANYWHERE = re.compile("")
_MOST = 1024  # letters of a word: no text has more but DNA, the digits of pi and the like
_RUN = re.compile(rf"\S{{{_MOST}}}|\s{{{_MOST}}}")  # found sooner, and in nearly no text
# What GPT-2's pattern makes one word of.
_KINDS = (r"[^\W\d_]", r"\d", r"(?:[^\w\s]|_)", r"\s")
_LONG = re.compile("|".join(f"{kind}{{{_MOST}}}" for kind in _KINDS))


@runtime_checkable
class Tokenizer(Protocol):
    """What the rest of the library asks of a tokenizer.

    `vocab` counts every id including the specials, `eot` separates documents, `bos` starts a
    sequence if `adds_bos` (each None where a published tokenizer has none), and `fingerprint`
    changes whenever the ids of some text could. Text never encodes to a special token, even where
    it spells one. `cut` finds where a long text may be cut (at a match's end) without changing its
    ids, or is None where it may not be cut at all.
    """

    @property
    def vocab(self) -> int: ...
    @property
    def eot(self) -> int | None: ...
    @property
    def bos(self) -> int | None: ...
    @property
    def adds_bos(self) -> bool: ...
    @property
    def fingerprint(self) -> str: ...
    @property
    def cut(self) -> re.Pattern[str] | None: ...

    def encode(self, text: str) -> np.ndarray:
        """Ids of `text`, int32."""
        ...

    def encode_many(self, texts: list[str]) -> list[np.ndarray]:
        """`encode` of every text, on all cores where the backend can."""
        ...

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """Text of `ids`, specials by name; bytes that are not UTF-8 become U+FFFD."""
        ...

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """One printable label a token: a space is `␣`, a line break `\\n`, a lone byte `\\xe2`."""
        ...

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one JSON file which `load_saved` (or `--tokenizer=PATH.json`) reads back."""
        ...


@dataclass(frozen=True)
class ByteTokenizer:
    """UTF-8 bytes as ids 0-255, then `<|endoftext|>` 256 and `<|bos|>` 257."""

    vocab: int = 258
    eot: int = 256
    bos: int = 257
    fingerprint: str = "bytes-1"
    cut: re.Pattern[str] | None = _ANYWHERE
    adds_bos: bool = True  # sequences that the model learned from start with BOS

    def encode(self, text: str) -> np.ndarray:
        return np.frombuffer(text.encode(), np.uint8).astype(np.int32)

    def encode_many(self, texts: list[str]) -> list[np.ndarray]:
        return [self.encode(text) for text in texts]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return b"".join(self._bytes(i) for i in np.asarray(ids).tolist()).decode(errors="replace")

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        return [_label(self._bytes(i)) for i in np.asarray(ids).tolist()]

    def save(self, path: str | os.PathLike[str]) -> None:
        spec = {"format": FORMAT, "kind": "bytes", "adds_bos": self.adds_bos}
        write_text(Path(path), json.dumps(spec))

    def _bytes(self, token: int) -> bytes:
        if token < self.eot:
            return bytes([token])
        return {self.eot: b"<|endoftext|>", self.bos: b"<|bos|>"}[token]


@dataclass(frozen=True, eq=False)
class SubwordTokenizer:
    """A tokenizer of the `tokenizers` library with its two special ids."""

    backend: tokenizers.Tokenizer = field(repr=False)  # its repr is its whole vocabulary
    eot: int | None
    bos: int | None
    adds_bos: bool = False  # its own rule for prompts, or how the model was trained

    def __eq__(self, other: object) -> bool:
        """Loaded twice it is the same: a model's tokenizer is a part of its pytree's structure."""
        return isinstance(other, SubwordTokenizer) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @property
    def _identity(self) -> tuple[str, bool]:
        return self.fingerprint, self.adds_bos

    @functools.cached_property
    def vocab(self) -> int:
        return max(self.backend.get_vocab().values()) + 1

    @functools.cached_property
    def fingerprint(self) -> str:
        content = f"{self.eot} {self.bos} {self.backend.to_str()}"
        return hashlib.blake2b(content.encode(), digest_size=16).hexdigest()

    @functools.cached_property
    def cut(self) -> re.Pattern[str] | None:
        spec = json.loads(self.backend.to_str())
        split = spec["pre_tokenizer"] or {}
        gpt2_split = (
            split.get("type") == "ByteLevel"
            and split.get("use_regex", True)
            and not split.get("add_prefix_space", True)
            and spec["normalizer"] is None
            and all(token["special"] for token in spec["added_tokens"])
        )
        return AFTER_LINE if gpt2_split else None

    def encode(self, text: str) -> np.ndarray:
        return self.encode_many([text])[0]

    def encode_many(self, texts: list[str]) -> list[np.ndarray]:
        try:
            encoded = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        except Exception as error:  # bare, as of a word that a vocabulary without unknowns lacks
            accepted = "text that the model's tokenizer has tokens for"
            raise InputError("text", None, accepted, reason(error)) from error
        return [np.array(one.ids, np.int32) for one in encoded]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self.backend.decode(np.asarray(ids).tolist(), skip_special_tokens=False)

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        byte_level = isinstance(self.backend.decoder, decoders.ByteLevel)
        return [self._piece(i, byte_level) for i in np.asarray(ids).tolist()]

    def save(self, path: str | os.PathLike[str]) -> None:
        spec = json.loads(self.backend.to_str())
        own = {"eot": self.eot, "bos": self.bos, "adds_bos": self.adds_bos}
        whole = {"format": FORMAT, "kind": "tokenizers", **own, **spec}
        write_text(Path(path), json.dumps(whole, ensure_ascii=False))

    def _piece(self, token: int, byte_level: bool) -> str:
        name = self.backend.id_to_token(token)
        if name is None:
            raise IndexError(f"token {token} is not in the vocabulary of {self.vocab}")
        table = byte_of_symbol()
        if byte_level and all(symbol in table for symbol in name):
            return _label(bytes(table[symbol] for symbol in name))
        return _label(name.replace("\u2581", " ").encode())


def chunks(text: str, cut: re.Pattern[str] | None, size: int) -> Iterator[str]:
    """`text` in pieces of about `size` characters, each ended by a match of `cut`."""
    start = 0
    while cut is not None and len(text) - start > size:
        found = cut.search(text, start + size)
        if found is None:
            break
        yield text[start : found.end()]
        start = found.end()
    yield text[start:]


def bounded(text: str) -> Iterator[str]:
    """A text in parts that end where a word has `_MOST` letters: time is quadratic in a word's."""
    start = 0
    for found in _LONG.finditer(text) if _RUN.search(text) else ():
        yield text[start : found.end()]
        start = found.end()
    yield text[start:]


def first_special(backend: tokenizers.Tokenizer) -> int | None:
    """The id that the tokenizer's own rule puts in front of a text; None: it puts none there."""
    text = backend.encode("a", add_special_tokens=False).ids
    ids = backend.encode("a", add_special_tokens=True).ids
    return ids[0] if len(ids) > len(text) and ids[:1] != text[:1] else None


def merges_of(ranked: Collection[str], known: Container[str]) -> list[tuple[str, str]]:
    """The pairs of known pieces that make each of the ranked ones, in their order.

    Raises:
      ValueError: a piece that is longer than any word, whose cuts take quadratic time.
    """
    longest = max(map(len, ranked), default=0)
    if longest > _MOST:
        raise ValueError(f"a piece of {longest} characters, of at most {_MOST}")
    return [
        (piece[:cut], piece[cut:])
        for piece in ranked
        for cut in range(1, len(piece))
        if piece[:cut] in known and piece[cut:] in known
    ]


@functools.cache
def byte_of_symbol() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte, inverted (Radford et al. 2019, encoder.py)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(others)}


def _label(raw: bytes) -> str:
    return printable(raw.decode(errors="backslashreplace").replace(" ", "␣"))
