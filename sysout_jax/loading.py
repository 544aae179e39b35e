"""One `load` for every kind of model: trained here, published, or of llama2.c."""

import os
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp

from sysout_jax.errors import InputError
from sysout_jax.families.checkpoint import Checkpoint, Shard, load_checkpoint, open_checkpoint
from sysout_jax.families.config_map import read_json
from sysout_jax.families.hub import fetch, is_hub_id
from sysout_jax.families.llama2c import load_llama2c
from sysout_jax.families.tensors import CONVERT, DTYPES, PICKLES
from sysout_jax.model.config import one_of
from sysout_jax.model.decoder import param_axes
from sysout_jax.model.model import Model
from sysout_jax.training import checkpoint


def load(
    source: str | os.PathLike[str],
    seed: int | None = None,
    dtype: str | None = None,
    revision: str | None = None,
    shard: Shard | None = None,
) -> Model:
    """Read a model.

    Args:
      source: what a training run wrote (RUN/models/NAME); a directory with config.json and
        safetensors of a family in `families.table`; a file of llama2.c, whose tokenizer is the one
        tok*.bin beside it; or the id of a model on the hub, e.g. "gpt2".
      seed: of a training run, which of its seeds; None for the first.
      dtype: of the parameters in memory: float32, bfloat16, float16; None: as they are stored.
      revision: of a model on the hub.
      shard: where each parameter goes, by its axis letters ("D -> N H") and shape, such as
        `training.sharding.shard(mesh)`; None: the default device. Parameters of published models go
        there one by one as they are read, others when all are.

    Raises:
      InputError: none of these, or one that cannot be read; in one line, and nothing is left over.
    """
    path = locate(source, revision)
    if is_run(path):
        model = checkpoint.load(path, seed)
    elif seed is not None:
        raise InputError(f"seed {seed}", None, "no seed", f"{path} is no training run")
    elif path.is_dir():
        return load_checkpoint(path, dtype, shard)
    else:
        tokens = sorted(path.parent.glob("tok*.bin"))
        model = load_llama2c(path, tokens[0] if len(tokens) == 1 else None)
    model = model if dtype is None else _cast(model, dtype)
    return model if shard is None else _placed(model, shard)


def open_layers(
    source: str | os.PathLike[str], dtype: str | None = None, revision: str | None = None
) -> Checkpoint:
    """A published model, opened but not read: for `model.stream.streamed(c.config, c.params, ...)`.

    Args:
      source: a directory with config.json and safetensors, or the id of a model on the hub.
      dtype, revision: as for `load`.

    Raises:
      InputError: as `load`, or a model of another kind, which is small enough to be loaded.
    """
    path = locate(source, revision)
    if is_run(path) or not path.is_dir():
        raise InputError(
            "stream", None, "a published model's directory or id", f"{path} has no safetensors"
        )
    return open_checkpoint(path, dtype)


def locate(source: str | os.PathLike[str], revision: str | None = None) -> Path:
    """The directory or file that a `--model` value names, fetched from the hub where it is an id.

    Raises:
      InputError: no such path, and no id that can be fetched; or a pickle.
    """
    path, name = Path(source).expanduser(), os.fspath(source)
    if not name or not path.exists():  # an empty path would be the working directory
        if not is_hub_id(name):
            raise InputError(
                "model",
                name,
                (
                    "a run's model, a directory with safetensors, a file of llama2.c, or a "
                    "hub id such as gpt2"
                ),
                "no such file or directory",
            )
        return fetch(name, revision)
    if revision is not None:
        raise InputError("revision", revision, "a hub id", f"{path} is on this machine")
    if path.is_file() and path.suffix in PICKLES and _is_pickle(path):
        raise InputError(str(path), why=CONVERT)
    return path


def is_run(path: Path) -> bool:
    """Whether a directory is what a training run wrote."""
    config = path / "config.json"
    return path.is_dir() and (not config.exists() or "seeds" in read_json(config))


def _is_pickle(path: Path) -> bool:
    """Whether a file starts as torch.save or pickle write: a zip archive, or a protocol mark."""
    with path.open("rb") as file:
        start = file.read(4)
    return start[:2] == b"PK" or (start[:1] == b"\x80" and start[1:2] in b"\x01\x02\x03\x04\x05")


def _placed(model: Model, shard: Shard) -> Model:
    axes = param_axes(model.config)
    params = jax.tree.map(
        lambda x, letters: jax.device_put(x, shard(letters, x.shape)), model.params, axes
    )
    return Model(model.config, params, model.tokenizer)


def _cast(model: Model, dtype: str) -> Model:
    one_of("param_dtype", dtype, tuple(DTYPES.values()))
    params = jax.tree.map(lambda x: x.astype(jnp.dtype(dtype)), model.params)
    activations = "bfloat16" if dtype == "bfloat16" else "float32"
    return Model(replace(model.config, dtype=activations), params, model.tokenizer)
