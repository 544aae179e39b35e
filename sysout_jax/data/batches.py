"""Batch n of seed s as a pure function of (s, n): nothing to save, nothing to rewind."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from sysout_jax.data.tokenizer import Tokenizer
from sysout_jax.errors import InputError

SPLITS = ("train", "val")


@dataclass(frozen=True, eq=False)
class TextCorpus:
    """Two token arrays, cut into blocks that an epoch visits once each in random order.

    Attributes:
      name: the `--corpus` value.
      vocab: embedding rows the ids need, specials included.
      bos: id put in column 0 of every row, or None for rows of text only.
      train, val: one-dimensional arrays of ids, usually memory-mapped.
      tokenizer: the one that made them, None if unknown.
      documents: number of documents, None if unknown.
      split: in words, how the validation part was chosen.

    Raises:
      InputError: a part that is no array of ids, or a BOS beyond the vocabulary.
    """

    name: str
    vocab: int
    bos: int | None
    train: np.ndarray
    val: np.ndarray
    tokenizer: Tokenizer | None = None
    documents: int | None = None
    split: str = "as given"

    def __post_init__(self) -> None:
        if self.bos is not None and not 0 <= self.bos < self.vocab:
            raise InputError(
                "bos", self.bos, f"0 to {self.vocab - 1}", f"a vocabulary of {self.vocab}"
            )
        for part in SPLITS:
            found = np.asanyarray(getattr(self, part))
            object.__setattr__(self, part, found)
            if found.ndim != 1 or found.dtype.kind not in "iu":
                said = f"{found.dtype} of shape {found.shape}"
                raise InputError(part, None, "integer ids [tokens]", said)

    @property
    def tokens(self) -> dict[str, int]:
        """Tokens in each part."""
        return {"train": self.train.size, "val": self.val.size}

    def batch(
        self,
        split: str,
        seed: int,
        index: int,
        batch_size: int,
        seq_len: int,
        rows: np.ndarray | None = None,
    ) -> np.ndarray:
        """Rows of tokens: inputs are `[:, :-1]`, targets `[:, 1:]`.

        The part is cut into blocks, one every `seq_len` tokens from a random phase; an epoch is a
        permutation of them. Phase and permutation are keyed by (split, seed, epoch). Row r of
        batch n is sample n * batch_size + r of that endless stream.

        Args:
          split: `train` or `val`.
          seed, index: which stream, and which batch of it; both from 0.
          batch_size, seq_len: B and T.
          rows: which rows of the batch, without reading the others; None: all.

        Returns:
          int32 [B, T + 1], or as many rows as `rows`. With a BOS, column 0 is it and T text tokens
          follow.

        Raises:
          InputError: a part shorter than one row; a size below 1; an id beyond the vocabulary.
        """
        check_request(split, seed, index, batch_size, seq_len)
        blocks, phases = self._blocks(split, seq_len)
        samples = index * batch_size + (np.arange(batch_size) if rows is None else rows)
        starts = np.empty(samples.size, np.int64)
        for epoch in np.unique(samples // blocks).tolist():
            inside = samples // blocks == epoch
            key = ("blocks", split, seed, epoch)
            phase = int(random_words(1, *key)[0] % np.uint64(phases))
            starts[inside] = phase + shuffled(samples[inside] % blocks, blocks, *key) * seq_len
        width = seq_len + (self.bos is None)
        part = np.asarray(self.train if split == "train" else self.val)
        text = part[starts[:, None] + np.arange(width)].astype(np.int32)
        for found in (text.min(), text.max()):
            if not 0 <= found < self.vocab:
                raise InputError(split, None, f"0 to {self.vocab - 1}", f"token id {found}")
        if self.bos is None:
            return text
        return np.concatenate([np.full((samples.size, 1), self.bos, np.int32), text], axis=1)

    def distinct(self, split: str, count: int, seq_len: int) -> np.ndarray:
        """Rows to judge by: the first of seed 0's stream, no text of them shown twice.

        Args:
          split: `train` or `val`.
          count, seq_len: B and T.

        Returns:
          int32 [B, T + 1], as `batch`.

        Raises:
          InputError: as `batch`, or fewer blocks than rows.
        """
        check_request(split, 0, 0, count, seq_len)
        room = self._blocks(split, seq_len)[0]
        if count > room:
            raise InputError(
                "sequences",
                count,
                f"at most {room} sequences of --seq_len={seq_len}",
                (f"the {split} part of corpus {self.name!r} has {self.tokens[split]} tokens"),
            )
        return self.batch(split, 0, 0, count, seq_len)

    def epochs(self, steps: int, batch_size: int, seq_len: int) -> float:
        """How often `steps` batches go through the train part."""
        return steps * batch_size / self._blocks("train", seq_len)[0]

    def _blocks(self, split: str, seq_len: int) -> tuple[int, int]:
        """Blocks an epoch, and how many phases leave room for all of them."""
        tokens, width = self.tokens[split], seq_len + (self.bos is None)
        if tokens < width:
            largest = max(0, tokens - (self.bos is None))
            raise InputError(
                "seq_len",
                seq_len,
                why=(
                    f"the {split} part of corpus {self.name!r} has {tokens} tokens; the "
                    f"largest that fits is {largest}"
                ),
            )
        blocks = max(1, (tokens - width - (seq_len - 1)) // seq_len + 1)
        return blocks, min(seq_len, tokens - width - (blocks - 1) * seq_len + 1)


def check_request(split: str, seed: int, index: int, batch_size: int, seq_len: int) -> None:
    """Refuse a batch that no corpus has.

    Raises:
      InputError: an unknown split, or a number below its least value.
    """
    if split not in SPLITS:
        raise InputError("split", repr(split), ", ".join(SPLITS), "unknown")
    for name, value in (("batch_size", batch_size), ("seq_len", seq_len)):
        if value < 1:
            raise InputError(name, value, why="must be at least 1")
    if seed < 0 or index < 0:
        raise InputError("seed", f"{seed}, batch index {index}", why="neither may be negative")


def random_words(count: int, *key: str | int) -> np.ndarray:
    """`count` random uint64, a pure function of `key`; different keys give unrelated words.

    Philox words rather than Generator methods: only the former are promised not to change from one
    NumPy release to the next (NEP 19), and a resumed run must see the same batches.
    """
    name = "/".join(map(str, key))
    hashed = hashlib.blake2b(name.encode(), digest_size=16).digest()
    return np.random.Philox(key=int.from_bytes(hashed, "little")).random_raw(count)


def shuffled(index: np.ndarray, count: int, *key: str | int) -> np.ndarray:
    """Entries `index` of a random permutation of 0..count-1 that is never written out.

    A Feistel network over the least even number of bits that holds `count` is a permutation of its
    domain for any round function (Luby & Rackoff 1988); what falls outside is permuted again until
    it falls inside, which keeps it one of 0..count-1 (Black & Rogaway 2002, "cycle walking"). Ten
    rounds: with six, orders of five entries are not equally frequent. Time is that of the entries
    asked for, whatever `count` is.

    Args:
      index: integers in 0..count-1, of any shape.
      count: how many are permuted.
      key: which permutation; different keys give unrelated ones.
    """
    half = max(1, (count - 1).bit_length() + 1 >> 1)
    low = np.uint64((1 << half) - 1)
    keys = random_words(10, "feistel", *key)
    found = np.asarray(index).astype(np.uint64)
    outside = np.ones(found.shape, bool)
    while outside.any():
        left, right = found[outside] >> np.uint64(half), found[outside] & low
        for word in keys:
            left, right = right, left ^ (_mixed(right ^ word) & low)
        found[outside] = left << np.uint64(half) | right
        outside = found >= count
    return found.astype(np.int64)


def _mixed(words: np.ndarray) -> np.ndarray:
    """The finaliser of SplitMix64 (Steele et al. 2014): every bit depends on all."""
    words = (words ^ words >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ words >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return words ^ words >> np.uint64(31)
