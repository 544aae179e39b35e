"""How tensors of GGUF files are called, and how what llama.cpp's converter did to them is undone.

Source: github.com/ggml-org/llama.cpp, convert_hf_to_gguf.py.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np

from sysout_jax.errors import InputError
from sysout_jax.families.gguf_files.config import Metadata
from sysout_jax.families.gguf_files.header import FLOATS, Tensor
from sysout_jax.families.gguf_files.tensors import Undone, published

Order = Callable[[Metadata], np.ndarray]  # which stored row each published row is
Undo = Callable[[Metadata, Tensor, str], Iterator[Undone]]
# stored name, {l} for the layer and {e} for the expert -> published name and how it is undone; None
# for what is read as part of the config
Names = dict[str, tuple[str, Undo] | None]


def as_it_is(meta: Metadata, tensor: Tensor, name: str) -> Iterator[Undone]:
    """Another name, nothing else."""
    yield published(name, (tensor,))


def transposed(meta: Metadata, tensor: Tensor, name: str) -> Iterator[Undone]:
    """Stored output first, published input first."""
    yield published(name, (tensor,), transposed=len(tensor.shape) > 1)


def plus_one(meta: Metadata, tensor: Tensor, name: str) -> Iterator[Undone]:
    """A norm's scale that is published as its difference from 1."""
    yield published(name, (tensor,), offset=1.0)


def reordered(order: Order) -> Undo:
    """Rows, or the entries of a bias, in another order."""

    def undo(meta: Metadata, tensor: Tensor, name: str) -> Iterator[Undone]:
        rows = order(meta)
        wide = len(tensor.shape) > 1
        stored = tensor if wide else _entries(tensor)
        if stored.rows != len(rows):  # then the shape is wrong, and is said to be
            yield published(name, (tensor,))
        else:
            yield published(name, (stored,), rows, None if wide else tensor.shape)

    return undo


def split(*shares: tuple[str, Callable[[Metadata], int]]) -> Undo:
    """One stored tensor that is published as several, whose rows lie one behind the other."""

    def undo(meta: Metadata, tensor: Tensor, name: str) -> Iterator[Undone]:
        sizes = [size(meta) for _, size in shares]
        wide = len(tensor.shape) > 1
        stored = tensor if wide else _entries(tensor)
        if stored.rows != sum(sizes):
            yield published(name, (tensor,))
            return
        ends = np.cumsum(sizes)
        for (part, _), size, end in zip(shares, sizes, ends, strict=True):
            rows = np.arange(end - size, end)
            yield published(name.format(part=part), (stored,), rows, None if wide else (size,))

    return undo


def each_expert(meta: Metadata, tensor: Tensor, name: str) -> Iterator[Undone]:
    """[E, out, in] stored as one tensor and published as one for every expert."""
    if len(tensor.shape) != 3:
        yield published(name, (tensor,))
        return
    experts, rows, _ = tensor.shape
    for expert in range(experts):
        where = np.arange(expert * rows, (expert + 1) * rows)
        yield published(name.format(e=expert), (tensor,), where)


def alternating(other: str) -> Undo:
    """Gate and up, stored as two tensors [E, F, D] or [E, F] and published as [E, D, 2 F] or
    [E, 2 F], one of each in turn; `other` is the stored name of up."""

    def undo(meta: Metadata, tensor: Tensor, name: str) -> Iterator[Undone]:
        layer = tensor.name.split(".")[1]
        up = meta.tensors.get(other.format(l=layer))
        if up is None or up.shape != tensor.shape or len(tensor.shape) not in (2, 3):
            yield published(tensor.name, (tensor,))
        elif len(tensor.shape) == 3:
            experts, width, inner = tensor.shape
            yield published(name, (tensor, up), shape=(experts, inner, 2 * width), transposed=True)
        else:
            experts, width = tensor.shape
            yield published(name, (_entries(tensor), _entries(up)), shape=(experts, 2 * width))

    return undo


def taken_with(other: str) -> Undo:
    """The second of two `alternating` tensors; `other` is the stored name of the first."""

    def undo(meta: Metadata, tensor: Tensor, name: str) -> Iterator[Undone]:
        first = meta.tensors.get(other.format(l=tensor.name.split(".")[1]))
        if first is None or first.shape != tensor.shape:
            yield published(tensor.name, (tensor,))

    return undo


