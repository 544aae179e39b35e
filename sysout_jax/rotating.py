"""A model in, the same model with its residual stream in a random basis out."""

from dataclasses import replace

import jax

from sysout_jax.analysis.intervene.rotated_stream import rotate_stream
from sysout_jax.core.compensate import hadamard
from sysout_jax.model.model import Model, check_model
from sysout_jax.model.stream import check_in_memory


def rotate(model: Model, seed: int = 0) -> Model:
    """A model whose residual stream is h Q, with Q a random Hadamard rotation: the same logits.

    Channels that stand out are spread over all channels. States that stand out keep their size, and
    so do inputs of the output and down projections, which are not of the stream.
    In low precision a rotated model is rounded otherwise.

    Args:
      model: as `load` or a training run returned it, or `convert`.
      seed: of the key that Q is drawn with.

    Raises:
      InputError: a model whose norms do not commute with Q, do not stand before attention and MLP,
        or have a bias that nothing behind them takes up; or that is read layer by layer.

    Source: Ashkboos et al. 2024 (arXiv:2404.00456), section 4, stage 1a.
    """
    check_model(model)
    check_in_memory(model.params)
    rotation = hadamard(model.config.width, jax.random.key(seed))
    config, params = rotate_stream(model.config, model.params, rotation)
    return replace(model, config=config, params=params)
