"""Which attention variants develop outliers? Train them side by side, measure, draw.

python -m experiments.variants                                   # the demo: both defaults
python -m experiments.variants --corpus=PATH --model=llama-tiny --steps=2000 --seeds=0,1,2
python -m experiments.variants --list
"""

import dataclasses
import glob
import os
import shutil
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
from absl import flags
from rich.console import Console

from sysout_jax.analysis.measure.summary import SUMMARY_LABELS
from sysout_jax.core.attention import PAPER, VARIANTS
from sysout_jax.errors import InputError, Preempted, at_least, one_of
from sysout_jax.model.config import SHAPES
from sysout_jax.model.decoder import Params
from sysout_jax.results import RunDirectory, as_flag, plain, read_record
from sysout_jax.training import hosts
from sysout_jax.training.checkpoint import checkpoint_path, save
from sysout_jax.training.config import TrainConfig
from sysout_jax.training.loop import Corpus, Run, check_kernel, corpus_of, train
from sysout_jax.training.resume import States, check_same
from sysout_jax.training.sharding import make_mesh
from sysout_jax.training.states import Saving, check_usable

from .cli import ending, launch, showing
from .cli.grid import Place, check_values
from .cli.presets import BACKCOPY, FILLED_IN, NOT_GIVEN, PRESETS, SMOKE, TEXT
from .cli.progress import Progress, reading
from .cli.tables import show
from .inputs.disk_space import check_room
from .inputs.training_states import STATES, keeping
from .records.study import describe, entry, study_names
from .reports.variants_report import REPORT, catalogue, section

FLAGS = flags.FLAGS
# What --help explains.
OFTEN = (
    "model", "corpus", "preset", "variants", "steps", "seeds", "lr", "name", "workdir", "smoke",
)  # fmt: skip
BEGUN = ("init_from", "resume_from")  # flags of what training begins with


@dataclass(frozen=True)
class Config:
    """One study per corpus; every study trains every variant with every seed."""

    studies: tuple[TrainConfig, ...] = (BACKCOPY, TEXT)
    variants: tuple[str, ...] = PAPER
    jobs: int = 1  # variants trained at the same time
    workdir: str = "runs"
    name: str | None = None  # of the run directory; the same command again goes on in it
    resume_from: str | None = None  # a run directory, whose training goes on in a new one
    init_from: str | None = None  # a model directory, whose parameters training begins with
    saving: Saving = field(default_factory=Saving)

    def __post_init__(self) -> None:
        at_least(1, "jobs", self.jobs)
        wide = next((study.mesh for study in self.studies if study.mesh_shape.devices > 1), None)
        if wide and self.jobs > 1:  # devices would meet in another order, and wait forever
            raise InputError("jobs", self.jobs, "1", f"with --mesh={wide}")
        for study in self.studies:
            check_kernel(study.model)
        if self.jobs > 1 and any(study.model.execution.flash for study in self.studies):
            # cuDNN fails to load a graph while another thread of the process is at work
            raise InputError("jobs", self.jobs, "1", "with --flash on a GPU")
        for name in self.variants:
            one_of("variants", name, VARIANTS)
        check_values("variants", self.variants)
        check_values("corpus", [study.corpus for study in self.studies])


