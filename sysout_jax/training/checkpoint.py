"""Trained models on disk: config.json, tokenizer.json, and the parameters of all seeds."""

import contextlib
import errno
import hashlib
import os
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sysout_jax.data import load_saved
from sysout_jax.data.tokenizer import Tokenizer
from sysout_jax.errors import InputError, reason
from sysout_jax.files import read_json, replacing
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, init
from sysout_jax.model.model import Model
from sysout_jax.model.stored import from_record
from sysout_jax.results import write_json

FORMAT = 1
STORAGE = threading.Lock()  # the storage library mixes up what two threads begin at once


def save(
    directory: str | os.PathLike[str],
    config: ModelConfig,
    params: Params,
    seeds: Sequence[int],
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write a model of several seeds; the directory appears whole or not at all.

    Args:
      directory: must not exist yet.
      config: the architecture.
      params: with a leading axis over `seeds` on every leaf.
      seeds: the seeds, in the order of that axis.
      tokenizer: of `data`, or None.

    Raises:
      OSError: it cannot be written.
    """
    import orbax.checkpoint as ocp  # takes over a second to import: only those who save pay

    target = Path(directory).absolute()
    with said_of("model", target), replacing(target) as partial_directory:
        partial_directory.mkdir(parents=True)
        # Of several processes only this one writes, and it must not wait for the others.
        alone = {jax.process_index()}
        options = ocp.options.MultiprocessingOptions(
            primary_host=jax.process_index(), active_processes=alone, barrier_sync_key_prefix="one"
        )
        with STORAGE, ocp.StandardCheckpointer(multiprocessing_options=options) as checkpointer:
            checkpointer.save(partial_directory / "params", jax.device_get(params))
        record = {
            "format": FORMAT,
            "seeds": list(seeds),
            "model": asdict(config),
            "sha256": digests(partial_directory / "params"),
        }
        write_json(partial_directory / "config.json", record)
        if tokenizer is not None:
            tokenizer.save(partial_directory / "tokenizer.json")


@contextlib.contextmanager
def said_of(what: str, target: Path) -> Iterator[None]:
    """Have a write that fails say in one line what is not written, and why.

    Raises:
      OSError: it cannot be written; names the target and the operating system's reason.
    """
    try:
        yield
    except (OSError, ValueError) as error:
        number, why = _failed_write(error)
        raise OSError(number, f"{what} not written: {why}", str(target)) from error


def _failed_write(error: OSError | ValueError) -> tuple[int, str]:
    """The system's number of an error and what it means; the storage library has it in its text."""
    if isinstance(error, OSError):
        return error.errno or errno.EIO, error.strerror or str(error)
    code = re.search(r"\[os_error_code='(\d+)'\]", str(error))
    if code:
        return int(code[1]), os.strerror(int(code[1]))
    return errno.EIO, reason(error)[:200]


def load(
    directory: str | os.PathLike[str], seed: int | None = None, on_host: bool = False
) -> Model:
    """Read a model that `save` wrote.

    Args:
      directory: a model directory, e.g. runs/variants/<run>/models/softmax.
      seed: which of the saved seeds; None for the first.
      on_host: leave the parameters in this process's memory, as NumPy arrays.

    Raises:
      InputError: not a model directory, another format, parameters that are not those written, or
        a seed that was not saved.
    """
    import orbax.checkpoint as ocp

    path = Path(directory).absolute()
    config, seeds, written = _read_config(path)
    if seed is not None and seed not in seeds:
        raise InputError("seed", seed, ", ".join(map(str, seeds)), f"not in {path}")
    shapes = jax.eval_shape(
        jax.vmap(partial(init, config)), jnp.stack([jax.random.key(s) for s in seeds])
    )
    target = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), shapes)
    try:
        # The storage library does not notice every file that was cut short.
        found = digests(path / "params")
        changed = sorted(name for name in written if found.get(name) != written[name])
        if changed:
            raise ValueError(f"{changed[0]} is missing or not as it was written")
        with ocp.StandardCheckpointer() as checkpointer:
            stacked = checkpointer.restore(path / "params", target)
        if jax.tree.map(np.shape, stacked) != jax.tree.map(np.shape, target):
            raise ValueError("its parameters are of other shapes than its config.json says")
    except Exception as error:  # damaged files: the storage library raises what it meets
        said = reason(error)
        raise InputError(str(path / "params"), why=f"cannot be read ({said})") from error
    at = 0 if seed is None else seeds.index(seed)
    saved = path / "tokenizer.json"
    tokenizer = load_saved(saved) if saved.exists() else None
    put = np.asarray if on_host else jnp.array
    return Model(config, jax.tree.map(lambda x: put(x[at]), stacked), tokenizer)


def checkpoint_path(run: Path, name: str, step: int, seed: int) -> Path:
    """Where a run keeps the model `name` as it was at a step, `seed` the first of its group."""
    return run / "checkpoints" / name / f"step-{step:07d}-seed-{seed}"


def checkpoints(run: Path, name: str, seed: int) -> list[tuple[int, Path]]:
    """The steps at which a run kept the model `name` of a seed, in order, and where."""
    found = []
    for path in sorted((run / "checkpoints" / name).glob("step-*-seed-*")):
        if seed in saved_seeds(path):
            found.append((int(path.name.split("-")[1]), path))
    return found


def models(run: Path) -> dict[str, list[int]]:
    """The models in a run directory by name, with their seeds; none where there is no models/."""
    configs = sorted((run / "models").glob("[!.]*/config.json"))
    return {path.parent.name: saved_seeds(path.parent) for path in configs}


def saved_seeds(directory: Path) -> list[int]:
    """The seeds of a model directory.

    Raises:
      InputError: not a model directory, or another format.
    """
    return _read_config(directory)[1]


def digests(directory: Path) -> dict[str, str]:
    """The SHA-256 of every file below a directory, by relative name."""
    found = {}
    for path in sorted(directory.rglob("*")):
        if path.is_file():
            with path.open("rb") as file:
                name = path.relative_to(directory).as_posix()
                found[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def _read_config(path: Path) -> tuple[ModelConfig, list[int], dict[str, str]]:
    """The architecture, the seeds and the digests of a model directory."""
    file = path / "config.json"
    accepted = "a directory that a training run wrote, such as RUN/models/softmax"
    record = read_json(file, accepted)
    try:
        if record["format"] != FORMAT:
            raise InputError(str(file), None, str(FORMAT), f"format {record['format']}")
        seeds = record["seeds"]
        if not seeds or not all(isinstance(seed, int) for seed in seeds):
            raise ValueError(seeds)
        return from_record(record["model"]), seeds, dict(record["sha256"])
    except InputError as error:
        if error.field == file.name:
            raise InputError(str(file), None, error.accepted, error.why) from error
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(str(file), None, accepted, "not a model's config") from error
