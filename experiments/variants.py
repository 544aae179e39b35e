"""Which attention variants develop outliers? Train them side by side, measure, draw.

python -m experiments.variants                                   # the demo: both defaults
python -m experiments.variants --corpus=PATH --model=llama-tiny --steps=2000 --seeds=0,1,2
python -m experiments.variants --list
"""

import dataclasses
import os
import re
import shutil
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.console import Console

from experiments import launch
from experiments.report import (
    Progress,
    markdown_table,
    markdown_variants,
    print_table,
    print_variants,
    reading,
)
from sysout_jax import plots
from sysout_jax.analysis.outliers import SUMMARY_LABELS, snapshot
from sysout_jax.core.attention import PAPER, VARIANTS
from sysout_jax.data import Backcopy, load_corpus
from sysout_jax.errors import InputError
from sysout_jax.model.config import SHAPES, one_of
from sysout_jax.model.decoder import Params, init
from sysout_jax.results import RunDirectory, plain, read_record
from sysout_jax.training import hosts
from sysout_jax.training.checkpoint import checkpoint_path, save
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.loop import Corpus, Run, train
from sysout_jax.training.optimizer import OptimizerConfig
from sysout_jax.training.sharding import make_mesh

BACKCOPY = TrainConfig(
    corpus="backcopy",
    seq_len=32,
    batch_size=16,
    steps=1000,
    measure_every=200,
    val_batches=16,
    seeds=(0, 1, 2),
    model=SHAPES["backcopy"],
    optimizer=OptimizerConfig(lr=7e-3, schedule="constant", beta2=0.99, decay=1e-4),
)
TEXT = TrainConfig(
    seq_len=64,
    batch_size=8,
    steps=100,
    measure_every=50,
    model=SHAPES["gpt2-tiny"],
    optimizer=OptimizerConfig(lr=3e-3),
)
FLAGS = flags.FLAGS
PROMPT = "Summer is warm. Winter is cold.\n"  # of An et al. 2025 and Sun et al. 2024
RECORD_BYTES = 8_000_000  # of a study beside its models: record and figures
FILLED_IN = ("vocab", "context")  # fields of the model that corpus and seq_len determine
SMOKE = {"steps": 4, "measure_every": 2, "steps_per_call": 2, "batch_size": 4, "val_batches": 1}


@dataclass(frozen=True)
class Config:
    """One study per corpus; every study trains every variant with every seed."""

    studies: tuple[TrainConfig, ...] = (BACKCOPY, TEXT)
    variants: tuple[str, ...] = PAPER
    jobs: int = 1  # variants trained at the same time
    workdir: str = "runs"

    def __post_init__(self) -> None:
        if self.jobs < 1:
            raise InputError(f"--jobs={self.jobs}: accepted: an integer of at least 1")
        wide = next((study.mesh for study in self.studies if study.mesh_shape.devices > 1), None)
        if wide and self.jobs > 1:  # devices would meet in another order, and wait forever
            raise InputError(f"--jobs={self.jobs}: with --mesh={wide}; accepted: 1")
        for name in self.variants:
            one_of("variants", name, tuple(VARIANTS))
        corpora = [study.corpus for study in self.studies]
        for flag, names in (("variants", self.variants), ("corpus", corpora)):
            if not names or len(set(names)) < len(names):
                found = ",".join(names)
                raise InputError(
                    f"--{flag}={found}: accepted: at least one name, none of them twice"
                )


def run(config: Config, console: Console) -> RunDirectory | None:
    """Train, measure and draw; everything found is in the record of the returned directory.

    Of several processes the first alone writes; the others only train with it.
    """
    for study in config.studies:
        make_mesh(study.mesh_shape)  # refused before anything is read or written
    corpora = [_open(study, console) for study in config.studies]
    if not hosts.first():
        for study, corpus in zip(config.studies, corpora, strict=True):
            for name in config.variants:
                train(dataclasses.replace(study, variant=name), corpus)
        return None
    names = _names([study.corpus for study in config.studies])
    _check_room(config, corpora)
    directory = RunDirectory(config.workdir, "variants")
    directory.write("config.json", config)
    console.print(f"run      {directory.path}", soft_wrap=True)
    with directory.record("variants", labels=SUMMARY_LABELS, studies=[]) as record:
        for name, study, corpus in zip(names, config.studies, corpora, strict=True):
            described = {"name": name, **_describe(study, corpus)}
            record["studies"].append(described)
            _train_all(config, study, corpus, directory, console, described)
            print_table(console, plain(described))
    figures = plots.draw(read_record(directory.path), directory.path / "figures")
    console.print(f"record   {directory.path / 'result.json'}", soft_wrap=True)
    console.print("figures  " + "\n         ".join(map(str, figures)), soft_wrap=True)
    return directory


def _open(study: TrainConfig, console: Console) -> Corpus:
    """The corpus, after proving that it can give both kinds of batches."""
    with reading(console, study.corpus) as progress:
        corpus = load_corpus(study.corpus, study.tokenizer, study.bos, progress=progress)
    for split in ("train", "val"):
        corpus.batch(split, 0, 0, study.batch_size, study.seq_len)
    return corpus


