"""The model that --model means: of a run, published, of llama2.c, whole or one layer at a time."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sysout_jax import loading
from sysout_jax.data.prompt import starts_with_bos
from sysout_jax.errors import InputError, one_of
from sysout_jax.families.checkpoint import Shard
from sysout_jax.families.tensors import DTYPES
from sysout_jax.loading import Located
from sysout_jax.model.decoder import Params
from sysout_jax.model.model import Model
from sysout_jax.results import read_record
from sysout_jax.training.checkpoint import checkpoints, models, saved_seeds
from sysout_jax.training.sharding import MeshShape, make_mesh, parse_mesh, shard

ACCEPTED = (
    "a directory that experiments.variants wrote, one of its models/NAME, or a published model's "
    "directory, GGUF file or hub id"
)


@dataclass(frozen=True)
class Choice:
    """What the flags say of the model.

    Raises:
      InputError: a value is not accepted.
    """

    model: str = ""  # a run directory, its models/NAME, a published model's directory, file or id
    variant: str | None = None  # which of the run's models: its name, or the end of it
    seed: int | None = None  # which of its seeds; None: the first, or all where all are compared
    revision: str | None = None  # of a model on the hub: a commit, tag or branch
    file: str | None = None  # of a directory or hub id of several models: a .gguf file or a folder
    param_dtype: str | None = None  # of the parameters in memory; None: as they are stored
    bos: str = "auto"  # auto, yes, no: the prompt and every sequence start with a BOS token
    mesh: str = "data=1"  # devices that share the parameters: fsdp=2,tensor=2

    def __post_init__(self) -> None:
        starts_with_bos(None, self.bos)
        if self.param_dtype is not None:
            one_of("param_dtype", self.param_dtype, tuple(DTYPES.values()))

    @property
    def shape(self) -> MeshShape:
        """The mesh as numbers."""
        return parse_mesh(self.mesh)

    def shard(self) -> Shard | None:
        """Where parameters go; None: the default device.

        Raises:
          InputError: there are more or fewer devices.
        """
        return None if self.shape.devices == 1 else shard(make_mesh(self.shape))


@dataclass(frozen=True)
class Chosen:
    """The model, where it is, and the run it comes from, if it comes from one."""

    model: Model
    path: Path
    name: str
    seed: int | None
    run: Path | None
    bos: bool  # whether prompt and sequences begin with one
    choice: Choice = Choice()  # how its parameters are held

    def checkpoints(self) -> Iterator[tuple[int, Params]]:
        """The kept models of the run, one in memory at a time."""
        for step, path in self.kept:
            yield step, self._params(path, self.seed)

    def seeds(self) -> Iterator[tuple[int, Params]]:
        """The model of every seed of the run, one in memory at a time."""
        for seed in self.saved:
            yield seed, self._params(self.path, seed)

    def _params(self, path: Path, seed: int | None) -> Params:
        how = self.choice
        return loading.read(loading.resolve(path), seed, how.param_dtype, how.shard()).params

    @property
    def saved(self) -> list[int]:
        """The seeds of the run; empty for a published model."""
        return [] if self.seed is None else saved_seeds(self.path)

    @property
    def kept(self) -> list[tuple[int, Path]]:
        """(step, directory) of each."""
        if self.run is None or self.seed is None:
            return []
        return checkpoints(self.run, self.name, self.seed)

    @property
    def described(self) -> str:
        """The name, and of a run's model which seed of which."""
        if self.seed is None:
            return self.name
        seeds = ", ".join(map(str, saved_seeds(self.path)))
        return f"{self.name}, seed {self.seed} of {seeds}"

    @property
    def cell(self) -> str:
        """What its cells are named by: the name, and of a run's model the seed."""
        return self.name if self.seed is None else f"{self.name}-{self.seed}"

    @property
    def corpus(self) -> str | None:
        """What the run trained this model on; None where that is not known."""
        found: str | None = _study(self.run, self.name).get("corpus")
        return found


def _study(run: Path | None, name: str) -> dict[str, Any]:
    """The study of a run's record that trained a model; empty where there is none."""
    if run and (run / "result.json").exists():
        studies = read_record(run).get("studies", [])
        mine = [study for study in studies if name.startswith(f"{study['name']}-")]
        return max(mine, key=lambda study: len(study["name"]), default={})
    return {}


