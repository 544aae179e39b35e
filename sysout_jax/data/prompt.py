"""Whether text starts with a BOS token, decided in one place: outliers can depend on it."""

from __future__ import annotations

import numpy as np

from sysout_jax.data.tokenizer import Tokenizer
from sysout_jax.errors import InputError

BOS = ("auto", "yes", "no")
PROMPT = "Summer is warm. Winter is cold.\n"  # of Sun et al. 2024 and An et al. 2025


def starts_with_bos(tokenizer: Tokenizer | None, bos: str = "auto") -> bool:
    """Whether prompts and rows of a corpus start with BOS.

    Args:
      tokenizer: of the model; without one, rows are those of a task, which do unless "no" is said.
      bos: "yes", "no", or "auto": as the tokenizer of a published model does, and as a model that
        was trained here was trained.

    Raises:
      InputError: another value of `bos`, or "yes" where there is no such token.
    """
    if bos not in BOS:
        raise InputError("bos", repr(bos), ", ".join(BOS), "unknown")
    if bos == "auto":
        return tokenizer is None or tokenizer.adds_bos
    if bos == "yes" and tokenizer is not None and tokenizer.bos is None:
        raise InputError("bos", "yes", "auto, no", "the tokenizer has no BOS token")
    return bos == "yes"


def encode_prompt(
    tokenizer: Tokenizer, text: str, bos: str = "auto", name: str = "prompt"
) -> np.ndarray:
    """The ids of a prompt, with or without BOS in front.

    Args:
      tokenizer: of the model.
      text: the prompt.
      bos: as `starts_with_bos`.
      name: of the argument that it is.

    Returns:
      [T] int32.

    Raises:
      InputError: another value of `bos`, or no token at all.
    """
    adds = starts_with_bos(tokenizer, bos)
    ids = tokenizer.encode(text)
    ids = np.concatenate([np.array([tokenizer.bos], np.int32), ids]) if adds else ids
    if not ids.size:
        raise InputError(name, "''", "some text, or --bos=yes", "empty and without BOS")
    return ids