def run(config: Config, console: Console) -> RunDirectory | None:
    """Train, measure and draw; everything found is in the record of the returned directory.

    Of several processes the first alone writes the record; the others only train with it.
    """
    for study in config.studies:
        make_mesh(study.mesh_shape)  # refused before anything is read or written
    corpora = [_open(study, console) for study in config.studies]
    names = study_names([study.corpus for study in config.studies])
    studies = list(zip(names, config.studies, corpora, strict=True))
    hosts.agree(repr((config.studies, config.variants)))
    if not hosts.is_main():
        _help(config, studies, console)
        return None
    if config.resume_from is not None:
        check_usable(Path(config.resume_from) / STATES)
    check_room(
        config.workdir, config.studies, corpora, len(config.variants), config.jobs, config.saving
    )
    directory = RunDirectory(config.workdir, "variants", config.name, names)
    directory.forget_log()
    directory.write_config(config)
    console.print(f"run      {directory.path}", soft_wrap=True)
    begun = {name: at for name in BEGUN if (at := getattr(config, name))}
    with (
        ending.telling_how_to_go_on(*ending.with_name(directory.path)),
        directory.record("variants", labels=SUMMARY_LABELS, **begun, studies=[]) as record,
    ):
        hosts.broadcast_json(str(directory.path))
        with _keeping(config, directory.path, console) as states_of:
            for name, study, corpus in studies:
                described = {"name": name, **describe(study, corpus)}
                record["studies"].append(described)
                states = states_of(name)
                _train_all(config, study, corpus, directory, console, described, states)
                show(console, [section(plain(described))])
    if not config.saving.keep_every:
        shutil.rmtree(directory.path / STATES, ignore_errors=True)
    showing.publish(console, directory.path, read_record(directory.path), REPORT)
    return directory


def _help(config: Config, studies: list[tuple[str, TrainConfig, Corpus]], console: Console) -> None:
    """Train with the first process, and write the parts of training states that are held here."""
    with _keeping(config, Path(hosts.broadcast_json(None)), console) as states_of:
        for name, study, corpus in studies:
            for variant in config.variants:
                train(dataclasses.replace(study, variant=variant), corpus, states=states_of(name))


def _keeping(
    config: Config, path: Path, console: Console
) -> AbstractContextManager[Callable[[str], States | None]]:
    needed = bool(config.name or config.resume_from or config.init_from)
    return keeping(path, config.saving, config.resume_from, config.init_from, needed, console)


def _open(study: TrainConfig, console: Console) -> Corpus:
    """The corpus, after proving that it can give both kinds of batches."""
    with reading(console, study.corpus) as progress:
        corpus = corpus_of(study, progress)
    for split in ("train", "val"):
        corpus.batch(split, 0, 0, study.batch_size, study.seq_len)
    return corpus


def _train_all(
    config: Config,
    study: TrainConfig,
    corpus: Corpus,
    directory: RunDirectory,
    console: Console,
    described: dict[str, Any],
    states: States | None,
) -> None:
    """Train every variant of the study, `config.jobs` at a time, and describe them in order.

    Each is saved, and leaves the devices, as soon as it has ended; the first to fail ends all.
    """
    stop, lock = threading.Event(), threading.Lock()

    def train_one(name: str) -> Run:
        def log(row: dict[str, Any]) -> None:
            if stop.is_set():
                raise InterruptedError
            with lock:
                directory.log({"corpus": study.corpus, **row})
            progress.update(row)

        def keep(step: int, seeds: tuple[int, ...], params: Params) -> None:
            place = checkpoint_path(directory.path, f"{described['name']}-{name}", step, seeds[0])
            _save(place, one.architecture(corpus.vocab), params, seeds, corpus.tokenizer)

        one = dataclasses.replace(study, variant=name)
        return train(one, corpus, log, keep, states)

    def finish(name: str, trained: Run) -> None:
        ended[name] = entry(trained, corpus)
        described["variants"] = {each: ended[each] for each in config.variants if each in ended}
        place = directory.path / "models" / f"{described['name']}-{name}"
        _save(place, trained.architecture, trained.params, study.seeds, trained.tokenizer)

    ended: dict[str, Any] = {}
    progress = Progress(console, study, config.variants)
    with progress, ThreadPoolExecutor(config.jobs) as pool:
        try:
            names = {pool.submit(train_one, name): name for name in config.variants}
            for future in as_completed(names):
                finish(names.pop(future), future.result())
                del future  # which holds the parameters, while the next one is waited for
        except Preempted:
            pool.shutdown(cancel_futures=True)  # what runs is asked to stop too, and saves
            raise
        except BaseException:
            # Error or Ctrl-C: what runs ends at its next row, what waits never starts.
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise


