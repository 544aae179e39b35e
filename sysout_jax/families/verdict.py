"""Whether published files would load, told from their headers, config.json and tokenizer."""

from dataclasses import dataclass
from pathlib import Path

from sysout_jax.errors import InputError
from sysout_jax.families.catalogue import CATALOGUE, kept
from sysout_jax.families.checkpoint import Checkpoint, open_checkpoint
from sysout_jax.families.config_map import ignored_fields, read_config, read_within
from sysout_jax.families.gguf_files.header import is_gguf
from sysout_jax.families.gguf_files.model import gguf_within
from sysout_jax.families.hub import fetch, is_hub_id
from sysout_jax.families.table import by_model_type
from sysout_jax.families.tensors import PICKLES
from sysout_jax.files import existing, permitted, read_json


@dataclass(frozen=True)
class Verdict:
    """What is said of one path.

    Attributes:
      path: as it was given.
      accepted: whether it would load.
      family: the name of its family; None where it is of none.
      ignored: fields of its config that the reference implementation does not read either.
      message: why it is refused, or what it is, in one line.
    """

    path: str
    accepted: bool
    family: str | None
    ignored: tuple[str, ...]
    message: str


def would_load(name: str) -> Verdict:
    """Whether a config.json, a directory, a GGUF file, a model of the catalogue or a hub id would
    load; of the last two no weights are fetched."""
    family: str | None = None
    try:
        path, whole = _place(name)
        if whole:
            return _accepted(name, open_checkpoint(path))
        file = path / "config.json" if path.is_dir() else path
        raw = read_json(file)
        row = by_model_type(raw.get("model_type"), file)
        family = row.name
        own = read_within(row, raw)
        config = read_config(row, own)
        said = f"layers {config.layers}, width {config.width}; only its config.json was looked at"
        return Verdict(name, True, family, ignored_fields(row, own), said)
    except InputError as error:
        return Verdict(name, False, family, (), str(error))


@permitted()
def _place(name: str) -> tuple[Path, bool]:
    """Where to look, and whether the weights are there."""
    path = gguf_within(_found(name))
    return path, is_gguf(path) or (path.is_dir() and _has_weights(path))


def _accepted(name: str, opened: Checkpoint) -> Verdict:
    config = opened.config
    said = f"layers {config.layers}, width {config.width}; {opened.origin.weights}"
    said = f"{said}; {_tokenizer(opened)}"
    return Verdict(name, True, opened.family.name, opened.origin.ignored, said)


def _tokenizer(opened: Checkpoint) -> str:
    """What would become of the tokenizer, in words."""
    try:
        found = opened.read_tokenizer()
    except InputError as error:
        return f"no tokenizer: {error}"
    return "no tokenizer" if found is None else f"a tokenizer of {found.vocab}"


def _found(name: str) -> Path:
    """Where to look; of what is not on this machine a directory with its config.json."""
    path = existing(name)
    if path is not None:
        return path
    entry = CATALOGUE.get(name)
    if entry is not None:
        here, hub = kept(name), entry.hub
        if here is not None:
            return here
        if hub is None:
            raise InputError(name, None, "`so.load` first, which fetches it", "not on this machine")
        return fetch(hub.repository, hub.revision, ("config.json",))
    if is_hub_id(name):
        return fetch(name, wanted=("config.json",))
    raise InputError(name, None, "a path or a hub id", "no such file or directory")


def _has_weights(path: Path) -> bool:
    return any(x.suffix in (".safetensors", *PICKLES) for x in path.iterdir())
