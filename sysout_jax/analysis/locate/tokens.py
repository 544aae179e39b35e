"""Classes of tokens: where outliers are said to sit, as data in one table."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np

# Sun et al. 2024 (arXiv:2402.17762), section 2, find massive activations at the starting token, at
# the first "." or line break, and at words with weak semantics such as "and", "from" and "of"; An
# et al. 2025 (arXiv:2502.06415) call them initial tokens, strong delimiters and weak-semantic
# tokens. Which words and marks those are is this table's choice.
_WEAK_WORDS = """
a an the and or nor but so yet if than that this these those which who whom whose what as at by for
from in into of off on onto out over per to up upon via with within without about after before
between through during under is am are was were be been being do does did has have had will would
can could shall should may might must not no i you he she it we they me him her us them my your his
its our their there here then , ; : ( ) [ ] - -- " '
"""
CLASSES: Mapping[str, Callable[[str], bool]] = MappingProxyType(
    {
        "initial": lambda text: False,  # a matter of position: the first token, whatever it is
        "strong delimiter": lambda text: _is_delimiter(text),
        "weak-semantic": lambda text: text.strip().lower() in _WEAK,
        "other": lambda text: True,
    }
)
NAMES: tuple[str, ...] = tuple(CLASSES)
_WEAK: frozenset[str] = frozenset(_WEAK_WORDS.split())
_ENDS = frozenset(".!?\n")


def _is_delimiter(text: str) -> bool:
    """A full stop, an exclamation or question mark, a line break, or several of them."""
    return bool(set(text) & _ENDS) and set(text) <= _ENDS | {" ", "\r"}


def token_class(text: str) -> int:
    """The class of a token that is not the first, as an index into `NAMES`."""
    return next(i for i, belongs in enumerate(CLASSES.values()) if belongs(text))


def token_classes(tokens: np.ndarray, text: Callable[[list[int]], str] | None) -> np.ndarray:
    """The class of every token.

    Args:
      tokens: int [B, T].
      text: what a list of ids decodes to, e.g. `tokenizer.decode`; None where ids stand for no
        text, in which case every token but the first is "other".

    Returns:
      int [B, T], indices into `NAMES`.
    """
    tokens = np.asarray(tokens)
    ids, inverse = np.unique(tokens, return_inverse=True)
    of_id = [NAMES.index("other") if text is None else token_class(text([int(i)])) for i in ids]
    classes = np.array(of_id)[inverse].reshape(tokens.shape)
    classes[:, 0] = NAMES.index("initial")
    return classes