def _save(place: Path, *model: Any) -> None:
    """Write a model, in the place of what a part of this run before it may have left of one."""
    for left in (place, *place.parent.glob(f".{glob.escape(place.name)}.*.partial")):
        shutil.rmtree(left, ignore_errors=True)
    save(place, *model)


# ----------------------------------------------------------------------------- the binary


def main() -> None:
    if FLAGS.list:
        showing.listed(*catalogue("`" if FLAGS.markdown else ""))
    else:
        showing.run_or_redraw("experiments.variants", _run, _connected, REPORT)


def _connected() -> Config:
    """The config of this process, once all processes of the run know each other."""
    hosts.connect(FLAGS.coordinator, FLAGS.processes, FLAGS.process)
    return config_from_flags()


def _run(config: Config, console: Console) -> RunDirectory | Path | None:
    console = console if hosts.is_main() else Console(quiet=True)
    own = own_directory()
    if not own or not _complete(own):
        return run(config, console)
    console.print(f"complete {own}", soft_wrap=True, markup=False)
    return own


def config_from_flags() -> Config:
    """The studies that the flags ask for, one per corpus, or those of the run that goes on.

    Raises:
      InputError: a flag's value is not accepted.
    """
    for flag, path in (("name", own_directory()), ("resume_from", FLAGS.resume_from)):
        if path and (flag == "resume_from" or (path / "config.json").exists()):
            return _going_on(flag, Path(path))
    variants = tuple(VARIANTS) if FLAGS.variants == ["all"] else tuple(FLAGS.variants)
    corpora = FLAGS.corpus
    if FLAGS.preset is not None and FLAGS["corpus"].using_default_value:
        corpora = [TEXT.corpus]
    _check_preset(corpora)
    if FLAGS.smoke and FLAGS["variants"].using_default_value:
        variants = ("softmax", "context_scale")
    launch.check_tokenizer(corpora)
    return _with_places(Config(tuple(_as_given(_study(corpus)) for corpus in corpora), variants))


def _check_preset(corpora: Sequence[str]) -> None:
    if FLAGS.preset is not None:
        one_of("preset", FLAGS.preset, tuple(PRESETS))
        if set(corpora) == {BACKCOPY.corpus}:
            raise InputError(
                "preset", FLAGS.preset, "with text", f"not of --corpus={BACKCOPY.corpus}"
            )


def _study(corpus: str) -> TrainConfig:
    """What is trained on a corpus where nothing is said of it but a preset."""
    text = PRESETS[FLAGS.preset] if FLAGS.preset else TEXT
    study = BACKCOPY if corpus == "backcopy" else dataclasses.replace(text, corpus=corpus)
    if jax.default_backend() != "cpu":
        study = launch.override(study, {"dtype": "bfloat16"})
    return study


def _as_given(study: TrainConfig) -> TrainConfig:
    """The study with what the flags say of it."""
    if FLAGS.model is not None:
        one_of("model", FLAGS.model, tuple(SHAPES))
        shape = dataclasses.replace(
            SHAPES[FLAGS.model], execution=study.model.execution, **NOT_GIVEN
        )
        study = dataclasses.replace(study, model=shape)
    if FLAGS.smoke:
        study = launch.override(study, SMOKE)
    given = {name: FLAGS[name].value for name in FLAGS if name not in ("corpus", "variant")}
    found = launch.override(study, given)
    launch.check_optimizer(study.optimizer, [found.optimizer.optimizer], found)
    return found


def _with_places(config: Config) -> Config:
    """The config, with what the flags say of where it runs, begins and is kept."""
    return dataclasses.replace(
        config,
        jobs=FLAGS.jobs if FLAGS.jobs is not None else default_jobs(config.studies),
        workdir=FLAGS.workdir,
        name=FLAGS.name,
        resume_from=config.resume_from or FLAGS.resume_from,
        init_from=config.init_from or FLAGS.init_from,
        saving=launch.override(config.saving, {name: FLAGS[name].value for name in FLAGS}),
    )


