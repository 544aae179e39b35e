"""The tokenizer in the metadata of a GGUF file; its chat template is never looked at."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from sysout_jax.data.tokenizer import SubwordTokenizer, merges_of
from sysout_jax.errors import InputError
from sysout_jax.families.gguf_files.header import Header

_LOG = logging.getLogger("sysout_jax")
_START = "tokenizer.ggml."
_UNKNOWN, _CONTROL, _USER, _BYTE = 2, 3, 4, 6  # types of tokens
_SPACE = "\u2581"
_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_START_OF_WORD = r"[^\r\n\p{L}\p{N}]?"
_WORD = rf"{_START_OF_WORD}\p{{L}}+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (f"{_START_OF_WORD}{_UPPER}*{_LOWER}+", f"{_START_OF_WORD}{_UPPER}+{_LOWER}*")
_CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = (rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}{{1,3}}|{_REST}",)
_QWEN2 = (rf"{_CONTRACTIONS}|{_WORD}|\p{{N}}|{_REST}",)
_DIGITS = (r"\p{N}", _GPT2)
_GPT4O = (rf"{'|'.join(f'{x}{_CONTRACTIONS}?' for x in _CASED)}|\p{{N}}{{1,3}}|{_CASED_REST}",)
_LLAMA3S = (
    "llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2",
    "jina-v5-nano",
)  # fmt: skip
# A whole piece that is a token is one, whatever the merges say; and BOS comes first unless told.
_WHOLE = (*_LLAMA3S, "tekken")
# tokenizer.ggml.pre -> expressions, each of which cuts the pieces that those before it left
SPLITS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        **dict.fromkeys(("default", "gpt-2", "phi-2", "mpt", "olmo", "exaone4"), (_GPT2,)),
        **dict.fromkeys(
            ("smollm", "starcoder", "refact", "command-r", "codeshell", "minerva-7b"), _DIGITS
        ),
        **dict.fromkeys((*_LLAMA3S, "dbrx", "smaug-bpe"), _LLAMA3),
        **dict.fromkeys(
            ("qwen2", "deepseek-r1-qwen", "stablelm2", "megrez", "kormo", "f2llmv2"), _QWEN2
        ),
        **dict.fromkeys(("gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"), _GPT4O),
        "bloom": (r" ?[^(\s|.,!?…。，、।۔،)]+",),
        "tekken": (rf"{'|'.join(_CASED)}|\p{{N}}|{_CASED_REST}",),
        "falcon": (r"[\p{P}\$\+<=>\^~\|`]+", _GPT2, r"[0-9][0-9][0-9]"),
        "deepseek-coder": (
            r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥ࠀ-一가-퟿]+", r"\p{N}",
        ),
    }
)  # fmt: skip

# Of files without it, by architecture, or also by the number of tokens.
_OLDER: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(("gpt2", "gptneox", "phi2", "mpt", "olmo"), "gpt-2"),
        "qwen2": "qwen2", "falcon": "falcon", "bloom": "bloom", "command-r": "command-r",
        "starcoder2": "starcoder", "stablelm of 100352": "stablelm2", "stablelm of 50304": "gpt-2",
        "llama of 128256": "llama-bpe", "llama of 32256": "deepseek-coder",
    }
)  # fmt: skip


def read_tokenizer(header: Header, vocab: int) -> SubwordTokenizer | None:
    """The tokenizer that the metadata describes.

    Args:
      header: of the file.
      vocab: V, rows of the embedding.

    Returns:
      None where the file has none.

    Raises:
      InputError: a kind of tokenizer that is not read, a rule of cutting words that is not known,
        or a vocabulary that does not fit the model or itself.
    """
    kind = str(header.metadata.get(f"{_START}model", "none"))
    if kind in ("none", "no_vocab"):
        return None
    fields = _Fields(header, vocab)
    builders = {"gpt2": _byte_level, "llama": _sentencepiece, "t5": _unigram}
    if kind not in builders:
        fields.refuse("model", repr(kind)[:60], f"{', '.join(builders)}, none")
    if kind == "gpt2" and fields.pre not in SPLITS:
        fields.refuse("pre", repr(fields.pre)[:60], ", ".join(SPLITS))
    try:
        backend = builders[kind](fields)
        special = [
            tokenizers.AddedToken(token, special=number in (_UNKNOWN, _CONTROL), normalized=False)
            for token, number in zip(fields.tokens, fields.types, strict=True)
            if number in (_UNKNOWN, _CONTROL, _USER) and backend.token_to_id(token) is not None
        ]
        backend.add_tokens(special)
        backend.encode("a")
    except InputError:
        raise
    except Exception as error:  # the library raises bare Exception
        fields.refuse("tokens", f"refused ({str(error)[:100]})", "a vocabulary")
    backend.encode_special_tokens = True  # text that spells a special token is text
    eos = fields.id("eos_token_id")
    bos = fields.id("bos_token_id")
    eot = next((x for x in (eos, bos) if x is not None), 0)
    default = kind == "llama" or fields.pre in _WHOLE
    adds = fields.get("add_bos_token", default and bos is not None)
    return SubwordTokenizer(backend, eot, eot if bos is None else bos, bool(adds))


class _Fields:
    """The tokenizer's metadata, looked at once."""

    def __init__(self, header: Header, vocab: int) -> None:
        self.header = header
        tokens = self.list("tokens", str)
        count = len(tokens)
        types = self.list("token_type", int, [1] * count)
        scores = self.list("scores", float, [0.0] * count)
        if not len(types) == len(scores) == count:
            found = f"{len(types)} types and {len(scores)} scores"
            self.refuse("tokens", f"{count} tokens, {found}", "as many of each")
        # Ollama's files have tokens of other modalities, which have no row; llama.cpp names empty
        # ones so.
        self.tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(tokens[:vocab])]
        self.types: list[int] = types[:vocab]
        self.scores: list[float] = scores[:vocab]
        if not tokens:
            self.refuse("tokens", "empty", "tokens")
        counted = Counter(self.tokens)
        twice = sorted(token for token, count in counted.items() if count > 1)
        if twice:
            self.refuse("tokens", f"{twice[:3]!r}, each more than once", "every token once")
        said = self.get("pre")  # "default" of bytes is a converter's word for not known
        known = said and not (said == "default" and self.get("model") == "gpt2")
        self.pre: str = str(said if known else self._usual(len(tokens)))

    def _usual(self, count: int) -> str:
        """How words are cut by the published models of an architecture, and of so many tokens:
        files of before May 2024 do not say."""
        of = str(self.header.metadata.get("general.architecture"))
        known = _OLDER.get(of, _OLDER.get(f"{of} of {count}"))
        if known is None and self.get("model") == "gpt2":
            _LOG.warning("%s: no %spre, so words are cut as GPT-2 does", self.header.file, _START)
        return known or "default"

    def get(self, key: str, default: Any = None) -> Any:
        return self.header.metadata.get(_START + key, default)

    def list(self, key: str, kind: type, default: Any = None) -> Any:
        found = self.get(key, default)
        if not isinstance(found, Sequence) or not all(type(x) is kind for x in found):
            self.refuse(key, type(found).__name__, f"an array of {kind.__name__}")
        return found

    def id(self, key: str) -> int | None:
        found = self.get(key)
        if found is not None and not (type(found) is int and 0 <= found < len(self.tokens)):
            self.refuse(key, repr(found)[:60], f"0 to {len(self.tokens) - 1}")
        return found

    def refuse(self, key: str, found: str, accepted: str) -> Any:
        raise InputError(str(self.header.file), None, accepted, f"{_START}{key} is {found}")


