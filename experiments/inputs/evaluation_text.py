"""Text to learn from and text to judge by, for the models of an experiment."""

import itertools
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from rich.console import Console

from sysout_jax.analysis.compress.calibration import disjoint_rows
from sysout_jax.data import load_corpus
from sysout_jax.data.corpus import documents
from sysout_jax.data.tokenizer import Tokenizer
from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.training.loop import Corpus

from ..cli.progress import reading
from .model_selection import Chosen

TOKENS = 64  # of a sequence, if nothing is said
SEQUENCES, WIKITEXT2 = "sequences", "wikitext2"  # protocols: rows of the validation part, or
WINDOW = 2048  # all of the text in windows of so many tokens, as perplexities are published
PUBLISHED = "stdlib"  # what published models are measured on unless --corpus says


class Text(NamedTuple):
    """[B, T + 1] rows: to calibrate on, of a corpus if there are any, and to evaluate on."""

    corpus: Corpus | None
    calibration: np.ndarray
    evaluation: np.ndarray

    @property
    def rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Those of both kinds."""
        return self.calibration, self.evaluation

    def begun_by_bos(self, chosen: Chosen) -> bool:
        """Whether every row begins with the BOS of the model: one that is a key replaces it."""
        first = np.concatenate([self.evaluation, self.calibration])[:, 0]
        return bool(chosen.bos and (first == first[0]).all())


def corpus_name(given: str | None, chosen: Chosen) -> str:
    """The corpus that --corpus means for a model, as a record names it."""
    return given or chosen.corpus or PUBLISHED


def read_corpus(
    given: str | None, chosen: Chosen, console: Console, token_dtype: str | None = None
) -> tuple[Corpus, str]:
    """The corpus that --corpus means for a model, in its tokenizer; and the corpus' name.

    Raises:
      InputError: no corpus, or one that cannot be read or that the model cannot read.
    """
    spec = given or chosen.corpus
    if spec is None and chosen.seed is None:
        # Of a published model nobody says what it read; any machine has Python's own source.
        spec = PUBLISHED
        console.print(f"corpus   {spec}, Python's own source, as --corpus is not given")
    if spec is None:
        raise InputError(
            "corpus",
            None,
            "backcopy, stdlib, PATH, tokens:DIR",
            f"not given, and {chosen.path} does not say what it was trained on",
        )
    tokenizer = chosen.model.tokenizer
    if tokenizer is None and not (spec == "backcopy" or spec.startswith("tokens:")):
        raise InputError(
            "model",
            chosen.path,
            "one of them, or --corpus=tokens:DIR",
            "no tokenizer.json, or vocab.json and merges.txt, beside it",
        )
    with reading(console, spec) as progress:
        corpus = load_corpus(
            spec, tokenizer or "bytes", chosen.bos, progress=progress, token_dtype=token_dtype
        )
    return corpus, spec


def windows(spec: str, tokenizer: Tokenizer | None, longest: int | None) -> Int[np.ndarray, "B S"]:
    """A whole text in windows that do not overlap, as perplexities of WikiText-2 are published.

    The text is encoded at once, with one BOS in front where the tokenizer adds it, and cut into
    windows of 2,048 tokens or of those that the model reads; what is left is dropped. In a window
    of S tokens S - 1 are predicted (Frantar et al. 2023, arXiv:2210.17323, and those after it).

    Args:
      spec: PATH of the text, which no `<|endoftext|>` parts.
      tokenizer: the model's.
      longest: tokens that the model reads; None: any number.

    Raises:
      InputError: no tokenizer, no such text, several, or less of it than a window.
    """
    if tokenizer is None or spec == "backcopy" or spec.startswith("tokens:"):
        raise InputError("corpus", spec, "PATH of a text, and a model with a tokenizer")
    texts = list(itertools.islice(documents(spec), 2))
    if len(texts) > 1:
        raise InputError(
            "corpus",
            spec,
            "PATH of one text, all in one piece",
            "several texts, or parts between <|endoftext|>",
        )
    ids = tokenizer.encode(texts[0])
    if tokenizer.adds_bos and tokenizer.bos is not None:
        ids = np.concatenate([[tokenizer.bos], ids])
    size = min(WINDOW, longest or WINDOW)
    if len(ids) < size:
        raise InputError("corpus", spec, f"text of at least {size} tokens", f"{len(ids)} tokens")
    return ids[: len(ids) // size * size].reshape(-1, size).astype(np.int32)


def length_of(given: int | None, config: ModelConfig, usual: int = TOKENS) -> int:
    """T: what --seq_len says, or the usual, or what the model can read if that is less.

    Raises:
      InputError: more than learned positions allow.
    """
    if given is not None and config.longest is not None and given > config.longest:
        most = config.longest
        raise InputError("seq_len", given, f"at most {most}", f"learned positions end at {most}")
    return given or min(usual, config.longest or usual)


@dataclass
class Texts:
    """The text of each model, read once for all that read it as the same tokens."""

    corpus: str | None  # None: what the model was trained on
    calibration: int  # sequences of the training part
    sequences: int  # of the validation part
    seq_len: int | None  # T; None: 64, or the learned positions if fewer
    console: Console
    token_dtype: str | None = None  # of tokens:DIR
    protocol: str = SEQUENCES
    calibrate_on: str | None = None  # another corpus, of whose training part calibration text is
    _read: dict[tuple[Any, ...], Text] = field(default_factory=dict)

    def of(self, chosen: Chosen) -> Text:
        """The text for a model.

        Raises:
          InputError: no corpus, one that is too short, or one whose parts have text in common.
        """
        known, config = chosen.model.tokenizer, chosen.model.config
        spec = self.corpus or chosen.corpus or PUBLISHED
        read = (spec, known and known.fingerprint, chosen.bos, config.longest)
        if read not in self._read:
            self._read[read] = self._open(chosen, spec)
        text = self._read[read]
        _within(config.vocab, spec, text.evaluation)
        _within(config.vocab, self.calibrate_on or spec, text.calibration)
        return text

    def _open(self, chosen: Chosen, spec: str) -> Text:
        model = chosen.model
        if self.protocol == WIKITEXT2:
            evaluation = windows(spec, model.tokenizer, model.config.longest)
            length = evaluation.shape[1] - 1
        else:
            corpus, _ = read_corpus(self.corpus, chosen, self.console, self.token_dtype)
            length = length_of(self.seq_len, model.config)
            evaluation = corpus.distinct("val", self.sequences, length)
        if self.calibrate_on is not None:
            corpus, _ = read_corpus(self.calibrate_on, chosen, self.console, self.token_dtype)
        elif self.protocol == WIKITEXT2:
            return Text(None, evaluation[:0], evaluation)
        candidates = corpus.batch("train", 0, 0, 2 * self.calibration, length)
        return Text(corpus, disjoint_rows(candidates, evaluation, self.calibration), evaluation)


def _within(vocab: int, spec: str, tokens: Int[np.ndarray, "B S"]) -> None:
    """Refuse ids that the model has no embedding of.

    Raises:
      InputError: naming one.
    """
    top = int(tokens.max(initial=0))
    if top >= vocab:
        found = f"token id {top}, and the model's vocabulary has {vocab}"
        raise InputError("corpus", spec, "text in the model's own tokenizer", found)
