"""Compression as a notebook asks for it: a model and the name of a method in, a smaller one out."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from sysout_jax.analysis.compress import schemes
from sysout_jax.analysis.compress.calibration import PRODUCTS
from sysout_jax.analysis.compress.compression import ALPHA, Compressor, check_alpha, present
from sysout_jax.errors import InputError
from sysout_jax.model.model import Model, check_model
from sysout_jax.model.stream import check_in_memory
from sysout_jax.model.taps import Edit
from sysout_jax.running import Tokens, ids_of


class Compression(NamedTuple):
    """A model with changed weights, and the edits that round the inputs of its products: for
    `apply` and `losses`. Rounding is simulated, in arrays of the model's own dtype."""

    model: Model
    edits: Mapping[str, Edit]


def compress(
    model: Model,
    method: str,
    tokens: Tokens | None = None,
    bos: str = "auto",
    sites: Sequence[str] = tuple(PRODUCTS),
    alpha: float = ALPHA,
) -> Compression:
    """A model quantised or pruned, without training.

    Args:
      model: as `load` or a training run returned it, or `convert`.
      method: as `experiments.compress` names it: w8a8-tensor, gptq-w4, w4a4, kv4, wanda-0.5,
        magnitude-2:4.
      tokens: to calibrate on, as for `apply`, two or more in a sequence; None for a method that
        learns from none.
      bos: of text, as for `encode`.
      sites: inputs of products to compress; attn_norm and attn_mix leave out a mixture's experts.
      alpha: of smoothing, 0 leaves weights even, 1 activations.

    Returns:
      The model, and its edits; none where only weights change.

    Raises:
      InputError: as `apply`, an unknown method, one that the model cannot have, no tokens where it
        learns from them, sequences of one token, unknown sites, an alpha that is not from 0 to 1,
        or a model that is read layer by layer.
    """
    try:
        how = schemes.scheme(method)
    except InputError as error:  # which names the flag, of several
        raise InputError("method", error.found, error.accepted, error.why) from None
    check_model(model)
    check_in_memory(model.params)
    check_alpha(alpha)
    if tokens is None and how.calibrated:
        raise InputError("tokens", None, f"text or ids, which {method} learns from")
    rows = (
        np.zeros((0, 2), np.int32) if tokens is None
        else np.asarray(ids_of(model, tokens, bos, least=2))
    )  # fmt: skip
    made = Compressor(model.config, model.params, rows, present(sites), alpha)
    found = made.compress(how)
    return Compression(replace(model, params=found.params), found.edits)