def byte_level(splits: Sequence[str]) -> pre_tokenizers.PreTokenizer:
    """Words cut by expressions, one after the other, and their bytes as symbols."""
    cuts = [pre_tokenizers.Split(tokenizers.Regex(split), "isolated") for split in splits]
    symbols = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([*cuts, symbols])


def _byte_level(fields: _Fields) -> tokenizers.Tokenizer:
    """GPT-2's kind: bytes as symbols, merges in order, words cut by expressions."""
    ids = {token: number for number, token in enumerate(fields.tokens)}
    merges = []
    for line in fields.list("merges", str):
        cut = line.find(" ", 1)
        pair = (line[:cut], line[cut + 1 :])
        if cut < 0 or not {*pair, "".join(pair)} <= ids.keys():
            fields.refuse("merges", f"{line[:60]!r}, among others", "pairs of tokens of it")
        merges.append(pair)
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=ids, merges=merges, ignore_merges=fields.pre in _WHOLE)
    )
    backend.pre_tokenizer = byte_level(SPLITS[fields.pre])
    backend.decoder = decoders.ByteLevel()
    return backend


def _sentencepiece(fields: _Fields) -> tokenizers.Tokenizer:
    """SentencePiece's BPE: pieces with scores, the pair with the best one merged first."""
    gemma = fields.header.metadata.get("general.architecture") in ("gemma", "gemma2", "gemma3")
    names = list(fields.tokens)
    if gemma:  # spells runs of spaces as they are, and orders merges by id, not by score
        names = [_SPACE * len(x) if x.isspace() and x.strip(" ") == "" else x for x in names]
    scores = [-float(i) for i in range(len(names))] if gemma else fields.scores
    ids = {name: number for number, name in enumerate(names)}
    plain = [i for i, kind in enumerate(fields.types) if kind not in (_UNKNOWN, _CONTROL, _BYTE)]
    ranked = [names[i] for i in sorted(plain, key=lambda i: -scores[i])]
    backend = tokenizers.Tokenizer(
        models.BPE(
            vocab=ids, merges=merges_of(ranked, ids), byte_fallback=True, fuse_unk=True,
            unk_token=_unknown(fields),
        )
    )  # fmt: skip
    _spaces(backend, bool(fields.get("add_space_prefix", True)))
    return backend


def _unigram(fields: _Fields) -> tokenizers.Tokenizer:
    """SentencePiece's unigram: the likeliest cut of the whole text."""
    backend = tokenizers.Tokenizer(
        models.Unigram(
            list(zip(fields.tokens, fields.scores, strict=True)),
            unk_id=fields.id("unknown_token_id"),
            byte_fallback=_BYTE in fields.types,
        )
    )
    _spaces(backend, bool(fields.get("add_space_prefix", True)))
    return backend


def _unknown(fields: _Fields) -> str | None:
    number = fields.id("unknown_token_id")
    if number is None:
        number = next((i for i, kind in enumerate(fields.types) if kind == _UNKNOWN), None)
    return None if number is None else fields.tokens[number]


def _spaces(backend: tokenizers.Tokenizer, prefix: bool) -> None:
    """A space is a symbol, and unless not there is one in front."""
    replaced = normalizers.Replace(" ", _SPACE)
    backend.normalizer = (
        normalizers.Sequence([normalizers.Prepend(_SPACE), replaced]) if prefix else replaced
    )
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence(steps + ([decoders.Strip(" ", 1, 0)] if prefix else []))
