"""Taps: the named places of the decoder that can be read, reduced and edited while it runs.

A tap is a name and a reducer. The reducer sees the value of ONE sequence, runs inside jit, and
only what it returns leaves the device; with None as the reducer the value itself comes back. An
edit is a name and a function that replaces the value, which is how interventions are done. Names
joined by "+", in the decoder's order, go to one reducer as its arguments: "value+attn_weights"; an
edit of joined names replaces the last of them.
Where `ModelConfig.query_block` cuts attention into blocks of queries, its maps (attn_logits and
attn_weights) never exist whole: reducers of them are `core.streaming.Blockwise`, and edits see one
block. Axes are those of one sequence: T, S positions, D width, N heads, K KV heads, H head dim,
F MLP width (of a mixture J F), J experts per token.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, cast

import jax
from jaxtyping import Array, Int

from sysout_jax.core.streaming import Blockwise, Partial
from sysout_jax.errors import InputError

Reducer = Callable[..., Any]
Edit = Callable[..., Array]  # (values of the batch [B, ...], layer index []) -> the last value

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
        "experts": "T J, of mixtures: the experts that a token goes to, best first",
        "routing": "T J, the weights of those",
        "gate_out": "T F, of gated MLPs; of experts the chosen ones' side by side, best first",
        "up_out": "T F, of experts likewise",
        "act_out": "T F, after the activation function",
        "down_in": "T F",
        "down_out": "T D, what the MLP adds to the residual stream",
        "block_out": "T D, the residual stream that leaves the block",
        "final_norm": "T D, the input of the output head; once, not per layer",
    }
)

WITHIN_ATTENTION = ("attn_logits", "attn_weights", "attn_extra")  # a fused kernel has none of them
PER_QUERY = (*WITHIN_ATTENTION, "attn_gate")  # what attention to a part of the past has parts of


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
        for name in self._asked():
            if name not in TAPS:
                raise InputError(f"tap {name!r}: unknown; accepted: {', '.join(TAPS)}")

    def _asked(self) -> set[str]:
        return {name for key in (*self.taps, *self.edits) for name in key.split("+")}

    def at(self, layer: Array, recorded: dict[str, Any]) -> "LayerTap":
        """The tap function of one layer: edits a value, records it, and passes it on."""
        return LayerTap(self, layer, recorded)

    def asks(self, *names: str) -> bool:
        """Whether a tap or an edit is at one of these names."""
        return not self._asked().isdisjoint(names)

    def edited(self, name: str, seen: Mapping[str, Array], value: Array, layer: Array) -> Array:
        """The value that takes the place of `value`; `seen` are the layer's values before it."""
        self._reached.add(name)
        for key, edit in self.edits.items():
            *before, last = key.split("+")
            if last == name:
                value = edit(*_values(key, before, seen), value, layer)
        return value

    def check_reached(self) -> None:
        """Refuse a run in which a tap or an edit names what this architecture does not have."""
        missing = self._asked() - self._reached
        if missing:
            raise InputError(
                f"tap {', '.join(sorted(missing))}: this architecture has none; "
                f"accepted: {', '.join(name for name in TAPS if name in self._reached)}"
            )


@dataclass(frozen=True)
class LayerTap:
    """The tap function of one layer."""

    probe: Probe
    layer: Array
    recorded: dict[str, Any]
    seen: dict[str, Array] = field(default_factory=dict)

    def __call__(self, name: str, value: Array) -> Array:
        """Edit a value, record it, and pass it on."""
        value = self.probe.edited(name, self.seen, value, self.layer)
        self.seen[name] = value
        for key, reducer, values in self._complete(name, self.seen):
            self.recorded[key] = value if reducer is None else jax.vmap(reducer)(*values)
        return value

    def of_block(self, positions: Int[Array, "t"], partials: dict[str, Partial]) -> Any:
        """The tap function for what has the queries at `positions` only; it fills `partials`."""

        seen = dict(self.seen)

        def tap(name: str, value: Array) -> Array:
            value = seen[name] = self.probe.edited(name, seen, value, self.layer)
            for key, reducer, values in self._complete(name, seen):
                if not isinstance(reducer, Blockwise):
                    raise InputError(
                        f"tap {key!r}: does not exist whole under --query_block; accepted: a "
                        "reducer that is a core.streaming.Blockwise"
                    )
                axes = (*(0 for _ in values), None)
                partials[key] = jax.vmap(reducer.of_block, axes)(*values, positions)
            return value

        return tap

    def finish(self, partials: Mapping[str, Partial]) -> None:
        """Record what all blocks of queries gave together."""
        for key, partial in partials.items():
            reducer = cast(Blockwise, self.probe.taps[key])
            self.recorded[key] = jax.vmap(reducer.finish)(partial)

    def _complete(
        self, name: str, seen: Mapping[str, Array]
    ) -> Iterator[tuple[str, Reducer | None, list[Array]]]:
        """The taps whose last value is called `name`, with all of their values."""
        for key, reducer in self.probe.taps.items():
            *before, last = key.split("+")
            if last == name:
                yield key, reducer, [*_values(key, before, seen), seen[last]]


def _values(key: str, before: Sequence[str], seen: Mapping[str, Array]) -> list[Array]:
    if not set(before) <= set(seen):
        raise InputError(f"tap {key!r}: accepted: names in the decoder's order")
    return [seen[name] for name in before]
