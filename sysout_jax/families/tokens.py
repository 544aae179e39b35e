"""The tokenizer of a published checkpoint."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import processors

from sysout_jax.data import Tokenizer, load_saved, load_tokenizer
from sysout_jax.data.tokenizer import SubwordTokenizer, first_special
from sysout_jax.errors import InputError
from sysout_jax.files import read_json

GPT2S = ("GPT2Tokenizer", "CodeGenTokenizer")  # of those that have a vocabulary and merges


def published_tokenizer(directory: Path) -> Tokenizer | None:
    """The tokenizer beside a checkpoint: tokenizer.json, or GPT-2's vocabulary and merges.

    BOS and end of text are the tokens that tokenizer_config.json, special_tokens_map.json or
    config.json names, in this order, or else those that tokenizer.json calls special. Whether BOS
    is put in front is what tokenizer_config.json, or else the post-processor, says.

    Returns:
      None where the directory holds neither.

    Raises:
      InputError: a file that is there cannot be used.
    """
    if (directory / "tokenizer.json").exists():
        found = load_saved(directory / "tokenizer.json")
    elif (directory / "merges.txt").exists() or (directory / "vocab.bpe").exists():
        found = _gpt2s(directory)
    else:
        return None
    if not isinstance(found, SubwordTokenizer):
        return found
    named = [
        _optional(directory / file)
        for file in ("tokenizer_config.json", "special_tokens_map.json", "config.json")
    ]
    bos = next(_specials(found, named, "bos"), found.bos)
    eot = next(_specials(found, named, "eos"), found.eot)
    said = named[0].get("add_bos_token")
    own = found.adds_bos if bos == found.bos else first_special(found.backend) == bos
    adds = own if said is None else bool(said)
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
        if tokenizer.adds_bos and first_special(backend) != tokenizer.bos:
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


def _gpt2s(directory: Path) -> SubwordTokenizer:
    """The tokenizer of GPT-2's two files, and the tokens that other files add to them.

    Raises:
      InputError: the files are those of another kind of tokenizer, or a token's id is not the next.
    """
    found = load_tokenizer(f"gpt2:{directory}")
    said = _optional(directory / "tokenizer_config.json")
    kind = said.get("tokenizer_class") or GPT2S[0]
    if kind.removesuffix("Fast") not in GPT2S or said.get("add_prefix_space"):
        what = kind if kind.removesuffix("Fast") not in GPT2S else "add_prefix_space"
        accepted = "a tokenizer.json beside it, as that library saves with use_fast=True"
        raise InputError(f"{directory}", None, accepted, f"vocabulary and merges of {what}")
    listed = {int(n): token for n, token in said.get("added_tokens_decoder", {}).items()}
    plain = _optional(directory / "added_tokens.json")
    listed = {n: {"content": content} for content, n in plain.items()} | listed
    assert isinstance(found, SubwordTokenizer), "what gpt2:DIR is"
    for number, token in sorted(listed.items()):
        if found.backend.token_to_id(token["content"]) != number:
            kept = {k: v for k, v in token.items() if k not in ("content", "special")}
            added = tokenizers.AddedToken(token["content"], **kept)
            special = token.get("special", False)
            (found.backend.add_special_tokens if special else found.backend.add_tokens)([added])
        if found.backend.token_to_id(token["content"]) != number:
            raise InputError(
                f"{directory}: added token {token['content']!r}", number, "the next id"
            )
    return found


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