def origins(chosen: Iterable[Chosen]) -> dict[str, Any]:
    """What a record says of where models that were published come from, by their names."""
    return {each.name: each.model.origin.told for each in chosen if each.model.origin}


def choose(choice: Choice, stream: bool = False) -> Chosen:
    """Find and load the model.

    Args:
      choice: which.
      stream: hold one layer in memory at a time.

    Raises:
      InputError: no model, several of them and no choice between them, or flags that do not apply
        to this kind of model.
    """
    return _read(choice, resolve(choice), choice.seed, stream)


def every(choice: Choice) -> Iterator[Chosen]:
    """The models that the flags mean: without --variant and --seed, all of a run."""
    path = Path(os.path.expanduser(choice.model))
    named = [path / "models" / name for name in models(path) if _fits(choice, name)]
    found = (loading.resolve(each, choice.revision, choice.file) for each in named)
    for located in found if named else (resolve(choice),):
        all_seeds = located.kind == "run" and choice.seed is None
        for seed in saved_seeds(located.path) if all_seeds else (choice.seed,):
            yield _read(choice, located, seed)


def of_softmax(choice: Choice) -> Iterator[Chosen]:
    """The models that the flags mean; of a run, those of variant softmax unless one is named."""
    a_run = bool(models(Path(os.path.expanduser(choice.model))))
    yield from every(replace(choice, variant=choice.variant or ("softmax" if a_run else None)))


def resolve(choice: Choice) -> Located:
    """Where the model is; of a run, the one that --variant means, or the only one.

    Raises:
      InputError: it cannot be had, or the flags do not say which is meant.
    """
    if not choice.model:
        raise InputError("model", None, ACCEPTED, "not given")
    path = Path(os.path.expanduser(choice.model))
    if found := models(path):
        path = path / "models" / _pick(choice, sorted(found))
    elif (path / "result.json").exists():
        raise InputError("model", choice.model, ACCEPTED, "a run without models")
    elif choice.variant is not None:
        raise InputError("variant", choice.variant, "with a run directory as --model")
    return loading.resolve(path if path.exists() else choice.model, choice.revision, choice.file)


def _read(choice: Choice, located: Located, seed: int | None, stream: bool = False) -> Chosen:
    """Load the model, whole or one layer at a time."""
    path, a_run = located.path, located.kind == "run"
    if seed is not None and not a_run:
        raise InputError("seed", seed, "with a run's model")
    if stream and a_run:
        raise InputError("stream", None, "a published model", f"{path} is a run's model")
    if stream:
        opened = loading.open_published(located, choice.param_dtype)
        model = Model(opened.config, opened.layers(), opened.tokenizer(), opened.origin)
    else:
        model = loading.read(located, seed, choice.param_dtype, choice.shard())
    bos = starts_with_bos(model.tokenizer, choice.bos)
    if not a_run:
        name = choice.model.rstrip("/").rpartition("/")[2].lstrip(".")
        name = name or path.resolve().name.lstrip(".")  # of "." and ".."
        return Chosen(model, path, name, None, None, bos)
    # Blocks of queries are how it was trained; here attention is read whole.
    model = replace(model, config=model.config.with_execution(query_block=None))
    run = path.absolute().parent.parent if path.absolute().parent.name == "models" else None
    if choice.bos == "auto" and model.tokenizer is None:  # rows of a task, as in its training
        bos = _study(run, path.name).get("config", {}).get("bos", bos)
    seed = saved_seeds(path)[0] if seed is None else seed
    return Chosen(model, path, path.name, seed, run, bos, choice)


def _fits(choice: Choice, name: str) -> bool:
    wanted = choice.variant
    return wanted is None or name == wanted or name.endswith(f"-{wanted}")


def _pick(choice: Choice, names: list[str]) -> str:
    """The name that --variant means; without it, the only one."""
    wanted = choice.variant
    fitting = [name for name in names if _fits(choice, name)]
    if len(fitting) == 1:
        return fitting[0]
    why = f"fits {len(fitting)} of the models in {choice.model}"
    raise InputError("variant", wanted, ", ".join(names), why if wanted else f"not given; {why}")
