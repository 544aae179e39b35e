"""Published checkpoints by their id: config.json, safetensors and tokenizer files, or GGUF files,
nothing else."""

import re
from collections.abc import Sequence
from pathlib import Path

from sysout_jax.errors import InputError, reason

WANTED = (
    "config.json", "model*.safetensors", "model.safetensors.index.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
)  # fmt: skip
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
      InputError: it cannot be fetched: no such id or revision, no access, no network.
    """
    from huggingface_hub import snapshot_download  # takes half a second to import
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    below = any("/" in pattern for pattern in wanted)
    try:
        place = snapshot_download(
            name, revision=revision, allow_patterns=list(wanted),
            ignore_patterns=[] if below else ["*/*"],
        )  # fmt: skip
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
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
    return Path(place)


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
