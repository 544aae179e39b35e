"""llama2.c's legacy files: LLaMA in float32, one tensor after the other behind seven integers."""

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers

from sysout_jax.data.tokenizer import SubwordTokenizer, merges_of
from sysout_jax.errors import InputError
from sysout_jax.families.tensor_map import Part, Stored, axis_groups, leaves
from sysout_jax.families.tensors import CONVERT
from sysout_jax.files import refuse_pointer
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import param_axes
from sysout_jax.model.model import Model
from sysout_jax.model.rope import Rope

_MAGIC = 0x616B3432  # of the versions after the first
_HEADER = struct.Struct("<7i")
_UNK, _BOS, _EOS, _BYTES = 0, 1, 2, 3  # ids; 256 bytes start at the last
# axes of the stored tensor, and the parameter; "block" is repeated for every layer. Between the
# last two lie the angles of rotary positions, which are not parameters.
_LAYOUT = (
    ("V D", "embed"),
    ("D", "block/attn_norm/scale"),
    ("(N H) D", "block/attn/query"),
    ("(K H) D", "block/attn/key"),
    ("(K H) D", "block/attn/value"),
    ("D (N H)", "block/attn/out"),
    ("D", "block/mlp_norm/scale"),
    ("F D", "block/mlp/gate"),
    ("D F", "block/mlp/down"),
    ("F D", "block/mlp/up"),
    ("D", "final_norm/scale"),
    ("V D", "head"),
)


def load_llama2c(
    path: str | os.PathLike[str], tokenizer: str | os.PathLike[str] | None = None
) -> Model:
    """Read a model of llama2.c, version 0.

    Args:
      path: the file.
      tokenizer: its tokenizer file; None for none.

    Raises:
      InputError: not such a file, cut short, or with NaN or infinity.
    """
    file = Path(path)
    try:
        refuse_pointer(file)
        length = file.stat().st_size
        with file.open("rb") as opened:
            config = _config(file, opened.read(_HEADER.size), length)
            values = np.frombuffer(opened.read(length), "<f4")
    except OSError as error:
        raise InputError(str(file), None, "a file of llama2.c", f"{error.strerror}") from error
    tree: dict[str, Any] = {}
    start = 0
    for stored in _stored(config):
        if stored.parts[0].path == ("head",):
            start += config.context * config.sizes["H"]
        size = int(np.prod(stored.shape))
        part = values[start : start + size]
        if not np.isfinite(part).all():
            raise InputError(str(file), why=f"tensor {stored.name} holds NaN or infinity")
        at = tree
        for name in stored.parts[0].path[:-1]:
            at = at.setdefault(name, {})
        taken = stored.take(stored.parts[0], part.reshape(stored.shape))
        at[stored.parts[0].path[-1]] = jnp.asarray(np.ascontiguousarray(taken))
        start += size
    return Model(config, tree, None if tokenizer is None else load_tokens(tokenizer, config.vocab))


def _config(file: Path, header: bytes, file_size: int) -> ModelConfig:
    """The architecture, where the header says exactly as many numbers as the file holds."""
    if len(header) == _HEADER.size:
        magic, version = struct.unpack_from("<2I", header)
        if magic == _MAGIC:
            what = "quantised to 8 bits" if version == 2 else "with a header of its own"
            raise InputError(
                str(file),
                None,
                "version 0, which its `export.py --version 0` writes",
                f"a file of llama2.c of version {version}, {what}",
            )
        width, mlp, layers, heads, kv_heads, vocab, context = _HEADER.unpack(header)
        plausible = min(width, mlp, layers, heads, kv_heads, abs(vocab), context) > 0
        if plausible and max(width, mlp, layers, heads, abs(vocab), context) < 1 << 24:
            try:
                config = ModelConfig(
                    vocab=abs(vocab), context=context, layers=layers, width=width, heads=heads,
                    kv_heads=kv_heads, mlp_width=mlp, norm="rms", position="rope",
                    rope=Rope(interleaved=True), mlp="swiglu", tied=vocab > 0,
                )  # fmt: skip
            except InputError as error:
                raise InputError(str(file), why=str(error)) from error
            numbers = context * config.sizes["H"] + _numbers(config)
            if file_size == _HEADER.size + 4 * numbers:
                return config
    raise InputError(
        str(file),
        None,
        f"one that does, or a directory with safetensors ({CONVERT})",
        (f"no file of llama2.c (version 0): its header does not fit its {file_size} bytes"),
    )


def _numbers(c: ModelConfig) -> int:
    s = c.sizes
    block = 2 * s["D"] + 2 * s["D"] * s["H"] * (s["N"] + s["K"]) + 3 * s["D"] * s["F"]
    return s["L"] * block + s["D"] + s["V"] * s["D"] * (1 if c.tied else 2)


def _stored(config: ModelConfig) -> Iterator[Stored]:
    """The tensors in the order of the file."""
    axes = dict(leaves(param_axes(config)))
    for letters, owner in _LAYOUT:
        for layer in range(config.layers) if owner.startswith("block/") else (0,):
            path = tuple(owner.replace("block/", f"block_{layer}/", 1).split("/"))
            if path in axes:
                own = tuple(x for x in axes[path].split() if x != "->")
                yield Stored(
                    "/".join(path), axis_groups(letters), (Part(path, own, ()),), config.sizes
                )


def load_tokens(path: str | os.PathLike[str], vocab: int) -> SubwordTokenizer:
    """The tokenizer of llama2.c: pieces with scores, merged best score first.

    Args:
      path: the file.
      vocab: how many pieces it holds.

    Raises:
      InputError: not such a file.
    """
    file = Path(path)
    try:
        raw = file.read_bytes()
        pieces, at = [], 4
        for _ in range(vocab):
            score, length = struct.unpack_from("<fi", raw, at)
            pieces.append((raw[at + 8 : at + 8 + length].decode(), score))
            at += 8 + length
        if at != len(raw):
            raise ValueError(f"{len(raw) - at} bytes beyond {vocab} pieces")
        names = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
        names += [piece for piece, _ in pieces[len(names) :]]
        ids = {name: number for number, name in enumerate(names)}
        ranked = sorted(range(_BYTES + 256, vocab), key=lambda i: -pieces[i][1])
        merges = merges_of([names[i] for i in ranked], ids)
    except OSError as error:
        raise InputError(str(file), None, "a tokenizer of llama2.c", f"{error.strerror}") from error
    except (struct.error, ValueError) as error:
        raise InputError(
            str(file), why=f"no tokenizer of llama2.c with {vocab} pieces ({error})"
        ) from error
    backend = tokenizers.Tokenizer(
        models.BPE(vocab=ids, merges=merges, byte_fallback=True, unk_token=names[_UNK])
    )
    backend.normalizer = normalizers.Prepend(" ")
    backend.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(names[:_BYTES])
    backend.encode_special_tokens = True
    return SubwordTokenizer(backend, _EOS, _BOS, adds_bos=True)
