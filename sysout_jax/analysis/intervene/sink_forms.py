"""What can take a sink's place: each form of its part in attention, and what it costs.

    o_i = S_i o^R_i + (1 - S_i) v_0,    S_i = sigma(LSE_R(s_i) - s_i0)

(theory A1). From the layer on that reads what makes the first token a sink, its key and its value
are nearly the same in every text, so that parts of the right-hand side can be replaced by constants
that other text gives. Only queries that see the first token and another one are changed.
Axes: L layers, B sequences, T positions, D width, N heads, K KV heads, H head dim.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy import special

from sysout_jax.analysis.intervene.explicit_factor import FORMS, Gates, inside
from sysout_jax.analysis.intervene.passes import Edits, Passes
from sysout_jax.analysis.intervene.relocation import Relocation, Tokens, relocation, taps
from sysout_jax.analysis.intervene.sink_constants import Constants, constants
from sysout_jax.analysis.locate.sinks import Sink, sees_first
from sysout_jax.analysis.statistics import Interval, bootstrap_interval, ratio_interval
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.taps import Edit

EVERYWHERE = "everywhere"  # a form beside `FORMS`: "dropped" in every layer
KEPT, REMOVED, SHARE = 0, 1, 2  # the first key's weight: as it is, or zero and rows brought to one


# ----------------------------------------------------------------------------- the edits


def edits(
    config: ModelConfig,
    length: int,
    first: int,
    weight: int = KEPT,
    key: Float[np.ndarray, "L K H"] | None = None,
    value: Float[np.ndarray, "L K H"] | None = None,
    logit: Float[np.ndarray, "L N"] | None = None,
    gates: Gates | None = None,
    bias: Float[np.ndarray, "L N H"] | None = None,
) -> Edits:
    """The edits that put a form in the sink's place, in the layers from `first` on.

    One compiled program runs all of them. What is None is left as it is.

    Args:
      config: the architecture, of variant softmax.
      length: T of the sequences.
      first: the first layer that is changed.
      weight: of the first key: `KEPT`, or `REMOVED` (rows keep their sum: o^R), or `SHARE` (they
        keep what the others had: S o^R).
      key, value: the first token's, in the place of its own.
      logit: of every query with the first key.
      gates: what multiplies each head's output.
      bias: what is then added to it.
    """
    size = config.sizes
    on = np.arange(config.layers) >= first
    seen = sees_first(config, length) & on[:, None]
    gated = gates or Gates(
        np.zeros((size["L"], size["D"], size["N"])), np.zeros((size["L"], size["N"]))
    )

    def part(given: np.ndarray | None, *axes: str) -> tuple[Array, Array]:
        shape = tuple(size[axis] for axis in axes)
        values = np.zeros(shape) if given is None else given
        return jnp.asarray(values, jnp.float32), jnp.asarray(on & (given is not None))

    return {
        "key": Edit(_first_replaced, *part(key, "L", "K", "H")),
        "value": Edit(_first_replaced, *part(value, "L", "K", "H")),
        "attn_logits": Edit(_logit_replaced, *part(logit, "L", "N")),
        "attn_weights": Edit(_weight_removed, jnp.asarray(np.where(on, weight, KEPT))),
        "attn_norm+attn_mix": Edit(
            _gated, jnp.asarray(gated.kernel, jnp.float32), jnp.asarray(gated.bias, jnp.float32),
            part(bias, "L", "N", "H")[0], jnp.asarray(seen & (gates is not None)),
            jnp.asarray(seen),
        ),
    }  # fmt: skip


def _first_replaced(
    x: Float[Array, "T K H"], layer: Array, constant: Float[Array, "L K H"], on: Bool[Array, "L"]
) -> Float[Array, "T K H"]:
    return jnp.where(on[layer], x.at[0].set(constant[layer].astype(x.dtype)), x)


def _logit_replaced(
    logits: Float[Array, "N t S"], layer: Array, constant: Float[Array, "L N"],
    on: Bool[Array, "L"],
) -> Float[Array, "N t S"]:  # fmt: skip
    column = constant[layer].astype(logits.dtype)[:, None]
    changed = logits.at[:, :, 0].set(jnp.broadcast_to(column, logits.shape[:2]))
    return jnp.where(on[layer], changed, logits)


def _weight_removed(
    weights: Float[Array, "N t S"], layer: Array, how: Int[Array, "L"]
) -> Float[Array, "N t S"]:
    kept = weights.at[:, :, 0].set(0.0)
    rest, total = (jnp.sum(x, axis=-1, keepdims=True) for x in (kept, weights))
    alone = rest == 0.0  # a query that sees nothing else keeps what it sees
    scale = jnp.where(how[layer] == REMOVED, total / jnp.where(alone, 1.0, rest), 1.0)
    changed = jnp.where(alone, weights, kept * scale)
    return jnp.where(how[layer] == KEPT, weights, changed)


def _gated(
    x: Float[Array, "T D"], mixed: Float[Array, "T N H"], layer: Array,
    kernel: Float[Array, "L D N"], offset: Float[Array, "L N"], bias: Float[Array, "L N H"],
    gated: Bool[Array, "L T"], shifted: Bool[Array, "L T"],
) -> Float[Array, "T N H"]:  # fmt: skip
    opened = 1.0 / (1.0 + jnp.exp(-(x.astype(jnp.float32) @ kernel[layer] + offset[layer][None])))
    gate = jnp.where(gated[layer][:, None], opened, 1.0)[..., None]
    shift = jnp.where(shifted[layer][:, None, None], bias[layer][None], 0.0)
    return (mixed.astype(jnp.float32) * gate + shift).astype(mixed.dtype)


def all_forms(
    config: ModelConfig, length: int, sink: Sink, fitted: Constants | None
) -> dict[str, Edits]:
    """Every form by its name in `explicit_factor.FORMS`, in the layers from `sink.first` on.

    Args:
      config: the architecture, of variant softmax.
      length: T of the sequences.
      sink: which says the layers.
      fitted: from other text; None: only the forms that need none.
    """

    def form(**given: Any) -> Edits:
        return edits(config, length, sink.first, **given)

    made = {"dropped": form(weight=REMOVED), "factor": form(weight=SHARE)}
    if fitted is None:
        return made
    bias, still = (
        fitted.bias,
        Gates(np.zeros_like(fitted.gates.kernel), special.logit(inside(fitted.share))),
    )
    return made | {
        "constant": form(weight=REMOVED, gates=still),
        "bias": form(weight=REMOVED, bias=bias),
        "constant_bias": form(weight=REMOVED, gates=still, bias=bias),
        "factor_bias": form(weight=SHARE, bias=bias),
        "gate": form(weight=REMOVED, gates=fitted.gates),
        "gate_bias": form(weight=REMOVED, gates=fitted.gates, bias=bias),
        "logit": form(logit=fitted.logit, value=fitted.value),
        "extra_key": form(key=fitted.key, value=fitted.value),
    }


# ------------------------------------------------------------------------- what they cost


@dataclass(frozen=True)
class FormCost:
    """One form in the sink's place."""

    name: str  # in `explicit_factor.FORMS`, or `EVERYWHERE`
    label: str
    loss: float  # nats per token
    change: Interval  # of the loss, paired by sequence
    share: Interval | None  # of what "dropped" costs; None where that costs nothing for certain
    relocation: Relocation
    by_sequence: np.ndarray  # [B], the change of each


