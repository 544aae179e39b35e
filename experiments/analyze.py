"""Where are a model's outliers, how do they relate, live and die, and what do they do?

python -m experiments.analyze --model=runs/variants/RUN --variant=softmax
python -m experiments.analyze --model=runs/variants/RUN/models/NAME --corpus=PATH --sequences=64
python -m experiments.analyze --model=RUN --only=positions,roles --seq_len=16384 --sequences=1
python -m experiments.analyze --redraw=runs/analyze/RUN
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress

from experiments import launch
from experiments.report import reading
from sysout_jax.analysis.scan import QUERIES_AT_ONCE, Thresholds
from sysout_jax.data import TextCorpus, load_corpus
from sysout_jax.errors import InputError
from sysout_jax.model.config import one_of
from sysout_jax.model.decoder import Params
from sysout_jax.model.model import Model
from sysout_jax.report.findings import PARTS, PROMPT_TOKENS, Material, describe, header, publish
from sysout_jax.report.words import headline
from sysout_jax.results import RunDirectory, plain, read_record
from sysout_jax.training.checkpoint import checkpoints, load, models, saved_seeds

FLAGS = flags.FLAGS
PROMPT = "Summer is warm. Winter is cold.\n"  # of Sun et al. 2024 and An et al. 2025
TOKENS = 64  # of a sequence, if nothing is said
SMOKE = {"sequences": 2, "batch": 2}


@dataclass(frozen=True)
class Config:
    """Everything that determines an analysis."""

    model: str = ""  # a run directory, or one of its models/NAME
    variant: str | None = None  # which of the run's models: its name, or the end of it
    seed: int | None = None  # which of its seeds; None: the first
    corpus: str | None = None  # text for the statistics; None: what the run was trained on
    prompt: str = PROMPT  # what is drawn token by token; a synthetic task draws a row instead
    bos: bool | None = None  # sequences start with a BOS token; None: as in training, or yes
    only: tuple[str, ...] = tuple(PARTS)  # parts to run
    sequences: int = 32  # of the corpus' validation part
    seq_len: int | None = None  # T, of each sequence; None: 64, or the learned positions if fewer
    batch: int | None = None  # sequences that are run together; None: 8, or 1 if they are long
    workdir: str = "runs"  # where run directories go
    thresholds: Thresholds = field(default_factory=Thresholds)

    def __post_init__(self) -> None:
        for name, least in (("sequences", 1), ("seq_len", 2), ("batch", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"--{name}={value}: accepted: an integer of at least {least}")
        for name in self.only:
            one_of("only", name, tuple(PARTS))
        if not self.only or len(set(self.only)) < len(self.only):
            raise InputError(
                f"--only={','.join(self.only)}: accepted: at least one part, none of them twice"
            )


@dataclass(frozen=True)
class Chosen:
    """The model that is analysed, and the run it comes from, if it comes from one."""

    model: Model
    path: Path
    name: str
    seed: int
    run: Path | None

    def checkpoints(self) -> Iterator[tuple[int, Params]]:
        """The kept models of the run, one in memory at a time."""
        for step, path in self.kept:
            yield step, load(path, self.seed).params

    @property
    def kept(self) -> list[tuple[int, Path]]:
        """(step, directory) of each."""
        return checkpoints(self.run, self.name, self.seed) if self.run else []

    def trained_on(self) -> dict[str, Any]:
        """The study of the run's record that trained this model; empty where there is none."""
        if self.run and (self.run / "result.json").exists():
            studies = read_record(self.run).get("studies", [])
            mine = [s for s in studies if self.name.startswith(f"{s['name']}-")]
            return max(mine, key=lambda study: len(study["name"]), default={})
        return {}


def choose(config: Config) -> Chosen:
    """Find the model that the flags ask for.

    Raises:
      InputError: not a directory with a model, or several models and no choice between them.
    """
    if not config.model:
        raise InputError("--model: not given; accepted: a run directory, or its models/NAME")
    path = Path(config.model)
    found = models(path)
    if found:
        path = path / "models" / _pick(config, sorted(found))
    elif not (path / "config.json").exists() or (path / "result.json").exists():
        what = "a run without models" if (path / "result.json").exists() else "no run or model"
        what = what if path.is_dir() else "no such directory"
        raise InputError(
            f"--model={config.model}: {what}; accepted: a directory that "
            "experiments.variants wrote, or one of its models/NAME"
        )
    model = load(path, config.seed)
    run = path.absolute().parent.parent if path.absolute().parent.name == "models" else None
    seed = saved_seeds(path)[0] if config.seed is None else config.seed
    return Chosen(model, path, path.name, seed, run)


def _pick(config: Config, names: list[str]) -> str:
    """The name that --variant means; without it, the only one."""
    wanted = config.variant
    fitting = [n for n in names if wanted is None or n == wanted or n.endswith(f"-{wanted}")]
    if len(fitting) == 1:
        return fitting[0]
    said = f"--variant={wanted}" if wanted else "--variant: not given"
    raise InputError(
        f"{said}: fits {len(fitting)} of the models in {config.model}; accepted: {', '.join(names)}"
    )


