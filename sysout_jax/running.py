"""Run a model on text or ids, as a notebook does: logits, taps, edits, gradients, the lens.

Everything here is compiled. A program is found again by the model's config, the shapes of its
arguments and the function objects that are passed: define functions once, outside of loops.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sysout_jax.core.detectors import MASSIVE_LAYERS
from sysout_jax.core.detectors import massive_dimensions as detected
from sysout_jax.core.layers import cross_entropy
from sysout_jax.data.prompt import encode_prompt
from sysout_jax.errors import InputError
from sysout_jax.model.compiling import jit_quickly
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, final_states, forward, read_out, taps_of
from sysout_jax.model.loss import token_losses
from sysout_jax.model.model import Model, check_model, token_ids
from sysout_jax.model.stream import recorded
from sysout_jax.model.taps import Edit, Reducer, Tap, check_asked, check_layers

Tokens = str | Sequence[str] | Array | np.ndarray | Sequence[Sequence[int]]
Taps = Mapping[str, Reducer | Tap | None]
Layers = int | Sequence[int] | None
Metric = Callable[[Array, Array], Array]  # (logits [T, V], tokens [T]) of one sequence -> []
EVERY = "all"


def encode(model: Model, text: str | Sequence[str], bos: str = "auto") -> Int[np.ndarray, "B T"]:
    """The ids that a model reads of one text or of several.

    Args:
      model: with a tokenizer, whose `pieces` shows what the ids stand for.
      text: one, or several of one number of tokens.
      bos: auto, yes or no: whether a text starts with the tokenizer's BOS; auto: as in the model's
        training.

    Returns:
      [B, T] int32.

    Raises:
      InputError: a model without a tokenizer, no text, texts of different lengths, or no token.
    """
    check_model(model)
    several = isinstance(text, Iterable) and not isinstance(text, str | bytes)
    texts: list[Any] = list(text) if several else [text]
    if not texts or not all(isinstance(each, str) for each in texts):
        raise InputError("text", None, "a text, or several", f"{type(text).__name__}")
    if model.tokenizer is None:
        raise InputError("tokens", None, "token ids", "text, and the model has no tokenizer")
    rows = [encode_prompt(model.tokenizer, each, bos, "text") for each in texts]
    lengths = sorted({len(row) for row in rows})
    if len(lengths) > 1:
        raise InputError(
            "tokens",
            None,
            "texts of one length, or one at a time",
            f"texts of {', '.join(map(str, lengths))} tokens",
        )
    return np.stack(rows)


def apply(
    model: Model,
    tokens: Tokens,
    taps: Taps | str | None = None,
    edits: Mapping[str, Edit] | None = None,
    bos: str = "auto",
) -> tuple[Float[Array, "B T V"], dict[str, Any]]:
    """Run a model: logits, and what the taps recorded.

    Args:
      model: what `load` or a training run returned.
      tokens: a text, texts of one length in tokens, or ids [B, T]; of text they are
        `encode(model, text, bos)`.
      taps: name -> reducer of one sequence's value, None for the value itself, or a `Tap`, which
        says of which layers; "all" for every value that the architecture has.
      edits: name -> `Edit`.
      bos: of text, as for `encode`.

    Returns:
      Logits [B, T, V], and a dict name -> record, with leading axes [L, B] (only [B] for
      `final_norm`), or the layers of its `Tap` instead of all L.

    Raises:
      InputError: what the model cannot read, an unknown tap, or one that it does not have.
    """
    ids = ids_of(model, tokens, bos)
    config = model.config
    if isinstance(taps, str):
        if taps != EVERY:
            raise InputError("taps", repr(taps), f"{EVERY!r}, or a dict of names and reducers")
        taps = dict.fromkeys(taps_of(config))
    taps, edits = taps or {}, edits or {}
    check_asked(taps, edits)
    check_layers(config.layers, taps, edits)
    return _apply(config, tuple(taps.items()), dict(edits), model.params, ids)


@jit_quickly(0, 1)
def _apply(config: ModelConfig, taps: Any, edits: Any, params: Params, tokens: Array) -> Any:
    return forward(config, params, tokens, dict(taps), edits)


def losses(
    model: Model, tokens: Tokens, edits: Mapping[str, Edit] | None = None, bos: str = "auto"
) -> Float[Array, "B"]:
    """The mean cross-entropy of each sequence's tokens from the second on, in nats.

    Args:
      model: as for `apply`; its logits are made for some positions at a time.
      tokens: as for `apply`.
      edits: as for `apply`.
      bos: as for `apply`.

    Raises:
      InputError: as `apply`, or sequences of one token.
    """
    ids, edits = ids_of(model, tokens, bos, least=2), edits or {}
    check_asked({}, edits)
    check_layers(model.config.layers, {}, edits)
    return _losses(model.config, dict(edits), model.params, ids)


@jit_quickly(0)
def _losses(config: ModelConfig, edits: Any, params: Params, tokens: Array) -> Array:
    states, _ = final_states(config, params, tokens, edits=edits)
    return jnp.mean(token_losses(config, params, states[:, :-1], tokens[:, 1:]), axis=1)


def next_token_loss(logits: Float[Array, "T V"], tokens: Int[Array, "T"]) -> Float[Array, ""]:
    """The mean cross-entropy of a sequence's tokens from the second on, in nats.

    Raises:
      InputError: there is no second.
    """
    if len(tokens) < 2:
        raise InputError("tokens", None, "2 or more", "1 in a sequence")
    return jnp.mean(cross_entropy(logits[:-1], tokens[1:]))


def gradient(
    model: Model,
    tokens: Tokens,
    metric: Metric = next_token_loss,
    at: str = "block_out",
    layers: Layers = None,
    bos: str = "auto",
) -> tuple[Float[Array, "B"], Float[Array, "..."]]:
    """d metric / d value of a tap, by one backward pass for all layers.

    Args:
      model: as for `apply`.
      tokens: as for `apply`.
      metric: (logits [T, V], tokens [T]) of one sequence -> a number; the default is the mean loss
        of its next tokens, in nats.
      at: the name of the tap.
      layers: of which the gradient is wanted; None for all.
      bos: of text, as for `encode`.

    Returns:
      The metric of each sequence [B]; the gradient, with the axes of the tap's value behind
      [L, B], or behind the layers that were asked for (only [B] for `final_norm`).

    Raises:
      InputError: as `apply`, a tap whose values are no real numbers, or a metric that is not one.
    """
    if "+" in str(at):
        raise InputError("at", at, "one tap", "of joined taps there is no one value")
    check_model(model)
    chosen = _chosen(model, at, layers)
    return _gradient(model.config, metric, at, chosen, model.params, ids_of(model, tokens, bos))


@jit_quickly(0, 1, 2, 3)
def _gradient(
    config: ModelConfig, metric: Metric, at: str, layers: Any, params: Params, tokens: Array
) -> Any:
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
        numbers = isinstance(metrics, Array) and jnp.issubdtype(metrics.dtype, jnp.floating)
        if not numbers or metrics.ndim != 1:
            found = jax.tree.map(lambda x: f"{x.dtype} of shape {x.shape[1:]}", metrics)
            accepted = "a function that returns one real number"
            raise InputError("metric", None, accepted, f"{found} of a sequence")
        return jnp.sum(metrics), metrics

    grads, metrics = jax.grad(total, has_aux=True)(jnp.zeros(value.shape, jnp.float32))
    return metrics, grads


def logit_lens(
    model: Model,
    tokens: Tokens,
    layers: Layers = None,
    reducer: Reducer | None = None,
    bos: str = "auto",
) -> Any:
    """What the head makes of the residual stream after each layer (nostalgebraist 2020).

    lens[n] = unembed(final_norm(block_out[layers[n]])), without the norm where the architecture
    has none at the end; the last layer's are the logits.

    Args:
      model: as for `apply`.
      tokens: as for `apply`.
      layers: after which; None for all.
      reducer: of one sequence's logits [T, V], a layer at a time; None for the logits themselves.
      bos: of text, as for `encode`.

    Returns:
      Logits [n, B, T, V], or what the reducer makes of them with [n, B] in front.

    Raises:
      InputError: as `apply`.
    """
    check_model(model)
    chosen = _chosen(model, "block_out", layers)
    return _logit_lens(model.config, chosen, reducer, model.params, ids_of(model, tokens, bos))


@jit_quickly(0, 1, 2)
def _logit_lens(
    config: ModelConfig, layers: Any, reducer: Any, params: Params, tokens: Array
) -> Any:
    states = forward(config, params, tokens, {"block_out": Tap(None, layers)})[1]["block_out"]

    def of(state: Array) -> Any:
        logits = read_out(config, params, state)
        return logits if reducer is None else jax.vmap(reducer)(logits)

    return jax.lax.map(of, states)


@dataclass(frozen=True)
class MassiveDimension:
    """A dimension of the residual stream that is massive in many layers."""

    index: int
    layers: tuple[int, ...]  # in which some sequence has it massive
    largest: float  # its largest value there by magnitude, with its sign
    over_median: float  # its largest magnitude over the median of layer and sequence


def massive_dimensions(
    model: Model, tokens: Tokens, layers: float = MASSIVE_LAYERS, bos: str = "auto"
) -> tuple[MassiveDimension, ...]:
    """The dimensions that are massive in a share of the layers, e.g. for steering to leave alone.

    In a layer: some |h| > 100, > 1000 median |h|, and |h - median h| > 1000 of its median, with
    medians over the tokens and dimensions of one sequence: `core.detectors.massive_dimensions`.

    Args:
      model: as for `apply`; a model that is read layer by layer too.
      tokens: as for `apply`.
      layers: the least share of layers, above 0, at most 1.
      bos: of text, as for `encode`.

    Returns:
      The dimensions, the largest first; none where the model has none.

    Raises:
      InputError: as `apply`, a share of no layers, or states that are no numbers.
    """
    if not 0 < layers <= 1:
        raise InputError("layers", layers, "a share above 0, at most 1")
    ids = jnp.asarray(ids_of(model, tokens, bos))
    found = recorded(model.config, model.params, ids, {"block_out": _massive})["block_out"]
    flagged, over, value = (np.asarray(each) for each in found)  # [L, B, D]
    if np.isnan(value).any():
        raise InputError("model", why="its states are no numbers (NaN)")
    here = np.asarray(flagged.any(axis=1))  # [L, D]
    over, value = (np.where(flagged, each, 0.0) for each in (over, value))

    def one(index: int) -> MassiveDimension:
        values = value[:, :, index].ravel()
        largest, where = values[np.argmax(np.abs(values))], np.flatnonzero(here[:, index])
        ratio = over[:, :, index].max()
        return MassiveDimension(index, tuple(map(int, where)), float(largest), float(ratio))

    chosen = map(int, np.flatnonzero(here.mean(axis=0) >= layers))
    return tuple(sorted(map(one, chosen), key=lambda each: -abs(each.largest)))


def _massive(h: Float[Array, "T D"]) -> tuple[Array, Array, Array]:
    """What is flagged of one sequence's state, its score, and its largest value."""
    flagged, over = detected(h)
    at = jnp.argmax(jnp.abs(h), axis=0)
    return flagged, over, jnp.take_along_axis(h, at[None], axis=0)[0].astype(jnp.float32)


