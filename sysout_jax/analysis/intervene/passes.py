"""Passes under edits, begun at the layer that an edit is in: what comes before it is the same."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sysout_jax.analysis.locate.scan import over_batches
from sysout_jax.model.compiling import jit_quickly
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, final_norm
from sysout_jax.model.loss import token_losses
from sysout_jax.model.stream import entering, through
from sysout_jax.model.taps import Edit, Reducer

Edits = Mapping[str, Edit]


@dataclass(frozen=True)
class Passes:
    """Sequences of a model, and the states from which a pass over them can begin."""

    config: ModelConfig
    params: Params
    rows: Int[np.ndarray, "B S"]  # S = T + 1: inputs and next tokens
    batch: int  # sequences that are run together
    before: Float[np.ndarray, "B"]  # the loss of each sequence as the model is, nats per token
    states: Mapping[int, np.ndarray]  # layer -> [B, T, D], what enters it
    taps: Mapping[str, Any]  # what was recorded in the pass without edits

    def losses(
        self, edits: Edits, first: int = 0, params: Params | None = None
    ) -> Float[np.ndarray, "B"]:
        """The mean loss of each sequence's next tokens under edits, in nats per token.

        Args:
          edits: name -> edit, of sequences in the order of the rows.
          first: a layer before which neither edits nor parameters change anything.
          params: in the place of the model's own.
        """
        return self.watched(edits, {}, first, params)[0]

    def watched(
        self,
        edits: Edits,
        taps: Mapping[str, Reducer],
        first: int = 0,
        params: Params | None = None,
    ) -> tuple[Float[np.ndarray, "B"], dict[str, Any]]:
        """Losses as above, and what taps record: [L - begin, B, ...], `begin` being the last layer
        up to `first` whose state is known."""
        begin = max(layer for layer in self.states if layer <= first)

        def run(params: Params, rows: Array, x: Array, index: Array) -> dict[str, Any]:
            some = {name: edit.of(index) for name, edit in edits.items()}
            x, found = through(self.config, params, x, range(begin, self.config.layers), taps, some)
            return {"loss": _losses(self.config, _outer(params), x, rows[:, 1:])[None], **found}

        found = over_batches(
            run, params or self.params, self.rows, self.batch, None, self.states[begin],
            np.arange(len(self.rows)),
        )  # fmt: skip
        return found.pop("loss")[0], found

    def within(self, layer: int, taps: Mapping[str, Reducer], edits: Edits) -> dict[str, Any]:
        """What taps record in one layer under edits of it: [B, ...]."""
        begin = max(each for each in self.states if each <= layer)

        def run(params: Params, rows: Array, x: Array, index: Array) -> dict[str, Any]:
            some = {name: edit.of(index) for name, edit in edits.items()}
            x, _ = through(self.config, params, x, range(begin, layer))
            return through(self.config, params, x, range(layer, layer + 1), taps, some)[1]

        others = (self.states[begin], np.arange(len(self.rows)))
        found = over_batches(run, self.params, self.rows, self.batch, None, *others)
        return {name: value[0] for name, value in found.items()}


def passes(
    config: ModelConfig,
    params: Params,
    rows: Int[np.ndarray, "B S"],
    layers: Sequence[int],
    batch: int,
    taps: Mapping[str, Reducer],
    edits: Edits,
) -> Passes:
    """Run the model as it is, and keep the states that enter some layers.

    Args:
      config: the architecture.
      params: its parameters.
      rows: [B, S], S = T + 1: inputs and next tokens.
      layers: whose states are kept, beside those that enter the first layer.
      batch: sequences that are run together.
      taps: recorded in this pass: name -> reducer.
      edits: that change nothing, with the names of those to come: the same programs are used again.
    """
    begins = sorted({0, *layers})
    ends = [*begins[1:], config.layers]

    def run(params: Params, rows: Array, index: Array) -> dict[str, Any]:
        some = {name: edit.of(index) for name, edit in edits.items()}
        x, states, found = entering(config, params, rows[:, :-1]), [], []
        for begin, end in zip(begins, ends, strict=True):
            states.append(x)
            x, records = through(config, params, x, range(begin, end), taps, some)
            found.append(records)
        loss = _losses(config, _outer(params), x, rows[:, 1:])
        return {
            "loss": loss[None],
            "states": jnp.stack(states),
            "taps": jax.tree.map(lambda *each: np.concatenate(each), *found),
        }

    found = over_batches(run, params, rows, batch, None, np.arange(len(rows)))
    states = dict(zip(begins, found["states"], strict=True))
    return Passes(config, params, rows, batch, found["loss"][0], states, found["taps"])


def _outer(params: Params) -> Params:
    """The parameters outside of the blocks."""
    return {name: value for name, value in params.items() if not name.startswith("block")}


@jit_quickly(0)
def _losses(
    config: ModelConfig, params: Params, x: Float[Array, "B T D"], targets: Int[Array, "B T"]
) -> Float[Array, "B"]:
    states = final_norm(config, params, x)
    return jnp.mean(token_losses(config, params, states, targets), axis=1)
