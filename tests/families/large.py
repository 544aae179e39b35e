"""Checkpoints of published sizes with random weights, measured in a process of their own.

    python -m tests.families.large 1b PLACE     # load and analyse
    python -m tests.families.large 7b PLACE     # stream under a memory limit

Prints one JSON line: sizes in bytes, times in seconds. PLACE is removed afterwards.
"""

import json
import math
import resource
import shutil
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from sysout_jax import loading
from sysout_jax.core import measures
from sysout_jax.families import tensor_map
from sysout_jax.families.config_map import read_config
from sysout_jax.families.llama import LLAMA
from sysout_jax.model.model import apply
from sysout_jax.model.stream import streamed

SHAPES = {
    "tiny": {
        "vocab_size": 97, "hidden_size": 64, "intermediate_size": 173, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    },
    "1b": {  # TinyLlama 1.1B
        "vocab_size": 32000, "hidden_size": 2048, "intermediate_size": 5632,
        "num_hidden_layers": 22, "num_attention_heads": 32, "num_key_value_heads": 4,
        "max_position_embeddings": 2048,
    },
    "7b": {  # LLaMA-2 7B
        "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32,
        "max_position_embeddings": 4096,
    },
}  # fmt: skip
TOKENS = 64
LIMIT = 5_000_000_000  # bytes of private memory for the 7B-shaped model of 13.5 GB
TAPS = {
    "block_out": measures.top1_over_median,
    "down_in": measures.top1,
    "attn_weights": measures.sink_strength,
}


def make(shape: str, place: Path) -> int:
    """Write a sharded bfloat16 checkpoint; returns its bytes."""
    raw = SHAPES[shape] | {"model_type": "llama"}
    place.mkdir(parents=True)
    (place / "config.json").write_text(json.dumps(raw))
    layout = tensor_map.layout(LLAMA, read_config(LLAMA, raw))
    noise = (0.02 * np.random.default_rng(0).standard_normal(1 << 22)).astype(jnp.bfloat16)
    shards: dict[str, list] = {}
    for stored in layout:
        layer = stored.parts[0].path[0]
        shards.setdefault(f"model-{layer}.safetensors", []).append(stored)
    weight_map = {}
    for number, (file, group) in enumerate(shards.items()):
        tensors = {}
        for stored in group:
            values = np.resize(np.roll(noise, 7919 * number), math.prod(stored.shape))
            ones = len(stored.shape) == 1
            tensors[stored.name] = (np.ones_like(values) if ones else values).reshape(stored.shape)
        save_file(tensors, place / file)
        weight_map |= {stored.name: file for stored in group}
    (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return sum(file.stat().st_size for file in place.glob("*.safetensors"))


def peaks() -> dict[str, int]:
    """The most memory that this process has held, and what of now is private to it."""
    status = Path("/proc/self/status").read_text()
    found = dict(line.split(":", 1) for line in status.splitlines())
    return {name: 1024 * int(found[name].split()[0]) for name in ("VmHWM", "RssAnon")}


def measure(shape: str, place: Path) -> dict:
    """Make, load or stream, run, and remove a checkpoint."""
    begun = time.perf_counter()
    made = make(shape, place)
    seconds = {"make": time.perf_counter() - begun}
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 97, (1, TOKENS)), jnp.int32)
    begun = time.perf_counter()
    if shape == "7b":
        resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    if shape == "1b":
        model = loading.load(place)
        jax.block_until_ready(model.params)
        seconds["load"], begun = time.perf_counter() - begun, time.perf_counter()
        loaded = peaks()
        logits, taps = apply(model, tokens, TAPS)
    else:
        opened = loading.open_layers(place)
        loaded = peaks()
        logits, taps = streamed(opened.config, opened.params, tokens, TAPS)
    assert np.isfinite(np.asarray(logits, np.float32)).all()
    seconds["analyse"] = time.perf_counter() - begun
    layers = {name: len(value) for name, value in taps.items()}
    shutil.rmtree(place)
    return {
        "shape": shape, "checkpoint": made, "tokens": TOKENS, "seconds": seconds,
        "loaded": loaded, "end": peaks(), "limit": LIMIT if shape == "7b" else None,
        "layers": layers,
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]))))
