"""Corpora and tokenizers to batches."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np

from sysout_jax.data.backcopy import Backcopies, Backcopy
from sysout_jax.data.batches import TextCorpus
from sysout_jax.data.corpus import ACCEPTED, Progress, documents
from sysout_jax.data.encode import EncodedCorpus, default_cache_dir, encode_corpus, tokenizer_for
from sysout_jax.data.token_files import open_token_files
from sysout_jax.data.tokenizer import ByteTokenizer, SubwordTokenizer, Tokenizer
from sysout_jax.data.tokenizer_files import load_saved, load_tokenizer
from sysout_jax.errors import InputError

# What a training loop reads: several chains have no one batch to judge all by.
Source = Backcopy | Backcopies | TextCorpus

__all__ = [
    "ACCEPTED",
    "Backcopies",
    "Backcopy",
    "EncodedCorpus",
    "Source",
    "TextCorpus",
    "Tokenizer",
    "default_cache_dir",
    "documents",
    "encode_corpus",
    "load_corpus",
    "load_saved",
    "load_tokenizer",
]


def load_corpus(
    spec: str,
    tokenizer: str | Tokenizer = "bytes",
    bos: bool = True,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    train_tokens: int | None = None,
    token_dtype: str | None = None,
) -> Backcopy | TextCorpus:
    """The corpus a `--corpus` value names, ready to give batches.

    Args:
      spec: `backcopy`, `stdlib`, `PATH` (file, directory or glob) or `tokens:DIR`. A file called
        like one of the first two is reached as `./stdlib`.
      tokenizer: what `load_tokenizer` reads, or a tokenizer; without effect on `backcopy`. On
        `tokens:DIR` it says what the ids mean; `bytes`, the default, there means unknown.
      bos: put the BOS id in front of every row. `tokens:DIR` of unknown tokenizer has none.
      cache_dir: where encoded text is kept; `default_cache_dir()` if None.
      progress: called with the bytes read so far and the bytes in all.
      train_tokens: of the training part, from its beginning; None: all.
      token_dtype: of the ids of `tokens:DIR`, as `open_token_files` names them; None: told by them.

    Raises:
      InputError: an unknown spec; text, archive, tokenizer or token file that cannot be used; fewer
        tokens than `train_tokens`.
    """
    if token_dtype is not None and not spec.startswith("tokens:"):
        raise InputError(
            "token_dtype", token_dtype, "with tokens:DIR", f"corpus {spec!r} has no ids"
        )
    if spec == "backcopy":
        if train_tokens is not None:
            raise InputError("train_tokens", train_tokens, "none", "corpus backcopy draws its rows")
        return Backcopy(begins_with_bos=bos)
    known: Tokenizer | None
    if spec.startswith("tokens:"):
        known = load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer
        known = None if tokenizer == "bytes" else known
        found = _token_files(spec, known, token_dtype, cache_dir)
    else:
        known = (
            tokenizer_for(spec, tokenizer, cache_dir) if isinstance(tokenizer, str) else tokenizer
        )
        found = encode_corpus(spec, known, cache_dir, progress)
    if isinstance(known, ByteTokenizer | SubwordTokenizer):
        # What is saved beside a model says how it was trained.
        known = replace(known, adds_bos=bos and known.bos is not None)
    return TextCorpus(
        name=spec,
        vocab=found.vocab,
        bos=known.bos if bos and known is not None else None,
        train=_first(spec, found.train, train_tokens),
        val=found.val,
        tokenizer=known,
        documents=found.documents,
        split=found.split,
    )


def _token_files(
    spec: str, known: Tokenizer | None, dtype: str | None, cache_dir: str | os.PathLike[str] | None
) -> EncodedCorpus:
    files = open_token_files(spec, dtype, cache_dir)
    vocab = files.largest + 1 if known is None else known.vocab
    if files.largest >= vocab:
        raise InputError(
            "corpus",
            repr(spec),
            (f"those of a tokenizer of {vocab}, or the --token_dtype that they were written with"),
            f"token {files.largest}, its ids read as {files.dtype}",
        )
    words = f"as given: train.bin and val.bin, ids of {files.dtype}"
    return EncodedCorpus(files.train, files.val, vocab, None, words)


def _first(spec: str, tokens: np.ndarray, count: int | None) -> np.ndarray:
    if count is not None and not 0 < count <= tokens.size:
        raise InputError(
            "train_tokens",
            count,
            f"1 to {tokens.size}",
            f"the train part of corpus {spec!r} has {tokens.size} tokens",
        )
    return tokens[:count]