def gather(config: Config, chosen: Chosen, console: Console) -> tuple[Material, str]:
    """The prompt and the sequences; and the name of the corpus they come from.

    Raises:
      InputError: a corpus that cannot be read, or that is too short.
    """
    model = chosen.model
    study = chosen.trained_on()
    spec = config.corpus or study.get("corpus")
    bos = study.get("config", {}).get("bos", True) if config.bos is None else config.bos
    if spec is None:
        raise InputError(
            f"--corpus: not given, and {chosen.path} does not say what it was trained on; "
            "accepted: backcopy, stdlib, PATH, tokens:DIR"
        )
    tokenizer = "bytes" if model.tokenizer is None else str(chosen.path / "tokenizer.json")
    with reading(console, spec) as progress:
        corpus = load_corpus(spec, tokenizer, bos, progress=progress)
    limit = model.config.context if model.config.position == "learned" else TOKENS
    length = config.seq_len or min(TOKENS, limit)
    if isinstance(corpus, TextCorpus):
        _check_length(config.sequences, length, corpus)
    rows = corpus.batch("val", 0, 0, config.sequences, length)
    if model.tokenizer is None:
        prompt = rows[0, :-1][:PROMPT_TOKENS]
    else:
        start = [model.tokenizer.bos] if bos else []
        prompt = np.array([*start, *model.tokenizer.encode(config.prompt)], np.int32)
    batch = config.batch or (8 if length <= QUERIES_AT_ONCE else 1)
    kept = len(chosen.kept)
    material = Material(model, prompt, rows, config.thresholds, batch, chosen.checkpoints(), kept)
    return material, spec


def _check_length(sequences: int, length: int, corpus: TextCorpus) -> None:
    """Refuse to show the same text twice."""
    tokens = corpus.tokens["val"]
    room = tokens // length
    if room < sequences:
        raise InputError(
            f"--sequences={sequences}: the validation part of {corpus.name!r} has {tokens} "
            f"tokens; accepted: at most {room} sequences of --seq_len={length}"
        )


def run(config: Config, console: Console) -> RunDirectory:
    """Run the parts, draw, and write the page; what is finished is kept when interrupted."""
    chosen = choose(config)
    material, corpus = gather(config, chosen, console)
    parts = _possible(config, chosen, console)
    directory = RunDirectory(config.workdir, "analyze")
    directory.write("config.json", config)
    seeds = ", ".join(map(str, saved_seeds(chosen.path)))
    console.print(f"model    {chosen.name}, seed {chosen.seed} of {seeds}", soft_wrap=True)
    console.print(f"run      {directory.path}", soft_wrap=True)
    about = header(material) | {
        "name": chosen.name, "seed": chosen.seed, "corpus": corpus,
        "asked": list(parts), "parts": {},
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(chosen.model.params)),
    }  # fmt: skip
    try:
        with directory.record("analysis", **about) as record:
            for name in parts:
                result = _timed(name, material, console)
                record["parts"][name] = describe(material, result)
                described = plain(record)
                for line in headline(described, name):
                    console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    finally:
        finished = ", ".join(read_record(directory.path)["parts"]) or "none"
        console.print(f"finished {finished}", soft_wrap=True)
        console.print(f"record   {directory.path / 'result.json'}", soft_wrap=True)
    page = publish(read_record(directory.path), directory.path)
    console.print(f"report   {page}", soft_wrap=True)
    return directory


def _possible(config: Config, chosen: Chosen, console: Console) -> tuple[str, ...]:
    """The parts to run; dynamics only where there are checkpoints, or where it is insisted on."""
    if "dynamics" not in config.only or len(chosen.kept) >= 2:
        return config.only
    found = f"{len(chosen.kept)} checkpoints of {chosen.name}"
    wanted = "accepted: a run that was trained with --checkpoint_every"
    if config.only != Config.only:
        raise InputError(f"--only=dynamics: {found}; {wanted}")
    console.print(f"dynamics left out: {found}", soft_wrap=True)
    return tuple(name for name in config.only if name != "dynamics")


def _timed(name: str, material: Material, console: Console) -> Any:
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
        result = PARTS[name](
            material, lambda done, total: bar.update(task, completed=done, total=total)
        )
        total = bar.tasks[task].total or 1
        bar.update(task, completed=total, total=total)
    return result


# ----------------------------------------------------------------------------- the binary


def main() -> None:
    console = Console()
    if FLAGS.redraw:
        console.print(str(redraw(Path(FLAGS.redraw))), soft_wrap=True)
    else:
        run(config_from_flags(), console)


def redraw(directory: Path) -> Path:
    """Draw the figures and the page of a run again; returns the page.

    Raises:
      InputError: there is no record of this experiment.
    """
    record = read_record(directory)
    try:
        return publish(record, directory)
    except (KeyError, TypeError, IndexError) as error:
        raise InputError(
            f"--redraw={directory}: result.json is no record of this experiment ({error!r}); "
            "accepted: a run directory of experiments.analyze"
        ) from error


def config_from_flags() -> Config:
    """The config that the flags ask for.

    Raises:
      InputError: a flag's value is not accepted.
    """
    given = {name: FLAGS[name].value for name in FLAGS if name != "only"}
    config = launch.override(Config(), SMOKE if FLAGS.smoke else {})
    only = config.only if FLAGS.only is None else tuple(FLAGS.only)
    return launch.override(replace(config, only=only), given)


def define_flags() -> None:
    """Define the flags of this binary."""
    flags.DEFINE_bool("smoke", False, "two sequences, in seconds")
    flags.DEFINE_string("redraw", None, "draw the record of this run directory and exit")
    launch.define_overrides(Config)
    flags.adopt_module_key_flags(launch)  # so that --help lists them


if __name__ == "__main__":
    define_flags()
    launch.launch(main)
