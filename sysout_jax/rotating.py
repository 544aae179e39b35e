"""A model in, the same model with its residual stream in a random basis out."""

from dataclasses import replace

import jax
import jax.numpy as jnp

from sysout_jax.analysis.intervene.rotated_stream import rotate_stream
from sysout_jax.core.compensate import hadamard
from sysout_jax.model.model import Model, check_model
from sysout_jax.model.stream import check_in_memory

BASES = ("rotate", "fold")  # a random one; the given one, with the gains of norms in the weights


def rotate(model: Model, seed: int | None = 0) -> Model:
    """A model whose residual stream is h Q, with Q a random Hadamard rotation: the same logits.

    The gains of norms go into the weights behind them. LayerNorm becomes RMSNorm of h C Q, with C
    the centring, and a tied head has V D weights of its own. Channels of the stream that stand out
    are spread over all; states that do keep their size, and the inputs of the output and down
    projections stay as they are. Weights on the grid of a file of few bits leave it.

    Args:
      model: as `load` or a training run returned it, or `convert`.
      seed: of the key that Q is drawn with; None: Q = 1, so that gains alone move.

    Raises:
      InputError: a model whose norms do not commute with Q, do not stand before attention and MLP,
        or have a bias that nothing behind them takes up; a norm of embeddings; or a model that is
        read layer by layer.

    Source: Ashkboos et al. 2024 (arXiv:2404.00456), section 4, stage 1a.
    """
    check_model(model)
    check_in_memory(model.params)
    width = model.config.width
    # Another than those of the method `rotate`, which are of plain keys.
    rotation = (
        jnp.eye(width) if seed is None
        else hadamard(width, jax.random.fold_in(jax.random.key(seed), 0))
    )  # fmt: skip
    config, params = rotate_stream(model.config, model.params, rotation)
    return replace(model, config=config, params=params)
