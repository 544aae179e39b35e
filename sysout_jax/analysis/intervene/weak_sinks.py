"""What is left when the first token's sink is parameters: weaker, earlier sinks at other tokens.

A few rows of W_down write them, layers before the first token becomes massive, at tokens such as
" the". They are cut at a bound, or put before the text as tokens. Axes: L layers, B texts, T
tokens, S = T + 1, F MLP width.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from sysout_jax.analysis.intervene.conversion import with_bounds
from sysout_jax.analysis.locate.scan import for_length, over_batches
from sysout_jax.analysis.locate.weights import layer_count, layer_params, projection
from sysout_jax.analysis.statistics import Interval, bootstrap_interval
from sysout_jax.core.detectors import ratio_or_zero
from sysout_jax.core.measures import top1_over_median
from sysout_jax.model.compiling import jit_quickly
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, final_states
from sysout_jax.model.loss import token_losses

STANDS_OUT = 3.0  # max/mean of a row of W_down, over the median of the layers' largest
CARRIES = 64.0  # PrefixQuant's: a token's largest |down_in| over the median of tokens
BOUNDS = (200.0, 100.0, 50.0, 25.0, 12.0)  # k of the bounds k x RMS that are tried, in this order
MOVES = 0.02  # nats: the upper end of the change's interval up to which the loss does not move


@dataclass(frozen=True)
class Profile:
    """What texts show of a model: losses, and how far its largest values stand out."""

    losses: np.ndarray  # [B], mean over next tokens, in nats
    over_median: np.ndarray  # [L, B], largest |h| after each layer over the median
    square: np.ndarray  # [L, B], mean square of down_in, the first token left out
    token_peak: np.ndarray  # [L, B, T], largest |down_in| of each token

    @property
    def rms(self) -> np.ndarray:
        """[L]: the root mean square of down_in over texts, the first tokens left out."""
        return np.asarray(np.sqrt(self.square.mean(axis=1)))

    @property
    def over_rms(self) -> np.ndarray:
        """[L]: the largest |down_in| over that."""
        return np.asarray(self.token_peak.max(axis=(1, 2)) / np.maximum(self.rms, 1e-30))


@dataclass(frozen=True)
class Treatment:
    """A way to deal with the sinks, and what it does on the calibration text."""

    name: str
    bound: float | None  # k of k x RMS
    loss: float  # nats per token
    change: Interval  # of the loss against the model as trained, paired by text
    over_median: float  # the largest |h| over the median, of all layers and texts
    over_rms: float  # the largest |down_in| over the RMS, of all layers


def profile(
    config: ModelConfig, params: Params, rows: Int[np.ndarray, "B S"], skip: int, batch: int
) -> Profile:
    """Measure a model on texts.

    Args:
      config: the architecture.
      params: its parameters.
      rows: [B, S]: inputs and next tokens.
      skip: of the next tokens, how many at the start do not count in the loss.
      batch: texts that are run together.
    """
    run = partial(_profile, for_length(config, rows.shape[1] - 1), skip)
    found = over_batches(run, params, rows, batch)
    down = found["down_in"]
    return Profile(found["loss"][0], found["block_out"], down["square"], down["peak"])


def _inputs(x: Float[Array, "T F"]) -> dict[str, Array]:
    x = x.astype(jnp.float32)
    return {"square": jnp.mean(x[1:] ** 2), "peak": jnp.max(jnp.abs(x), axis=1)}


@jit_quickly(0, 1)
def _profile(config: ModelConfig, skip: int, params: Params, rows: Array) -> dict[str, Any]:
    taps = {"block_out": top1_over_median, "down_in": _inputs}
    states, found = final_states(config, params, rows[:, :-1], taps)
    loss = jnp.mean(token_losses(config, params, states, rows[:, 1:])[:, skip:], axis=1)
    return found | {"loss": loss[None]}


def judged(name: str, found: Profile, trained: np.ndarray, bound: float | None = None) -> Treatment:
    """What a treatment did.

    Args:
      name: of the treatment.
      found: the profile of the model under it.
      trained: [B] losses of the model as trained.
      bound: k of its bounds.
    """
    change = bootstrap_interval(found.losses - trained)
    largest = float(found.over_median.max()), float(found.over_rms.max())
    return Treatment(name, bound, float(found.losses.mean()), change, *largest)


def standing_rows(params: Params) -> tuple[Float[np.ndarray, "L"], tuple[int, ...]]:
    """max/mean |W| of the row of W_down that stands out most in each layer; layers where it does.

    A row is what one neuron writes; a layer stands out whose ratio is `STANDS_OUT` times the median
    of all layers'.
    """
    ratios = np.array(
        [
            float(_row_ratio(projection(layer_params(params, layer), "mlp", "down")))
            for layer in range(layer_count(params))
        ]
    )
    above = ratios >= STANDS_OUT * np.median(ratios)
    return ratios, tuple(np.flatnonzero(above).tolist())


@jit_quickly()
def _row_ratio(down: Float[Array, "F D"]) -> Float[Array, ""]:
    size = jnp.abs(down.astype(jnp.float32))
    return jnp.max(ratio_or_zero(jnp.max(size, axis=1), jnp.mean(size, axis=1)))


def carriers(
    found: Profile, rows: Int[np.ndarray, "B S"], initial: Sequence[int]
) -> tuple[int, ...]:
    """The tokens that PrefixQuant would put before every text: initial ones, then carriers.

    A token is an outlier where, in some layer, its largest |down_in| is more than `CARRIES` medians
    of its text's tokens. As many are taken as a text has outliers on average, rounded up, the most
    frequent ones; the first token of a text is an outlier by its place.

    Args:
      found: the profile of the model as trained on these rows.
      rows: [B, S].
      initial: C tokens that go first.

    Source: Chen et al. 2024 (arXiv:2410.05265), section 4; there the initial token goes last,
      and the number is that of the layer with the most outliers.
    """
    peak = found.token_peak
    median = np.median(peak, axis=2, keepdims=True)
    outlier = (peak > CARRIES * np.maximum(median, 1e-30)).any(axis=0)
    wanted = ceil(outlier.sum() / len(rows)) - len(initial)
    ids = Counter(rows[:, 1:-1][outlier[:, 1:]].tolist())
    return (*initial, *(token for token, _ in ids.most_common(max(wanted, 0))))


@dataclass(frozen=True)
class Bounded:
    """A converted model with bounds on down_in, and what it does."""

    config: ModelConfig
    params: Params
    bound: float  # k
    found: Profile


def bounded(
    config: ModelConfig,
    params: Params,
    free: Profile,
    run: Callable[[ModelConfig, Params], Profile],
    tried: Callable[[], None] = lambda: None,
) -> Bounded | None:
    """The converted model with the tightest bounds of `BOUNDS` under which the loss does not move.

    |down_in| of layer l is at most k x RMS_l, RMS over all calibration tokens but the first of each
    text. Bounds are tried from the loosest to the first one that moves the loss by more than
    `MOVES`.

    Args:
      config: of the converted model.
      params: its parameters.
      free: its profile without bounds.
      run: gives the profile of a model on the same texts.
      tried: called after each.

    Returns:
      None where the loosest one moves the loss.
    """
    best = None
    for k in BOUNDS:
        changed, more = with_bounds(config, params, k * free.rms)
        found = run(changed, more)
        tried()
        if not bootstrap_interval(found.losses - free.losses).high <= MOVES:
            break
        best = Bounded(changed, more, k, found)
    return best
