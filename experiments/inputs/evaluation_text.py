"""Text to learn from and text to judge by, for the models of an experiment."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from rich.console import Console

from sysout_jax.analysis.compress.calibration import apart
from sysout_jax.data import load_corpus
from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.training.loop import Corpus

from ..cli.progress import reading
from .model_selection import Chosen

TOKENS = 64  # of a sequence, if nothing is said
PUBLISHED = "stdlib"  # what published models are measured on unless --corpus says


class Text(NamedTuple):
    """A corpus, and [B, T + 1] rows of it: to calibrate on, and to evaluate on."""

    corpus: Corpus
    calibration: np.ndarray
    evaluation: np.ndarray


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


def length_of(given: int | None, config: ModelConfig) -> int:
    """T: what --seq_len says, or `TOKENS`, or what the model can read if that is less.

    Raises:
      InputError: more than learned positions allow.
    """
    if given is not None and config.longest is not None and given > config.longest:
        most = config.longest
        raise InputError("seq_len", given, f"at most {most}", f"learned positions end at {most}")
    return given or min(TOKENS, config.longest or TOKENS)


@dataclass
class Texts:
    """The text of each model, every corpus read once."""

    corpus: str | None  # None: what the model was trained on
    calibration: int  # sequences of the training part
    sequences: int  # of the validation part
    seq_len: int | None  # T; None: 64, or the learned positions if fewer
    console: Console
    token_dtype: str | None = None  # of tokens:DIR
    _read: dict[str, Text] = field(default_factory=dict)

    def of(self, chosen: Chosen) -> Text:
        """The text for a model.

        Raises:
          InputError: no corpus, one that is too short, or one whose parts have text in common.
        """
        spec = self.corpus or chosen.corpus or ""
        if spec not in self._read:
            self._read[spec] = self._open(chosen)
        return self._read[spec]

    def _open(self, chosen: Chosen) -> Text:
        model = chosen.model
        corpus, spec = read_corpus(self.corpus, chosen, self.console, self.token_dtype)
        length = length_of(self.seq_len, model.config)
        evaluation = corpus.distinct("val", self.sequences, length)
        candidates = corpus.batch("train", 0, 0, 2 * self.calibration, length)
        top, vocab = max(evaluation.max(), candidates.max()), model.config.vocab
        if top >= vocab:
            raise InputError(
                "corpus",
                spec,
                "text in the model's own tokenizer",
                f"token id {top}, and the model's vocabulary has {vocab}",
            )
        return Text(corpus, apart(candidates, evaluation, self.calibration), evaluation)
