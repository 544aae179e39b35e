"""What can be read of a run besides its taps: the gradient at one, and the logit lens.

Axes: B batch, T position, V vocabulary, L layers of the model, n those that are asked for.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from sysout_jax.core.layers import cross_entropy
from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, forward, read_out
from sysout_jax.model.taps import Edit, Reducer, Tap

Metric = Callable[[Array, Array], Array]  # (logits [T, V], tokens [T]) of one sequence -> []


def next_token_loss(logits: Float[Array, "T V"], tokens: Int[Array, "T"]) -> Float[Array, ""]:
    """The mean cross-entropy of a sequence's tokens from the second on, in nats.

    Raises:
      InputError: there is no second.
    """
    if len(tokens) < 2:
        raise InputError("tokens", None, "two or more", "one token, and the loss is of the next")
    return jnp.mean(cross_entropy(logits[:-1], tokens[1:]))


def gradient(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    metric: Metric,
    at: str,
    layers: tuple[int, ...] | None = None,
) -> tuple[Float[Array, "B"], Float[Array, "..."]]:
    """d metric / d value of a tap, in each layer with the values of all others as they follow.

    Args:
      config: the architecture.
      params: its parameters.
      tokens: [B, T] ids.
      metric: of one sequence's logits and tokens.
      at: the name of the tap.
      layers: of which the gradient is wanted; None for all.

    Returns:
      The metric of each sequence [B]; the gradient, with the axes of the tap's value behind
      [L, B] or [n, B] (only [B] for `final_norm`).

    Raises:
      InputError: as `forward`, a tap whose values are no real numbers, or a metric that is not one.
    """

    def run(taps: Any, edits: Any) -> Any:
        return forward(config, params, tokens, taps, edits)

    value = jax.eval_shape(lambda: run({at: Tap(None, layers)}, None)[1][at])
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise InputError("at", at, "a tap of real numbers", f"its values are {value.dtype}")
    once = at == "final_norm"
    chosen = jnp.asarray(range(config.layers) if layers is None else layers, jnp.int32)

    def add(old: Array, layer: Array, added: Array) -> Array:
        if once:
            return old + added
        return old + jnp.where(jnp.any(chosen == layer), added[jnp.argmax(chosen == layer)], 0.0)

    def total(added: Array) -> tuple[Array, Array]:
        edit = Edit(add, added.astype(value.dtype), in_axes=0 if once else 1)
        metrics = jax.vmap(metric)(run(None, {at: edit})[0], tokens)
        if metrics.ndim != 1:
            said = f"an array of shape {metrics.shape[1:]} of a sequence"
            raise InputError("metric", None, "a function that returns one number", said)
        return jnp.sum(metrics), metrics

    grads, metrics = jax.grad(total, has_aux=True)(jnp.zeros(value.shape, jnp.float32))
    return metrics, grads


def logit_lens(
    config: ModelConfig,
    params: Params,
    tokens: Int[Array, "B T"],
    layers: tuple[int, ...] | None = None,
    reducer: Reducer | None = None,
) -> Any:
    """What the head makes of the residual stream after each layer (nostalgebraist 2020).

    lens[n] = unembed(final_norm(block_out[layers[n]])), without the norm where the architecture
    has none at the end; the last layer's are the logits.

    Args:
      config: the architecture.
      params: its parameters.
      tokens: [B, T] ids.
      layers: after which; None for all.
      reducer: of one sequence's logits [T, V], a layer at a time; None for the logits themselves.

    Returns:
      Logits [n, B, T, V], or what the reducer makes of them with [n, B] in front.

    Raises:
      InputError: as `forward`.
    """
    states = forward(config, params, tokens, {"block_out": Tap(None, layers)})[1]["block_out"]

    def of(state: Array) -> Any:
        logits = read_out(config, params, state)
        return logits if reducer is None else jax.vmap(reducer)(logits)

    return jax.lax.map(of, states)
