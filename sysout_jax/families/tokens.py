"""The tokenizer of a published checkpoint."""

import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import normalizers, processors

from sysout_jax.data import Tokenizer, load_saved
from sysout_jax.data.tokenizer import SubwordTokenizer, first_special
from sysout_jax.data.tokenizer_files import load_gpt2
from sysout_jax.errors import InputError, reason
from sysout_jax.families.gguf_files.tokenizer import SPLITS, byte_level
from sysout_jax.families.hub import TOKENIZERS, note_unread
from sysout_jax.files import read_json

_LOG = logging.getLogger("sysout_jax")
NO_BOS = "tokenizer.json puts no BOS in front, against tokenizer_config.json; bos=yes puts it"
GPT2S = ("GPT2Tokenizer", "CodeGenTokenizer")  # of those that have a vocabulary and merges
QWEN2 = "Qwen2Tokenizer"  # another, which cuts words by its own rule
_END = "<|endoftext|>"


def read_or_none(read: Callable[[], Tokenizer | None]) -> Tokenizer | None:
    """The tokenizer that `read` gives; None where it cannot, which is said: a model runs on ids."""
    try:
        return read()
    except InputError as error:
        _LOG.warning("no tokenizer: %s", error)
        return None


def published_tokenizer(directory: Path) -> Tokenizer | None:
    """The tokenizer beside a checkpoint: tokenizer.json, or a vocabulary and merges.

    BOS and end of text are the tokens that tokenizer_config.json, special_tokens_map.json or
    config.json names, in this order, or else those that tokenizer.json calls special. Whether BOS
    is put in front is what the post-processor of tokenizer.json says, and without that file
    add_bos_token of tokenizer_config.json: so transformers 5 has it, where the two disagree.

    Returns:
      None where the directory holds neither; of a tokenizer that is not read that is said.

    Raises:
      InputError: a file that is there cannot be used.
    """
    whole = directory / "tokenizer.json"
    if not any((directory / name).exists() for name in TOKENIZERS):
        note_unread(str(directory), [x.name for x in directory.iterdir()])
        return None
    names = ("tokenizer_config.json", "special_tokens_map.json", "config.json")
    named = [_optional(directory / name) for name in names]
    found = load_saved(whole) if whole.exists() else _gpt2s(directory, named[0])
    if not isinstance(found, SubwordTokenizer):
        return found
    bos = next(_specials(found, named, "bos"), found.bos)
    eot = next(_specials(found, named, "eos"), found.eot)
    if whole.exists():
        adds = found.adds_bos if bos == found.bos else first_special(found.backend) == bos
        if bos is not None and named[0].get("add_bos_token") is True and not adds:
            _LOG.warning("%s: %s", directory, NO_BOS)
    else:
        adds = bool(named[0].get("add_bos_token"))
    return replace(found, bos=bos, eot=eot, adds_bos=bos is not None and adds)


def write_tokenizer(tokenizer: Tokenizer, directory: Path) -> dict[str, int]:
    """Write a tokenizer as published ones are, so that other libraries read it too.

    A tokenizer of bytes has no such form, and is written as `save` does.

    Returns:
      What config.json says of it: the ids of BOS and of the end of a text.
    """
    ids = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eot}
    if isinstance(tokenizer, SubwordTokenizer):
        backend = tokenizers.Tokenizer.from_str(tokenizer.backend.to_str())
        names = {role: backend.id_to_token(n) for role, n in ids.items() if n is not None}
        puts = tokenizer.bos is not None and first_special(backend) == tokenizer.bos
        if puts and not tokenizer.adds_bos:
            backend.post_processor = None  # else other libraries put BOS in front all the same
        elif tokenizer.adds_bos and not puts:
            bos = names["bos_token_id"]
            first = processors.TemplateProcessing(
                single=f"{bos} $A",
                pair=f"{bos} $A {bos} $B",
                special_tokens=[(bos, ids["bos_token_id"])],
            )
            before = backend.post_processor
            backend.post_processor = processors.Sequence([before, first]) if before else first
        backend.save(str(directory / "tokenizer.json"))
        said: dict[str, Any] = {role.removesuffix("_id"): name for role, name in names.items()}
        said |= {"add_bos_token": tokenizer.adds_bos, "tokenizer_class": "PreTrainedTokenizerFast"}
        (directory / "tokenizer_config.json").write_text(json.dumps(said, indent=2) + "\n")
    else:
        tokenizer.save(directory / "tokenizer.json")
    return {role: number for role, number in ids.items() if number is not None}


def _gpt2s(directory: Path, said: dict[str, Any]) -> SubwordTokenizer:
    """The tokenizer of GPT-2's or Qwen2's two files, and the tokens that other files add to them.

    Args:
      directory: of the files.
      said: what tokenizer_config.json says.

    Raises:
      InputError: the files are those of another kind of tokenizer, or a token's id is not the next.
    """
    kind = said.get("tokenizer_class") or GPT2S[0]
    plain = str(kind).removesuffix("Fast")
    other = None if plain in (*GPT2S, QWEN2) else kind
    if other is None and said.get("add_prefix_space"):
        other = "add_prefix_space"
    if other is not None:
        accepted = "a tokenizer.json beside it, as that library saves with use_fast=True"
        raise InputError(f"{directory}", None, accepted, f"vocabulary and merges of {other}")
    found = load_gpt2(f"gpt2:{directory}", directory, ends=False)
    if plain == QWEN2:
        found = replace(found, bos=None)
        found.backend.normalizer = normalizers.NFC()
        found.backend.pre_tokenizer = byte_level(SPLITS["qwen2"])
    for number, token in sorted(_added(directory, said).items()):
        if found.backend.token_to_id(token.content) != number:
            add = found.backend.add_special_tokens if token.special else found.backend.add_tokens
            add([token])
        if found.backend.token_to_id(token.content) != number:
            raise InputError(f"{directory}: added token {token.content!r}", number, "the next id")
    return found if found.eot is not None else replace(found, eot=found.backend.token_to_id(_END))


def _added(directory: Path, said: dict[str, Any]) -> dict[int, tokenizers.AddedToken]:
    """The tokens that other files add to GPT-2's two, by id."""
    plain = _optional(directory / "added_tokens.json")
    try:
        listed = {int(n): tokenizers.AddedToken(content) for content, n in plain.items()}
        decoder = said.get("added_tokens_decoder") or {}
        return listed | {int(n): tokenizers.AddedToken(**x) for n, x in decoder.items()}
    except (AttributeError, TypeError, ValueError) as error:
        accepted = "each with its id and its content"
        raise InputError(f"{directory}: added tokens", None, accepted, reason(error)) from error


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _specials(tokenizer: SubwordTokenizer, files: list[dict[str, Any]], role: str) -> Iterator[int]:
    """The ids that files give a role, "bos" or "eos", by name or number, the first file first."""
    for file in files:
        name = file.get(f"{role}_token")
        name = name.get("content") if isinstance(name, dict) else name
        known = tokenizer.backend.token_to_id(name) if isinstance(name, str) else None
        if known is not None:
            yield known
        number = file.get(f"{role}_token_id")
        number = number[0] if isinstance(number, list) and number else number
        if type(number) is int and 0 <= number < tokenizer.vocab:
            yield number
