"""100 patches of one prompt: a program for each, one program for all of them, several at a time.

python -m benchmarks.sweep            # SmolLM2-135M, 30 layers
python -m benchmarks.sweep --quick    # one round, few patches
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Array, Float, Int
from rich.console import Console

import sysout_jax as so
from benchmarks import goals
from benchmarks.goals import Row, print_rows, quartiles
from experiments.cli import launch
from sysout_jax.errors import at_least
from sysout_jax.model.compiling import jit_quickly
from sysout_jax.model.decoder import forward
from sysout_jax.model.model import Model
from sysout_jax.results import RunDirectory, plain

FLAGS = flags.FLAGS
FASTER = 20.0  # the goal: times a program for each patch
ALIKE = 1e-3  # of the largest logit
QUICK = {"patches": 6, "together": 3, "compiled": 1, "rounds": 1}
Places = Int[np.ndarray, "n two"]  # layer and position


@dataclass(frozen=True)
class Config:
    """What is timed."""

    model: str = "smollm2-135m"  # what is patched
    patches: int = 100  # of one prompt, a layer and a position each
    tokens: int = 8  # of the prompt
    together: int = 50  # patches that are run at a time
    compiled: int = 3  # patches that have a program each; their mean stands for all of them
    rounds: int = 3  # of the three ways, every second one in the opposite order
    workdir: str = "runs"  # where run directories go

    def __post_init__(self) -> None:
        for name in ("patches", "tokens", "together", "compiled", "rounds"):
            at_least(1, name, getattr(self, name))


def run(config: Config, console: Console) -> dict[str, Any]:
    """Time the three ways, each with nothing compiled before, and keep a record.

    Raises:
      RuntimeError: they do not agree.
    """
    directory = RunDirectory(config.workdir, "benchmarks-sweep")
    console.print(f"run      {directory.path}", soft_wrap=True)
    with directory.record("benchmarks.sweep", config=goals.timed(config), rows=[]) as record:
        model = so.load(config.model)
        clean, corrupt = np.random.default_rng(0).integers(
            model.config.vocab, size=(2, 1, config.tokens)
        )
        donor = so.apply(model, clean, {"block_out": None})[1]["block_out"][:, 0]
        every = [(layer, at) for at in range(config.tokens) for layer in range(model.config.layers)]
        places = np.array(every[: config.patches])
        few = places[: config.compiled]
        calls = {
            "each": lambda: a_program_for_each(model, corrupt, donor, few),
            "one": lambda: one_program(model, corrupt, donor, places, 1),
            "batch": lambda: one_program(model, corrupt, donor, places, config.together),
        }
        ways: dict[str, list[float]] = {name: [] for name in calls}
        for turn in range(config.rounds):
            found = {}
            for name in list(calls)[:: -1 if turn % 2 else 1]:
                seconds, found[name] = timed(calls[name])
                ways[name].append(seconds * len(places) / len(found[name]))
            for name in ("one", "batch"):
                check(found[name][: len(few)], found["each"])
        record["rows"] = rows(ways, len(places), config.together)
    return dict(plain(record))


def timed(way: Callable[[], Any]) -> tuple[float, Float[np.ndarray, "n V"]]:
    """Seconds of a way with nothing compiled before, and what it returns."""
    jax.clear_caches()
    begun = time.perf_counter()
    found = way()
    return time.perf_counter() - begun, found


def patched(
    state: Float[Array, "T D"], layer: Array, donor: Float[Array, "L T D"], here: Array, at: Array
) -> Float[Array, "T D"]:
    """The donor's state in the place of one layer's at one position."""
    return jnp.where(layer == here, state.at[at].set(donor[layer, at]), state)


def one_program(
    model: Model, tokens: Any, donor: Float[Array, "L T D"], places: Places, together: int
) -> Float[np.ndarray, "n V"]:
    """The last logits of every patch: places are arguments, and sequences of a batch have each
    their own."""
    found = []
    for first in range(0, len(places), together):
        layers, positions = places[first : first + together].T
        edit = so.Edit(patched, donor, layers, positions, in_axes=(None, 0, 0))
        copies = np.repeat(tokens, len(layers), axis=0)
        logits, _ = so.apply(model, copies, edits={"block_out": edit})
        found.append(np.asarray(logits[:, -1]))
    return np.concatenate(found)


def a_program_for_each(
    model: Model, tokens: Any, donor: Float[Array, "L T D"], places: Places
) -> Float[np.ndarray, "n V"]:
    """The same where the place is a part of the function, as that of a hook is."""
    found = []
    for place in places.tolist():

        def here(state: Array, layer: Array, place: Any = place) -> Array:
            return patched(state, layer, donor, *map(jnp.asarray, place))

        edits = {"block_out": so.Edit(here)}
        here_alone = partial(forward, model.config, taps={}, edits=edits)
        logits = jit_quickly()(here_alone)  # as `so.apply` compiles
        found.append(np.asarray(logits(model.params, jnp.asarray(tokens))[0][:, -1]))
    return np.concatenate(found)


def check(found: Float[np.ndarray, "n V"], expected: Float[np.ndarray, "n V"]) -> None:
    """Raise unless two ways have the same logits."""
    apart = np.abs(found - expected).max() / np.abs(expected).max()
    if not apart <= ALIKE:
        raise RuntimeError(f"two ways of the same patches are {apart:.2g} of a logit apart")


def rows(ways: dict[str, list[float]], count: int, together: int) -> list[Row]:
    """Seconds of each way, and how much faster one program is within a round."""
    each, one, batch = (np.array(ways[name]) for name in ("each", "one", "batch"))
    label = f"{count} patches"
    return [
        Row(f"{label}, a program for each", quartiles(each), " s"),
        Row(f"{label}, one program, one at a time", quartiles(one), " s"),
        Row(f"{label}, one program, {together} at a time", quartiles(batch), " s"),
        Row("a program for each, times one at a time", quartiles(each / one)),
        Row(f"a program for each, times {together} at a time", quartiles(each / batch), "", None,
            FASTER),
    ]  # fmt: skip


def main() -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    console = Console()
    config = launch.override(Config(), QUICK if FLAGS.quick else {})
    config = launch.override(config, {name: FLAGS[name].value for name in FLAGS})
    print_rows(console, "a sweep of patches", run(config, console)["rows"])


def define_flags() -> None:
    """Define the flags of this binary."""
    flags.DEFINE_bool("quick", False, "one round, few patches")
    launch.define_overrides(Config)


if __name__ == "__main__":
    define_flags()
    launch.launch(main)
