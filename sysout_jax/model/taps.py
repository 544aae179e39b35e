"""Taps: the named places of the decoder that can be read, reduced and edited while it runs.

A tap is a name and a reducer. The reducer sees the value of ONE sequence, runs inside jit, and
only what it returns leaves the device; with None as the reducer the value itself comes back. An
edit is a name and a function that replaces the value, which is how interventions are done.
Axes are those of one sequence: T, S positions, D width, N heads, K KV heads, H head dim, F MLP
width.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
from jaxtyping import Array

from sysout_jax.errors import InputError

Reducer = Callable[[Array], Any]
Edit = Callable[[Array, Array], Array]  # (value of the batch [B, ...], layer index []) -> value

TAPS: Mapping[str, str] = MappingProxyType(
    {
        "block_in": "T D, the residual stream that enters the block",
        "attn_norm": "T D, the attention input after its norm",
        "query": "T N H, after norm and rotary positions",
        "key": "T K H, after norm and rotary positions",
        "value": "T K H",
        "attn_logits": "N T S, scaled, capped and with ALiBi, before mask and normaliser",
        "attn_weights": "N T S, over the real keys",
        "attn_extra": "N T, mass on extra keys",
        "attn_gate": "the gate of variants that have one",
        "attn_mix": "T N H, what the variant returns, before the output projection",
        "attn_out": "T D, what attention adds to the residual stream",
        "mlp_norm": "T D, the MLP input after its norm",
        "gate_out": "T F, of gated MLPs; of experts the chosen ones' side by side, best first",
        "up_out": "T F, of experts likewise",
        "act_out": "T F, after the activation function",
        "down_in": "T F",
        "down_out": "T D, what the MLP adds to the residual stream",
        "block_out": "T D, the residual stream that leaves the block",
        "final_norm": "T D, the input of the output head; once, not per layer",
    }
)


class Probe:
    """What to record and what to edit in one call of the decoder.

    Raises:
      InputError: a name is not a tap.
    """

    def __init__(
        self, taps: Mapping[str, Reducer | None] | None, edits: Mapping[str, Edit] | None
    ) -> None:
        self.taps = dict(taps or {})
        self.edits = dict(edits or {})
        self._reached: set[str] = set()  # while the decoder is traced
        for name in (*self.taps, *self.edits):
            if name not in TAPS:
                raise InputError(f"tap {name!r}: unknown; accepted: {', '.join(TAPS)}")

    def at(self, layer: Array, recorded: dict[str, Any]) -> Callable[[str, Array], Array]:
        """The tap function of one layer: edits a value, records it, and passes it on."""

        def tap(name: str, value: Array) -> Array:
            self._reached.add(name)
            if name in self.edits:
                value = self.edits[name](value, layer)
            if name in self.taps:
                reducer = self.taps[name]
                recorded[name] = value if reducer is None else jax.vmap(reducer)(value)
            return value

        return tap

    def check_reached(self) -> None:
        """Refuse a run in which a tap or an edit names what this architecture does not have."""
        missing = {*self.taps, *self.edits} - self._reached
        if missing:
            raise InputError(
                f"tap {', '.join(sorted(missing))}: this architecture has none; "
                f"accepted: {', '.join(name for name in TAPS if name in self._reached)}"
            )
