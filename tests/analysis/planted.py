"""A model with outliers planted by hand: where each kind is, is known."""

from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from sysout_jax.analysis.locate import expert_neurons
from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import forward, init, stack_blocks
from sysout_jax.model.execution import Execution
from sysout_jax.model.model import Model
from sysout_jax.report.findings import analyze

B, T = 6, 101  # T * D > 3000, so that two outliers can both be 1000 times the mean
TRIGGER = 0  # the token that has outliers: first in every sequence, and again in every other one
AGAIN = 7
SEEN, CONSTANT, CHANNEL = 7, 3, 5  # of the trigger alone, of every token, where the outlier is
MADE, HEARD, REMOVED = 1, 2, 3  # layers
NEURON, REMOVER = 17, 29
CONFIG = ModelConfig(
    vocab=19, context=T, layers=4, width=32, heads=2, kv_heads=1, head_dim=16, mlp="swiglu",
    mlp_width=61, position="none", execution=Execution(scan_layers=True),
)  # fmt: skip
MIXTURE = replace(CONFIG, experts=3, experts_per_token=2)
MAKER, REMOVING = 2, 1  # the experts that have the two neurons


def rows() -> np.ndarray:
    """[B, T + 1] tokens."""
    tokens = np.random.default_rng(5).integers(1, 19, (B, T + 1)).astype(np.int32)
    tokens[:, 0] = TRIGGER
    tokens[::2, AGAIN] = TRIGGER
    return tokens


def text(ids: list[int]) -> str:
    """What ids stand for: the trigger is a line break, 1 a function word, the rest words."""
    return {TRIGGER: "\n", 1: " the"}.get(ids[0], f" word{ids[0]}")


@cache
def params(config=CONFIG):
    """The planted parameters, layers stacked; of a mixture, each neuron in one expert."""
    unrolled = config.with_execution(scan_layers=False)
    p = jax.tree.map(np.array, init(unrolled, jax.random.key(3)))
    p["embed"] = np.random.default_rng(1).standard_normal(p["embed"].shape).astype(np.float32)
    p["embed"][:, [SEEN, CHANNEL]] = 0.0
    p["embed"][:, CONSTANT] = 3.0
    p["embed"][TRIGGER, SEEN] = 8.0
    mlp = mlp_of(p, MADE, SEEN, MAKER)
    mlp["gate"][:, NEURON] = mlp["up"][:, NEURON] = 0.0
    mlp["gate"][SEEN, NEURON] = mlp["up"][SEEN, NEURON] = 2.0
    mlp["down"][NEURON, CHANNEL] = 300.0
    attention = p[f"block_{HEARD}"]["attn"]
    attention["value"] *= 20
    attention["out"] *= 20
    attention["value"][CHANNEL] = 0.0
    attention["out"][..., CHANNEL] = 0.0  # or other tokens would fire the remover
    attention["query"][:, 0] *= 0.01
    attention["query"][CONSTANT, 0, 0] = attention["key"][CHANNEL, 0, 0] = 4.0
    mlp = mlp_of(p, REMOVED, CHANNEL, REMOVING)
    mlp["gate"][:, REMOVER] = mlp["up"][:, REMOVER] = 0.0
    mlp["gate"][CHANNEL, REMOVER] = mlp["up"][CHANNEL, REMOVER] = 8.0
    mlp["down"][REMOVER] = 0.0
    # What is written there at the first token is known only by running it up to there.
    taps = {"block_in": lambda h: h[0], "down_in": lambda h: h[0]}
    run = jax.jit(partial(forward, unrolled, taps=taps))
    found = run(jax.tree.map(jnp.asarray, p), jnp.asarray(rows()[:1, :-1]))[1]
    outlier = found["block_in"][REMOVED, 0, CHANNEL]
    mlp["down"][REMOVER, CHANNEL] = -outlier / found["down_in"][REMOVED, 0, REMOVER]
    return stack_blocks(jax.tree.map(jnp.asarray, p))


def mlp_of(p, layer, channel, expert):
    """The MLP of a layer; of a mixture, that expert, which tokens with that channel now go to."""
    mlp = p[f"block_{layer}"]["mlp"]
    if "router" not in mlp:
        return mlp
    mlp["router"][channel, expert] = 20.0
    return {name: weight[expert] for name, weight in mlp.items() if name != "router"}


def neuron(config, expert, of_expert):
    """The number of a neuron in the layer."""
    number = expert * 61 + of_expert if config.experts else of_expert
    assert expert_neurons.place(config, number) == (expert if config.experts else 0, of_expert)
    return number


@cache
def findings():
    """All analyses of it but dynamics."""
    return analyze(Model(CONFIG, params()), rows()[0, :-1], rows=rows())


@cache
def untrained(config=CONFIG):
    """Initial parameters of the same architecture."""
    return init(config, jax.random.key(4))
