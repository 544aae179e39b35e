"""How the largest activation of a prompt is made, what it does to attention, and how it goes."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from sysout_jax.analysis.locate import expert_neurons
from sysout_jax.analysis.locate.existence import Panel, flagged, magnitudes, pool
from sysout_jax.analysis.locate.scan import Thresholds, scan
from sysout_jax.analysis.locate.sinks import given_by_seeing
from sysout_jax.analysis.locate.weights import layer_params, projection
from sysout_jax.analysis.measure.secondary_sinks import SecondarySink, secondary_sinks
from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.layers import MLPS, causal_mask
from sysout_jax.core.measures import norm_over_rest, rows_to_one, spectral_dominance
from sysout_jax.model.compiling import jit_quickly
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, forward

RESIDUAL = ("block_in", "attn_out", "down_out", "block_out")


@dataclass(frozen=True)
class Emergence:
    """The layer that makes the activation."""

    layer: int  # with the largest step up in |h[token, channel]|
    gained: float  # |block_out| - |block_in| there
    writer: str  # attention or MLP: which wrote more of it
    neuron: int  # (expert_neurons.py) with the largest part in what the MLP writes to the channel
    neuron_value: float  # down_in[token, neuron]
    neuron_weight: float  # W_down[neuron, channel]
    neuron_share: float  # its part of what the MLP gives the channel, before a norm of its output
    rank_one_share: float | None  # of the form U_k of the channel (theory D1); None without a gate
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Spread:
    """The later layer in which the token receives most attention."""

    layer: int
    head: int  # the one that attends to the token most
    received: np.ndarray  # [N], share of all queries' attention by head; those before it give none
    value_ratio: np.ndarray  # [K], norm of the token's value over the mean of the rest
    key_ratio: np.ndarray  # [K], the same of its key
    logit_gap: float  # mean logit of the token's key less that of the rest, in the head, over
    #   later queries that see it
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class Disappearance:
    """The later layer that removes most of the activation."""

    layer: int
    removed: float  # |block_in| - |block_out| there
    writer: str  # attention or MLP
    share: float  # of the residual that the layer writes in the channel: -1 takes all of it away
    cosine: float  # of what the layer writes at the token, over all channels, with the residual
    grows: int | None  # where that points the same way: the channel that grows most
    grown: float  # by how much |h| does there
    panels: tuple[Panel, ...]


@dataclass(frozen=True)
class LifeCycle:
    """The life of the largest activation, relative to its layer's mean, of one prompt."""

    tokens: np.ndarray  # [T] ids
    token: int  # position
    channel: int
    peak_layer: int
    peak: float  # |h[token, channel]| there
    over_mean: float  # over the mean magnitude there
    outlier: bool  # whether a detector of activations flags anything in the prompt
    trace: dict[str, np.ndarray]  # [L], the value at (token, channel) of each of `RESIDUAL`
    emergence: Emergence
    spread: Spread
    disappearance: Disappearance | None  # None where no later layer makes it smaller
    others: tuple[SecondarySink, ...]  # tokens beside this one whose state stands out


def lifecycle(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array | np.ndarray, "T"],
    thresholds: Thresholds | None = None,
) -> LifeCycle:
    """Follow the activation with the largest max/mean ratio of block_out through all layers.

    Args:
      config: the architecture.
      params: its parameters.
      tokens: [T], T at least 2.
      thresholds: of the detectors; None for those of their papers.
    """
    tokens = np.asarray(tokens)
    found = scan(config, params, tokens[None], thresholds)
    site = found.block_out
    peak_layer = int(np.argmax(site.over_mean(site.top[..., 0])[:, 0]))
    token = int(np.argmax(site.token_peak[peak_layer, 0]))
    channel = int(site.token_feature[peak_layer, 0, token])
    taps = jax.device_get(_record(config, params, jnp.asarray(tokens), token, channel))
    at = {name: taps[name]["at"][:, 0] for name in RESIDUAL}
    size = {name: np.abs(values) for name, values in at.items()}
    steps = size["block_out"] - size["block_in"]
    up = int(np.argmax(steps[: peak_layer + 1]))
    return LifeCycle(
        tokens,
        token,
        channel,
        peak_layer,
        float(size["block_out"][peak_layer]),
        float(size["block_out"][peak_layer] / max(site.mean[peak_layer, 0], 1e-30)),
        any(f.layers for f in flagged(found, 0) if f.detector != "an_attention"),
        at,
        _emergence(config, params, taps, steps, up, token, channel),
        _spread(config, found.received[:, 0], taps, up, token),
        _disappearance(config, taps, steps, up, token, channel),
        secondary_sinks(
            taps["block_out"]["state"][:, 0], given_by_seeing(config, found.received)[:, 0], token
        ),
    )