def ids_of(model: Model, tokens: Tokens, bos: str, least: int = 1) -> Any:
    """What a model reads, as ids [B, T], of which there must be so many in a sequence.

    Raises:
      InputError: as `apply`, or fewer.
    """
    check_model(model)
    config = model.config
    if isinstance(tokens, str) or _is_text(tokens):
        tokens = encode(model, tokens, bos)  # type: ignore[arg-type]
    elif bos != "auto":
        raise InputError("bos", repr(bos), "'auto', as ids are read as they are")
    ids = token_ids("tokens", tokens, "B T", config.vocab)
    length = ids.shape[1]
    if length < least:
        raise InputError("tokens", None, f"{least} or more", f"{length} in a sequence")
    if config.longest is not None and length > config.longest:
        raise InputError(
            "tokens",
            None,
            f"at most {config.longest}",
            f"{length} in a sequence, and learned positions end at {config.longest}",
        )
    return ids


def _is_text(tokens: Any) -> bool:
    return isinstance(tokens, list | tuple) and any(isinstance(each, str) for each in tokens)


def _chosen(model: Model, at: str, layers: Layers) -> tuple[int, ...] | None:
    tap = Tap(None, layers)
    check_layers(model.config.layers, {at: tap}, {})
    return None if layers is None else tap.chosen
