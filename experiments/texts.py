"""Text to learn from and text to judge by, for the models of an experiment."""

from dataclasses import dataclass, field

import numpy as np
from rich.console import Console

from experiments.chosen import Chosen
from experiments.report import reading
from sysout_jax.analysis.calibration import apart
from sysout_jax.data import load_corpus
from sysout_jax.errors import InputError
from sysout_jax.training.loop import Corpus

TOKENS = 64  # of a sequence, if nothing is said


@dataclass
class Texts:
    """Calibration and evaluation rows for each corpus, read once."""

    corpus: str | None  # None: what the model was trained on
    calibration: int  # sequences of the training part
    sequences: int  # of the validation part
    seq_len: int | None  # T; None: 64, or the learned positions if fewer
    console: Console
    _read: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def of(self, chosen: Chosen) -> tuple[np.ndarray, np.ndarray]:
        """[B, T + 1] rows to calibrate on, and to evaluate on.

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
            self._read[spec] = self._rows(spec, chosen)
        return self._read[spec]

    def _rows(self, spec: str, chosen: Chosen) -> tuple[np.ndarray, np.ndarray]:
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
        return apart(candidates, evaluation, self.calibration), evaluation
