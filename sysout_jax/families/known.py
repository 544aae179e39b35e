"""Published coordinates of outliers, and the comparison of a user's run with them.

The papers count layers from 1; so do the JSON file and everything printed. Layer n is block_{n-1}.
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from sysout_jax.core.ordering import median_magnitude
from sysout_jax.errors import InputError
from sysout_jax.model.config import ModelConfig


@dataclass(frozen=True)
class Known:
    """One published statement about a model.

    `channels` are among the largest of the residual stream after `layer` (None: after some layer);
    `neuron` is the largest input of that layer's down projection; for "weights" the neuron writes
    to those channels.
    """

    model: str
    kind: str
    layer: int | None
    channels: tuple[int, ...]
    neuron: int | None
    source: str


@dataclass(frozen=True)
class Check:
    """A statement beside what a run shows: the largest channels or neurons at that place."""

    known: Known
    layer: int  # where it was looked for, from 1
    found: tuple[int, ...]
    value: float  # the magnitude of the largest
    over_median: float  # the same, by the median magnitude of its place
    agrees: bool


@dataclass(frozen=True)
class ModelSize:
    """What a model must measure for coordinates to make sense."""

    layers: int
    width: int


def known_outliers() -> dict[str, tuple[ModelSize, tuple[Known, ...]]]:
    """Everything published that is listed, by model."""
    text = resources.files("sysout_jax.families").joinpath("known_outliers.json").read_text()
    return {
        entry["model"]: (
            ModelSize(entry["layers"], entry["width"]),
            tuple(
                Known(
                    entry["model"],
                    one["kind"],
                    one["layer"],
                    tuple(one.get("channels", ())),
                    one.get("neuron"),
                    one["source"],
                )
                for one in entry["known"]
            ),
        )
        for entry in json.loads(text)["models"]
    }


def known_of(name: str, config: ModelConfig) -> tuple[Known, ...]:
    """The statements about a model.

    Args:
      name: a hub id or a directory; its last part is compared, without case, and may say more
        ("Llama-2-7b-hf", "Mistral-7B-v0.1").
      config: of the model, whose size must be the published one's.

    Raises:
      InputError: nothing is known of it.
    """
    table = known_outliers()
    last = _plain(name.rstrip("/").rpartition("/")[2])
    matches = [model for model in table if last.startswith(_plain(model))]
    for model in sorted(matches, key=len, reverse=True):
        size, known = table[model]
        if (size.layers, size.width) == (config.layers, config.width):
            return known
    raise InputError(
        "check_known",
        None,
        ", ".join(table),
        (
            f"nothing is published here of {name} with {config.layers} layers of "
            f"width {config.width}"
        ),
    )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower().removeprefix("meta-"))


# ------------------------------------------------------------------------- what a run shows

TOP = 8  # coordinates that are kept of each place


def extremes(h: Float[Array, "T F"]) -> dict[str, Array]:
    """The coordinates with the largest magnitudes, best first, of one sequence.

    Args:
      h: [T, F], channels or neurons at one place.

    Returns:
      "index" and "value" [TOP], and "median" [], the median magnitude.
    """
    magnitude = jnp.abs(h.astype(jnp.float32))
    value, index = jax.lax.top_k(jnp.max(magnitude, axis=0), min(TOP, h.shape[1]))
    return {"index": index, "value": value, "median": median_magnitude(magnitude)}


TAPS: Mapping[str, Callable[[Array], Any]] = {
    "block_out": extremes,
    "down_in": extremes,
    "down_out": extremes,
}


def check_known(known: tuple[Known, ...], taps: Mapping[str, Any]) -> tuple[Check, ...]:
    """Compare statements with a run.

    Args:
      known: of `known_of`.
      taps: what `TAPS` recorded, with leading axes [L, B]; the sequence with the largest value
        speaks for a place.
    """
    return tuple(check for one in known for check in _checks(one, taps))


def _checks(known: Known, taps: Mapping[str, Any]) -> list[Check]:
    if known.kind == "channels":
        layers = len(np.asarray(taps["block_out"]["value"]))
        places = range(1, layers + 1) if known.layer is None else [known.layer]
        checks = [_among(known, taps["block_out"], layer, known.channels) for layer in places]
        # "after some layer": the layer at which most of them are found, the largest value first
        best = max(checks, key=lambda c: (len({*c.found} & {*known.channels}), c.value))
        return [best]
    assert known.neuron is not None
    assert known.layer is not None
    neuron = _among(known, taps["down_in"], known.layer, (known.neuron,), first=True)
    if known.kind == "neuron":
        return [neuron]
    # Any of the channels that the neuron writes to may be the largest.
    written = _among(known, taps["down_out"], known.layer, known.channels)
    agrees = neuron.agrees and bool({*written.found} & {*known.channels})
    return [Check(known, neuron.layer, neuron.found, neuron.value, neuron.over_median, agrees)]


def _among(
    known: Known, tap: Mapping[str, Any], layer: int, wanted: tuple[int, ...], first: bool = False
) -> Check:
    values = np.asarray(tap["value"])[layer - 1]
    row = int(np.argmax(values[:, 0]))
    found = tuple(int(i) for i in np.asarray(tap["index"])[layer - 1, row])
    top = float(values[row, 0])
    median = float(np.asarray(tap["median"])[layer - 1, row])
    seen = found[:1] if first else found
    ratio = top / median if median else float("inf")
    return Check(known, layer, found, top, ratio, set(wanted) <= {*seen})