def own_directory() -> Path | None:
    """The run directory that --name names.

    Raises:
      InputError: it is no name.
    """
    if FLAGS.name is None:
        return None
    Place(name=FLAGS.name)  # refused if it is none
    return Path(FLAGS.workdir) / "variants" / FLAGS.name


def _complete(path: Path) -> bool:
    """Whether a run has ended well; a record that cannot be read is none."""
    try:
        return read_record(path).get("status") == "complete"
    except InputError:
        return False


def _going_on(flag: str, path: Path) -> Config:
    """The studies of a run that is to go on; flags may say them again, and not otherwise.

    Raises:
      InputError: no run of this experiment, a complete one, or a flag that contradicts it.
    """
    stored = launch.read_config(Config, path, flag, "experiments.variants")
    source = path if flag == "resume_from" else stored.resume_from
    if source and not any(any(Path(at).glob(f"{STATES}/*/*/step-*")) for at in (path, source)):
        accepted = f"a run that was interrupted, or --init_from={Path(source) / 'models'}/NAME"
        raise InputError("resume_from", source, accepted, "no training states in it")
    there = {"variants": list(stored.variants), "corpus": [s.corpus for s in stored.studies]}
    begun = {name: getattr(stored, name) for name in BEGUN}
    for name, found in {**there, **(begun if flag == "name" else {})}.items():
        asked: Any = FLAGS[name].value
        asked = list(VARIANTS) if asked == ["all"] else asked
        if name in begun and asked and Path(asked).resolve().is_relative_to(path.resolve()):
            continue  # by `latest`, which is this run by now
        if FLAGS[name].present and asked != found:
            why = f"was trained with {as_flag(found)}" if found else f"was begun without --{name}"
            raise InputError(name, as_flag(asked), "that, or another --name", f"{path} {why}")
    _check_preset(there["corpus"])
    studies = tuple(
        _as_given(_study(each.corpus) if FLAGS.preset and each.corpus != "backcopy" else each)
        for each in stored.studies
    )
    for study, asked_for in zip(stored.studies, studies, strict=True):
        check_same(asdict(study), asked_for, path)
    kept = stored if flag == "name" else Config(variants=stored.variants)
    return _with_places(dataclasses.replace(kept, studies=studies))


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
        "directory or glob), tokens:DIR (nanoGPT's train.bin and val.bin); with --preset, its text "
        "alone: stdlib",
    )
    flags.DEFINE_list("variants", list(PAPER), "which of --list to train, or all")
    flags.DEFINE_string("model", None, f"shape to start from: {', '.join(SHAPES)}")
    flags.DEFINE_string("preset", None, f"setting that text starts from: {', '.join(PRESETS)}")
    flags.DEFINE_integer(
        "jobs",
        None,
        "variants trained at the same time; default: 2 on CPU with a mesh of one device, else 1",
    )
    flags.DEFINE_string("workdir", "runs", "where run directories go")
    flags.DEFINE_string(
        "name", None, "of the run directory; the same command again goes on in it; default: a time"
    )
    flags.DEFINE_string(
        "resume_from", None, "a run directory that was interrupted: go on with it in a new one"
    )
    flags.DEFINE_string(
        "init_from", None, "a run's models/NAME: begin with its parameters, at step 0"
    )
    flags.DEFINE_bool("smoke", False, "a few steps of two variants, in seconds")
    flags.DEFINE_bool("list", False, "print the table of variants and exit")
    showing.define_tables()
    launch.define_hosts()
    launch.define_overrides(TrainConfig, skip=("corpus", "variant", *FILLED_IN))
    launch.define_overrides(Saving)


if __name__ == "__main__":
    define_flags()
    launch.launch(main, OFTEN, [*Config().studies])
