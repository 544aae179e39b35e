"""What the reference implementation computes of a model of the catalogue, in part.

Needs the extra `reference`. Run as a module, it renews the committed record:

    python -m tests.published.reference smollm2-135m
"""

import sys
from pathlib import Path

import numpy as np

from sysout_jax.data.prompt import PROMPT
from sysout_jax.families.catalogue import from_wheel

COLUMNS = 64  # logits that are kept of each token: a random sample of the vocabulary


def place_of(name: str) -> Path:
    """Where the record of a model is kept."""
    return Path(__file__).parent / f"{name}.npz"


def computed(name: str) -> dict[str, np.ndarray]:
    """Ids of the prompt, a sample of the logits, and the largest states after every layer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    file = from_wheel(name)
    named = {"gguf_file": file.name}
    model = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **named)
    ids = AutoTokenizer.from_pretrained(file.parent, **named)(PROMPT)["input_ids"]
    with torch.no_grad():
        done = model(torch.tensor([ids]), output_hidden_states=True)
    logits = done.logits[0].numpy()
    columns = np.sort(np.random.default_rng(0).choice(logits.shape[1], COLUMNS, replace=False))
    # The last of the hidden states is behind the final norm.
    states = np.stack([state[0].numpy() for state in done.hidden_states[1:-1]])
    return {
        "ids": np.array(ids, np.int32), "columns": columns, "logits": logits[:, columns],
        "largest": np.abs(states).max(axis=(1, 2)),
    }  # fmt: skip


if __name__ == "__main__":
    np.savez_compressed(place_of(sys.argv[1]), **computed(sys.argv[1]))