def _names(corpora: list[str]) -> list[str]:
    """A name for each study's files: the last part of its corpus, numbered where two agree."""
    names: list[str] = []
    for corpus in corpora:
        name = re.sub(r"[^A-Za-z0-9_]+", "-", Path(corpus).name).strip("-") or "corpus"
        names.append(f"{name}-{len(names)}" if name in names else name)
    return names


def _check_room(config: Config, corpora: list[Corpus]) -> None:
    """Refuse to start where the trained models will not fit on the disk."""
    needed = 0
    for study, corpus in zip(config.studies, corpora, strict=True):
        architecture = study.architecture(corpus.vocab)
        parameters = jax.eval_shape(partial(init, architecture), jax.random.key(0))
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(parameters))
        kept = 1 + (2 + study.steps // study.checkpoint_every if study.checkpoint_every else 0)
        needed += size * kept * len(study.seeds) * len(config.variants) + RECORD_BYTES
    existing = next(p for p in (Path(config.workdir).absolute() / "x").parents if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise InputError(
            f"--workdir={config.workdir}: {free / 1e6:.1f} MB free; accepted: a directory with "
            f"room for the trained models, {needed / 1e6:.1f} MB"
        )


def _describe(study: TrainConfig, corpus: Corpus) -> dict[str, Any]:
    description = {
        "corpus": study.corpus,
        "config": {key: value for key, value in asdict(study).items() if key != "variant"},
        "tokens": corpus.tokens,
        "documents": corpus.documents,
        "split": corpus.split,
        "epochs": corpus.epochs(study.steps, study.batch_size, study.seq_len),
        "tokens_per_seed": study.steps * study.batch_size * study.seq_len,
        "variants": {},
    }
    if isinstance(corpus, Backcopy):
        rows = [
            corpus.batch("val", 0, n, study.batch_size, study.seq_len)
            for n in range(study.val_batches)
        ]
        description["loss_floor"] = float(corpus.entropy_floor(np.concatenate(rows)).mean())
    return description


def _train_all(
    config: Config,
    study: TrainConfig,
    corpus: Corpus,
    directory: RunDirectory,
    console: Console,
    described: dict[str, Any],
) -> None:
    """Train every variant of the study, `config.jobs` at a time, and describe them in order."""
    stop, lock = threading.Event(), threading.Lock()

    def train_one(name: str) -> tuple[Run, float]:
        def log(row: dict[str, Any]) -> None:
            if stop.is_set():
                raise InterruptedError
            with lock:
                directory.log({"corpus": study.corpus, **row})
            progress.update(row)

        def keep(step: int, seeds: tuple[int, ...], params: Params) -> None:
            place = checkpoint_path(directory.path, f"{described['name']}-{name}", step, seeds[0])
            with lock:  # the storage library mixes up what two threads save at once
                save(place, one.architecture(corpus.vocab), params, seeds, corpus.tokenizer)

        begun = time.perf_counter()
        one = dataclasses.replace(study, variant=name)
        trained = train(one, corpus, log, keep)
        return trained, time.perf_counter() - begun

    progress = Progress(console, study, config.variants)
    with progress, ThreadPoolExecutor(config.jobs) as pool:
        try:
            futures = {name: pool.submit(train_one, name) for name in config.variants}
            for name, future in futures.items():
                trained, seconds = future.result()
                described["variants"][name] = _entry(trained, corpus, seconds)
                with lock:
                    _save(trained, directory.path / "models" / f"{described['name']}-{name}")
        except BaseException:
            # Error or Ctrl-C: what runs ends at its next row, what waits never starts.
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _save(trained: Run, place: Path) -> None:
    save(place, trained.architecture, trained.params, trained.config.seeds, trained.tokenizer)


def _entry(trained: Run, corpus: Corpus, seconds: float) -> dict[str, Any]:
    """What the record says of a trained variant."""
    variant = VARIANTS[trained.config.variant]
    return {
        "label": variant.label,
        "order": list(VARIANTS).index(variant.name),
        "normalised": variant.normalised,
        "parameters": sum(x.size for x in jax.tree.leaves(trained.model().params)),
        "seconds": seconds,
        **history(trained),
        "snapshot": _snapshot(trained, corpus),
    }


def history(trained: Run) -> dict[str, Any]:
    """Rows of the log as columns: [steps][seeds], the seeds in the order of the config."""
    by_step: dict[int, list[dict[str, Any]]] = {}
    for row in trained.rows:
        by_step.setdefault(row["step"], []).append(row)
    groups = [g for _, g in sorted(by_step.items())]

    def column(key: str) -> dict[str, Any]:
        chosen = [group for group in groups if key in group[0]]
        return {
            "step": [group[0]["step"] for group in chosen],
            key: [np.concatenate([row[key] for row in group]) for group in chosen],
        }

    measured = column("val_loss")
    chosen = [group for group in groups if "measures" in group[0]]
    measured["measures"] = {
        name: [np.concatenate([row["measures"][name] for row in group]) for group in chosen]
        for name in chosen[0][0]["measures"]
    }
    return {"curve": column("loss"), "measured": measured}


def _snapshot(trained: Run, corpus: Corpus) -> dict[str, Any]:
    """One sequence as the figures show it: the paper's prompt, or a row of a synthetic task."""
    tokenizer = trained.tokenizer
    if tokenizer is None:
        tokens = corpus.batch("val", 0, 0, 1, trained.config.seq_len)[0, :-1]
        pieces = ["BOS" if t == corpus.bos else str(t) for t in tokens]
    else:
        bos = [] if corpus.bos is None else [corpus.bos]
        tokens = np.array([*bos, *tokenizer.encode(PROMPT)], np.int32)[: trained.config.seq_len]
        pieces = tokenizer.pieces(tokens)
    model = trained.model()
    shot = snapshot(model.config, model.params, jnp.asarray(tokens))
    return {
        "pieces": pieces,
        "attention": _rounded(shot.attention),
        "attention_layer": shot.attention_layer,
        "magnitude": _rounded(shot.magnitude),
        "magnitude_layer": shot.magnitude_layer,
    }


def _rounded(x: np.ndarray) -> list[list[float]]:
    """Three significant digits: what a figure can show."""
    return [[float(f"{value:.3g}") for value in row] for row in x.tolist()]


# ----------------------------------------------------------------------------- the binary


def main() -> None:
    console = Console()
    if FLAGS.list and FLAGS.markdown:
        print(markdown_variants())
    elif FLAGS.list:
        print_variants(console)
    elif FLAGS.redraw:
        redraw(Path(FLAGS.redraw), console)
    else:
        hosts.connect(FLAGS.coordinator, FLAGS.processes, FLAGS.process)
        run(config_from_flags(), console if hosts.first() else Console(quiet=True))


def redraw(directory: Path, console: Console) -> None:
    """Print and draw the record of a run.

    Raises:
      InputError: there is no record of this experiment.
    """
    with launch.redrawing(directory, "experiments.variants") as record:
        for study in record["studies"]:
            if FLAGS.markdown:
                print(markdown_table(study))
            else:
                print_table(console, study)
        figures = plots.draw(record, directory / "figures")
    if not FLAGS.markdown:
        console.print("\n".join(map(str, figures)), soft_wrap=True)


def config_from_flags() -> Config:
    """The studies that the flags ask for, one per corpus.

    Raises:
      InputError: a flag's value is not accepted.
    """
    variants = tuple(VARIANTS) if FLAGS.variants == ["all"] else tuple(FLAGS.variants)
    if FLAGS.smoke and FLAGS["variants"].using_default_value:
        variants = ("softmax", "context_scale")
    given = {name: FLAGS[name].value for name in FLAGS if name not in ("corpus", "variant")}
    studies = []
    for corpus in FLAGS.corpus:
        study = BACKCOPY if corpus == "backcopy" else dataclasses.replace(TEXT, corpus=corpus)
        if FLAGS.model is not None:
            one_of("model", FLAGS.model, tuple(SHAPES))
            study = dataclasses.replace(study, model=SHAPES[FLAGS.model])
        if jax.default_backend() != "cpu":
            study = launch.override(study, {"dtype": "bfloat16"})
        if FLAGS.smoke:
            study = launch.override(study, SMOKE)
        studies.append(launch.override(study, given))
    jobs = FLAGS.jobs if FLAGS.jobs is not None else default_jobs(studies)
    return Config(tuple(studies), variants, jobs, FLAGS.workdir)


def default_jobs(studies: Sequence[TrainConfig]) -> int:
    """Two where compiling and small steps leave a second CPU core idle, else one."""
    if any(study.mesh_shape.devices > 1 for study in studies):
        return 1
    return 2 if jax.default_backend() == "cpu" and (os.cpu_count() or 1) > 1 else 1


def define_flags() -> None:
    """Define the flags of this binary."""
    flags.DEFINE_list(
        "corpus",
        ["backcopy", "stdlib"],
        "one study each: backcopy (a synthetic task), stdlib (Python's own source), PATH (a file, "
        "directory or glob), tokens:DIR (nanoGPT's train.bin and val.bin)",
    )
    flags.DEFINE_list("variants", list(PAPER), "which of --list to train, or all")
    flags.DEFINE_string("model", None, f"shape to start from: {', '.join(SHAPES)}")
    flags.DEFINE_integer(
        "jobs",
        None,
        "variants trained at the same time; default: 2 on CPU with a mesh of one device, else 1",
    )
    flags.DEFINE_string("workdir", "runs", "where run directories go")
    flags.DEFINE_bool("smoke", False, "a few steps of two variants, in seconds")
    flags.DEFINE_bool("list", False, "print the table of variants and exit")
    flags.DEFINE_string("redraw", None, "print and draw the record of this run directory and exit")
    flags.DEFINE_bool("markdown", False, "print tables in Markdown")
    launch.define_hosts()
    launch.define_overrides(TrainConfig, skip=("corpus", "variant", *FILLED_IN))
    flags.adopt_module_key_flags(launch)  # so that --help lists them


if __name__ == "__main__":
    define_flags()
    launch.launch(main)
