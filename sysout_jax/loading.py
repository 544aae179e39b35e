"""One `load` for every kind of model: trained here, published, or of llama2.c; and their begin,
and what `load` reads again."""

import logging
import os
import re
from dataclasses import dataclass, replace
from glob import escape
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from sysout_jax.errors import InputError, one_of
from sysout_jax.families.catalogue import CATALOGUE, bring
from sysout_jax.families.checkpoint import Checkpoint, Shard, load_checkpoint, open_checkpoint
from sysout_jax.families.gguf_files.header import is_gguf
from sysout_jax.families.gguf_files.model import gguf_within, part_names
from sysout_jax.families.hub import WANTED, fetch, is_hub_id
from sysout_jax.families.llama2c import load_llama2c
from sysout_jax.families.tensors import CONVERT, DTYPES, PICKLES
from sysout_jax.files import existing, permitted, read_json
from sysout_jax.model import decoder
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.model import Model, check_model
from sysout_jax.model.origin import Origin
from sysout_jax.model.stream import check_in_memory
from sysout_jax.training import checkpoint

_LOG = logging.getLogger("sysout_jax")
# What --file names: a file in the model's place or below it.
_PART = r"(?!\.\.?(?:/|$))[^/\\\x00-\x1f\x7f-\x9f]+"
_WITHIN = re.compile(rf"{_PART}(?:/{_PART})*")
_GGUF = ".gguf"


Kind = Literal["run", "published", "llama2c"]


@dataclass(frozen=True)
class Located:
    """A model on this machine: where it is, and what wrote it; a file that is of no other kind is
    one of llama2.c."""

    path: Path
    kind: Kind


def load(
    source: str | os.PathLike[str],
    seed: int | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    shard: Shard | None = None,
    file: str | None = None,
) -> Model:
    """Read a model.

    Args:
      source: the name of a model in `families.catalogue`, e.g. "smollm2-135m", which is fetched
        where it is not on this machine; what a training run wrote (RUN/models/NAME); a directory
        with config.json and safetensors of a family in `families.table`; a GGUF file, or one part
        of a model that is split over several; a file of llama2.c, whose tokenizer is the one
        tok*.bin beside it; or the id of a model on the hub, e.g. "gpt2".
      seed: of a training run, which of its seeds; None for the first.
      dtype: of the parameters in memory: float32, bfloat16, float16; None: as they are stored, and
        quantised ones in float32.
      revision: of a model on the hub.
      shard: where each parameter goes, by its axis letters ("D -> N H") and shape, such as
        `training.sharding.shard(mesh)`; None: the default device. Parameters of published models go
        there one by one as they are read, others when all are.
      file: of a hub id or directory with several models, the one to read: a GGUF file, or a folder
        with config.json and safetensors.

    Raises:
      InputError: none of these, or one that cannot be read; in one line, and nothing is left over.
    """
    if not isinstance(source, str | os.PathLike):
        raise InputError("model", repr(source)[:60], "a name or a path")
    return read(resolve(source, revision, file), seed, dtype, shard)


@permitted()
def read(
    located: Located, seed: int | None = None, dtype: str | None = None, shard: Shard | None = None
) -> Model:
    """Read a model that is on this machine.

    Args:
      located: what `resolve` returned.
      seed, dtype, shard: as for `load`.

    Raises:
      InputError: as `load`.
    """
    path = located.path
    if seed is not None and located.kind != "run":
        raise InputError("seed", seed, "no seed", f"{path} is no training run")
    if located.kind == "published":
        model = load_checkpoint(path, dtype, shard)
        _note(model.origin)
        return model
    if located.kind == "run":
        model = checkpoint.load(path, seed)
    else:
        tokens = sorted(path.parent.glob("tok*.bin"))
        model = load_llama2c(path, tokens[0] if len(tokens) == 1 else None)
    model = model if dtype is None else _cast(model, dtype)
    return model if shard is None else _placed(model, shard)


def open_layers(
    source: str | os.PathLike[str],
    dtype: str | None = None,
    revision: str | None = None,
    file: str | None = None,
) -> Checkpoint:
    """A published model, opened but not read: for `model.stream.streamed(c.config, c.params, ...)`.

    Args:
      source: a directory with config.json and safetensors, a GGUF file, or the id of a model on the
        hub.
      dtype, revision, file: as for `load`.

    Raises:
      InputError: as `load`, or a model of another kind, which is small enough to be loaded.
    """
    return open_published(resolve(source, revision, file), dtype)


def open_published(located: Located, dtype: str | None = None) -> Checkpoint:
    """Open a model that is on this machine without reading it.

    Args:
      located: what `resolve` returned.
      dtype: as for `load`.

    Raises:
      InputError: as `open_layers`.
    """
    if located.kind != "published":
        raise InputError(
            "stream",
            None,
            "a published model's directory, file or id",
            f"{located.path} has no safetensors and is no GGUF file",
        )
    opened = open_checkpoint(located.path, dtype)
    _note(opened.origin)
    return opened


@permitted()
def resolve(
    source: str | os.PathLike[str], revision: str | None = None, file: str | None = None
) -> Located:
    """What a `--model` value names, fetched where it is a name or an id.

    Args:
      source, revision, file: as for `load`.

    Raises:
      InputError: no such path, and no id that can be fetched; a pickle; a directory with no model,
        or with part of one.
    """
    path = _path(source, revision, file)
    return Located(path, _kind(path))