@dataclass(frozen=True)
class SinkForms:
    """Forms of a sink, or why there are none."""

    missing: str  # what of them is left out, and why; empty: nothing
    calibration: int  # sequences of other text that constants come from
    key_spread: float  # of the calibration texts' first keys, over the mean key: median over layers
    value_spread: float
    forms: tuple[FormCost, ...]
    peaks: dict[str, np.ndarray]  # [T] of "trained" and removals, largest |h| of each token
    attention: dict[str, np.ndarray]  # [T], the share of all attention that each key receives


def sink_forms(
    of_model: Passes,
    trained: Mapping[str, Any],
    sink: Sink,
    calibration: Int[np.ndarray, "B S"] | None,
) -> SinkForms:
    """Put every form in the sink's place, and measure what it costs.

    Args:
      of_model: the sequences, and the state that enters layer `sink.first`.
      trained: what `relocation.taps` recorded in the pass without edits.
      sink: of the same sequences.
      calibration: [B, S] rows of other text; None: forms that need constants are left out.
    """
    config, missing = of_model.config, ""
    if config.variant != "softmax":
        missing = f"all: they are forms of softmax attention, and this is {config.variant}"
    elif not sink.present:
        missing = "all: no sink is there to be replaced"
    if missing:
        return SinkForms(missing, 0, np.nan, np.nan, (), {}, {})
    fitted, length = None, of_model.rows.shape[1] - 1
    if calibration is None:
        missing = "those with constants: no other text is given to take them from"
    else:
        rows = calibration[:, :-1]
        whole = config.with_execution(query_block=None)
        fitted = constants(whole, of_model.params, rows, sink.first, of_model.batch)
    made = {
        name: of_model.watched(form, taps(config), sink.first)
        for name, form in all_forms(config, length, sink, fitted).items()
    }
    made[EVERYWHERE] = of_model.watched(edits(config, length, 0, REMOVED), taps(config), 0)
    records = {"trained": trained} | {name: found for name, (_, found) in made.items()}
    count = config.layers - sink.first
    tokens = {name: Tokens.of(found, count) for name, found in records.items()}
    removed = made["dropped"][0] - of_model.before
    costs = tuple(
        _cost(name, _label(name, sink), of_model.before, losses, removed, tokens)
        for name, (losses, _) in made.items()
    )
    shown = ("trained", "dropped", EVERYWHERE)
    return SinkForms(
        missing, 0 if calibration is None else len(calibration),
        _median(None if fitted is None else fitted.key_spread, sink),
        _median(None if fitted is None else fitted.value_spread, sink),
        costs,
        {name: tokens[name].peak.mean(axis=0) for name in shown},
        {name: tokens[name].attention.mean(axis=0) for name in shown},
    )  # fmt: skip


def _median(spread: np.ndarray | None, sink: Sink) -> float:
    return float("nan" if spread is None else np.median(spread[sink.first :]))


def _label(name: str, sink: Sink) -> str:
    if name == EVERYWHERE:
        return "taken away in every layer"
    if name == "dropped":
        return f"taken away from layer {sink.first} on, rows renormalised"
    return f"in its place: {FORMS[name]}"


def _cost(
    name: str, label: str, before: np.ndarray, losses: np.ndarray, removed: np.ndarray,
    tokens: Mapping[str, Tokens],
) -> FormCost:  # fmt: skip
    sink = np.zeros(tokens[name].peak.shape, bool)
    sink[:, 0] = True
    change = losses - before
    return FormCost(
        name, label, float(losses.mean()), bootstrap_interval(change),
        ratio_interval(change, removed), relocation(tokens["trained"], tokens[name], sink), change,
    )  # fmt: skip
