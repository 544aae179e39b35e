"""A model whose sink is the first token that its queries see, whatever its word (theory T5)."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import init, stack_blocks

WORDS = 8
CONSTANT, MASSIVE = 2 * WORDS, 2 * WORDS + 1  # channels: words, words heard, a one, the sink's
HIDDEN = ModelConfig(
    vocab=WORDS, context=16, layers=3, width=2 * WORDS + 4, heads=1, head_dim=WORDS, mlp="relu",
    mlp_width=WORDS, norm="rms", position="none",
)  # fmt: skip


@cache
def params():
    """A token that sees one word only is made massive in layer 0, and attended to later: a sink
    that is the first visible token, whatever its word (theory T5)."""
    params = jax.tree.map(np.array, init(HIDDEN, jax.random.key(0)))
    unit = (HIDDEN.width / 2) ** 0.5  # a word and a one, after the norm
    params["embed"][:] = 0.0
    params["embed"][np.arange(WORDS), np.arange(WORDS)] = 1.0
    params["embed"][:, CONSTANT] = 1.0
    block = params["block_0"]
    for name in ("query", "key", "value", "out"):
        block["attn"][name][:] = 0.0
    words = np.arange(WORDS)
    block["attn"]["value"][words, 0, words] = 1.0 / unit
    block["attn"]["out"][0, words, WORDS + words] = 1.0  # the mean of the words that are seen
    block["mlp"]["up"][:] = block["mlp"]["down"][:] = 0.0
    block["mlp"]["up"][WORDS + words, words] = 1.0
    block["mlp"]["up"][CONSTANT, words] = -0.75
    block["mlp"]["down"][words, MASSIVE] = 400.0
    for layer in (1, 2):
        attention = params[f"block_{layer}"]["attn"]
        attention["query"][CONSTANT, 0, 0] = 6.0
        attention["key"][MASSIVE, 0, 0] = 2.0
        attention["value"][MASSIVE] = 0.0
    return stack_blocks(jax.tree.map(jnp.asarray, params))


CONFIG = HIDDEN.with_execution(scan_layers=True)


def rows(seed: int, count: int = 4) -> np.ndarray:
    """[count, 9] tokens: every word once, then one again, the first of each row another one."""
    rng = np.random.default_rng(seed)
    drawn = np.stack([rng.permutation(WORDS) for _ in range(count)])
    return np.concatenate([drawn, drawn[:, 2:3]], axis=1).astype(np.int32)
