"""Existence, positions and relations of a model on disk, against forward hooks on `transformers`.

pip install -r requirements-reference.txt    # PyTorch and transformers
python -m benchmarks.analysis                # 16 sequences, three rounds, in two minutes
python -m benchmarks.analysis --sequences=100 --rounds=7
python -m benchmarks.analysis --model=smollm2-135m --sequences=100 --seq_len=256
python -m benchmarks.analysis --quick        # 8 short ones, two rounds

Each pass is made in a process of its own, which loads the checkpoint, so that the peak of memory is
its own. A first pass of ours compiles; those of the rounds find its programs in a cache, as every
run of experiments.analyze but the first does.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from rich.console import Console

from benchmarks import children, goals
from benchmarks.against_hooks import check, in_turn, llama, peer, write_model, write_rows
from experiments.cli import launch
from sysout_jax.analysis.locate.positions import Positions
from sysout_jax.analysis.locate.relations import Relation
from sysout_jax.analysis.locate.scan import DETECTORS, SITES, Thresholds, default_batch_size
from sysout_jax.errors import InputError, at_least
from sysout_jax.families.checkpoint import load_checkpoint
from sysout_jax.families.export import export
from sysout_jax.loading import load
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.model import Model
from sysout_jax.report.findings import analyze
from sysout_jax.results import RunDirectory
from sysout_jax.showing import Table

FLAGS = flags.FLAGS
PARTS = ("existence", "positions", "relations")
PROMPT = 64  # tokens of the prompt that existence looks at
HEADINGS = ("", "ours, first", "ours", "hooks", "hooks / ours", "goal", "met")
GOALS = {"pass": 2.0, "memory": 5.0}  # the peer's is at least so many times ours
QUICK = {"sequences": 8, "seq_len": 128, "rounds": 2}


@dataclass(frozen=True)
class Config:
    """What is timed."""

    model: str | None = None  # of the LLaMA family: a name, directory or hub id; None: a random one
    layers: int = 6  # of the random one
    width: int = 512
    vocab: int = 8192
    sequences: int = 16
    seq_len: int = 512
    batch: int | None = None  # sequences that are run together, by both; None: as ours by itself
    rounds: int = 3  # of both in turn
    workdir: str = "runs"

    def __post_init__(self) -> None:
        for name in ("layers", "vocab", "sequences", "batch"):
            at_least(1, name, getattr(self, name))
        at_least(2, "rounds", self.rounds)
        at_least(2, "seq_len", self.seq_len)
        if self.width < 1 or self.width % 64:
            raise InputError("width", self.width, "a multiple of 64")
        for name in ("layers", "width", "vocab"):
            if self.model is not None and getattr(self, name) != getattr(Config, name):
                raise InputError(name, getattr(self, name), "without --model", "no effect")

    def architecture(self) -> ModelConfig:
        """A LLaMA of that size, with heads of 64."""
        context = max(self.seq_len, PROMPT)
        return llama(self.layers, self.width, self.width // 64, self.vocab, context)


# ----------------------------------------------------------------------- both sides


def prepare(checkpoint: str, rows: str, prompt: list[int], batch: int) -> Callable[[], Any]:
    """Ours, for `children.measured`: as `hooks.analysis`."""
    model, tokens = load_checkpoint(Path(checkpoint)), np.load(rows)
    jax.block_until_ready(model.params)
    return lambda: found_by_us(model, tokens, prompt, batch)


def found_by_us(model: Model, rows: np.ndarray, prompt: list[int], batch: int) -> dict[str, Any]:
    """What of our findings the peer finds too, as JSON knows it."""
    findings = analyze(model, prompt, rows, PARTS, batch=batch)
    assert findings.existence is not None
    assert findings.positions is not None
    assert findings.relations is not None
    shown = [findings.existence.panels[at] for at in (2, 0)]
    return {
        "existence": {
            name: [panel.layer, *panel.marks[0]] for name, panel in zip(SITES, shown, strict=True)
        },
        "weights": findings.positions.weights.ratio.tolist(),
        **of_positions(findings.positions),
        "relations": [_shares(row) for row in findings.relations.rows[2:]],
    }


def of_positions(found: Positions) -> dict[str, Any]:
    """The numbers of `positions` that the peer has too."""
    names = {detector.name: detector.name.removeprefix("an_") for detector in DETECTORS}
    names["an_attention"] = "attention"
    return {
        **{
            name: {
                "top": site.top.tolist(), "median": site.median.tolist(),
                "feature": site.features[:, 0].tolist(),
            }
            for name, site in found.sites.items()
        },
        "attention": {
            **{name: each.tolist() for name, each in found.attention.items()},
            "heads": found.heads.tolist(),
        },
        "flagged": {name: found.kinds[kind].flagged for kind, name in names.items()},
    }  # fmt: skip


def _shares(row: Relation) -> dict[str, float | None]:
    means = {"precision": row.precision.mean, "recall": row.recall.mean}
    return {name: None if np.isnan(mean) else mean for name, mean in means.items()}


# ----------------------------------------------------------------------- the binary


def run(config: Config, console: Console) -> dict[str, Any]:
    """Make both passes in turn and keep a record.

    Raises:
      InputError: PyTorch or transformers are not there.
    """
    about = peer()
    directory = RunDirectory(config.workdir, "benchmarks-analysis")
    console.print(f"run      {directory.path}", soft_wrap=True)
    about["load"] = os.getloadavg()
    with (
        directory.record("benchmarks.analysis", config=goals.timed(config), peer=about) as record,
        tempfile.TemporaryDirectory() as place,
    ):
        if config.model is None:
            architecture = config.architecture()
            checkpoint = write_model(architecture, Path(place))
        else:
            model = load(config.model, dtype="float32")
            architecture, checkpoint = model.config, Path(place) / "model"
            export(model, checkpoint, "llama")
        rows = write_rows(Path(place), architecture.vocab, config.sequences, config.seq_len)
        ids = np.load(rows)
        inputs = Path(place) / "inputs.npy"
        np.save(inputs, ids[:, :-1])
        both = {
            "cache": Path(place) / "cache",
            "checkpoint": str(checkpoint),
            "prompt": ids[0, : min(PROMPT, config.seq_len)].tolist(),
            "batch": config.batch or default_batch_size(config.seq_len),
        }
        calls = {
            "ours": lambda: children.measured(
                "benchmarks.analysis:prepare", rows=str(rows), **both
            ),
            "peer": lambda: children.measured(
                "benchmarks.hooks:analysis", rows=str(inputs), limits=asdict(Thresholds()),
                device=about["device"], **both,
            ),
        }  # fmt: skip

        def say(text: str) -> None:
            console.print(text, soft_wrap=True)

        first = in_turn({"ours, first": calls["ours"]}, 1, say)["ours, first"][0]
        passes = in_turn(calls, config.rounds, say)
        record |= {"model": asdict(architecture), **compared(first, passes)}
    return record


MEASURES: Mapping[str, Callable[[Mapping[str, Any]], float]] = {
    "pass": lambda done: done["seconds"][0],
    "whole": lambda done: done["whole"],
    "memory": lambda done: done["peak"] - done["loaded"],
    "peak": lambda done: done["peak"],
}


def compared(
    first: Mapping[str, Any], passes: Mapping[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """How far apart both are; seconds and bytes of each; and the peer's over ours, by rounds.

    Args:
      first: the pass of ours that compiled.
      passes: "ours" and "peer", by rounds.

    Raises:
      Differs: a pass of ours does not find what the peer finds.
    """
    pairs = list(zip(passes["ours"], passes["peer"], strict=True))
    return {
        "difference": max(check(our["found"], peer["found"]) for our, peer in pairs),
        "found": passes["ours"][0]["found"],
        "first": {what: of(first) for what, of in MEASURES.items()},
        "measured": {
            name: {what: [of(done) for done in each] for what, of in MEASURES.items()}
            for name, each in passes.items()
        },
        "ratio": {
            what: [
                float(q)
                for q in np.quantile([of(peer) / of(our) for our, peer in pairs], (0.5, 0, 1))
            ]
            for what, of in MEASURES.items()
        },
    }


def texts(record: Mapping[str, Any]) -> list[list[str]]:
    """A row for each measure: ours, the peer's, how many times ours that is, and its goal."""
    rows = {
        "pass": ("the pass", 1, "s"), "whole": ("the whole process", 1, "s"),
        "memory": ("peak above the model", 2**20, "MiB"),
        "peak": ("peak of the process", 2**20, "MiB"),
    }  # fmt: skip
    found = []
    for what, (label, unit, name) in rows.items():
        ratio, goal, measured = record["ratio"][what], GOALS.get(what), record["measured"]
        medians = [float(np.median(measured[side][what])) for side in ("ours", "peer")]
        found.append([
            label,
            *(f"{value / unit:.1f} {name}" for value in (record["first"][what], *medians)),
            "{:.2f} ({:.2f} to {:.2f})".format(*ratio),
            f">= {goal:g}" if goal else "",
            ("yes" if ratio[0] >= goal else "no") if goal else "",
        ])  # fmt: skip
    return found


def table(record: Mapping[str, Any]) -> Table:
    """The rows of a record, as docs/performance.md shows them."""
    return Table.of("", HEADINGS, texts(record), "l" + "r" * (len(HEADINGS) - 2) + "l")


def print_table(console: Console, record: Mapping[str, Any]) -> None:
    """The rows of a record."""
    goals.print_table(console, table(record))
    console.print("medians; ratios within rounds: median, least and most; the first compiles")
    console.print(f"both find the same: at most {record['difference']:.0e} apart, as a share")


def main() -> None:
    console = Console()
    config = launch.override(Config(), QUICK if FLAGS.quick else {})
    given = {name: FLAGS[name].value for name in FLAGS}
    print_table(console, run(launch.override(config, given), console))


def define_flags() -> None:
    """Define the flags of this binary."""
    flags.DEFINE_bool("quick", False, "8 sequences of 128 tokens, two rounds")
    launch.define_overrides(Config)


if __name__ == "__main__":
    define_flags()
    launch.launch(main)
