"""How long a sequence attention's statistics reach in 8 GiB, against `output_attentions=True`.

pip install -r requirements-reference.txt            # PyTorch and transformers
python -m benchmarks.long_context                    # as long as four minutes allow
python -m benchmarks.long_context --minutes=60       # 16 times as long as the peer
python -m benchmarks.long_context --quick            # within 1 GiB, in twenty seconds

One pass over one sequence: magnitudes at two sites and the attention that each key receives, of
every layer. `transformers` returns the maps of all layers together: of a deeper model it reaches
less, we as much, so two layers are the least that compares both. Each length is run in a process
of its own, whose private memory the kernel limits; a length counts if its process ends with a
result. Ours is compiled before it is measured, as the peer has nothing to compile.
"""

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from rich.console import Console

from benchmarks import children, goals
from benchmarks.against_hooks import in_turn, llama, peer, write_model, write_rows
from benchmarks.lengths import described, print_tables
from experiments.cli import launch
from sysout_jax.analysis.locate.scan import (
    QUERIES_AT_ONCE,
    SITES,
    Thresholds,
    for_length,
    one_pass,
    over_batches,
)
from sysout_jax.errors import InputError, at_least
from sysout_jax.families.checkpoint import load_checkpoint
from sysout_jax.model.config import ModelConfig
from sysout_jax.results import RunDirectory, plain

FLAGS = flags.FLAGS
SHARES = 64  # of a sequence, whose keys' attention is compared
CALLS = 5  # of the work in a process where both are timed; the first warms up
GROWTH = 4.4  # of the time for twice the tokens: what a run is expected to take
QUICK = {"gib": 1.0, "minutes": 0.3, "shared": 2048, "rounds": 1, "step": 2048}


@dataclass(frozen=True)
class Config:
    """What is measured."""

    layers: int = 2  # of the LLaMA
    width: int = 256
    heads: int = 8
    vocab: int = 512
    gib: float = 8.0  # of private memory that a process may have
    minutes: float = 4.0  # no run begins that is expected to end after them
    shared: int = 4096  # tokens at which both are timed and compared
    rounds: int = 2  # of both in turn there
    step: int = 1024  # tokens to which the peer's longest sequence is looked for
    workdir: str = "runs"

    def __post_init__(self) -> None:
        for name in ("layers", "heads", "vocab", "rounds"):
            at_least(1, name, getattr(self, name))
        at_least(QUERIES_AT_ONCE + 1, "shared", self.shared)
        for name in ("shared", "step"):
            found = getattr(self, name)
            if found < 1 or found % SHARES:
                raise InputError(name, found, f"a multiple of {SHARES}")
        if self.width < 1 or self.width % 16 or self.width % (2 * self.heads):
            raise InputError("width", self.width, "a multiple of 16 and of twice the heads")
        for name in ("gib", "minutes"):
            if not getattr(self, name) > 0:
                raise InputError(name, getattr(self, name), "a number above 0")

    def architecture(self) -> ModelConfig:
        """A LLaMA of that size; rotary positions have no end."""
        return llama(self.layers, self.width, self.heads, self.vocab, 2**20)


# ----------------------------------------------------------------------- ours


def prepare(checkpoint: str, rows: str) -> Callable[[], Any]:
    """Ours, for `children.measured`: `analysis.scan`'s pass, compiled; as `hooks.statistics`."""
    model, tokens = load_checkpoint(Path(checkpoint)), np.load(rows)
    config = for_length(model.config, tokens.shape[1], maps=True)
    run = jax.jit(partial(one_pass, config)).lower(model.params, tokens).compile()
    return lambda: shown(over_batches(run, model.params, tokens, batch=1))


def shown(taps: Mapping[str, Any]) -> dict[str, Any]:
    """What of a pass over one sequence the peer finds too, as JSON knows it.

    Returns:
      Of each site by layer the largest magnitudes, the median, and the feature of the largest
      peak; "received": the attention [L, N, shares] to the keys of each share of the sequence.
    """
    received = taps["attn_weights"]["received"][:, 0]
    return {
        **{
            name: {
                "top": taps[name]["top"][:, 0].tolist(),
                "median": taps[name]["median"][:, 0].tolist(),
                "feature": taps[name]["feature_peak"][:, 0].argmax(axis=-1).tolist(),
            }
            for name in SITES
        },
        "received": received.reshape(*received.shape[:2], SHARES, -1).sum(axis=-1).tolist(),
    }


# ----------------------------------------------------------------------- how long


Measure = Callable[..., dict[str, Any]]  # (tokens, calls=...) -> as `children.measured`


