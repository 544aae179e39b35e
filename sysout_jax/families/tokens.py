"""The tokenizer of a published checkpoint."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from sysout_jax.data import Tokenizer, load_saved, load_tokenizer
from sysout_jax.data.tokenizer import SubwordTokenizer
from sysout_jax.families.config_map import read_json


def published_tokenizer(directory: Path) -> Tokenizer | None:
    """The tokenizer beside a checkpoint: tokenizer.json, or GPT-2's vocabulary and merges.

    BOS and end of text are those that tokenizer_config.json or config.json names; whether the
    tokenizer itself puts BOS in front is what tokenizer_config.json, or else the post-processor,
    says.

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
    named = _optional(directory / "tokenizer_config.json")
    ids = _optional(directory / "config.json")
    adds = named.get("add_bos_token")
    return replace(
        found,
        bos=_special(found, named.get("bos_token"), ids.get("bos_token_id"), found.bos),
        eot=_special(found, named.get("eos_token"), ids.get("eos_token_id"), found.eot),
        adds_bos=found.adds_bos if adds is None else bool(adds),
    )


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


def _special(tokenizer: SubwordTokenizer, name: Any, number: Any, otherwise: int) -> int:
    """The id of a special token, by its name or by its number."""
    name = name.get("content") if isinstance(name, dict) else name
    known = tokenizer.backend.token_to_id(name) if isinstance(name, str) else None
    if known is not None:
        return known
    number = number[0] if isinstance(number, list) and number else number
    return number if type(number) is int and 0 <= number < tokenizer.vocab else otherwise
