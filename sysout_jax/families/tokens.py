"""The tokenizer of a published checkpoint."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sysout_jax.data import Tokenizer, load_saved, load_tokenizer
from sysout_jax.data.tokenizer import SubwordTokenizer, first_special
from sysout_jax.files import read_json


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
        found = load_tokenizer(f"gpt2:{directory}")
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
    adds = first_special(found.backend) == bos if said is None else bool(said)
    return replace(found, bos=bos, eot=eot, adds_bos=bos is not None and adds)


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
