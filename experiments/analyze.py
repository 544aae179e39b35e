"""Where are a model's outliers, how do they relate, live and die, and what do they do?

python -m experiments.analyze --model=runs/variants/RUN --variant=softmax
python -m experiments.analyze --model=runs/variants/RUN/models/NAME --corpus=PATH --sequences=64
python -m experiments.analyze --model=RUN --only=positions,roles --seq_len=16384 --sequences=1
python -m experiments.analyze --model=gpt2 --corpus=PATH --check_known
python -m experiments.analyze --model=meta-llama/Llama-2-7b-hf --corpus=PATH --stream
python -m experiments.analyze --model=EleutherAI/pythia-14m --revisions=step0,step512,step8000
python -m experiments.analyze --redraw=runs/analyze/RUN
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from sysout_jax.analysis.compress.calibration import disjoint_rows
from sysout_jax.analysis.locate.scan import (
    QUERIES_AT_ONCE,
    Progress,
    Thresholds,
    default_batch_size,
    for_length,
    over_batches,
)
from sysout_jax.analysis.measure.dimensions import chosen_positions
from sysout_jax.analysis.measure.dynamics import Dynamics, of_summaries
from sysout_jax.checking import check
from sysout_jax.data.prompt import PROMPT, encode_prompt
from sysout_jax.errors import InputError, at_least, one_of
from sysout_jax.families.known import TAPS as EXTREMES
from sysout_jax.families.known import Check, Known, check_known, known_of
from sysout_jax.model.decoder import parameter_count
from sysout_jax.model.stream import recorded
from sysout_jax.report.findings import PARTS, PROMPT_TOKENS, AnalysisInputs, describe, header
from sysout_jax.report.words import headline, known_lines
from sysout_jax.results import RunDirectory, leaves, plain, read_mapping, read_record
from sysout_jax.training.loop import Corpus

from .cli import ending, launch, showing
from .cli.grid import Place, check_same, check_values
from .cli.tables import print_line
from .cli.verdict import labelled
from .inputs.evaluation_text import length_of, read_corpus
from .inputs.model_selection import Choice, Chosen, choose
from .inputs.revisions import about, in_order, of_last, summaries
from .reports.analysis_report import REPORT

# What --help explains.
OFTEN = ("model", "corpus", "only", "sequences", "seq_len", "variant", "seed", "workdir")
SMOKE = {"sequences": 2, "calibration": 2, "batch": 2}
FREQUENCY_TOKENS = 2**18  # of the training part, in which tokens are counted
PLACE = ("workdir", "name")  # fields that say where files go
LEAST = 3  # tokens of a sequence from which a constant can be fitted: the first, and two after it
STREAMED = (
    "existence",
    "positions",
    "relations",
    "dimensions",
)  # parts that read a model layer by layer


@dataclass(frozen=True)
class Config:
    """Everything that determines an analysis."""

    choice: Choice = field(default_factory=Choice)
    stream: bool = False  # hold one layer in memory at a time: for models larger than it
    corpus: str | None = None  # text for the statistics; None: a run's own, else Python's source
    token_dtype: str | None = None  # of tokens:DIR: uint16, uint32, uint64; None: told by its ids
    prompt: str = PROMPT  # what is drawn token by token; a synthetic task draws a row instead
    only: tuple[str, ...] = tuple(PARTS)  # parts to run
    revisions: tuple[str, ...] = ()  # of a suite on the hub, for dynamics: step1000,step2000
    check_known: bool = False  # compare with published coordinates of outliers
    sequences: int = 32  # of the corpus' validation part
    calibration: int = 32  # of the training part: means, constants in a sink's place; 0: none
    seq_len: int | None = None  # T, of each sequence; None: 64, or the learned positions if fewer
    batch: int | None = None  # sequences that are run together; None: 8, or fewer if they are long
    workdir: str = "runs"  # where run directories go
    name: str | None = None  # of the run directory: again, and revisions that are done are kept
    dimension_positions: tuple[int, ...] | None = None  # of dimensions; None: the second half
    thresholds: Thresholds = field(default_factory=Thresholds)

    def __post_init__(self) -> None:
        for name, least in (("sequences", 1), ("calibration", 0), ("seq_len", 2), ("batch", 1)):
            at_least(least, name, getattr(self, name))
        for name in self.only:
            one_of("only", name, tuple(PARTS))
        check_values("only", self.only)
        Place(self.workdir, self.name)
        if self.revisions:
            in_order(self.revisions)
            if "dynamics" not in self.only:
                found = ",".join(self.revisions)
                raise InputError("revisions", found, "with dynamics in --only")
            if self.stream:
                raise InputError("revisions", ",".join(self.revisions), "without --stream")
        if self.stream and self.choice.shape.devices > 1:
            why = f"with --mesh={self.choice.mesh}"
            raise InputError("stream", None, "a mesh of one device", why)


def gather(config: Config, chosen: Chosen, console: Console) -> tuple[AnalysisInputs, str]:
    """The prompt and the sequences; and the name of the corpus they come from.

    Raises:
      InputError: a corpus that cannot be read, or that is too short.
    """
    model = chosen.model
    corpus, spec = read_corpus(config.corpus, chosen, console, config.token_dtype)
    length = length_of(config.seq_len, model.config)
    rows = corpus.distinct("val", config.sequences, length)
    if model.tokenizer is None:
        prompt = rows[0, :-1][:PROMPT_TOKENS]
    else:
        prompt = encode_prompt(model.tokenizer, config.prompt, "yes" if chosen.bos else "no")
    batch = config.batch or default_batch_size(length)
    chosen_positions(config.dimension_positions, length)
    sample = corpus.batch("train", 0, 0, -(-FREQUENCY_TOKENS // length), length).ravel()
    counts = np.bincount(sample, minlength=model.config.vocab)[: model.config.vocab]
    material = AnalysisInputs(
        model, prompt, rows, config.thresholds, batch, chosen.checkpoints, len(chosen.kept),
        chosen.seeds(), len(chosen.saved), config.dimension_positions, counts,
        _calibration(config, corpus, rows, console),
    )  # fmt: skip
    return material, spec


def _calibration(
    config: Config, corpus: Corpus, rows: np.ndarray, console: Console
) -> np.ndarray | None:
    """Rows of the training part that have no text in common with those; None for none."""
    count, length = config.calibration, rows.shape[1] - 1
    asked = "interventions" in config.only and not config.stream
    if not count or not asked or length < LEAST:
        return None
    try:
        return disjoint_rows(corpus.batch("train", 0, 0, 2 * count, length), rows, count)
    except InputError as error:
        said = f"no constants in the place of a sink: {error}"
        console.print(said, soft_wrap=True, markup=False, highlight=False)
        return None


def run(config: Config, console: Console) -> RunDirectory:
    """Run the parts, draw, and write the page; what is finished is kept when interrupted."""
    if config.revisions:
        config = replace(config, choice=of_last(config.choice, config.revisions))
    chosen = choose(config.choice, config.stream)
    known = known_of(config.choice.model, chosen.model.config) if config.check_known else ()
    material, corpus = gather(config, chosen, console)
    parts = _possible(config, chosen, console)
    directory, runs = _opened(config, chosen, material)
    directory.write("config.json", config)
    console.print(f"model    {chosen.described}", soft_wrap=True, markup=False)
    console.print(f"run      {directory.path}", soft_wrap=True, markup=False)
    checked = None if config.stream else check(chosen.model)
    said = checked or "not: of a streamed model one layer at a time is in memory"
    labelled(console, "checked", str(said))
    described = header(material) | {
        "name": chosen.name, "seed": chosen.seed, "corpus": corpus,
        "config": {name: of for name, of in asdict(config).items() if name not in PLACE},
        "asked": list(parts), "parts": {},
        "parameters": parameter_count(chosen.model.config), "checked": checked,
        **({"revisions": list(config.revisions)} if config.revisions else {}),
    }  # fmt: skip
    again = ending.with_name(directory.path)
    try:
        with (
            directory.record("analysis", **described) as record,
            ending.telling_how_to_go_on(*again) if config.revisions else nullcontext(),
        ):
            if known:
                record["known"] = _check(known, material)
                for line in known_lines(plain(record)):
                    print_line(console, line)
            for name in parts:
                result = _timed(name, runs.get(name, PARTS[name]), material, console)
                record["parts"][name] = describe(material, result)
                for line in headline(plain(record), name):
                    print_line(console, line)
    finally:
        written = read_record(directory.path)
        finished = ", ".join(written["parts"]) or "none"
        labelled(console, "finished", finished)
        if written["parts"] or written["status"] == "complete":  # of an interrupted run too
            showing.publish(console, directory.path, written, REPORT)
    return directory


def _opened(
    config: Config, chosen: Chosen, material: AnalysisInputs
) -> tuple[RunDirectory, dict[str, Callable[[AnalysisInputs, Progress | None], Any]]]:
    """The directory of the run, and how the parts run that are not of `PARTS`: with revisions, the
    dynamics of these, a file each once it is measured."""
    if not config.revisions:
        _check_same(config)
        return RunDirectory(config.workdir, "analyze", config.name, [chosen.name]), {}
    tokens = material.rows[:, :-1][:, :QUERIES_AT_ONCE]
    place = Place(config.workdir, config.name)
    directory, cells = place.opened("analyze", about(config.choice, tokens), [chosen.name])
    _check_same(config)

    def of_revisions(material: AnalysisInputs, progress: Progress | None) -> Dynamics:
        found = summaries(
            config.choice, config.revisions, material.model.config, tokens, material.batch, cells
        )
        return of_summaries(found, tokens.shape[1], progress, len(config.revisions))

    return directory, {"dynamics": of_revisions}


def _check_same(config: Config) -> None:
    """Refuse to write over what was found with other settings under the same name."""
    if config.name is None:
        return
    place = Path(config.workdir) / "analyze" / config.name
    if not (place / "result.json").exists() or not read_record(place).get("parts"):
        return
    others = (*PLACE, "revisions", *(["revision"] if config.revisions else []))
    there = read_mapping(place / "config.json", "another --name")
    mine, theirs = (
        {name: value for name, value in leaves(each) if name not in others}
        for each in (asdict(config), there)
    )
    check_same(mine, theirs, f"the record in {place} has")


def _check(known: tuple[Known, ...], material: AnalysisInputs) -> list[Check]:
    """Published coordinates beside what the sequences show, a batch at a time."""
    model = material.model
    config = for_length(model.config, material.rows.shape[1] - 1)
    run = partial(recorded, config, taps=EXTREMES)
    found = over_batches(run, model.params, material.rows[:, :-1], material.batch)
    return list(check_known(known, found))


def _possible(config: Config, chosen: Chosen, console: Console) -> tuple[str, ...]:
    """The parts to run: those that are asked for, or, of all, those that this model allows."""
    asked = config.only
    for part, reason in _impossible(config, chosen).items():
        if part not in asked:
            continue
        if config.only != Config.only:
            raise InputError("only", part, why=reason)
        console.print(f"{part} left out: {reason}", markup=False, highlight=False)
        asked = tuple(name for name in asked if name != part)
    return asked


def _impossible(config: Config, chosen: Chosen) -> dict[str, str]:
    """Parts that cannot be run on this model, and why; the first reason of several."""
    reasons: dict[str, str] = {}
    if len(chosen.kept) < 2 and not config.revisions:
        found = f"{len(chosen.kept)} checkpoints of {chosen.name}"
        wanted = "accepted: a run that was trained with --checkpoint_every"
        reasons |= {"dynamics": f"{found}; {wanted}"}
    if len(chosen.saved) < 2:
        found = f"{len(chosen.saved)} seed{'s' * (not chosen.saved)} of {chosen.name}"
        reasons |= {"seeds": f"{found}; accepted: a run that was trained with --seeds=0,1,..."}
    if config.stream:
        reason = f"takes a model in memory; accepted with --stream: {', '.join(STREAMED)}"
        reasons = {name: reason for name in PARTS if name not in STREAMED} | reasons
    return reasons


def _timed(
    name: str, part: Callable[[AnalysisInputs, Progress | None], Any], material: AnalysisInputs,
    console: Console,
) -> Any:  # fmt: skip
    """Run one part under a progress bar."""
    bar = RichProgress(
        TextColumn(f"{name:<14}"),
        BarColumn(bar_width=20),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
        console=console,
    )
    with bar:
        task = bar.add_task(name, total=None)
        result = part(material, lambda done, total: bar.update(task, completed=done, total=total))
        total = bar.tasks[task].total or 1
        bar.update(task, completed=total, total=total)
    return result


# ----------------------------------------------------------------------------- the binary


config_from_flags = partial(launch.from_flags, Config(), SMOKE)


def main() -> None:
    showing.run_or_redraw("experiments.analyze", run, config_from_flags, REPORT)


def define_flags() -> None:
    """Define the flags of this binary."""
    flags.DEFINE_bool("smoke", False, "two sequences, in seconds")
    showing.define_tables()
    launch.define_overrides(Config)


if __name__ == "__main__":
    define_flags()
    launch.launch(main, OFTEN, [Config()])
