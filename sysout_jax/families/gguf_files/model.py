"""GGUF files as checkpoints: config, tensors and tokenizer of the model as it was published."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from sysout_jax.data import Tokenizer
from sysout_jax.errors import InputError
from sysout_jax.families.gguf_files.architectures import ARCHITECTURES, Architecture
from sysout_jax.families.gguf_files.config import Metadata, Raw
from sysout_jax.families.gguf_files.header import Header, Tensor, read_header
from sysout_jax.families.gguf_files.tensors import Undone, published
from sysout_jax.families.gguf_files.tokenizer import read_tokenizer
from sysout_jax.families.tensors import Source

_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_BLOCK = re.compile(r"blk\.(0|[1-9]\d{0,5})\.(.+)")
_OF_IMAGES = re.compile(r"(v|mm)\..+")  # Ollama's names, in one file with the language model
_EXPERT = re.compile(r"(ffn_\w+)\.(0|[1-9]\d{0,5})\.(weight)")


@dataclass(frozen=True)
class GgufModel:
    """What a GGUF file says of a model, its tensors not read.

    Attributes:
      raw: the config.json that the model is published with.
      sources: the tensors under their published names.
      weights: how they are stored, e.g. "GGUF Q4_1 (210 Q4_1, 61 F32, 1 Q8_0)".
      tokenizer: reads the tokenizer, or None where the file has none.
      ignored: keys of its metadata that nobody is known to read.
    """

    raw: Raw
    sources: list[Source]
    weights: str
    tokenizer: Callable[[], Tokenizer | None]
    ignored: tuple[str, ...]


def open_gguf(path: Path) -> GgufModel:
    """Open a GGUF file, or all files of a model that is split over several.

    Args:
      path: the file, or any of NAME-00001-of-0000N.gguf.

    Raises:
      InputError: no whole GGUF file, an architecture that is not read, or metadata that does not
        fit it; a part of a split model that is missing or that is another's.
    """
    headers = [read_header(path.with_name(name)) for name in part_names(path.name)]
    _check_parts(headers)
    tensors = {tensor.name: tensor for header in headers for tensor in header.tensors}
    name = str(headers[0].metadata.get("general.architecture"))
    if name not in ARCHITECTURES:
        raise InputError(str(path), None, ", ".join(ARCHITECTURES), f"architecture {name[:60]!r}")
    if any(key.startswith(f"{name}.vision.") for key in headers[0].metadata):
        tensors = {key: of for key, of in tensors.items() if not _OF_IMAGES.fullmatch(key)}
    stored = _stored_as(headers[0], tensors.values())
    meta = Metadata(headers[0], name, tensors)
    embedding = _embedding(meta)
    head = tensors.get("output.weight")
    tied = head is None or _same(embedding, head)
    if tied:  # written beside the embedding that it is tied to
        tensors.pop("output.weight", None)
    vocab = embedding.shape[0]
    raw = ARCHITECTURES[name].config(meta)
    raw |= {"vocab_size": vocab, "tie_word_embeddings": tied}
    ignored = meta.unread()
    return GgufModel(
        raw,
        list(_sources(meta, ARCHITECTURES[name])),
        stored,
        partial(read_tokenizer, headers[0], vocab),
        ignored,
    )


def part_names(name: str) -> list[str]:
    """The files of a model, from the name of any of them."""
    match = _PART.fullmatch(name)
    if match is None or int(match[3]) < 1:
        return [name]
    start, _, count = match.groups()
    return [f"{start}-{number:05d}-of-{count}.gguf" for number in range(1, int(count) + 1)]


def gguf_within(path: Path, file: str | None = None) -> Path:
    """The GGUF file that is meant where a directory holds GGUF files and no model of its own.

    Args:
      path: a directory, or any file.
      file: the one that is wanted; None: the only one.

    Returns:
      That file; the path where it holds none.

    Raises:
      InputError: `file` is not there, or one of several is meant.
    """
    if file is not None:
        if not path.is_dir() or not (path / file).is_file():
            raise InputError("file", file, "a file in a directory", f"not in {path}")
        return path / file
    whole = path.is_file() or any(path.glob("*.safetensors"))
    files = [] if whole else sorted(x.name for x in path.glob("*.gguf"))
    if not files:
        return path
    if files == part_names(files[0]):
        return path / files[0]
    raise InputError(
        str(path), None, f"--file= one of {', '.join(files[:20])}", f"{len(files)} GGUF files"
    )


def _check_parts(headers: list[Header]) -> None:
    """Refuse parts that are not those of one model, each once."""
    first = headers[0]
    for number, header in enumerate(headers):
        count, own = header.metadata.get("split.count", 1), header.metadata.get("split.no", 0)
        if (count or 1) != len(headers) or own != number:
            raise InputError(
                str(header.file),
                None,
                (
                    f"part {number} of {len(headers)}, as its name says, all of them beside "
                    "each other"
                ),
                f"part {own} of {count} of a split model (from 0)",
            )
    stored = Counter(tensor.name for header in headers for tensor in header.tensors)
    twice = sorted(name for name, count in stored.items() if count > 1)
    if twice:
        raise InputError(
            str(first.file), None, "in one", f"{', '.join(twice[:20])} in several parts"
        )
    told = first.metadata.get("split.tensors.count", len(stored))
    if len(headers) > 1 and told != len(stored):
        raise InputError(
            str(first.file),
            None,
            f"{told}, as its metadata says",
            f"{len(stored)} tensors in {len(headers)} parts",
        )


def _embedding(meta: Metadata) -> Tensor:
    found = meta.tensors.get("token_embd.weight")
    if found is None or len(found.shape) != 2:
        said = "no tensor" if found is None else f"of shape {list(found.shape)}:"
        raise InputError(
            str(meta.header.file), None, "one of two axes", f"{said} token_embd.weight"
        )
    return found


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors hold the same bytes."""
    if (one.kind, one.shape) != (other.kind, other.shape):
        return False
    a, b = (np.memmap(x.file, np.uint8, "r", x.start, (x.rows, x.row_bytes)) for x in (one, other))
    step = max(1, (1 << 22) // one.row_bytes)
    return all(np.array_equal(a[i : i + step], b[i : i + step]) for i in range(0, one.rows, step))


def _sources(meta: Metadata, architecture: Architecture) -> Iterator[Source]:
    """Every tensor under its published name; one that the architecture has not keeps its own."""
    for name, tensor in meta.tensors.items():
        layer, expert, pattern = _pattern(name)
        found = architecture.names.get(pattern, ("", _own_name))
        if found is not None:  # else it has been read as part of the config
            template, undo = found
            # What is left in braces is for the row itself to fill in.
            filled = template.replace("{l}", layer).replace("{e}", expert or "{e}")
            yield from undo(meta, tensor, filled)


def _own_name(meta: Metadata, tensor: Tensor, name: str) -> Iterator[Undone]:
    yield published(tensor.name, (tensor,))


def _pattern(name: str) -> tuple[str, str, str]:
    """Layer and expert of a stored name, and the name with {l} and {e} for them."""
    block = _BLOCK.fullmatch(name)
    if block is None:
        return "", "", name
    layer, rest = block.groups()
    expert = _EXPERT.fullmatch(rest)
    if expert is None:
        return layer, "", f"blk.{{l}}.{rest}"
    stored, number, kind = expert.groups()
    return layer, number, f"blk.{{l}}.{stored}.{{e}}.{kind}"


def _stored_as(header: Header, tensors: Iterable[Tensor]) -> str:
    from gguf.constants import LlamaFileType  # takes a tenth of a second to import

    counts = Counter(tensor.kind for tensor in tensors)
    counted = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    said = header.metadata.get("general.file_type")
    told = next((kind.name for kind in LlamaFileType if kind == said), "")
    kind = told.removeprefix("MOSTLY_").removeprefix("ALL_")
    return f"GGUF {kind} ({counted})" if kind else f"GGUF ({counted})"
