"""Parameters none of which is without effect."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np

from sysout_jax.model.config import ModelConfig
from sysout_jax.model.decoder import Params, init


@cache
def shapes(config: ModelConfig) -> Params:
    """Of the parameters, which are not made."""
    return jax.eval_shape(partial(init, config), jax.random.key(0))


def noisy(config: ModelConfig, seed: int = 0, size: float = 0.4) -> Params:
    """All random, biases and gates too; scales and gains are around one."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        centre = path[-1].key in ("scale", "gain")
        return jnp.asarray(size * rng.standard_normal(leaf.shape) + centre, jnp.float32)

    return jax.tree_util.tree_map_with_path(draw, shapes(config))
