"""Dose and response: a weight or an activation of the first token changed, attention watched.

The cause is in the block whose neuron writes most into the first token; the response is in the
blocks after it. Every dose has controls: as large a change at other neurons or channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sysout_jax.analysis.intervene.editing import changed_neuron, down_projections
from sysout_jax.analysis.locate.scan import over_batches, whole_maps
from sysout_jax.analysis.locate.sinks import at_first
from sysout_jax.analysis.locate.weights import layer_params
from sysout_jax.core.measures import residual_peak
from sysout_jax.core.norms import PLAIN
from sysout_jax.core.ordering import median_magnitude
from sysout_jax.errors import InputError
from sysout_jax.model.compiling import jit_quickly
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, final_states, forward
from sysout_jax.model.loss import token_losses
from sysout_jax.model.taps import Edit

WEIGHT, ACTIVATION = "weight", "activation"
TREATMENTS = {
    WEIGHT: "row of W_down that writes most into the first token",
    ACTIVATION: "largest channel of the first token",
}


@dataclass(frozen=True)
class Place:
    """Where the cause and the response are, found without any dose."""

    layer: int  # of the neuron and the channel
    neuron: int
    channel: int
    head: tuple[int, int]  # (layer, head) after it that gives the first token most


@dataclass(frozen=True)
class Response:
    """What one dose does: means over sequences, of the controls over these too."""

    treatment: str
    factor: float  # that the weights or the activation are multiplied by; 1 changes nothing
    control: bool
    peak: float  # norm of the first token's state over the others' mean, after the block
    ratio: float  # the same state's largest magnitude over the median of all
    attention: float  # of the head, by queries after the first, to the first token
    loss: float  # nats per token
    by_sequence: np.ndarray  # [B], the attention of each


@dataclass(frozen=True)
class Doses:
    """All doses on one model."""

    place: Place
    responses: tuple[Response, ...]


def first_token_edit(layer: int, source: int, target: int, factor: float) -> Edit:
    """Of block_out: add `factor - 1` times a channel of the first token's state to a channel."""
    arrays = jnp.asarray(source), jnp.asarray(target), jnp.asarray(factor, jnp.float32)
    return Edit(_dosed_state, *arrays, layers=layer)


def _dosed_state(
    state: Float[Array, "T D"], layer: Array, source: Int[Array, ""], target: Int[Array, ""],
    factor: Float[Array, ""],
) -> Float[Array, "T D"]:  # fmt: skip
    more = (factor - 1.0) * state[0, source]
    return state.at[0, target].add(more.astype(state.dtype))


def doses(
    config: ModelConfig,
    params: Params,
    rows: Int[np.ndarray, "B S"],
    factors: Sequence[float],
    controls: int = 8,
    batch: int = 8,
) -> Doses:
    """Multiply the cause by each factor, and do as much to others.

    Args:
      config: the architecture.
      params: its parameters.
      rows: [B, S], S = T + 1: inputs and next tokens as a corpus gives them.
      factors: the doses; 0 takes the cause away, above 1 plants more of it.
      controls: neurons of the same block, and channels, drawn at random.
      batch: sequences that are run together.

    Raises:
      InputError: a mixture of experts, or one block, after which there is no attention; or rows
        that are too long.
    """
    check(config)
    whole_maps(rows.shape[1] - 1)
    place = find(config, params, rows, batch)
    rng = np.random.default_rng(0)
    neurons, channels = (
        _others(rng, len(places), at, controls)
        for places, at in (
            (down_projections(params)[place.layer], place.neuron),
            (np.empty(config.sizes["D"]), place.channel),
        )
    )
    found = []
    for factor in factors:
        for control, places in ((False, [place.neuron]), (True, neurons)):
            measured = [
                _measured(config, _dosed(params, place, n, factor), rows, place, None, batch)
                for n in places
            ]
            found.append(_response(WEIGHT, factor, control, measured))
        for control, places in ((False, [place.channel]), (True, channels)):
            measured = [
                _measured(config, params, rows, place, (channel, factor), batch)
                for channel in places
            ]
            found.append(_response(ACTIVATION, factor, control, measured))
    return Doses(place, tuple(found))


def _response(
    treatment: str, factor: float, control: bool, measured: Sequence[Float[np.ndarray, "4 B"]]
) -> Response:
    """Of the places that were given the dose, the mean."""
    found = np.mean(measured, axis=0)
    peak, ratio, attention, loss = map(float, found.mean(axis=1))
    return Response(treatment, factor, control, peak, ratio, attention, loss, found[2])


def check(config: ModelConfig) -> None:
    """Refuse a model that has no such cause or no such response.

    Raises:
      InputError: a mixture of experts, one block, after which there is no attention, or a norm of
        the MLP's output that does more than divide.
    """
    if config.experts:
        raise InputError("model", None, "one MLP in each layer", "a mixture of experts")
    if config.norm not in PLAIN and config.norm_placement in ("out", "sandwich"):
        raise InputError("norm", config.norm, f"behind the MLP {' or '.join(PLAIN)}")
    if config.layers < 2:
        raise InputError(
            "model", None, "one of at least 2", "of 1 layer, with no attention after its MLP"
        )