def _entries(tensor: Tensor) -> Tensor:
    """A tensor as rows of one entry, which no packed type can be cut into."""
    if tensor.kind not in FLOATS:
        raise InputError(
            str(tensor.file), None, ", ".join(FLOATS), f"tensor {tensor.name} is {tensor.kind}"
        )
    width = tensor.shape[-1]
    return replace(tensor, shape=(*tensor.shape, 1), row_bytes=tensor.row_bytes // width)


# ------------------------------------------------------------------------- orders of rows


def _adjacent(heads: int, size: int) -> np.ndarray:
    """Halves of a head beside each other, where the file has adjacent channels for pairs."""
    return np.arange(heads * size).reshape(heads, size // 2, 2).swapaxes(1, 2).reshape(-1)


def query_pairs(meta: Metadata) -> np.ndarray:
    """Of queries: LLaMA's files have the two channels of a rotary pair next to each other."""
    heads, _, size = meta.heads
    return _adjacent(heads, size if size % 2 == 0 else 0)


def key_pairs(meta: Metadata) -> np.ndarray:
    """Of keys, as `query_pairs`."""
    _, kv, size = meta.heads
    return _adjacent(kv, size if size % 2 == 0 else 0)


def by_group(meta: Metadata) -> np.ndarray:
    """Of all queries, then keys, then values: by KV head, its queries, its key, its value."""
    heads, kv, size = meta.heads
    rows = np.arange((heads + 2 * kv) * size)
    query, key, value = np.split(rows, [heads * size, (heads + kv) * size])
    grouped = query.reshape(kv, heads // kv, size)
    parts = [grouped, key.reshape(kv, 1, size), value.reshape(kv, 1, size)]
    return np.concatenate(parts, axis=1).reshape(-1)


def query_rows(meta: Metadata) -> int:
    """N H."""
    heads, _, size = meta.heads
    return heads * size


def key_rows(meta: Metadata) -> int:
    """K H."""
    _, kv, size = meta.heads
    return kv * size


# ------------------------------------------------------------------------- names that many share


def pairs(start: str, *rows: tuple[str, str] | tuple[str, str, Undo]) -> Names:
    """Weight and bias of maps and norms: a stored and a published name behind "blk.{l}." and
    `start`, and how they are undone."""
    return {
        f"blk.{{l}}.{stored}.{kind}": (f"{start}{name}.{kind}", *(undo or (as_it_is,)))
        for stored, name, *undo in rows
        for kind in ("weight", "bias")
    }


def ends(embedding: str, norm: str, head: str = "lm_head", undo: Undo = as_it_is) -> Names:
    """The tensors before and behind the layers; `undo` is of the norm."""
    return {
        "token_embd.weight": (f"{embedding}.weight", as_it_is),
        **{f"output.{kind}": (f"{head}.{kind}", as_it_is) for kind in ("weight", "bias")},
        **{f"output_norm.{kind}": (f"{norm}.{kind}", undo) for kind in ("weight", "bias")},
    }


LLAMA = "model.layers.{l}."
LLAMA_ENDS = ends("model.embed_tokens", "model.norm")
ATTENTION = pairs(
    LLAMA,
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
)
# LLaMA's own code turns adjacent channels; llama.cpp does so where these are permuted.
PERMUTED = ATTENTION | pairs(
    LLAMA,
    ("attn_q", "self_attn.q_proj", reordered(query_pairs)),
    ("attn_k", "self_attn.k_proj", reordered(key_pairs)),
)
NORMS = pairs(LLAMA, ("attn_norm", "input_layernorm"), ("ffn_norm", "post_attention_layernorm"))
HEAD_NORMS = pairs(LLAMA, ("attn_q_norm", "self_attn.q_norm"), ("attn_k_norm", "self_attn.k_norm"))
MLP = pairs(
    LLAMA, ("ffn_gate", "mlp.gate_proj"), ("ffn_up", "mlp.up_proj"), ("ffn_down", "mlp.down_proj")
)
