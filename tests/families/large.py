"""Checkpoints of published sizes with random weights, measured in processes of their own.

    python -m tests.families.large 1b PLACE     # loaded
    python -m tests.families.large 7b PLACE     # streamed, memory limited

Each runs one forward pass with three measures, and then experiments.analyze. Prints JSON: sizes in
bytes, times in seconds: results/models/SHAPE/result.json keeps it. PLACE is removed afterwards.
"""

import json
import math
import os
import resource
import shutil
import subprocess
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
from sysout_jax.model.stream import streamed
from sysout_jax.results import plain, provenance, read_record
from sysout_jax.running import apply

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
TOKENS, SEQUENCES = 64, 4
PARTS = "existence,positions,relations"
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


def limit(shape: str, process: int) -> None:
    """Limit the private memory of a process to less than the parameters have."""
    if shape == "7b":
        resource.prlimit(process, resource.RLIMIT_DATA, (LIMIT, LIMIT))


def one_pass(shape: str, place: Path) -> dict:
    """Load or stream, and run one sequence with three measures."""
    limit(shape, os.getpid())
    tokens = jnp.asarray(np.random.default_rng(1).integers(0, 97, (1, TOKENS)), jnp.int32)
    begun, seconds = time.perf_counter(), {}
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
    seconds["run"] = time.perf_counter() - begun
    layers = {name: len(value) for name, value in taps.items()}
    return {"seconds": seconds, "loaded": loaded, "end": peaks(), "layers": layers}


def analysed(shape: str, place: Path) -> dict:
    """The analysis of a few sequences as a user runs it."""
    text, work = place / "text", place / "runs"
    text.mkdir()
    for part in ("train", "val"):
        ids = np.random.default_rng(2).integers(0, SHAPES[shape]["vocab_size"], 1000, np.uint16)
        ids.tofile(text / f"{part}.bin")
    arguments = [
        f"--only={PARTS}", f"--sequences={SEQUENCES}", f"--seq_len={TOKENS}",
        *([] if shape == "1b" else ["--stream"]),
    ]  # fmt: skip
    begun = time.perf_counter()
    running = subprocess.Popen(
        [sys.executable, "-m", "experiments.analyze", f"--model={place}",
         f"--corpus=tokens:{text}", f"--workdir={work}", *arguments],
        stdout=sys.stderr,
    )  # fmt: skip
    limit(shape, running.pid)
    _, status, used = os.wait4(running.pid, 0)
    assert status == 0
    seconds = time.perf_counter() - begun
    directory = (work / "analyze" / "latest").resolve()
    record = read_record(directory)
    assert record["status"] == "complete"
    layers = len(record["parts"]["positions"]["heads"])
    return {
        "arguments": arguments, "seconds": seconds, "VmHWM": 1024 * used.ru_maxrss,
        "parts": list(record["parts"]), "layers": layers, "parameters": record["parameters"],
        "outliers": record["parts"]["existence"]["any"],
    }  # fmt: skip


def measure(shape: str, place: Path) -> dict:
    """Make, run, analyse and remove a checkpoint."""
    begun = time.perf_counter()
    try:
        made = make(shape, place)
        seconds = time.perf_counter() - begun
        done = subprocess.run(
            [sys.executable, "-m", "tests.families.large", shape, str(place), "pass"],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        return {
            "provenance": provenance(), "load_average": os.getloadavg(), "shape": shape,
            "checkpoint": made, "seconds_to_make": seconds, "tokens": TOKENS,
            "sequences": SEQUENCES, "limit": LIMIT if shape == "7b" else None,
            "pass": json.loads(done.stdout), "analysis": analysed(shape, place),
        }  # fmt: skip
    finally:
        shutil.rmtree(place, ignore_errors=True)


if __name__ == "__main__":
    act = one_pass if sys.argv[3:] == ["pass"] else measure
    print(json.dumps(plain(act(sys.argv[1], Path(sys.argv[2]))), indent=1))