def _others(rng: np.random.Generator, count: int, at: int, wanted: int) -> list[int]:
    """Some of `count` places, none of them `at`."""
    found = rng.permutation(np.delete(np.arange(count), at))[:wanted]
    return [int(place) for place in found]


def _dosed(params: Params, place: Place, neuron: int, factor: float) -> Params:
    """The parameters with a row of down made longer by `factor - 1` lengths of the found one."""
    down = down_projections(params)[place.layer]
    length = np.linalg.norm(down, axis=1)
    share = length[place.neuron] / max(float(length[neuron]), np.finfo(np.float32).tiny)
    return changed_neuron(params, place.layer, neuron, 1.0 + (factor - 1.0) * float(share))


def find(config: ModelConfig, params: Params, rows: np.ndarray, batch: int) -> Place:
    """The neuron, the channel and the head, by means over sequences.

    The neuron has the largest write: |activation at the first token| times the norm of its row of
    W_down, over all blocks but the last; where a norm follows the MLP, of what that norm makes of
    it. The channel is the largest of the first token after that block.
    """
    run = partial(_at_first, config)
    taps = over_batches(run, params, rows[:, :-1], batch)
    state, attention = np.abs(taps["block_out"]).mean(axis=1), taps["attn_weights"].mean(axis=1)
    downs = down_projections(params)[:-1]
    written = np.array(
        [
            _written(config, layer_params(params, layer), down, taps["down_in"][layer])
            for layer, down in enumerate(downs)
        ]
    )
    layer, neuron = (int(i) for i in np.unravel_index(np.argmax(written), written.shape))
    later = attention[layer + 1 :]
    at, head = (int(i) for i in np.unravel_index(np.argmax(later), later.shape))
    return Place(layer, neuron, int(np.argmax(state[layer])), (layer + 1 + at, head))


def _written(
    config: ModelConfig, block: Params, down: Float[np.ndarray, "F D"],
    activation: Float[np.ndarray, "B F"],
) -> Float[np.ndarray, "F"]:  # fmt: skip
    """The length of what each neuron of a block adds to the stream, mean over sequences.

    A norm of the MLP's output takes a part of it, as the whole, to scale * part / divisor. A norm
    of the stream after the sum is no part of the write.
    """
    size = np.abs(activation) * config.residual_scale
    if config.norm_placement in ("out", "sandwich"):
        norm, whole = block["mlp_out_norm"], activation @ down
        if "down_bias" in block["mlp"]:
            whole = whole + np.asarray(block["mlp"]["down_bias"], np.float32)
        if config.norm == "layer":
            whole, down = (x - x.mean(axis=-1, keepdims=True) for x in (whole, down))
        size = size / np.sqrt(np.mean(whole**2, axis=-1, keepdims=True) + config.norm_eps)
        if "scale" in norm:
            down = down * (np.asarray(norm["scale"], np.float32) + config.norm_plus_one)
    lengths: np.ndarray = np.linalg.norm(down, axis=1)
    return size.mean(axis=0) * lengths


def _to_first(weights: Float[Array, "N T S"]) -> Float[Array, "N"]:
    """Each head's attention to the first token, over the queries after it."""
    return jnp.mean(weights[:, 1:, 0].astype(jnp.float32), axis=1)


@jit_quickly(0)
def _at_first(config: ModelConfig, params: Params, tokens: Array) -> dict[str, Any]:
    taps = {"down_in": at_first, "block_out": at_first, "attn_weights": _to_first}
    return forward(config, params, tokens, taps)[1]


def _measured(
    config: ModelConfig, params: Params, rows: np.ndarray, place: Place,
    dose: tuple[int, float] | None, batch: int,
) -> Float[np.ndarray, "4 B"]:  # fmt: skip
    """Peak, ratio, attention and loss of each sequence."""
    channel, factor = dose or (place.channel, 1.0)
    edit = first_token_edit(place.layer, place.channel, channel, factor)

    def run(params: Params, rows: Array) -> Any:
        return _respond(config, params, rows, edit)

    found = over_batches(run, params, rows, batch)
    layer, head = place.head
    return np.stack(
        [
            found["peak"][place.layer], found["ratio"][place.layer],
            found["attention"][layer, :, head], found["loss"][0],
        ]
    )  # fmt: skip


@jit_quickly(0)
def _respond(config: ModelConfig, params: Params, rows: Array, edit: Edit) -> Any:
    def state(h: Array) -> dict[str, Array]:
        h = h.astype(jnp.float32)
        size = jnp.abs(h)
        return {"peak": residual_peak(h), "ratio": jnp.max(size[0]) / median_magnitude(h)}

    taps: Any = {"block_out": state, "attn_weights": _to_first}
    states, found = final_states(config, params, rows[:, :-1], taps, {"block_out": edit})
    loss = jnp.mean(token_losses(config, params, states, rows[:, 1:]), axis=1)[None]
    return found["block_out"] | {"attention": found["attn_weights"], "loss": loss}
