"""A model as users hold it: config, parameters, tokenizer."""

from math import prod
from typing import Any

import jax
import numpy as np
from flax import struct

from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params
from sysout_jax.model.origin import Origin
from sysout_jax.showing import facts


@struct.dataclass
class Model:
    """A decoder with its parameters: a pytree whose leaves are the parameters."""

    config: ModelConfig = struct.field(pytree_node=False)
    params: Params
    tokenizer: Any = struct.field(pytree_node=False, default=None)
    origin: Origin | None = struct.field(pytree_node=False, default=None)

    def __repr__(self) -> str:
        return f"Model({'; '.join(f'{name} {value}' for name, value in self._facts())})"

    def _repr_html_(self) -> str:
        return facts("Model", self._facts())

    def _facts(self) -> list[tuple[str, str]]:
        c, leaves = self.config, jax.tree.leaves(self.params)
        sizes = [prod(getattr(leaf, "shape", ())) for leaf in leaves]
        kinds = sorted({str(getattr(leaf, "dtype", type(leaf).__name__)) for leaf in leaves})
        shape = f"{c.layers} layer{'s' * (c.layers != 1)}, width {c.width}, {c.heads} heads"
        said = self.tokenizer and f"{type(self.tokenizer).__name__} of {self.tokenizer.vocab}"
        weights = [] if self.origin is None else [("weights", self.origin.weights)]
        return [
            *weights,
            ("attention", c.variant),
            ("shape", shape),
            ("parameters", f"{sum(sizes):,} ({', '.join(kinds)})"),
            ("vocabulary", f"{c.vocab:,}"),
            ("tokenizer", str(said)),
        ]


def check_model(model: object) -> None:
    """Refuse what is no model, or one whose parameters are not as its config has them.

    Raises:
      InputError: it is none, or `scan_layers` was changed and the parameters were not.
    """
    if not isinstance(model, Model):
        raise InputError("model", repr(model)[:60], "what load returns, or the model of a run")
    scanned = model.config.execution.scan_layers
    if isinstance(model.params, dict) and ("blocks" in model.params) != scanned:
        why = "the layers of its parameters are " + ("one by one" if scanned else "stacked")
        raise InputError("scan_layers", scanned, f"{not scanned} for this model", why)


def token_ids(name: str, ids: Any, axes: str, vocab: int) -> Any:
    """Ids as an int32 array that a model can read: what it would do with others has no meaning.

    Args:
      name: of the argument.
      ids: an array or nested sequences; of a tracer, whose values are not known, and of an array
        of which other hosts hold a part, only shape and dtype are looked at.
      axes: one letter for each axis of `ids`.
      vocab: V of the model.

    Raises:
      InputError: no integers, other axes, nothing at all, or an id outside of 0 to V - 1.
    """
    accepted = f"integer ids [{', '.join(axes.split())}], at least one"
    if not isinstance(ids, jax.Array):
        try:
            ids = np.asarray(ids)
        except ValueError as error:
            raise InputError(name, None, accepted, "rows of different lengths") from error
    if ids.ndim != len(axes.split()) or ids.dtype.kind not in "iu" or not ids.size:
        raise InputError(name, None, accepted, f"{ids.dtype} of shape {list(ids.shape)}")
    if isinstance(ids, jax.core.Tracer) or not getattr(ids, "is_fully_addressable", True):
        return ids.astype(np.int32)
    known = np.asarray(ids)
    for found in (known.min(), known.max()):
        if not 0 <= found < vocab:
            accepted = f"0 to {vocab - 1}, the ids of the model's own tokenizer"
            raise InputError(name, None, accepted, f"token id {found}")
    return ids.astype(np.int32)