def _path(source: str | os.PathLike[str], revision: str | None, file: str | None) -> Path:
    path, name = existing(source), os.fspath(source)
    if file is not None and not _WITHIN.fullmatch(file):
        raise InputError("file", file, "the name of a .gguf file or a folder in --model")
    if path is None:
        if name in CATALOGUE and revision is file is None:
            return gguf_within(bring(name, _LOG.warning), None)
        if not is_hub_id(name):
            raise InputError(
                "model",
                name,
                (
                    f"{', '.join(CATALOGUE)}, a run's model, a directory with safetensors, "
                    "a GGUF file, a file of llama2.c, or a hub id such as gpt2"
                ),
                "no such file or directory",
            )
        return _within(_fetched(name, revision, file), file)
    if revision is not None:
        raise InputError("revision", revision, "a hub id", f"{path} is on this machine")
    if path.is_file() and path.suffix in PICKLES and _is_pickle(path):
        raise InputError(str(path), why=CONVERT)
    return _within(path, file)


def _within(path: Path, file: str | None) -> Path:
    """The model that is meant: the path, a GGUF file in it, or a folder of it."""
    if file is None or file.endswith(_GGUF):
        return gguf_within(path, file)
    if not (path / file).is_dir():
        raise InputError("file", file, "a GGUF file or a model's folder there", f"not in {path}")
    return path / file


def _fetched(name: str, revision: str | None, file: str | None) -> Path:
    if file is None:
        return fetch(name, revision)
    if not file.endswith(_GGUF):
        return fetch(name, revision, tuple(f"{escape(file)}/{each}" for each in WANTED))
    folder, _, last = file.rpartition("/")
    return fetch(name, revision, tuple(escape(str(Path(folder, x))) for x in part_names(last)))


def _kind(path: Path) -> Kind:
    if not path.is_dir():
        if path.suffix == ".safetensors":
            raise InputError(
                str(path), None, "the directory that holds them with config.json", "weights alone"
            )
        if path.suffix in (".json", ".model"):
            raise InputError(str(path), None, "its directory", "one file of a model")
        return "published" if is_gguf(path) else "llama2c"
    if (path / "config.json").exists():
        config = read_json(path / "config.json")
        if "studies" in config:
            models = ", ".join(f"models/{name}" for name in checkpoint.models(path))
            raise InputError(
                str(path), None, models or "one that has ended", "a run, of several models"
            )
        return "run" if "seeds" in config else "published"
    weights = sorted(x.name for x in path.iterdir() if x.suffix in (".safetensors", *PICKLES))
    if weights:
        raise InputError(
            str(path),
            None,
            ("a published model's directory, whole, or a GGUF file, which needs no config.json"),
            f"{weights[0]} but no config.json",
        )
    folders = sorted(x.parent.name for x in path.glob("*/config.json"))
    if folders:
        accepted = f"--file= one of {', '.join(folders[:20])}"
        raise InputError(str(path), None, accepted, "no config.json but in folders")
    raise InputError(
        str(path),
        None,
        "a directory that a training run wrote, or a published model's",
        "no config.json",
    )


def _note(origin: Origin | None) -> None:
    """Say once which fields of a model's config change no number."""
    if origin is not None and origin.ignored:
        _LOG.warning(
            "%s: ignored %s, which transformers does not read either",
            origin.place, ", ".join(origin.ignored),
        )  # fmt: skip


def _is_pickle(path: Path) -> bool:
    """Whether a file starts as torch.save or pickle write: a zip archive, or a protocol mark."""
    with path.open("rb") as file:
        start = file.read(4)
    return start[:2] == b"PK" or (start[:1] == b"\x80" and start[1:2] in b"\x01\x02\x03\x04\x05")


def init(config: ModelConfig, seed: int = 0, tokenizer: Any = None) -> Model:
    """A model with its initial parameters, as a training run of that seed starts with.

    Args:
      config: the architecture.
      seed: of the key that they are drawn with.
      tokenizer: of `sysout_jax.data`, or None.
    """
    return Model(config, decoder.init(config, jax.random.key(seed)), tokenizer)


def save(model: Model, directory: str | os.PathLike[str]) -> None:
    """Write a model where `load` reads it, in float32 unless its `dtype` says otherwise; where the
    weights came from is not kept. The directory appears whole or not at all.

    Args:
      model: trained, loaded or converted.
      directory: must not exist yet.

    Raises:
      InputError: the directory is there, or the model is one that is read layer by layer.
      OSError: it cannot be written.
    """
    target = Path(os.path.expanduser(directory))
    if target.exists():
        raise InputError("directory", str(target), "one that is not there yet", "exists")
    check_model(model)
    check_in_memory(model.params)
    stacked = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], model.params)
    checkpoint.save(target, model.config, stacked, (0,), model.tokenizer)


def _placed(model: Model, shard: Shard) -> Model:
    axes = decoder.param_axes(model.config)
    params = jax.tree.map(
        lambda x, letters: jax.device_put(x, shard(letters, x.shape)), model.params, axes
    )
    return replace(model, params=params)


def _cast(model: Model, dtype: str) -> Model:
    one_of("dtype", dtype, tuple(DTYPES.values()))
    params = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), model.params)
    activations = "bfloat16" if dtype == "bfloat16" else "float32"
    fused = model.config.execution.flash and activations != "float32"
    config = model.config.with_execution(dtype=activations, flash=fused)
    return replace(model, config=config, params=params)
