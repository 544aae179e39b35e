"""Taps: the named places of the decoder that can be read, reduced and edited while it runs.

A tap is a name and a reducer. The reducer sees the value of ONE sequence, runs inside jit, and
only what it returns leaves the device; with None as the reducer the value itself comes back. An
edit is a name and a function that replaces the value, which is how interventions are done; it sees
ONE sequence too. Names joined by "+", in the decoder's order, go to one reducer as its arguments:
"value+attn_weights"; an edit of joined names replaces the last of them.
Where `Execution.query_block` cuts attention into blocks of queries, its maps (attn_logits and
attn_weights) never exist whole: reducers of them are `core.streaming.Blockwise`, and edits see one
block. Axes are those of one sequence: T, S positions, D width, N heads, K KV heads, H head dim,
F MLP width (of a mixture J F), J experts per token.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from types import MappingProxyType
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from sysout_jax.core.streaming import Blockwise, Partial
from sysout_jax.errors import InputError, is_integer

Reducer = Callable[..., Any]

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
        "attn_first": "T N H, what attn_mix loses if the first key gets no weight",
        "attn_mix": "T N H, what the variant returns, before the output projection",
        "attn_out": "T D, what attention adds to the residual stream",
        "mlp_norm": "T D, the MLP input after its norm",
        "experts": "T J, of mixtures: the experts that a token goes to, best first",
        "routing": "T J, the weights of those",
        "gate_out": "T F, of gated MLPs; of experts the chosen ones' side by side, best first",
        "up_out": "T F, of experts likewise",
        "act_out": "T F, after the activation function",
        "down_in": "T F",
        "expert_out": "T J D, of mixtures: what the chosen experts return, before their weights",
        "mlp_out": "T D, what the MLP returns, before a norm or a factor of that",
        "down_out": "T D, what the MLP adds to the residual stream",
        "block_out": "T D, the residual stream that leaves the block",
        "final_norm": "T D, the input of the output head; once, not per layer",
    }
)

# A fused kernel has none of them.
WITHIN_ATTENTION = ("attn_logits", "attn_weights", "attn_extra", "attn_first")
PER_QUERY = (*WITHIN_ATTENTION, "attn_gate")  # what attention to a part of the past has parts of


@dataclass(frozen=True)
class Tap:
    """What to record: what a reducer makes of one sequence's value, in some of the layers.

    reducer: None for the value itself.
    layers: whose records are kept, in this order; None for all of them, a number for one.
    """

    reducer: Reducer | None = None
    layers: int | Sequence[int] | None = None

    def __post_init__(self) -> None:
        if self.layers is not None:  # hashable, as what a compiled program is found by
            given = np.atleast_1d(self.layers).tolist()
            if not all(map(is_integer, given)):
                raise InputError("layers", given, "a whole number, or several")
            chosen = tuple(given)
            object.__setattr__(self, "layers", chosen)

    @property
    def chosen(self) -> tuple[int, ...]:
        """The layers; none where all are meant."""
        return () if self.layers is None else cast(tuple[int, ...], self.layers)


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, init=False, eq=False)
class Edit:
    """A function that replaces a value of the decoder, with the arrays it uses.

    The new value is function(value, layer, *arrays): `value` of one sequence as a tap sees it,
    `layer` the index of its layer (L at final_norm), and the arrays as they are given here. A
    compiled program is found by the function and by the shapes of the arrays: other arrays, layers
    or factors run without another compilation, another function object does not.

    function: given the value, or all that joined names name, then the layer and the arrays.
    arrays: trees of arrays, arguments of the compiled program.
    layers: in which the value is replaced; None for all of them, a number or array for some.
    in_axes: as in `jax.vmap`, which axis of the arrays is over sequences, for all of them or for
      each; None for what all sequences share.
    """

    function: Callable[..., Array]
    arrays: tuple[Any, ...]
    layers: Int[Array, "n"] | None
    in_axes: Any

    def __init__(
        self,
        function: Callable[..., Array],
        *arrays: Any,
        layers: int | Sequence[int] | Int[Array | np.ndarray, "..."] | None = None,
        in_axes: Any = None,
    ) -> None:
        chosen = None
        if layers is not None:
            given = layers if isinstance(layers, jax.Array) else np.asarray(layers)
            if given.dtype.kind not in "iu":
                raise InputError("layers", layers, "a whole number, or several")
            chosen = jnp.atleast_1d(jnp.asarray(given, jnp.int32))
        each = in_axes if isinstance(in_axes, tuple) else (in_axes,) * len(arrays)
        if len(each) != len(arrays) or not all(x is None or type(x) is int for x in each):
            accepted = f"{len(arrays)} whole numbers or None, of an array or tree each"
            raise InputError("in_axes", in_axes, accepted)
        self._set(function, jax.tree.map(jnp.asarray, arrays), chosen, each)

    def _set(self, *values: Any) -> None:
        for name, value in zip(("function", "arrays", "layers", "in_axes"), values, strict=True):
            object.__setattr__(self, name, value)

    def tree_flatten(self) -> tuple[Any, Any]:
        """Arrays and layers are dynamic, the function and the axes static."""
        return (self.arrays, self.layers), (self.function, self.in_axes)

    @classmethod
    def tree_unflatten(cls, static: Any, dynamic: Any) -> "Edit":
        """The inverse of `tree_flatten`."""
        made = object.__new__(cls)
        made._set(static[0], *dynamic, static[1])
        return made

    def __call__(self, *given: Array) -> Array:
        """The new value of a batch, from (values with a leading B, layer)."""
        *values, layer = given

        def edited(*values: Array) -> Array:
            axes = (*(0 for _ in values), None, *self.in_axes)
            self._check_rows(len(values[-1]))
            old, new = values[-1], jax.vmap(self.function, axes)(*values, layer, *self.arrays)
            if new.shape != old.shape:
                found = f"a value of shape {list(new.shape[1:])} in place of one of shape"
                raise InputError("edits", None, "the same shape", f"{found} {list(old.shape[1:])}")
            return new.astype(old.dtype)

        if self.layers is None:
            return edited(*values)
        here = jnp.any(self.layers == layer)  # elsewhere nothing is computed
        return jax.lax.cond(here, edited, lambda *values: values[-1], *values)

    def _check_rows(self, count: int) -> None:
        for axis, array in zip(self.in_axes, self.arrays, strict=True):
            for each in [] if axis is None else jax.tree.leaves(array):
                if not -each.ndim <= axis < each.ndim or each.shape[axis] != count:
                    accepted = f"{count} along axis {axis}, as there are sequences"
                    raise InputError("edits", None, accepted, f"an array of shape {each.shape}")

    def of(self, index: Int[Array, "b"]) -> "Edit":
        """The edit of some of the sequences."""

        def rows(axis: int | None, array: Any) -> Any:
            if axis is None:
                return array
            return jax.tree.map(lambda x: jnp.take(x, index, axis=axis), array)

        arrays = tuple(map(rows, self.in_axes, self.arrays))
        return Edit.tree_unflatten((self.function, self.in_axes), (arrays, self.layers))


Edits = Mapping[str, Callable[..., Array]]  # called as `Edit`s are


def check_asked(taps: Any, edits: Any) -> None:
    """Refuse what are no names with something to record, and with an `Edit`.

    Raises:
      InputError: naming it.
    """
    for what, asked in (("taps", taps), ("edits", edits)):
        if not isinstance(asked, Mapping):
            raise InputError(what, None, f"a dict of {what} by name", f"a {type(asked).__name__}")
    for name, tap in taps.items():
        if not (tap is None or isinstance(tap, Tap) or callable(tap)):
            found = f"{name}: a {type(tap).__name__}"
            raise InputError("taps", None, "a reducer, None, or sysout_jax.Tap(...)", found)
    for name, edit in edits.items():
        if not isinstance(edit, Edit):
            found = f"{name}: a {type(edit).__name__}"
            raise InputError("edits", None, "sysout_jax.Edit(function, *arrays, layers=...)", found)


def check_layers(count: int, taps: Mapping[str, Any], edits: Edits) -> None:
    """Refuse layers that a decoder of `count` of them does not have.

    Raises:
      InputError: naming the tap or the edit.
    """
    for name, asked in {**taps, **edits}.items():
        layers = asked.layers if isinstance(asked, Tap | Edit) else None
        if layers is None or isinstance(layers, jax.core.Tracer):
            continue
        found = np.asarray(layers).tolist()
        if name.split("+")[-1] == "final_norm":
            raise InputError("layers", found, f"none for {name}, which is there once")
        wrong = [layer for layer in found if not 0 <= layer < count]
        if wrong or not found or len(set(found)) < len(found):
            raise InputError("layers", found, f"some of 0 to {count - 1} for {name}, none twice")


class Probe:
    """What to record and what to edit in one call of the decoder.

    Raises:
      InputError: a name is not a tap.
    """

    def __init__(
        self, taps: Mapping[str, Reducer | Tap | None] | None, edits: Edits | None
    ) -> None:
        asked = (taps or {}).items()
        self.taps = {name: of if isinstance(of, Tap) else Tap(of) for name, of in asked}
        self.edits = dict(edits or {})
        self.reached: set[str] = set()  # while the decoder is traced
        for name in self._asked():
            if name not in TAPS:
                raise InputError(f"tap {name!r}", None, ", ".join(TAPS), "unknown")

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
        self.reached.add(name)
        for key, edit in self.edits.items():
            *before, last = key.split("+")
            if last == name:
                value = edit(*_values(key, before, seen), value, layer)
        return value

    def stacked(self, per_layer: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """The records of all layers, with an axis over those that are asked for in front."""
        every = range(len(per_layer))
        return {
            name: jax.tree.map(
                lambda *x: jnp.stack(x), *(per_layer[i][name] for i in tap.chosen or every)
            )
            for name, tap in self.taps.items()
            if any(name in record for record in per_layer)
        }

    def room(self, shapes: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """Empty records of the taps that some layers are asked of, [n, ...].

        Args:
          shapes: gives the records of one layer, as shapes.
        """
        counts = {name: len(tap.chosen) for name, tap in self.taps.items() if tap.chosen}
        counts.pop("final_norm", None)
        one = shapes() if counts else {}

        def empty(name: str, of: Any) -> Array:
            return jnp.zeros((counts[name], *of.shape), of.dtype)

        return {name: jax.tree.map(partial(empty, name), one[name]) for name in counts}

    def kept(self, recorded: dict[str, Any], kept: dict[str, Any], layer: Array) -> Any:
        """Records of a layer that has a number in the compiled program alone.

        Returns:
          Those of taps of every layer; and `kept` with the others in their places.
        """

        def put(name: str, whole: Array, value: Array) -> Array:
            hit = jnp.asarray(self.taps[name].chosen, layer.dtype) == layer
            slot = jnp.argmax(hit)
            return whole.at[slot].set(jnp.where(jnp.any(hit), value, whole[slot]))

        every = {name: value for name, value in recorded.items() if name not in kept}
        return every, {
            name: jax.tree.map(partial(put, name), whole, recorded[name])
            for name, whole in kept.items()
        }

    def check_reached(self) -> None:
        """Refuse a run in which a tap or an edit names what this architecture does not have."""
        missing = self._asked() - self.reached
        if missing:
            raise InputError(
                f"tap {', '.join(sorted(missing))}",
                None,
                ", ".join(name for name in TAPS if name in self.reached),
                "this architecture has none",
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

    def without_first(self, name: str, value: Array) -> Array:
        """Edit a value as the layer does, record nothing, and give the first key no weight."""
        value = self.probe.edited(name, self.seen, value, self.layer)
        return value.at[..., 0].set(0.0) if name == "attn_weights" else value

    @property
    def needs_all_keys(self) -> bool:
        """Whether keys behind a query matter: in logits, and to what replaces weights."""
        return self.probe.asks("attn_logits") or any(
            key.split("+")[-1] == "attn_weights" for key in self.probe.edits
        )

    def of_block(
        self, positions: Int[Array, "t"], partials: dict[str, Partial], unseen: int
    ) -> Any:
        """The tap function for what has the queries at `positions` only; it fills `partials`.

        Reducers are shown weights of 0 for the `unseen` last keys, which this block leaves out.
        """

        seen = dict(self.seen)

        def tap(name: str, value: Array) -> Array:
            value = seen[name] = self.probe.edited(name, seen, value, self.layer)
            if name == "attn_weights" and self.probe.asks(name):
                seen[name] = jnp.pad(value, [(0, 0)] * (value.ndim - 1) + [(0, unseen)])
            for key, reducer, values in self._complete(name, seen):
                if not isinstance(reducer, Blockwise):
                    raise InputError(
                        f"tap {key!r}",
                        None,
                        "a reducer that is a core.streaming.Blockwise",
                        "does not exist whole under --query_block",
                    )
                axes = (*(0 for _ in values), None)
                partials[key] = jax.vmap(reducer.of_block, axes)(*values, positions)
            return value

        return tap

    def finish(self, partials: Mapping[str, Partial]) -> None:
        """Record what all blocks of queries gave together."""
        for key, whole in partials.items():
            reducer = cast(Blockwise, self.probe.taps[key].reducer)
            self.recorded[key] = jax.vmap(reducer.finish)(whole)

    def _complete(
        self, name: str, seen: Mapping[str, Array]
    ) -> Iterator[tuple[str, Reducer | None, list[Array]]]:
        """The taps whose last value is called `name`, with all of their values."""
        for key, tap in self.probe.taps.items():
            *before, last = key.split("+")
            if last == name:
                yield key, tap.reducer, [*_values(key, before, seen), seen[last]]


def _values(key: str, before: Sequence[str], seen: Mapping[str, Array]) -> list[Array]:
    if not set(before) <= set(seen):
        raise InputError(f"tap {key!r}", accepted="names in the decoder's order")
    return [seen[name] for name in before]
