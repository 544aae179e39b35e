"""What a cell is made of, as a word: other text or weights under the same path give another."""

import hashlib

import jax
import numpy as np

from sysout_jax.model.decoder import Params

from .model_selection import Chosen

LOOKED_AT = 4096  # numbers of a tensor at most, evenly spread over it
DIGITS = 16


def of(chosen: Chosen, *rows: np.ndarray) -> str:
    """A word for a model and the token ids that it is looked at with."""
    return f"{of_text(*rows)}-{of_weights(chosen.model.params)}"


def of_text(*rows: np.ndarray) -> str:
    """The start of the SHA-256 of arrays of token ids."""
    digest = hashlib.sha256()
    for each in rows:
        digest.update(np.ascontiguousarray(each, np.int32).tobytes())
    return digest.hexdigest()[:DIGITS]


def of_weights(params: Params) -> str:
    """The start of the SHA-256 of every tensor's shape and of some of its numbers."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        some = np.asarray(leaf.reshape(-1)[:: max(1, leaf.size // LOOKED_AT)])
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        digest.update(some.tobytes())
    return digest.hexdigest()[:DIGITS]
