"""What a user waits for at first with a published model, against forward hooks on `transformers`.

pip install -r requirements-reference.txt    # PyTorch and transformers
python -m benchmarks.first_result            # SmolLM2-135M, three rounds, in two minutes
python -m benchmarks.first_result --model=DIRECTORY --sequences=4 --seq_len=256
python -m benchmarks.first_result --quick    # two rounds, short sequences

Import, load the model, read a prompt, read sequences of text; of each, max |h| / median |h| of
every layer's output. Each time in a process of its own, in which nothing was compiled before. What
is read once more shows what the first time costs beside the computation; it counts in no total.
"""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from rich.console import Console

import sysout_jax as so
from benchmarks import children, goals
from benchmarks.against_hooks import check, in_turn, peer, write_rows
from benchmarks.goals import Row, print_rows, quartiles
from experiments.cli import launch
from sysout_jax.data.prompt import PROMPT
from sysout_jax.data.tokenizer import SubwordTokenizer
from sysout_jax.errors import InputError, at_least
from sysout_jax.families.export import export
from sysout_jax.results import RunDirectory, plain

FLAGS = flags.FLAGS
FAMILY = "llama"  # whose blocks the peer's hooks know
RATIO, MORE = 0.9, 1.5  # goals: of the peer's total; seconds for the first of a shape
STEPS = {"load": "load", "prompt": "the prompt", "sequences": "the sequences"}
TWICE = ("prompt", "sequences")
TIMED = (*STEPS, *(f"{step} again" for step in TWICE))
QUICK = {"sequences": 2, "seq_len": 64, "rounds": 2}


@dataclass(frozen=True)
class Config:
    """What is timed."""

    model: str = "smollm2-135m"  # of the LLaMA family: a name, directory, file or hub id
    sequences: int = 4
    seq_len: int = 256
    rounds: int = 3  # of both in turn
    workdir: str = "runs"

    def __post_init__(self) -> None:
        for name, least in (("sequences", 1), ("seq_len", 2), ("rounds", 2)):
            at_least(least, name, getattr(self, name))


def run(config: Config, console: Console) -> dict[str, Any]:
    """Let both do it in turn and keep a record.

    Raises:
      InputError: PyTorch or transformers are not there, or a model without a tokenizer or of
        another family.
    """
    about = peer()
    model = so.load(config.model, dtype="float32")
    if not isinstance(model.tokenizer, SubwordTokenizer):
        raise InputError("model", config.model, "a model with one", "no tokenizer of words")
    directory = RunDirectory(config.workdir, "benchmarks-first-result")
    console.print(f"run      {directory.path}", soft_wrap=True)
    about["load"] = os.getloadavg()
    with (
        directory.record("benchmarks.first_result", config=goals.timed(config), peer=about) as kept,
        tempfile.TemporaryDirectory() as place,
    ):
        export(model, Path(place) / "model", FAMILY)
        model.tokenizer.backend.save(f"{place}/model/tokenizer.json")  # as the peer reads it too
        rows = write_rows(Path(place), model.config.vocab, config.sequences, config.seq_len)
        np.save(rows, np.load(rows)[:, :-1])
        del model
        given: dict[str, Any] = {
            "checkpoint": f"{place}/model",
            "prompt": PROMPT,
            "rows": str(rows),
        }

        def child(prepare: str, **more: Any) -> dict[str, Any]:
            with tempfile.TemporaryDirectory() as cache:  # nothing is compiled before
                return children.measured(prepare, Path(cache), **given, **more)

        calls = {
            "ours": lambda: child("benchmarks.first_reading:prepare"),
            "peer": lambda: child("benchmarks.hooks:first_result", device=about["device"]),
        }
        passes = in_turn(calls, config.rounds, lambda text: console.print(text, soft_wrap=True))
        kept |= compared(passes)
    return dict(plain(kept))


def compared(passes: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Rows of seconds and of what they should be; how far apart the ratios of both are.

    Args:
      passes: "ours" and "peer", what `children.measured` returned of `children.stepped`, by rounds.

    Raises:
      Differs: a round of ours does not find what the peer finds.
    """
    found = {side: [one["found"] for one in each] for side, each in passes.items()}
    pairs = list(zip(found["ours"], found["peer"], strict=True))
    difference = max(check(our["found"], peer["found"]) for our, peer in pairs)
    seconds = {
        side: {step: np.array([one["seconds"][step] for one in each]) for step in TIMED}
        for side, each in found.items()
    }
    for side, of in seconds.items():
        whole = np.array([one["whole"] for one in passes[side]])
        of["whole"] = whole - sum(of[f"{step} again"] for step in TWICE)
        of["start"] = of["whole"] - sum(of[step] for step in STEPS)
    ours, theirs = seconds["ours"], seconds["peer"]
    labels = {"start": "start and imports", **STEPS, "whole": "the whole process"}
    rows = [
        Row(f"{label}, {side}", quartiles(of[step]), " s")
        for step, label in labels.items()
        for side, of in seconds.items()
    ]
    ratio = quartiles(ours["whole"] / theirs["whole"])
    rows.append(Row("the whole, ours of the peer's", ratio, "", RATIO))
    for step in TWICE:
        more = quartiles(ours[step] - ours[f"{step} again"])
        rows.append(Row(f"{STEPS[step]}, ours, more than again", more, " s", MORE))
    return {"difference": difference, "seconds": seconds, "rows": rows}


def main() -> None:
    console = Console()
    config = launch.override(Config(), QUICK if FLAGS.quick else {})
    record = run(launch.override(config, {name: FLAGS[name].value for name in FLAGS}), console)
    print_rows(console, "first result", record["rows"])
    console.print(f"both find the same: at most {record['difference']:.0e} apart, as a share")


def define_flags() -> None:
    """Define the flags of this binary."""
    flags.DEFINE_bool("quick", False, "2 sequences of 64 tokens, two rounds")
    launch.define_overrides(Config)


if __name__ == "__main__":
    define_flags()
    launch.launch(main)