def longest(measure: Measure, first: int, step: int, say: Callable[[str], None]) -> dict[str, Any]:
    """The longest sequence that memory allows, to less than twice `step`.

    Args:
      first: a length that is known to work; doubled until one does not, then halved in between.

    Returns:
      "points": what was measured, by length; "refused": the shortest length without memory for it.
    """
    points: dict[int, dict[str, Any]] = {}
    works, refused = first, 0
    while not refused or refused - works >= 2 * step:
        tokens = works + (refused - works) // (2 * step) * step if refused else 2 * works
        try:
            points[tokens] = measure(tokens)
        except children.NoMemory as error:
            refused = tokens
            say(f"hooks, {tokens:,} tokens: {error}")
        else:
            works = tokens
            say(f"hooks, {tokens:,} tokens: {_said(points[tokens])}")
    return {"points": points, "refused": refused}


def as_time_allows(
    measure: Measure, first: int, end: float, say: Callable[[str], None]
) -> dict[str, Any]:
    """Longer and longer sequences, each twice the last, until memory or time ends.

    Args:
      first: the first length.
      end: of `time.perf_counter`.

    Returns:
      "points": what was measured, by length; "refused": the length that was not run, or failed;
      "why": of these two.
    """
    points: dict[int, dict[str, Any]] = {}
    tokens, expected = first, 0.0
    while time.perf_counter() + expected <= end:
        try:
            points[tokens] = measure(tokens)
        except children.NoMemory as error:
            return {"points": points, "refused": tokens, "why": str(error)}
        say(f"ours, {tokens:,} tokens: {_said(points[tokens])}")
        seconds = points[tokens]["seconds"][-1]
        expected = GROWTH * seconds + points[tokens]["whole"] - sum(points[tokens]["seconds"])
        tokens *= 2
    return {"points": points, "refused": tokens, "why": "it would have ended after --minutes"}


def _said(done: Mapping[str, Any]) -> str:
    above = (done["peak"] - done["loaded"]) / 2**20
    return f"{done['seconds'][-1]:.1f} s, {above:.0f} MiB above the model"


def run(config: Config, console: Console) -> dict[str, Any]:
    """Measure both and keep a record.

    Raises:
      InputError: PyTorch or transformers are not there, or JAX does not compute on the CPU.
    """
    if jax.default_backend() != "cpu":
        raise InputError(
            (f"JAX computes on a {jax.default_backend()}, whose memory is not limited here"),
            accepted="JAX_PLATFORMS=cpu",
        )
    end = time.perf_counter() + 60 * config.minutes
    about = {**peer(), "load": os.getloadavg()}
    directory = RunDirectory(config.workdir, "benchmarks-long-context")
    console.print(f"run      {directory.path}", soft_wrap=True)
    architecture, limit = config.architecture(), int(config.gib * 2**30)

    def say(text: str) -> None:
        console.print(text, soft_wrap=True)

    with (
        directory.record(
            "benchmarks.long_context", config=goals.timed(config), peer=about
        ) as record,
        tempfile.TemporaryDirectory() as place,
    ):
        both: dict[str, Any] = {
            "cache": Path(place) / "cache", "limit": limit,
            "checkpoint": str(write_model(architecture, Path(place))),
        }  # fmt: skip

        def ours(tokens: int, calls: int = 1) -> dict[str, Any]:
            rows = write_rows(Path(place), config.vocab, 1, tokens - 1)
            return children.measured(
                "benchmarks.long_context:prepare", calls=calls, rows=str(rows), **both
            )

        def theirs(tokens: int, calls: int = 1) -> dict[str, Any]:
            rows = write_rows(Path(place), config.vocab, 1, tokens - 1)
            return children.measured(
                "benchmarks.hooks:statistics", calls=calls, rows=str(rows), shares=SHARES,
                limits=asdict(Thresholds()), device="cpu", **both,
            )  # fmt: skip

        calls = {"ours": partial(ours, config.shared, CALLS),
                 "hooks": partial(theirs, config.shared, CALLS)}  # fmt: skip
        passes = compared(config, calls, say)
        found = {
            "hooks": longest(theirs, config.shared, config.step, say),
            "ours": as_time_allows(ours, 2 * config.shared, end, say),
        }
        record |= {
            "model": asdict(architecture),
            **described(config.shared, config.gib, passes, found),
        }
    return dict(plain(record))


def compared(
    config: Config, calls: Mapping[str, Callable[[], Any]], say: Callable[[str], None]
) -> dict[str, list[dict[str, Any]]]:
    """`in_turn` at the length that both are compared at.

    Raises:
      InputError: one of them has too little memory for it.
    """
    try:
        return in_turn(calls, config.rounds, say)
    except children.NoMemory as error:
        raise InputError(
            "gib",
            f"{config.gib:g}",
            "more of it, or fewer tokens",
            f"too little for --shared={config.shared}",
        ) from error


# ----------------------------------------------------------------------- the binary


def main() -> None:
    console = Console()
    config = launch.override(Config(), QUICK if FLAGS.quick else {})
    config = launch.override(config, {name: FLAGS[name].value for name in FLAGS})
    print_tables(console, run(config, console))


def define_flags() -> None:
    """Define the flags of this binary."""
    flags.DEFINE_bool("quick", False, "within 1 GiB, in twenty seconds")
    launch.define_overrides(Config)


if __name__ == "__main__":
    define_flags()
    launch.launch(main)
