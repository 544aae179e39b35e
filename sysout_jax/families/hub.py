"""Published checkpoints by their id: config.json, safetensors and tokenizer files, or GGUF files,
nothing else."""

import fnmatch
import logging
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from sysout_jax.errors import InputError, reason
from sysout_jax.families.tensors import CONVERT, PICKLES

_LOG = logging.getLogger("sysout_jax")
_WEIGHTS = "model*.safetensors"
WANTED = (
    "config.json", _WEIGHTS, "model.safetensors.index.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "encoder.json", "vocab.bpe",
)  # fmt: skip
TOKENIZERS = ("tokenizer.json", "merges.txt", "vocab.bpe")  # one of them is in each that is read
_UNREAD = (
    "tokenizer.model", "tekken.json", "spiece.model", "sentencepiece.bpe.model", "vocab.txt",
)  # fmt: skip
_NAMED = 20  # files that a message names
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_ID = re.compile(rf"{_PART}(/{_PART})?")


def is_hub_id(name: str) -> bool:
    """Whether a name may be an id such as "gpt2" or "meta-llama/Llama-2-7b-hf"."""
    return bool(_ID.fullmatch(name)) and ".." not in name


def fetch(name: str, revision: str | None = None, wanted: tuple[str, ...] = WANTED) -> Path:
    """The directory of a published checkpoint, fetched into the hub's cache where it is not there.

    Args:
      name: the id.
      revision: a commit, tag or branch; None: the main branch.
      wanted: patterns of the files to fetch, without a "/" none below a folder.

    Raises:
      InputError: it cannot be fetched: no such id or revision, no access, no network; or it has no
        weights that are read, which its list of files says.
    """
    from huggingface_hub import snapshot_download  # takes half a second to import

    below = any("/" in pattern for pattern in wanted)
    try:
        place = snapshot_download(
            name, revision=revision, allow_patterns=list(wanted),
            ignore_patterns=[] if below else ["*/*"],
        )  # fmt: skip
    except Exception as error:  # whatever its HTTP library raises
        said = reason(error)[:200]
        at = "" if revision is None else f" at revision {revision}"
        raise InputError(
            "model",
            f"{name}{at}",
            (
                "a directory that exists, or the id of a model on the hub that this "
                "machine can reach"
            ),
            f"not fetched ({said})",
        ) from error
    here = [x.name for x in Path(place).glob("*")]
    weights, tokens = fnmatch.filter(here, _WEIGHTS), {*here}.intersection(TOKENIZERS)
    if "config.json" in wanted and not (weights and tokens):
        there = _listed(name, revision)
        if there and not weights:
            _check_weights(name, there)
        if wanted == WANTED and not tokens:
            note_unread(name, there)
    return Path(place)


def note_unread(place: str, files: Collection[str]) -> None:
    """Say of a model without a tokenizer that is read which of its files hold one that is not."""
    for name in _UNREAD:
        if name in files:
            _LOG.warning("%s: %s is not read; accepted: a tokenizer.json beside it", place, name)


def _listed(name: str, revision: str | None) -> list[str]:
    """The files of an id; none where the hub does not say."""
    from huggingface_hub import HfApi  # takes half a second to import

    try:
        return HfApi().list_repo_files(name, revision=revision)
    except Exception:  # whatever its HTTP library raises
        return []


def _check_weights(name: str, files: Sequence[str]) -> None:
    """Refuse an id none of whose files is a safetensors file of its own."""
    whole = [x for x in files if "/" not in x]
    if fnmatch.filter(whole, _WEIGHTS):
        return
    pickles = [x for x in whole if Path(x).suffix in PICKLES]
    if "config.json" in files and pickles:
        raise InputError(f"{name}: {pickles[0]}", why=CONVERT)
    inside = [x for x in files if x.endswith(".gguf")]
    inside += [x.removesuffix("/config.json") for x in files if x.endswith("/config.json")]
    accepted = f"--file= one of {', '.join(inside[:_NAMED])}" if inside else "an id that has them"
    raise InputError(name, None, accepted, f"has no {_WEIGHTS}")


def check_revisions(name: str, revisions: Sequence[str], file: str | None = None) -> None:
    """Refuse revisions that are neither in the hub's cache on this machine nor on the hub.

    Asked once for all of them, before any is fetched.

    Args:
      name: the id.
      revisions: tags or branches.
      file: a GGUF file that they have, or a folder with a config.json, if they have none.

    Raises:
      InputError: naming the first that is not there.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache  # takes half a second to import

    inside = file is not None and not file.endswith(".gguf")
    known = f"{file}/config.json" if inside else file or "config.json"
    unseen = [
        each for each in revisions
        if not isinstance(try_to_load_from_cache(name, known, revision=each), str)
    ]  # fmt: skip
    if not unseen:
        return
    try:
        found = HfApi().list_repo_refs(name)
        there = {ref.name for ref in (*found.branches, *found.tags)}
        why = f"{name} has none of that name on the hub, nor in its cache here"
    except Exception as error:  # whatever its HTTP library raises: it is not to be had there
        there, why = set(), f"{name} has none of that name in the hub's cache here, and the hub "
        why += f"is not reached ({reason(error)[:120]})"
    for each in unseen:
        if each not in there:
            raise InputError("revisions", each, "branches or tags of the model on the hub", why)