def _emergence(
    config: ModelConfig, params: Params, taps: Any, steps: np.ndarray, layer: int, token: int,
    channel: int,
) -> Emergence:  # fmt: skip
    block = layer_params(params, layer)
    hidden = taps["down_in"]["row"][layer, 0]
    down = projection(block, "mlp", "down")
    written_by = np.asarray(down[:, channel], np.float32)
    weights, bias = written_by, np.zeros(1, np.float32)
    if "down_bias" in block["mlp"]:
        bias = np.asarray(block["mlp"]["down_bias"], np.float32)[..., channel].reshape(-1)
    if config.experts:  # as much as the router gives the expert of the token
        routed = taps[ROUTED][layer, 0]
        weights, bias = weights * np.repeat(routed, config.sizes["F"]), bias * routed
    parts = hidden * weights
    given = float(np.sum(parts, dtype=np.float64) + np.sum(bias, dtype=np.float64))
    neuron = int(np.argmax(np.abs(parts)))
    written = {name: float(taps[name]["at"][layer, 0]) for name in ("attn_out", "down_out")}
    share = None
    if "gate" in block["mlp"]:
        active = np.where(taps["gate_out"]["row"][layer, 0] > 0, weights, 0.0)
        share = float(spectral_dominance(_form(block["mlp"], active)))
    stages = ["block_in", "mlp_norm", "gate_out", "up_out", "act_out", "down_in"]
    panels = [_panel(config, taps, name, layer, token) for name in stages if name in taps]
    weight = np.asarray(pool(pool(jnp.abs(down)).T).T)
    panels.append(
        Panel(
            "|W_down|", layer, weight, ("neuron", "channel"), down.shape[1], down.shape[0],
            ((neuron, channel),), config.experts,
        )
    )  # fmt: skip
    panels += [_panel(config, taps, name, layer, token) for name in ("down_out", "block_out")]
    return Emergence(
        layer,
        float(steps[layer]),
        "MLP" if abs(written["down_out"]) >= abs(written["attn_out"]) else "attention",
        neuron,
        float(hidden[neuron]),
        float(written_by[neuron]),
        float(parts[neuron]) / given if given else 0.0,
        share,
        tuple(panels),
    )


def _form(mlp: Params, active: np.ndarray) -> Array:
    """U_k of theory D1 [D, D]: gate diag(active) up^T, over all experts with an active neuron."""
    gate, up = (mlp[name].reshape(-1, *mlp[name].shape[-2:]) for name in ("gate", "up"))
    form = jnp.zeros((gate.shape[1], gate.shape[1]), jnp.float32)
    for expert, row in enumerate(active.reshape(len(gate), -1)):
        if row.any():
            weighted = gate[expert].astype(jnp.float32) * jnp.asarray(row, jnp.float32)[None, :]
            form += weighted @ up[expert].astype(jnp.float32).T
    return form


def _spread(config: ModelConfig, received: np.ndarray, taps: Any, up: int, token: int) -> Spread:
    """received [L, N, S]: a later layer, or the last one where there is none."""
    first = min(up + 1, len(received) - 1)
    given = given_by_seeing(config, received[:, None])[:, 0]
    layer = first + int(np.argmax(given[first:, :, token].mean(axis=-1)))
    head = int(np.argmax(received[layer, :, token]))
    positions = jnp.arange(received.shape[-1])
    seen = np.asarray(causal_mask(positions, positions, config.window_of(layer)))
    maps = {}
    for name in ("attn_logits", "attn_weights"):
        whole = taps[name][layer, 0, head]
        maps[name] = Panel(
            {"attn_logits": "logits", "attn_weights": "weights"}[name] + f", head {head}", layer,
            np.where(seen, whole, np.nan), ("query", "key"), whole.shape[1], whole.shape[0],
            ((whole.shape[0] - 1, token),),
        )  # fmt: skip
    after = seen[:, token] & (np.arange(len(seen)) > token)
    logits = maps["attn_logits"].values[after]
    rest = np.delete(logits, token, axis=1)
    gap = np.nanmean(logits[:, token]) - np.nanmean(rest) if logits.size and rest.size else 0.0
    return Spread(
        layer,
        head,
        received[layer, :, token],
        taps["value"]["ratio"][layer, 0],
        taps["key"]["ratio"][layer, 0],
        float(gap),
        (
            *(_panel(config, taps, n, layer, token) for n in SPREADING),
            *maps.values(),
            _panel(config, taps, "attn_out", layer, token),
        ),
    )


