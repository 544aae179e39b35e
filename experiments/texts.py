"""Text to learn from and text to judge by, for the models of an experiment."""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from rich.console import Console

from experiments.chosen import Chosen
from experiments.report import reading
from sysout_jax.analysis.calibration import apart
from sysout_jax.data import load_corpus
from sysout_jax.errors import InputError
from sysout_jax.training.loop import Corpus

TOKENS = 64  # of a sequence, if nothing is said


class Text(NamedTuple):
    """A corpus, and [B, T + 1] rows of it: to calibrate on, and to evaluate on."""

    corpus: Corpus
    calibration: np.ndarray
    evaluation: np.ndarray


@dataclass
class Texts:
    """The text of each model, every corpus read once."""

    corpus: str | None  # None: what the model was trained on
    calibration: int  # sequences of the training part
    sequences: int  # of the validation part
    seq_len: int | None  # T; None: 64, or the learned positions if fewer
    console: Console
    _read: dict[str, Text] = field(default_factory=dict)

    def of(self, chosen: Chosen) -> Text:
        """The text for a model.

        Raises:
          InputError: no corpus, one that is too short, or one whose parts have text in common.
        """
        spec = self.corpus or chosen.corpus
        if spec is None:
            raise InputError(
                f"--corpus: not given, and {chosen.path} does not say what it was trained on; "
                "accepted: backcopy, stdlib, PATH, tokens:DIR"
            )
        if spec not in self._read:
            self._read[spec] = self._open(spec, chosen)
        return self._read[spec]

    def _open(self, spec: str, chosen: Chosen) -> Text:
        model = chosen.model
        with reading(self.console, spec) as progress:
            tokenizer = model.tokenizer or "bytes"
            corpus: Corpus = load_corpus(spec, tokenizer, chosen.bos, progress=progress)
        limit = model.config.context if model.config.position == "learned" else TOKENS
        length = self.seq_len or min(TOKENS, limit)
        evaluation = corpus.batch("val", 0, 0, self.sequences, length)
        candidates = corpus.batch("train", 0, 0, 2 * self.calibration, length)
        top, vocab = max(evaluation.max(), candidates.max()), model.config.vocab
        if top >= vocab:
            raise InputError(
                f"--corpus={spec}: token id {top}, and the model's vocabulary has {vocab}; "
                "accepted: text in the model's own tokenizer"
            )
        return Text(corpus, apart(candidates, evaluation, self.calibration), evaluation)
