"""Compression as a notebook asks for it: a model and the name of a method in, a smaller one out."""

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from sysout_jax.analysis.compress import schemes
from sysout_jax.analysis.compress.compression import Compressor
from sysout_jax.model.model import Model
from sysout_jax.model.stream import check_in_memory
from sysout_jax.model.taps import Edit
from sysout_jax.running import Tokens, ids_of


class Compression(NamedTuple):
    """A model with changed weights, and the edits that round the inputs of its products: for
    `apply` and `losses`. Rounding is simulated, in arrays of the model's own dtype."""

    model: Model
    edits: Mapping[str, Edit]


def compress(model: Model, method: str, tokens: Tokens, bos: str = "auto") -> Compression:
    """A model quantised or pruned, without training.

    Args:
      model: as `load` or a training run returned it, or `convert`.
      method: as `experiments.compress` names it: w8a8-tensor, gptq-w4, w4a4, kv4, wanda-0.5,
        magnitude-2:4.
      tokens: to calibrate on, as for `apply`, two or more in a sequence.
      bos: of text, as for `encode`.

    Returns:
      The model, and its edits; none where only weights change.

    Raises:
      InputError: as `apply`, an unknown method, one that the model cannot have, sequences of one
        token, or a model that is read layer by layer.
    """
    how = schemes.scheme(method)
    rows = np.asarray(ids_of(model, tokens, bos, least=2))
    check_in_memory(model.params)
    found = Compressor(model.config, model.params, rows).compress(how)
    return Compression(replace(model, params=found.params), found.edits)
