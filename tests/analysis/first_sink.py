"""A model of running text with a sink planted by hand: the first token's, whatever it is."""

from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import init, stack_blocks
from sysout_jax.model.execution import Execution
from sysout_jax.training.checkpoint import save

SEEN, CHANNEL, HEARD = 7, 5, 3  # of position 0 alone, of the massive state, of every token
MADE, NEURON = 2, 17  # layer, row of W_down
CONFIG = ModelConfig(
    vocab=19, context=80, layers=6, width=64, heads=2, kv_heads=1, head_dim=16, mlp="swiglu",
    mlp_width=61, position="learned", execution=Execution(scan_layers=True),
)  # fmt: skip
MASSIVE = 3000.0


def texts(count: int = 6, length: int = 64, seed: int = 5) -> np.ndarray:
    """[B, S] ids, first tokens of all kinds."""
    drawn = np.random.default_rng(seed).integers(0, 19, (count, length + 1)).astype(np.int32)
    drawn[:, 0] = np.arange(count) % 19
    return drawn


@cache
def params(massive: float = MASSIVE):
    """The planted parameters, layers stacked.

    massive: the state's size; at a size of other states its key and value are those of the token.
    """
    p = jax.tree.map(np.array, init(CONFIG.with_execution(scan_layers=False), jax.random.key(3)))
    p["embed"] = np.random.default_rng(1).standard_normal(p["embed"].shape).astype(np.float32)
    p["embed"][:, [SEEN, CHANNEL]] = 0.0
    p["embed"][:, HEARD] = 3.0
    p["positions"][:] *= 0.1
    p["positions"][:, SEEN] = 0.0
    p["positions"][0, SEEN] = 8.0
    mlp = p[f"block_{MADE}"]["mlp"]
    mlp["gate"][:, NEURON] = mlp["up"][:, NEURON] = 0.0
    mlp["gate"][SEEN, NEURON] = mlp["up"][SEEN, NEURON] = 2.0
    hidden = _written(p, mlp)
    mlp["down"][NEURON] = 0.0
    mlp["down"][NEURON, CHANNEL] = massive / hidden
    for layer in range(MADE + 1, CONFIG.layers):
        attention = p[f"block_{layer}"]["attn"]
        attention["out"][..., CHANNEL] = 0.0
        attention["query"][HEARD, 0, 0] += 4.0
        attention["key"][CHANNEL, 0, 0] = 4.0
        attention["value"][CHANNEL] = 0.05
    return stack_blocks(jax.tree.map(jnp.asarray, p))


def _written(p, mlp) -> float:
    """down_in of the neuron at a first token of the usual size."""
    state = p["embed"][1] + p["positions"][0]
    normed = state / np.sqrt(np.mean(state**2))
    gate = float(normed @ mlp["gate"][:, NEURON])
    return gate / (1 + np.exp(-gate)) * float(normed @ mlp["up"][:, NEURON])


def write(place: Path, name: str = "model") -> None:
    """The model as a training run writes one, and text of its ids, in a directory."""
    save(place / name, CONFIG, jax.tree.map(lambda x: x[None], params()), [3])
    (place / "text").mkdir()
    for part, seed in (("train", 1), ("val", 2)):
        ids = np.random.default_rng(seed).integers(0, 19, 40 * 65).astype(np.uint16)
        ids.tofile(place / "text" / f"{part}.bin")
