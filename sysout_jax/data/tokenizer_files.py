"""Tokenizers from files: GPT-2's pair, any tokenizer.json, what `save` wrote; or trained here."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from sysout_jax.data.tokenizer import (
    AFTER_LINE,
    FORMAT,
    ByteTokenizer,
    SubwordTokenizer,
    bounded,
    byte_of_symbol,
    chunks,
    first_special,
)
from sysout_jax.errors import InputError, reason
from sysout_jax.files import refuse_pointer

ACCEPTED = "bytes, gpt2:DIR, PATH.json, bpe:SIZE"
_EOT_NAMES = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>")
_OURS = ("format", "kind", "eot", "bos", "adds_bos")  # what we add to the library's own JSON
_BOS_NAMES = ("<s>", "<bos>", "<|begin_of_text|>", "<|bos|>")
_GPT2_FILES = (("encoder.json", "vocab.bpe"), ("vocab.json", "merges.txt"))
_MAX_TRAINED = 1_000_000
_MAX_ID = 1 << 31  # of int32


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
        return load_gpt2(spec, Path(os.path.expanduser(argument)))
    if kind == "bpe":
        return _train_bpe(spec, argument, train_on)
    if spec.endswith(".json"):
        found = _load_json(spec, Path(os.path.expanduser(spec)))
        if found.eot is None:
            named = ", ".join(_EOT_NAMES + _BOS_NAMES)
            _reject(spec, f"{spec} has none of the special tokens {named}")
        return found
    _reject(spec, f"unknown; accepted: {ACCEPTED}")


def load_saved(path: str | os.PathLike[str]) -> ByteTokenizer | SubwordTokenizer:
    """Read back what `Tokenizer.save` wrote.

    Raises:
      InputError: the file is missing or is no tokenizer.
    """
    return _load_json(os.fspath(path), Path(path))


def load_gpt2(spec: str, directory: Path, ends: bool = True) -> SubwordTokenizer:
    """GPT-2's vocabulary and merges.

    Args:
      spec: for messages.
      directory: with the two files.
      ends: whether the vocabulary must hold its end of text, which other files may add.

    Raises:
      InputError: a missing or malformed file.
    """
    pairs = [(directory / a, directory / b) for a, b in _GPT2_FILES]
    found = [pair for pair in pairs if pair[0].is_file() and pair[1].is_file()]
    if not found:
        wanted = " or ".join(f"{a} and {b}" for a, b in _GPT2_FILES)
        missing = "has no" if directory.is_dir() else "is no directory; wanted one with"
        _reject(spec, f"'{directory}' {missing} {wanted}")
    vocab_file, merges_file = found[0]
    vocab = _read_vocab(spec, vocab_file)
    if ends and _EOT_NAMES[0] not in vocab:
        _reject(spec, f"{vocab_file} has no {_EOT_NAMES[0]} token")
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=vocab, merges=_read_merges(spec, merges_file, vocab))
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    if _EOT_NAMES[0] in vocab:
        backend.add_special_tokens([_EOT_NAMES[0]])
    return _subword(backend, vocab.get(_EOT_NAMES[0]), vocab.get(_EOT_NAMES[0]))


def _read_vocab(spec: str, path: Path) -> dict[str, int]:
    vocab = _read_json(spec, path)
    ids = sorted(i for i in vocab.values() if type(i) is int)
    if ids != list(range(len(vocab))):
        _reject(spec, f"{path} does not number its {len(vocab)} tokens 0, 1, 2, ...")
    absent = sorted(set(byte_of_symbol()) - set(vocab))
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
    if content.get("format") == FORMAT and content.get("kind") == "bytes":
        return ByteTokenizer(adds_bos=content.get("adds_bos", True))
    if not isinstance(content.get("model"), dict):
        _reject(spec, f"{path} is no tokenizer.json: it has no 'model'")
    ours = {key: content.pop(key, None) for key in _OURS}
    try:
        backend = tokenizers.Tokenizer.from_str(json.dumps(content))
        backend.no_truncation()
        backend.no_padding()
        first = first_special(backend)
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # the library raises bare Exception, and panics are none
        _reject(spec, f"{path} is no tokenizer.json: {reason(error)}")
    ids = backend.get_vocab().values()
    if max(ids, default=_MAX_ID) >= _MAX_ID:
        _reject(spec, f"{path} has no tokens, or ids of {_MAX_ID} and above")
    if ours["format"] != FORMAT:
        return _subword(backend, *_guessed(backend, first), first)
    eot, bos = ours["eot"], ours["bos"]
    if not all(x is None or x in ids for x in (eot, bos)):
        _reject(spec, f"{path}: eot={eot!r}, bos={bos!r} are not ids of its vocabulary")
    found = _subword(backend, eot, bos, first)
    adds = ours["adds_bos"]
    return found if adds is None else replace(found, adds_bos=adds)


def _guessed(backend: tokenizers.Tokenizer, first: int | None) -> tuple[int | None, int | None]:
    """End of text and BOS of a tokenizer that nothing is known of, each None where it has none.

    A special token is one that tokenizer.json calls special: an ordinary word may be spelled like
    one, as the HTML tag <s> in Gemma's vocabulary.
    """
    added = backend.get_added_tokens_decoder()
    special = {token.content: number for number, token in added.items() if token.special}
    named = special or {token.content: number for number, token in added.items()}
    eots = [named[name] for name in _EOT_NAMES if name in named]
    boses = [named[name] for name in _BOS_NAMES if name in named]
    boses = boses if first is None else [first]
    return next(iter(eots + boses), None), next(iter(boses + eots), None)


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
        initial_alphabet=sorted(byte_of_symbol()),
        show_progress=False,
    )
    pieces = (
        word
        for text in train_on()
        for piece in chunks(text, AFTER_LINE, 1 << 15)
        for word in bounded(piece)
    )
    backend.train_from_iterator(pieces, trainer)
    reached = backend.get_vocab_size()
    if reached < size:
        _reject(spec, f"the corpus yields only {reached} tokens; ask for at most {reached}")
    eot, bos = (backend.get_vocab()[name] for name in specials)
    return _subword(backend, eot, bos)


def _subword(
    backend: tokenizers.Tokenizer, eot: int | None, bos: int | None, first: int | None = None
) -> SubwordTokenizer:
    # Text that spells a special token is text: only the corpus reader places separators.
    backend.encode_special_tokens = True
    return SubwordTokenizer(backend, eot, bos, bos is not None and first == bos)


def _read_text(spec: str, path: Path) -> str:
    try:
        refuse_pointer(path)
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


def _reject(spec: str, problem: str) -> NoReturn:
    raise InputError("tokenizer", repr(spec), why=problem)