def _disappearance(
    config: ModelConfig, taps: Any, steps: np.ndarray, up: int, token: int, channel: int
) -> Disappearance | None:
    later = steps[up + 1 :]
    if not later.size or later.min() >= 0:
        return None
    layer = up + 1 + int(np.argmin(later))
    before, after = (taps[name]["row"][layer, 0] for name in ("block_in", "block_out"))
    write, growth = after - before, np.abs(after) - np.abs(before)
    norms = np.linalg.norm(write) * np.linalg.norm(before)
    written = {name: float(taps[name]["at"][layer, 0]) for name in ("attn_out", "down_out")}
    cosine = float(write @ before / norms) if norms else 0.0
    stages = ("block_in", "attn_out", "mlp_norm", "down_in", "down_out", "block_out")
    return Disappearance(
        layer,
        float(-later.min()),
        "MLP" if abs(written["down_out"]) >= abs(written["attn_out"]) else "attention",
        float(write[channel] / before[channel]),
        cosine,
        int(np.argmax(growth)) if cosine > 0.0 else None,
        float(growth.max()),
        tuple(_panel(config, taps, name, layer, token) for name in stages),
    )


def _panel(config: ModelConfig, taps: Any, name: str, layer: int, token: int) -> Panel:
    """The magnitudes of a tap in a layer, with the largest feature of the token marked."""
    of_layer = {key: value[layer, 0] for key, value in taps[name].items()}
    row = of_layer["row"]
    neurons = name in expert_neurons.NEURON_TAPS
    feature = "neuron" if neurons else "head x dim" if name in HEADS else "channel"
    mark = ((token, int(np.argmax(np.abs(row)))),)
    values = of_layer["magnitude"]
    experts = config.experts if neurons else 0
    axes = ("token", feature)
    return Panel(f"|{name}|", layer, values, axes, len(row), len(values), mark, experts)


HEADS = ("query", "key", "value")
SPREADING = ("attn_norm", *HEADS)
ROUTED = "experts+routing"
PER_TOKEN = (
    "block_in", "attn_norm", "query", "key", "value", "attn_out", "mlp_norm", "gate_out", "up_out",
    "act_out", "down_in", "down_out", "block_out",
)  # fmt: skip


@jit_quickly(0)
def _record(
    config: ModelConfig, params: Params, tokens: Array, token: Int[Array, ""] | int,
    channel: Int[Array, ""] | int,
) -> dict[str, Any]:  # fmt: skip
    """Every tap of one sequence: magnitudes to draw, the token's row, its value at the channel."""
    normalised = VARIANTS[config.variant].normalised
    outlier = jnp.arange(len(tokens)) == token

    def per_token(value: Array) -> dict[str, Array]:
        value = value.astype(jnp.float32)
        row = value.reshape(len(value), -1)[token]
        found = {"magnitude": magnitudes(value), "row": row}
        if value.ndim == 3:
            found["ratio"] = norm_over_rest(value, outlier)
        else:
            found["at"] = row[channel] if row.shape == (config.width,) else row[0]
        return found

    taps: dict[str, Any] = dict.fromkeys(PER_TOKEN, per_token)
    taps["block_out"] = lambda value: per_token(value) | {"state": value.astype(jnp.float32)}
    if not MLPS[config.mlp][1]:
        del taps["gate_out"]
    if config.experts:
        every = jnp.zeros(config.experts, jnp.float32)
        taps[ROUTED] = lambda experts, weights: every.at[experts[token]].set(weights[token])
    taps["attn_weights"] = (lambda w: w) if normalised else rows_to_one
    taps["attn_logits"] = None
    found = forward(config, params, tokens[None], expert_neurons.told_apart(config, taps))[1]
    return expert_neurons.by_tap(config, found)
