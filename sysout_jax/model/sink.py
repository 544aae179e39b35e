"""An attention sink that is parameters: what a converted model has in place of a massive state.

Axes: B batch, T query position, S key position, K KV heads, H head dim, C keys of no token.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from sysout_jax.errors import InputError

Tap = Callable[[str, Array], Any]
WITHOUT: Mapping[str, str] = MappingProxyType(  # variants that can have no key of no token
    {
        "value_gate": "a key of no token opens no gate",
        **dict.fromkeys(("sigmoid", "clipped_softmax"), "its weights depend on the text's length"),
    }
)
ONE: Mapping[str, str] = MappingProxyType(  # variants that can have one
    {"forgetting": "keys of no token do not forget one another"}
)


@dataclass(frozen=True)
class ExplicitSink:
    """Keys and values of no token, which stand at the first positions of every text.

    Layers own them as `sink_key` and `sink_value` [C, K, H], keys without their rotation. They
    stand before the text, which then begins at position C; or one stands in the place of token 0,
    which keeps its position, and which no query sees any more. None stands there where the variant
    of attention plays its part: then token 0 is seen by itself alone.
    """

    keys: int = 1  # C
    replaces_first: bool = False  # the key stands at position 0 in place of the first token's
    layers: tuple[int, ...] | None = None  # (from 0) whose queries see the keys; None: all
    silent: tuple[int, ...] = ()  # layers whose MLP leaves the first token as it is
    bounded: bool = False  # down_in is within -b..b, b the parameter `down_bound` of its layer

    def check(self, layers: int, variant: str) -> None:
        """Refuse what a decoder of so many layers and that variant cannot have.

        Raises:
          InputError: no key, layers that are not there, or fields that contradict each other.
        """
        if self.keys < 1 - self.replaces_first or (self.replaces_first and self.keys > 1):
            first = self.replaces_first
            accepted = "1 in the first token's place, or none" if first else "at least 1"
            raise InputError("sink", f"{self.keys} keys", accepted)
        for name, found in (("layers", self.layers or ()), ("silent", self.silent)):
            if list(found) != sorted({layer for layer in found if 0 <= layer < layers}):
                accepted = f"{name} from 0 to {layers - 1} in order"
                raise InputError("sink", f"{name} {','.join(map(str, found))}", accepted)
        if not self.replaces_first and (self.layers is not None or self.silent):
            why = "keys before the text are seen in all layers, and the first token writes"
            raise InputError("sink", repr(self), "replaces_first=True, or all layers", why)
        for part in variant.split("+"):  # of a composition
            if part in WITHOUT:
                accepted = f"one without {', '.join(WITHOUT)}"
                raise InputError("variant", variant, accepted, WITHOUT[part])
            if part in ONE and self.keys > 1:
                raise InputError("variant", variant, "with one key of no token", ONE[part])

    def seen(
        self, mask: Bool[Array, "T S"], queries: Int[Array, "T"], layer: Int[Array, ""]
    ) -> Bool[Array, "T S"]:
        """Who sees whom.

        Args:
          mask: which keys each query may see by their positions, those of no token first.
          queries: [T] places in the text; below 0 of padding, which sees none of these keys.
          layer: its number.
        """
        here = _among(self.layers, layer) if self.layers is not None else jnp.asarray(True)
        key = jnp.arange(mask.shape[1])[None, :]
        mask = mask & ((key >= self.keys) | (here & (queries >= 0)[:, None]))
        if self.replaces_first:
            others = jnp.full(queries.shape, True) if self.keys else queries > 0
            mask = mask & ~(here & (key == self.keys) & others[:, None])
        return mask

    def silenced(self, layer: Int[Array, ""], tap: Tap) -> Tap:
        """The tap of a layer's MLP, with nothing at the first token of a silent layer.

        What biases add behind `down_in` is nothing too. Edits and records see it so.
        """
        if not self.silent:
            return tap
        here = _among(self.silent, layer)

        def silence(name: str, value: Array) -> Array:
            if name in ("down_in", "down_out"):
                first = jnp.broadcast_to((jnp.arange(value.shape[1]) == 0)[:, None], value.shape)
                value = jnp.where(here & first, 0.0, value)
            return tap(name, value)

        return silence


def within(bound: Array, tap: Tap) -> Tap:
    """The tap of an MLP, with `down_in` within -bound..bound before it is read or edited."""

    def limit(name: str, value: Array) -> Array:
        if name == "down_in":
            value = jnp.clip(value, -bound.astype(value.dtype), bound.astype(value.dtype))
        return tap(name, value)

    return limit


def _among(layers: tuple[int, ...], layer: Int[Array, ""]) -> Bool[Array, ""]:
    return jnp.any(jnp.asarray(layers, layer.dtype) == layer)
