"""A real pretrained model that is known to have no outliers: stories260K (shared data)."""

from itertools import pairwise
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import sysout_jax as so
from sysout_jax.analysis.locate.existence import existence
from sysout_jax.analysis.locate.positions import positions
from sysout_jax.core.layers import cross_entropy
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.execution import Execution

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. "
    "One day, she saw a big, red ball. She wanted to play with it, but it was too high.\n"
) * 2


def read_model(path: Path) -> so.Model:
    """llama2.c's layout: seven integers, then float32 tensors; rotary pairs are neighbours there
    and half a head apart here."""
    dim, hidden, layers, heads, kv_heads, vocab, context = np.fromfile(path, np.int32, 7)
    rest, at = np.fromfile(path, np.float32, offset=28), 0
    size = int(dim // heads)

    def take(*shape):
        nonlocal at
        found = rest[at : at + np.prod(shape)].reshape(shape)
        at += found.size
        return found

    def by_head(w, count):  # [L, heads * H, D] -> [L, D, heads, H]
        return w.reshape(layers, count, size, dim).transpose(0, 3, 1, 2)

    def halves(w):
        return np.concatenate([w[..., 0::2], w[..., 1::2]], axis=-1)

    embed, attn_norm = take(vocab, dim), take(layers, dim)
    query, key = take(layers, dim, dim), take(layers, kv_heads * size, dim)
    value, out = take(layers, kv_heads * size, dim), take(layers, dim, dim)
    mlp_norm, gate = take(layers, dim), take(layers, hidden, dim)
    down, up, final = take(layers, dim, hidden), take(layers, hidden, dim), take(dim)
    blocks = {
        "attn_norm": {"scale": attn_norm},
        "mlp_norm": {"scale": mlp_norm},
        "attn": {
            "query": halves(by_head(query, heads)),
            "key": halves(by_head(key, kv_heads)),
            "value": by_head(value, kv_heads),
            "out": out.transpose(0, 2, 1).reshape(layers, heads, size, dim),
        },
        "mlp": {
            "gate": gate.transpose(0, 2, 1),
            "up": up.transpose(0, 2, 1),
            "down": down.transpose(0, 2, 1),
        },
    }  # fmt: skip
    config = ModelConfig(
        vocab=int(vocab), context=int(context), layers=int(layers), width=int(dim),
        heads=int(heads), kv_heads=int(kv_heads), mlp_width=int(hidden), norm="rms",
        position="rope", mlp="swiglu", tied=True, execution=Execution(scan_layers=True),
    )  # fmt: skip
    params = {"embed": embed, "final_norm": {"scale": final}, "blocks": blocks}

    def array(tree):
        if isinstance(tree, dict):
            return {name: array(branch) for name, branch in tree.items()}
        return jnp.asarray(np.ascontiguousarray(tree))

    return so.Model(config, array(params))


def encode(path: Path, text: str) -> list[int]:
    """BOS, then greedy merges by score, over the pieces of llama2.c's tokenizer file."""
    raw, at, pieces, scores = path.read_bytes(), 4, [], []
    while at < len(raw):
        scores.append(np.frombuffer(raw, np.float32, 1, at)[0])
        length = int(np.frombuffer(raw, np.int32, 1, at + 4)[0])
        pieces.append(raw[at + 8 : at + 8 + length].decode())
        at += 8 + length
    known = {piece: i for i, piece in enumerate(pieces)}
    ids = [known[c] if c in known else known["<0x0A>"] for c in f" {text}"]
    while True:
        merged = [
            (scores[known[pieces[a] + pieces[b]]], i)
            for i, (a, b) in enumerate(pairwise(ids))
            if pieces[a] + pieces[b] in known
        ]
        if not merged:
            return [1, *ids]
        _, i = max(merged, key=lambda pair: (pair[0], -pair[1]))
        ids[i : i + 2] = [known[pieces[ids[i]] + pieces[ids[i + 1]]]]


@pytest.fixture(scope="module")
def stories(shared_data):
    place = shared_data / "weights" / "stories260K"
    model = read_model(place / "stories260K.bin")
    return model, np.array(encode(place / "tok512.bin", STORY), np.int32)


def test_the_loader_is_right(stories):
    """The model predicts a story of its kind about as well as its published loss of 1.30 says."""
    model, tokens = stories
    logits, _ = so.apply(model, jnp.asarray(tokens[None, :-1]))
    first = len(tokens) // 2
    loss = np.asarray(cross_entropy(logits, jnp.asarray(tokens[None, 1:])))[0, :first]
    assert loss.mean() < 1.7


def test_stories260k_has_no_outliers(stories):
    model, tokens = stories
    found = existence(model.config, model.params, tokens[:90])
    assert not found.any
    rows = np.stack([tokens[i : i + 70] for i in range(0, 60, 10)])
    rows[:, 0] = 1
    everywhere = positions(model.config, model.params, rows)
    assert all(kind.flagged == 0 for kind in everywhere.kinds.values())
    assert everywhere.heads.mean() < 0.1  # on the first token
