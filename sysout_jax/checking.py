"""Whether a loaded model does on this machine what its analysis takes for granted."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import log
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sysout_jax.core.attention import VARIANTS
from sysout_jax.core.layers import cross_entropy
from sysout_jax.data.prompt import encode_prompt
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import init
from sysout_jax.model.model import Model, check_model
from sysout_jax.model.taps import Edit
from sysout_jax.running import apply

# Plain enough that any language model of English has read the like of it.
PARAGRAPH = (
    "The sun was already low when they came down to the river. The old man tied the boat to a "
    "tree, and the two children carried the basket up the hill to the house. Their mother had "
    "made a fire, and there was bread on the table. After dinner they sat by the window and "
    "watched the lights of the village on the other side of the water.\n"
)
LONGEST = 64  # tokens of it
SURE = 0.75  # of the loss of a uniform guess: above it a model has learned next to nothing
ROUNDING = {"float32": 1e-4, "bfloat16": 2e-2}  # of a row's sum


@dataclass(frozen=True)
class Item:
    """One thing that was looked at: whether it is as it should be, and what was found."""

    name: str
    passed: bool
    found: str


@dataclass(frozen=True)
class Checked:
    """What `check` found, as one line."""

    items: tuple[Item, ...]

    @property
    def passed(self) -> bool:
        """Whether everything is as it should be."""
        return all(item.passed for item in self.items)

    def __str__(self) -> str:
        wrong = [f"{item.name}: {item.found}" for item in self.items if not item.passed]
        good = [item.found for item in self.items if item.passed]
        return "; ".join([*(f"NOT AS IT SHOULD BE: {one}" for one in wrong), *good])


def check(model: Model) -> Checked:
    """Look at a model in one short pass over a paragraph and, beside it, the same with an edit.

    Shapes of all parameters are those of the config; logits are finite; rows of attention sum, with
    what extra keys take, to one (of variants that clip or gate, to at most one); an edit of what
    attention writes changes the logits; with a tokenizer, a text comes back from its ids and the
    loss on a paragraph of plain English is below 0.75 ln V.

    Returns:
      An item for each of these that applies. Nothing is raised for a model that fails one.

    Raises:
      InputError: it is no model.
    """
    if not isinstance(model, Model):  # of one, its shapes say what is wrong
        check_model(model)
    shapes = _shapes(model)
    if not shapes.passed:
        return Checked((shapes,))
    tokens = _tokens(model)
    factors = jnp.array([1.0, 2.0])
    edit = Edit(_scaled, factors, layers=0, in_axes=0)
    both = np.stack([tokens, tokens])
    (logits, edited), taps = apply(model, both, _rows(model.config), {"attn_out": edit})
    items = [shapes, _finite(logits)]
    if taps:
        items.append(_sums(model.config, taps))
    items.append(_moved(logits, edited))
    if model.tokenizer is not None:
        items += [_loss(model, tokens, logits), _text(model)]
    return Checked(tuple(items))


def _tokens(model: Model) -> Int[np.ndarray, "T"]:
    """The paragraph as the model reads it; without a tokenizer, ids in turn."""
    longest = min(LONGEST, model.config.longest or LONGEST)
    if model.tokenizer is None:
        return np.arange(longest, dtype=np.int32) % model.config.vocab
    return encode_prompt(model.tokenizer, PARAGRAPH)[:longest]


def row_sums(weights: Float[Array, "N T S"]) -> Float[Array, "N T"]:
    """What each query gives to the real keys together."""
    return jnp.sum(weights.astype(jnp.float32), axis=-1)


def _rows(config: ModelConfig) -> dict[str, Callable[..., Any] | None]:
    variant = VARIANTS[config.variant]
    if not variant.normalised or config.execution.query_block is not None:
        return {}
    return {"attn_weights": row_sums, "attn_extra": None}


def _shapes(model: Model) -> Item:
    wanted = jax.eval_shape(partial(init, model.config), jax.random.key(0))
    found = {p: x.shape for p, x in jax.tree_util.tree_leaves_with_path(model.params)}
    same = found == {p: x.shape for p, x in jax.tree_util.tree_leaves_with_path(wanted)}
    said = f"{len(found)} parameters of the config's shapes"
    return Item("shapes", same, said if same else "parameters are not those of the config")


def _finite(logits: Float[Array, "T V"]) -> Item:
    finite = bool(jnp.isfinite(logits).all())
    return Item("logits", finite, "logits finite" if finite else "NaN or infinity")


def _sums(config: ModelConfig, taps: dict[str, Any]) -> Item:
    sums = np.asarray(taps["attn_weights"] + taps["attn_extra"], np.float32)
    exact = config.variant == "softmax" or VARIANTS[config.variant].extra_key
    off = float(np.abs(sums - 1).max() if exact else max(0.0, sums.max() - 1))
    said = f"rows of attention sum to {'one' if exact else 'at most one'} within {off:.0e}"
    return Item("attention", off <= ROUNDING[config.execution.dtype], said)


def _scaled(value: Array, layer: Array, factor: Array) -> Array:
    return factor.astype(value.dtype) * value


def _moved(logits: Float[Array, "T V"], edited: Float[Array, "T V"]) -> Item:
    change = float(jnp.abs(edited - logits).max())
    return Item("edits", change > 0, f"an edit moves logits by {change:.2g}")


def _loss(model: Model, tokens: Int[np.ndarray, "T"], logits: Float[Array, "T V"]) -> Item:
    loss = float(jnp.mean(cross_entropy(logits[:-1], jnp.asarray(tokens[1:]))))
    uniform = log(model.config.vocab)
    said = f"loss {loss:.2f} on a paragraph, {uniform:.2f} by chance"
    return Item("loss", loss < SURE * uniform, said)


def _text(model: Model) -> Item:
    """Whether a text comes back from its ids, but for a space in front that some add."""
    back = model.tokenizer.decode(model.tokenizer.encode(PARAGRAPH))
    same = back.strip() == PARAGRAPH.strip()
    said = "text comes back from its ids"
    return Item("tokenizer", same, said if same else f"text comes back as {back[:60]!r}")
