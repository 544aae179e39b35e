"""Text to token ids and back: raw bytes, GPT-2's files, any tokenizer.json, a BPE trained here."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NoReturn, Protocol, runtime_checkable

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from sysout_jax.errors import InputError

ACCEPTED = "bytes, gpt2:DIR, PATH.json, bpe:SIZE"
_FORMAT = "sysout_jax tokenizer 1"
_EOT_NAMES = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>")
_OURS = ("format", "kind", "eot", "bos", "adds_bos")  # what we add to the library's own JSON
_BOS_NAMES = ("<s>", "<bos>", "<|begin_of_text|>", "<|bos|>")
_GPT2_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
_MAX_TRAINED = 1_000_000

# A single line break between two non-space characters is a pre-token of its own (or ends one) in
# GPT-2's pattern whatever surrounds it; inside "\n\n" or beside a space it is not.
_AFTER_LINE = re.compile(r"\S\n(?=\S)")
_ANYWHERE = re.compile("")


@runtime_checkable
class Tokenizer(Protocol):
    """What the rest of the library asks of a tokenizer.

    `vocab` counts every id including the specials, `eot` separates documents, `bos` starts a
    sequence if `adds_bos`, and `fingerprint` changes whenever the ids of some text could. Text
    never encodes to a special token, even where it spells one. `cut` finds where a long text may be
    cut (at a match's end) without changing its ids, or is None where it may not be cut at all.
    """

    @property
    def vocab(self) -> int: ...
    @property
    def eot(self) -> int: ...
    @property
    def bos(self) -> int: ...
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
        _write_json(path, {"format": _FORMAT, "kind": "bytes", "adds_bos": self.adds_bos})

    def _bytes(self, token: int) -> bytes:
        if token < self.eot:
            return bytes([token])
        return {self.eot: b"<|endoftext|>", self.bos: b"<|bos|>"}[token]


@dataclass(frozen=True, eq=False)
class SubwordTokenizer:
    """A tokenizer of the `tokenizers` library with its two special ids."""

    backend: tokenizers.Tokenizer = field(repr=False)  # its repr is its whole vocabulary
    eot: int
    bos: int
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
        return _AFTER_LINE if gpt2_split else None

    def encode(self, text: str) -> np.ndarray:
        return np.array(self.backend.encode(text, add_special_tokens=False).ids, np.int32)

    def encode_many(self, texts: list[str]) -> list[np.ndarray]:
        encoded = self.backend.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(one.ids, np.int32) for one in encoded]

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        return self.backend.decode(np.asarray(ids).tolist(), skip_special_tokens=False)

    def pieces(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        byte_level = isinstance(self.backend.decoder, decoders.ByteLevel)
        return [self._piece(i, byte_level) for i in np.asarray(ids).tolist()]

    def save(self, path: str | os.PathLike[str]) -> None:
        spec = json.loads(self.backend.to_str())
        own = {"eot": self.eot, "bos": self.bos, "adds_bos": self.adds_bos}
        _write_json(path, {"format": _FORMAT, "kind": "tokenizers", **own, **spec})

    def _piece(self, token: int, byte_level: bool) -> str:
        name = self.backend.id_to_token(token)
        if name is None:
            raise IndexError(f"token {token} is not in the vocabulary of {self.vocab}")
        table = _byte_of_symbol()
        if byte_level and all(symbol in table for symbol in name):
            return _label(bytes(table[symbol] for symbol in name))
        return _label(name.replace("\u2581", " ").encode())


def load_tokenizer(
    spec: str, train_on: Callable[[], Iterable[str]] | None = None
) -> ByteTokenizer | SubwordTokenizer:
    """The tokenizer a `--tokenizer` value names.

    Args:
      spec: `bytes`; `gpt2:DIR` with encoder.json and vocab.bpe, or vocab.json and merges.txt;
        `PATH.json`, a tokenizer.json or a file written by `save`; `bpe:SIZE`, a byte-level BPE of
        SIZE tokens (256 bytes, `<|endoftext|>`, `<|bos|>`, merges) trained on `train_on()`.
      train_on: gives the documents for `bpe:SIZE`; the same documents give the same tokenizer.

    Raises:
      InputError: an unknown spec, a missing or malformed file, a SIZE the corpus cannot reach.
    """
    kind, _, argument = spec.partition(":")
    if spec == "bytes":
        return ByteTokenizer()
    if kind == "gpt2" and argument:
        return _load_gpt2(spec, Path(argument).expanduser())
    if kind == "bpe":
        return _train_bpe(spec, argument, train_on)
    if spec.endswith(".json"):
        return _load_json(spec, Path(spec).expanduser())
    _reject(spec, f"unknown; accepted: {ACCEPTED}")


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


def load_saved(path: str | os.PathLike[str]) -> ByteTokenizer | SubwordTokenizer:
    """Read back what `Tokenizer.save` wrote.

    Raises:
      InputError: the file is missing or is no tokenizer.
    """
    return _load_json(os.fspath(path), Path(path))


def _load_gpt2(spec: str, directory: Path) -> SubwordTokenizer:
    pairs = [(directory / a, directory / b) for a, b in _GPT2_FILES]
    found = [pair for pair in pairs if pair[0].is_file() and pair[1].is_file()]
    if not found:
        wanted = " or ".join(f"{a} and {b}" for a, b in _GPT2_FILES)
        missing = "has no" if directory.is_dir() else "is no directory; wanted one with"
        _reject(spec, f"'{directory}' {missing} {wanted}")
    vocab_file, merges_file = found[0]
    vocab = _read_vocab(spec, vocab_file)
    if _EOT_NAMES[0] not in vocab:
        _reject(spec, f"{vocab_file} has no {_EOT_NAMES[0]} token")
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=_read_merges(spec, merges_file, vocab))
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([_EOT_NAMES[0]])
    return _subword(backend, vocab[_EOT_NAMES[0]], vocab[_EOT_NAMES[0]])


def _read_vocab(spec: str, path: Path) -> dict[str, int]:
    vocab = _read_json(spec, path)
    ids = sorted(i for i in vocab.values() if type(i) is int)
    if ids != list(range(len(vocab))):
        _reject(spec, f"{path} does not number its {len(vocab)} tokens 0, 1, 2, ...")
    absent = sorted(set(_byte_of_symbol()) - set(vocab))
    if absent:
        _reject(spec, f"{path} lacks {len(absent)} of the 256 byte symbols, e.g. {absent[0]!r}")
    return vocab


def _read_merges(spec: str, path: Path, vocab: dict[str, int]) -> list[tuple[str, str]]:
    lines = _read_text(spec, path).split("\n")
    merges, made = [], set()
    for number, line in enumerate(lines, start=1):
        if not line.strip() or (number == 1 and line.startswith("#version")):
            continue
        pair = line.rstrip("\r").split(" ")
        if len(pair) != 2 or not {*pair, "".join(pair)} <= vocab.keys():
            _reject(spec, f"{path} line {number}: {line!r} is no merge of two known tokens")
        merges.append((pair[0], pair[1]))
        made.add("".join(pair))
    named = re.compile(r"<.*>|madeupword\d+")
    unmade = [t for t in vocab if len(t) > 1 and t not in made and not named.fullmatch(t)]
    if unmade:
        _reject(spec, f"{path} is cut short: no merge makes {len(unmade)} tokens, e.g. {unmade[0]}")
    return merges


def _load_json(spec: str, path: Path) -> ByteTokenizer | SubwordTokenizer:
    content = _read_json(spec, path)
    if content.get("format") == _FORMAT and content.get("kind") == "bytes":
        return ByteTokenizer(adds_bos=content.get("adds_bos", True))
    if not isinstance(content.get("model"), dict):
        _reject(spec, f"{path} is no tokenizer.json: it has no 'model'")
    ours = {key: content.pop(key, None) for key in _OURS}
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library raises bare Exception for every malformed field
        _reject(spec, f"{path} is no tokenizer.json: {str(error).splitlines()[0]}")
    backend.no_truncation()
    backend.no_padding()
    known = backend.get_vocab()
    eots = [known[name] for name in _EOT_NAMES if name in known]
    boses = [known[name] for name in _BOS_NAMES if name in known]
    if ours["format"] == _FORMAT:
        eots, boses = [ours["eot"]], [ours["bos"]]
        if not {*eots, *boses} <= set(known.values()):
            _reject(
                spec, f"{path}: eot={eots[0]!r}, bos={boses[0]!r} are not ids of its vocabulary"
            )
    if not eots + boses:
        _reject(spec, f"{path} has none of the special tokens {', '.join(_EOT_NAMES + _BOS_NAMES)}")
    found = _subword(backend, (eots + boses)[0], (boses + eots)[0])
    adds = ours["adds_bos"]
    return found if adds is None else replace(found, adds_bos=adds)


def _train_bpe(
    spec: str, argument: str, train_on: Callable[[], Iterable[str]] | None
) -> SubwordTokenizer:
    size = int(argument) if re.fullmatch(r"[0-9]{1,9}", argument) else -1
    if not 258 <= size <= _MAX_TRAINED:
        _reject(spec, f"SIZE must be a whole number from 258 to {_MAX_TRAINED}")
    if train_on is None:
        _reject(spec, "there is no text to train a BPE on; give a tokenizer that exists")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    specials = [_EOT_NAMES[0], "<|bos|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=specials,
        initial_alphabet=sorted(_byte_of_symbol()),
        show_progress=False,
    )
    pieces = (piece for text in train_on() for piece in chunks(text, _AFTER_LINE, 1 << 15))
    backend.train_from_iterator(pieces, trainer)
    reached = backend.get_vocab_size()
    if reached < size:
        _reject(spec, f"the corpus yields only {reached} tokens; ask for at most {reached}")
    eot, bos = (backend.get_vocab()[name] for name in specials)
    return _subword(backend, eot, bos)


def _subword(backend: tokenizers.Tokenizer, eot: int, bos: int) -> SubwordTokenizer:
    # Text that spells a special token is text: only the corpus reader places separators.
    backend.encode_special_tokens = True
    adds_bos = backend.encode("", add_special_tokens=True).ids[:1] == [bos]
    return SubwordTokenizer(backend, eot, bos, adds_bos)


@functools.cache
def _byte_of_symbol() -> dict[str, int]:
    """GPT-2's printable stand-in for each byte, inverted (Radford et al. 2019, encoder.py)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(256 + n): b for n, b in enumerate(others)}


def _label(raw: bytes) -> str:
    text = raw.decode(errors="backslashreplace").replace(" ", "␣")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _read_text(spec: str, path: Path) -> str:
    try:
        return path.read_bytes().decode()
    except OSError as error:
        _reject(spec, f"cannot read {path}: {error.strerror}")
    except UnicodeDecodeError as error:
        _reject(spec, f"{path} is not UTF-8 at byte {error.start}")


def _read_json(spec: str, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(_read_text(spec, path))
    except (json.JSONDecodeError, RecursionError) as error:
        _reject(spec, f"{path} is malformed or cut short: {error}")
    if not isinstance(content, dict):
        _reject(spec, f"{path} holds no JSON object")
    return content


def _write_json(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    target = Path(path)
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    part.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
    os.replace(part, target)


def _reject(spec: str, problem: str) -> NoReturn:
    raise InputError("tokenizer", repr(spec), why=problem)
